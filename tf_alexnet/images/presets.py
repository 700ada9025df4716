"""From uint8 RGB to what a network was trained on: the pipelines in the field, by name.

Each `Preset` says in numbers what is done: resize, crop, channel order, divisor, mean, deviation.
A network given another preset's pixels still answers, only worse; hence the constants stand here
once, each with its source.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Literal

import numpy as np

from tf_alexnet.errors import InputError, PresetError
from tf_alexnet.images.decode import MAX_PIXELS
from tf_alexnet.images.resize import (
    resize_opencv,
    resize_pillow,
    reverse_channels,
    shorter_side_size,
)

# Channel means, BGR, of BVLC/caffe python/caffe/imagenet/ilsvrc_2012_mean.npy.
CAFFE_MEAN = (104.00698793, 116.66876762, 122.67891434)

MEAN_IMAGE = "mean image"
OWN_MEAN = "own mean"
MEAN_IMAGE_SHAPE = (3, 256, 256)

CALLER = "preprocess_input"


@dataclass(frozen=True)
class Preset:
    """A network's preprocessing, as a record.

    Attributes
    ----------
    name, title, source : str
        The name used in calls and files, the pipeline in a line, and where it comes from.
    size : int or None
        Height and width of the result; None for a preset that changes nothing.
    resized : int
        The side resized to, before the centre crop of `size`.
    keep_aspect : bool
        Whether `resized` is the shorter side; otherwise the picture is squashed to a square.
    antialias : bool
        Pillow's antialiased bilinear resize; otherwise OpenCV's, which Caffe uses.
    channels : {"BGR", "RGB"}
        Channel order of the result.
    divisor : float
        What 0..255 is divided by first.
    mean : 3 floats, `MEAN_IMAGE` or `OWN_MEAN`
        Subtracted: a value a channel (in the order of `channels`, after the division), an image
        that the caller brings, or the picture's own mean over all pixels and channels.
    std : 3 floats or None
        What is divided by at last.
    """

    name: str
    title: str
    source: str
    size: int | None
    resized: int = 0
    keep_aspect: bool = False
    antialias: bool = False
    channels: Literal["BGR", "RGB"] = "RGB"
    divisor: float = 1.0
    mean: tuple[float, float, float] | str = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] | None = None

    @property
    def crops(self) -> bool:
        """Whether the result is cut out of a larger picture."""
        return self.size is not None and self.resized > self.size


_ROWS = (
    Preset(
        name="caffe",
        title="squash to 256, centre crop 227, BGR, minus the channel mean",
        source="models/bvlc_alexnet/train_val.prototxt and python/caffe/io.py of BVLC/caffe",
        size=227,
        resized=256,
        channels="BGR",
        mean=CAFFE_MEAN,
    ),
    Preset(
        name="caffe-mean-image",
        title="squash to 256, centre crop 227, BGR, minus the mean image cropped alike",
        source="models/bvlc_alexnet/train_val.prototxt and data_transformer.cpp of BVLC/caffe",
        size=227,
        resized=256,
        channels="BGR",
        mean=MEAN_IMAGE,
    ),
    Preset(
        name="squash",
        title="squash to 227, BGR, minus the channel mean",
        source="examples/00-classification.ipynb of BVLC/caffe",
        size=227,
        resized=227,
        channels="BGR",
        mean=CAFFE_MEAN,
    ),
    Preset(
        name="kratzert",
        title="squash to 227, BGR, minus 104/117/124",
        source="kratzert/finetune_alexnet_with_tensorflow",
        size=227,
        resized=227,
        channels="BGR",
        mean=(104.0, 117.0, 124.0),
    ),
    Preset(
        name="udacity",
        title="squash to 227, RGB, minus the picture's own mean (for conv1 padded SAME)",
        source="udacity/CarND-Alexnet-Feature-Extraction",
        size=227,
        resized=227,
        mean=OWN_MEAN,
    ),
    Preset(
        name="torchvision",
        title="shorter side to 256 (antialiased), centre crop 224, RGB 0..1, ImageNet mean and std",
        source="AlexNet_Weights.IMAGENET1K_V1 of torchvision",
        size=224,
        resized=256,
        keep_aspect=True,
        antialias=True,
        divisor=255.0,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    Preset(
        name="compact",
        title="squash to 224 (antialiased), RGB -1..1",
        source="Test2_alexnet of WZMIAOMIAO/deep-learning-for-image-processing, validation",
        size=224,
        resized=224,
        antialias=True,
        divisor=255.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    Preset(
        name="raw",
        title="float32 of what came in",
        source="for pictures that are preprocessed already",
        size=None,
    ),
)

PRESETS = {preset.name: preset for preset in _ROWS}


def preset_named(name: str) -> Preset:
    """The preset called `name`.

    Raises
    ------
    PresetError
        If there is none; the message lists the known ones.
    """
    if name not in PRESETS:
        raise PresetError(
            f"preset {name!r}", "there is no such preset", f"Known are: {', '.join(PRESETS)}."
        )
    return PRESETS[name]


def preprocess_input(
    images: np.ndarray | Sequence[np.ndarray],
    preset: str = "caffe",
    *,
    mean_image: np.ndarray | str | PathLike | None = None,
    crops: Literal["center", "ten"] = "center",
) -> np.ndarray:
    """Turn photos into a network's input.

    Parameters
    ----------
    images : ndarray of uint8 (N, H, W, 3), or sequence of ndarrays of uint8 (H, W, 3)
        RGB, 0..255; in a sequence each may have its own size. Never changed.
    preset : str
        A name in `PRESETS`.
    mean_image : ndarray (3, 256, 256), or path to such an array as .npy
        BGR, 0..255, Caffe's layout. Needed by "caffe-mean-image", refused by the others. It is
        cropped like the photo, never resized.
    crops : {"center", "ten"}
        "ten" gives each picture's four corners and centre, then their mirrors, in the order of
        Caffe's `oversample`; average the probabilities of each ten.

    Returns
    -------
    ndarray of float32, (N, size, size, 3) or (10 N, size, size, 3)
        Channel order, range and size as the preset says. Preset "raw": `images` as float32, their
        shape kept.

    Raises
    ------
    InputError
        If `images` has another dtype, rank or number of channels, is empty, or is so long and
        narrow that an antialiased copy would have more than `MAX_PIXELS` pixels; or if
        `mean_image` has another shape.
    PresetError
        If there is no such preset, or it does not go with `mean_image` or `crops`.

    Notes
    -----
    Resizing is done on uint8, as Caffe (OpenCV) and torchvision (Pillow) do it; sources stand in
    the `Preset` records.
    """
    record = preset_named(preset)
    mean = load_mean_image(record, mean_image)
    if crops not in ("center", "ten"):
        raise PresetError(
            f"crops={crops!r}", "there is no such way to crop", "Use 'center' or 'ten'."
        )
    if crops == "ten" and not record.crops:
        croppers = ", ".join(p.name for p in _ROWS if p.crops)
        raise PresetError(
            f"crops='ten' with preset {preset!r}",
            "that preset does not crop out of a larger picture",
            f"Presets that do are: {croppers}.",
        )
    if record.size is None:
        return _raw(images)
    pictures = _checked(images)
    windows = _windows if crops == "ten" else _centre_window
    out = []
    for picture in pictures:
        resized = resize_by(picture, record)
        out += [_normalised(resized, mean, w, record) for w in windows(resized.shape, record.size)]
    return np.stack(out)


def load_mean_image(
    preset: Preset, mean_image: np.ndarray | str | PathLike | None
) -> np.ndarray | None:
    """The mean image as float32 (256, 256, 3) BGR, or None for a preset that takes none.

    Raises
    ------
    PresetError
        If the preset needs one and there is none, or the other way round.
    InputError
        If it can't be read, or is no (3, 256, 256) array of finite numbers.
    """
    if preset.mean != MEAN_IMAGE:
        if mean_image is not None:
            raise PresetError(
                f"preset {preset.name!r}",
                "it takes no mean image, but one was given",
                "Use preset 'caffe-mean-image', or leave mean_image out.",
            )
        return None
    if mean_image is None:
        raise PresetError(
            f"preset {preset.name!r}",
            "it needs a mean image",
            "Give mean_image=, e.g. Caffe's ilsvrc_2012_mean.npy, or use preset 'caffe'.",
        )
    asked, array = "mean_image", mean_image
    if isinstance(mean_image, str | PathLike):
        asked, array = f"mean image {os.fspath(mean_image)}", read_mean_image(mean_image)
    array = np.asarray(array)
    if array.shape != MEAN_IMAGE_SHAPE or array.dtype.kind not in "fiu":
        raise InputError(
            asked,
            f"got {array.dtype} of shape {array.shape}",
            f"Give numbers of shape {MEAN_IMAGE_SHAPE}: B, G, R planes, as Caffe stores them.",
        )
    if not np.isfinite(array).all():
        raise InputError(asked, "it holds NaN or infinite values", "Give an intact mean image.")
    return np.ascontiguousarray(array.transpose(1, 2, 0), dtype=np.float32)


def read_mean_image(path: str | PathLike) -> np.ndarray:
    """The array in a plain .npy file.

    Raises
    ------
    InputError
        If the file is missing or no such array.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        fault = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"mean image {os.fspath(path)}",
            f"it can't be read as a plain .npy array ({fault})",
            "Give Caffe's ilsvrc_2012_mean.npy, or the array itself.",
        ) from None
    if isinstance(array, np.ndarray):
        return array
    array.close()
    raise InputError(
        f"mean image {os.fspath(path)}", "it is an .npz archive", "Give one array as .npy."
    )


def centre_offset(side: int, crop: int) -> int:
    """Where a centre crop starts: half the margin, a tie going to the even number.

    torchvision's rule (``center_crop``). For Caffe's 227 out of 256 it gives 14, as Caffe's own
    integer division does.
    """
    return round((side - crop) / 2)


def _centre_window(shape: tuple[int, ...], size: int) -> list[tuple[int, int, bool]]:
    """Top, left and mirror flag of the centre crop."""
    return [(centre_offset(shape[0], size), centre_offset(shape[1], size), False)]


def _windows(shape: tuple[int, ...], size: int) -> list[tuple[int, int, bool]]:
    """The ten crops in the order of `oversample` in Caffe's ``python/caffe/io.py``."""
    bottom, right = shape[0] - size, shape[1] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    five = [*corners, (centre_offset(shape[0], size), centre_offset(shape[1], size))]
    return [(top, left, mirror) for mirror in (False, True) for top, left in five]


def resize_by(picture: np.ndarray, preset: Preset) -> np.ndarray:
    """A uint8 picture resized as the preset says, not yet cropped."""
    height = width = preset.resized
    if preset.keep_aspect:
        height, width = shorter_side_size(*picture.shape[:2], preset.resized)
    # Pillow first makes a picture of the new width and the old height.
    if preset.antialias and max(height, picture.shape[0]) * width > MAX_PIXELS:
        raise InputError(
            f"image of {picture.shape[0]}x{picture.shape[1]} pixels",
            f"preset {preset.name!r} would blow it up to more than {MAX_PIXELS:,} pixels",
            "Crop it to a less extreme shape.",
        )
    resize = resize_pillow if preset.antialias else resize_opencv
    return resize(picture, height, width)


def _normalised(
    resized: np.ndarray,
    mean_image: np.ndarray | None,
    window: tuple[int, int, bool],
    preset: Preset,
) -> np.ndarray:
    """One crop of a resized picture as float32, in the network's channel order and range."""
    top, left, mirror = window
    region = np.s_[top : top + preset.size, left : left + preset.size]
    pixels = resized[region]
    if preset.channels == "BGR":
        pixels = reverse_channels(pixels)
    out = pixels.astype(np.float32)
    if preset.divisor != 1:
        out /= np.float32(preset.divisor)
    if preset.mean == MEAN_IMAGE:
        out -= mean_image[region]
    elif preset.mean == OWN_MEAN:
        out -= np.float32(pixels.mean(dtype=np.float64))
    else:
        # A line of pixels at a time: NumPy is slow at lines of three.
        lines = out.reshape(preset.size, -1)
        lines -= np.tile(np.float32(preset.mean), preset.size)
    if preset.std:
        lines = out.reshape(preset.size, -1)
        lines /= np.tile(np.float32(preset.std), preset.size)
    return out[:, ::-1] if mirror else out


def _raw(images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    try:
        array = np.asarray(images)
    except ValueError:
        raise InputError(
            CALLER,
            "got images of different sizes",
            "Preset 'raw' changes no size; make them equal.",
        ) from None
    if array.dtype.kind not in "fiub" or array.ndim != 4 or array.size == 0:
        raise InputError(
            CALLER,
            f"got {array.dtype} of shape {array.shape}",
            "Preset 'raw' takes real numbers of shape (N, H, W, C), none of them 0.",
        )
    return np.array(array, dtype=np.float32)


def _checked(images: np.ndarray | Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """`images` as something that yields uint8 (H, W, 3), or an InputError."""
    if isinstance(images, list | tuple):
        pictures = [np.asarray(image) for image in images]
        for number, picture in enumerate(pictures):
            _check_shape(picture, 3, f"{CALLER}, images[{number}]")
            _check_dtype(picture, f"{CALLER}, images[{number}]")
    else:
        pictures = np.asarray(images)
        _check_shape(pictures, 4, CALLER)
        _check_dtype(pictures, CALLER)
    if len(pictures) == 0:
        raise InputError(CALLER, "got no image", "Give at least one.")
    return pictures


def _check_shape(array: np.ndarray, rank: int, asked: str) -> None:
    shape, last = array.shape, array.shape[-1] if array.ndim else 0
    if array.ndim == rank and last == 3:
        if 0 in shape:
            raise InputError(asked, f"got an empty array of shape {shape}", "Give some pixels.")
        return
    advice = f"Give uint8 RGB of shape {'(N, H, W, 3)' if rank == 4 else '(H, W, 3)'}."
    if rank == 4 and array.ndim == 3 and last == 3:
        advice = "Add a batch axis: image[None]."
    elif rank == 3 and array.ndim == 4 and last == 3:
        advice = "That is a batch; give it by itself, or list its pictures: [*batch]."
    elif array.ndim == rank and shape[-3] == 3:
        axes = (0, 2, 3, 1) if rank == 4 else (1, 2, 0)
        advice = f"Channels come last: x.transpose{axes}."
    elif array.ndim == rank - 1 or (array.ndim == rank and last == 1):
        grey = "x" if last == 1 else "x[..., None]"
        advice = f"Grey needs three equal channels: {grey}.repeat(3, axis=-1)."
    elif array.ndim == rank and last == 4:
        advice = "Lay transparency over white first, as load_image does, or drop it: x[..., :3]."
    raise InputError(asked, f"got an array of shape {shape}", advice)


def _check_dtype(array: np.ndarray, asked: str) -> None:
    if array.dtype == np.uint8:
        return
    if array.dtype.kind not in "fiu":
        raise InputError(asked, f"got dtype {array.dtype}", "Give uint8 RGB in 0..255.")
    low, high = float(array.min()), float(array.max())
    found = f"got {array.dtype} with values in {low:.4g}..{high:.4g}"
    if not (math.isfinite(low) and math.isfinite(high)) or low < 0 or high > 255:
        advice = "These look preprocessed already. Give the pixels that load_image returns."
    elif array.dtype.kind == "f" and high <= 1:
        found = f"got {array.dtype} with values in 0..1"
        advice = "Give uint8 RGB in 0..255: (x * 255).round().astype('uint8')."
    elif array.dtype.kind == "f":
        advice = "Give uint8 RGB in 0..255: x.round().astype('uint8')."
    else:
        advice = "Give uint8 RGB in 0..255: x.astype('uint8')."
    raise InputError(asked, found, advice)
