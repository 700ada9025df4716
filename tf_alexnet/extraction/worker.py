"""Photo files -> preprocessed batches, decoded in threads ahead of the network."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tf_alexnet.errors import ImageError, InputError
from tf_alexnet.images import load_image

_AHEAD = 2  # batches decoded before they are needed: memory stays flat, decoders stay busy


class Batch(NamedTuple):
    """Some photos of the input, in its order.

    Attributes
    ----------
    paths : list of str
        The photos that could be read.
    pixels : ndarray of float32, (len(paths) * crops, S, S, 3)
        What the network takes.
    failures : list of (str, str)
        Path and reason of those that could not.
    """

    paths: list[str]
    pixels: np.ndarray
    failures: list[tuple[str, str]]


def read_batches(
    paths: Sequence[str], preprocess: Callable[[Sequence[np.ndarray]], np.ndarray], batch_size: int
) -> Iterator[Batch]:
    """Read, decode and preprocess photos, a batch at a time.

    Decoding runs in as many threads as there are processors, `_AHEAD` batches ahead of the reader.
    An unusable photo becomes an entry in `Batch.failures`; any other error ends the reading.

    Parameters
    ----------
    paths : sequence of str
        Photo files.
    preprocess : callable
        From uint8 RGB pictures to what the network takes, as `FeatureExtractor.preprocess`.
    batch_size : int
        Photos a batch; the last may be shorter.

    Yields
    ------
    Batch
    """

    def read(path: str) -> np.ndarray:
        return preprocess([load_image(path)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[list[tuple[str, Future]]] = deque()
        try:
            for some in _parts(paths, batch_size):
                waiting.append([(path, pool.submit(read, path)) for path in some])
                if len(waiting) > _AHEAD:
                    yield _collect(waiting.popleft())
            while waiting:
                yield _collect(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _parts(paths: Iterable[str], size: int) -> Iterator[list[str]]:
    paths = iter(paths)
    while part := list(itertools.islice(paths, size)):
        yield part


def _collect(jobs: list[tuple[str, Future]]) -> Batch:
    paths, pixels, failures = [], [], []
    for path, job in jobs:
        try:
            pixels.append(job.result())
            paths.append(path)
        except (ImageError, InputError) as error:  # InputError: no preset fits such a shape
            failures.append((path, error.found))
    if not pixels:
        pixels = [np.empty((0, 0, 0, 3), np.float32)]
    return Batch(paths, np.concatenate(pixels), failures)
