"""Plots of convolution filters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tf_alexnet.architectures import Architecture, Conv
from tf_alexnet.errors import LayerError
from tf_alexnet.visualize.colors import colored
from tf_alexnet.visualize.figures import INK, color_bar, new_figure, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAIRS = 24  # most filters, and input channels, plotted for deeper layers
_PAPER = 255


def towers(table: Architecture) -> int:
    """Number of towers: the largest `groups` of the network."""
    return max(layer.groups for layer in table.convolutions)


def filter_tiles(kernel: np.ndarray, channels: str) -> np.ndarray:
    """Filters on three colour channels as RGB tiles, each with its own contrast.

    Parameters
    ----------
    kernel : ndarray of float, (h, w, 3, n)
    channels : {"BGR", "RGB"}
        Channel order of the input.

    Returns
    -------
    ndarray of uint8, (n, h, w, 3)
        RGB. Weight 0 is 128; the largest absolute weight of each filter is 1 or 255.
    """
    tiles = np.moveaxis(kernel, -1, 0)
    tiles = tiles[..., ::-1] if channels == "BGR" else tiles
    largest = np.abs(tiles).max(axis=(1, 2, 3), keepdims=True)
    return np.rint(128 + 127 * tiles / np.where(largest > 0, largest, 1)).astype(np.uint8)


def grid(tiles: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Arrange uint8 tiles (n, h, w, 3) in rows of `columns`, with white lines between them."""
    count, height, width = tiles.shape[:3]
    rows = -(-count // columns)
    shape = rows * (height + gap) - gap, columns * (width + gap) - gap, 3
    sheet = np.full(shape, _PAPER, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def strongest_pairs(
    kernel: np.ndarray, count: int = _PAIRS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The filters and input channels with the largest norms, and their weights.

    Parameters
    ----------
    kernel : ndarray of float, (h, w, inputs, filters)
    count : int
        Maximum number of each.

    Returns
    -------
    filters, inputs : ndarray of int
        Their indices in `kernel`, ascending.
    weights : ndarray of float, (filters, inputs, h, w)
    """
    energy = np.square(kernel.astype(np.float64)).sum(axis=(0, 1))
    filters = np.sort(np.argsort(-energy.sum(axis=0), kind="stable")[:count])
    inputs = np.sort(np.argsort(-energy[:, filters].sum(axis=1), kind="stable")[:count])
    return filters, inputs, np.transpose(kernel[:, :, inputs][..., filters], (3, 2, 0, 1))


def filters_figure(
    kernel: np.ndarray, table: Architecture, layer: str = "conv1", *, source: str = ""
) -> Figure:
    """Plot the filters of a convolution.

    Filters of `conv1` are colour images, each with its own contrast. Filters of deeper layers have
    one row each and one column per input channel, with weights from blue (negative) through white
    (0) to red. The towers of a network with groups are plotted side by side.

    Parameters
    ----------
    kernel : ndarray of float, (h, w, inputs / groups, filters)
    table : Architecture
    layer : str
        Name of the convolution.
    source : str
        Where the weights came from, for the title.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    LayerError
        If the network has no such convolution.
    """
    conv = check_convolution(table, layer)
    parts = np.split(kernel, towers(table), axis=-1)
    if kernel.shape[2] == 3:
        return _colored(parts, table.channels, layer, source)
    return _paired(parts, conv, source)


def check_convolution(table: Architecture, layer: str) -> Conv:
    """The convolution called `layer`.

    Raises
    ------
    LayerError
        If the network has none of that name.
    """
    known = {conv.name: conv for conv in table.convolutions}
    if layer not in known:
        raise LayerError(
            f"filters of {layer!r}",
            f"{table.name} has no such convolution",
            f"Use one of {', '.join(known)}.",
        )
    return known[layer]


def _colored(parts: list[np.ndarray], channels: str, layer: str, source: str) -> Figure:
    count = sum(part.shape[-1] for part in parts)
    columns = 8
    rows = math.ceil(parts[0].shape[-1] / columns)
    width = 4.4 * len(parts)
    figure = new_figure(width, 4.4 * rows / columns + 0.9, dpi=130)
    start = 0
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        end = start + part.shape[-1]
        show(axes, grid(filter_tiles(part, channels), columns), f"filters {start} to {end - 1}")
        start = end
    title = f"{layer}: {count} filters, each with its own contrast"
    figure.suptitle(f"{title}\n{source}".strip(), fontsize=10, color=INK)
    return figure


def _paired(parts: list[np.ndarray], conv: Conv, source: str) -> Figure:
    figure = new_figure(5.6 * len(parts) + 0.6, 7.0, dpi=130)
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    every = parts[0].shape[-1] * len(parts)
    for number, (axes, part) in enumerate(zip(panels, parts, strict=True)):
        filters, inputs, weights = strongest_pairs(part)
        largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
        shades = weights / np.where(largest > 0, largest, 1)
        tiles = colored(shades, "diverging", -1, 1).reshape(-1, *part.shape[:2], 3)
        axes.imshow(grid(tiles, len(inputs)))
        first = number * part.shape[2] if conv.groups > 1 else 0
        step = part.shape[0] + 1, part.shape[1] + 1
        places = [
            np.arange(len(x)) * s + (s - 2) / 2
            for x, s in zip((filters, inputs), step, strict=True)
        ]
        axes.set_yticks(places[0], number * part.shape[-1] + filters, fontsize=7)
        axes.set_xticks(places[1], first + inputs, fontsize=7, rotation=90)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("input channel", fontsize=9, color=INK)
        axes.set_ylabel("filter", fontsize=9, color=INK)
    text = "weight, relative to the filter's largest"
    color_bar(figure, [*panels], "diverging", -1, 1, text)
    shown = f"{conv.name}: {len(filters) * len(parts)} of {every} filters by input channel"
    figure.suptitle(f"{shown}, largest norms\n{source}".strip(), fontsize=10, color=INK)
    return figure
