"""Photos -> the classes that the network sees in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tf_alexnet.extraction.extractor import FeatureExtractor
from tf_alexnet.extraction.reader import PhotoReader
from tf_alexnet.extraction.spec import CROPS
from tf_alexnet.images import find_images
from tf_alexnet.labels import Labels, Prediction, decode_predictions, labels_of_network
from tf_alexnet.progress import progress_callback


@dataclass(frozen=True)
class PhotoPrediction:
    """What the network sees in one photo.

    Attributes
    ----------
    path : str
        The photo.
    predictions : tuple of Prediction
        Most probable first; empty if the photo could not be read.
    error : str or None
        Why it could not be read.
    """

    path: str
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None


def predict_photos(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    extractor: FeatureExtractor,
    *,
    top: int | None = 5,
    crops: str = "center",
    depth: str = "auto",
    batch_size: int = 32,
    classes: Labels | None = None,
    progress: Callable[[int, int, int, int], None] | bool | None = None,
) -> Iterator[PhotoPrediction]:
    """Predict photos, batch by batch.

    Parameters
    ----------
    images : path, or sequence of paths
        Photos, folders, lists, as in `extract_features`.
    extractor : FeatureExtractor
        Made with ``layers=("prob",)``.
    top : int or None
        How many classes; None for all.
    crops : {"center", "ten"}
        One centre crop, or the mean over four corners, the centre, and their mirror images.
    depth : {"auto", "16", "12", "8"}
        As in `load_image`.
    batch_size : int
        Photos that go through the network together.
    classes : sequence of str, mapping or path, optional
        Names of the classes, as `labels` of `decode_predictions`. By default those of ImageNet, or
        where the network has another number of them, their indices.
    progress : callable or bool, optional
        As in `extract_features`; without bytes written.

    Yields
    ------
    PhotoPrediction
        In the order of the photos within a batch, those that could not be read after the others.
    """
    if classes is not None:
        classes = labels_of_network(classes, extractor.classes)
    paths = find_images(images)
    done = errors = 0
    with (
        PhotoReader(
            extractor.preset, mean_image=extractor.mean_image, crops=crops, depth=depth
        ) as reader,
        progress_callback(progress) as tell,
    ):
        if tell:
            tell(0, len(paths), 0, 0)
        for batch in reader.batches(paths, batch_size):
            done += len(batch.paths) + len(batch.failures)
            errors += len(batch.failures)
            if batch.paths:
                found = _decode(extractor(batch.pixels)["prob"], crops, top, classes)
                for path, predictions in zip(batch.paths, found, strict=True):
                    yield PhotoPrediction(path, tuple(predictions))
            for failure in batch.failures:
                yield PhotoPrediction(failure.path, error=failure.detail)
            if tell:
                tell(done, len(paths), errors, 0)


def _decode(
    probabilities: np.ndarray, crops: str, top: int | None, names: Labels | None
) -> list[list[Prediction]]:
    classes = probabilities.shape[1]
    mean = probabilities.reshape(-1, CROPS[crops], classes).mean(axis=1)
    if names is None and classes != 1000:
        names = [f"class {i}" for i in range(classes)]
    return decode_predictions(mean, top=top or classes, labels=names)
