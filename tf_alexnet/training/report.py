"""The report of a training: ``report.md``, ``history.csv`` and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_alexnet.errors import UsageError, counted, one_line
from tf_alexnet.evaluation.metrics import class_results
from tf_alexnet.visualize.figures import INK, label, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tf_alexnet.extraction.reader import Failure
    from tf_alexnet.training.folders import PhotoSet
    from tf_alexnet.training.run import RunRecord

CURVES, CONFUSION = "curves.png", "confusion.png"
_SHOWN = 50  # unreadable photos that the report names
_NUMBERED = 25  # most classes for which cells show numbers
_NAMED = 60  # and axes show names
_TRAIN, _VAL = "#9aa5b1", "#1f6fb4"


def history_table(history: Sequence[Mapping[str, float]]) -> str:
    """The rows as CSV, with a header."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(history[0]) if history else [], lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    return text.getvalue()


def chance_note(labels: Sequence[int], accuracy: float) -> str | None:
    """A note for the user if a classifier is no better than one that ignores the photos.

    Parameters
    ----------
    labels : sequence of int
        True classes of the validation photos.
    accuracy : float
        Fraction of them predicted correctly, 0..1.

    Returns
    -------
    str or None
        None if `accuracy` is above the share of the largest class.
    """
    share = np.bincount(labels).max() / len(labels)
    if accuracy > share:
        return None
    return (
        f"validation accuracy is {accuracy:.1%}, no better than always predicting the largest "
        f"class ({share:.1%}): nothing was learned"
    )


def report_text(
    record: RunRecord,
    history: Sequence[Mapping[str, float]],
    confusion: np.ndarray | None = None,
    precisions: np.ndarray | None = None,
    notes: Sequence[str] = (),
    skipped: Sequence[Failure] = (),
    explanation: str = "",
    drawn: bool = True,
) -> str:
    """The Markdown of ``report.md``; arguments as in `write_run`. `drawn`: plots were written."""
    split, metrics = record.split, record.metrics
    merit = "map" if record.multi_label else "accuracy"
    shown, title = ("{:.3f}", "mAP") if record.multi_label else ("{:.1%}", merit)
    value = shown.format(metrics[f"val_{merit}"])
    result = f"mean average precision {value} on" if record.multi_label else f"{value} of"
    base = f", starting from {_code(record.base['source'])}" if record.base else ""
    lines = [
        f"# {len(record.classes)} classes, {result} {split['val']} validation photos"
        + " right" * (not record.multi_label),
        "",
        f"{record.architecture} (`--mode {record.mode}`){base}; the classifier was trained "
        f"on {record.layer}; preset `{record.preset}`.",
        "",
    ]
    lines += [explanation, ""] if explanation else []
    drawn_here = "The validation photos were chosen at random."
    lines += [
        f"| | photos | {title} | loss |",
        "|---|---|---|---|",
        *(
            f"| {name} | {split[part]} | {shown.format(metrics[f'{part}_{merit}'])} | "
            f"{_figure(metrics.get(f'{part}_loss'))} |"
            for part, name in (("train", "training"), ("val", "validation"), ("test", "test"))
            if f"{part}_{merit}" in metrics
        ),
        "",
        drawn_here if split["drawn"] else "The splits were given.",
        "",
    ]
    if confusion is not None:
        lines += [
            "| class | validation photos | recall | precision |",
            "|---|---|---|---|",
            *(
                f"| {_cell(x.name)} | {x.photos} | {_share(x.recall)} | {_share(x.precision)} |"
                for x in class_results(record.classes, confusion)
            ),
            "",
        ]
    if precisions is not None:
        lines += ["| class | average precision |", "|---|---|"]
        rows = zip(record.classes, precisions.tolist(), strict=True)
        lines += [*(f"| {_cell(name)} | {_figure(x)} |" for name, x in rows), ""]
    pictures = [(CONFUSION, "confusion matrix")] if confusion is not None else []
    pictures.append((CURVES, f"by {next(iter(history[0]))}"))
    lines += [f"![{title}]({name})\n" for name, title in pictures if drawn]
    lines += _remarks(notes, skipped)
    lines += _use(record)
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _figure(value: float | None) -> str:
    """Format a number; ``-`` for None and NaN."""
    return "-" if value is None or value != value else f"{value:.3f}"


def _remarks(notes: Sequence[str], skipped: Sequence[Failure]) -> list[str]:
    lines = ["## Notes", "", *(f"- {_cell(note)}" for note in notes)] if notes else []
    lines += [""] if notes else []
    if skipped:
        one, many = "photo could not be read and was", "photos could not be read and were"
        lines += [f"## {counted(len(skipped), one, many)} left out", ""]
        lines += [f"- {_code(x.path)}: {_cell(x.detail)} ({x.code})" for x in skipped[:_SHOWN]]
        lines += [f"- and {len(skipped) - _SHOWN} more"] if len(skipped) > _SHOWN else []
        lines += [""]
    return lines


def _use(record: RunRecord) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return [
        "## To use it",
        "",
        "```console",
        "$ tf-alexnet predict PHOTOS --model RUN",
        "```",
        "",
        "`weights.safetensors` is an ordinary weight file for `ta.AlexNet` and "
        "`ta.FeatureExtractor`; `model.keras` is the same network for Keras; "
        "`class_indices.json` maps outputs to classes; `history.csv` holds the curves.",
        "",
        *_settings(record.settings),
        f"{versions}. Weights {record.weights_digest}.",
        "",
    ]


def _settings(settings: Mapping[str, Any]) -> list[str]:
    given = {name: x for name, x in settings.items() if x not in (None, False)}
    return ["## How it was made", "", *(f"- {k}: {_code(x)}" for k, x in given.items()), ""]


def readout_text(
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    photos: PhotoSet,
    notes: Sequence[str] = (),
    skipped: Sequence[Failure] = (),
) -> str:
    """The Markdown of ``report.md`` for `linear_readout`; `rows` are those of ``readout.csv``."""
    pool = {"none": "all values of", "avg": "the mean over positions of"}
    what = pool.get(settings["pool"], "the maximum over positions of")
    titles = {"l2": "L2 penalty", "train": "training", "val": "validation", "map": "mAP"}
    names = [" ".join(titles.get(x, x) for x in name.split("_")) for name in rows[0]]
    return "\n".join(
        [
            f"# Linear read-out of {len(rows)} layers: {len(photos.classes)} classes, "
            f"{len(photos.train)} training and {len(photos.val)} validation photos",
            "",
            "The network was not trained. For each layer, a linear classifier was fitted on "
            f"{what} its output, with the L2 penalty that has the least loss on the validation "
            "photos (so their figures are slightly optimistic), or the one given.",
            "",
            f"| {' | '.join(names)} |",
            "|---" * len(names) + "|",
            *(
                f"| {_cell(layer)} | {width} | {l2:.3g} | {train:.1%} | {val:.1%} |"
                for layer, width, l2, train, val in (row.values() for row in rows)
            ),
            "",
            "![by layer](readout.png)",
            "",
            *_remarks(notes, skipped),
            "## To use it",
            "",
            "This folder holds no network. For one, train a classifier on `pool5`, `fc6` or `fc7`:",
            "",
            "```console",
            "$ tf-alexnet train DATA -o RUN --layer pool5",
            "```",
            "",
            *_settings(settings),
        ]
    )


def _cell(text: object) -> str:
    """Escape text, such as a file name, for a line or table of Markdown."""
    plain = one_line(str(text)).replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + c if c in "\\|`*_[]" else c for c in plain)


def _code(text: object) -> str:
    return "`" + one_line(str(text)).replace("`", "'").replace("|", "\\|") + "`"


def draw(
    folder: Path,
    record: RunRecord,
    history: Sequence[Mapping[str, float]],
    confusion: np.ndarray | None,
) -> list[str]:
    """Draw ``curves.png`` and ``confusion.png``; return a note if matplotlib is missing."""
    try:
        curves = curves_figure(history, record.metrics.get(next(iter(history[0]))))
    except UsageError:
        return ["no pictures: matplotlib is not installed (pip install 'tf-alexnet[plot]')"]
    save_figure(curves, folder / CURVES)
    if confusion is not None:
        title = f"{int(confusion.sum())} validation photos"
        save_figure(confusion_figure(record.classes, confusion, title), folder / CONFUSION)
    return []


def curves_figure(history: Sequence[Mapping[str, float]], chosen: float | None = None) -> Figure:
    """Loss and accuracy (or mAP), one above the other.

    Parameters
    ----------
    history : sequence of dict
        One row per step; the first column (``epoch``, ``l2``) is the axis.
    chosen : float, optional
        Position of the result on it, drawn as a line.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    """
    by = next(iter(history[0]))
    figure = new_figure(7, 6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [row[by] for row in history]
    merit = "map" if any(name.endswith("map") for name in history[0]) else "accuracy"
    for axes, kind in ((upper, merit), (lower, "loss")):
        for name in (x for x in history[0] if x.endswith(kind)):
            split, color = ("validation", _VAL) if "val" in name else ("training", _TRAIN)
            values = [row[name] for row in history]
            axes.plot(steps, values, color=color, marker="o", markersize=3.5, label=split)
        if chosen is not None:
            axes.axvline(chosen, color=_VAL, linewidth=1, linestyle=":", label=f"{by} {chosen:.3g}")
        axes.set_ylabel("mean average precision" if kind == "map" else kind, color=INK)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    upper.legend(frameon=False, loc="best")
    lower.set_xlabel(by)
    if by == "epoch":
        lower.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        lower.set_xlim(min(steps) - 0.5, max(steps) + 0.5)
    if by == "l2" and len(steps) > 1:
        lower.set_xscale("log")
        lower.invert_xaxis()
        lower.set_xlabel("l2 (weaker to the right)")
    return figure


def confusion_figure(classes: Sequence[str], confusion: np.ndarray, title: str) -> Figure:
    """A confusion matrix, coloured by fractions of each row.

    Parameters
    ----------
    classes : sequence of str
        Names, written on the axes for up to 60 classes.
    confusion : ndarray of int, (classes, classes)
        Photos by true class (rows) and predicted class (columns).
    title : str
        Written above it.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    """
    count = len(classes)
    side = min(14.0, 3.2 + 0.55 * count)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    bar.outline.set_visible(False)
    names = [label(name, 24) for name in classes] if count <= _NAMED else []
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    axes.set_title(title, fontsize=11, color=INK)
    if count <= _NUMBERED:
        for i, j in np.ndindex(count, count):
            color = "white" if shares[i, j] > 0.55 else INK
            axes.text(j, i, int(confusion[i, j]), ha="center", va="center", color=color)
    return figure
