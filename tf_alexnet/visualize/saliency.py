"""Saliency maps: which pixels the score of a class depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from tf_alexnet.errors import InputError, UsageError
from tf_alexnet.images import load_image
from tf_alexnet.visualize.colors import colored
from tf_alexnet.visualize.explainer import Explainer
from tf_alexnet.visualize.figures import INK, PALE, color_bar, label, new_figure, show, shrunk
from tf_alexnet.visualize.geometry import Placement, cell_centres

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("gradcam", "gradient", "smoothgrad", "integrated", "occlusion", "guided")
SIGNED = ("integrated", "occlusion")
BASELINES = ("mean", "black", "blur")
GAP_LIMIT = 0.05  # completeness gap above which integrated gradients are unreliable
GUIDED_NOTE = (
    "guided backpropagation shows what the lower layers see; it depends little on the class "
    "(Adebayo et al. 2018)"
)
_READINGS = {  # titles of the colour bar
    "gradcam": "weighted activation",
    "gradient": "|gradient of the score|",
    "smoothgrad": "mean |gradient of the score|",
    "integrated": "contribution to the score (red supports the class)",
    "occlusion": "drop in score when covered (red supports the class)",
    "guided": "|guided gradient|",
}
_LIMIT = 99  # percentile at which the colours saturate
_BLUR = 1 / 20  # standard deviation of the blurred baseline, relative to the input's side

Progress = Callable[[str, int, int, dict], None]


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """Saliency map of a photo.

    Attributes
    ----------
    values : ndarray of float32, (H, W)
        One per pixel of the photo or the crop; NaN outside the network's input.
    class_index : int
        The class, or the channel of `pool5` for weights without a classifier.
    score : float
        Logit of the class, or mean of the channel.
    completeness_gap : float or None
        For integrated gradients: deviation of their sum from the difference in score between photo
        and baseline, relative to that difference. Above 0.05, use more steps.
    method : str
    cells : ndarray of float32, (h, w)
        The values before interpolation.
    rows, columns : ndarray of float, (h,) and (w,)
        Positions of the cells in the input, in pixels.
    """

    values: np.ndarray
    class_index: int
    score: float
    completeness_gap: float | None
    method: str = ""
    cells: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0))
    columns: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __repr__(self) -> str:
        return (
            f"<SaliencyMap {self.method} {self.values.shape} of class {self.class_index}, "
            f"score {self.score:.3g}>"
        )

    @property
    def signed(self) -> bool:
        """Whether negative values count against the class."""
        return self.method in SIGNED

    @property
    def colors(self) -> str:
        """Name of its colour map."""
        return "diverging" if self.signed else "viridis"

    @property
    def constant(self) -> bool:
        """Whether all pixels have the same value."""
        seen = self.values[np.isfinite(self.values)]
        return not seen.size or float(seen.min()) == float(seen.max())

    @property
    def limits(self) -> tuple[float, float]:
        """Range of the colours: to the 99th percentile, symmetric about 0 for signed maps."""
        seen = np.abs(self.values[np.isfinite(self.values)])
        high = float(np.percentile(seen, _LIMIT)) if seen.size else 0.0
        high = high or float(seen.max(initial=0)) or 1.0
        return (-high if self.signed else 0.0), high


def saliency_map(
    model: Explainer | Any,
    image: np.ndarray | Any,
    method: str = "gradcam",
    target_class: int | None = None,
    *,
    layer: str = "conv5",
    baseline: str = "mean",
    samples: int = 25,
    noise: float = 0.15,
    steps: int = 64,
    patch: int = 16,
    stride: int = 8,
    seed: int = 0,
    target: str = "photo",
    progress: Progress | None = None,
) -> SaliencyMap:
    """Compute how much each pixel of a photo matters for the score of a class.

    Parameters
    ----------
    model : Explainer, or what `Explainer` takes
        The network.
    image : ndarray of uint8, (H, W, 3), or what `load_image` takes
        RGB.
    method : str
        ``gradcam``: ReLU of the sum of `layer`'s channels, weighted by their mean gradient
        (Selvaraju et al. 2017). ``gradient``: maximum absolute gradient over the channels
        (Simonyan et al. 2013). ``smoothgrad``: mean absolute gradient of noisy copies, then the
        maximum over the channels (Smilkov et al. 2017). ``integrated``: integrated gradients,
        summed over the channels, signed (Sundararajan et al. 2017). ``occlusion``: drop in score
        when a square is covered with the mean colour, signed (Zeiler and Fergus 2014). ``guided``:
        as ``gradient``, through ReLUs that pass positive gradients only (Springenberg et al. 2014);
        it depends little on the class (Adebayo et al. 2018).
    target_class : int, optional
        By default the class with the highest score.
    layer : str
        Layer of Grad-CAM.
    baseline : {"mean", "black", "blur"}
        Start of integrated gradients: the mean colour, black, or the blurred photo.
    samples, noise : int, float
        Copies of SmoothGrad, and the standard deviation of their noise relative to the range of
        the input.
    steps : int
        Gauss-Legendre points of integrated gradients.
    patch, stride : int
        Side and step of the covering square, in pixels.
    seed : int
        Random seed of SmoothGrad.
    target : {"photo", "crop"}
        Whether the map covers the photo, or the network's input.
    progress : callable, optional
        Called with ``("occlusion", done, total, {})``.

    Returns
    -------
    SaliencyMap

    Raises
    ------
    UsageError, InputError, LayerError
        If a method, class, layer or other setting is invalid.
    """
    if target not in ("photo", "crop"):
        raise UsageError(f"target {target!r}", "unknown", "Use photo or crop.")
    explainer = model if isinstance(model, Explainer) else Explainer(model)
    image = image if isinstance(image, np.ndarray) else load_image(image)
    task = Task(layer, baseline, samples, noise, steps, patch, stride, seed, progress)
    x = explainer.preprocess(image)
    explainer.crop(image)
    scores = explainer.scores(x)[0]
    index = int(scores.argmax()) if target_class is None else explainer.check_class(target_class)
    cells, rows, columns, gap = task.run(method, explainer, image, x, index)
    size = explainer.table.input_size
    placement = Placement.of_crop(size)
    if target == "photo":
        placement = Placement.of(*image.shape[:2], explainer.preset, size)
    values = placement.onto_photo(cells, rows, columns)
    return SaliencyMap(values, index, float(scores[index]), gap, method, cells, rows, columns)


@dataclass(frozen=True)
class Task:
    """Settings of all methods, as in `saliency_map`."""

    layer: str = "conv5"
    baseline: str = "mean"
    samples: int = 25
    noise: float = 0.15
    steps: int = 64
    patch: int = 16
    stride: int = 8
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self):
        if self.baseline not in BASELINES:
            known = ", ".join(BASELINES)
            raise UsageError(f"baseline {self.baseline!r}", "unknown", f"Use one of {known}.")
        for name in ("samples", "steps", "patch", "stride"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}", "not positive", "Give 1 or more.")

    def run(
        self, method: str, explainer: Explainer, image: np.ndarray, x: np.ndarray, index: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, float | None]:
        """Cells (h, w), their rows and columns in the input, and the completeness gap.

        Parameters
        ----------
        method, explainer, image
            As in `saliency_map`.
        x : ndarray of float32, (1, S, S, 3)
            The preprocessed image.
        index : int
            The class.
        """
        check_method(method)
        points = np.arange(x.shape[1], dtype=np.float64)
        gap = None
        if method == "gradcam":
            cells = self._gradcam(explainer, x, index)
            points = cell_centres(explainer.table, self.layer)
        elif method == "occlusion":
            cells, points = self._occlusion(explainer, x, index)
        elif method == "integrated":
            cells, gap = self._integrated(explainer, image, x, index)
        elif method == "smoothgrad":
            cells = self._smoothgrad(explainer, x, index)
        else:
            compute = explainer.gradient if method == "gradient" else explainer.guided_gradient
            cells = np.abs(compute(x, index)[0]).max(axis=-1)
        return cells.astype(np.float32), points, points, gap

    def _gradcam(self, explainer: Explainer, x: np.ndarray, index: int) -> np.ndarray:
        blob, gradient = explainer.blob_and_gradient(x, index, self.layer)
        weights = gradient[0].mean(axis=(0, 1), dtype=np.float64)
        return np.maximum(blob[0].astype(np.float64) @ weights, 0)

    def _smoothgrad(self, explainer: Explainer, x: np.ndarray, index: int) -> np.ndarray:
        deviation = self.noise * float(x.max() - x.min())
        generator = np.random.default_rng(self.seed)
        shape = (self.samples, *x.shape[1:])
        noisy = x + deviation * generator.standard_normal(shape, np.float32)
        gradients = np.abs(explainer.gradient(noisy.astype(np.float32), index))
        return gradients.mean(axis=0, dtype=np.float64).max(axis=-1)

    def _integrated(
        self, explainer: Explainer, image: np.ndarray, x: np.ndarray, index: int
    ) -> tuple[np.ndarray, float]:
        start = self._start(explainer, image, x)
        places, weights = np.polynomial.legendre.leggauss(self.steps)
        places, weights = (places + 1) / 2, weights / 2  # from -1..1 to 0..1
        path = start + places[:, None, None, None].astype(np.float32) * (x - start)
        gradients = explainer.gradient(path.astype(np.float32), index)
        mean = np.tensordot(weights, gradients.astype(np.float64), 1)
        parts = (x - start)[0].astype(np.float64) * mean
        ends = explainer.scores(np.concatenate([start, x]))[:, index].astype(np.float64)
        change = ends[1] - ends[0]
        gap = abs(parts.sum() - change) / abs(change) if change else float(bool(parts.any()))
        return parts.sum(axis=-1), gap

    def _start(self, explainer: Explainer, image: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The baseline, preprocessed."""
        if self.baseline == "mean":
            return filler(explainer, x)
        if self.baseline == "black":
            return explainer.preprocess(np.zeros_like(image))
        deviation = x.shape[1] * _BLUR
        blurred = cv2.GaussianBlur(x[0], (0, 0), deviation, borderType=cv2.BORDER_REPLICATE)
        return blurred[None]

    def _occlusion(
        self, explainer: Explainer, x: np.ndarray, index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        size, fill = x.shape[1], filler(explainer, x)[0]
        patch = min(self.patch, size)
        starts = [*range(0, size - patch, self.stride), size - patch]
        corners = [(top, left) for top in starts for left in starts]
        whole, falls = float(explainer.scores(x)[0, index]), []
        for first in range(0, len(corners), 64):
            some = corners[first : first + 64]
            covered = np.repeat(x, len(some), axis=0)
            for picture, (top, left) in zip(covered, some, strict=True):
                region = np.s_[top : top + patch, left : left + patch]
                picture[region] = fill[region]
            falls.append(whole - explainer.scores(covered)[:, index].astype(np.float64))
            if self.progress:
                self.progress("occlusion", first + len(some), len(corners), {})
        centres = np.array(starts, np.float64) + (patch - 1) / 2
        return np.concatenate(falls).reshape(len(starts), len(starts)), centres


def check_method(method: str) -> str:
    """Return `method`; raise UsageError if it is unknown."""
    if method not in METHODS:
        raise UsageError(f"method {method!r}", "unknown", f"Use one of {', '.join(METHODS)}.")
    return method


def filler(explainer: Explainer, x: np.ndarray) -> np.ndarray:
    """The mean colour in the network's input: 0, or that of the photo for a raw preset."""
    if explainer.preset.is_raw:
        return np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape).astype(np.float32)
    return np.zeros_like(x)


def overlay(image: np.ndarray, found: SaliencyMap | np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Blend a saliency map over its photo.

    Unsigned maps use viridis from 0, signed ones blue through white (0) to red; the colours
    saturate at the 99th percentile.

    Parameters
    ----------
    image : ndarray of uint8, (H, W, 3)
        RGB: the photo, or its crop for a map made with ``target="crop"``.
    found : SaliencyMap, or ndarray of float (H, W)
        An array is signed if it has negative values.
    alpha : float
        Weight of the colours; 0 shows the photo alone.

    Returns
    -------
    ndarray of uint8, (H, W, 3)
        RGB. The photo is unchanged where the map is NaN, and everywhere if it is constant.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    if not isinstance(found, SaliencyMap):
        values = np.asarray(found, np.float32)
        method = "occlusion" if np.nanmin(values, initial=0) < 0 else "gradient"
        found = SaliencyMap(values, -1, float("nan"), None, method)
    if image.shape != (*found.values.shape, 3):
        raise InputError(
            f"overlay on an image of shape {image.shape}",
            f"the map has {found.values.shape[0]}x{found.values.shape[1]} pixels",
            "Give the photo that the map was made of, or its crop.",
        )
    if found.constant:
        return image.copy()
    colors = colored(found.values, found.colors, *found.limits)
    mixed = image * np.float32(1 - alpha) + colors * np.float32(alpha)
    seen = np.isfinite(found.values)[..., None]
    return np.where(seen, np.rint(mixed).astype(np.uint8), image)


def saliency_figure(
    image: np.ndarray,
    found: SaliencyMap,
    *,
    name: str = "",
    class_title: str = "",
    alpha: float = 0.5,
) -> Figure:
    """Plot the photo, and the map over it with a colour bar.

    Parameters
    ----------
    image, found, alpha
        As in `overlay`.
    name : str
        Name of the photo, for the title.
    class_title : str
        Title of the class, as from `Explainer.title`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    height, width = image.shape[:2]
    tall = height > width / 2
    ratio = min(4.0, max(0.25, height / width))
    size = (9.6, 4.6 * min(ratio, 1.6) + 1.3) if tall else (8.0, 15 * ratio + 1.9)
    figure = new_figure(*size)
    panels = figure.subplots(1, 2) if tall else figure.subplots(2, 1)
    aspect = "equal" if 0.25 < height / width < 4 else "auto"
    low, high = found.limits
    for axes, pixels in zip(panels, (image, overlay(image, found, alpha)), strict=True):
        show(axes, shrunk(pixels), aspect=aspect)
        axes.set_anchor("N")  # aligned, although one has a colour bar
    what = class_title or f"class {found.class_index}"
    figure.suptitle(
        f"{label(name, 60)}\n{found.method}, {label(what, 60)}, score {found.score:.4g}".strip(),
        fontsize=10,
        color=INK,
    )
    if found.method == "guided":
        figure.supxlabel(GUIDED_NOTE, fontsize=8, color=PALE)
    if found.constant:
        seen = found.values[np.isfinite(found.values)]
        value = f"{seen[0]:.3g}" if seen.size else "nothing"
        panels[1].set_xlabel(f"the map is constant ({value})", color=INK)
        return figure
    color_bar(figure, panels[1], found.colors, low, high, _READINGS[found.method])
    return figure
