"""Photos to verify and to calibrate exports with."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from tf_alexnet.errors import UsageError
from tf_alexnet.export.source import Source
from tf_alexnet.extraction.reader import PhotoReader
from tf_alexnet.images import find_images


def read_photos(
    source: Source, photos: str | os.PathLike | Sequence[str | os.PathLike], most: int
) -> tuple[list[str], np.ndarray]:
    """Read and preprocess at most `most` photos, evenly spaced; unreadable ones are left out.

    Returns
    -------
    paths : list of str
    pixels : ndarray of float32, (N, S, S, 3)

    Raises
    ------
    UsageError
        If none can be read.
    """
    found = find_images(photos)
    step = -(-len(found) // most)
    with PhotoReader(source.preset, mean_image=source.mean_image) as reader:
        (batch,) = reader.batches(found[::step], most)
    if not batch.photos:
        raise UsageError(
            f"photos {photos}",
            f"none of them can be read ({batch.failures[0].detail})",
            "Name a folder of photos.",
        )
    return batch.paths, batch.pixels
