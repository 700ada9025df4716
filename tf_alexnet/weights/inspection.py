"""Everything that can be said about a weight file without running it."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import NamedTuple

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import WeightsError
from tf_alexnet.weights.arrays import WeightArrays, faults, own_table
from tf_alexnet.weights.cache import remembered_checksum
from tf_alexnet.weights.files import read_unjudged
from tf_alexnet.weights.identify import (
    Identification,
    identified,
    identify_arrays,
    matching_record,
    nearest_fingerprint,
)


class LayerSummary(NamedTuple):
    """One layer of a file.

    Attributes
    ----------
    name : str
        Caffe's layer name.
    kernel, bias : tuple of int
        Shapes, in TensorFlow's layout.
    parameters : int
        Numbers in both.
    """

    name: str
    kernel: tuple[int, ...]
    bias: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Inspection:
    """What a weight file holds.

    Attributes
    ----------
    path, format : str
        The file, and the format that its content has.
    size : int
        Bytes.
    sha256, digest : str
        Checksums of the file, and of its arrays (`WeightArrays.digest`): the same in every format.
    identity : Identification
        Which network it is, and how that is known.
    distance, nearest : float or None, str or None
        Largest difference between its convolutions' biases and those of the trained network that
        has the most similar ones. Given also where the hash decided.
    layers : tuple of LayerSummary
        In network order.
    dtype : str
        Type of the arrays as they are read, whatever the file stores.
    parameters : int
        Numbers in all layers.
    classes : int or None
        Units of `fc8`.
    metadata : dict of str to str
        What the file itself records, architecture included.
    warnings : tuple of str
        What a user should know before trusting the numbers.
    """

    path: str
    format: str
    size: int
    sha256: str
    digest: str
    identity: Identification
    distance: float | None
    nearest: str | None
    layers: tuple[LayerSummary, ...]
    dtype: str
    parameters: int
    classes: int | None
    metadata: dict[str, str]
    warnings: tuple[str, ...]


def inspect_weights(path: str | os.PathLike) -> Inspection:
    """Read a weight file and say what can be said about it.

    Parameters
    ----------
    path : str or path
        A file of any format that can be read.

    Returns
    -------
    Inspection

    Raises
    ------
    WeightsError
        If the file is missing, damaged or foreign.
    """
    arrays = read_unjudged(path)
    try:
        record = matching_record(path)
        size, sha256 = os.stat(path).st_size, remembered_checksum(path, "sha256")
    except OSError as error:
        raise WeightsError(
            str(path), f"it can't be read ({error.strerror or error})", "Is it being changed?"
        ) from error
    identity = identify_arrays(arrays, path) if record is None else identified(record)
    nearest, distance = nearest_fingerprint(arrays)
    recorded = {"architecture": arrays.architecture} if arrays.architecture else {}
    layers = tuple(
        LayerSummary(name, x.kernel.shape, x.bias.shape, x.kernel.size + x.bias.size)
        for name, x in arrays.layers.items()
    )
    return Inspection(
        path=os.fspath(path),
        format=_format(path),
        size=size,
        sha256=sha256,
        digest=arrays.digest,
        identity=identity,
        distance=distance,
        nearest=nearest,
        layers=layers,
        dtype=", ".join(sorted({str(a.dtype) for x in arrays.layers.values() for a in x})),
        parameters=sum(x.parameters for x in layers),
        classes=arrays.classes,
        metadata={**recorded, **arrays.metadata},
        warnings=tuple(_warnings(arrays, identity)),
    )


def contradiction(arrays: WeightArrays, identity: Identification) -> str | None:
    """A sentence where the file records another network than the one that it holds."""
    recorded, actual = arrays.architecture, identity.architecture
    if None in (recorded, actual) or recorded == actual:
        return None
    return f"it records {recorded}, but by its {_evidence(identity)} it is {actual}"


def _format(path: str | os.PathLike) -> str:
    """What kind of file this is, which has been read already."""
    from tf_alexnet.weights.formats import deep_compression, hdf5_file, npy, torch_pth
    from tf_alexnet.weights.formats.zip_members import ZipMembers

    with open(path, "rb") as file:
        head = file.read(512)
        if head.startswith(b"PK"):
            members = ZipMembers(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            numpy = any(name.endswith(".npy") for name in members)
            return "NumPy archive (.npz)" if numpy else "torch file (.pth)"
    if deep_compression.recognised(path, head):
        return "Deep Compression (.net)"
    kinds = (
        (npy.MAGIC, "NumPy dictionary (.npy)"),
        (hdf5_file.MAGIC, "HDF5 (.h5)"),
        (torch_pth.MAGIC, "torch file (.pth)"),
        (b"\x80", "pickled dictionary"),
    )
    for magic, kind in kinds:
        if head.startswith(magic):
            return kind
    return "safetensors" if head[8:9] == b"{" else "Caffe model (.caffemodel)"


def _evidence(identity: Identification) -> str:
    return {"fingerprint": "biases"}.get(identity.how, identity.how)


def _warnings(arrays: WeightArrays, identity: Identification) -> list[str]:
    """What a user should know, the worst first."""
    found = []
    against = contradiction(arrays, identity)
    if against:
        found.append(against)
    lookalikes = {"bvlc_alexnet", "caffenet"} <= set(identity.candidates)
    if identity.architecture is None and lookalikes:
        found.append(
            "bvlc_alexnet and caffenet have arrays of these shapes, and its biases are those of "
            "neither: say which it is with --architecture"
        )
    elif identity.architecture is None:
        fitting = {x.name: faults(arrays, own_table(arrays, x)) for x in ARCHITECTURES.values()}
        nearest = min(fitting, key=lambda name: len(fitting[name]))
        found.append(f"not AlexNet; as {nearest}: {'; '.join(fitting[nearest])}")
    else:
        found += faults(arrays, own_table(arrays, ARCHITECTURES[identity.architecture]))
    if identity.how == "recorded" and lookalikes:
        found.append(f"that it is {identity.architecture} is its own word: no number confirms it")
    if identity.how == "name":
        found.append("its name is all that tells what it is: no checksum is published")
    if not identity.trained:
        found.append("of unknown origin: not the weights of a known trained network")
    return found
