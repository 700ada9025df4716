"""`Worker`: a network and a photo reader that turn shards into data files."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, NamedTuple

import cv2
import h5py
import numpy as np
import PIL

from tf_alexnet.extraction.decoder import Failure, Photo
from tf_alexnet.extraction.extractor import FeatureExtractor
from tf_alexnet.extraction.formats import data_writer, printable
from tf_alexnet.extraction.reader import TIMEOUT, PhotoReader
from tf_alexnet.extraction.shards import Store
from tf_alexnet.extraction.spec import CROPS, ExtractionSpec
from tf_alexnet.remote import storage_options
from tf_alexnet.version import VERSION

_BATCH, _GPU_BATCH = 64, 256

# Called after every batch with photos done, failures and bytes of rows; an exception ends the job.
Tell = Callable[[int, list[Failure], int], None]


class Shard(NamedTuple):
    """Photos whose rows are written and recorded together; `place` orders the output."""

    place: int
    paths: list[str]


@dataclass(frozen=True)
class Finished:
    """Result of a shard, which counts once it is recorded."""

    data: str | None  # its data file, written and not yet published; None without rows
    photos: list[Photo]  # one per row
    failures: list[Failure]
    size: int  # bytes of the rows


class Worker:
    """A loaded network and a photo reader.

    Parameters
    ----------
    spec : ExtractionSpec
        What to compute.
    batch_size : int or "auto"
        Photos per forward pass.
    workers : int, optional
        Decoder processes, as in `PhotoReader`.
    engine : str
        As in `FeatureExtractor`.
    timeout : float
        As in `PhotoReader`.
    storage : dict of dicts, optional
        As in `tf_alexnet.remote.storage_options`.

    Attributes
    ----------
    settings : dict of str to str
        Fingerprint of the spec.
    attributes : dict of str to str
        Other attributes of the output: source of the weights, versions.
    batch_size : int
        Photos per forward pass.
    worker_count : int
        Number of shards that can run at a time.
    """

    worker_count = 1

    def __init__(
        self,
        spec: ExtractionSpec,
        batch_size: int | str = "auto",
        workers: int | None = None,
        engine: str = "auto",
        timeout: float = TIMEOUT,
        storage: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        # Ray's processes need them too
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(storage_options(storage))
        given = {x: getattr(spec, x) for x in ("architecture", "preset", "mean_image", "precision")}
        extractor = FeatureExtractor(spec.weights, spec.layers, engine=engine, **given)
        resolved = ("layers", "architecture", "preset", "mean_image")
        self._extractor = extractor
        self._spec = replace(spec, **{x: getattr(extractor, x) for x in resolved})
        self.settings = self._spec.fingerprint(extractor.weights_digest)
        self.attributes = {
            "weights_source": printable(extractor.weights_source.rpartition("/")[2]),
            **({"untrained": "yes"} if extractor.untrained else {}),
            "tf_alexnet_version": VERSION,
            "engine": f"{extractor.engine} {import_module(extractor.engine).__version__}",
            "numpy_version": np.__version__,
            "h5py_version": h5py.__version__,
            "pillow_version": PIL.__version__,
            "opencv_version": cv2.__version__,
        }
        if batch_size == "auto":
            pictures = _GPU_BATCH if extractor.on_gpu else _BATCH
            batch_size = pictures // CROPS[spec.crops]  # memory depends on pictures
        self.batch_size = batch_size
        self._reader = PhotoReader(
            extractor.preset,
            mean_image=extractor.mean_image,
            crops=spec.crops,
            workers=workers,
            timeout=timeout,
            depth=spec.depth,
            fast_decode=spec.fast_decode,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._stack.close()

    def run(
        self, shards: Iterable[Shard], store: Store, tell: Tell
    ) -> Iterator[tuple[Shard, Finished]]:
        """Run shards one after another."""
        for shard in shards:
            yield shard, self.run_shard(shard, store, tell)

    def run_shard(self, shard: Shard, store: Store, tell: Tell | None = None) -> Finished:
        """Write one shard to a data file, completely or not at all.

        Raises
        ------
        OutputError
            If the file can't be written.
        InputError
            If a value is too large for the type of the rows.
        """
        photos, failures, total = [], [], 0
        computed = self._rows(shard.paths, failures, tell)
        if (first := next(computed, None)) is None:
            return Finished(None, [], failures, 0)
        with store.writing(shard.place) as (name, file), data_writer(store.suffix)(file) as writer:
            for some, rows in itertools.chain([first], computed):
                writer.add([photo.path for photo in some], rows)
                photos += some
                total += sum(values.nbytes for values in rows.values())
            writer.finish({**self.settings, **self.attributes, "id": store.id})
        return Finished(name, photos, failures, total)

    def _rows(
        self, paths: list[str], failures: list[Failure], tell: Tell | None
    ) -> Iterator[tuple[list[Photo], dict[str, np.ndarray]]]:
        """Yield photos and rows batch by batch; add photos that can't be read to `failures`."""
        for batch in self._reader.batches(paths, self.batch_size):
            failures += batch.failures
            size = 0
            if batch.photos:
                rows = self._spec.rows(self._extractor(batch.pixels))
                size = sum(values.nbytes for values in rows.values())
                yield batch.photos, rows
                del rows
            if tell:
                tell(len(batch.photos) + len(batch.failures), batch.failures, size)
