"""`Evaluation`: how often a network was right, class by class, and what it took for what."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tf_alexnet.extraction.reader import Failure
from tf_alexnet.files import replacing
from tf_alexnet.labels import Label
from tf_alexnet.weights import Accuracy

TOP = 5
CSV_COLUMNS = ("class", "photos", "correct", "recall", "precision", "most confused with")


@dataclass(frozen=True)
class ClassResult:
    """What became of the photos of one class.

    Attributes
    ----------
    name : str
        Synset id and names, or the class's name.
    photos, correct : int
        Photos of the class, and those of them that the network gives this class.
    recall : float or None
        `correct` of `photos`; None without a photo.
    precision : float or None
        Part of the photos given this class that are of it; None if none was given it.
    confused_with : str
        The other class that most of its photos were given; empty if there is none.
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


@dataclass(frozen=True)
class Evaluation:
    """How often a network is right.

    Attributes
    ----------
    classes : tuple of Label
        The network's classes.
    confusion : ndarray of int64, (classes, classes)
        Photos by true class (rows) and by the class of highest probability (columns).
    among_top : int
        Photos whose class is among the five of highest probability; of equal ones, those of lower
        index.
    failures : tuple of Failure
        Photos that could not be read; they count nowhere else.
    notes : tuple of str
        What a reader of the figures should know, a sentence each.
    architecture, preset, crops, weights_source : str
        What was evaluated, and how.
    trained_as : str or None
        As of `FeatureExtractor`; None also for a classifier on pool5 or fc6.
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

    @cached_property
    def photos(self) -> int:
        """How many were evaluated."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """How many of them were given their class."""
        return int(self.confusion.trace())

    @property
    def top1(self) -> float:
        """Part of the photos, 0..1, whose class has the highest probability."""
        return self.correct / self.photos

    @property
    def top5(self) -> float | None:
        """Part of the photos whose class is among the first five; None for five classes or less."""
        return self.among_top / self.photos if len(self.classes) > TOP else None

    def by_class(self) -> list[ClassResult]:
        """A row a class, in the order of the network's outputs."""
        given = self.confusion.sum(axis=0)
        return [self._class(index, int(given[index])) for index in range(len(self.classes))]

    def _class(self, index: int, given: int) -> ClassResult:
        row = self.confusion[index].copy()
        photos, correct = int(row.sum()), int(row[index])
        row[index] = 0
        other = int(row.argmax())
        return ClassResult(
            shown(self.classes[index]),
            photos,
            correct,
            correct / photos if photos else None,
            correct / given if given else None,
            shown(self.classes[other]) if row[other] else "",
            int(row[other]),
        )

    def as_dict(self) -> dict:
        """For JSON: figures, classes, and the confusion matrix by its fields that are not 0."""
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
            "errors": [failure._asdict() for failure in self.failures],
            "classes": [vars(row) for row in self.by_class() if row.photos],
            "confusion": confusion,
        }

    def write_csv(self, path: str | os.PathLike) -> None:
        """Write a table with a row a class.

        Raises
        ------
        OutputError
            If it can't be written.
        """
        with (
            replacing(path) as temporary,
            open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(CSV_COLUMNS)
            for x in self.by_class():
                shares = ("" if s is None else f"{s:.6f}" for s in (x.recall, x.precision))
                table.writerow([x.name, x.photos, x.correct, *shares, x.confused_with])


def shown(label: Label) -> str:
    """A class as it is named in tables: names occur twice among ImageNet's, synset ids do not."""
    return f"{label.synset} {label.label}".strip()
