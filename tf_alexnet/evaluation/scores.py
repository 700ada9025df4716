"""`score_photos`: metrics of a network on labelled photos; leaves no files behind."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax

from tf_alexnet.errors import WeightsError
from tf_alexnet.evaluation.metrics import average_precisions
from tf_alexnet.extraction.formats import open_output
from tf_alexnet.extraction.job import extract_features
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.extraction.storage import place_of
from tf_alexnet.weights import WeightArrays


class Scores(NamedTuple):
    """Metrics of a network on photos.

    Attributes
    ----------
    photos : int
        Number of photos that could be read.
    figures : dict of str to float
        ``accuracy`` (0..1) and ``loss``, the mean cross-entropy; for a multi-label network ``map``,
        the mean average precision.
    precisions : ndarray of float, (classes,), or None
        Average precision of each class if multi-label; NaN for classes without photos.
    failures : tuple of Failure
        Photos that could not be read.
    """

    photos: int
    figures: dict[str, float]
    precisions: np.ndarray | None
    failures: tuple[Failure, ...]


def score_photos(
    weights: WeightArrays,
    photos: Sequence[tuple[str, Any]],
    *,
    multi_label: bool = False,
    **settings: Any,
) -> Scores:
    """Compare a network's predictions with the labels of photos.

    Parameters
    ----------
    weights : WeightArrays
        With `fc8`, architecture and ``metadata["preset"]``.
    photos : sequence of (path, label)
        A label is the index of the class; if `multi_label`, a tuple of indices.
    multi_label : bool
        Whether each class has an independent probability.
    **settings
        Passed to `extract_features`: engine, workers, progress, ...

    Raises
    ------
    ImageError
        If no photo can be read.
    WeightsError
        If the network's outputs are not finite.
    """
    real = functools.cache(os.path.realpath)
    labels = {place_of(path, real): label for path, label in photos}
    with tempfile.TemporaryDirectory(prefix="tf-alexnet-") as folder:
        file = os.path.join(folder, "scores.h5")
        paths = [path for path, _ in photos]
        report = extract_features(paths, file, weights=weights, layers=["fc8"], **settings)
        with open_output(file) as output:
            truth = [labels[photo.place] for photo in output.photos]
            logits = np.concatenate([x["fc8"] for x in output.blocks(["fc8"])]).astype(np.float64)
    if not np.isfinite(logits).all():
        raise WeightsError(
            weights.source, "its outputs are NaN or infinite", "Check it with `weights verify`."
        )
    if multi_label:
        marks = np.zeros(logits.shape, bool)
        for row, some in zip(marks, truth, strict=True):
            row[list(some)] = True
        precisions = average_precisions(marks, logits)
        figures = {"map": float(np.nanmean(precisions))}
        return Scores(len(truth), figures, precisions, report.errors)
    right = logits.argmax(axis=1) == truth
    loss = -log_softmax(logits, axis=1)[np.arange(len(truth)), truth].mean()
    figures = {"accuracy": float(right.mean()), "loss": float(loss)}
    return Scores(len(truth), figures, None, report.errors)
