"""The program of a decoder process: names of photos in, preprocessed pixels out.

A damaged photo can make a decoder written in C crash, loop for ever or ask for all the memory there
is. Here that ends this process, which holds nothing but one photo, and `PhotoReader` starts the
next. It knows NumPy, Pillow and OpenCV; never TensorFlow.

Requests come in on standard input, each a `REQUEST` and a path or the photo itself; answers go out
on standard output, each an `ANSWER` and a reason. Pixels go straight into memory that is shared
with the reader: a file without a name, whose descriptor was inherited.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import struct
import sys
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

from tf_alexnet.errors import ImageError, InputError
from tf_alexnet.images import preprocess_input, preset_named
from tf_alexnet.images.decode import decode_photo

REASONS = (
    "missing",
    "no_permission",
    "is_folder",
    "empty",
    "not_an_image",
    "damaged",
    "too_large",
    "unsupported",
    "bad_shape",
    "worker_died",
    "timed_out",
    "unreadable",
)
READ = len(REASONS)  # stands in an answer where there is no reason for complaint

PATH, PHOTO = 0, 1
REQUEST = struct.Struct("<BQQ")  # PATH or PHOTO, offset of the row in bytes, length of what follows
ANSWER = struct.Struct("<BIII")  # reason or READ, height, width, length of the text that follows
LENGTH = struct.Struct("<I")

_LARGE = 3 * 20_000_000
_TEXT = 1000  # a reason is a line; a file may make Pillow quote all of it


class Photo(NamedTuple):
    """A photo, and the state in which it was read.

    Attributes
    ----------
    path : str
        Its written name.
    stat : str or None
        ``"size mtime_ns ctime_ns"``; None if that proves nothing.
    digest : str or None
        BLAKE2b (16 bytes, hex) of the bytes that were decoded.
    place : str or None
        Its real folder and its name there.
    """

    path: str
    stat: str | None = None
    digest: str | None = None
    place: str | None = None


class Failure(NamedTuple):
    """A photo that gave no row.

    Attributes
    ----------
    path : str
        Its written name.
    code : str
        One of `REASONS`.
    detail : str
        What was found, in a line.
    stat, digest, place : str or None
        As in `Photo`; no digest if no bytes were read.
    """

    path: str
    code: str
    detail: str
    stat: str | None = None
    digest: str | None = None
    place: str | None = None


def main() -> None:
    """Decode until standard input ends, which it does when the reader dies, however it dies."""
    requests, answers = _pipes()
    settings = json.loads(_exactly(requests, *LENGTH.unpack(_exactly(requests, LENGTH.size))))
    mean_image = None
    if settings["mean_image"]:
        shape = settings["mean_image"]
        raw = _exactly(requests, 4 * math.prod(shape))
        mean_image = np.frombuffer(raw, np.float32).reshape(shape)
    _limit(settings["memory"])
    # The network's threads wait for each other many times a batch. One that has to wait for a
    # decoder as well holds up all of them: 13 % of the photos a second, seen on two processors.
    with contextlib.suppress(OSError):
        os.nice(15)
    cv2.setNumThreads(1)  # there is a process a core already
    with contextlib.suppress(BrokenPipeError, EOFError):
        _reply(answers, READ)  # ready
        while True:
            kind, offset, length = REQUEST.unpack(_exactly(requests, REQUEST.size))
            source = _exactly(requests, length)
            # Whatever the decoder does, the kernel ends it; even when no reader is left to.
            signal.setitimer(signal.ITIMER_REAL, settings["alarm"])
            answer = _decode(os.fsdecode(source) if kind == PATH else source, mean_image, settings)
            if isinstance(answer, np.ndarray):
                _write(settings["pixels"], answer, offset)
                answer = (READ, "", *answer.shape[1:3])
            signal.setitimer(signal.ITIMER_REAL, 0)
            _reply(answers, *answer)


def _decode(
    source: str | bytes, mean_image: np.ndarray | None, settings: dict
) -> np.ndarray | tuple[int, str]:
    """Pixels, or a reason and its text."""
    # Twice the side that is resized to: at once that side would be 15 % quicker, and the features
    # three times as far off.
    least = 2 * preset_named(settings["preset"]).resized if settings["fast_decode"] else None
    try:
        picture = decode_photo(source, least=least, opencv=True)
        pixels = preprocess_input(
            [picture], settings["preset"], mean_image=mean_image, crops=settings["crops"]
        )
        if picture.nbytes > _LARGE:
            del picture
            _give_memory_back()
        if pixels.nbytes <= settings["row"]:
            return pixels
        code, text = "bad_shape", f"it has {pixels.shape[2]}x{pixels.shape[1]} pixels, too many"
    except ImageError as error:
        code, text = error.code, error.found
    except InputError as error:  # no preset fits such a shape
        code, text = "bad_shape", error.found
    except MemoryError:
        code, text = "too_large", "there is not enough memory to decode it"
    except Exception as error:
        code, text = "unreadable", f"{type(error).__name__}: {error}"
    return REASONS.index(code), text


def _pipes() -> tuple[BinaryIO, int]:
    """Where requests come from and answers go to; everything else that is printed goes nowhere."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the reader's business
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return sys.stdin.buffer, answers


def _limit(memory: int) -> None:
    """Let a photo that wants more than `memory` bytes end in a MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        memory = min(memory, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, hard))


def _give_memory_back() -> None:
    """Let the next large picture not find this one's remains all over the memory (glibc)."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _write(file: int, pixels: np.ndarray, offset: int) -> None:
    rest = memoryview(pixels).cast("B")
    while rest:
        done = os.pwrite(file, rest, offset)
        rest, offset = rest[done:], offset + done


def _reply(file: int, reason: int, text: str = "", height: int = 0, width: int = 0) -> None:
    encoded = text[:_TEXT].encode("utf-8", "backslashreplace")
    os.write(file, ANSWER.pack(reason, height, width, len(encoded)) + encoded)
