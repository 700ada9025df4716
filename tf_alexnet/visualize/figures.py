"""Shared by all figures: matplotlib's `Figure` without pyplot's global state, and saving."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tf_alexnet.errors import UsageError, one_line
from tf_alexnet.files import check_folder, replacing
from tf_alexnet.visualize.colors import color_table
from tf_alexnet.visualize.sheets import MARK, SUFFIXES, check_picture, save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PALE = "#222222", "#6e6e6e"
# Okabe and Ito's colour-blind safe palette, and markers for greyscale prints.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
VECTOR = (".svg", ".pdf")
_LONGEST = 30  # characters of a label
_PIXELS = 1600  # longer side of a photo in a figure


def new_figure(width: float, height: float, dpi: int = 110) -> Figure:
    """An empty figure; width and height in inches.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def check_figure(path: str | os.PathLike) -> None:
    """Refuse a path that no figure can be saved to, before any work is done.

    Raises
    ------
    UsageError
        If the suffix is not a picture format, or matplotlib is not installed.
    OutputError
        If the file can't be written.
    """
    if Path(path).suffix.lower() in VECTOR:
        check_folder(path)
    elif Path(path).suffix.lower() in SUFFIXES:
        check_picture(path)
    else:
        known = ", ".join((*SUFFIXES, *VECTOR))
        raise UsageError(f"picture {os.fspath(path)}", "unknown file type", f"Use {known}.")
    check_matplotlib()


def check_matplotlib() -> None:
    """Raise UsageError if matplotlib is not installed, without importing it."""
    if find_spec("matplotlib") is None:
        raise UsageError(
            "figures", "matplotlib is not installed", "Install it: pip install 'tf-alexnet[plot]'."
        )


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as PNG, JPEG, WebP, SVG or PDF, atomically.

    Raises
    ------
    UsageError, OutputError
        As `check_figure`.
    """
    check_figure(path)
    suffix = Path(path).suffix.lower()
    if suffix not in VECTOR:
        save_picture(picture_of(figure), path)
        return
    about = {"Creator": MARK, "Date" if suffix == ".svg" else "CreationDate": None}
    with replacing(path) as temporary:
        figure.savefig(os.fspath(temporary), format=suffix[1:], metadata=about)


def picture_of(figure: Figure) -> Image.Image:
    """Render a figure to RGB pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def label(text: object, longest: int = _LONGEST) -> str:
    """Shorten a name to a one-line label, and escape ``$``, which would start math text."""
    text = one_line(str(text))
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")


def show(axes: Any, pixels: np.ndarray, title: str = "", **settings: Any) -> Any:
    """Draw an array of pixels, (H, W) or (H, W, 3), without ticks."""
    image = axes.imshow(pixels, **settings)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title, fontsize=9, color=INK)
    return image


def shrunk(pixels: np.ndarray, longest: int = _PIXELS) -> np.ndarray:
    """Downscale uint8 pixels whose longer side exceeds `longest`."""
    if max(pixels.shape[:2]) <= longest:
        return pixels
    picture = Image.fromarray(pixels)
    picture.thumbnail((longest, longest))
    return np.asarray(picture)


def colormap(name: str) -> Any:
    """A `color_table` as a matplotlib colour map."""
    from matplotlib.colors import ListedColormap

    return ListedColormap(color_table(name) / 255, name=name)


def color_bar(
    figure: Figure, axes: Any, name: str, low: float, high: float, title: str, where: str = "bottom"
) -> None:
    """Add a colour bar for pixels coloured with `colored`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    values = ScalarMappable(Normalize(low, high), colormap(name))
    place = {"location": where, "fraction": 0.05, "pad": 0.02, "aspect": 30, "panchor": False}
    place["ticks"] = MaxNLocator(6)  # more would overlap
    bar = figure.colorbar(values, ax=axes, **place)
    bar.outline.set_visible(False)
    bar.set_label(title, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, length=3)
