"""`linear_readout`: accuracy of a linear classifier on each layer."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tf_alexnet.architectures import PREACT, blob_names
from tf_alexnet.errors import UsageError, one_line
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.extraction.spec import POOLS
from tf_alexnet.progress import progress_callback
from tf_alexnet.training.folders import PhotoSet, read_photos
from tf_alexnet.training.head import (
    FEATURES,
    Progress,
    Setup,
    check_weights,
    extract_photos,
    fit_rows,
)
from tf_alexnet.training.report import history_table, readout_text
from tf_alexnet.training.run import READOUT, begin_run, working_in, write_text
from tf_alexnet.visualize.figures import INK, PALE, PALETTE, label, new_figure, save_figure
from tf_alexnet.weights import WeightArrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT = "readout.png"


class LayerResult(NamedTuple):
    """Result of the classifier on one layer.

    Attributes
    ----------
    layer : str
    features : int
        Number of features per photo.
    l2 : float
        L2 penalty.
    train, val : float
        Accuracy, or mean average precision if photos have several labels; 0..1.
    """

    layer: str
    features: int
    l2: float
    train: float
    val: float


@dataclass(frozen=True)
class ReadoutReport:
    """Result of `linear_readout`.

    Attributes
    ----------
    folder : Path
        The RUN: ``readout.csv``, ``readout.png``, ``report.md``, ``features.h5``.
    metric : {"accuracy", "map"}
        Metric of `LayerResult.train` and `val`.
    layers : tuple of LayerResult
    notes : tuple of str
        Remarks for the user, one sentence each.
    skipped : tuple of Failure
        Photos that could not be read.
    finished_before : bool
        Whether an earlier call had finished it all; `skipped` is then empty.
    """

    folder: Path
    metric: str
    layers: tuple[LayerResult, ...]
    notes: tuple[str, ...] = ()
    skipped: tuple[Failure, ...] = ()
    finished_before: bool = False

    def __repr__(self) -> str:
        figures = ", ".join(f"{x.layer} {x.val:.3f}" for x in self.layers)
        return f"<ReadoutReport {one_line(self.folder)}: validation {self.metric} {figures}>"


def linear_readout(
    data: str | os.PathLike,
    run: str | os.PathLike,
    layers: str | Sequence[str] = "all",
    *,
    weights: str | os.PathLike | WeightArrays = "imagenet",
    architecture: str | None = None,
    preset: str | None = None,
    pool: str = "avg",
    l2: float | None = None,
    class_weight: str | None = None,
    multi_label: bool = False,
    val_split: float = 0.2,
    seed: int = 0,
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | bool | None = None,
    note: Callable[[str], None] | None = None,
) -> ReadoutReport:
    """Train a linear classifier on each of several layers of a pretrained network.

    Every photo goes through the network once. The RUN then holds a table and a plot, but no
    network; to get one, call `train_head` with the layer of your choice.

    Parameters
    ----------
    data, weights, architecture, preset, l2, class_weight, multi_label, val_split, seed, workers,
    resume, force, progress, note
        As in `train_head`.
    run : path
        Folder for the result.
    layers : str or sequence of str
        Blob names, also ``"<name>_preact"``; ``"all"`` for all layers of the weights except `prob`.
    pool : {"avg", "max", "none"}
        Pooling of convolutional layers over positions; "none" keeps all values.

    Returns
    -------
    ReadoutReport

    Raises
    ------
    UsageError, WeightsError, ImageError, OutputError
        As `train_head`.
    """
    photos = read_photos(data, val_split, seed, multi_label=multi_label)
    setup = Setup.of((weights, architecture, preset), l2, class_weight)
    names = _checked_layers(setup, layers)
    if pool not in POOLS:
        raise UsageError(f"pool {pool!r}", "no such pooling", f"Use {', '.join(POOLS)}.")
    settings = setup.settings("readout", " ".join(names), pool, photos, val_split, seed)
    metric = "map" if multi_label else "accuracy"
    tell = note or (lambda text: None)
    with (
        working_in(run, resume=resume) as folder,
        progress_callback(progress, "training") as progress,
    ):
        begin_run(folder, settings, force=force)
        if (folder / READOUT).is_file():
            rows = _read(folder / READOUT)
            return ReadoutReport(folder, metric, rows, photos.notes, finished_before=True)
        notes, rows = list(photos.notes), []
        found = extract_photos(photos, folder / FEATURES, setup, settings, workers, force, progress)
        for name in names:
            parts = found.rows(name)
            fitted = fit_rows(*parts, len(photos.classes), setup, progress, f"fits on {name}")
            figures = (fitted.metrics[f"{part}_{metric}"] for part in ("train", "val"))
            rows.append(LayerResult(name, len(fitted.head.kernel), fitted.metrics["l2"], *figures))
            notes += [f"{name}: {text}" for text in fitted.notes]
        for text in notes:
            tell(text)
        notes += _plot(folder, rows, metric, _share(photos))
        table = [_row(result, metric) for result in rows]
        text = readout_text(table, settings, photos, notes, found.skipped)
        write_text(folder / "report.md", text)
        write_text(folder / READOUT, history_table(table))
    return ReadoutReport(folder, metric, tuple(rows), tuple(notes), found.skipped)


def _checked_layers(setup: Setup, layers: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the layers, if the weights have them all."""
    base, table = setup.base, setup.table
    names = [x for x in blob_names(layers, table, base.layers) if x != "prob"]
    for name in names:
        cut = table.until(table.check_blob(name).removesuffix(PREACT))
        check_weights(base, cut.weighted, name)
    return tuple(names)


def _share(photos: PhotoSet) -> float | None:
    """Fraction of the validation photos that belong to the largest class."""
    if photos.multi_label:
        return None
    return float(np.bincount([x.label for x in photos.val]).max() / len(photos.val))


def _row(result: LayerResult, metric: str) -> dict[str, float | str]:
    names = ("layer", "features", "l2", f"train_{metric}", f"val_{metric}")
    return dict(zip(names, result, strict=True))


def _read(path: Path) -> tuple[LayerResult, ...]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return tuple(LayerResult(x[0], int(x[1]), *map(float, x[2:])) for x in rows)


def _plot(folder: Path, rows: Sequence[LayerResult], metric: str, share: float | None) -> list[str]:
    """Save ``readout.png``; return a note if matplotlib is not installed."""
    try:
        figure = readout_figure(rows, metric, share)
    except UsageError:
        return ["no picture: matplotlib is not installed (pip install 'tf-alexnet[plot]')"]
    save_figure(figure, folder / PLOT)
    return []


def readout_figure(
    rows: Sequence[LayerResult], metric: str = "accuracy", share: float | None = None
) -> Figure:
    """Plot training and validation metrics by layer.

    Parameters
    ----------
    rows : sequence of LayerResult
    metric : {"accuracy", "map"}
    share : float, optional
        Fraction of the largest class, drawn as a line.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    """
    figure = new_figure(max(5.0, 1.6 + 0.5 * len(rows)), 4.2)
    axes = figure.subplots()
    places = range(len(rows))
    for name, color in (("train", PALE), ("val", PALETTE[0])):
        values = [100 * getattr(row, name) for row in rows]
        title = {"train": "training", "val": "validation"}[name]
        axes.plot(places, values, color=color, marker="o", markersize=5, label=title)
    if share is not None:
        axes.axhline(100 * share, color=PALE, linewidth=1, linestyle=":", label="largest class")
    for place, row in zip(places, rows, strict=True):
        axes.annotate(
            f"{100 * row.val:.1f}", (place, 100 * row.val), (0, -14), textcoords="offset points",
            ha="center", fontsize=8, color=PALETTE[0],
        )  # fmt: skip
    axes.set_xticks(places, [label(row.layer) for row in rows], rotation=45, ha="right")
    axes.set_ylim(0, 104)
    axes.yaxis.get_major_locator().set_params(integer=True)
    title = "mean average precision" if metric == "map" else "accuracy"
    axes.set_ylabel(f"{title} (%)", color=INK)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower right")
    return figure
