"""`Evaluation`: accuracy, class by class, and what was taken for what; average precision."""

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
    """The figures of one class.

    Attributes
    ----------
    name : str
        Synset id and names, or the class's name.
    photos, correct : int
        Photos of the class, and those of them that are predicted as it.
    recall : float or None
        Fraction of its photos that are predicted as it; None without photos.
    precision : float or None
        Fraction of the photos predicted as it that are of it; None without predictions.
    confused_with : str
        The other class that most of its photos are predicted as; empty if there is none.
    confused : int
        How many they are.
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
        Photos whose class is among the five most probable; of equally probable ones, those of lower
        index.
    failures : tuple of Failure
        Photos that could not be read; they count nowhere else.
    notes : tuple of str
        What a reader of the figures should know, a sentence each.
    architecture, preset, crops, weights_source : str
        What was evaluated, and how.
    trained_as, untrained : str or None, bool
        As of `FeatureExtractor`; the former is None also for a classifier on pool5 or fc6.
    published : Accuracy or None
        What was published for this network and preset, where the photos are ILSVRC's validation
        set and one crop of each was looked at.
    kept : int
        Photos that an earlier, interrupted call had done.
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
        """How many were evaluated."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """How many of them were predicted right."""
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
        """For JSON: figures, classes, and the entries of the confusion matrix that are not 0."""
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
    """How well a network ranks photos by each class, where a photo has any number of them.

    Attributes
    ----------
    classes : tuple of Label
        The network's classes.
    precisions : ndarray of float64, (classes,)
        `average_precisions`, 0..1; NaN for a class that no photo shows.
    photos : int
        How many were evaluated.
    failures, notes, architecture, preset, crops, weights_source, trained_as, untrained
        As of `Evaluation`.
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
        """The mean over the classes that photos show (macro), 0..1."""
        return float(np.nanmean(self.precisions))

    def by_class(self) -> list[tuple[str, float | None]]:
        """Name and average precision of each class."""
        values = (None if np.isnan(x) else float(x) for x in self.precisions)
        return list(zip(map(shown, self.classes), values, strict=True))

    def as_dict(self) -> dict:
        """For JSON."""
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
    """A class's name in tables: ImageNet's names are not unique, its synset ids are."""
    return f"{label.synset} {label.label}".strip()


def average_precisions(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each class: the area under the steps of precision over recall.

    ``sum((recall[i] - recall[i - 1]) * precision[i])`` over falling thresholds, without
    interpolation, as scikit-learn's ``average_precision_score``; equal scores share a threshold.
    The mean over the classes is the mean average precision (macro).

    Parameters
    ----------
    truth : ndarray of bool, (N, classes)
    scores : ndarray of float, (N, classes)
        Any numbers that rise with the probability.

    Returns
    -------
    ndarray of float64, (classes,)
        0..1; NaN for a class that no photo shows.
    """
    found = np.full(truth.shape[1], np.nan)
    for index in np.flatnonzero(truth.any(axis=0)):
        order = np.argsort(-scores[:, index], kind="stable")
        falling = scores[order, index]
        ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
        hits = np.cumsum(truth[order, index])[ends]
        found[index] = (np.diff(hits, prepend=0) / hits[-1]) @ (hits / (ends + 1))
    return found
