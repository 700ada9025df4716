"""Features of images and labels in memory or from an iterable, and a `PhotoSet` of them."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_alexnet.errors import InputError, UsageError
from tf_alexnet.extraction import FeatureExtractor
from tf_alexnet.extraction.spec import POOLS
from tf_alexnet.images.lists import as_sequence
from tf_alexnet.training.folders import (
    Example,
    PhotoSet,
    check_seed,
    note_duplicates,
    read_digests,
    set_aside,
)
from tf_alexnet.training.linear import Rows

_CHUNK = 256  # images in memory at a time


@dataclass(frozen=True)
class ArrayFeatures:
    """Features in memory.

    Attributes
    ----------
    photos : PhotoSet
        Examples are called ``images[0]``, ``images[1]``, ...
    labels : ndarray
        (N,) int or (N, classes) bool.
    aside : ndarray of bool, (N,)
        Rows for validation.
    blocks : list of ndarray of float32
        All rows, in order; `rows` consumes them to save memory.
    """

    photos: PhotoSet
    labels: np.ndarray
    aside: np.ndarray
    blocks: list[np.ndarray]
    skipped = ()  # an unreadable image is an error

    def rows(self, layer: str) -> tuple[Rows, Rows]:
        """Training and validation rows."""
        parts: tuple[list, list] = [], []
        start = 0
        while self.blocks:
            block = self.blocks.pop(0)
            aside = self.aside[start : start + len(block)]
            start += len(block)
            for part, chosen in zip(parts, (~aside, aside), strict=True):
                if chosen.any():
                    part.append(block[chosen])
        train, val = map(Rows, (self.labels[~self.aside], self.labels[self.aside]), parts)
        return train, val


def is_features(data: Any) -> bool:
    """Whether `data` is an array of features, (N, D)."""
    return len(getattr(data, "shape", ())) == 2


def read_arrays(
    data: Any,
    labels: Any,
    validation_data: Any,
    extractor: FeatureExtractor | None,
    pool: str,
    *,
    classes: Sequence[str] | None,
    multi_label: bool,
    val_split: float,
    seed: int,
    progress: Callable[[str, int, int | None, Mapping[str, Any]], None] | None,
) -> ArrayFeatures:
    """Compute features of images in memory; arguments as in `train_head`.

    `extractor` computes one layer; without it, `data` holds features.

    Raises
    ------
    InputError
        If there are no images or features, or labels don't fit.
    UsageError
        If there are fewer than two classes, or photos of a class.
    """
    check_seed(seed)
    both = [(data, labels)]
    if validation_data is not None:
        pair = isinstance(validation_data, tuple) and len(validation_data) == 2
        both.append(validation_data if pair else (validation_data, None))
    both = [pair if pair[1] is None else _matched(*pair) for pair in both]
    common = classes, multi_label, val_split, seed
    if all(some is not None for _, some in both):  # raise before much is computed
        _examples([some for _, some in both], None, *common)
    blocks: list[np.ndarray] = []
    given: list[np.ndarray] = []
    contents: list[str | None] = []
    done = 0
    for images, some in both:
        chunks, total = [], None if some is None else done + len(some)
        for chunk, values in _chunks(images, some):
            rows = _features(chunk) if extractor is None else _computed(chunk, extractor, pool)
            blocks.append(rows)
            chunks.append(values)
            contents += map(_digest, chunk)
            done += len(rows)
            if progress:
                progress("photos", done, total, {"errors": 0})
        given.append(np.concatenate(chunks))
    return ArrayFeatures(*_examples(given, contents, *common), blocks)


def _matched(data: Any, labels: Any) -> tuple[Sequence, np.ndarray]:
    """Images or rows of features, with labels of the same number."""
    labels = _joined(np.asarray, labels)
    images = np.asarray(data) if is_features(data) else as_sequence(data)
    if labels.ndim not in (1, 2) or len(labels) != len(images) or not len(labels):
        found = f"shape {labels.shape}, with {len(images)} images"
        raise InputError("labels", found, "Give (N,) or (N, classes) for N images.")
    return images, labels


def _chunks(data: Any, labels: np.ndarray | None) -> Iterator[tuple[Sequence, np.ndarray]]:
    """Chunks of images or rows of features, with their labels."""
    if labels is not None:
        for start in range(0, len(labels), _CHUNK):
            yield data[start : start + _CHUNK], labels[start : start + _CHUNK]
        return
    pairs = _pairs(data)
    while some := list(itertools.islice(pairs, _CHUNK)):
        images, values = zip(*some, strict=True)
        yield images, _joined(np.stack, values)


def _joined(join: Callable[..., np.ndarray], labels: Any) -> np.ndarray:
    try:
        return join(labels)
    except ValueError:
        found = "their shapes differ"
        raise InputError("labels", found, "Give (N,), or 0 and 1 (N, classes).") from None


def _pairs(data: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """The (image, label) pairs of an iterable of pairs or of batches of them."""
    advice = "Pass labels too, or (image, label) pairs (TensorFlow Datasets: as_supervised=True)."
    number = -1
    try:
        pairs = iter(data)
    except TypeError:
        pairs = iter(())
    for number, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            found = f"{type(pair).__name__}, not an (image, label) pair"
            raise InputError(f"data[{number}]", found, advice)
        image, label = pair[0], np.asarray(pair[1])
        if len(getattr(image, "shape", ())) == 4:
            yield from zip(np.asarray(image), label, strict=True)
        else:
            yield image, label
    if number < 0:
        raise InputError("data", f"{type(data).__name__} without images", advice)


def _computed(images: Sequence, extractor: FeatureExtractor, pool: str) -> np.ndarray:
    blob = extractor.from_images(images)[extractor.layers[0]]
    if POOLS[pool] and blob.ndim == 4:
        return POOLS[pool](blob, axis=(1, 2))
    return blob.reshape(len(blob), -1)


def _features(rows: np.ndarray) -> np.ndarray:
    """A checked copy of given features."""
    if rows.dtype.kind not in "fiu" or not np.isfinite(rows).all():
        found = f"{rows.dtype}" if rows.dtype.kind not in "fiu" else "NaN or infinite values"
        raise InputError("features", found, "Give finite numbers, one row per photo.")
    return rows.astype(np.float32)


def _digest(image: Any) -> str | None:
    if isinstance(image, str | os.PathLike):
        return read_digests([os.fspath(image)])[os.fspath(image)]
    content = image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _encoded(
    labels: np.ndarray, names: Sequence[str] | None, multi_label: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as indices (N,), or bool (N, classes); and the names of the classes."""
    if labels.ndim == 2:
        flags = labels.astype(bool)
        if not np.array_equal(flags, labels):
            raise InputError("labels", "(N, classes), but not of 0 and 1", "Give 0 and 1.")
        if not multi_label and (flags.sum(axis=1) != 1).any():
            found = "(N, classes) with rows that don't have exactly one 1"
            raise InputError("labels", found, "Pass multi_label=True for any number of labels.")
        encoded, count = (flags if multi_label else flags.argmax(axis=1)), flags.shape[1]
        names = range(count) if names is None else names
    elif multi_label:
        raise InputError("labels", f"shape {labels.shape}", "Give 0 and 1, (N, classes).")
    elif names is None:
        names, encoded = np.unique(labels, return_inverse=True)
        count = len(names)
    else:
        encoded, count = labels, len(names)
        if labels.dtype.kind not in "iu" or not (0 <= labels.min() <= labels.max() < count):
            found = f"not all are integers from 0 to {count - 1}"
            raise InputError(f"labels of {count} classes", found, "Give an index into classes.")
    names = tuple(str(name) for name in names)
    if count < 2 or len(names) != count or len(set(names)) != count:
        found = f"{len(set(names))} different names for {count} classes"
        raise UsageError("classes", found, "Give a name for each of two classes or more.")
    return encoded, names


def _examples(
    given: Sequence[np.ndarray],
    contents: Sequence[str | None] | None,
    names: Sequence[str] | None,
    multi_label: bool,
    val_split: float,
    seed: int,
) -> tuple[PhotoSet, np.ndarray, np.ndarray]:
    """The examples in splits, encoded labels, and which are for validation."""
    labels, classes = _encoded(_joined(np.concatenate, given), names, multi_label)
    places = [f"images[{i}]" for i in range(len(labels))]
    values = [tuple(np.flatnonzero(x).tolist()) if multi_label else int(x) for x in labels]
    examples = tuple(map(Example, places, values))
    train, val = examples[: len(given[0])], examples[len(given[0]) :]
    if drawn := len(given) == 1:
        train, val = set_aside(train, classes, val_split, seed)
    digests = dict(zip(places, contents or [None] * len(places), strict=True))
    notes = tuple(note_duplicates({"train": train, "val": val, "test": ()}, digests, "."))
    photos = PhotoSet(
        ".", classes, train, val, drawn, notes, multi_label=multi_label, contents=digests
    )
    chosen = {example.path for example in val}
    return photos, labels, np.array([place in chosen for place in places])
