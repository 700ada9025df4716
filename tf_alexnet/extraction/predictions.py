"""`predict_photos`: photos -> predicted classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from tf_alexnet.extraction.extractor import FeatureExtractor
from tf_alexnet.extraction.reader import PhotoReader
from tf_alexnet.extraction.spec import CROPS
from tf_alexnet.images import find_images, load_image
from tf_alexnet.images.discovery import ImagePaths
from tf_alexnet.images.lists import as_sequence
from tf_alexnet.labels import Labels, Prediction, decode_predictions, labels_of_network
from tf_alexnet.progress import progress_callback


@dataclass(frozen=True)
class PhotoPrediction:
    """Predicted classes of one photo.

    Attributes
    ----------
    path : str
        Path of the photo, or ``images[N]`` for one in memory.
    predictions : tuple of Prediction
        Most probable first; empty if the photo could not be read.
    error : str or None
        Why the photo could not be read, if so.
    """

    path: str
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None


def predict_photos(
    images: Any,
    extractor: FeatureExtractor,
    *,
    top: int | None = 5,
    crops: str = "center",
    depth: str = "auto",
    batch_size: int = 32,
    classes: Labels | None = None,
    progress: Callable[[int, int, int, int], None] | bool | None = None,
) -> Iterator[PhotoPrediction]:
    """Predict the classes of photos, batch by batch.

    Parameters
    ----------
    images : path, sequence of paths, or images
        Photos, folders and lists as in `extract_features`; or images in memory as in
        `FeatureExtractor.from_images`, named ``images[0]``, ``images[1]``, ...
    extractor : FeatureExtractor
        Made with ``layers=("prob",)``, or with ``("fc8",)`` for a network with a sigmoid per class
        (multi-label).
    top : int or None
        Number of classes per photo; None for all.
    crops : {"center", "ten"}
        The centre crop, or the mean over the four corners, the centre and their mirror images.
    depth : {"auto", "16", "12", "8"}
        As in `load_image`.
    batch_size : int
        Photos per forward pass.
    classes : sequence of str, mapping or path, optional
        Class names, as `labels` of `decode_predictions` (default: ImageNet's, or indices if the
        network does not have 1000 classes).
    progress : callable or bool, optional
        As in `extract_features`; no bytes are written.

    Yields
    ------
    PhotoPrediction
        In the order of the photos; within a batch, those that could not be read come last.
    """
    if classes is not None:
        classes = labels_of_network(classes, extractor.classes)
    if not isinstance(images, str | os.PathLike | ImagePaths):
        images = as_sequence(images)
        if not all(isinstance(x, str | os.PathLike) for x in images):
            yield from _in_memory(images, extractor, top, crops, depth, batch_size, classes)
            return
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
                found = decode_blobs(extractor(batch.pixels), crops, top, classes)
                for path, predictions in zip(batch.paths, found, strict=True):
                    yield PhotoPrediction(path, tuple(predictions))
            for failure in batch.failures:
                yield PhotoPrediction(failure.path, error=failure.detail)
            if tell:
                tell(done, len(paths), errors, 0)


def _in_memory(
    images: list,
    extractor: FeatureExtractor,
    top: int | None,
    crops: str,
    depth: str,
    batch_size: int,
    classes: Labels | None,
) -> Iterator[PhotoPrediction]:
    for start in range(0, len(images), batch_size):
        some = images[start : start + batch_size]
        pixels = [x if isinstance(x, np.ndarray) else load_image(x, depth=depth) for x in some]
        blobs = extractor(extractor.preprocess(pixels, crops))
        for number, found in enumerate(decode_blobs(blobs, crops, top, classes), start):
            yield PhotoPrediction(f"images[{number}]", tuple(found))


def decode_blobs(
    blobs: Mapping[str, np.ndarray], crops: str, top: int | None, names: Labels | None
) -> list[list[Prediction]]:
    """Predictions of each photo from an extractor's output; `names` are `classes`.

    The other arguments are as in `predict_photos`.
    """
    independent = "prob" not in blobs
    probabilities = expit(blobs["fc8"]) if independent else blobs["prob"]
    classes = probabilities.shape[1]
    mean = probabilities.reshape(-1, CROPS[crops], classes).mean(axis=1)
    if names is None and classes != 1000:
        names = [f"class {i}" for i in range(classes)]
    return decode_predictions(mean, top=top or classes, labels=names, multi_label=independent)
