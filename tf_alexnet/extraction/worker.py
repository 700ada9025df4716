"""One shard: photos through reader and network into a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tf_alexnet.architectures import architecture_named
from tf_alexnet.errors import InputError
from tf_alexnet.extraction.manifest import ShardRecord
from tf_alexnet.extraction.plan import Shard
from tf_alexnet.extraction.reader import Failure, PhotoReader
from tf_alexnet.extraction.signals import signals_held
from tf_alexnet.extraction.sinks import writer_for
from tf_alexnet.extraction.storage import Folder

if TYPE_CHECKING:
    from tf_alexnet.extraction.extractor import FeatureExtractor

POOLS = {"avg": np.mean, "max": np.max, "none": None}
CROPS = {"center": 1, "ten": 10}  # pictures a photo


@dataclass(frozen=True)
class ShardSettings:
    """How rows are made and kept, the same for every shard of a job.

    Attributes
    ----------
    batch_size : int
        Photos that go through the network together.
    dtype : {"float32", "float16"}
        Of the rows.
    pool : {"avg", "max", "none"}
        What becomes of the places of a convolutional blob.
    crops : {"center", "ten"}
        One picture a photo, or ten, whose values are averaged.
    suffix : str
        Kind of file.
    attributes : dict of str to str
        What each file records about its making.
    """

    batch_size: int
    dtype: str
    pool: str
    crops: str
    suffix: str
    attributes: Mapping[str, str]


def run_shard(
    shard: Shard,
    folder: Folder,
    extractor: FeatureExtractor,
    reader: PhotoReader,
    settings: ShardSettings,
    watch: Callable[[int, list[Failure], int], None] | None = None,
) -> ShardRecord:
    """Extract one shard into one file, which is there whole or not at all.

    Parameters
    ----------
    shard : Shard
        What to do.
    folder : Folder
        Where its file goes.
    extractor : FeatureExtractor
        The network.
    reader : PhotoReader
        Made for the extractor's preset.
    settings : ShardSettings
        How.
    watch : callable, optional
        Called after every batch with its number of photos, its failures and the bytes of its rows;
        what it raises ends the shard.

    Returns
    -------
    ShardRecord
        To be recorded; until then the shard counts as not done.

    Raises
    ------
    OutputError
        If the file can't be written.
    InputError
        If a value does not fit the rows' type.
    """
    name, failures, count = f"{shard.name}{settings.suffix}", [], 0
    with (
        folder.writing(name) as file,
        signals_held() as gate,
        writer_for(settings.suffix)(file) as writer,
    ):
        for batch in gate.taking(reader.batches(shard.paths, settings.batch_size)):
            failures += batch.failures
            size = 0
            if batch.paths:
                with gate.opened():
                    rows = make_rows(extractor(batch.pixels), settings)
                writer.add(batch.paths, rows)
                count += len(batch.paths)
                size = sum(values.nbytes for values in rows.values())
                del rows
            if watch:
                watch(len(batch.paths) + len(batch.failures), batch.failures, size)
        if not count:
            with gate.opened():
                rows = _no_rows(extractor, settings)
            writer.add([], rows)
        writer.finish(failures, settings.attributes)
    return ShardRecord(name, len(shard.paths), count, len(failures), folder.size(name) or 0)


def make_rows(blobs: Mapping[str, np.ndarray], settings: ShardSettings) -> dict[str, np.ndarray]:
    """Rows of what the network computed: pooled, averaged over crops, of the type wanted."""
    pool = POOLS[settings.pool]
    rows = {}
    for name, values in blobs.items():
        if pool and values.ndim == 4:
            values = pool(values, axis=(1, 2))
        if CROPS[settings.crops] > 1:
            values = values.reshape(-1, CROPS[settings.crops], *values.shape[1:]).mean(axis=1)
        if settings.dtype == "float16":
            _check_half(name, values)
        rows[name] = values.astype(settings.dtype, copy=False)
    return rows


def _check_half(layer: str, values: np.ndarray) -> None:
    largest = np.abs(values).max(initial=0)
    if largest > np.finfo(np.float16).max:
        raise InputError(
            f"{layer} as float16",
            f"a value of {largest:.0f} is beyond 65504",
            "Extract this layer as float32.",
        )


def _no_rows(extractor: FeatureExtractor, settings: ShardSettings) -> dict[str, np.ndarray]:
    """Arrays of no rows: a file has all its layers, whether any photo could be read or not."""
    size = architecture_named(extractor.architecture).input_size
    nothing = np.zeros((CROPS[settings.crops], size, size, 3), np.float32)
    rows = make_rows(extractor(nothing), settings)
    return {name: values[:0] for name, values in rows.items()}
