"""Plots of a photo's activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tf_alexnet.errors import InputError
from tf_alexnet.images import as_preset
from tf_alexnet.labels import Labels, decode_predictions, imagenet_labels
from tf_alexnet.visualize.figures import INK, color_bar, label, new_figure, show, shrunk
from tf_alexnet.visualize.geometry import crop_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tf_alexnet.extraction import FeatureExtractor

_GAP = 1  # pixels between channels
_LIMIT = 99.9  # percentile drawn as white


def ceiling(blob: np.ndarray) -> float:
    """The value that `mosaic` draws as white: the 99.9th percentile, or the maximum if that is 0.

    0 if no value is positive.
    """
    high = float(np.percentile(blob, _LIMIT))
    return max(0.0, high if high > 0 else float(blob.max(initial=0)))


def mosaic(blob: np.ndarray) -> np.ndarray:
    """Tile all channels of a blob, strongest first.

    Parameters
    ----------
    blob : ndarray of float, (h, w, channels) or (units,)
        Activations of one photo. Channels are sorted by their maximum; units keep their order.

    Returns
    -------
    ndarray of uint8, (H, W)
        Activations of 0 and below are 0 (black); `ceiling` and above are 255 (white). The tiles
        form a nearly square sheet; channels are separated by grey lines (128).

    Raises
    ------
    InputError
        If `blob` has another number of axes, is empty, or has values that are not finite.
    """
    blob = np.asarray(blob)
    if blob.ndim not in (1, 3) or not blob.size or not np.isfinite(blob).all():
        raise InputError(
            f"blob of shape {blob.shape}",
            "expected finite values of shape (h, w, channels) or (units,)",
            "Pass one row of what FeatureExtractor returns.",
        )
    gap = _GAP if blob.ndim == 3 else 0
    blob = blob[None, None] if blob.ndim == 1 else blob[..., strongest(blob)]
    height, width, channels = blob.shape
    across = math.ceil(math.sqrt(channels * (height + gap) / (width + gap)))
    down = -(-channels // across)
    shape = down * (height + gap) - gap, across * (width + gap) - gap
    sheet = np.full(shape, 128 if gap else 0, np.uint8)
    shades = np.rint(np.clip(blob / (ceiling(blob) or 1), 0, 1) * 255).astype(np.uint8)
    for number in range(channels):
        top = number // across * (height + gap)
        left = number % across * (width + gap)
        sheet[top : top + height, left : left + width] = shades[..., number]
    return sheet


def strongest(blob: np.ndarray) -> np.ndarray:
    """Channel indices of a blob (h, w, channels), sorted by maximum in descending order."""
    return np.argsort(-blob.max(axis=(0, 1)), kind="stable")


def photo_blobs(
    extractor: FeatureExtractor, image: np.ndarray, names: Labels | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray, list[tuple[str, float]]]:
    """Compute what `activations_figure` plots for a photo.

    Parameters
    ----------
    extractor : FeatureExtractor
    image : ndarray of uint8, (H, W, 3)
    names : sequence of str, mapping or path, optional
        Class names, as in `decode_predictions`.

    Returns
    -------
    blobs : dict of str to ndarray of float32
        Layer -> (h, w, channels) or (units,).
    crop : ndarray of uint8, (S, S, 3)
        The part of the photo that the network sees.
    classes : list of (str, float)
        The five most probable classes; empty without `prob` or names for its classes.
    """
    batch = extractor.preprocess([image])
    blobs = {name: values[0] for name, values in extractor(batch).items()}
    crop = crop_of(image, as_preset(extractor.preset), batch.shape[1])
    prob = blobs.get("prob")
    if prob is None or (names is None and prob.size != len(imagenet_labels())):
        return blobs, crop, []
    return blobs, crop, [(x.label, x.probability) for x in decode_predictions(prob, 5, names)[0]]


def activations_figure(
    blobs: Mapping[str, np.ndarray],
    image: np.ndarray,
    *,
    name: str = "",
    classes: Sequence[tuple[str, float]] = (),
) -> Figure:
    """Plot the mosaics of several layers on one page, after the photo.

    Parameters
    ----------
    blobs : mapping of str to ndarray of float, (h, w, channels) or (units,)
        Layer -> its activations for one photo.
    image : ndarray of uint8, (H, W, 3)
        The photo, or the part of it that the network sees.
    name : str
        Name of the photo, for the title.
    classes : sequence of (str, float)
        The most probable classes, best first; plotted as bars in place of `prob`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if len(blobs) == 1:
        return _single(*next(iter(blobs.items())), image, name)
    columns = min(5, 1 + len(blobs))
    rows = -(-(1 + len(blobs)) // columns)
    figure = new_figure(3.3 * columns, 3.7 * rows + 0.5, dpi=130)
    panels = figure.subplots(rows, columns).ravel()
    show(panels[0], shrunk(image), label(name) or "input")
    for axes, (layer, blob) in zip(panels[1:], blobs.items(), strict=False):
        if layer == "prob" and classes:
            _bars(axes, classes)
        else:
            show(axes, mosaic(blob), _about(layer, blob), cmap="gray", vmin=0, vmax=255)
    for axes in panels[1 + len(blobs) :]:
        axes.remove()
    figure.suptitle("activations, strongest channels first", fontsize=11, color=INK)
    return figure


def _single(layer: str, blob: np.ndarray, image: np.ndarray, name: str) -> Figure:
    """One layer, large, with the photo and a colour bar."""
    figure = new_figure(11.5, 8.2, dpi=130)
    photo, sheet = figure.subplots(1, 2, width_ratios=(1, 3.2))
    show(photo, shrunk(image), label(name) or "input")
    photo.set_anchor("N")
    show(sheet, mosaic(blob), _about(layer, blob), cmap="gray", vmin=0, vmax=255)
    color_bar(figure, sheet, "gray", 0, ceiling(blob) or 1, "activation", where="right")
    return figure


def _about(layer: str, blob: np.ndarray) -> str:
    shape = "x".join(map(str, blob.shape))
    return f"{layer}  {shape}\n{(blob > 0).mean():.0%} above 0, white is {ceiling(blob):.3g}"


def _bars(axes, classes: Sequence[tuple[str, float]]) -> None:
    """A bar chart of the most probable classes, with their names on the bars."""
    places = range(len(classes))
    axes.barh(places, [share for _, share in classes], color="#9ec5e8", height=0.8)
    for place, (text, share) in enumerate(classes):
        axes.text(0.01, place, f"{label(text)}  {share:.1%}", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_title("prob", fontsize=9, color=INK)
