"""`PhotoReader`: photos in, preprocessed batches out, decoded ahead in processes of their own."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from tf_alexnet.errors import AlexNetError, UsageError
from tf_alexnet.extraction.decoder import LENGTH, PATH, PHOTO, READ, REASONS
from tf_alexnet.extraction.decoder_process import (
    Answer,
    DecoderEndedError,
    DecoderHungError,
    DecoderProcess,
)
from tf_alexnet.extraction.shared_rows import SharedRows
from tf_alexnet.images import preprocess_input, recorded_name, resolve
from tf_alexnet.images.decode import read_url
from tf_alexnet.images.mean_image import Mean
from tf_alexnet.images.presets import Preset
from tf_alexnet.remote import filesystem, is_url

__all__ = ["REASONS", "Batch", "Failure", "PhotoReader"]

_LEAST_AHEAD = 32  # photos being decoded beside the batch that is due, however small batches are
_DEPTH = 3  # photos a process knows of, so that it need not wait for the next
_FETCHES = 16  # remote photos on their way at once
_TRIES = 2  # a process may be ended by others too; a photo that ends two is guilty
_MEMORY = 3 * 2**29  # for one process; 50 megapixels take up to 1 GB (JPEG 2000), mostly half
_RAW_SIDE = 512
_BLOCKS = 64  # a caller who keeps more batches than this gets copies


class Failure(NamedTuple):
    """A photo that gave no row.

    Attributes
    ----------
    path : str
        The photo.
    code : str
        One of `REASONS`.
    detail : str
        What was found, in a line.
    """

    path: str
    code: str
    detail: str


class Batch(NamedTuple):
    """Some photos of the input, in its order.

    Attributes
    ----------
    paths : list of str
        The photos that could be read.
    pixels : ndarray of float32, (len(paths) * crops, S, S, 3)
        What the network takes; (0, S, S, 3) if none could be read.
    failures : list of Failure
        Those that could not.
    """

    paths: list[str]
    pixels: np.ndarray
    failures: list[Failure]


class _Task:
    """One photo on its way: where its pixels go, and what became of it."""

    __slots__ = ("answer", "block", "deaths", "offset", "path", "photo", "remote")

    def __init__(self, path: str, offset: int, block: np.ndarray):
        self.path, self.offset = path, offset
        self.block = block  # kept until the photo is done with: nobody else may get this memory
        self.remote = is_url(path)
        self.photo: Future[bytes | Answer] | None = None
        self.answer: Answer | None = None
        self.deaths = 0


class PhotoReader:
    """Reads, decodes and preprocesses photos in processes of their own.

    A photo that crashes or hangs a decoder is one failure in its batch, and the process is started
    anew. Processes start when there is work for them and end with the reader, or with the program
    that it runs in, however that ends. Use as a context manager.

    Parameters
    ----------
    preset : str or Preset
        A preset that a name stands for.
    mean_image : array, path or three numbers, optional
        As in `preprocess_input`.
    crops : {"center", "ten"}
        One picture a photo, or ten.
    workers : int, optional
        Processes; by default one for each processor that this program may use.
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
        If `workers` or `timeout` make no sense.

    Notes
    -----
    `fast_decode` makes other pixels: JPEG's own averages come before the resize, which in preset
    "caffe" takes single pixels. What that changes was measured on pictures of 12 megapixels made
    of flower photos, 24 enlarged and 16 collages, whose finest detail is one pixel wide:

    - pool5, trained torchvision network: relative L2 distance 0.013 (enlarged) and 0.030
      (collages) in the median, cosine at least 0.9994; different pictures: at most 0.70;
    - fc7, Caffe network with random weights: 0.008 and 0.073, cosine at least 0.9999 and 0.9966.
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
        # What a small picture becomes tells the shape of a row, or what is wrong with the call.
        row = preprocess_input(
            [np.zeros((8, 8, 3), np.uint8)], record, mean_image=mean_image, crops=crops
        )
        if workers is None:
            workers = _processors()
        if workers < 1 or not timeout > 0:
            raise UsageError(
                f"{workers} workers, timeout {timeout}", "nothing could be read", "Use more."
            )
        self._shape: tuple[int, ...] | None = row.shape if record.size else None
        self._values = row.size if self._shape else _RAW_SIDE * _RAW_SIDE * 3
        self._workers, self._timeout = workers, float(timeout)
        self._rows = SharedRows()
        self._settings = _message(
            mean_image,
            preset=self._preset,
            crops=crops,
            fast_decode=fast_decode,
            pixels=self._rows.file,
            row=4 * self._values,
            alarm=2 * self._timeout,
            memory=_MEMORY,
        )
        self._changed = threading.Condition()
        self._queue: deque[_Task] = deque()
        self._threads: list[threading.Thread] = []
        self._processes: set[DecoderProcess] = set()
        self._fetchers = ThreadPoolExecutor(_FETCHES, "fetch photos")
        self._fault: BaseException | None = None
        self._closed = False

    def __enter__(self) -> PhotoReader:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; batches that were handed out stay as they are."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._queue.clear()
            for process in self._processes:
                process.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._fetchers.shutdown(cancel_futures=True)
        self._rows.close()

    def batches(self, paths: Iterable[str], batch_size: int) -> Iterator[Batch]:
        """Read photos, a batch at a time, in the order of the input.

        Decoding begins with this call, not with the first batch. While one batch is in use, the
        next is being decoded; memory holds three batches, and those that the caller keeps.

        Parameters
        ----------
        paths : iterable of str
            Photo files, or URLs that fsspec can open (``s3://``, ``gs://``, ``memory://``). Asked
            for as they are needed, in this thread.
        batch_size : int
            Photos a batch, readable or not; the last may be shorter.

        Yields
        ------
        Batch

        Raises
        ------
        UsageError
            If a batch would be empty, the reader is closed, or what opens a URL is not installed.
        AlexNetError
            If decoder processes can't be started.
        """
        if batch_size < 1:
            raise UsageError(f"batch of {batch_size}", "nothing would be done", "Use 1 or more.")
        paths, ahead = iter(paths), 1 + -(-_LEAST_AHEAD // batch_size)
        waiting: deque[list[_Task]] = deque()

        def submit() -> None:
            while len(waiting) < ahead and (some := [*itertools.islice(paths, batch_size)]):
                waiting.append(self._submit(some))

        submit()
        return self._read(waiting, submit)

    def _read(self, waiting: deque[list[_Task]], submit: Callable[[], None]) -> Iterator[Batch]:
        try:
            while waiting:
                yield self._collect(waiting.popleft())
                submit()
        finally:
            with self._changed:
                given_up = {id(task) for tasks in waiting for task in tasks}
                self._queue = deque(t for t in self._queue if id(t) not in given_up)

    def _submit(self, paths: list[str]) -> list[_Task]:
        """Queue photos for decoding; their pixels will lie side by side."""
        self._check_open()
        schemes = {path.partition(":")[0]: path for path in paths if is_url(path)}
        for url in schemes.values():
            filesystem(url)  # complains of what is not installed, here rather than photo by photo
        offset, block = self._rows.take(len(paths) * self._values)
        tasks = [
            _Task(os.fspath(path), offset + 4 * self._values * number, block)
            for number, path in enumerate(paths)
        ]
        with self._changed:
            self._queue.extend(tasks)
            self._fetch_ahead()
            self._changed.notify_all()
        while len(self._threads) < min(self._workers, len(tasks)):
            self._threads.append(threading.Thread(target=self._serve, daemon=True))
            self._threads[-1].start()
        return tasks

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("photo reader", "it is closed", "Keep it open to the last batch.")

    def _collect(self, tasks: list[_Task]) -> Batch:
        """Wait until all photos of a batch are done, and part the readable from the others."""
        with self._changed:
            while not self._fault and not all(task.answer for task in tasks):
                self._check_open()
                self._changed.wait()
            if self._fault:
                raise self._fault
        if self._shape is None:
            self._settle_raw(tasks)
        good = [number for number, task in enumerate(tasks) if task.answer.reason == READ]
        crops, *picture = self._shape or (1, 0, 0, 3)
        pixels = tasks[0].block.reshape(len(tasks), -1)[:, : crops * int(np.prod(picture))]
        if len(good) < len(tasks):
            pixels = pixels[good]
        elif self._rows.taken > _BLOCKS:
            pixels = pixels.copy()
        return Batch(
            [tasks[number].path for number in good],
            pixels.reshape(len(good) * crops, *picture),
            [
                Failure(task.path, REASONS[task.answer.reason], task.answer.text)
                for task in tasks
                if task.answer.reason != READ
            ],
        )

    def _settle_raw(self, tasks: list[_Task]) -> None:
        """Without a size of its own, as in preset "raw", the first photo's is that of all."""
        for task in tasks:
            if task.answer.reason != READ:
                continue
            height, width = task.answer.height, task.answer.width
            self._shape = self._shape or (1, height, width, 3)
            if self._shape[1:3] != (height, width):
                text = f"it has {width}x{height} pixels, those before {self._shape[2]}x"
                text += f"{self._shape[1]}, and preset {self._preset!r} changes no size"
                task.answer = _failed("bad_shape", text)

    def _serve(self) -> None:
        """What one thread does: keep one process busy, and see to what becomes of it."""
        process, sent = None, 0
        tasks: deque[_Task] = deque()
        try:
            while self._take(tasks):
                try:
                    process = process or self._start()
                    while sent < len(tasks) and (not sent or _is_light(tasks[sent])):
                        self._send(process, tasks[sent])
                        sent += 1
                    answer = tasks[0].answer or process.receive(self._timeout)
                except DecoderEndedError:
                    process, sent = self._end(process), 0
                    tasks[0].deaths += 1
                    if tasks[0].deaths < _TRIES:
                        continue
                    answer = _failed("worker_died", "it ended the process that decoded it")
                except DecoderHungError:
                    process, sent = self._end(process), 0
                    answer = _failed("timed_out", f"it took more than {self._timeout:g} seconds")
                else:
                    sent -= 1
                self._done(tasks.popleft(), answer)
        except BaseException as error:
            with self._changed:
                self._fault = self._fault or error
                self._changed.notify_all()
        finally:
            self._end(process)

    def _take(self, tasks: deque[_Task]) -> bool:
        """Add to the tasks of a process what is due; wait if it has none. False at the end."""
        with self._changed:
            while not (tasks or self._queue or self._closed):
                self._changed.wait()
            if self._closed:
                return False
            # The last few are left to processes that have nothing else to do.
            while self._queue and (
                not tasks or (len(tasks) < _DEPTH and len(self._queue) >= self._workers)
            ):
                tasks.append(self._queue.popleft())
            self._fetch_ahead()
        return True

    def _fetch_ahead(self) -> None:
        for task in itertools.islice(self._queue, _FETCHES):
            self._fetch(task)

    def _fetch(self, task: _Task) -> None:
        if task.remote and task.photo is None:
            task.photo = self._fetchers.submit(_fetched, task.path)

    def _start(self) -> DecoderProcess:
        for last in (False, False, True):
            process = DecoderProcess(self._settings, self._rows.file)
            with self._changed:
                self._processes.add(process)
                if self._closed:
                    process.kill()
            try:
                process.wait_until_ready()
            except AlexNetError:
                self._end(process)
                if last:
                    raise
            else:
                return process
        raise AssertionError

    def _end(self, process: DecoderProcess | None) -> None:
        if process:
            with self._changed:
                self._processes.discard(process)
            process.end()

    def _send(self, process: DecoderProcess, task: _Task) -> None:
        if not task.remote:
            path = os.path.join(os.getcwd(), task.path)  # the process has a working folder too
            process.send(PATH, task.offset, os.fsencode(path), self._timeout)
            return
        photo = task.photo.result()
        if isinstance(photo, Answer):
            task.answer = photo
        else:
            process.send(PHOTO, task.offset, photo, self._timeout)

    def _done(self, task: _Task, answer: Answer) -> None:
        with self._changed:
            task.answer = answer
            self._changed.notify_all()


def _processors() -> int:
    """Processors that this program may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _message(mean_image: np.ndarray | None, **settings: Any) -> bytes:
    """What a decoder process reads first: length, settings, mean image."""
    raw = b"" if mean_image is None else mean_image.tobytes()
    shape = None if mean_image is None else mean_image.shape
    encoded = json.dumps({**settings, "mean_image": shape}).encode()
    return LENGTH.pack(len(encoded)) + encoded + raw


def _is_light(task: _Task) -> bool:
    """Whether a request fits into a pipe that nobody reads at the moment."""
    return not task.remote and len(task.path) < 4096


def _failed(code: str, text: str) -> Answer:
    return Answer(REASONS.index(code), text, 0, 0)


def _fetched(url: str) -> bytes | Answer:
    """What a URL holds, or why it can't be had."""
    try:
        return read_url(url)
    except AlexNetError as error:
        return _failed(getattr(error, "code", "unreadable"), error.found)
