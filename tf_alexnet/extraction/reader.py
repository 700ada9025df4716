"""`PhotoReader`: photos in, preprocessed batches out, decoded ahead in processes of their own."""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from tf_alexnet.errors import AlexNetError, UsageError
from tf_alexnet.extraction.decoder import READY, REASONS, Answer, Failure, Photo
from tf_alexnet.images import preprocess_input, recorded_name, resolve
from tf_alexnet.images.decode import read_url
from tf_alexnet.images.mean_image import Mean
from tf_alexnet.images.presets import Preset
from tf_alexnet.remote import filesystem, is_url

__all__ = ["REASONS", "Batch", "Failure", "Photo", "PhotoReader"]

PROGRAM = "tf_alexnet.extraction.decoder"
# Not `python -m`: that would look for modules in the working folder first, which may be a folder
# of somebody's photos. The process finds modules where this one does, and nowhere else.
_START = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "import importlib; importlib.import_module(sys.argv[1]).main()"
)
_READY_WITHIN = 120.0
# Libraries built for many threads would start them, and reserve memory for each.
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # The C library gives memory back after every photo and asks for it again at the next, page by
    # page: half of the time that decoding takes. It may keep 128 MiB, and what is larger, too.
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
    "MALLOC_MMAP_MAX_": "0",
}

_MIN_AHEAD = 32  # photos decoded ahead of the current batch, however small batches are
_FETCHES = 16  # URLs fetched at once
_TRIES = 2  # a process may be killed by others too; a photo that ends two is to blame
_RAW_SIDE = 512
_MAX_BLOCKS = 64  # a caller who keeps more batches than this gets copies


class Batch(NamedTuple):
    """Consecutive photos of the input, in its order.

    Attributes
    ----------
    photos : list of Photo
        The photos that could be read.
    pixels : ndarray of float32, (len(photos) * crops, S, S, 3)
        The network's input; (0, S, S, 3) if no photo could be read.
    failures : list of Failure
        The photos that could not be read.
    """

    photos: list[Photo]
    pixels: np.ndarray
    failures: list[Failure]

    @property
    def paths(self) -> list[str]:
        """Names of the photos that could be read."""
        return [photo.path for photo in self.photos]


class _Task:
    """A photo to be decoded: where its pixels go, and what became of it."""

    def __init__(self, path: str, offset: int, block: np.ndarray):
        self.path, self.offset = path, offset
        self.block = block  # kept until the photo is done: nobody else may get this memory
        self.remote = is_url(path)
        # Absolute: the working folder may be another one when the photo is read.
        self.file = None if self.remote else os.path.join(os.getcwd(), path)
        self.fetched = b""
        self.refusal: Answer | None = None
        self.state: tuple[str | None, str | None] = None, None  # stat and digest
        self.answer: Future[Answer] = Future()


class PhotoReader:
    """Reads, decodes and preprocesses photos in processes of their own.

    A photo that crashes or hangs a decoder is one failure in its batch, and the process is
    replaced. Processes start when there is work for them and end with the reader, or with the
    program that runs it, however that ends. Use as a context manager.

    Parameters
    ----------
    preset : str or Preset
        A preset that has a name.
    mean_image : array, path or three numbers, optional
        As in `preprocess_input`.
    crops : {"center", "ten"}
        One or ten pictures per photo.
    workers : int, optional
        Number of processes; by default one for each processor that this program may use.
    timeout : float
        Seconds that one photo may take.
    fast_decode : bool
        Decode JPEGs of more than four times the network's size at a half, a quarter or an eighth
        of theirs, whichever still is twice the network's. See Notes.

    Raises
    ------
    PresetError, InputError
        If preset, mean image and crops don't go together.
    UsageError
        If `workers` or `timeout` is not positive.

    Notes
    -----
    `fast_decode` changes pixels: JPEG's own averages come before the resize, which in preset
    "caffe" takes single pixels. Relative L2 distance in the median, for 24 enlarged photos and for
    16 collages of 12 megapixels whose finest detail is one pixel wide: 0.013 and 0.030 at pool5
    (trained torchvision network), 0.008 and 0.073 at fc7 (Caffe network, random weights).
    """

    def __init__(
        self,
        preset: str | Preset,
        *,
        mean_image: Mean = None,
        crops: str = "center",
        workers: int | None = None,
        timeout: float = 10.0,
        fast_decode: bool = False,
    ):
        record, mean_image = resolve(preset, mean_image)
        self._preset = recorded_name(record)
        # Preprocessing a small picture gives the shape of a row, or what is wrong with the call.
        row = preprocess_input(
            [np.zeros((8, 8, 3), np.uint8)], record, mean_image=mean_image, crops=crops
        )
        if workers is None and hasattr(os, "sched_getaffinity"):
            workers = len(os.sched_getaffinity(0))
        elif workers is None:
            workers = os.cpu_count() or 1
        if workers < 1 or not timeout > 0:
            raise UsageError(
                f"{workers} workers, timeout {timeout}", "nothing could be read", "Use more."
            )
        self._shape: tuple[int, ...] | None = row.shape if record.size else None
        self._values = row.size if self._shape else _RAW_SIDE * _RAW_SIDE * 3
        self._workers, self._timeout = workers, float(timeout)
        self._rows = _SharedRows()
        mean = None
        if mean_image is not None:
            offset, self._mean = self._rows.take(mean_image.size)
            self._mean[:] = mean_image.ravel()
            mean = offset, mean_image.shape
        self._settings = {
            "preset": self._preset,
            "mean_image": mean,
            "crops": crops,
            # At just the side resized to, that would be 15 % faster and the features three times
            # as far off.
            "least": 2 * record.resized if fast_decode else None,
            "rows": self._rows.file,
            "row": 4 * self._values,
            "alarm": 2 * self._timeout,
        }
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._fetchers = ThreadPoolExecutor(_FETCHES, "fetch photos")
        self._fetched = threading.BoundedSemaphore(2 * _FETCHES)  # limits what is in memory
        self._decoders: dict[threading.Thread, _Decoder] = {}
        self._lock = threading.Lock()  # nothing is queued after `close`
        self._closed = False

    def __enter__(self) -> PhotoReader:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; batches that were handed out stay as they are."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for decoder in self._decoders.values():
            decoder.close()
        self._fetchers.shutdown()
        for _ in self._decoders:
            self._tasks.put(None)
        for thread in self._decoders:
            thread.join()
        self._rows.close()

    def batches(self, paths: Iterable[str], batch_size: int) -> Iterator[Batch]:
        """Read photos in batches, in the order of the input.

        Decoding begins with this call, not with the first batch. While one batch is in use, the
        next is being decoded; memory holds three batches, and those that the caller keeps.

        Parameters
        ----------
        paths : iterable of str
            Photo files, or URLs that fsspec can open (``s3://``, ``gs://``, ``memory://``).
            Consumed as they are needed, in this thread.
        batch_size : int
            Photos per batch, readable or not; the last may be shorter.

        Yields
        ------
        Batch

        Raises
        ------
        UsageError
            If `batch_size` is not positive, the reader is closed, or a package that opens a URL is
            not installed.
        AlexNetError
            If decoder processes can't be started.
        """
        if batch_size < 1:
            raise UsageError(f"batch of {batch_size}", "nothing would be done", "Use 1 or more.")
        paths, ahead = iter(paths), 1 + -(-_MIN_AHEAD // batch_size)
        waiting: deque[list[_Task]] = deque()

        def submit() -> None:
            while len(waiting) < ahead and (some := [*itertools.islice(paths, batch_size)]):
                waiting.append(self._submit(some))

        submit()
        return self._read(waiting, submit)

    def _read(self, waiting: deque[list[_Task]], submit: Callable[[], None]) -> Iterator[Batch]:
        """Yield batches as they are done, and submit the next."""
        try:
            while waiting:
                yield self._collect(waiting.popleft())
                submit()
        finally:
            for task in itertools.chain.from_iterable(waiting):
                task.answer.cancel()

    def _submit(self, paths: list[str]) -> list[_Task]:
        """Queue photos for decoding; their pixels will lie side by side."""
        schemes = {path.partition(":")[0]: path for path in paths if is_url(path)}
        for url in schemes.values():
            filesystem(url)  # raises if a package is missing, here rather than photo by photo
        with self._lock:
            self._check_open()
            offset, block = self._rows.take(len(paths) * self._values)
            tasks = [
                _Task(os.fspath(path), offset + 4 * self._values * number, block)
                for number, path in enumerate(paths)
            ]
            while len(self._decoders) < min(self._workers, len(tasks)):
                decoder = _Decoder(self._settings, self._timeout)
                thread = threading.Thread(target=self._serve, args=[decoder], daemon=True)
                self._decoders[thread] = decoder
                thread.start()
            for task in tasks:
                if task.remote:
                    self._fetchers.submit(self._fetch, task)
                else:
                    self._tasks.put(task)
        return tasks

    def _check_open(self) -> None:
        """Raise `UsageError` after `close`."""
        if self._closed:
            raise UsageError("photo reader", "it is closed", "Keep it open to the last batch.")

    def _fetch(self, task: _Task) -> None:
        """Fetch a URL, then queue it for decoding."""
        self._fetched.acquire()
        try:
            if not (self._closed or task.answer.cancelled()):
                task.fetched = read_url(task.path)
        except AlexNetError as error:
            task.refusal = Answer(getattr(error, "code", "unreadable"), error.found)
        finally:
            self._tasks.put(task)

    def _serve(self, decoder: _Decoder) -> None:
        """Give photos to a decoder until the reader is closed (the work of one thread)."""
        for task in iter(self._tasks.get, None):
            if task.answer.set_running_or_notify_cancel():
                try:
                    self._check_open()
                    answer = task.refusal or decoder.decode(task)
                    self._check_open()  # closing kills the process, which is no photo's fault
                    task.answer.set_result(answer)
                except BaseException as error:
                    task.answer.set_exception(error)
            if task.remote:
                task.fetched = b""
                self._fetched.release()
            del task  # or its block would be kept until the next one comes
        decoder.end()

    def _collect(self, tasks: list[_Task]) -> Batch:
        """Wait until all photos of a batch are done, and separate the readable from the others."""
        photos, failures, good = [], [], []
        for number, task in enumerate(tasks):
            answer = self._same_size(task.answer.result())
            if answer.code:
                failures.append(Failure(task.path, answer.code, answer.detail, *task.state))
            else:
                photos.append(Photo(task.path, *task.state))
                good.append(number)
        crops, *picture = self._shape or (1, 0, 0, 3)
        pixels = tasks[0].block.reshape(len(tasks), -1)[:, : crops * int(np.prod(picture))]
        if failures:
            pixels = pixels[good]
        elif self._rows.taken > _MAX_BLOCKS:
            pixels = pixels.copy()
        return Batch(photos, pixels.reshape(len(good) * crops, *picture), failures)

    def _same_size(self, answer: Answer) -> Answer:
        """Refuse a photo of another size than the first, in presets without a size ("raw")."""
        size = answer.height, answer.width
        if not answer.code:
            self._shape = self._shape or (1, *size, 3)
        if answer.code or self._shape[1:3] == size:
            return answer
        text = f"it has {size[1]}x{size[0]} pixels, those before {self._shape[2]}x"
        text += f"{self._shape[1]}, and preset {self._preset!r} changes no size"
        return Answer("bad_shape", text)


class _Decoder:
    """A process that runs `tf_alexnet.extraction.decoder`, replaced when it ends or hangs."""

    def __init__(self, settings: dict[str, Any], timeout: float):
        self._settings, self._timeout = settings, timeout
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket | None = None
        self._closed = False

    def decode(self, task: _Task) -> Answer:
        """Decode a photo into its row of the shared memory."""
        for _ in range(_TRIES):
            try:
                if not self._process:
                    self._start()
                deadline = time.monotonic() + self._timeout
                self._send(task)
                task.state = tuple(json.loads(self._line(deadline)))
                return Answer(*json.loads(self._line(deadline)))
            except EOFError:
                self.end()
            except TimeoutError:
                self.end()
                return Answer("timed_out", f"it took more than {self._timeout:g} seconds")
        return Answer("worker_died", "it ended the process that decoded it")

    def _start(self) -> None:
        """Start a process, up to three times: somebody may kill it meanwhile."""
        for _ in range(3):
            if self._closed:
                raise EOFError
            last = b""
            try:
                self._run()
                if self._closed:  # `close` came too early to kill this process
                    self._process.kill()
                deadline = time.monotonic() + _READY_WITHIN
                while (line := self._line(deadline)) != READY:
                    last = line or last
                return
            except (EOFError, TimeoutError):
                code = self.end()
                reason = last.decode("utf-8", "replace") or f"exit code {code}"
            except OSError as error:
                self.end()
                reason = error
        raise AlexNetError(
            "decoder process",
            f"it did not start ({reason})",
            "Check that Python, NumPy, Pillow and OpenCV work in a new process.",
        )

    def _run(self) -> None:
        """Run the program, with a socket for its input and for the errors of its start."""
        self._socket, theirs = socket.socketpair()
        self._buffer = b""
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, PROGRAM, json.dumps(self._settings), *sys.path],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=theirs,
                pass_fds=[self._settings["rows"]],
                env={**os.environ, **_ENVIRONMENT},
            )

    def _send(self, task: _Task) -> None:
        """Ask for a photo; `TimeoutError` if the process takes no request."""
        request = json.dumps([task.offset, task.file, len(task.fetched)])
        self._socket.settimeout(self._timeout)
        with contextlib.suppress(ConnectionError):  # `_line` notices that the process has ended
            self._socket.sendall(request.encode() + b"\n")
            self._socket.sendall(task.fetched)

    def _line(self, deadline: float) -> bytes:
        """The next line that the process sends; `EOFError` or `TimeoutError` if there is none."""
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            more = b""
            with contextlib.suppress(ConnectionError):
                more = self._socket.recv(65536)
            if not more:
                raise EOFError
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def close(self) -> None:
        """Kill the process, from another thread."""
        self._closed = True
        if process := self._process:
            process.kill()

    def end(self) -> int | None:
        """Kill the process if there is one, leave nothing of it behind and return its exit code."""
        process, self._process = self._process, None
        if self._socket:
            self._socket.close()
        if process:
            process.kill()
        return process and process.wait()


class _SharedRows:
    """Memory that decoder processes write and the network reads, without a copy.

    Blocks of float32 in a file without a name, so that nothing of it can be left behind. Once the
    array of a block and all views of it are gone, its memory is used again.
    """

    def __init__(self):
        if hasattr(os, "memfd_create"):
            self.file = os.memfd_create("tf-alexnet pixels")
        else:
            with tempfile.TemporaryFile() as file:
                self.file = os.dup(file.fileno())
        self._end = self._blocks = 0
        self._closed = False
        self._free: list[tuple[int, mmap.mmap]] = []

    def take(self, values: int) -> tuple[int, np.ndarray]:
        """A block's offset in bytes, and the block; `AlexNetError` if there is no memory for it."""
        for number, (_, block) in enumerate(self._free):
            if len(block) >= 4 * values:
                offset, block = self._free.pop(number)
                break
        else:
            offset, length = self._end, -(-4 * values // mmap.PAGESIZE) * mmap.PAGESIZE
            try:
                os.ftruncate(self.file, offset + length)
                block = mmap.mmap(self.file, length, offset=offset)
            except OSError as error:
                raise AlexNetError(
                    "memory for photos",
                    f"there are not {length:,} bytes more ({error.strerror})",
                    "Use a smaller batch, or raise the limits of this program (ulimit -a).",
                ) from error
            self._end += length
            self._blocks += 1
        # All views of an array made from a foreign buffer have it for their base, so it lives as
        # long as any of them does.
        array = np.frombuffer(block, np.float32, values)
        weakref.finalize(array, self._give_back, offset, block).atexit = False
        return offset, array

    @property
    def taken(self) -> int:
        """Blocks in use. Each has a file descriptor, so there should not be hundreds."""
        return self._blocks - len(self._free)

    def _give_back(self, offset: int, block: mmap.mmap) -> None:
        """Let the next one who asks have this memory."""
        if not self._closed:
            self._free.append((offset, block))

    def close(self) -> None:
        """Close the file; arrays that were taken stay as they are."""
        self._closed = True
        self._free.clear()
        os.close(self.file)
