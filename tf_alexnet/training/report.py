"""What a person reads of a training: ``report.md``, ``history.csv`` and pictures."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tf_alexnet.errors import UsageError, one_line
from tf_alexnet.files import replacing
from tf_alexnet.visualize.sheets import check_picture

if TYPE_CHECKING:
    from tf_alexnet.extraction.reader import Failure
    from tf_alexnet.training.record import RunRecord

CURVES, CONFUSION = "curves.png", "confusion.png"
_SHOWN = 50  # unreadable photos that the report names
_NUMBERED = 25  # classes up to which the matrix has numbers in its fields
_NAMED = 60  # and names at its sides
_INK, _TRAIN, _VAL = "#333333", "#9aa5b1", "#1f6fb4"


def history_table(history: Sequence[Mapping[str, float]]) -> str:
    """The rows as CSV, with a header."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(history[0]) if history else [], lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    return text.getvalue()


def class_table(classes: Sequence[str], confusion: np.ndarray) -> list[tuple[str, int, str, str]]:
    """Class, photos, recall and precision, the last two as ``81.2 %`` or ``-`` of no photo."""
    right, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)

    def share(part: int, whole: int) -> str:
        return f"{part / whole:.1%}" if whole else "-"

    return [
        (name, int(actual[i]), share(right[i], actual[i]), share(right[i], predicted[i]))
        for i, name in enumerate(classes)
    ]


def report_text(
    record: RunRecord,
    history: Sequence[Mapping[str, float]],
    confusion: np.ndarray,
    notes: Sequence[str] = (),
    skipped: Sequence[Failure] = (),
    explanation: str = "",
    drawn: bool = True,
) -> str:
    """The Markdown of ``report.md``; arguments as in `write_run`, and if pictures are there."""
    split, metrics = record.split, record.metrics
    base = f", starting from {_code(record.base['source'])}" if record.base else ""
    lines = [
        f"# {len(record.classes)} classes, {metrics['val_accuracy']:.1%} of "
        f"{split['val']} validation photos right",
        "",
        f"{record.architecture} (`--mode {record.mode}`){base}; the classifier stands on "
        f"{record.layer}; photos are prepared by preset `{record.preset}`.",
        "",
    ]
    lines += [explanation, ""] if explanation else []
    how = "drawn by seed from the class folders" if split["drawn"] else "as the folders have it"
    lines += [
        "| | photos | accuracy | loss |",
        "|---|---|---|---|",
        *(
            f"| {title} | {split[part]} | {metrics[f'{part}_accuracy']:.1%} | "
            f"{metrics[f'{part}_loss']:.3f} |"
            for part, title in (("train", "training"), ("val", "validation"))
            if f"{part}_accuracy" in metrics and f"{part}_loss" in metrics
        ),
        "",
        f"The parts are {how}.",
        "",
        "| class | validation photos | found (recall) | right when named (precision) |",
        "|---|---|---|---|",
        *(
            f"| {_cell(name)} | {n} | {recall} | {precision} |"
            for name, n, recall, precision in class_table(record.classes, confusion)
        ),
        "",
    ]
    pictures = (CONFUSION, "confusion matrix"), (CURVES, f"by {next(iter(history[0]))}")
    lines += [f"![{title}]({name})\n" for name, title in pictures if drawn]
    lines += _remarks(notes, skipped)
    lines += _use(record)
    return "\n".join(lines)


def _remarks(notes: Sequence[str], skipped: Sequence[Failure]) -> list[str]:
    lines = ["## Notes", "", *(f"- {_cell(note)}" for note in notes)] if notes else []
    lines += [""] if notes else []
    if skipped:
        lines += [f"## {len(skipped)} photos could not be read and were left out", ""]
        lines += [f"- {_code(x.path)}: {_cell(x.detail)} ({x.code})" for x in skipped[:_SHOWN]]
        lines += [f"- and {len(skipped) - _SHOWN} more"] if len(skipped) > _SHOWN else []
        lines += [""]
    return lines


def _use(record: RunRecord) -> list[str]:
    given = {name: x for name, x in record.settings.items() if x is not None}
    settings = [f"- {name}: {_code(value)}" for name, value in given.items()]
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return [
        "## To use it",
        "",
        "```console",
        "$ tf-alexnet predict PHOTOS --model RUN",
        "```",
        "",
        "`weights.safetensors` is an ordinary weight file for `ta.AlexNet` and "
        "`ta.FeatureExtractor`; `model.keras` the same for Keras; `class_indices.json` says which "
        "output is which class; `history.csv` has the numbers of the curves.",
        "",
        "## How it was made",
        "",
        *settings,
        "",
        f"{versions}. Weights {record.weights_digest}.",
        "",
    ]


def _cell(text: object) -> str:
    """Text that may come from a file's name, harmless in a line or a table of Markdown."""
    plain = one_line(str(text)).replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + c if c in "\\|`*_[]" else c for c in plain)


def _code(text: object) -> str:
    return "`" + one_line(str(text)).replace("`", "'").replace("|", "\\|") + "`"


def draw(
    folder: Path,
    record: RunRecord,
    history: Sequence[Mapping[str, float]],
    confusion: np.ndarray,
) -> list[str]:
    """Draw ``curves.png`` and ``confusion.png``; a sentence where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return ["no pictures: matplotlib is not installed (pip install 'tf-alexnet[plot]')"]
    chosen = record.metrics.get(next(iter(history[0])))
    _save(_curves(Figure, history, chosen), folder / CURVES)
    title = f"{int(confusion.sum())} validation photos"
    _save(_matrix(Figure, record.classes, confusion, title), folder / CONFUSION)
    return []


def check_confusion(path: str | os.PathLike) -> None:
    """Refuse a picture that `save_confusion` could not draw or write.

    Raises
    ------
    UsageError
        If the suffix is not that of a picture, or matplotlib is not installed.
    OutputError
        If it could not be written.
    """
    check_picture(path)
    if find_spec("matplotlib") is None:
        raise UsageError(
            f"picture {os.fspath(path)}",
            "matplotlib is not installed",
            "Install it: pip install 'tf-alexnet[plot]'.",
        )


def save_confusion(
    path: str | os.PathLike, classes: Sequence[str], confusion: np.ndarray, title: str
) -> None:
    """Draw a confusion matrix into a file.

    Parameters
    ----------
    path : path
        A ``.png``.
    classes : sequence of str
        Their names; up to 60 are written at the sides.
    confusion : ndarray of int, (classes, classes)
        Photos by true class (rows) and predicted class (columns).
    title : str
        Written above it.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    OutputError
        If the file can't be written.
    """
    check_confusion(path)
    from matplotlib.figure import Figure

    _save(_matrix(Figure, classes, confusion, title), Path(path))


def _save(figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(os.fspath(temporary), format="png", bbox_inches="tight", pad_inches=0.15)


def _curves(Figure, history: Sequence[Mapping[str, float]], chosen: float | None):
    """Loss and accuracy, one above the other, over the first column; a line where the result is."""
    by = next(iter(history[0]))
    figure = Figure(figsize=(7, 6), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [row[by] for row in history]
    for axes, kind in ((upper, "accuracy"), (lower, "loss")):
        for name in (x for x in history[0] if kind in x):
            part, color = ("validation", _VAL) if "val" in name else ("training", _TRAIN)
            values = [row[name] for row in history]
            axes.plot(steps, values, color=color, marker="o", markersize=3.5, label=part)
        if chosen is not None:
            axes.axvline(chosen, color=_VAL, linewidth=1, linestyle=":", label=f"{by} {chosen:.3g}")
        axes.set_ylabel(kind, color=_INK)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    upper.legend(frameon=False, loc="best")
    lower.set_xlabel(by)
    if by == "l2" and len(steps) > 1:
        lower.set_xscale("log")
        lower.invert_xaxis()
        lower.set_xlabel("l2 (weaker to the right)")
    return figure


def _matrix(Figure, classes: Sequence[str], confusion: np.ndarray, title: str):
    """Rows: what the photo shows; columns: what was predicted; colours by share of the row."""
    count = len(classes)
    side = min(14.0, 3.2 + 0.55 * count)
    figure = Figure(figsize=(side + 0.6, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    bar.outline.set_visible(False)
    names = [_short(name) for name in classes] if count <= _NAMED else []
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    axes.set_title(title, fontsize=11, color=_INK)
    if count <= _NUMBERED:
        for i, j in np.ndindex(count, count):
            color = "white" if shares[i, j] > 0.55 else _INK
            axes.text(j, i, int(confusion[i, j]), ha="center", va="center", color=color)
    return figure


def _short(name: str) -> str:
    # matplotlib reads $...$ as mathematics.
    name = one_line(name).replace("$", r"\$")
    return name if len(name) <= 24 else name[:23] + "…"
