"""Caffe's mean image or channel means, from a file or as numbers."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from typing import Any

import numpy as np

from tf_alexnet.errors import InputError, PresetError
from tf_alexnet.images.presets import CAFFE_MEAN, MEAN_IMAGE, Preset, as_preset, preset_named, vary
from tf_alexnet.wire import WireError, read_blob

_NUMBER = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?\s*"
_MEANS = re.compile(rf"[\s(\[]*{_NUMBER},{_NUMBER},{_NUMBER}[)\]\s]*")
_MAX_BYTES = 2**26  # a mean image has 786,548 bytes as .binaryproto, 1,572,992 as .npy

_GIVE = "Give Caffe's mean.binaryproto, a plain .npy array, or three channel means."
_FOREIGN = {  # signature of another kind of file -> what it is
    b"PK\x03\x04": "an .npz archive or another ZIP file",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, or a .mat file of MATLAB 7.3",
    b"MATLAB": "a .mat file",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x80": "a pickle, which could run code",
}

Mean = np.ndarray | Sequence[float] | str | PathLike | None


def read_mean_image(source: str | PathLike) -> np.ndarray:
    """Read a mean file (``.binaryproto`` or ``.npy``), or the three numbers in "104,117,123".

    Returns
    -------
    ndarray
        As stored, of any shape and dtype.

    Raises
    ------
    InputError
        If it can't be read.
    """
    if isinstance(source, str) and _MEANS.fullmatch(source):
        return np.array([float(number) for number in source.strip("([)] \t\n").split(",")])
    asked = f"mean image {os.fspath(source)}"
    data = _content(source, asked)
    for start, kind in _FOREIGN.items():
        if data.startswith(start):
            raise InputError(asked, f"it is {kind}", _GIVE)
    if data.startswith(b"\x93NUMPY"):
        return _npy(data, asked)
    if all(c.isprintable() or c.isspace() for c in data[:256].decode(errors="replace")):
        raise InputError(asked, "it is a text file" if data else "it is empty", _GIVE)
    try:
        return read_blob(memoryview(data))
    except WireError as error:
        fault = f"it is neither a .npy array nor a .binaryproto ({error})"
        raise InputError(asked, fault, _GIVE) from None


def resolve(preset: Any, mean: Mean = None) -> tuple[Preset, np.ndarray | None]:
    """Combine a preset and a mean.

    Parameters
    ----------
    preset, mean
        As `preset` and `mean_image` of `preprocess_input`.

    Returns
    -------
    preset : Preset
        The preset, with these channel means if there are three; "caffe-mean-image" for "caffe" with
        a mean image.
    mean_image : ndarray of float32 (S, S, 3), or None
        In the preset's channel order; S is the side before or after the crop. (1, 1, 3) for a
        preset of any size.

    Raises
    ------
    PresetError, InputError, UsageError
        If the preset takes no mean image or needs one, the mean can't be read or has another shape,
        or a model records no preset.
    """
    record = as_preset(preset)
    if mean is None:
        if record.mean == MEAN_IMAGE:
            advice = "Give mean_image=, e.g. Caffe's mean.binaryproto, or use preset 'caffe'."
            raise PresetError(f"preset {record.name!r}", "it needs a mean image", advice)
        return record, None
    asked = "mean_image"
    if isinstance(mean, str | PathLike):
        asked, mean = f"mean image {os.fspath(mean)}", read_mean_image(mean)
    array = _numbers(mean, asked)
    if array.size == 3:
        return vary(record, mean=array.ravel().tolist()), None
    if record.name.partition(".")[0] == "caffe" and record.mean == CAFFE_MEAN:
        record = preset_named(record.name.replace("caffe", "caffe-mean-image", 1))
    if record.mean != MEAN_IMAGE:
        fault = "it takes no mean image, but one was given"
        advice = "Use preset 'caffe-mean-image', or leave mean_image out."
        raise PresetError(f"preset {record.name!r}", fault, advice)
    image = _channels_last(array, record, asked)
    if record.size is None:  # as in Caffe's net surgery example for inputs of any size
        image = image.mean(axis=(0, 1), keepdims=True)
    return record, np.ascontiguousarray(image, dtype=np.float32)


def _content(source: str | PathLike, asked: str) -> bytes:
    """The bytes of a regular file, unless it is too large."""
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            is_folder = stat.S_ISDIR(status.st_mode)
            fault = "it is a folder" if is_folder else "it is not a regular file"
        elif status.st_size > _MAX_BYTES:
            fault = f"it has {status.st_size:,} bytes, too many for a mean image"
        else:
            with open(source, "rb") as file:
                return file.read()
    except (OSError, ValueError) as error:
        fault = f"it can't be read ({getattr(error, 'strerror', None) or error})"
    raise InputError(asked, fault, _GIVE)


def _npy(data: bytes, asked: str) -> np.ndarray:
    """The array in an .npy file, without unpickling objects."""
    try:
        file = BytesIO(data)
        old = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            fault = "it holds Python objects, which could run code"
        elif math.prod(shape) * dtype.itemsize > len(data) - file.tell():
            fault = f"it is too short for an array of shape {shape}"
        else:
            return np.load(BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header makes NumPy raise nearly anything
        fault = f"it is a damaged .npy file ({error})"
    raise InputError(asked, fault, _GIVE)


def _numbers(mean: Any, asked: str) -> np.ndarray:
    try:
        array = np.asarray(mean)
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.dtype.kind not in "fiu" or not array.size:
        found = f"got {array.dtype} of shape {array.shape}" if array.ndim else f"got {mean!r:.60}"
        raise InputError(asked, found, "Give a mean image (3, 256, 256), or three channel means.")
    if not np.isfinite(array).all():
        raise InputError(asked, "it holds NaN or infinite values", "Give an intact mean image.")
    return array


def _channels_last(array: np.ndarray, record: Preset, asked: str) -> np.ndarray:
    """A mean image as (S, S, 3), or an InputError."""
    image = array[0] if array.ndim == 4 and len(array) == 1 else array
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[1] == image.shape[2]:
        image = image.transpose(1, 2, 0)
    sides = (record.resized, record.size)
    square = image.ndim == 3 and image.shape[2] == 3 and image.shape[0] == image.shape[1]
    if not square or (record.size and image.shape[0] not in sides):
        shapes = dict.fromkeys(f"(3, {n}, {n}) or ({n}, {n}, 3)" for n in sides if n)
        shape = " or ".join(shapes) or "(3, S, S) or (S, S, 3)"
        advice = f"Give numbers of shape {shape}, in the order {', '.join(record.channels)}."
        raise InputError(asked, f"got {array.dtype} of shape {array.shape}", advice)
    return image
