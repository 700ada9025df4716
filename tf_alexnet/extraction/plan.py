"""What a job does: photos in shards, and the settings that its rows depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import PIL

from tf_alexnet.images import recorded_name, resolve
from tf_alexnet.version import VERSION

SHARD_SIZE = 4096
_ROUNDS = 4  # shards a place: the slowest keeps the others waiting for a part of its last one


class Shard(NamedTuple):
    """Some photos whose rows are written, and recorded, together.

    Attributes
    ----------
    number : int
        Its place in the job.
    name : str
        Its file's name, without suffix.
    paths : list of str
        The photos, in the order of the inputs.
    """

    number: int
    name: str
    paths: list[str]


def plan_shards(
    paths: Sequence[str], size: int = SHARD_SIZE, finished: Container[str] = frozenset()
) -> Iterator[Shard]:
    """Part photos into shards; the same photos in the same order give the same shards.

    Parameters
    ----------
    paths : sequence of str
        The photos that are to be done.
    size : int
        Photos a shard; the last may be shorter.
    finished : container of str
        Names of shards that are there already, and stay as they are.

    Yields
    ------
    Shard
        Numbered from 0, less the numbers of those that are finished. So a job that was broken
        off plans what is missing exactly as it did the first time.
    """
    number = 0
    for start in range(0, len(paths), size):
        while shard_name(number) in finished:
            number += 1
        yield Shard(number, shard_name(number), list(paths[start : start + size]))
        number += 1


def fair_size(size: int, photos: int, places: int, batch_size: int) -> int:
    """Photos a shard where several run at a time: no more than `size`, and four for each place.

    Whole batches, so that photos keep the company that they have in shards of any other size.
    """
    if places == 1:
        return size
    share = -(-photos // (_ROUNDS * places))
    return min(size, max(1, -(-share // batch_size)) * batch_size)


def shard_name(number: int) -> str:
    """The name of a shard's file, without suffix."""
    return f"shard-{number:06d}"


def fingerprint(
    *,
    weights_digest: str,
    architecture: str,
    layers: Sequence[str],
    preset: str,
    mean_image: np.ndarray | None,
    dtype: str,
    pool: str,
    fast_decode: bool,
    crops: str,
) -> dict[str, str]:
    """All that a job's rows depend on, by name; two jobs may share rows if theirs are equal.

    Sizes of batches and shards and the number of processes are no part of it: they change a row
    by no more than the order of additions does.
    """
    record, mean = resolve(preset, mean_image)
    return {
        "weights_digest": weights_digest,
        "architecture": architecture,
        "layers": " ".join(layers),
        "preset": recorded_name(record),
        "mean_image": "none" if mean is None else _digest(mean),
        "dtype": dtype,
        "pool": pool,
        "fast_decode": "yes" if fast_decode else "no",
        "crops": crops,
        "pillow_version": PIL.__version__,
        "opencv_version": cv2.__version__,
        "tf_alexnet_version": VERSION,
    }


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, each as ``name old -> new``."""
    return [
        f"{name} {old.get(name, 'unknown')} -> {value}"
        for name, value in new.items()
        if old.get(name) != value
    ]


def _digest(values: np.ndarray) -> str:
    return "sha256:" + hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
