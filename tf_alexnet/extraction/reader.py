"""`PhotoReader`: photos in, preprocessed batches out, decoded ahead in separate processes."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tf_alexnet.errors import AlexNetError, ImageError, UsageError, one_line
from tf_alexnet.extraction.decoder import READY, REASONS, Failure, Photo
from tf_alexnet.images import preprocess_input, recorded_name, resolve
from tf_alexnet.images.decode import read_url
from tf_alexnet.images.mean_image import Mean
from tf_alexnet.images.presets import Preset
from tf_alexnet.remote import Fetcher, is_url

__all__ = ["REASONS", "Batch", "Failure", "Photo", "PhotoReader"]

PROGRAM = "tf_alexnet.extraction.decoder"
# Not `python -m`, which would search the working folder, perhaps a folder of photos, for modules
# first. The process finds modules where this one does, and nowhere else.
_START = (
    "import sys, faulthandler; faulthandler.dump_traceback_later(120, exit=True); "
    "sys.path[:] = sys.argv[2:]; import importlib; importlib.import_module(sys.argv[1]).main()"
)
# Otherwise libraries would start many threads and reserve memory for each.
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # Otherwise the C library returns memory after every photo and requests it again page by page,
    # which takes half of the decoding time.
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
    "MALLOC_MMAP_MAX_": "0",
}

TIMEOUT = 10.0  # seconds of processor time for a photo
_MIN_AHEAD = 32  # photos decoded ahead of the current batch, at least
_FETCHES = 16  # URLs fetched at once
_MIN_STALL = 60.0  # seconds; the least limit in wall time
_TRIES = 2  # processes may end for other reasons; a photo that ends two is to blame
_RAW_SIDE = 512
_OUT_OF_TIME = -getattr(signal, "SIGPROF", 1000)  # an exit code

_log = logging.getLogger(__name__)

_Found = tuple[Photo | Failure, Sequence[int]]  # and the shape of its pixels
_Waiting = tuple[np.ndarray, list[Future[_Found]]]  # a batch's rows, and the result for each


class Batch(NamedTuple):
    """Consecutive photos of the input, in its order.

    Attributes
    ----------
    photos, failures : list of Photo, list of Failure
        The photos that could be read, and those that could not.
    pixels : ndarray of float32, (len(photos) * crops, S, S, 3)
        Input of the network; (0, S, S, 3) if no photo could be read.
    """

    photos: list[Photo]
    pixels: np.ndarray
    failures: list[Failure]

    @property
    def paths(self) -> list[str]:
        """Paths of the photos that could be read."""
        return [photo.path for photo in self.photos]


class PhotoReader(contextlib.AbstractContextManager):
    """Read, decode and preprocess photos in separate processes.

    A photo that crashes or hangs a decoder is one failure in its batch. Processes start on demand,
    and end with the reader, which is a context manager, or with the program, even if it is killed.

    Parameters
    ----------
    preset, mean_image, crops
        As in `preprocess_input`; the preset must have a name.
    workers : int, optional
        Number of processes (default: one per processor that this program may use).
    timeout : float
        Seconds of processor time per photo. The limit in wall time, for busy machines and slow
        disks, is six times as long, at least a minute; for a URL, 60 seconds.
    depth : {"auto", "16", "12", "8"}
        As in `load_image`; its warning is logged for the first photo only.
    fast_decode : bool
        Decode large JPEGs at 1/2, 1/4 or 1/8 of their size, if that is still at least twice the
        network's input size. See Notes.

    Raises
    ------
    PresetError, InputError, UsageError
        If preset, mean image and crops don't fit, or `workers` or `timeout` is not positive.

    Notes
    -----
    `fast_decode` changes pixels: JPEG's own averaging precedes the resize. Median relative L2
    distance of features for 24 enlarged photos and 16 collages of 12 megapixels with details one
    pixel wide: 0.013 and 0.030 at pool5 (torchvision, trained), 0.008 and 0.073 at fc7 (Caffe,
    random).
    """

    def __init__(
        self,
        preset: str | Preset,
        *,
        mean_image: Mean = None,
        crops: str = "center",
        workers: int | None = None,
        timeout: float = TIMEOUT,
        depth: str = "auto",
        fast_decode: bool = False,
    ):
        record, mean_image = resolve(preset, mean_image)
        self._preset = recorded_name(record)
        # Preprocess a small picture for the shape of a row, and to check the arguments.
        small = np.zeros((1, 8, 8, 3), np.uint8)
        row = preprocess_input(small, record, mean_image=mean_image, crops=crops)
        if workers is None:
            mine = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
            workers = len(mine(0))
        if workers < 1 or not timeout > 0:
            asked = f"{workers} workers, timeout {timeout}"
            raise UsageError(asked, "nothing could be read", "Use more.")
        self._shape: tuple[int, ...] | None = row.shape if record.size else None
        self._values = row.size if self._shape else _RAW_SIDE * _RAW_SIDE * 3
        self._settings = {
            "preset": self._preset,
            "mean_image": None if mean_image is None else mean_image.shape,
            "crops": crops,
            "depth": depth,
            # Once instead of twice the side: 15 % faster, but features deviate three times as much.
            "least": 2 * record.resized if fast_decode else None,
            "values": self._values,
            "timeout": float(timeout),
            "stalled": max(6.0 * timeout, _MIN_STALL),
        }
        mean = b"" if mean_image is None else np.float32(mean_image).tobytes()
        self._decoders = [_Decoder(self._settings, mean) for _ in range(workers)]
        self._idle: queue.LifoQueue[_Decoder] = queue.LifoQueue()  # few photos start few processes
        for decoder in self._decoders:
            self._idle.put(decoder)
        # One photo per thread: URLs are fetched while others are decoded.
        self._threads = ThreadPoolExecutor(workers + _FETCHES, "photos")
        self._local = threading.local()
        self._free: deque[np.ndarray] = deque(maxlen=4)
        self._closed = threading.Event()
        atexit.register(self.close)

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; batches already returned stay valid."""
        atexit.unregister(self.close)
        self._closed.set()
        for decoder in self._decoders:
            decoder.close()
        self._threads.shutdown(cancel_futures=True)
        for decoder in self._decoders:
            decoder.end()

    def decode(self, content: bytes, name: str = "photo") -> tuple[Photo | Failure, np.ndarray]:
        """Decode and preprocess one photo in memory; may be called from any thread.

        Parameters
        ----------
        content : bytes
            Content of an image file.
        name : str
            `path` of the result.

        Returns
        -------
        Photo or Failure, ndarray of float32 (crops, S, S, 3)
            The result, and the input of the network; (0, 0, 0, 3) for a failure.

        Raises
        ------
        UsageError, AlexNetError
            If the reader is closed; if decoder processes can't be started.
        """
        row = np.empty(self._values, np.float32)
        found, shape = self._decoded(name, None, content, row)
        if self._closed.is_set():
            raise _closed()
        shape = shape or (0, 0, 0, 3)
        return found, row[: math.prod(shape)].reshape(shape)

    def batches(self, paths: Iterable[str], batch_size: int) -> Iterator[Batch]:
        """Read photos in batches, in the order of the input.

        Decoding starts with this call and continues while a batch is in use. Memory holds three
        batches (more if they are small), plus those that the caller keeps.

        Parameters
        ----------
        paths : iterable of str
            Photo files, or URLs for fsspec; consumed as needed, in this thread.
        batch_size : int
            Photos per batch, readable or not; the last may be shorter.

        Yields
        ------
        Batch

        Raises
        ------
        UsageError, AlexNetError
            If `batch_size` is not positive, the reader is closed, or a package for a URL is not
            installed; if decoder processes can't be started.
        """
        if batch_size < 1:
            raise UsageError(f"batch of {batch_size}", "nothing would be done", "Use 1 or more.")
        paths, ahead = iter(paths), 1 + -(-_MIN_AHEAD // batch_size)
        waiting: deque[_Waiting] = deque()

        def submit() -> None:
            while len(waiting) < ahead and (some := [*itertools.islice(paths, batch_size)]):
                waiting.append(self._submit([os.fspath(path) for path in some]))

        submit()
        return self._read(waiting, submit)

    def _read(self, waiting: deque[_Waiting], submit: Callable[[], None]) -> Iterator[Batch]:
        """Yield batches as they are done, and submit the next."""
        try:
            while waiting:
                yield self._collect(*waiting.popleft())
                submit()
        finally:
            for future in itertools.chain.from_iterable(futures for _, futures in waiting):
                future.cancel()

    def _submit(self, paths: list[str]) -> _Waiting:
        """Start reading photos into adjacent rows."""
        if self._closed.is_set():
            raise _closed()
        try:
            rows = self._rows(len(paths))
        except MemoryError as error:
            found = f"there is not enough ({error})"
            advice = "Use a smaller batch, or raise the limits of this program (ulimit -a)."
            raise AlexNetError("memory for photos", found, advice) from error
        # Absolute: the working folder may change before the photo is read.
        here = os.getcwd()
        work = zip(paths, rows, strict=True)
        return rows, [self._threads.submit(self._photo, path, here, row) for path, row in work]

    def _rows(self, count: int) -> np.ndarray:
        """Memory for photos, reused once there are no more views of it.

        The system clears new memory page by page, which takes longer than copying pixels into it.
        """
        size, block = count * self._values, None
        with contextlib.suppress(IndexError):
            block = self._free.pop()
        if block is None or block.size < size:
            block = np.empty(size, np.float32)
        # All views of an array made from a memoryview have that array as their base.
        rows = np.frombuffer(memoryview(block), np.float32, size)
        weakref.finalize(rows, self._free.append, block).atexit = False
        return rows.reshape(count, -1)

    def _photo(self, path: str, here: str, row: np.ndarray) -> _Found:
        """Fetch and decode a photo into its row (in one of the threads)."""
        file, fetched = os.path.join(here, path), b""
        if is_url(path):
            file = None
            if not hasattr(self._local, "fetcher"):
                self._local.fetcher = Fetcher(read_url)
            try:
                fetched = self._local.fetcher.fetch(path, self._closed)
            except ImageError as error:
                return Failure(path, error.code, error.found), ()
        return self._decoded(path, file, fetched, row)

    def _decoded(self, path: str, file: str | None, fetched: bytes, row: np.ndarray) -> _Found:
        """Decode a photo into its row, in an idle process."""
        decoder = self._idle.get()
        try:
            return decoder.decode(path, file, fetched, row)
        finally:
            self._idle.put(decoder)

    def _collect(self, rows: np.ndarray, futures: list[Future[_Found]]) -> Batch:
        """Wait for all photos of a batch, and separate the readable ones from the failures."""
        photos, failures, good = [], [], []
        for number, future in enumerate(futures):
            with contextlib.suppress(CancelledError):
                found, shape = future.result()
            if self._closed.is_set():  # closing kills processes: don't blame photos
                raise _closed()
            self._shape = self._shape or tuple(shape)
            if isinstance(found, Photo) and self._shape != tuple(shape):  # in preset "raw"
                text = f"it has {shape[2]}x{shape[1]} pixels, those before {self._shape[2]}x"
                text += f"{self._shape[1]}, and preset {self._preset!r} does not resize"
                found = Failure(found.path, "bad_shape", text, found.stat, found.digest)
            if isinstance(found, Failure):
                failures.append(found)
            else:
                photos.append(found)
                good.append(number)
        crops, *picture = self._shape or (1, 0, 0, 3)
        pixels = rows[:, : crops * math.prod(picture)]
        if failures:
            pixels = pixels[good]
        return Batch(photos, pixels.reshape(len(good) * crops, *picture), failures)


def _closed() -> UsageError:
    """The error after `close`."""
    return UsageError("photo reader", "it is closed", "Keep it open until the last batch.")


class _Decoder:
    """A process that runs `tf_alexnet.extraction.decoder`, replaced when it ends or hangs."""

    def __init__(self, settings: dict[str, Any], mean: bytes):
        self._settings, self._mean = settings, mean
        self._process: subprocess.Popen | None = None
        self._pixels: BinaryIO | None = None
        self._closed = False

    def decode(self, path: str, file: str | None, fetched: bytes, row: np.ndarray) -> _Found:
        """Decode a file, or fetched bytes, into a row."""
        limit, longest = self._settings["timeout"], self._settings["stalled"]
        for _ in range(_TRIES):
            if not self._process:
                self._start()
            began, state = time.monotonic(), (None, None)
            try:
                self._send(json.dumps([file, len(fetched)]).encode() + b"\n" + fetched)
                state = json.loads(self._line())
                code, detail, shape = json.loads(self._line())
            except EOFError:
                ended = self.end()
                code, detail = "worker_died", "it ended the process that decoded it"
                if ended == _OUT_OF_TIME:
                    text = f"it took more than {limit:g} seconds of processor time"
                    return Failure(path, "timed_out", text, *state), ()
                if time.monotonic() - began >= longest:
                    code, detail = "timed_out", f"reading it stalled for {longest:g} seconds"
                continue
            if code:
                break
            self._pixels.seek(0)
            self._pixels.readinto(row[: math.prod(shape)])
            if detail and not self._settings.get("noted"):
                self._settings["noted"] = True  # all decoders share these settings
                _log.warning("%s: %s", one_line(path), detail)
            return Photo(path, *state), shape
        return Failure(path, code, detail, *state), ()

    def _start(self) -> None:
        """Start a process, in up to three tries: it may be killed meanwhile."""
        for _ in range(3):
            try:
                self._run()
                while self._line() != READY:
                    pass
                return
            except EOFError:
                self._pixels.seek(0)
                text = self._pixels.read().decode("utf-8", "replace").strip()
                reason = text.rpartition("\n")[2] or f"exit code {self.end()}"
            except OSError as error:
                reason = error
            self.end()
            if self._closed:
                raise _closed()
        advice = "Check that Python, NumPy, Pillow and OpenCV work in a new process."
        raise AlexNetError("decoder process", f"it did not start ({reason})", advice)

    def _run(self) -> None:
        """Run the program. Errors at startup, and later pixels, go to its file."""
        if hasattr(os, "memfd_create"):
            self._pixels = os.fdopen(os.memfd_create("tf-alexnet pixels"), "r+b", buffering=0)
        else:
            self._pixels = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._pixels,
            env={**os.environ, **_ENVIRONMENT},
        )
        if self._closed:  # `close` came too early to kill this process
            self._process.kill()
        self._send(json.dumps(self._settings).encode() + b"\n" + self._mean)

    def _send(self, data: bytes) -> None:
        """Send bytes; if the process has ended, `_line` notices."""
        with contextlib.suppress(OSError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _line(self) -> bytes:
        """The next line from the process; `EOFError` if it ends first."""
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def close(self) -> None:
        """Kill the process and start no other; may be called from another thread."""
        self._closed = True
        if process := self._process:
            process.kill()

    def end(self) -> int | None:
        """Kill the process, if there is one, clean up, and return its exit code."""
        process, self._process = self._process, None
        if self._pixels:
            self._pixels.close()
        if not process:
            return None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        return process.wait()
