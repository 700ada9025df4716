"""Sanity check of saliency maps (Adebayo et al. 2018).

Layers are randomised one after the other, from the classifier down. A map that does not change
shows the photo, not what the network has learned.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from tf_alexnet.files import replacing
from tf_alexnet.images import load_image
from tf_alexnet.visualize.explainer import Explainer
from tf_alexnet.visualize.figures import INK, MARKERS, PALE, PALETTE, label, new_figure, show
from tf_alexnet.visualize.geometry import Placement
from tf_alexnet.visualize.saliency import METHODS, SaliencyMap, Task, check_method, overlay
from tf_alexnet.weights.fresh import fresh_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class SanityCheck:
    """Maps of a photo as more and more layers of a trained network are randomised.

    Attributes
    ----------
    stages : tuple of str
        ``trained``, then the layer that was randomised last: ``fc8``, ``fc7``, ... ``conv1``.
    maps : dict of str to list of SaliencyMap
        Method -> its map at each stage, on the network's input.
    correlations : dict of str to ndarray of float64, (stages,)
        Method -> Spearman's rank correlation of the absolute values of the cells with those of the
        trained network; 1 first, NaN for constant maps.
    class_index : int
        The class explained: `target_class`, or the trained network's prediction.
    """

    stages: tuple[str, ...]
    maps: dict[str, list[SaliencyMap]]
    correlations: dict[str, np.ndarray]
    class_index: int

    def __repr__(self) -> str:
        return (
            f"<SanityCheck {', '.join(self.maps)} of class {self.class_index}, "
            f"{self.stages[0]} to {self.stages[-1]}>"
        )

    def write_csv(self, path: str | os.PathLike) -> None:
        """Write the correlations: one row per stage, one column per method."""
        with replacing(path) as temporary, open(temporary, "w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["randomised_down_to", *self.correlations])
            columns = zip(*self.correlations.values(), strict=True)
            for stage, row in zip(self.stages, columns, strict=True):
                table.writerow([stage, *(f"{x:.6f}" for x in row)])


def sanity_check(
    model: Explainer | Any,
    image: np.ndarray | Any,
    methods: Sequence[str] = METHODS,
    target_class: int | None = None,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int, dict], None] | None = None,
) -> SanityCheck:
    """Compare saliency maps while the network's layers are randomised, the last one first.

    Parameters
    ----------
    model, image, target_class
        As in `saliency_map`. The weights of an `Explainer` are restored afterwards.
    methods : sequence of str
        As in `saliency_map`, with default settings.
    seed : int
        Random seed of the weights, initialised as for training from scratch.
    progress : callable, optional
        Called with ``("maps", done, total, {})``.

    Returns
    -------
    SanityCheck
    """
    for method in methods:
        check_method(method)
    explainer = model if isinstance(model, Explainer) else Explainer(model)
    image = image if isinstance(image, np.ndarray) else load_image(image)
    crop, x = explainer.crop(image), explainer.preprocess(image)
    scores = explainer.scores(x)[0]
    index = int(scores.argmax()) if target_class is None else explainer.check_class(target_class)
    layers = [layer.name for layer in explainer.table.weighted][::-1]
    fresh = fresh_layers(explainer.table, seed)
    maps: dict[str, list[SaliencyMap]] = {method: [] for method in methods}
    total, own = len(methods) * (1 + len(layers)), {}
    try:
        for layer in [None, *layers]:
            if layer:
                own[layer] = explainer.replace(layer, fresh[layer])
            for method in methods:
                maps[method].append(_map(explainer, method, crop, x, index))
                if progress:
                    progress("maps", sum(map(len, maps.values())), total, {})
    finally:
        for layer, arrays in own.items():
            explainer.replace(layer, arrays)
    correlations = {name: _correlations([x.cells for x in made]) for name, made in maps.items()}
    return SanityCheck(("trained", *layers), maps, correlations, index)


def _map(
    explainer: Explainer, method: str, crop: np.ndarray, x: np.ndarray, index: int
) -> SaliencyMap:
    cells, rows, columns, gap = Task().run(method, explainer, crop, x, index)
    values = Placement.of_crop(len(crop)).onto_photo(cells, rows, columns)
    score = float(explainer.scores(x)[0, index])
    return SaliencyMap(values, index, score, gap, method, cells, rows, columns)


def _correlations(cells: Sequence[np.ndarray]) -> np.ndarray:
    flat = [np.abs(x).ravel() for x in cells]
    found = np.full(len(flat), np.nan)
    for number, values in enumerate(flat):
        if flat[0].min() < flat[0].max() and values.min() < values.max():
            found[number] = spearmanr(flat[0], values).statistic
    return found


def sanity_figure(image: np.ndarray, found: SanityCheck, *, name: str = "") -> Figure:
    """Plot the correlations, and below them all maps over the crop.

    Parameters
    ----------
    image : ndarray of uint8, (S, S, 3)
        `Explainer.crop` of the photo.
    found : SanityCheck
    name : str
        Name of the photo, for the title.

    Returns
    -------
    matplotlib.figure.Figure
    """
    stages, methods = len(found.stages), list(found.maps)
    figure = new_figure(1.55 * stages + 1.6, 4.2 + 1.6 * len(methods), dpi=110)
    upper, lower = figure.subfigures(2, 1, height_ratios=(3.8, 1.6 * len(methods)))
    axes = upper.subplots()
    for number, method in enumerate(methods):
        color, marker = PALETTE[number % 7], MARKERS[number % 7]
        axes.plot(found.correlations[method], color=color, marker=marker, label=method)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xticks(range(stages), [found.stages[0], *(f"… {x}" for x in found.stages[1:])])
    axes.set_xlabel("layers randomised, from the last one down to", color=INK)
    axes.set_ylabel("rank correlation\nwith the trained map", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    upper.suptitle(
        f"{label(name, 60)}: do the maps depend on what was learned? Lines should fall to 0",
        fontsize=11, color=INK,
    )  # fmt: skip
    grid = lower.subplots(len(methods), stages, squeeze=False)
    for line, method in zip(grid, methods, strict=True):
        for number, (panel, made) in enumerate(zip(line, found.maps[method], strict=True)):
            show(panel, overlay(image, made))
            if made.constant:
                panel.set_xlabel("constant", fontsize=7, color=PALE, labelpad=1)
            if number == 0:
                panel.set_ylabel(method, fontsize=9, color=INK)
            if method == methods[0]:
                panel.set_title(found.stages[number], fontsize=9, color=INK)
    return figure
