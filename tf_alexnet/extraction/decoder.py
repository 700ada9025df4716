"""`Photo`, `Failure`, and the program of a decoder process: paths in, pixels out.

A damaged photo can make a decoder written in C crash, loop forever or exhaust memory. Here that
ends only a process that holds one photo and never loads TensorFlow.

Standard input starts with the settings, a line of JSON, and the bytes of the mean image, if any.
Each request is a line of JSON: [path, 0], or [null, number of bytes] followed by the photo's bytes.
The answer is two lines on standard output: [stat, digest] once the photo has been read, then
[code, detail, shape]. If code is null, the pixels have been written to standard error, a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import hashlib
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np

from tf_alexnet.errors import ImageError, InputError
from tf_alexnet.images import preprocess_input
from tf_alexnet.images.decode import decode_photo, read_file

REASONS = (
    *("missing", "no_permission", "is_folder", "empty", "not_an_image", "damaged", "too_large"),
    *("unsupported", "bad_shape", "worker_died", "timed_out", "unreadable"),
)
READY = b"\0ready\n"  # the first answer

_RACY = 2.0
_MEMORY = 3 * 2**29  # 50 megapixels take up to 1 GB (JPEG 2000), usually half
_LARGE = 3 * 20_000_000
_notes: list[str] = []  # logged while a photo was decoded
_LONGEST_TEXT = 1000  # Pillow's messages may quote the whole file


class Photo(NamedTuple):
    """A photo and the state it was read in."""

    path: str  # as the user wrote it
    stat: str | None = None  # see `stat_text`; None also for URLs, or if it changed meanwhile
    digest: str | None = None  # of the bytes that were decoded
    place: str | None = None  # real path of its folder, and its name in it


class Failure(NamedTuple):
    """A photo that could not be read."""

    path: str
    code: str  # one of `REASONS`
    detail: str  # what was found, on one line
    stat: str | None = None
    digest: str | None = None  # None: no bytes were read (missing, no permission, ...)
    place: str | None = None


def stat_text(found: os.stat_result, now: float) -> str | None:
    """Size, mtime and ctime (nanoseconds) of a file that was read at `now` (seconds since 1970).

    None if it changed in the two seconds before: two versions could then have the same times.
    """
    if max(found.st_mtime, found.st_ctime) > now - _RACY:
        return None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def digest_of(data: bytes) -> str:
    """BLAKE2b digest of a photo's bytes: 16 bytes, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def main() -> None:
    """Decode until standard input ends, as it does when the reader dies."""
    requests, answers, pixels = sys.stdin.buffer, os.dup(1), os.dup(2)
    settings = json.loads(requests.readline())
    if shape := settings["mean_image"]:
        raw = requests.read(4 * math.prod(shape))
        settings["mean_image"] = np.frombuffer(raw, np.float32).reshape(shape)
    _set_up()

    def send(*message: Any) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    with contextlib.suppress(ConnectionError), open(pixels, "wb", buffering=0) as file:
        os.write(answers, b"\n" + READY)
        for line in requests:
            path, length = json.loads(line)
            fetched = requests.read(length)
            _limit(settings["timeout"], settings["stalled"])
            answer = _decode(fetched if path is None else path, settings, send, file)
            _limit(0, 0)
            send(*answer)


def _set_up() -> None:
    """Limit this process's use of the machine, as far as the platform allows."""
    faulthandler.cancel_dump_traceback_later()  # the time limit for startup
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the reader handles them
    if hasattr(signal, "setitimer"):
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    with contextlib.suppress(ImportError, OSError, ValueError):  # or the limit is lower
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, hard))  # beyond it: MemoryError
    # The network's threads wait for each other many times per batch, so a decoder that delays one
    # delays all: 13 % fewer photos per second on two processors.
    with contextlib.suppress(AttributeError, OSError):
        os.nice(15)
    handler = logging.Handler()
    # Without the photo's name, unknown here; the reader adds it.
    handler.emit = lambda record: _notes.append(record.getMessage().partition(": ")[2])
    logging.getLogger("tf_alexnet").addHandler(handler)
    cv2.setNumThreads(1)  # there is one process per core already
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)  # discard what decoders print


def _limit(processor: float, wall: float) -> None:
    """End this process after a number of seconds, even if it hangs in C; 0 means no limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, processor)
        signal.setitimer(signal.ITIMER_REAL, wall)
    elif wall:
        faulthandler.dump_traceback_later(wall, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


def _decode(
    source: str | bytes, settings: dict[str, Any], send: Callable[..., None], file: BinaryIO
) -> tuple[str | None, str, Sequence[int]]:
    """Decode a photo into `file`; code of `REASONS` or None, what was found or logged, shape."""
    try:
        _notes.clear()
        how = {name: settings[name] for name in ("depth", "least")}
        picture = decode_photo(_content(source, send), **how, opencv=True)
        how = {name: settings[name] for name in ("preset", "mean_image", "crops")}
        pixels = preprocess_input([picture], **how)
        if picture.nbytes > _LARGE and sys.platform == "linux":
            del picture
            # glibc would leave free memory too fragmented for the next large picture.
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
                trim(0)
        if pixels.size <= settings["values"]:
            file.seek(0)
            file.write(pixels)
            return None, _notes[0] if _notes else "", pixels.shape
        code, text = "bad_shape", f"it has {pixels.shape[2]}x{pixels.shape[1]} pixels, too many"
    except (ImageError, InputError) as error:  # InputError: a shape the preset can't take
        code, text = getattr(error, "code", "bad_shape"), error.found
    except MemoryError:
        code, text = "too_large", "there is not enough memory to decode it"
    except Exception as error:
        code, text = "unreadable", f"{type(error).__name__}: {error}"
    return code, text[:_LONGEST_TEXT], ()


def _content(source: str | bytes, send: Callable[..., None]) -> bytes:
    """Read a photo's bytes, and send its stat and digest even if that fails."""
    stat = digest = None
    try:
        if isinstance(source, str):
            now = time.time()
            source, found = read_file(source)
            stat = found and stat_text(found, now)
        digest = digest_of(source)
        return source
    finally:
        send(stat, digest)
