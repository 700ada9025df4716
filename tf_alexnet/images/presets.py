"""Presets: the preprocessing pipelines that networks were trained with, by name.

A `Preset` holds the numbers of its steps: resize, crop, channel order, divisor, mean and standard
deviation. With the wrong preset a network still runs, but is less accurate, so each constant is
defined once, here, with its source. Files and models record a preset by its name alone, which
includes variations: ``caffe.size224`` crops to 224 instead of 227, ``caffe.mean104-117-123``
subtracts other means (in the preset's channel order), ``caffe.anysize`` neither resizes nor crops.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from tf_alexnet.architectures import carried_preset
from tf_alexnet.errors import PresetError, UsageError

# Channel means, BGR, of BVLC/caffe python/caffe/imagenet/ilsvrc_2012_mean.npy.
CAFFE_MEAN = (104.00698793, 116.66876762, 122.67891434)
_IMAGENET = {"divisor": 255.0, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

MEAN_IMAGE = "mean image"
OWN_MEAN = "own mean"

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_VARIATION = re.compile(rf"\.(?:size(\d{{1,5}})|(anysize)|mean{_NUMBER}-{_NUMBER}-{_NUMBER})", re.A)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A network's preprocessing: ``(pixels / divisor - mean) / std`` after resize and crop.

    Two presets are equal if their numbers are; `name` and `source` are not compared.

    Attributes
    ----------
    name, source : str
        Name used in calls and files, and where the numbers come from.
    size : int or None
        Height and width of the output; None to neither resize nor crop.
    resized : int
        Side to resize to, before the centre crop to `size` (default: `size`).
    keep_aspect : bool
        If True, `resized` is the shorter side; otherwise photos are squashed to a square.
    antialias : bool
        If True, resize like Pillow (antialiased bilinear); otherwise like OpenCV, as Caffe does.
    channels : {"BGR", "RGB"}
        Channel order of the output.
    divisor : float
        Divisor of the pixels, which are 0..255.
    mean : 3 floats, "mean image" or "own mean"
        One value per channel (in the order of `channels`), an image passed by the caller, or each
        photo's mean over all pixels and channels.
    std : 3 floats or None
        Standard deviation of each channel.

    Raises
    ------
    PresetError
        If a value is invalid.

    Examples
    --------
    >>> mine = Preset("mine", size=224, resized=256, channels="BGR", mean=(104, 117, 123))
    """

    name: str = field(compare=False, kw_only=False)
    source: str = field(default="", compare=False, kw_only=False)
    size: int | None = None
    resized: int = 0
    keep_aspect: bool = False
    antialias: bool = False
    channels: Literal["BGR", "RGB"] = "RGB"
    divisor: float = 1.0
    mean: tuple[float, float, float] | str = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] | None = None

    def __post_init__(self):
        own = object.__setattr__  # frozen
        own(self, "resized", 0 if self.size is None else self.resized or self.size)
        if not isinstance(self.mean, str):
            own(self, "mean", self._numbers("mean", self.mean))
        if self.std is not None:
            own(self, "std", self._numbers("std", self.std))
        faults = {
            "size": self.size is not None and not (_is_whole(self.size) and self.size > 0),
            "resized": not _is_whole(self.resized) or self.resized < (self.size or 0),
            "channels": self.channels not in ("BGR", "RGB"),
            "divisor": not 0 < self.divisor < math.inf,
            "mean": isinstance(self.mean, str) and self.mean not in (MEAN_IMAGE, OWN_MEAN),
            "std": self.std is not None and min(self.std) <= 0,
        }
        asked = f"preset {self.name!r}"
        for name, faulty in faults.items():
            if faulty:
                raise PresetError(asked, f"{name}={getattr(self, name)!r}", _FIELD_ADVICE)
        white = 255 / self.divisor
        if not isinstance(self.mean, str) and max(map(abs, self.mean)) > white:
            found = f"mean={self.mean}, but its pixels lie in 0..{white:g}"
            raise PresetError(asked, found, "Give the means after the division by `divisor`.")

    def __repr__(self) -> str:
        return f"<Preset {self.name}: {', '.join(self._steps())}>"

    def _steps(self) -> Iterator[str]:
        """Its steps in words, in order."""
        if self.is_raw:
            yield "conversion to float32"
            return
        if self.size is not None:
            how = "shorter side to" if self.keep_aspect else "squash to"
            yield f"{how} {self.resized}" + (" (antialiased)" if self.antialias else "")
        if self.crops:
            yield f"centre crop {self.size}"
        yield self.channels
        if self.divisor != 1:
            yield f"divided by {self.divisor:g}"
        if isinstance(self.mean, str):
            yield (
                f"minus the photo's {OWN_MEAN}"
                if self.mean == OWN_MEAN
                else f"minus a {MEAN_IMAGE}"
            )
        elif any(self.mean):
            yield "minus " + "/".join(f"{x:.6g}" for x in self.mean)
        if self.std is not None:
            yield "divided by " + "/".join(f"{x:.6g}" for x in self.std)

    def _numbers(self, name: str, values: Any) -> tuple[float, float, float]:
        try:
            numbers = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
            raise PresetError(f"preset {self.name!r}", f"{name}={values!r}", "Give three numbers.")
        return numbers

    @property
    def crops(self) -> bool:
        """Whether it crops, after resizing to more than `size`."""
        return self.size is not None and self.resized > self.size

    @property
    def is_raw(self) -> bool:
        """Whether it only converts to float32, like "raw"."""
        return self == PRESETS["raw"]


_FIELD_ADVICE = (
    "Give size and resized in pixels (resized at least size), channels 'BGR' or 'RGB', a positive "
    "divisor and std, and three means, 'mean image' or 'own mean'."
)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


# Name, source, numbers.
_ROWS = (
    (
        "caffe",
        "models/bvlc_alexnet/train_val.prototxt and python/caffe/io.py of BVLC/caffe",
        {"size": 227, "resized": 256, "channels": "BGR", "mean": CAFFE_MEAN},
    ),
    (
        "caffe-mean-image",
        "models/bvlc_alexnet/train_val.prototxt and data_transformer.cpp of BVLC/caffe",
        {"size": 227, "resized": 256, "channels": "BGR", "mean": MEAN_IMAGE},
    ),
    (
        "squash",
        "examples/00-classification.ipynb of BVLC/caffe",
        {"size": 227, "channels": "BGR", "mean": CAFFE_MEAN},
    ),
    (
        "kratzert",
        "kratzert/finetune_alexnet_with_tensorflow",
        {"size": 227, "channels": "BGR", "mean": (104.0, 117.0, 124.0)},
    ),
    (
        "udacity",
        "udacity/CarND-Alexnet-Feature-Extraction",
        {"size": 227, "mean": OWN_MEAN},
    ),
    (
        "torchvision",
        "AlexNet_Weights.IMAGENET1K_V1 of torchvision",
        {"size": 224, "resized": 256, "keep_aspect": True, "antialias": True, **_IMAGENET},
    ),
    (
        "compact",
        "Test2_alexnet of WZMIAOMIAO/deep-learning-for-image-processing, validation",
        {"size": 224, "antialias": True, "divisor": 255.0, "mean": [0.5] * 3, "std": [0.5] * 3},
    ),
    ("raw", "for photos that are already preprocessed", {}),
)
PRESETS = {name: Preset(name, source, **numbers) for name, source, numbers in _ROWS}


def preset_named(name: str) -> Preset:
    """The preset called `name`: one of `PRESETS`, or a variation such as ``caffe.size224``.

    Raises
    ------
    PresetError
        If there is none; the message lists the known names.
    """
    base = name.partition(".")[0]
    preset, found = PRESETS.get(base), [*_VARIATION.finditer(name, len(base))]
    if preset is None or base + "".join(x[0] for x in found) != name:
        advice = "or a variation: caffe.size224, caffe.mean104-117-123, caffe.anysize."
        advice = f"Use one of: {', '.join(PRESETS)}; {advice}"
        raise PresetError(f"preset {name!r}", "there is no such preset", advice)
    for size, any_size, *mean in (x.groups() for x in found):
        mean = [float(number) for number in mean] if mean[0] else None
        preset = vary(preset, size=size and int(size), mean=mean, any_size=bool(any_size))
    return preset


def as_preset(preset: Any) -> Preset:
    """The preset for a name, a `Preset`, or a model that records one.

    Raises
    ------
    PresetError, UsageError
        If there is no such preset, or a model records none or has a `Preprocessing` layer.
    """
    if isinstance(preset, Preset):
        return preset
    if isinstance(preset, str):
        return preset_named(preset)
    names = ", ".join(PRESETS)
    if not (hasattr(preset, "layers") or hasattr(preset, "signatures")):
        asked, found = type(preset).__name__, "it is neither a name, nor a Preset, nor a model"
        raise PresetError(f"preset of type {asked}", found, f"Use one of: {names}.")
    asked = f"model {getattr(preset, 'name', type(preset).__name__)!r}"
    if _preprocesses(preset):
        found = "it has a Preprocessing layer"
        raise UsageError(asked, found, "Pass the photos to the model directly.")
    if name := carried_preset(preset):
        return preset_named(name)
    raise UsageError(asked, "it records no preset", f"Name the one it was trained with: {names}.")


def _preprocesses(model: Any) -> bool:
    """Whether a model has a `Preprocessing` layer, without importing Keras."""
    layers = getattr(model, "layers", ())
    return any(isinstance(getattr(x, "preset", None), Preset) or _preprocesses(x) for x in layers)


def vary(
    preset: str | Preset,
    *,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    any_size: bool = False,
) -> Preset:
    """A preset with another size or other channel means, named accordingly.

    Parameters
    ----------
    preset : str or Preset
        The preset to start from.
    size : int, optional
        Height and width of the output. A preset that crops still resizes to the same side first,
        unless `size` is larger.
    mean : sequence of 3 floats, optional
        Channel means, in the preset's channel order and after its division.
    any_size : bool
        If True, neither resize nor crop.

    Returns
    -------
    Preset
        Its `name` is canonical: that of the base preset if nothing differs.

    Raises
    ------
    PresetError
        If means are given for "raw", or a value is invalid.
    """
    preset = as_preset(preset)
    if preset.is_raw:
        if mean is not None:
            advice = "Use another preset, or leave the mean out."
            raise PresetError("preset 'raw'", "it subtracts no mean", advice)
        return preset  # takes any size
    base = PRESETS.get(preset.name.partition(".")[0], preset)
    if any_size:
        preset = replace(preset, size=None)
    elif size is not None:
        resized = max(base.resized, size) if base.crops else size
        preset = replace(preset, size=size, resized=resized)
    if mean is not None:
        preset = replace(preset, mean=mean)
    if preset.name.partition(".")[0] not in PRESETS:
        return preset
    name = base.name
    if preset.size != base.size:
        name += ".anysize" if preset.size is None else f".size{preset.size}"
    if preset.mean != base.mean and not isinstance(preset.mean, str):
        # 104.0 -> "104", 1e-07 -> "0.0000001"
        name += ".mean" + "-".join(np.format_float_positional(m, trim="-") for m in preset.mean)
    return replace(preset, name=name)


def recorded_name(preset: str | Preset) -> str:
    """The canonical name by which files, models and jobs record a preset.

    Raises
    ------
    PresetError
        If no name describes the preset, as is the case for most custom ones.
    """
    preset = as_preset(preset)
    if preset.is_raw:
        return "raw"
    mean = None if isinstance(preset.mean, str) else preset.mean
    bases = [p for p in PRESETS.values() if p.divisor == preset.divisor and not p.is_raw]
    any_size = preset.size is None
    varied = [vary(base, size=preset.size, mean=mean, any_size=any_size) for base in bases]
    if names := [same.name for same in varied if same == preset]:
        return min(names, key=len)  # "kratzert", not "squash.mean104-117-124"
    found = "it can't be recorded by name: it is not a variation of a known preset"
    advice = "Use it with preprocess_input or Preprocessing."
    raise PresetError(f"preset {preset.name!r}", found, advice)


def preset_mismatch(preset: Preset, trained: Preset) -> str | None:
    """Why a network trained with the preset `trained` can't be used with `preset`, or None.

    Sizes are not compared: the network itself checks them.
    """
    span, wanted = _span(preset), _span(trained)
    alike = preset.channels == trained.channels and max(span, wanted) < 1.5 * min(span, wanted)
    if preset.is_raw or trained.is_raw or alike:
        return None
    given = f"preset {preset.name!r} gives {preset.channels} values over a range of {span:.3g}"
    right = f"the network was trained on {trained.channels} values over a range of {wanted:.3g}"
    return f"{given}, but {right} (preset {trained.name!r})"


def _span(preset: Preset) -> float:
    """The difference between white and black after preprocessing."""
    return 255 / preset.divisor / (np.mean(preset.std) if preset.std else 1)
