"""`Photo` and `Failure`, and the program of a decoder process: paths in, pixels out.

A damaged photo can make a decoder written in C crash, loop for ever or ask for all the memory there
is. Here that ends a process that holds nothing but one photo, and `PhotoReader` starts another. The
program uses NumPy, Pillow and OpenCV; never TensorFlow.

Standard input is a socket. Requests are lines of JSON: [offset of the row, path, 0] or [offset,
null, number of bytes] and then the bytes of the photo. Two lines answer each: [stat, digest] once
the photo has been read, and an `Answer` once it has been decoded. Pixels go straight into memory
shared with the reader: a file without a name, whose descriptor is inherited.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from tf_alexnet.errors import ImageError, InputError
from tf_alexnet.images import preprocess_input
from tf_alexnet.images.decode import decode_photo, read_file

REASONS = (
    *("missing", "no_permission", "is_folder", "empty", "not_an_image", "damaged", "too_large"),
    *("unsupported", "bad_shape", "worker_died", "timed_out", "unreadable"),
)
READY = b"\0ready"  # the first answer; lines before it are the standard error of the start

_RACY = 2.0
_MEMORY = 3 * 2**29  # 50 megapixels take up to 1 GB (JPEG 2000), mostly half
_LARGE = 3 * 20_000_000
_LONGEST_TEXT = 1000  # Pillow's messages may quote the whole file


class Photo(NamedTuple):
    """A photo, and the state in which it was read."""

    path: str  # as the user wrote it
    stat: str | None = None  # see `stat_text`; None also if it changed while it was read, or a URL
    digest: str | None = None  # see `digest_of`; of the very bytes that were decoded
    place: str | None = None  # real path of its folder, and its name there


class Failure(NamedTuple):
    """A photo that could not be read."""

    path: str
    code: str  # one of `REASONS`
    detail: str  # what was found, in a line
    stat: str | None = None
    digest: str | None = None  # None: no bytes were read (missing, no permission, ...)
    place: str | None = None


class Answer(NamedTuple):
    """What became of a photo: a code of `REASONS`, or None and the size of its pixels."""

    code: str | None
    detail: str
    height: int = 0
    width: int = 0


def stat_text(found: os.stat_result, now: float) -> str | None:
    """Size, mtime and ctime (nanoseconds) of a file that was read at `now`, seconds since 1970.

    None if it changed less than two seconds before, or later: a file system may give two versions
    of that age the same times.
    """
    if max(found.st_mtime, found.st_ctime) > now - _RACY:
        return None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def digest_of(data: bytes) -> str:
    """BLAKE2b of a photo's bytes: 16 bytes in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def main() -> None:
    """Decode until standard input ends, which it does when the reader dies, however it dies."""
    settings = json.loads(sys.argv[2])
    if settings["mean_image"]:
        offset, shape = settings["mean_image"]
        raw = os.pread(settings["rows"], 4 * math.prod(shape), offset)
        settings["mean_image"] = np.frombuffer(raw, np.float32).reshape(shape)
    _set_up()
    requests = sys.stdin.buffer
    with contextlib.suppress(ConnectionError):
        os.write(0, b"\n" + READY + b"\n")
        for line in requests:
            offset, path, length = json.loads(line)
            fetched = requests.read(length)
            # However the decoder hangs, the kernel ends it; even when no reader is left to.
            signal.setitimer(signal.ITIMER_REAL, settings["alarm"])
            answer = _decode(fetched if path is None else path, offset, settings)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(answer)


def _set_up() -> None:
    """Limit what this process can do to the rest of the machine."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the reader's business
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with contextlib.suppress(OSError, ValueError):  # if the limit is a lower one already
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, hard))  # beyond it: MemoryError
    # The network's threads wait for each other many times a batch. One that has to wait for a
    # decoder as well holds up all of them: 13 % of the photos a second, seen on two processors.
    with contextlib.suppress(OSError):
        os.nice(15)
    cv2.setNumThreads(1)  # there is a process for each core already
    os.dup2(1, 2)  # what decoders print goes nowhere


def _decode(source: str | bytes, offset: int, settings: dict[str, Any]) -> Answer:
    """Decode a photo into its row of the shared memory."""
    try:
        picture = decode_photo(_content(source), least=settings["least"], opencv=True)
        pixels = preprocess_input(
            [picture],
            settings["preset"],
            mean_image=settings["mean_image"],
            crops=settings["crops"],
        )
        if picture.nbytes > _LARGE:
            del picture
            # The next large picture would find free memory in pieces (glibc).
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
                trim(0)
        if pixels.nbytes <= settings["row"]:
            rest = memoryview(pixels).cast("B")
            while rest:
                done = os.pwrite(settings["rows"], rest, offset)
                rest, offset = rest[done:], offset + done
            return Answer(None, "", *pixels.shape[1:3])
        code, text = "bad_shape", f"it has {pixels.shape[2]}x{pixels.shape[1]} pixels, too many"
    except ImageError as error:
        code, text = error.code, error.found
    except InputError as error:  # no preset fits such a shape
        code, text = "bad_shape", error.found
    except MemoryError:
        code, text = "too_large", "there is not enough memory to decode it"
    except Exception as error:
        code, text = "unreadable", f"{type(error).__name__}: {error}"
    return Answer(code, text[:_LONGEST_TEXT])


def _content(source: str | bytes) -> bytes:
    """The bytes of a photo; their stat and digest are sent, even if reading fails."""
    stat = digest = None
    try:
        if isinstance(source, str):
            now = time.time()
            source, found = read_file(source)
            stat = found and stat_text(found, now)
        digest = digest_of(source)
        return source
    finally:
        _send((stat, digest))


def _send(message: Sequence) -> None:
    """Send a line to the reader."""
    os.write(0, json.dumps(message).encode() + b"\n")
