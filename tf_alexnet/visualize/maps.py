"""Maps of photos by their features, and dissimilarity matrices."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_alexnet.errors import ImageError, InputError, UsageError
from tf_alexnet.files import replacing
from tf_alexnet.images import load_image
from tf_alexnet.visualize.figures import INK, PALE, PALETTE, label, new_figure, shrunk
from tf_alexnet.visualize.similarity import pca

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECTIONS = {"pca": None, "tsne": "sklearn", "umap": "umap"}  # name -> module required
_THUMBNAILS = 250  # photos drawn as thumbnails; the others are dots
_SIDES = 24, 110  # smallest and largest side of a thumbnail, pixels
_NAMED = 40  # most stimuli whose names are shown
_STIMULI = 10_000


def check_projection(method: str) -> None:
    """Raise UsageError if the projection is unknown or its package is not installed."""
    if method not in PROJECTIONS:
        known = ", ".join(PROJECTIONS)
        raise UsageError(f"projection {method!r}", "unknown", f"Use one of {known}.")
    module = PROJECTIONS[method]
    if module and find_spec(module) is None:
        package = {"sklearn": "scikit-learn", "umap": "umap-learn"}[module]
        advice = f"Install it (pip install {package}), or use pca."
        raise UsageError(f"projection {method!r}", f"{package} is not installed", advice)


def project(rows: np.ndarray, method: str = "pca", seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Project features to two dimensions.

    Parameters
    ----------
    rows : ndarray of float, (N, D)
    method : {"pca", "tsne", "umap"}
        ``tsne`` and ``umap`` start from at most 50 principal components, and need scikit-learn and
        umap-learn.
    seed : int
        Random seed of ``tsne`` and ``umap``.

    Returns
    -------
    places : ndarray of float, (N, 2)
    titles : list of str
        Titles of the axes.

    Raises
    ------
    UsageError, InputError
        If the method is unknown, its package is not installed, or there are fewer than 3 photos.
    """
    check_projection(method)
    if method == "pca":
        places, shares = pca(rows, 2)
        return places, [
            f"component {i + 1} ({x:.1%} of the variance)" for i, x in enumerate(shares)
        ]
    reduced, _ = pca(rows, min(50, *rows.shape))
    if method == "tsne":
        from sklearn.manifold import TSNE

        made = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init="pca", random_state=seed)
    else:
        from umap import UMAP

        made = UMAP(n_neighbors=min(15, len(rows) - 1), random_state=seed)
    return made.fit_transform(reduced), [f"{method} 1", f"{method} 2"]


def embedding_figure(
    places: np.ndarray,
    paths: Sequence[str],
    axes_titles: Sequence[str] = ("", ""),
    *,
    title: str = "",
    progress: Callable[[str, int, int, dict], None] | None = None,
) -> Figure:
    """Plot photos as thumbnails on a map, coloured by folder.

    Parameters
    ----------
    places : ndarray of float, (N, 2)
    paths : sequence of str
        At most 250 photos, evenly spaced, are thumbnails; the others are dots. A cross replaces a
        photo that can't be read.
    axes_titles, title : sequence of str, str
    progress : callable, optional
        Called with ``("thumbnails", done, total, {})``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from_folder, legend = _folder_colors(paths)
    figure = new_figure(11, 9.5, dpi=120)
    axes = figure.subplots()
    drawn = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _THUMBNAILS)).astype(int))
    dots = np.setdiff1d(np.arange(len(paths)), drawn)
    axes.scatter(*places.T, s=0)  # the axes' limits
    axes.scatter(*places[dots].T, s=9, c=[from_folder[i] for i in dots], linewidths=0)
    side = round(min(max(400 / len(drawn) ** 0.5, _SIDES[0]), _SIDES[1]))
    for done, i in enumerate(drawn, 1):
        _thumbnail(axes, paths[i], places[i], from_folder[i], side)
        if progress:
            progress("thumbnails", done, len(drawn), {})
    axes.margins(0.07)
    axes.set_xlabel(axes_titles[0], color=INK)
    axes.set_ylabel(axes_titles[1], color=INK)
    axes.tick_params(labelsize=8, colors=PALE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(label(title, 100), fontsize=11, color=INK)
    for name, color in legend.items():
        axes.scatter([], [], s=40, c=color, label=label(name))
    if legend:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    return figure


def _folder_colors(paths: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Colour of each photo, and of each folder if there are 2 to 7 of them."""
    folders = [os.path.basename(os.path.dirname(path)) or "." for path in paths]
    names = sorted(set(folders))
    if not 2 <= len(names) <= len(PALETTE):
        return ["#555555"] * len(paths), {}
    colors = dict(zip(names, PALETTE, strict=False))
    return [colors[name] for name in folders], colors


def _thumbnail(axes: Any, path: str, place: np.ndarray, color: str, side: int) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    try:
        pixels = shrunk(load_image(path), side)
    except ImageError:
        axes.scatter(*place, s=30, c=color, marker="x")
        return
    frame = {"edgecolor": color, "linewidth": 1.5, "boxstyle": "square,pad=0"}
    box = AnnotationBbox(OffsetImage(pixels), place, pad=0, bboxprops=frame)
    axes.add_artist(box)


def check_stimuli(count: int) -> None:
    """Raise InputError if there are too many stimuli for a matrix of all pairs."""
    if count > _STIMULI:
        raise InputError(
            f"a matrix of {count:,} photos",
            f"it would take {8 * count**2 / 1e9:.0f} GB",
            f"Extract at most {_STIMULI:,} of them.",
        )


def rsm_figure(
    matrices: Mapping[str, np.ndarray],
    paths: Sequence[str],
    distance: str,
    between: Mapping[str, np.ndarray] | None = None,
    *,
    title: str = "",
) -> Figure:
    """Plot the dissimilarity matrices of several layers side by side.

    Parameters
    ----------
    matrices : mapping of str to ndarray of float, (N, N)
        Layer -> its matrix.
    paths : sequence of str
        The stimuli, in order; up to 40 are named.
    distance : str
        Name of the distance, for the colour bars.
    between : mapping of str to ndarray of float, (layers, layers), optional
        Title -> comparison of the layers, plotted below with its numbers.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    between = between or {}
    count, side = len(matrices), 4.6 if len(paths) <= _NAMED else 4.0
    columns = min(4, max(count, len(between)))
    rows = -(-count // columns) + (1 if between else 0)
    figure = new_figure(side * columns + 1.2, side * rows + 0.6, dpi=120)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (layer, matrix) in zip(panels, matrices.items(), strict=False):
        named = paths if axes is panels[0] else None
        _matrix(figure, axes, matrix, layer, named, distance)
    spare = list(panels[count:])
    if between:
        spare = list(panels[count : len(panels) - columns])
        below = panels[len(panels) - columns :]
        for axes, (head, values) in zip(below, between.items(), strict=False):
            _between(axes, values, list(matrices), head)
        spare += list(below[len(between) :])
    for axes in spare:
        axes.remove()
    figure.suptitle(label(title, 100), fontsize=11, color=INK)
    return figure


def _matrix(
    figure: Figure, axes: Any, matrix: np.ndarray, layer: str, paths: Any, distance: str
) -> None:
    image = axes.imshow(matrix, cmap="viridis", vmin=0, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label(f"{distance} distance", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8)
    axes.set_title(layer, fontsize=11, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if paths and len(paths) <= _NAMED:
        names = [label(os.path.basename(path), 20) for path in paths]
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xticks([])
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"{len(matrix):,} photos", fontsize=8, color=PALE)


def _between(axes: Any, values: np.ndarray, names: Sequence[str], title: str) -> None:
    axes.imshow(values, cmap="viridis", vmin=-1 if (values < 0).any() else 0, vmax=1)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10, color=INK)
    for i, j in np.ndindex(values.shape):
        color = "white" if values[i, j] <= 0.6 else INK  # NaN cells are white
        axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=color, fontsize=8)


def write_matrix(
    path: str | os.PathLike,
    matrix: np.ndarray,
    names: Sequence[str] = (),
    heads: Sequence[str] = (),
) -> None:
    """Write a matrix as ``.npy``, or as ``.csv`` with row names and a header.

    Raises
    ------
    OutputError
        If it can't be written.
    """
    with replacing(path) as temporary:
        if Path(path).suffix == ".npy":
            with open(temporary, "wb") as file:
                np.lib.format.write_array(file, matrix, allow_pickle=False)
            return
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["", *heads])
            for name, row in zip(names, matrix.tolist(), strict=True):
                table.writerow([name, *row])
