"""The 1000 classes of ILSVRC-2012, and the classes that probabilities stand for.

Caffe numbers the classes in the ASCII order of their WordNet synset ids: 0 is n01440764 (tench),
999 is n15075141 (toilet tissue). torchvision and Keras do the same. It is neither the development
kit's order (1..1000) nor that of networks with a background class (1001).

The ids and names are those of WordNet 3.0. The name "crane" stands for two classes, 134 (the bird)
and 517 (the machine), so show the synset id beside the name.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tf_alexnet.errors import InputError

_LABELS = Path(__file__).parent / "data" / "imagenet_labels.csv"

# Float16 probabilities of 1000 classes add up to 1 within 1e-3 or so; logits miss by far more.
_SUM_TOLERANCE = 1e-2


class Label(NamedTuple):
    """One class.

    Attributes
    ----------
    synset : str
        WordNet id, e.g. ``"n02123045"``; empty where there is none.
    label : str
        Names of the class, e.g. ``"tabby, tabby cat"``.
    """

    synset: str
    label: str


class Prediction(NamedTuple):
    """One class that a network sees in a photo.

    Attributes
    ----------
    synset : str
        WordNet id, e.g. ``"n02123045"``; empty for classes outside ILSVRC-2012.
    label : str
        Names of the class, e.g. ``"tabby, tabby cat"``.
    index : int
        Position of the class in the network's output, from 0.
    probability : float
        0 to 1.
    """

    synset: str
    label: str
    index: int
    probability: float


@cache
def imagenet_labels() -> tuple[Label, ...]:
    """The 1000 classes of ILSVRC-2012 in the order of the network's output."""
    with _LABELS.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines)
        next(rows)
        return tuple(Label(*row) for row in rows)


def decode_predictions(
    predictions: ArrayLike, top: int = 5, labels: Sequence[str] | None = None
) -> list[list[Prediction]]:
    """The most probable classes of each photo.

    Parameters
    ----------
    predictions : array_like
        (N, classes) probabilities of any float type: the output `prob`, 0 to 1, each row adding
        up to 1.
    top : int
        How many classes to name for each photo.
    labels : sequence of str, optional
        Names of the classes in the order of the network's output. By default the 1000 classes of
        ILSVRC-2012.

    Returns
    -------
    list of list of Prediction
        A list a photo, most probable class first; of equal probabilities the lower index first.

    Raises
    ------
    InputError
        If `predictions` is not such an array, or `top` is not between 1 and the number of classes.
    """
    known = imagenet_labels() if labels is None else [Label("", str(name)) for name in labels]
    rows = _checked(predictions, len(known), labels is not None)
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or not 1 <= top <= len(known):
        raise InputError(
            f"top={top!r}",
            f"the network tells {len(known)} classes apart",
            f"Ask for a whole number from 1 to {len(known)}.",
        )
    # A stable sort of the negated row keeps equal values in the order of their index.
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top]
    return [
        [Prediction(*known[i], index=int(i), probability=float(row[i])) for i in best]
        for row, best in zip(rows, order, strict=True)
    ]


def _checked(predictions: ArrayLike, classes: int, named: bool) -> np.ndarray:
    """`predictions` as (N, classes) float64 probabilities, or an InputError that says why not."""
    array = np.asarray(predictions)
    asked = f"predictions of shape {array.shape}"
    if array.dtype.kind not in "fiu":
        raise InputError(asked, f"they hold {array.dtype}, not numbers", _TAKE_PROB)
    if array.ndim != 2:
        advice = "For one photo give predictions[np.newaxis]." if array.ndim == 1 else _TAKE_PROB
        raise InputError(asked, f"expected (N, classes), found {array.ndim} axes", advice)
    if array.shape[1] != classes:
        raise InputError(asked, *_wrong_width(array.shape[1], classes, named))
    rows = array.astype(np.float64)
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).sum())
        raise InputError(
            asked,
            f"{bad} of {len(rows)} rows hold NaN or infinite values",
            "Check the weights and the input; a float16 network may have overflowed.",
        )
    sums = rows.sum(axis=1)
    if (rows < 0).any() or (np.abs(sums - 1) > _SUM_TOLERANCE).any():
        worst = int(np.abs(sums - 1).argmax())
        found = (
            f"row {worst} adds up to {sums[worst]:.4g}, its least value is {rows[worst].min():.4g}"
        )
        raise InputError(asked, f"these are not probabilities: {found}", _TAKE_PROB)
    return rows


_TAKE_PROB = "Give the output `prob`, (N, classes) probabilities after the softmax."


def _wrong_width(width: int, classes: int, named: bool) -> tuple[str, str]:
    """What was found and what to do where `predictions` has the wrong number of columns."""
    if named:
        return (
            f"{width} columns but {classes} labels",
            "Give one label for each column, in the order of the network's output.",
        )
    if width in (2048, 4096, 9216):
        return (
            f"{width} columns are features of a hidden layer, not probabilities of classes",
            _TAKE_PROB,
        )
    if width == 1001:
        return (
            "1001 columns, so there is a background class",
            "Drop the background's column, or name all columns with labels=.",
        )
    return (
        f"{width} columns, but ILSVRC-2012 has {classes} classes",
        "Name the classes of this network with labels=.",
    )
