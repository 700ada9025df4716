"""Photos for `keras.Model.fit`.

A first pass reads every photo in separate processes, so that a file that crashes a decoder is only
skipped (`examine_photos`). The others are read again in each epoch by threads, which is cheaper:
decoding and resizing release the GIL.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from tf_alexnet.errors import AlexNetError
from tf_alexnet.extraction.reader import PhotoReader
from tf_alexnet.images import load_image
from tf_alexnet.images.presets import Preset
from tf_alexnet.training.augment import augmented
from tf_alexnet.training.folders import Example
from tf_alexnet.training.linear import label_array

_BATCH = 64  # photos, in the first pass


def examine_photos(
    train: Sequence[str],
    val: Sequence[str],
    preset: Preset,
    *,
    covariance: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> tuple[list[list[str]], list[list[float]] | None]:
    """Read all photos once: find unreadable ones, and the covariance of training colours.

    Parameters
    ----------
    train, val : sequence of str
        Photo files.
    preset : Preset
        Colours are taken after this preprocessing.
    covariance : bool
        Whether to compute the covariance.
    workers : int, optional
        Decoder processes.
    progress : callable, optional
        Called with photos done, total and failures.

    Returns
    -------
    failures : list of [path, code, detail]
        Unreadable photos, and why.
    covariance : list of 3 lists of 3 floats, or None
        Of RGB values in 0..1 of the training pixels, if `covariance`.
    """
    failures: list[list[str]] = []
    count, total, products = 0, np.zeros(3), np.zeros((3, 3))
    done = 0
    with PhotoReader(preset.name, workers=workers) as reader:
        for part, colours in ((train, covariance), (val, False)):
            for batch in reader.batches(part, _BATCH):
                failures += [[*failure[:3]] for failure in batch.failures]
                done += len(batch.paths) + len(batch.failures)
                if progress:
                    progress(done, len(train) + len(val), len(failures))
                for picture in batch.pixels if colours else ():
                    pixels = _rgb(picture, preset)
                    count += len(pixels)
                    total += pixels.sum(axis=0)
                    products += pixels.T @ pixels
    if not covariance:
        return failures, None
    mean = total / max(count, 1)
    return failures, (products / max(count, 1) - np.outer(mean, mean)).tolist()


def _rgb(picture: np.ndarray, preset: Preset) -> np.ndarray:
    """Preprocessed pixels back as (H * W, 3) float64 RGB in 0..1."""
    pixels = picture.reshape(-1, 3).astype(np.float64)
    if preset.std:
        pixels *= preset.std
    pixels = (pixels + preset.mean) * (preset.divisor / 255)
    return pixels[:, ::-1] if preset.channels == "BGR" else pixels


class Photos(keras.utils.PyDataset):
    """Batches of photos, labels and weights; a pure function of seed, epoch and index.

    Batches have nearly equal sizes (65 photos in batches of at most 32: 22, 22, 21), so that no
    device is left without photos. Keras reads ahead in one thread; the photos of a batch are read
    by several. A context manager.

    Parameters
    ----------
    examples : sequence of Example
        Photos and labels: class indices, or tuples of them.
    preset : Preset
        The network's.
    batch_size : int
        Largest number of photos in a batch.
    shuffle : bool
        A random order in every epoch, by `seed` and `epoch`; otherwise that of `examples`.
    augment : {"none", "light", "paper"}
        See `tf_alexnet.training.augment`.
    seed : int
        Random seed of order and augmentation.
    covariance : (3, 3) numbers, optional
        From `examine_photos`, for ``paper``.
    class_weights : ndarray of float32 (classes,), optional
        Weights of photos in the loss, by class.
    classes : int, optional
        Number of classes, if labels are tuples of them.
    workers : int, optional
        Threads (default: one per processor).

    Attributes
    ----------
    photos : int
        Number of photos.
    epoch : int
        The current epoch, from 1. The callback `Epochs` sets it.
    ready : dict of int to float
        Batch index -> time when it was made, by `time.perf_counter`.
    failure : AlexNetError or None
        The error of a batch; TensorFlow passes on only its text.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        preset: Preset,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: str = "none",
        seed: int = 0,
        covariance: Sequence[Sequence[float]] | None = None,
        class_weights: np.ndarray | None = None,
        classes: int | None = None,
        workers: int | None = None,
    ):
        super().__init__()  # several workers of Keras keep batches of an epoch that was left
        self.photos = len(examples)
        self._examples, self._preset = examples, preset
        self._count = math.ceil(len(examples) / batch_size)
        self._shuffle, self._augment, self._seed = shuffle, augment, seed
        self._covariance, self._class_weights = covariance, class_weights
        self._classes = classes
        self._pool = ThreadPoolExecutor(workers or os.cpu_count() or 1, "read photos")
        self.epoch = 1
        self.ready: dict[int, float] = {}
        self.failure: AlexNetError | None = None

    def __enter__(self) -> Photos:
        return self

    def __exit__(self, *exc_info) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        """Number of batches."""
        return self._count

    @property
    def epoch(self) -> int:
        return self._epoch

    @epoch.setter
    def epoch(self, number: int) -> None:
        order = np.arange(self.photos)
        if self._shuffle:
            order = np.random.default_rng([self._seed, number]).permutation(self.photos)
        self._epoch, self._batches = number, np.array_split(order, self._count)

    def size(self, index: int) -> int:
        """Number of photos in a batch."""
        return len(self._batches[index])

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One batch.

        Returns
        -------
        pixels : ndarray of float32, (N, S, S, 3)
            Preprocessed for the network.
        labels : ndarray of int32 (N,), or of float32 (N, classes)
        weights : ndarray of float32, (N,)
            Weights in the sum of losses: 1 / N, times the weight of the class.
        """
        epoch, places = self._epoch, self._batches[index].tolist()
        try:
            pixels = np.stack(
                list(self._pool.map(lambda place: self._picture(epoch, place), places))
            )
        except AlexNetError as error:
            self.failure = error
            raise
        self.ready[index] = time.perf_counter()
        weights = np.full(len(places), 1 / len(places), np.float32)
        labels = [self._examples[place].label for place in places]
        if self._classes:
            marks = label_array(labels, self._classes, multi_label=True)
            return pixels, marks.astype(np.float32), weights
        labels = np.array(labels, np.int32)
        if self._class_weights is not None:
            weights *= self._class_weights[labels]
        return pixels, labels, weights

    def _picture(self, epoch: int, place: int) -> np.ndarray:
        rgb = load_image(self._examples[place].path)
        generator = np.random.Generator(np.random.Philox(key=[self._seed, (epoch << 40) | place]))
        return augmented(rgb, self._augment, self._preset, generator, self._covariance)
