"""Identifying the network that weights belong to.

BVLC's AlexNet and CaffeNet have arrays of the same shapes, and differ only in the order of pooling
and normalisation: the weights of one run in the graph of the other without an error, but give wrong
results. The evidence used, strongest first:

1. the checksum of a published file;
2. the values of the convolutions, compared with the trained networks in ``fingerprints.json``: all
   biases, and samples and sums of the kernels where they are known. They say nothing about the
   dense layers;
3. the architecture recorded in the file;
4. the shapes, if only one network has them;
5. the published file name, for networks with classes other than ImageNet's and without a published
   checksum. For networks with 1000 classes, which have fingerprints, a name is not sufficient.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.weights.arrays import WeightArrays, fitting_architectures, with_classifier
from tf_alexnet.weights.catalog import KnownWeights, catalog, known_weights, published_file

# Metadata that `read_weights` determines itself, regardless of what the file records.
FOUND_ANEW = ("identified", "identified_by", "identified_digest")

# The biases of bvlc_alexnet are known to 1e-3, and half precision changes them by less; those of
# two trainings differ by more than 0.1 somewhere.
_TOLERANCE = 5e-3
# Largest relative difference of kernels (norm). Fine-tuning stays below it, transposing does not.
_KERNEL_TOLERANCE = 0.1
_REARRANGED = {
    "its input channels are in reverse order, RGB for BGR": lambda kernel: kernel[:, :, ::-1],
    "its height and width are swapped": lambda kernel: kernel.transpose(1, 0, 2, 3),
    "it is rotated by 180 degrees": lambda kernel: kernel[::-1, ::-1],
}


@dataclass(frozen=True)
class Identification:
    """The network that weights belong to, and the evidence for it.

    Attributes
    ----------
    name : str or None
        The trained network, as a catalogue name.
    architecture : str or None
        Name of its table, or None if unknown.
    preset : str or None
        The preprocessing the network was trained with.
    how : {"sha256", "sha1", "git_blob", "fingerprint", "recorded", "shapes", "name", "unknown"}
        The evidence: the file's checksum, the values of its convolutions, its own record, the
        shapes, or the file's name.
    distance : float or None
        Largest difference between the biases and those of `nearest`; None if nothing was compared.
    nearest : str or None
        The trained network with the most similar biases.
    candidates : tuple of str
        The tables with the same shapes.
    compared : str
        Which arrays were compared with `nearest`.
    contradiction : str or None
        Set if the biases match those of `nearest` but the kernels don't.
    """

    name: str | None
    architecture: str | None
    preset: str | None
    how: str
    distance: float | None = None
    nearest: str | None = None
    candidates: tuple[str, ...] = ()
    compared: str = ""
    contradiction: str | None = None

    @property
    def trained(self) -> bool:
        """Whether these are the weights of a known training (see `convolutions_only`)."""
        return self.name is not None

    @property
    def training(self) -> str | None:
        """The network in ``fingerprints.json`` that has the same convolutions."""
        return known_weights(self.name).fingerprint if self.name else None

    @property
    def convolutions_only(self) -> bool:
        """Whether only the convolutions are identified, so that dense layers may be different."""
        return self.how == "fingerprint"


def identify_weights(weights: WeightArrays | str | os.PathLike) -> Identification:
    """Identify the network that weights belong to.

    Parameters
    ----------
    weights : WeightArrays, str or path
        Arrays, or the path of a weight file of any supported format.

    Returns
    -------
    Identification

    Raises
    ------
    WeightsError
        If the file is missing, damaged or not a weight file.
    """
    if isinstance(weights, WeightArrays):
        return _identify(weights)
    return read_identified(weights)[1]


def read_identified(
    path: str | os.PathLike, classifier: str | None = None
) -> tuple[WeightArrays, Identification]:
    """The arrays in a file, and their identification."""
    # The formats import h5py and safetensors, which `import tf_alexnet` does not need.
    from tf_alexnet.weights.formats import read_file

    record = published_file(path)  # first, since a damaged file may be unreadable
    arrays = with_classifier(read_file(path), classifier)
    own = {k: v for k, v in arrays.metadata.items() if k not in FOUND_ANEW}
    arrays = replace(arrays, metadata=own)
    return arrays, _identify(arrays, Path(path).name, record)


def _identify(
    arrays: WeightArrays, file_name: str | None = None, record: KnownWeights | None = None
) -> Identification:
    """Identify arrays from a file with this name, which is published as `record` if not None."""
    fitting = tuple(fitting_architectures(arrays))
    nearest, distance = _nearest_fingerprint(arrays)
    found = {"distance": distance, "nearest": nearest, "candidates": fitting}

    def known(record: KnownWeights, how: str, name: str | None = None) -> Identification:
        return Identification(name, record.architecture, record.preset, how, **found)

    if record is not None:
        how = next(x.checksum for x in record.sources if x.checksum).partition(":")[0]
        return known(record, how, record.name)
    if distance is not None and distance < _TOLERANCE:
        found["compared"], found["contradiction"] = _compare_kernels(arrays, nearest)
        if not found["contradiction"]:
            return known(known_weights(nearest), "fingerprint", nearest)
    metadata = arrays.metadata
    # Set by `read_weights` for arrays identified only by the checksum of their file.
    if "identified_digest" in metadata and metadata["identified_digest"] == arrays.digest:
        name = metadata["identified"]
        return known(known_weights(name), metadata["identified_by"], name)
    if arrays.architecture in fitting:
        preset = metadata.get("preset") or ARCHITECTURES[arrays.architecture].preset
        return Identification(None, arrays.architecture, preset, "recorded", **found)
    if len(fitting) == 1:
        return Identification(None, fitting[0], ARCHITECTURES[fitting[0]].preset, "shapes", **found)
    special = [x for x in catalog() if x.classes not in (None, 1000) and file_name in x.file_names]
    for x in special:
        if x.architecture in fitting and x.classes == arrays.classes:
            return known(x, "name")
    return Identification(None, None, None, "unknown", **found)


def _nearest_fingerprint(arrays: WeightArrays) -> tuple[str | None, float | None]:
    """The trained network with the most similar biases, and the largest difference.

    Compares the convolutions present in both, and skips networks with other numbers of biases.
    (None, None) if nothing can be compared.
    """
    found = []
    for name, layers in fingerprints().items():
        biases = [(arrays.layers[x].bias, layers[x]) for x in layers if x in arrays.layers]
        if biases and all(a.shape == b.shape for a, b in biases):
            distance = max(float(np.abs(a - b).max()) for a, b in biases)
            if math.isfinite(distance):
                found.append((distance, name))
    distance, nearest = min(found, default=(None, None))
    return nearest, distance


def _compare_kernels(arrays: WeightArrays, network: str) -> tuple[str, str | None]:
    """Which arrays match a network's, and how the kernels contradict it, or None."""
    biases = [name for name in fingerprints()[network] if name in arrays.layers]
    kernels = {k: v for k, v in kernel_figures()[network].items() if k in arrays.layers}
    for name, known in kernels.items():
        kernel = arrays.layers[name].kernel
        if _matches(kernel, known) or not np.isfinite(kernel).all():
            continue
        why = "fine-tuned, or stored in another layout?"
        for rearranged, turn in _REARRANGED.items():
            if kernel.ndim == 4 and _matches(turn(kernel), known):
                why = rearranged
                break
        return "", f"biases of {network}, but the kernel of {name} is not: {why}"
    compared = f"biases of {_listed(biases)}"
    return compared + (f", kernels of {_listed(list(kernels))}" if kernels else ""), None


def _listed(names: list[str]) -> str:
    """``conv1``, or ``conv1 to conv5``."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _matches(kernel: np.ndarray, known: dict) -> bool:
    """Whether a kernel has the samples and channel sums of a known one."""
    if list(kernel.shape) != known["shape"]:
        return False
    *places, values = np.array(known["samples"]).T
    sums = np.array(known["sums"])
    found = kernel[tuple(np.array(places, int))]
    found_sums = np.abs(kernel[:, :, : len(sums)]).sum((0, 1, 3), dtype=np.float64)
    return all(
        np.linalg.norm(ours - theirs) <= _KERNEL_TOLERANCE * np.linalg.norm(theirs)
        for ours, theirs in ((found, values), (found_sums, sums))
    )


def fingerprints() -> dict[str, dict[str, np.ndarray]]:
    """Network -> layer -> float64 biases."""
    return {
        network: {layer: np.array(x) for layer, x in known["biases"].items()}
        for network, known in _figures().items()
    }


def kernel_figures() -> dict[str, dict[str, dict]]:
    """Network -> layer -> shape, samples and channel sums of its kernel."""
    return {network: known["kernels"] for network, known in _figures().items()}


@cache
def _figures() -> dict:
    path = Path(__file__).with_name("fingerprints.json")
    figures = json.loads(path.read_text(encoding="utf-8"))
    del figures["about"]
    return figures
