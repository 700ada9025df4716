"""Which network is it? Shapes can't tell AlexNet from CaffeNet; checksums and biases can.

BVLC's AlexNet and its reference CaffeNet have arrays of the same shapes and differ only in the
order of pooling and normalisation, so the weights of one run without complaint, and wrongly,
through the graph of the other. The evidence, strongest first:

1. the checksum of a published file;
2. the numbers of the convolutions, compared with those of the trained networks in
   ``fingerprints.json``: biases, and some kernel values and sums where they are known. They tell
   nothing of the dense layers;
3. the architecture that the file itself records;
4. the shapes, where only one network has them;
5. the published file name, for networks with other classes than ImageNet's that have no published
   checksum. Networks with 1000 classes have fingerprints, and a name alone is not believed.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.weights.arrays import WeightArrays, fitting_architectures, with_classifier
from tf_alexnet.weights.catalog import (
    KnownWeights,
    catalog,
    known_weights,
    published_file,
)

_FINGERPRINTS = Path(__file__).parent / "fingerprints.json"

# The biases of bvlc_alexnet are known to 1e-3; those of two trainings differ by more than 0.1
# somewhere. Files of half precision stay within 1e-3 as well.
_TOLERANCE = 5e-3
# Largest relative difference of kernels, as a norm: fine-tuning stays below, rearranging does not.
_KERNEL_TOLERANCE = 0.1
_REARRANGED = {
    "its input channels are in reverse order, RGB for BGR": lambda kernel: kernel[:, :, ::-1],
    "its height and width are swapped": lambda kernel: kernel.transpose(1, 0, 2, 3),
    "it is rotated by 180 degrees": lambda kernel: kernel[::-1, ::-1],
}


@dataclass(frozen=True)
class Identification:
    """What is known about a set of weights, and how.

    Attributes
    ----------
    name : str or None
        The trained network, as a catalogue name.
    architecture : str or None
        Name of the table to build, or None if unknown.
    preset : str or None
        The preprocessing the network was trained with.
    how : {"sha256", "sha1", "git_blob", "fingerprint", "recorded", "shapes", "name", "unknown"}
        The evidence: the file's checksum, the numbers of its convolutions, what the file records,
        the shapes, the file's name.
    distance : float or None
        Largest difference between the biases and those of `nearest`; None if nothing was compared.
    nearest : str or None
        The trained network with the most similar biases.
    candidates : tuple of str
        The tables that have these shapes.
    compared : str
        What was compared with the numbers of `nearest`.
    contradiction : str or None
        Set where the biases are those of `nearest` but the kernels are not.
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
    def convolutions_only(self) -> bool:
        """Whether only the convolutions are known: the dense layers may be of any origin."""
        return self.how == "fingerprint"


def identify_weights(weights: WeightArrays | str | os.PathLike) -> Identification:
    """Find out which network weights belong to.

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
        return identify_arrays(weights)
    record = published_file(weights)
    if record is not None:
        return identified(record)
    from tf_alexnet.weights.formats import read_file

    return identify_arrays(with_classifier(read_file(weights)), weights)


def identified(record: KnownWeights, how: str | None = None, **found) -> Identification:
    """The identification of a file that has a checksum of `record`."""
    how = how or next(x.checksum for x in record.sources if x.checksum).partition(":")[0]
    found.setdefault("candidates", (record.architecture,))
    return Identification(record.name, record.architecture, record.preset, how, **found)


def identify_arrays(arrays: WeightArrays, path: str | os.PathLike | None = None) -> Identification:
    """Find out which network arrays belong to; `path` is the file they came from, if any."""
    fitting = tuple(fitting_architectures(arrays))
    nearest, distance = nearest_fingerprint(arrays)
    found = {"distance": distance, "nearest": nearest, "candidates": fitting}
    if distance is not None and distance < _TOLERANCE:
        found["compared"], found["contradiction"] = _compare_kernels(arrays, nearest)
        if not found["contradiction"]:
            return identified(known_weights(nearest), "fingerprint", **found)
    metadata = arrays.metadata
    # Recorded by `read_weights` for a file known by its checksum.
    if "identified_digest" in metadata and metadata["identified_digest"] == arrays.digest:
        return identified(known_weights(metadata["identified"]), metadata["identified_by"], **found)
    if arrays.architecture in fitting:
        preset = metadata.get("preset") or ARCHITECTURES[arrays.architecture].preset
        return Identification(None, arrays.architecture, preset, "recorded", **found)
    if len(fitting) == 1:
        preset = ARCHITECTURES[fitting[0]].preset
        return Identification(None, fitting[0], preset, "shapes", **found)
    for record in catalog() if path is not None else ():
        special = record.classes not in (None, 1000) and record.classes == arrays.classes
        if special and record.architecture in fitting and Path(path).name in record.spellings:
            return Identification(None, record.architecture, record.preset, "name", **found)
    return Identification(None, None, None, "unknown", **found)


def nearest_fingerprint(arrays: WeightArrays) -> tuple[str | None, float | None]:
    """The trained network with the most similar biases, and the largest difference to them.

    The convolutions that both have are compared; a network with a layer of another number of biases
    is skipped. (None, None) if nothing can be compared.
    """
    distances = {}
    for name, layers in fingerprints().items():
        shared = [layer for layer in layers if layer in arrays.layers]
        biases = [(np.asarray(arrays.layers[x].bias, np.float64), layers[x]) for x in shared]
        if biases and all(a.shape == b.shape for a, b in biases):
            distance = max(float(np.abs(a - b).max()) for a, b in biases)
            if math.isfinite(distance):
                distances[name] = distance
    if not distances:
        return None, None
    nearest = min(distances, key=distances.get)
    return nearest, distances[nearest]


def _compare_kernels(arrays: WeightArrays, network: str) -> tuple[str, str | None]:
    """What can be compared with a network's numbers, and how the kernels contradict its biases."""
    biases = [name for name in fingerprints()[network] if name in arrays.layers]
    kernels = {k: v for k, v in kernel_figures()[network].items() if k in arrays.layers}
    for name, known in kernels.items():
        kernel = arrays.layers[name].kernel
        if _matches(kernel, known) or not np.isfinite(kernel).all():
            continue
        turned = [why for why, turn in _REARRANGED.items() if kernel.ndim == 4]
        turned = [why for why in turned if _matches(_REARRANGED[why](kernel), known)]
        why = turned[0] if turned else "fine-tuned, or stored in another layout?"
        return "", f"biases of {network}, but the kernel of {name} is not: {why}"
    compared = f"biases of {_listed(biases)}"
    return compared + (f", kernels of {_listed(list(kernels))}" if kernels else ""), None


def _listed(names: list[str]) -> str:
    """``conv1``, or ``conv1 to conv5``."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _matches(kernel: np.ndarray, known: dict) -> bool:
    """Whether a kernel has the samples, and the sums of its channels, of a known one."""
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
    """Network -> layer -> shape, samples and sums of its kernel."""
    return {network: known["kernels"] for network, known in _figures().items()}


@cache
def _figures() -> dict:
    figures = json.loads(_FINGERPRINTS.read_text(encoding="utf-8"))
    del figures["about"]
    return figures
