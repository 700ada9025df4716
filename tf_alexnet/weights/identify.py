"""Which network is it? Shapes can't tell AlexNet from CaffeNet; hashes and biases can.

BVLC's AlexNet and its reference CaffeNet have arrays of the same shapes and differ only in the
order of pooling and normalisation, so weights of one run without complaint, and wrongly, through
the graph of the other. What is believed, in this order:

1. the hash of the file, where its size is that of a published file;
2. the biases of the convolutions, held against those of the trained networks
   (``fingerprints.json``): the same in every file format;
3. the architecture that the file itself records;
4. the shapes, where only one network has them;
5. the published name of the file, for a network of other classes than ImageNet's that nobody
   published a checksum of. Networks of 1000 classes have fingerprints, and are never known by name.
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
from tf_alexnet.weights.cache import remembered_checksum
from tf_alexnet.weights.catalog import ALGORITHMS, KnownWeights, catalog

_FINGERPRINTS = Path(__file__).parent / "fingerprints.json"

# The fingerprint of bvlc_alexnet is good to 1e-3; biases of two different trainings differ by
# more than 0.1 somewhere. Files of half precision stay within 1e-3 as well.
_TOLERANCE = 5e-3


@dataclass(frozen=True)
class Identification:
    """What is known about a set of weights, and how.

    Attributes
    ----------
    name : str or None
        The trained network: a catalogue name. From a fingerprint it speaks of the convolutions;
        dense layers put on top of them may be others.
    architecture : str or None
        Name of the table to build, or None where it can't be known.
    preset : str or None
        The preprocessing the network was trained with.
    how : {"sha256", "sha1", "git_blob", "fingerprint", "recorded", "shapes", "name", "unknown"}
        What this rests on: the file's hash, the biases, the file's own word, the shapes, the
        file's name.
    distance : float or None
        Largest difference between the biases and those of `nearest`; None where nothing
        was compared, as when the hash decided.
    nearest : str or None
        The trained network with the most similar biases.
    candidates : tuple of str
        The tables that have these shapes.
    """

    name: str | None
    architecture: str | None
    preset: str | None
    how: str
    distance: float | None = None
    nearest: str | None = None
    candidates: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether these are the weights (by fingerprint: the convolutions) of a known training."""
        return self.name is not None and self.how in ("fingerprint", *ALGORITHMS)


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
        If the file is missing, damaged or foreign.
    """
    if isinstance(weights, WeightArrays):
        return identify_arrays(weights)
    record = published_file(weights)
    if record is not None:
        return identified(record)
    from tf_alexnet.weights.formats import read_file

    return identify_arrays(with_classifier(read_file(weights)), weights)


def identified(record: KnownWeights) -> Identification:
    """The identification of a file whose checksum is that of `record`."""
    table, how = record.architecture, record.checksum.partition(":")[0]
    return Identification(record.name, table, record.preset, how, candidates=(table,))


def published_file(path: str | os.PathLike) -> KnownWeights | None:
    """The catalogue's record with the SHA-256 of this file, or None.

    The file is read only where its size is that of a published file, and then once: see
    `tf_alexnet.weights.cache`.
    """
    try:
        size = Path(path).stat().st_size
        for record in catalog():
            if record.size == size and remembered_checksum(path, "sha256") == record.sha256:
                return record
    except OSError:
        # The reader has the better words for a file that is missing or can't be opened.
        return None
    return None


def matching_record(path: str | os.PathLike) -> KnownWeights | None:
    """The catalogue's record whose checksum this file has, or None, whatever the reading costs.

    Unlike `published_file`, it also finds files of which nobody published the size. Where the only
    checksum is not a SHA-256, the file must bear the published name.

    Raises
    ------
    OSError
        If the file can't be read.
    """
    size = os.stat(path).st_size
    checksums = {}
    for record in catalog():
        if record.checksum is None or record.size not in (None, size):
            continue
        algorithm, expected = record.checksum.split(":")
        if algorithm != "sha256" and Path(path).name != record.file_name:
            continue
        if algorithm not in checksums:
            checksums[algorithm] = remembered_checksum(path, algorithm)
        if checksums[algorithm] == expected:
            return record
    return None


def identify_arrays(arrays: WeightArrays, path: str | os.PathLike | None = None) -> Identification:
    """Find out which network arrays belong to; `path` is the file they came from, if they did."""
    fitting = tuple(fitting_architectures(arrays))
    nearest, distance = nearest_fingerprint(arrays)
    found = {"distance": distance, "nearest": nearest, "candidates": fitting}
    if distance is not None and distance < _TOLERANCE:
        name, preset = nearest, _preset_of(nearest)
        return Identification(name, nearest, preset, "fingerprint", **found)
    if arrays.architecture in fitting:
        preset = arrays.metadata.get("preset") or _preset_of(arrays.architecture)
        return Identification(None, arrays.architecture, preset, "recorded", **found)
    if len(fitting) == 1:
        return Identification(None, fitting[0], _preset_of(fitting[0]), "shapes", **found)
    for record in catalog() if path is not None else ():
        special = record.classes not in (None, 1000) and record.classes == arrays.classes
        if special and record.architecture in fitting and Path(path).name in record.spellings:
            return Identification(None, record.architecture, record.preset, "name", **found)
    return Identification(None, None, None, "unknown", **found)


def nearest_fingerprint(arrays: WeightArrays) -> tuple[str | None, float | None]:
    """The trained network with the most similar biases, and the largest difference to them.

    Compared are the convolutions that both have; a network of which a layer has another number of
    biases is not compared at all. (None, None) where nothing can be compared.
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


@cache
def fingerprints() -> dict[str, dict[str, np.ndarray]]:
    """Network -> layer -> float64 biases."""
    networks = json.loads(_FINGERPRINTS.read_text(encoding="utf-8"))
    del networks["about"]
    return {
        name: {layer: np.array(biases) for layer, biases in layers.items()}
        for name, layers in networks.items()
    }


def _preset_of(architecture: str) -> str:
    """The preprocessing that the network's table names."""
    return ARCHITECTURES[architecture].preset
