"""Which pixels a class's score depends on: six methods, one kind of map."""

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
GAP_LIMIT = 0.05  # completeness gap above which integrated gradients should not be trusted
GUIDED_NOTE = (
    "guided backpropagation shows what the lower layers see; it depends little on the class "
    "(Adebayo et al. 2018)"
)
_READINGS = {  # what the numbers at the colour bar are
    "gradcam": "weighted activation",
    "gradient": "|gradient of the score|",
    "smoothgrad": "mean |gradient of the score|",
    "integrated": "part of the score (red speaks for the class)",
    "occlusion": "fall of the score when covered (red speaks for the class)",
    "guided": "|guided gradient|",
}
_LIMIT = 99  # percentile of the values at which colours end
_BLUR = 1 / 20  # standard deviation of the blurred baseline, as a part of the input's side

Progress = Callable[[str, int, int, dict], None]


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """What a method says about a photo.

    Attributes
    ----------
    values : ndarray of float32, (H, W)
        On the pixels of the photo, or of the crop; NaN where the network does not see the photo.
    class_index : int
        The class, or the channel of `pool5` where the network has no classes.
    score : float
        Its logit, or the channel's mean.
    completeness_gap : float or None
        Of integrated gradients: how far their sum is from the difference of the scores of photo and
        baseline, as a part of that difference. Above 0.05 the steps are too few.
    method : str
    cells : ndarray of float32, (h, w)
        The values before they were interpolated, in the input's orientation.
    rows, columns : ndarray of float, (h,) and (w,)
        Pixels of the input at which the cells stand.
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
        """Whether values below zero speak against the class."""
        return self.method in SIGNED

    @property
    def colors(self) -> str:
        """The colour map that it is drawn in."""
        return "diverging" if self.signed else "viridis"

    @property
    def constant(self) -> bool:
        """Whether all pixels have the same value, so that the map says nothing."""
        seen = self.values[np.isfinite(self.values)]
        return not seen.size or float(seen.min()) == float(seen.max())

    @property
    def limits(self) -> tuple[float, float]:
        """Values at which the colours end: the 99th percentile, of signed maps symmetric to 0."""
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
    """How much each pixel of a photo matters for the score of a class.

    Parameters
    ----------
    model : Explainer, or what `Explainer` takes
        The network.
    image : ndarray of uint8, (H, W, 3), or what `load_image` takes
        RGB.
    method : str
        ``gradcam``: channels of `layer`, weighted by the mean of their gradient, added, and what is
        below 0 left out (Selvaraju et al. 2017). ``gradient``: largest absolute gradient of the
        three channels (Simonyan et al. 2013). ``smoothgrad``: the same of the mean of absolute
        gradients of noisy copies (Smilkov et al. 2017). ``integrated``: integrated gradients, added
        over the channels, signed (Sundararajan et al. 2017). ``occlusion``: by how much the score
        falls when a square is covered with the mean colour, signed (Zeiler and Fergus 2014).
        ``guided``: the gradient through ReLUs that pass positive gradients only; it depends little
        on the class (Adebayo et al. 2018).
    target_class : int, optional
        By default the class of the highest score.
    layer : str
        Of Grad-CAM.
    baseline : {"mean", "black", "blur"}
        Where integrated gradients start: the mean colour, black, or the blurred photo.
    samples, noise : int, float
        Copies of SmoothGrad, and the standard deviation of their noise as a part of the range of
        the input's values.
    steps : int
        Gauss-Legendre points of integrated gradients.
    patch, stride : int
        Side of the square that covers, and pixels from one to the next.
    seed : int
        Of SmoothGrad's noise.
    target : {"photo", "crop"}
        Pixels of the result: of the photo, or of the network's input.
    progress : callable, optional
        Called with ``("occlusion", done, total, {})``.

    Returns
    -------
    SaliencyMap

    Raises
    ------
    UsageError, InputError, LayerError
        If there is no such method, class, layer or baseline.
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
    """The settings of all methods; arguments as in `saliency_map`."""

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
        """Cells (h, w), the input's pixels at which they stand, and the completeness gap.

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
    """`method`, if there is such a one (UsageError otherwise)."""
    if method not in METHODS:
        raise UsageError(f"method {method!r}", "unknown", f"Use one of {', '.join(METHODS)}.")
    return method


def filler(explainer: Explainer, x: np.ndarray) -> np.ndarray:
    """The mean colour as the network takes it: 0, unless the preset subtracts no mean."""
    if explainer.preset.is_raw:
        return np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape).astype(np.float32)
    return np.zeros_like(x)


def overlay(image: np.ndarray, found: SaliencyMap | np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """A saliency map in colours over its photo.

    Maps that are never negative are drawn in viridis from 0 on, signed ones from blue through white
    (zero) to red; colours end at the 99th percentile.

    Parameters
    ----------
    image : ndarray of uint8, (H, W, 3)
        RGB: the photo, or its crop for a map made with ``target="crop"``.
    found : SaliencyMap, or ndarray of float (H, W)
        An array counts as signed if it has values below 0.
    alpha : float
        Weight of the colours; 0 shows the photo alone.

    Returns
    -------
    ndarray of uint8, (H, W, 3)
        RGB. The photo stays as it is where the map is NaN, and all of it if the map is constant.

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
    """The photo, and the map over it with a colour bar.

    Parameters
    ----------
    image, found, alpha
        As in `overlay`.
    name : str
        Of the photo, for the title.
    class_title : str
        The class in words, as of `Explainer.title`.

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
        axes.set_anchor("N")  # in line, though one has a colour bar
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
        panels[1].set_xlabel(f"the map is {value} everywhere: it says nothing", color=INK)
        return figure
    color_bar(figure, panels[1], found.colors, low, high, _READINGS[found.method])
    return figure
