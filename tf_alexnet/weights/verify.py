"""Inspection and verification of weight files.

`inspect_weights` checks bytes and arrays; `verify_weights` also reproduces published outputs, for
which it imports TensorFlow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import InputError, one_line
from tf_alexnet.labels import imagenet_labels
from tf_alexnet.weights.arrays import WeightArrays, adapted_table, faults, not_alexnet
from tf_alexnet.weights.catalog import (
    KnownWeights,
    catalog,
    file_checksum,
    mismatch,
    published_file,
)
from tf_alexnet.weights.download import find_weights
from tf_alexnet.weights.identify import Identification, read_identified


@dataclass(frozen=True)
class Golden:
    """A published output of a trained network."""

    network: str  # name of its fingerprint
    picture: str
    sha256: str
    preset: str
    # Whether conv1 is padded to 57x57 (TensorFlow's SAME) instead of 55x55, as in the code that
    # produced the numbers. Only useful for checking weights.
    same_padding: bool
    # (index of the class, or None if not recorded; probability), most probable first.
    probabilities: tuple[tuple[int | None, float], ...]
    source: str
    # Largest accepted deviation of a probability. The numbers were recorded with other decoders
    # and resizing; the errors to be found change them by 0.3 and more.
    bound: float = 0.05


def _read_goldens(path: Path) -> tuple[Golden, ...]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        Golden(**{**x, "probabilities": tuple(map(tuple, x["probabilities"]))}) for x in entries
    )


GOLDENS = _read_goldens(Path(__file__).with_name("goldens.json"))


class Check(NamedTuple):
    """Result of one check of a weight file.

    Attributes
    ----------
    name : str
        What was checked.
    passed : bool or None
        None if it can't be decided.
    found : str
        Short description of the result.
    deviation : float or None
        Difference from the expected value, if a value was measured.
    """

    name: str
    passed: bool | None
    found: str
    deviation: float | None = None


class LayerSummary(NamedTuple):
    """A layer in a file: name, shapes in TensorFlow's layout, and number of parameters."""

    name: str
    kernel: tuple[int, ...]
    bias: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Inspection:
    """Content and checks of a weight file.

    Attributes
    ----------
    path, format : str
        The file, and its detected format.
    size : int
        Bytes.
    sha256 : str
        Checksum of the file.
    digest : str
        Checksum of the arrays, independent of the format (`WeightArrays.digest`).
    identity : Identification
        Which network it is, and the evidence.
    layers : tuple of LayerSummary
        In network order.
    dtype : str
        Type of the arrays as read, which may differ from the file's.
    parameters : int
        Number of parameters in all layers.
    classes : int or None
        Units of `fc8`.
    metadata : dict of str to str
        What the file records, including its architecture.
    checks : tuple of Check
        Checksum, arrays (shapes and finite values), fingerprint, the file's own record, and, from
        `verify_weights`, one per picture.
    warnings : tuple of str
        Reasons for caution with these weights.
    """

    path: str
    format: str
    size: int
    sha256: str
    digest: str
    identity: Identification
    layers: tuple[LayerSummary, ...]
    dtype: str
    parameters: int
    classes: int | None
    metadata: dict[str, str]
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        network = self.identity.name or self.identity.architecture or "an unknown network"
        state = f"wrong: {', '.join(self.wrong)}" if self.wrong else "no check failed"
        return (
            f"<Inspection {one_line(self.path)}: {self.format}, {network}, "
            f"{len(self.layers)} layers, {state}>"
        )

    @property
    def wrong(self) -> tuple[str, ...]:
        """Names of the failed checks; empty if the file is valid."""
        return tuple(check.name for check in self.checks if check.passed is False)


def inspect_weights(path: str | os.PathLike) -> Inspection:
    """Read a weight file and check it without running the network.

    Parameters
    ----------
    path : str or path
        A file in any readable format, or the catalogue name of weights on this machine.

    Returns
    -------
    Inspection

    Raises
    ------
    WeightsError
        As `read_weights`.
    """
    return _inspect(find_weights(path, download=False))[0]


def verify_weights(
    path: str | os.PathLike,
    photos: str | os.PathLike | None = None,
    goldens: Sequence[Golden] = GOLDENS,
) -> Inspection:
    """Inspect a weight file, and reproduce published outputs.

    Parameters
    ----------
    path : str or path
        As in `inspect_weights`.
    photos : str or path, optional
        Folder with the pictures of `goldens`. Without it, no outputs are computed.
    goldens : sequence of Golden
        Published outputs.

    Returns
    -------
    Inspection
        The file is valid if nothing is `wrong`.

    Raises
    ------
    WeightsError
        As `read_weights`.
    InputError
        If `photos` is not a folder.
    """
    if photos is not None and not os.path.isdir(photos):
        raise InputError(os.fspath(photos), "not a folder", "Name the folder of the pictures.")
    found, arrays = _inspect(find_weights(path, download=False))
    if photos is None:
        return found
    trained = None if "arrays" in found.wrong else found.identity.training
    known = replace(arrays, architecture=found.identity.architecture)
    pictures = _pictures(known, Path(photos), goldens, trained)
    return replace(found, checks=(*found.checks, *pictures))


def _inspect(path: Path) -> tuple[Inspection, WeightArrays]:
    # The formats import h5py and safetensors, which `import tf_alexnet` does not need.
    from tf_alexnet.weights.formats import format_of

    arrays, known = read_identified(path)
    layers = tuple(
        LayerSummary(name, x.kernel.shape, x.bias.shape, x.kernel.size + x.bias.size)
        for name, x in arrays.layers.items()
    )
    recorded = {"architecture": arrays.architecture, **arrays.metadata}
    checks = (
        _checksum(path, known),
        _arrays(arrays, known),
        _fingerprint(path, known),
        _record(arrays, known),
    )
    found = Inspection(
        path=os.fspath(path),
        format=format_of(path).title,
        size=os.stat(path).st_size,
        sha256=file_checksum(path, "sha256"),
        digest=arrays.digest,
        identity=known,
        layers=layers,
        dtype=", ".join(sorted({str(a.dtype) for x in arrays.layers.values() for a in x})),
        parameters=sum(x.parameters for x in layers),
        classes=arrays.classes,
        metadata={k: v for k, v in recorded.items() if v},
        checks=checks,
        warnings=tuple(_warnings(path, arrays, known, checks)),
    )
    return found, arrays


def _named(path: Path) -> KnownWeights | None:
    """The weights published under this file's name."""
    for record in catalog():
        first, *others = record.sources
        if path.name in (first.file_name, *(x.file_name for x in others if x.urls)):
            return record
    return None


def _checksum(path: Path, known: Identification) -> Check:
    record, named = published_file(path), _named(path)
    if record is not None:
        return Check("checksum", True, f"{known.how} is that of {record.name}")
    for source in named.sources if named else ():
        if source.file_name == path.name and source.checksum:
            # A conversion may have a published name and the same arrays, but other bytes.
            converted = source.size is None and known.training == named.fingerprint is not None
            found = "not the published file: " * converted + mismatch(path, source)
            return Check("checksum", None if converted else False, found)
    return Check("checksum", None, "unverified: no checksum is published")


def _arrays(arrays: WeightArrays, known: Identification) -> Check:
    fitting = (known.architecture,) if known.architecture else known.candidates
    if not fitting:
        return Check("arrays", False, not_alexnet(arrays))
    wrong = faults(arrays, adapted_table(arrays, ARCHITECTURES[fitting[0]]))
    said = f"{len(arrays.layers)} layers, all finite: {' or '.join(fitting)}"
    return Check("arrays", not wrong, "; ".join(wrong) or said)


def _fingerprint(path: Path, known: Identification) -> Check:
    if known.contradiction:
        return Check("fingerprint", False, known.contradiction, known.distance)
    if known.distance is None:
        return Check("fingerprint", None, "no known values to compare with")
    found = f"biases at most {known.distance:.2g} from those of {known.nearest}"
    named, trained = _named(path), known.training
    claimed = (named and named.fingerprint) or trained
    if claimed is None:
        return Check("fingerprint", None, f"{found}: another training", known.distance)
    if claimed == trained == known.nearest:
        return Check("fingerprint", True, found, known.distance)
    return Check("fingerprint", False, f"{found}, not those of {claimed}", known.distance)


def _record(arrays: WeightArrays, known: Identification) -> Check:
    recorded = arrays.architecture
    if recorded is None:
        return Check("record", None, "the file records no architecture")
    if known.architecture in (None, recorded):
        return Check("record", True, f"architecture {recorded}")
    how = "convolutions" if known.convolutions_only else known.how
    found = f"it records {recorded}, but by its {how} it is {known.architecture}"
    return Check("record", False, found)


def _warnings(
    path: Path, arrays: WeightArrays, known: Identification, checks: Sequence[Check]
) -> Iterator[str]:
    yield from (check.found for check in checks if check.passed is False)
    lookalikes = {"bvlc_alexnet", "caffenet"} <= set(known.candidates)
    if known.architecture is None and lookalikes:
        yield (
            "bvlc_alexnet and caffenet both have these shapes, and its convolutions match "
            "neither: pass --architecture"
        )
    if arrays.set_aside:
        yield f"ignored, as AlexNet has no such layers: {', '.join(arrays.set_aside)}"
    if known.how == "recorded" and lookalikes:
        yield f"only the file's own record says that it is {known.architecture}, not its values"
    if known.how == "name":
        yield "identified only by its name"
    named = _named(path)
    if named and not any(source.checksum for source in named.sources):
        yield f"unverified: no checksum is published for {named.name}"
    if not known.trained:
        yield "of unknown origin: not the weights of a known trained network"


def _pictures(
    arrays: WeightArrays, folder: Path, goldens: Sequence[Golden], trained: str | None
) -> Iterator[Check]:
    """One check per picture. The model is only built if there is a picture to check."""
    model = None
    for golden in goldens:
        name = f"{golden.picture} ({golden.preset})"
        picture = folder / golden.picture
        if golden.network != trained:
            yield Check(name, None, f"recorded with {golden.network}'s weights")
        elif not picture.is_file():
            yield Check(name, None, f"not in {folder}")
        elif file_checksum(picture, "sha256") != golden.sha256:
            yield Check(name, None, "not the published picture")
        else:
            if model is None:
                from tf_alexnet.model import AlexNet

                model = AlexNet(arrays)
            yield _compare(name, golden, _probabilities(model, picture, golden))


def _probabilities(model, picture: Path, golden: Golden) -> np.ndarray:
    """Probabilities for a picture with the preset and padding of `golden`: (classes,) float32."""
    import tensorflow as tf

    from tf_alexnet.images import load_image, preprocess_input

    x = tf.constant(preprocess_input([load_image(picture)], golden.preset))
    if not golden.same_padding:
        return model(x, training=False).numpy()[0]
    conv1 = model.get_layer("conv1")
    x = tf.nn.relu(tf.nn.conv2d(x, conv1.kernel, conv1.strides, "SAME") + conv1.bias)
    for layer in model.layers[model.layers.index(conv1) + 1 :]:
        x = layer(x, training=False)
    return x.numpy()[0]


def _compare(name: str, golden: Golden, found: np.ndarray) -> Check:
    """Compare probabilities by class, or by rank if the class was not recorded."""
    ranked = np.sort(found)[::-1]
    deviation = max(
        abs(float(ranked[rank] if index is None else found[index]) - expected)
        for rank, (index, expected) in enumerate(golden.probabilities)
    )
    best = int(found.argmax())
    said = f"{found[best]:.4f} {imagenet_labels()[best].label.split(',')[0]}"
    verdict = deviation <= golden.bound
    found = f"{said}; largest deviation {deviation:.2g}, limit {golden.bound:g}"
    return Check(name, verdict, f"{found} ({golden.source})", deviation)
