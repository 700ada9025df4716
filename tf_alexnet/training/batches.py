"""Batches for training, read ahead: while the network works on one, threads make the next.

A first pass reads every photo in processes of their own, so that a file that crashes a decoder
costs that file (`examine_photos`). What came through is then read again in each epoch by threads,
as it is cheaper: decoding and resizing let other threads run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_alexnet.extraction.reader import Failure, PhotoReader
from tf_alexnet.images import load_image, preprocess_input
from tf_alexnet.images.presets import Preset
from tf_alexnet.training.augment import (
    DRAWS,
    augmentation,
    generator_of,
    training_picture,
)
from tf_alexnet.training.folders import Example

_AHEAD = 3  # batches that are ready or being made
_BATCH = 64  # photos, in the first pass


@dataclass(frozen=True)
class Examined:
    """What the first pass found.

    Attributes
    ----------
    failures : tuple of Failure
        Photos that can't be read, and why.
    covariance : ndarray of float64, (3, 3), or None
        Of the RGB values in 0..1 of the training pixels, if it was asked for.
    """

    failures: tuple[Failure, ...]
    covariance: np.ndarray | None = None


def examine_photos(
    train: Sequence[str],
    val: Sequence[str],
    preset: Preset,
    *,
    covariance: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Examined:
    """Read all photos once: which can't be, and how the colours of the training photos vary.

    Parameters
    ----------
    train, val : sequence of str
        Photo files.
    preset : Preset
        Colours are those of the pixels that this makes of a photo.
    covariance : bool
        Whether to look at the colours.
    workers : int, optional
        Decoding processes.
    progress : callable, optional
        Called with photos done, all photos, and failures.
    """
    failures: list[Failure] = []
    count, total, products = 0, np.zeros(3), np.zeros((3, 3))
    done = 0
    with PhotoReader(preset.name, workers=workers) as reader:
        for part, colours in ((train, covariance), (val, False)):
            for batch in reader.batches(part, _BATCH):
                failures += batch.failures
                done += len(batch.paths) + len(batch.failures)
                if progress:
                    progress(done, len(train) + len(val), len(failures))
                for picture in batch.pixels if colours else ():
                    pixels = _rgb(picture, preset)
                    count += len(pixels)
                    total += pixels.sum(axis=0)
                    products += pixels.T @ pixels
    if not covariance:
        return Examined(tuple(failures))
    mean = total / max(count, 1)
    return Examined(tuple(failures), products / max(count, 1) - np.outer(mean, mean))


def _rgb(picture: np.ndarray, preset: Preset) -> np.ndarray:
    """Preprocessed pixels back as (H * W, 3) float64 RGB in 0..1."""
    pixels = picture.reshape(-1, 3).astype(np.float64)
    if preset.std:
        pixels *= preset.std
    pixels = (pixels + preset.mean) * (preset.divisor / 255)
    return pixels[:, ::-1] if preset.channels == "BGR" else pixels


class Batch(NamedTuple):
    """Some photos for one step.

    Attributes
    ----------
    pixels : tensor or ndarray of float32, (N, S, S, 3)
        What the network takes.
    labels : ndarray of int32, (N,)
        Their classes.
    """

    pixels: Any
    labels: np.ndarray


class BatchReader:
    """Makes batches in threads, ahead of who takes them. A context manager.

    Parameters
    ----------
    preset : Preset
        The network's.
    augment : {"none", "light", "paper"}
        For training batches.
    batch_size : int
        Photos a batch.
    seed : int
        Of order and augmentation.
    covariance : ndarray (3, 3), optional
        For ``paper``.
    threads : int, optional
        By default one a processor.

    Attributes
    ----------
    waited : float
        Seconds that takers of batches have waited.
    """

    def __init__(
        self,
        preset: Preset,
        augment: str,
        batch_size: int,
        seed: int,
        covariance: np.ndarray | None = None,
        threads: int | None = None,
    ):
        self._preset, self._augment, self._size, self._seed = preset, augment, batch_size, seed
        self._readers = ThreadPoolExecutor(threads or os.cpu_count() or 1, "read photos")
        self._makers = ThreadPoolExecutor(1, "make batches")
        self._finish: Callable | None = None
        self.waited = 0.0
        if augment != "none":
            side = (None, None, 3)
            shapes = [tf.TensorSpec((None, *side), tf.uint8), tf.TensorSpec((None, DRAWS))]
            apply = augmentation(augment, preset, covariance)
            self._finish = tf.function(apply, input_signature=shapes, autograph=False)

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *exc_info) -> None:
        for pool in (self._makers, self._readers):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._makers, self._readers):
            pool.shutdown()

    def training(self, examples: Sequence[Example], epoch: int) -> Iterator[Batch]:
        """All photos once, shuffled and augmented as seed and epoch say; the last batch is short.

        Raises
        ------
        ImageError
            If a photo can't be read any more.
        """
        order = np.random.default_rng([self._seed, epoch]).permutation(len(examples)).tolist()

        def read(place: int) -> tuple[np.ndarray, np.ndarray | None]:
            rgb = load_image(examples[place].path)
            if self._augment == "none":
                return preprocess_input([rgb], self._preset)[0], None
            generator = generator_of(self._seed, epoch, place)
            return training_picture(rgb, self._augment, self._preset, generator)

        return self._ahead(examples, order, read)

    def validation(self, examples: Sequence[Example]) -> Iterator[Batch]:
        """All photos once, in their order, exactly as `preprocess_input` makes them."""

        def read(place: int) -> tuple[np.ndarray, None]:
            return preprocess_input([load_image(examples[place].path)], self._preset)[0], None

        return self._ahead(examples, range(len(examples)), read)

    def _ahead(
        self, examples: Sequence[Example], order: Iterable[int], read: Callable[[int], tuple]
    ) -> Iterator[Batch]:
        places = iter(order)
        waiting: deque[Future] = deque()

        def submit() -> None:
            while len(waiting) < _AHEAD and (some := [*itertools.islice(places, self._size)]):
                photos = [self._readers.submit(read, place) for place in some]
                labels = np.array([examples[place].label for place in some], np.int32)
                waiting.append(self._makers.submit(self._made, photos, labels))

        try:
            while True:
                submit()
                if not waiting:
                    return
                start = time.perf_counter()
                batch = waiting[0].result()
                self.waited += time.perf_counter() - start
                waiting.popleft()
                yield batch
        finally:
            for future in waiting:
                future.cancel()
            for future in waiting:  # nothing of one epoch is left when the next begins
                with contextlib.suppress(BaseException):
                    future.result()

    def _made(self, photos: Sequence[Future], labels: np.ndarray) -> Batch:
        pictures, draws = zip(*(photo.result() for photo in photos), strict=True)
        if draws[0] is None:
            return Batch(np.stack(pictures), labels)
        return Batch(self._finish(np.stack(pictures), np.stack(draws)), labels)
