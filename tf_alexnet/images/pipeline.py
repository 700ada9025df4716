"""`preprocess_input`: from photos to a network's input, with NumPy, OpenCV and Pillow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from tf_alexnet.errors import InputError, PresetError
from tf_alexnet.images.decode import MAX_PIXELS, load_image
from tf_alexnet.images.mean_image import Mean, resolve
from tf_alexnet.images.presets import MEAN_IMAGE, OWN_MEAN, PRESETS, Preset
from tf_alexnet.images.resize import resize_opencv, resize_pillow, shorter_side_size

CALLER = "preprocess_input"

_FRACTIONS = (
    "the pixels are not whole numbers: they were already resized, and not as by preset {!r}. They "
    "are rounded; pass photos of the original size as uint8 for the preset's exact pixels"
)


def preprocess_input(
    images: np.ndarray | Sequence[np.ndarray] | Any,
    preset: str | Preset | Any = "caffe",
    *,
    mean_image: Mean = None,
    crops: Literal["center", "ten"] = "center",
) -> Any:
    """Preprocess photos for a network.

    Parameters
    ----------
    images : array or tensor (N, H, W, 3) or (H, W, 3), or sequence of arrays (H, W, 3)
        RGB, 0..255: uint8, or other integers or floats with the same values. Photos in a sequence
        may differ in size. TensorFlow tensors may be eager or symbolic (in a `tf.function` or
        `tf.data.Dataset.map`) and of unknown size; for a KerasTensor, a `Preprocessing` layer is
        added to its model. Not modified.
    preset : str, Preset or keras.Model
        A name in `PRESETS` or a variation such as ``"caffe.size224"``, a `Preset`, or a model from
        `AlexNet`, for the preset its weights were trained with. Photos are not resized for a model
        of variable input size.
    mean_image : array, path or three numbers, optional
        Mean to subtract, in the preset's channel order (BGR for Caffe's). A mean image, cropped
        like the photo and never resized: an array (3, 256, 256) or (256, 256, 3), also with a
        batch axis or already cropped, or a ``mean.binaryproto`` or ``.npy`` file. Or three channel
        means: ``"104,117,123"`` or a sequence. Required by "caffe-mean-image"; with an image,
        "caffe" becomes "caffe-mean-image".
    crops : {"center", "ten"}
        "ten" returns the four corners and the centre of each photo, then their mirror images, in
        the order of Caffe's `oversample`. Average the probabilities over the ten.

    Returns
    -------
    ndarray, tensor or KerasTensor of float32, (N, size, size, 3), (10 N, ...) or (size, size, 3)
        Channel order, range and size are the preset's; a single photo has no batch axis. A tensor
        if `images` is one. With preset "raw", `images` as float32, of the same shape.

    Raises
    ------
    InputError
        If `images` has another dtype, rank or number of channels, is empty, or is so long and
        narrow that an antialiased copy would have more than `MAX_PIXELS` pixels; if values are
        outside 0..255 or in 0..1; or if `mean_image` can't be used.
    PresetError, UsageError
        If there is no such preset, it can't be used with `mean_image` or `crops`, or a model
        records no preset.

    Notes
    -----
    Photos are resized as uint8, like in Caffe (OpenCV) and torchvision (Pillow). Floats with
    fractions have been resized before, for example by `keras.utils.image_dataset_from_directory`;
    if the preset resizes, they are rounded, with a warning. Symbolic tensors are rounded without a
    warning; values outside 0..255 or in 0..1 raise an error when the graph runs.
    """
    record, mean = resolve(preset, mean_image)
    check_crops(crops, record, mean)
    if type(images).__module__.partition(".")[0] in ("tensorflow", "keras"):
        return _tensor(images, record, mean, crops)
    if record.is_raw:
        return _raw(images)
    if isinstance(images, Image.Image):
        images = load_image(images)
    single = not isinstance(images, list | tuple) and _is_single(np.shape(images))
    pictures = _checked([images] if single else images, record, single)
    if record.size is None:
        out = _stacked([normalised(picture, mean, record) for picture in pictures])
    else:
        out = np.stack([x for picture in pictures for x in _crops(picture, mean, crops, record)])
    return out[0] if single and crops == "center" else out


def check_crops(crops: str, preset: Preset, mean_image: np.ndarray | None) -> None:
    """Raise a PresetError if the preset can't be used with these crops."""
    if crops not in ("center", "ten"):
        found, advice = "unknown", "Use 'center' or 'ten'."
        raise PresetError(f"crops={crops!r}", found, advice)
    if crops == "center":
        return
    if not preset.crops:
        found = "that preset does not crop"
        advice = f"Use one of: {', '.join(p.name for p in PRESETS.values() if p.crops)}."
        raise PresetError(f"crops='ten' with preset {preset.name!r}", found, advice)
    if mean_image is not None and len(mean_image) != preset.resized:
        asked = f"crops='ten' with a mean image of {len(mean_image)}x{len(mean_image)}"
        advice = f"Give the whole mean image, {preset.resized}x{preset.resized}."
        raise PresetError(asked, "it covers only the centre crop", advice)


def _tensor(images: Any, preset: Preset, mean: np.ndarray | None, crops: str) -> Any:
    """`preprocess_input` of a tensor. TensorFlow is imported only here."""
    from tf_alexnet.images.tf_ops import apply_preset

    if hasattr(images, "numpy"):
        array = preprocess_input(images.numpy(), preset, mean_image=mean, crops=crops)
        return apply_preset(array, PRESETS["raw"])  # as a tensor
    if crops != "center":
        asked = f"crops={crops!r} of a symbolic tensor"
        raise PresetError(asked, "it is not supported", "Use an array.")
    if type(images).__name__ == "KerasTensor":
        from tf_alexnet.images.preprocessing import Preprocessing

        return Preprocessing(preset, mean)(images)
    return apply_preset(images, preset, mean)


def centre_offset(side: int, crop: int) -> int:
    """Start of a centre crop: half the margin, rounded half to even.

    As in torchvision's ``center_crop``. For Caffe's 227 out of 256 it is 14, the same as Caffe's
    integer division.
    """
    return round((side - crop) / 2)


def resized_size(height: int, width: int, preset: Preset) -> tuple[int, int]:
    """Height and width to which a preset resizes a photo before cropping."""
    if preset.keep_aspect:
        return shorter_side_size(height, width, preset.resized)
    return preset.resized, preset.resized


def resize_by(picture: np.ndarray, preset: Preset) -> np.ndarray:
    """Resize a uint8 photo by the preset, without cropping."""
    height, width = resized_size(*picture.shape[:2], preset)
    # Pillow's first pass has the new width and the old height.
    if preset.antialias and max(height, picture.shape[0]) * width > MAX_PIXELS:
        asked = f"image of {picture.shape[0]}x{picture.shape[1]} pixels"
        fault = f"preset {preset.name!r} would enlarge it to more than {MAX_PIXELS:,} pixels"
        raise InputError(asked, fault, "Crop it to a less extreme shape.")
    resize = resize_pillow if preset.antialias else resize_opencv
    return resize(picture, height, width)


def _is_single(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape is a single photo, even if grey or channels first."""
    return len(shape) == 2 or (len(shape) == 3 and (shape[2] in (1, 3, 4) or shape[0] == 3))


def _crops(picture: np.ndarray, mean_image: np.ndarray | None, crops: str, preset: Preset) -> list:
    """The crops of one photo; ten are in the order of Caffe's ``python/caffe/io.py``."""
    resized, size, out = resize_by(picture, preset), preset.size, []
    bottom, right = resized.shape[0] - size, resized.shape[1] - size
    places = [tuple(centre_offset(side, size) for side in resized.shape[:2])]
    if crops == "ten":
        places = [(0, 0), (0, right), (bottom, 0), (bottom, right), *places]
    for top, left in places:
        region = np.s_[top : top + size, left : left + size]
        whole = mean_image is not None and len(mean_image) != size
        mean = mean_image[region] if whole else mean_image
        out.append(normalised(resized[region], mean, preset))
    return out if crops == "center" else out + [crop[:, ::-1] for crop in out]


def normalised(pixels: np.ndarray, mean_image: np.ndarray | None, preset: Preset) -> np.ndarray:
    """Pixels (H, W, 3) as float32 in the preset's channel order and range."""
    if preset.channels == "BGR":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)  # ten times as fast as NumPy
    out = pixels.astype(np.float32)
    # Broadcast over whole rows: NumPy is slow with a last axis of three.
    lines, width = out.reshape(len(out), -1), out.shape[1]
    if preset.divisor != 1:
        out /= np.float32(preset.divisor)
    if preset.mean == MEAN_IMAGE:
        out -= mean_image
    elif preset.mean == OWN_MEAN:
        out -= np.float32(pixels.mean(dtype=np.float64) / preset.divisor)
    else:
        lines -= np.tile(np.float32(preset.mean), width)
    if preset.std:
        lines /= np.tile(np.float32(preset.std), width)
    return out


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    try:
        return np.stack([np.asarray(array) for array in arrays])
    except ValueError:
        advice = "This preset does not resize; make them equal."
        raise InputError(CALLER, "got images of different sizes", advice) from None


def _raw(images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    array = _stacked(images) if isinstance(images, list | tuple) and images else np.asarray(images)
    if array.dtype.kind not in "fiub" or array.ndim != 4 or array.size == 0:
        advice = "Preset 'raw' takes a non-empty array of real numbers, (N, H, W, C)."
        raise InputError(CALLER, f"got {array.dtype} of shape {array.shape}", advice)
    return np.array(array, dtype=np.float32)


def _checked(images: Any, preset: Preset, single: bool) -> Sequence[np.ndarray]:
    """`images` as arrays (H, W, 3) of uint8, or of float32 if the preset does not resize."""
    if not isinstance(images, list | tuple):
        return _pixels(images, 4, CALLER, preset)
    if not images:
        raise InputError(CALLER, "got no image", "Give at least one.")
    pictures = []
    for number, image in enumerate(images):
        image = load_image(image) if isinstance(image, Image.Image) else image
        asked = CALLER if single else f"{CALLER}, images[{number}]"
        pictures.append(_pixels(image, 3, asked, preset))
    return pictures


def _check_shape(array: np.ndarray, rank: int, asked: str) -> None:
    shape, last = array.shape, array.shape[-1] if array.ndim else 0
    if array.ndim == rank and last == 3:
        if 0 in shape:
            raise InputError(asked, f"got an empty array of shape {shape}", "Give some pixels.")
        return
    wanted, same = "(N, H, W, 3)" if rank == 4 else "(H, W, 3)", array.ndim == rank
    advice = f"Give uint8 RGB of shape {wanted}."
    if rank == 3 and array.ndim == 4 and last == 3:
        advice = "That is a batch; pass it alone, or list its photos: [*batch]."
    elif same and shape[-3] == 3:
        advice = f"Channels come last: x.transpose{(0, 2, 3, 1) if rank == 4 else (1, 2, 0)}."
    elif array.ndim == rank - 1 or (same and last == 1):
        grey = "x" if last == 1 else "x[..., None]"
        advice = f"Repeat grey in three channels: {grey}.repeat(3, axis=-1)."
    elif same and last == 4:
        advice = "Composite alpha on white, as load_image does, or drop it: x[..., :3]."
    raise InputError(asked, f"got an array of shape {shape}", advice)


def _pixels(image: Any, rank: int, asked: str, preset: Preset) -> np.ndarray:
    """The pixels as uint8, or as float32 if the preset does not resize."""
    try:
        array = np.asarray(image)
    except (TypeError, ValueError, NotImplementedError):  # ragged, or a symbolic tensor in a list
        found = f"got {type(image).__name__}, not an array"
        raise InputError(asked, found, "Give uint8 RGB (H, W, 3).") from None
    _check_shape(array, rank, asked)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "fiu":
        raise InputError(asked, f"got dtype {array.dtype}", "Give uint8 RGB in 0..255.")
    low, high = float(array.min()), float(array.max())
    found = f"got {array.dtype} with values in "
    if not (math.isfinite(low) and math.isfinite(high)) or low < 0 or high > 255:
        advice = "They look already preprocessed. Give the pixels that load_image returns."
        raise InputError(asked, f"{found}{low:.4g}..{high:.4g}", advice)
    if array.dtype.kind == "f" and 0 < high <= 1:
        advice = "Give uint8 RGB in 0..255: (x * 255).round().astype('uint8')."
        raise InputError(asked, f"{found}0..1", advice)
    if preset.size is None:
        return array.astype(np.float32)
    rounded = np.rint(array)
    if array.dtype.kind == "f" and (rounded != array).any():
        warnings.warn(_FRACTIONS.format(preset.name), stacklevel=4)
    return rounded.astype(np.uint8)
