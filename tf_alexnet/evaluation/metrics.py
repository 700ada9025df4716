"""`Evaluation`: accuracy, per-class results and confusion matrix; average precision."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tf_alexnet.errors import one_line
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.files import replacing
from tf_alexnet.labels import Label
from tf_alexnet.weights import Accuracy

TOP = 5
CSV_COLUMNS = ("class", "photos", "correct", "recall", "precision", "most confused with")


@dataclass(frozen=True)
class ClassResult:
    """Results of one class.

    Attributes
    ----------
    name : str
        Synset id and names, or the class's name.
    photos, correct : int
        Number of photos of the class, and of those predicted correctly.
    recall : float or None
        Fraction of its photos that are predicted correctly; None without photos.
    precision : float or None
        Fraction of the photos predicted as this class that belong to it; None without predictions.
    confused_with : str
        Class that its photos are most often mistaken for; empty if there is none.
    confused : int
        Number of photos mistaken for that class.
    """

    name: str
    photos: int
    correct: int
    recall: float | None
    precision: float | None
    confused_with: str
    confused: int


def class_results(names: Sequence[str], confusion: np.ndarray) -> list[ClassResult]:
    """One row per class of a confusion matrix."""
    rows = []
    for index, (name, wrong) in enumerate(zip(names, confusion.copy(), strict=True)):
        photos, predicted = int(wrong.sum()), int(confusion[:, index].sum())
        correct = int(wrong[index])
        wrong[index] = 0
        other = int(wrong.argmax())
        confused = int(wrong[other])
        recall = correct / photos if photos else None
        precision = correct / predicted if predicted else None
        confused_with = names[other] if confused else ""
        rows.append(ClassResult(name, photos, correct, recall, precision, confused_with, confused))
    return rows


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a network on photos whose classes are known.

    Attributes
    ----------
    classes : tuple of Label
        The network's classes.
    confusion : ndarray of int64, (classes, classes)
        Photos by true class (rows) and by most probable class (columns).
    among_top : int
        Number of photos whose class is among the five most probable; ties go to the lower index.
    failures : tuple of Failure
        Photos that could not be read; they are not counted elsewhere.
    notes : tuple of str
        Caveats about the results, one sentence each.
    architecture, preset, crops, weights_source : str
        What was evaluated, and how.
    trained_as, untrained : str or None, bool
        As in `FeatureExtractor`; the former is None also for a classifier on pool5 or fc6.
    published : Accuracy or None
        Published accuracy of this network and preset, if the photos are ILSVRC's validation set and
        centre crops were used.
    kept : int
        Number of photos from an earlier, interrupted call.
    """

    classes: tuple[Label, ...]
    confusion: np.ndarray
    among_top: int
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    architecture: str
    preset: str
    crops: str
    weights_source: str
    trained_as: str | None
    published: Accuracy | None = None
    kept: int = 0
    untrained: bool = False

    def __repr__(self) -> str:
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.1%}"
        return (
            f"<Evaluation {one_line(self.weights_source)}: {self.photos} photos, "
            f"{len(self.classes)} classes, top-1 {self.top1:.1%}{top5}>"
        )

    @cached_property
    def photos(self) -> int:
        """Number of photos evaluated."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of photos predicted correctly."""
        return int(self.confusion.trace())

    @property
    def top1(self) -> float:
        """Fraction of the photos, 0..1, whose class is the most probable."""
        return self.correct / self.photos

    @property
    def top5(self) -> float | None:
        """Fraction whose class is among the five most probable; None for five classes or fewer."""
        return self.among_top / self.photos if len(self.classes) > TOP else None

    def by_class(self) -> list[ClassResult]:
        """One row per class, in the order of the network's outputs."""
        return class_results([shown(label) for label in self.classes], self.confusion)

    def as_dict(self) -> dict:
        """Content for JSON: metrics, classes, and nonzero entries of the confusion matrix."""
        names = [label.synset or label.label for label in self.classes]
        confusion: dict[str, dict[str, int]] = {}
        for i, j in np.argwhere(self.confusion):
            confusion.setdefault(names[i], {})[names[j]] = int(self.confusion[i, j])
        return {
            "photos": self.photos,
            "correct": self.correct,
            "top1": self.top1,
            "top5": self.top5,
            "published": vars(self.published) if self.published else None,
            "architecture": self.architecture,
            "preset": self.preset,
            "crops": self.crops,
            "weights": self.weights_source,
            "trained_as": self.trained_as,
            "notes": list(self.notes),
            "errors": [{"path": x.path, "code": x.code, "detail": x.detail} for x in self.failures],
            "classes": [vars(row) for row in self.by_class() if row.photos],
            "confusion": confusion,
        }

    def write_csv(self, path: str | os.PathLike) -> None:
        """Write a table with one row per class.

        Raises
        ------
        OutputError
            If it can't be written.
        """
        rows = []
        for x in self.by_class():
            shares = ("" if s is None else f"{s:.6f}" for s in (x.recall, x.precision))
            rows.append([x.name, x.photos, x.correct, *shares, x.confused_with])
        _write_csv(path, CSV_COLUMNS, rows)


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """Average precision of a network on photos that have any number of classes.

    Attributes
    ----------
    classes : tuple of Label
        The network's classes.
    precisions : ndarray of float64, (classes,)
        `average_precisions`, 0..1; NaN for a class without photos.
    photos : int
        Number of photos evaluated.
    failures, notes, architecture, preset, crops, weights_source, trained_as, untrained
        As in `Evaluation`.
    """

    classes: tuple[Label, ...]
    precisions: np.ndarray
    photos: int
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    architecture: str
    preset: str
    crops: str
    weights_source: str
    trained_as: str | None
    untrained: bool = False

    def __repr__(self) -> str:
        return (
            f"<MultiLabelEvaluation {one_line(self.weights_source)}: {self.photos} photos, "
            f"{len(self.classes)} classes, mean average precision "
            f"{self.mean_average_precision:.3f}>"
        )

    @property
    def mean_average_precision(self) -> float:
        """Mean over the classes that have photos (macro), 0..1."""
        return float(np.nanmean(self.precisions))

    def by_class(self) -> list[tuple[str, float | None]]:
        """Name and average precision of each class."""
        values = (None if np.isnan(x) else float(x) for x in self.precisions)
        return list(zip(map(shown, self.classes), values, strict=True))

    def as_dict(self) -> dict:
        """Content for JSON."""
        return {
            "photos": self.photos,
            "mean_average_precision": self.mean_average_precision,
            "architecture": self.architecture,
            "preset": self.preset,
            "crops": self.crops,
            "weights": self.weights_source,
            "notes": list(self.notes),
            "errors": [{"path": x.path, "code": x.code, "detail": x.detail} for x in self.failures],
            "classes": [{"name": name, "average_precision": x} for name, x in self.by_class()],
        }

    def write_csv(self, path: str | os.PathLike) -> None:
        """Write a table with one row per class, as `Evaluation.write_csv`."""
        rows = [(name, "" if x is None else f"{x:.6f}") for name, x in self.by_class()]
        _write_csv(path, ("class", "average precision"), rows)


def _write_csv(path: str | os.PathLike, titles: Sequence[str], rows: Sequence[Sequence]) -> None:
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows([titles, *rows])


def shown(label: Label) -> str:
    """Name of a class in tables, with its synset id: ImageNet's names are not unique."""
    return f"{label.synset} {label.label}".strip()


def average_precisions(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each class: the area under the precision-recall steps.

    ``sum((recall[i] - recall[i - 1]) * precision[i])`` over decreasing thresholds, without
    interpolation, as in scikit-learn's ``average_precision_score``; equal scores share a threshold.
    The mean over the classes is the mean average precision (macro).

    Parameters
    ----------
    truth : ndarray of bool, (N, classes)
    scores : ndarray of float, (N, classes)
        Any values that increase with the probability.

    Returns
    -------
    ndarray of float64, (classes,)
        0..1; NaN for a class without photos.
    """
    found = np.full(truth.shape[1], np.nan)
    for index in np.flatnonzero(truth.any(axis=0)):
        order = np.argsort(-scores[:, index], kind="stable")
        falling = scores[order, index]
        ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
        hits = np.cumsum(truth[order, index])[ends]
        found[index] = (np.diff(hits, prepend=0) / hits[-1]) @ (hits / (ends + 1))
    return found
