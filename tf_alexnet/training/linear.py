"""Linear classifiers on rows of features: softmax, or one sigmoid per class, fitted by L-BFGS.

The mean cross-entropy of a linear classifier with an L2 penalty is convex: L-BFGS finds its one
minimum without a learning rate, and only the penalty has to be chosen. Labels are (n,) int, one
class per row (softmax), or (n, classes) bool, any number of classes per row (sigmoids: one binary
classifier per class).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from tf_alexnet.evaluation.metrics import average_precisions
from tf_alexnet.extraction.formats import open_output

# Half decades. With rows of mean squared length 1, the best penalty is nearly always among the
# first 13; if it is an end of those, weaker or stronger ones are tried, 8 at most.
GRID = tuple(10.0 ** (-i / 2) for i in range(13))
_WEAKER = tuple(GRID[-1] * 10.0 ** (-i / 2) for i in range(1, 9))
_STRONGER = tuple(10.0 ** (i / 2) for i in range(1, 9))
_PATIENCE = 3  # weaker penalties tried after the best one
_STEPS = 1000
# Of the largest gradient component, as in scikit-learn. On all of pool5 (600 photos of flowers)
# 1e-4 in float32 takes 1.9 s of processor time, 1e-6 in float64 13 s, for equal accuracy.
_TOLERANCE = 1e-4
_MEMORY = 1 << 30  # bytes of rows held in memory; more are read again in every pass

# Called once per pass: yields rows (n, d) and their labels, in blocks that fit memory.
Blocks = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]


class Linear(NamedTuple):
    """Scores of classes: ``x @ kernel + bias``.

    Attributes
    ----------
    kernel : ndarray of float, (d, classes)
    bias : ndarray of float, (classes,)
    """

    kernel: np.ndarray
    bias: np.ndarray

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Scores of rows (n, d), in their dtype: (n, classes)."""
        return rows @ self.kernel.astype(rows.dtype, copy=False) + self.bias.astype(rows.dtype)


@dataclass(frozen=True)
class Classifier:
    """A fitted linear classifier of features.

    Attributes
    ----------
    classes : tuple of str
        Names, in the order of the columns.
    kernel, bias : ndarray of float32, (D, classes) and (classes,)
    multi_label : bool
        Whether classes have independent probabilities (sigmoid) instead of a softmax.
    metrics : mapping of str to float
        ``l2``, ``train_loss``, ``val_accuracy`` (``val_map`` if `multi_label`), ...
    """

    classes: tuple[str, ...]
    kernel: np.ndarray
    bias: np.ndarray
    multi_label: bool
    metrics: Mapping[str, float]

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, (N, classes) float32, for features (N, D)."""
        scores = np.asarray(features, np.float32) @ self.kernel + self.bias
        return expit(scores) if self.multi_label else np.exp(log_softmax(scores))

    def __repr__(self) -> str:
        return f"<Classifier {self.kernel.shape[0]} features, {len(self.classes)} classes>"


class Standard(NamedTuple):
    """Standardisation of rows: ``(x - mean) * scale``, with a mean squared length of 1.

    One scale for all features, because differences in scale are signal. (Dividing each feature by
    its own deviation amplifies those that are nearly always 0; on pool5 of 800 photos of flowers it
    costs 1.5 % of validation accuracy.)

    Attributes
    ----------
    mean : ndarray of float64, (d,)
    scale : float
    """

    mean: np.ndarray
    scale: float


class Step(NamedTuple):
    """The fit with one penalty.

    Losses are mean cross-entropies without the penalty. The metric is accuracy, or mean average
    precision if rows have any number of classes; both lie in 0..1.
    """

    l2: float
    train_loss: float
    train_metric: float
    val_loss: float
    val_metric: float
    iterations: int

    def row(self, metric: str) -> dict[str, float]:
        """The fields by name, such as ``train_accuracy``."""
        return {name.replace("metric", metric): x for name, x in self._asdict().items()}


class Rows:
    """Rows of features with labels, in blocks; instances are `Blocks`.

    Parameters
    ----------
    labels : ndarray
        (n,) int or (n, classes) bool.
    blocks : list of ndarray, or callable
        Blocks of rows (m, d) float32, in the order of the labels. Arrays in a list are
        standardised in place; a callable returns new ones for every pass.
    """

    def __init__(
        self,
        labels: np.ndarray,
        blocks: list[np.ndarray] | Callable[[], Iterable[np.ndarray]],
    ):
        self.labels, self._blocks = labels, blocks
        self._standard: Standard | None = None

    @classmethod
    def of_file(cls, file: Path, layer: str, rows: np.ndarray, labels: np.ndarray) -> Rows:
        """Rows of a file from `extract_features`, by ascending indices; in memory if they fit."""

        def read() -> Iterator[np.ndarray]:
            with open_output(file) as output:
                for blobs in output.blocks([layer], rows):
                    blob = blobs[layer]
                    yield blob.reshape(len(blob), -1).astype(np.float32, copy=False)

        with open_output(file) as output:
            size = 4 * len(rows) * math.prod(output.layers[layer][0])
        return cls(labels, list(read()) if size <= _MEMORY else read)

    def __call__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        held, start = isinstance(self._blocks, list), 0
        for block in self._blocks if held else self._blocks():
            if self._standard and not held:
                _standardize(block, self._standard)
            yield block, self.labels[start : start + len(block)]
            start += len(block)

    def standardize(self, standard: Standard) -> None:
        """Yield ``(x - mean) * scale`` from now on."""
        self._standard = standard
        for block in self._blocks if isinstance(self._blocks, list) else ():
            _standardize(block, standard)


def _standardize(block: np.ndarray, standard: Standard) -> None:
    block -= standard.mean.astype(block.dtype)
    block *= standard.scale


def label_array(
    labels: Sequence[int | tuple[int, ...]], classes: int, multi_label: bool
) -> np.ndarray:
    """Labels as an array: (n,) int, or (n, classes) bool."""
    if not multi_label:
        return np.array(labels, np.int64)
    flags = np.zeros((len(labels), classes), bool)
    for row, some in zip(flags, labels, strict=True):
        row[list(some)] = True
    return flags


def standard_of(blocks: Blocks) -> Standard:
    """Mean and scale of rows, in one pass and in float64."""
    count, total, squares = 0, 0.0, 0.0
    for rows, _ in blocks():
        rows = rows.astype(np.float64)
        count += len(rows)
        total = total + rows.sum(axis=0)
        squares += float(np.vdot(rows, rows))
    mean = total / count
    variance = squares / count - float(mean @ mean)
    # If all rows are equal, this difference is nothing but rounding error.
    return Standard(mean, 1 / math.sqrt(variance) if variance > 1e-12 * squares / count else 1.0)


def folded(head: Linear, standard: Standard) -> Linear:
    """The classifier of raw rows with the scores that `head` has for standardised ones."""
    kernel = head.kernel * standard.scale
    return Linear(kernel, head.bias - standard.mean @ kernel)


def balanced(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights of classes inversely proportional to their frequency, as scikit-learn's "balanced".

    Returns
    -------
    ndarray of float64
        (classes,): n / (classes * photos of the class). For labels (n, classes), (2, classes): of
        rows without and with the class, n / (2 * rows).
    """
    if labels.ndim == 1:
        return len(labels) / (classes * np.maximum(np.bincount(labels, minlength=classes), 1))
    present = labels.sum(axis=0)
    return len(labels) / (2 * np.maximum([len(labels) - present, present], 1))


def choose_penalty(
    train: Blocks,
    val: Blocks,
    classes: int,
    l2: float | None = None,
    weights: np.ndarray | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> tuple[Linear, Step, list[Step]]:
    """Fit with each penalty of a grid, and take the one with the least loss on `val`.

    Penalties fall from 1, and each fit starts where the one before ended, until weaker penalties
    have made the loss on `val` worse several times in a row. If the best is an end of `GRID`,
    weaker or stronger ones are tried, down to 1e-10 and up to 1e4.

    Parameters
    ----------
    train, val : callable
        Blocks of standardised rows.
    classes : int
    l2 : float, optional
        The only penalty to try.
    weights : ndarray, optional
        From `balanced`; losses on `val` are weighted as well.
    on_step : callable
        Called after each fit.

    Returns
    -------
    (Linear, Step, list of Step)
        The classifier of standardised rows, its penalty, and all that were tried, by falling
        penalty.
    """
    steps: list[Step] = []
    best: tuple[Linear, Step] | None = None

    def search(strengths: Sequence[float], head: Linear | None = None) -> None:
        nonlocal best
        worse = 0
        for strength in strengths:
            head, iterations = fit_linear(train, classes, strength, weights, head)
            judged = (*judge(head, train, weights), *judge(head, val, weights))
            step = Step(strength, *judged, iterations)
            steps.append(step)
            on_step(step)
            worse += 1
            if best is None or step.val_loss < best[1].val_loss:
                best, worse = (head, step), 0
            if worse == _PATIENCE:
                break

    search((*GRID, *_WEAKER) if l2 is None else (l2,))
    if l2 is None and best[1] is steps[0]:
        search(_STRONGER, best[0])
    return *best, sorted(steps, key=lambda step: -step.l2)


def edge_note(step: Step) -> str | None:
    """A note for the user if the best penalty is not inside `GRID`."""
    if GRID[-1] < step.l2 < GRID[0]:
        return None
    note = f"the best L2 penalty, {step.l2:.3g}, is at the edge of the usual range "
    note += f"({GRID[0]:g} to {GRID[-1]:g}), which was widened"
    if step.l2 in (_WEAKER[-1], _STRONGER[-1]):
        note += "; it is also the last one tried, and the best may lie beyond it"
    return note


def fit_linear(
    train: Blocks,
    classes: int,
    l2: float,
    weights: np.ndarray | None = None,
    start: Linear | None = None,
    tolerance: float = _TOLERANCE,
) -> tuple[Linear, int]:
    """Minimise mean cross-entropy + l2 / 2 * sum of squares of the kernel (not the bias).

    Cross-entropies of sigmoids are summed over classes. scikit-learn's
    ``LogisticRegression(C=1 / (l2 * n))`` has the same minimum.

    Parameters
    ----------
    train : callable
        Blocks of standardised rows; products are computed in their dtype, sums in float64.
    classes : int
    l2 : float
        More than 0.
    weights : ndarray, optional
        From `balanced`.
    start : Linear, optional
        Initial values (default: zero).
    tolerance : float
        Stop when no gradient component is larger.

    Returns
    -------
    (Linear, int)
        The minimum, and the number of iterations.
    """
    if start is None:
        width = next(iter(train()))[0].shape[1]
        start = Linear(np.zeros((width, classes)), np.zeros(classes))
    shape = start.kernel.shape

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        head = _unravelled(x, shape)
        count, loss, slope, fall = 0, 0.0, np.zeros(shape), np.zeros(classes)
        for rows, labels in train():
            losses, residual = _cross_entropy(head.scores(rows), labels)
            if weights is not None:
                each = _weights_of(labels, weights).astype(rows.dtype)
                losses *= each
                residual *= each.reshape(len(rows), -1)
            loss += losses.sum(dtype=np.float64)
            slope += rows.T @ residual
            fall += residual.sum(axis=0, dtype=np.float64)
            count += len(rows)
        loss = loss / count + l2 / 2 * float(np.vdot(head.kernel, head.kernel))
        slope = slope / count + l2 * head.kernel
        return loss, np.concatenate([slope.ravel(), fall / count])

    found = minimize(
        objective,
        np.concatenate([start.kernel.ravel(), start.bias]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _STEPS, "maxfun": 2 * _STEPS, "gtol": tolerance, "ftol": 1e-11},
    )
    return _unravelled(found.x.copy(), shape), int(found.nit)


def _unravelled(x: np.ndarray, shape: tuple[int, int]) -> Linear:
    return Linear(x[: -shape[1]].reshape(shape), x[-shape[1] :])


def _cross_entropy(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropies, shaped like `labels`, and gradients by the scores, (n, classes)."""
    if labels.ndim == 2:
        return np.logaddexp(0, scores) - scores * labels, expit(scores) - labels
    logs = log_softmax(scores)
    picked = np.arange(len(logs)), labels
    losses = -logs[picked]
    residual = np.exp(logs, out=logs)
    residual[picked] -= 1
    return losses, residual


def _weights_of(labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """The weight of each cross-entropy, shaped like `labels`."""
    if weights is None:
        return np.ones(labels.shape)
    return weights[labels] if labels.ndim == 1 else np.where(labels, *weights[::-1])


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, (n, classes)."""
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def judge(head: Linear, blocks: Blocks, weights: np.ndarray | None = None) -> tuple[float, float]:
    """(Weighted) mean cross-entropy; and accuracy, or mean average precision over the classes."""
    loss = total = right = 0.0
    count = 0
    for rows, labels in blocks():
        scores = head.scores(rows)
        each = _weights_of(labels, weights)
        loss += float((each * _cross_entropy(scores, labels)[0]).sum())
        total += float(each.sum())
        right += float((scores.argmax(axis=1) == labels).sum()) if labels.ndim == 1 else 0
        count += len(rows)
    if labels.ndim == 1:
        return loss / total, right / count
    return loss / total, float(np.nanmean(precisions_of(head, blocks)))


def precisions_of(head: Linear, blocks: Blocks) -> np.ndarray:
    """Average precision of each class, (classes,); NaN without a row of the class."""
    seen = [(labels, head.scores(rows)) for rows, labels in blocks()]
    return average_precisions(*map(np.concatenate, zip(*seen, strict=True)))


def confusion_of(head: Linear, blocks: Blocks) -> np.ndarray:
    """Rows by true class and predicted class: (classes, classes) of int."""
    counts = np.zeros((head.bias.size,) * 2, np.int64)
    for rows, labels in blocks():
        np.add.at(counts, (labels, head.scores(rows).argmax(axis=1)), 1)
    return counts
