"""A whole extraction: photos in, names and features out, in shards that outlive the job."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import h5py
import numpy as np
import tensorflow as tf

from tf_alexnet.errors import ImageError, UsageError
from tf_alexnet.extraction.extractor import FeatureExtractor
from tf_alexnet.extraction.manifest import ShardRecord
from tf_alexnet.extraction.plan import SHARD_SIZE, Shard, fair_size, fingerprint, plan_shards
from tf_alexnet.extraction.reader import Failure, PhotoReader
from tf_alexnet.extraction.sinks import printable
from tf_alexnet.extraction.state import working_on
from tf_alexnet.extraction.storage import Folder
from tf_alexnet.extraction.target import Target
from tf_alexnet.extraction.worker import CROPS, POOLS, ShardSettings, run_shard
from tf_alexnet.images import find_images, read_mean_image
from tf_alexnet.weights import WeightArrays

_BATCH, _GPU_BATCH = 64, 256


@dataclass(frozen=True)
class ExtractionReport:
    """What there is now; `rows` + `len(errors)` = `inputs`.

    Attributes
    ----------
    output : str
        The file or folder written.
    inputs, rows : int
        Photos of the job, earlier runs included, and those whose features are in the output.
    errors : tuple of Failure
        Path, code and detail of each photo that could not be read.
    shapes : dict of str to tuple of int
        Layer -> shape of its array; of all shards together, where the output is a folder.
    attributes : dict of str to str
        What the output records about its making.
    kept : int
        Photos that earlier runs had done.
    absent : int
        Those of them that are not among this run's inputs; their rows stay.
    """

    output: str
    inputs: int
    rows: int
    errors: tuple[Failure, ...]
    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, str]
    kept: int = 0
    absent: int = 0


def extract_features(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    weights: str | os.PathLike | WeightArrays = "imagenet",
    layers: Sequence[str] = ("fc7",),
    architecture: str | None = None,
    preset: str | None = None,
    mean_image: np.ndarray | str | os.PathLike | None = None,
    batch_size: int | str = "auto",
    dtype: str = "float32",
    pool: str = "none",
    shard_size: int = SHARD_SIZE,
    workers: int | None = None,
    fast_decode: bool = False,
    crops: str = "center",
    max_errors: int | str | None = None,
    retry_errors: bool = False,
    force: bool = False,
    cluster: str | None = None,
    cluster_workers: int | None = None,
    cluster_min_workers: int = 1,
    gpus_per_worker: float | None = None,
    progress: Callable[[int, int, int, int], None] | None = None,
) -> ExtractionReport:
    """Extract features of photos into a file, or a folder of files, with paths and rows together.

    The work is done in shards, each written whole before it is recorded as done. The same call
    again, whatever ended the first, keeps what is recorded and does the rest; photos that are new
    among the inputs are added. A file is put together from its shards at the end and renamed.
    Memory does not grow with the number of rows.

    Parameters
    ----------
    images : path, or sequence of paths
        Photos, folders (searched recursively), patterns (``*``, ``?``, ``**``), lists (``.txt``,
        ``.csv``), ``-`` for a list on standard input, URLs that fsspec can open. A photo is known
        by its path as it stands here.
    output : path or URL
        ``.h5``: ``paths`` (N,), one (N, ...) array a layer, a group ``errors`` with ``paths``,
        ``codes`` and ``details``, and attributes (weights digest, architecture, preset, layers,
        dtype, versions). ``.npz``: the same as arrays, ``errors_paths`` .. and ``attributes``
        (JSON). ``.npy``: the array of one layer, and the rest in ``<output>.json``. ``.parquet``:
        one row a photo, with path, status, detail, each layer a list of fixed size. A name that
        ends in a slash or has no suffix: a folder with ``shards/*.h5`` (``*.parquet`` if it ends in
        ``.parquet/``), ``errors.csv`` and ``manifest.json``.
    weights, layers, architecture, preset, mean_image
        As in `FeatureExtractor`.
    batch_size : int or "auto"
        Photos that go through the network together.
    dtype : {"float32", "float16"}
        Of the rows; the network always computes in float32.
    pool : {"none", "avg", "max"}
        Convolutional blobs (height, width, channels) pooled to (channels,).
    shard_size : int
        Photos a shard: the most that is done twice after an interruption.
    workers, fast_decode
        As in `PhotoReader`.
    crops : {"center", "ten"}
        The centre of a photo; or its corners, its centre and their mirror images, each of which
        goes through the network (and is pooled): the row is the mean of the ten.
    max_errors : int or "P%", optional
        Stop when more photos than this, or than this part of the inputs, can't be read.
    retry_errors : bool
        Try those again that could not be read before.
    force : bool
        Begin anew, and replace what is there.
    cluster : "ray", "auto" or address, optional
        Where shards run, instead of in this process: on workers of a Ray of their own on this
        machine, of the one that runs here, or of the one at an address
        (`tf_alexnet.extraction.ray_cluster`). Rows, files and what is kept are the same.
    cluster_workers, cluster_min_workers, gpus_per_worker
        `places`, `fewest` and `gpus` of a `RayCrew`.
    progress : callable, optional
        Called with (photos done, photos to do, errors, bytes of rows written) of this run: at its
        beginning and after every batch; on a cluster, after every shard.

    Returns
    -------
    ExtractionReport

    Raises
    ------
    UsageError
        For a call that can't work, or one whose settings are not those that the output was begun
        with; found out before the first photo is read.
    OutputError
        If the output can't be written, is being written by another job, or is a file that is none
        of ours.
    WeightsError
        If the weights can't be had.
    ImageError
        If no photo at all, or too few of them, can be read.
    """
    target = Target(output)
    target.check()
    _check_settings(dtype, pool, crops, batch_size, shard_size, layers, target)
    paths = find_images(images if isinstance(images, list | tuple) else [images])
    limit = _error_limit(max_errors, len(paths))
    if isinstance(mean_image, str | os.PathLike):
        mean_image = read_mean_image(mean_image)
    make = functools.partial(
        ShardWorker,
        weights,
        tuple(layers),
        architecture=architecture,
        preset=preset,
        mean_image=mean_image,
        batch_size=batch_size,
        dtype=dtype,
        pool=pool,
        suffix=target.shard_suffix,
        fast_decode=fast_decode,
        crops=crops,
    )
    with (
        _crew(
            *(make, workers, cluster, cluster_workers, cluster_min_workers, gpus_per_worker)
        ) as crew,
        working_on(target, crew.job, paths, force) as state,
    ):
        todo = state.remaining(retry_errors)
        watch = _Watch(len(todo), 0 if retry_errors else len(state.failed), limit, progress)
        size = fair_size(shard_size, len(todo), crew.places, crew.settings.batch_size)
        shards = plan_shards(todo, size, state.manifest.shards)
        with contextlib.closing(crew.run(shards, target.shards, watch)) as finished:
            for shard, record in finished:
                state.record(shard, record)
        done = state.finish(crew.settings.attributes)
    return ExtractionReport(
        str(target),
        done.count + len(done.failures),
        done.count,
        tuple(done.failures),
        {name: (done.count, *shape) for name, (shape, _) in done.layers.items()},
        done.attributes,
        state.kept,
        state.absent,
    )


class ShardWorker:
    """A loaded network and a photo reader: what runs shards, here or in a process of a cluster.

    Parameters
    ----------
    weights, layers, architecture, preset, mean_image
        As in `FeatureExtractor`.
    batch_size, dtype, pool, fast_decode, crops
        As in `extract_features`.
    suffix : str
        Kind of the shards' files.
    workers : int, optional
        As in `PhotoReader`.

    Attributes
    ----------
    job : dict of str to str
        The `fingerprint` of a job done here.
    settings : ShardSettings
        How its rows are made.
    places : int
        Shards that may run at a time.
    """

    places = 1

    def __init__(
        self,
        weights: str | os.PathLike | WeightArrays,
        layers: Sequence[str],
        *,
        architecture: str | None,
        preset: str | None,
        mean_image: np.ndarray | None,
        batch_size: int | str,
        dtype: str,
        pool: str,
        suffix: str,
        fast_decode: bool,
        crops: str,
        workers: int | None,
    ):
        self._extractor = extractor = FeatureExtractor(
            weights, layers, architecture=architecture, preset=preset, mean_image=mean_image
        )
        self.job = fingerprint(
            weights_digest=extractor.weights_digest,
            architecture=extractor.architecture,
            layers=extractor.layers,
            preset=extractor.preset,
            mean_image=extractor.mean_image,
            dtype=dtype,
            pool=pool,
            fast_decode=fast_decode,
            crops=crops,
        )
        attributes = _attributes(extractor, self.job)
        size = _batch_size(batch_size, crops)
        self.settings = ShardSettings(size, dtype, pool, crops, suffix, attributes)
        self._reader = PhotoReader(
            extractor.preset,
            mean_image=extractor.mean_image,
            crops=crops,
            workers=workers,
            fast_decode=fast_decode,
        )

    def run_shard(
        self, shard: Shard, folder: Folder, watch: Callable[[int, Sequence[Failure], int], None]
    ) -> ShardRecord:
        """As `tf_alexnet.extraction.worker.run_shard`."""
        return run_shard(shard, folder, self._extractor, self._reader, self.settings, watch)

    def run(
        self,
        shards: Iterable[Shard],
        folder: Folder,
        watch: Callable[[int, Sequence[Failure], int], None],
    ) -> Iterator[tuple[Shard, ShardRecord]]:
        """Run shards one after another; the decoder processes end with the last."""
        with self._reader:
            for shard in shards:
                yield shard, self.run_shard(shard, folder, watch)


def _crew(make, workers, cluster, places, fewest, gpus):
    """What runs the shards of a job: a `ShardWorker`, or a `RayCrew` of them; as a context."""
    if cluster is not None:
        from tf_alexnet.extraction.ray_cluster import RayCrew

        return RayCrew(cluster, make, places=places, fewest=fewest, gpus=gpus, decoders=workers)
    if places is not None or fewest != 1 or gpus is not None:
        raise UsageError(
            "cluster_workers, cluster_min_workers, gpus_per_worker",
            "they say what a cluster gives, and none is named",
            "Name it: --cluster ray (cluster='ray') is one on this machine.",
        )
    return contextlib.nullcontext(make(workers=workers))


class _Watch:
    """Counts photos as they are done: tells of progress, and stops at too many errors."""

    def __init__(
        self,
        total: int,
        errors: int,
        limit: int | None,
        progress: Callable[[int, int, int, int], None] | None,
    ):
        self._total, self._limit, self._progress = total, limit, progress
        self._done, self._errors, self._bytes = 0, errors, 0
        self._tell()

    def _tell(self) -> None:
        if self._progress:
            self._progress(self._done, self._total, self._errors, self._bytes)

    def __call__(self, done: int, failures: Sequence[Failure], size: int) -> None:
        self._done += done
        self._errors += len(failures)
        self._bytes += size
        self._tell()
        if self._limit is not None and self._errors > self._limit:
            last = f"; the last: {failures[-1].path}: {failures[-1].detail}" if failures else ""
            raise ImageError(
                f"{self._errors} photos",
                f"they could not be read, and at most {self._limit} may fail{last}",
                "Check the files, or allow more; the same command again goes on from here.",
            )


def _error_limit(given: int | str | None, inputs: int) -> int | None:
    """How many photos may fail; None for all of them."""
    if given is None:
        return None
    text = str(given).strip()
    with contextlib.suppress(ValueError):
        if text.endswith("%"):
            share = float(text[:-1])
            if 0 <= share <= 100:
                return int(inputs * share / 100)
        elif int(text) >= 0:
            return int(text)
    raise UsageError(f"max_errors {text!r}", "no such limit", "Use a number, or a share as 1%.")


def _check_settings(
    dtype: str,
    pool: str,
    crops: str,
    batch_size: int | str,
    shard_size: int,
    layers: Sequence[str],
    to: Target,
) -> None:
    if dtype not in ("float32", "float16"):
        raise UsageError(f"dtype {dtype!r}", "no such row type", "Use float32 or float16.")
    if pool not in POOLS:
        raise UsageError(f"pool {pool!r}", "no such pooling", "Use none, avg or max.")
    if crops not in CROPS:
        raise UsageError(f"crops {crops!r}", "no such crops", "Use center or ten.")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise UsageError(
            f"batch of {batch_size}", "nothing would be done", "Use 1 or more, or auto."
        )
    if shard_size < 1:
        raise UsageError(f"shard of {shard_size}", "nothing would be done", "Use 1 or more.")
    if to.suffix == ".npy" and len(set(layers)) > 1:
        raise UsageError(
            f"{' '.join(layers)} in {to}",
            "an .npy holds one array",
            "Choose one layer, or another format.",
        )


def _batch_size(given: int | str, crops: str) -> int:
    if given != "auto":
        return int(given)
    pictures = _GPU_BATCH if tf.config.list_physical_devices("GPU") else _BATCH
    return pictures // CROPS[crops]  # memory goes by pictures


def _attributes(extractor: FeatureExtractor, job: dict[str, str]) -> dict[str, str]:
    """What a file of features records about its making."""
    return {
        **job,
        "weights_source": printable(os.path.basename(extractor.weights_source)),
        "tensorflow_version": tf.__version__,
        "numpy_version": np.__version__,
        "h5py_version": h5py.__version__,
    }
