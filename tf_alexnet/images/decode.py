"""Decoding photos from any source to uint8 RGB, with Pillow's pixels.

Decoders differ. TensorFlow's JPEG decoder rounds differently by default, ignores EXIF orientation
and repairs truncated files; OpenCV drops alpha. All photos are therefore decoded here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from tf_alexnet.errors import AlexNetError, ImageError, InputError, UsageError, one_line
from tf_alexnet.images import jpeg
from tf_alexnet.remote import filesystem, is_url

with contextlib.suppress(ImportError):  # the extra `heic`; importing it takes 5 ms
    import pillow_heif

    pillow_heif.register_heif_opener()

MAX_PIXELS = 50_000_000
MAX_BYTES = 2**29
_READINGS = 3  # attempts at a file that changes while it is read
_VERSION = ("st_size", "st_mtime_ns", "st_ctime_ns")  # which show that it changed
_STRIP = 2**18  # pixels converted at a time
DEPTHS = ("auto", "16", "12", "8")

# Pillow opens many more. EPS would run Ghostscript, others (PSD, FITS, WMF, ...) are not photos.
# TGA has no signature, so it comes last.
_WANTED = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP"),
    *("PPM", "JPEG2000", "AVIF", "HEIF", "ICO", "PCX", "TGA"),
)
_HEIC = b"heic", b"heix", b"hevc"  # brands in the first box of a HEIC file

# Pillow registers its decoders on demand; registering them here avoids races between threads.
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
SUFFIXES = frozenset(s for s, name in Image.registered_extensions().items() if name in _WANTED)

# Without a handler, Python prints a library's log to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# 16-bit grey where 0 is white: Pillow can read both byte orders, but lists only one.
_WHITE_IS_0 = (TiffImagePlugin.MM, 0, (1,), 1, (16,), ())
TiffImagePlugin.OPEN_INFO.setdefault(_WHITE_IS_0, ("I;16B", "I;16B"))
_BITS, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274  # tags

_log = logging.getLogger(__name__)
_TRUNCATED = "LOAD_TRUNCATED_IMAGES"

_ANOTHER = "Replace the file by an intact copy, or leave it out."
_SMALLER = "Save it smaller, or as JPEG."
_UNREADABLE = {  # error while reading -> fault, advice, code
    FileNotFoundError: ("there is no such file", "Check the name and the folder.", "missing"),
    IsADirectoryError: ("it is a folder", "Name a file in it, or leave it out.", "is_folder"),
    PermissionError: ("no permission to read it", "Make it readable, or skip it.", "no_permission"),
}


_lock, _decoding, _before = threading.Lock(), [], contextlib.ExitStack()


@contextlib.contextmanager
def _switches() -> Iterator[None]:
    """Set Pillow's process-wide switches while any thread decodes.

    Its warnings are silenced, since problems raise errors here. `LOAD_TRUNCATED_IMAGES`, which
    much code sets, is unset: it would fill the missing part of a photo with grey.
    """
    with _lock:
        if not _decoding:
            _before.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _before.callback(setattr, ImageFile, _TRUNCATED, getattr(ImageFile, _TRUNCATED))
            setattr(ImageFile, _TRUNCATED, False)
        _decoding.append(None)
    try:
        yield
    finally:
        with _lock:
            _decoding.pop()
            if not _decoding:
                _before.close()


Photo = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | Image.Image


def load_image(source: Photo, *, depth: str = "auto") -> np.ndarray:
    """Load a photo as RGB. Thread-safe.

    Parameters
    ----------
    source : path, URL, bytes-like, binary file or PIL image
        Path or URL of a file, its content, an open file (read from the beginning if it is
        seekable), or a PIL image. The format is detected from the content: JPEG, MPO, PNG, GIF,
        BMP, DIB, TIFF, WebP, PBM/PGM/PPM, JPEG 2000, AVIF, ICO, TGA, PCX; HEIC with the extra
        ``heic``.
    depth : {"auto", "16", "12", "8"}
        Number of bits used in 16-bit grey images. The highest eight of them are kept; larger values
        become white. "auto" uses what the file says, and logs a warning if no value reaches 4096.

    Returns
    -------
    ndarray of uint8, (height, width, 3)
        RGB, 0..255, with the EXIF orientation applied, transparency composited on white, and CMYK
        converted without a colour profile. The first frame of an animation or multi-page file.

    Raises
    ------
    ImageError
        If it is missing, empty, not an image, truncated or damaged, has more than `MAX_PIXELS`
        pixels, or has no defined conversion to RGB (floating point, Lab, 32-bit integers).
    InputError, UsageError
        If `source` is something else, for example an array; if a package for a URL's scheme is not
        installed; or if there is no such `depth`.
    """
    return decode_photo(source, depth=depth)


def decode_photo(
    source: Photo, *, depth: str = "auto", least: int | None = None, opencv: bool = False
) -> np.ndarray:
    """`load_image` with options for decoder processes.

    Parameters
    ----------
    source, depth
        As in `load_image`.
    least : int, optional
        Decode JPEGs at the smallest of 1/8, 1/4, 1/2 and 1 of their size at which both sides have
        at least this many pixels.
    opencv : bool
        Decode JPEGs with OpenCV if it gives the same pixels, see `tf_alexnet.images.jpeg`.
    """
    depth = str(depth)
    if depth not in DEPTHS:
        raise UsageError(f"depth={depth!r}", "not a depth", f"Use {', '.join(DEPTHS)}.")
    if isinstance(source, Image.Image):
        asked = f"PIL image of {source.width}x{source.height} pixels"
        with _one_error(asked):
            return _photo(source, None, asked, depth, None, False)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        asked = f"image of {len(data)} bytes"
    elif hasattr(source, "read"):
        asked = str(getattr(source, "name", type(source).__name__))
        data = _read_open(source, asked)
    elif isinstance(source, str) and is_url(source):
        asked, data = source, read_url(source)
    elif isinstance(source, str | os.PathLike):
        asked = os.fsdecode(source)
        data, _ = read_file(asked)
    else:
        asked, found = type(source).__name__, "not a path, URL, bytes, binary file or PIL image"
        advice = "Pass arrays of pixels to preprocess_input."
        raise InputError(f"photo of type {asked}", found, advice)
    if not data:
        raise ImageError(asked, "it is empty", _ANOTHER, "empty")
    if "HEIF" not in FORMATS and any(brand in data[8:40] for brand in _HEIC):
        advice = "Install its reader: pip install 'tf-alexnet[heic]'; or save it as JPEG."
        raise ImageError(asked, "it is a HEIC photo", advice, "unsupported")
    with _one_error(asked), Image.open(BytesIO(data), formats=FORMATS) as image:
        return _photo(image, data, asked, depth, least, opencv)


def read_file(path: str) -> tuple[bytes, os.stat_result | None]:
    """Read a photo's file, unless it is a pipe, a device or too large.

    Returns
    -------
    bytes, os.stat_result or None
        Its content, and its status; None if it changed during every attempt.

    Raises
    ------
    ImageError
        If it can't be read.
    """
    try:
        before = os.stat(path)
        for _ in range(_READINGS):
            _check_file(path, before)
            with open(path, "rb") as file:
                data = file.read(before.st_size + 1)
            after = os.stat(path)
            same = all(getattr(before, x) == getattr(after, x) for x in _VERSION)
            if same and len(data) == after.st_size:
                return data, after
            before = after
    except (OSError, ValueError) as error:
        raise _unreadable(error, path) from None
    return data, None


def read_url(url: str) -> bytes:
    """Read the file at a URL.

    Raises
    ------
    ImageError
        If it can't be read, or is larger than `MAX_BYTES`.
    UsageError
        If a package for its scheme is missing.
    """
    try:
        files, path = filesystem(url)
        with files.open(path, "rb") as file:
            return _read_open(file, url)
    except AlexNetError:
        raise
    except Exception as error:  # each kind of storage has its own
        # fsspec raises FileNotFoundError for any failure over HTTP.
        cause, status = error.__cause__, getattr(error.__cause__, "status", None)
        foreign = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
        raise _unreadable(cause if foreign and status != 404 else error, url) from None


def _read_open(file: BinaryIO, asked: str) -> bytes:
    """The content of an open file, from the beginning if it is seekable."""
    try:
        if getattr(file, "seekable", bool)():
            file.seek(0)
        data = file.read(MAX_BYTES + 1)
    except Exception as error:  # closed, write-only, or a network error
        raise _unreadable(error, asked) from None
    if isinstance(data, str):
        raise ImageError(asked, "it is open as text", 'Open it with mode "rb".')
    if len(data) > MAX_BYTES:
        fault = f"the file has more than {MAX_BYTES:,} bytes"
        raise ImageError(asked, fault, _SMALLER, "too_large")
    return data


def _unreadable(error: Exception, asked: str) -> ImageError:
    """The ImageError for an error while reading."""
    for kind, refusal in _UNREADABLE.items():
        if isinstance(error, kind):
            return ImageError(asked, *refusal)
    fault = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ImageError(asked, f"it can't be read ({fault})", "Check the name and the disk.")


def _check_file(path: str, status: os.stat_result) -> None:
    """Raise an error unless it is a regular file that is not too large."""
    if stat.S_ISDIR(status.st_mode):
        try:
            os.scandir(path).close()
        except PermissionError:
            advice = "Make it readable, or move it."
            raise ImageError(path, "the folder can't be read", advice, "no_permission") from None
        raise IsADirectoryError
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(path, "it is not a regular file", "Copy its content to a file.")
    if status.st_size > MAX_BYTES:
        fault = f"the file has {status.st_size:,} bytes, more than {MAX_BYTES:,}"
        raise ImageError(path, fault, _SMALLER, "too_large")


def _photo(
    image: Image.Image, data: bytes | None, asked: str, depth: str, least: int | None, opencv: bool
) -> np.ndarray:
    """Pixels of a PIL image; `data` is its file, or None if the caller opened it."""
    _check_size(image, asked)
    key, size, rgb = _colour_key(image, data), image.size, None
    if least and image.format in jpeg.KINDS:
        image.draft(None, (least, least))
    if opencv and image.size == size:
        rgb = jpeg.opencv_pixels(image, data)
    if rgb is None:
        image.load()
        _check_size(image, asked)  # an icon's directory may understate the picture inside
        rgb = _to_rgb(image, key, asked, depth)
    return jpeg.turned(rgb, _orientation(image))


@contextlib.contextmanager
def _one_error(asked: str) -> Iterator[None]:
    """Decode with Pillow's switches set; any error becomes an `ImageError`."""
    advice = _ANOTHER
    try:
        with _switches():
            yield
            return
    except ImageError:
        raise
    except UnidentifiedImageError:
        code, fault = "not_an_image", "it is not an image format we read, or its header is damaged"
        advice = f"We read {', '.join(FORMATS)}; convert the file, or replace it by an intact copy."
    except Image.DecompressionBombError:
        code, fault = "too_large", f"it has more than {MAX_PIXELS:,} pixels"
    except MemoryError:
        code, fault = "too_large", "there is not enough memory to decode it"
    except Exception as error:
        # Damaged files make Pillow raise nearly anything: SyntaxError, IndexError, TypeError,
        # struct.error, RecursionError, ...
        code, fault = "damaged", f"it can't be decoded ({str(error) or type(error).__name__})"
    raise ImageError(asked, fault, advice, code)


def _check_size(image: Image.Image, asked: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(asked, f"its header says {width}x{height} pixels", _ANOTHER, "damaged")
    if width * height > MAX_PIXELS:
        fault = f"it has {width}x{height} pixels, more than {MAX_PIXELS:,}"
        advice = "Save a smaller copy; the network sees at most a few hundred pixels a side."
        raise ImageError(asked, fault, advice, "too_large")


def _colour_key(image: Image.Image, data: bytes | None) -> tuple[int, ...] | None:
    """The colour that a PNG's tRNS chunk or a grey GIF declares transparent, or None.

    In the scale of Pillow's pixels: Pillow scales 2- and 4-bit grey up to 8 bits and truncates
    16-bit colour to 8, but leaves the key as it is in the file.
    """
    key = image.info.get("transparency")
    if image.mode not in ("1", "L", "RGB", "I", "I;16") or key is None:
        return None
    values = key if isinstance(key, tuple) else (key,)
    if image.format != "PNG" or image.mode == "1":
        return values
    # IHDR is a PNG's first chunk. Without the file, only a large key shows that it has 16 bits.
    bits = data[24] if data else 16 if max(values) > 255 else 8
    if image.mode == "RGB" and bits == 16:
        return tuple(v >> 8 for v in values)
    if image.mode == "L":
        top = 2**bits - 1
        return tuple((v & top) * 255 // top for v in values)
    return values


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 if there is none or it can't be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


def _to_rgb(image: Image.Image, key: tuple[int, ...] | None, asked: str, depth: str) -> np.ndarray:
    """A decoded PIL image of any mode as uint8 RGB."""
    mode, deep = image.mode, image.mode.startswith("I")
    if mode in ("F", "LAB", "HSV") or (mode == "I" and image.format not in ("PNG", "PPM")):
        what = {"F": "floating-point", "I": "32-bit or signed", "LAB": "Lab"}.get(mode, mode)
        fault = f"it holds {what} pixels, which have no fixed range"
        raise ImageError(asked, fault, "Save it as an 8-bit RGB PNG or JPEG first.", "unsupported")
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if depth == "auto" and tags.get(_BITS) == (12,):
        depth = "12"
    shift = {"8": 0, "12": 4}.get(depth, 8)
    # Some rows at a time: otherwise a large picture would be in memory five times.
    rgb, height = np.empty((image.height, image.width, 3), np.uint8), max(1, _STRIP // image.width)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        rgb[top:bottom] = _strip_to_rgb(image.crop((0, top, image.width, bottom)), key, shift)
    # An all-black picture is not worth a warning.
    if deep and depth == "auto" and rgb.max() < 16 and (highest := int(np.asarray(image).max())):
        bits = 8 if highest < 256 else 12
        text = "%s: max value %d: looks like %d bits; depth=%d (--depth %d) would use them"
        _log.warning(text, one_line(asked), highest, bits, bits, bits)
    # Invert if 0 is white; Pillow does so itself for 8 bits.
    return np.invert(rgb, out=rgb) if deep and tags.get(_PHOTOMETRIC) == 0 else rgb


def _strip_to_rgb(image: Image.Image, key: tuple[int, ...] | None, shift: int) -> np.ndarray:
    if image.mode.startswith("I"):
        samples = np.asarray(image)[..., None]
        rgb = np.repeat(np.minimum(samples >> shift, 255).astype(np.uint8), 3, axis=2)
    elif key is None and image.has_transparency_data:
        alpha = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return np.array(Image.alpha_composite(white, alpha).convert("RGB"))
    else:
        image.info.pop("transparency", None)
        samples = rgb = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if key is not None:
        rgb[(samples == key).all(axis=2)] = 255
    return rgb
