"""The computations of `tf-alexnet demo`."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tf_alexnet.errors import ImageError, OutputError, UsageError, WeightsError
from tf_alexnet.extraction import FeatureExtractor
from tf_alexnet.extraction.reader import PhotoReader
from tf_alexnet.images import find_images
from tf_alexnet.labels import Prediction, decode_predictions
from tf_alexnet.visualize.neighbours import find as find_neighbours
from tf_alexnet.visualize.sheets import contact_sheet, save_picture
from tf_alexnet.weights import find_weights, known_weights, local_file

SMALL = "deep-compression"
EMBEDDED = "torchvision-convs"
_BATCH = 32
_NEIGHBOURS = 4


@dataclass(frozen=True)
class Demo:
    """Results of the demo.

    Attributes
    ----------
    extractor : FeatureExtractor
        The network used.
    missing : str or None
        Why BVLC's weights were not used, in one line, or None.
    layer : str
        Layer compared: ``fc7``, or ``pool5`` of the embedded network.
    paths : list of str
        The photos.
    features : ndarray of float32, (N, D)
        One row per photo.
    predictions : list of list of Prediction, or None
        One list per photo; None unless the weights are known and have a classifier.
    neighbours : list of list of (str, float)
        Nearest neighbours of each photo, with cosine similarity.
    failures : list of (str, str)
        Path and reason for each photo that could not be read.
    sheet : str
        Path of the contact sheet.
    """

    extractor: FeatureExtractor
    missing: str | None
    layer: str
    paths: list[str]
    features: np.ndarray
    predictions: list[list[Prediction]] | None
    neighbours: list[list[tuple[str, float]]]
    failures: list[tuple[str, str]]
    sheet: str


def example_photos() -> Path:
    """The folder of example photos.

    Raises
    ------
    UsageError
        If they were not installed.
    """
    candidates = [Path("examples", "photos"), Path(__file__).parents[2] / "examples" / "photos"]
    for file in importlib.metadata.files("tf-alexnet") or ():
        if file.match("share/tf_alexnet/photos/*.jpg"):
            candidates.append(Path(file.locate()).resolve().parent)
            break
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UsageError(
        "example photos", "they are not installed", "Name photos: tf-alexnet demo PHOTO..."
    )


def run_demo(
    photos: Sequence[str | os.PathLike],
    sheet: str | os.PathLike,
    weights: str | None = None,
    find: Callable[[str], str | os.PathLike] = find_weights,
) -> Demo:
    """Compute features and neighbours of photos, and their classes if the weights are trained.

    Parameters
    ----------
    photos : sequence of paths
        Photos, folders, lists.
    sheet : path
        The contact sheet to write.
    weights : str or path, optional
        By default BVLC's if they are on this machine, else the small network (downloaded), else the
        embedded convolutions.
    find : callable
        Finds a weight file by name, or downloads it.

    Raises
    ------
    WeightsError
        If `weights` are given and can't be used.
    ImageError
        If no photo can be read.
    """
    paths = find_images(photos)
    extractor, missing = _network(weights, find)
    layer = extractor.layers[0]
    kept, rows, probabilities, failures = [], [], [], []
    with PhotoReader(extractor.preset) as reader:
        for batch in reader.batches(paths, _BATCH):
            failures += [(failure.path, failure.detail) for failure in batch.failures]
            if batch.paths:
                blobs = extractor(batch.pixels)
                kept += batch.paths
                rows.append(blobs[layer].reshape(len(batch.paths), -1))
                probabilities.append(blobs.get("prob"))
    if not kept:
        raise ImageError(failures[0][0], failures[0][1], "Name photos that can be read.")
    features = np.concatenate(rows)
    # Classes of untrained weights would be noise that looks like a result.
    known = extractor.trained_as is not None and "prob" in extractor.layers
    predictions = decode_predictions(np.concatenate(probabilities)) if known else None
    neighbours = [x.neighbours for x in find_neighbours(kept, features, count=_NEIGHBOURS)]
    captions = [x[0].label for x in predictions] if predictions else map(os.path.basename, kept)
    picture = contact_sheet(
        list(zip(kept, captions, neighbours, strict=True)),
        f"Nearest by cosine similarity of {layer}, {extractor.architecture} weights "
        f"{os.path.basename(extractor.weights_source)}",
    )
    save_picture(picture, sheet)
    return Demo(
        extractor, missing, layer, kept, features, predictions, neighbours, failures, str(sheet)
    )


def _network(weights: str | None, find: Callable) -> tuple[FeatureExtractor, str | None]:
    """The network to use, and why it is not BVLC's if `weights` is None."""
    missing, chosen = None, weights or local_file(known_weights("imagenet"))
    if chosen is None:
        missing = "the full weights are not on this machine"
        try:
            chosen = find(SMALL)
        except (WeightsError, OutputError) as error:
            chosen, missing = EMBEDDED, error.found
    layers = ("pool5",) if chosen == EMBEDDED else ("fc7", "prob")
    return FeatureExtractor(chosen, layers), missing
