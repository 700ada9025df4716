"""Extraction jobs: photos in, features and paths out; interrupted jobs resume."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_alexnet import remote
from tf_alexnet.architectures import ALL, ARCHITECTURES, PREACT, blob_names
from tf_alexnet.engines import choose_engine
from tf_alexnet.errors import AlexNetError, ImageError, OutputError, UsageError, counted, one_line
from tf_alexnet.extraction.decoder import Failure, Photo, digest_of, stat_text
from tf_alexnet.extraction.formats import (
    UNFINISHED,
    Output,
    check_mat_size,
    data_writer,
    encoded,
    export,
    open_output,
)
from tf_alexnet.extraction.reader import TIMEOUT
from tf_alexnet.extraction.shards import (
    BASE,
    HEADER,
    LOST,
    MANIFEST,
    Entry,
    Record,
    Records,
    Store,
    ended_jobs,
    is_ours,
    new_header,
    overtaken,
    read_header,
)
from tf_alexnet.extraction.spec import ExtractionSpec, changes
from tf_alexnet.extraction.storage import (
    FIXED,
    Target,
    locked,
    mark_of,
    place_of,
    reading_of,
    token,
)
from tf_alexnet.extraction.worker import Finished, Shard, Tell, Worker
from tf_alexnet.images import find_images
from tf_alexnet.images.decode import read_file, read_url
from tf_alexnet.images.mean_image import Mean
from tf_alexnet.images.presets import Preset
from tf_alexnet.progress import progress_callback
from tf_alexnet.remote import filesystem, is_url
from tf_alexnet.weights import WeightArrays

SHARD_SIZE = 4096
ERRORS = "_errors.csv"
_LISTED_BYTES = 2**26  # of rows in memory, if they follow a list
_ROUNDS = 4  # shards per worker, so that the others don't wait long for the slowest
# Raised on opening a damaged or foreign file.
_UNREADABLE = (OSError, LookupError, ValueError, TypeError, RuntimeError)

Progress = Callable[[int, int, int, int], None]


@dataclass(frozen=True)
class ExtractionReport:
    """Result of an extraction. `rows` + `len(errors)` = `inputs`, unless rows follow a list.

    Attributes
    ----------
    output : str
        The file or folder written.
    inputs, rows : int
        Photos of the job, including earlier runs, and rows in the output.
    errors : tuple of Failure
        Path, code and detail of each photo that could not be read.
    shapes : dict of str to tuple of int
        Layer -> shape of its array; for a folder, of all shards together.
    attributes : dict of str to str
        Settings and versions recorded in the output.
    kept : int
        Photos of earlier runs that were left as they are.
    absent : int
        Those of them that are not among this run's inputs; their rows stay.
    changed : int
        Photos that were extracted again because their content has changed.
    unreadable : int
        Photos that can no longer be read and keep the row of an earlier run.
    repeats : int
        Inputs of this run that repeat another one.
    nan : int
        Rows of NaN, for inputs that could not be read.
    """

    output: str
    inputs: int
    rows: int
    errors: tuple[Failure, ...]
    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, str]
    kept: int = 0
    absent: int = 0
    changed: int = 0
    unreadable: int = 0
    repeats: int = 0
    nan: int = 0

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        return (
            f"<ExtractionReport {one_line(self.output)}: inputs {self.inputs}, rows {self.rows}, "
            f"errors {len(self.errors)}; {arrays}>"
        )


def extract_features(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    weights: str | os.PathLike | WeightArrays = "imagenet",
    layers: str | Sequence[str] = ("fc7",),
    architecture: str | None = None,
    preset: str | Preset | None = None,
    mean_image: Mean = None,
    batch_size: int | str = "auto",
    dtype: str = "float32",
    pool: str = "none",
    shard_size: int = SHARD_SIZE,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    depth: str = "auto",
    fast_decode: bool = False,
    crops: str = "center",
    engine: str = "auto",
    precision: str = "float32",
    max_errors: int | str | None = None,
    retry_errors: bool = False,
    force: bool = False,
    add: bool = False,
    discard_damaged: bool = False,
    repeats: str = "drop",
    missing: str = "drop",
    storage_options: Mapping[str, Mapping[str, Any]] | None = None,
    cluster: str | None = None,
    cluster_workers: int | None = None,
    cluster_min_workers: int = 1,
    gpus_per_worker: float | None = None,
    progress: Progress | bool | None = None,
) -> ExtractionReport:
    """Extract features of photos to a file or a folder of files, together with the paths.

    Photos are processed in shards. The same call resumes an interrupted one: finished shards are
    kept, and photos that are new or have changed since are processed. Photos that are gone, or
    can't be read now, keep their rows. A single file is assembled from its shards at the end.

    Parameters
    ----------
    images : path, or container of paths
        Photos, folders, patterns, lists, tables and URLs, as in `tf_alexnet.images.find_images`.
        The output names photos as they are named here.
    output : path or URL
        ``.h5``: ``paths`` (N,), one (N, ...) array per layer, a group ``errors`` with ``paths``,
        ``codes`` and ``details``, and attributes (weights digest, architecture, preset, layers,
        dtype, versions). ``.npz``, ``.mat`` (for MATLAB): the same as arrays, ``errors_paths`` ..
        and ``attributes``. ``.npy``: the array of one layer, and the rest in ``<output>.json``.
        ``.parquet``: one row per photo, with path, status, detail and each layer as a fixed-size
        list. All also hold ``places``, ``stats`` and ``digests``, to detect changed photos. A name
        that ends in a slash or has no suffix: a folder of ``*.h5`` (``*.parquet`` if it ends in
        ``.parquet/``), ``_errors.csv`` and ``_manifest.json``. New photos can be added to all but
        finished ``.npz``, ``.npy`` and ``.mat`` files.
    weights, layers, architecture, preset, mean_image
        As in `FeatureExtractor`.
    batch_size : int or "auto"
        Photos per forward pass.
    dtype : {"float32", "float16"}
        Type of the stored rows.
    pool : {"none", "avg", "max"}
        Pool convolutional blobs from (height, width, channels) to (channels,).
    shard_size : int
        Photos per shard. A shard that is interrupted is repeated.
    workers, timeout, depth, fast_decode
        As in `PhotoReader`.
    crops : {"center", "ten"}
        The centre crop; or the mean over the rows of ten crops: the corners, the centre and their
        mirror images.
    engine, precision : str
        As in `FeatureExtractor`; "auto" also considers the number of photos. Rows of the two
        engines differ by rounding, at most 1e-5 of a blob's maximum, and may be mixed in one
        output; rows of the two precisions may not.
    max_errors : int or "P%", optional
        Stop when more inputs than this number or percentage can't be read.
    retry_errors : bool
        Retry photos that could not be read before.
    force : bool
        Start over, and replace the output at the end; a folder must hold an extraction.
    add : bool
        Add the inputs to an output that has rows, but none of these photos.
    discard_damaged : bool
        Discard rows whose file is missing or damaged and whose photos are not among the inputs.
    repeats : {"drop", "keep"}
        One row per photo; or one per input, in the order of the inputs, even if they name a photo
        twice (files only, which then hold exactly these inputs).
    missing : {"drop", "nan"}
        No row for photos that can't be read; or a row of NaN, in the order of the inputs (as
        `repeats`; ``.parquet`` files have rows for them anyway).
    storage_options : dict of dicts, optional
        Options of fsspec's file systems by scheme, for inputs and output:
        ``{"s3": {"endpoint_url": "http://localhost:9000", "key": ..., "secret": ...}}``.
    cluster : "ray", "auto" or address, optional
        Run shards on Ray instead of in this process: on a new cluster on this machine, the one
        that is running here, or the one at an address (`tf_alexnet.extraction.ray_cluster`).
    cluster_workers, cluster_min_workers, gpus_per_worker
        `worker_count`, `min_workers` and `gpus` of `RayWorkers`.
    progress : callable or bool, optional
        True shows a progress bar. A callable is called with (photos done, photos to do, errors,
        bytes of rows written) of this run, at the start and after every batch (on a cluster, every
        shard).

    Returns
    -------
    ExtractionReport

    Raises
    ------
    UsageError
        If arguments are invalid, or differ from those the output was started with; raised before
        the first photo is read.
    OutputError
        If the output can't be written, is damaged, is being written by another job, or was not
        written by an extraction.
    WeightsError
        If the weights can't be found or read.
    ImageError
        If no photo can be read, or more than `max_errors` can't.
    """
    where = (cluster, cluster_workers, cluster_min_workers, gpus_per_worker)
    with remote.storage_options(storage_options):
        target = check_job(
            output, layers, batch_size, shard_size, repeats, missing, max_errors, *where
        )
        spec = ExtractionSpec(
            weights=weights,
            layers=layers,
            architecture=architecture,
            preset=preset,
            mean_image=mean_image,
            dtype=dtype,
            pool=pool,
            crops=crops,
            fast_decode=fast_decode,
            precision=precision,
            depth=depth,
        )
        lines = find_images(images, repeats=True)
        paths = list(dict.fromkeys(lines))
        listing = None
        if repeats == "keep" or missing == "nan":
            listing = _Listing(lines if repeats == "keep" else paths, missing == "nan")
        engine = choose_engine(engine, len(paths), precision)
        make = functools.partial(
            Worker, spec, batch_size, engine=engine, timeout=timeout, storage=storage_options
        )
        with _worker_pool(make, workers, *where) as pool, progress_callback(progress) as progress:
            report = run_job(
                target,
                paths,
                pool,
                shard_size=shard_size,
                limit=_error_limit(max_errors, len(paths)),
                retry_errors=retry_errors,
                force=force,
                add=add,
                discard_damaged=discard_damaged,
                listing=listing,
                progress=progress,
            )
    return replace(report, repeats=len(lines) - len(paths))


def failures_among(report: ExtractionReport, photos: Mapping[str, str]) -> tuple[Failure, ...]:
    """Photos that can't be read now, including those that keep the row of an earlier run.

    Parameters
    ----------
    report : ExtractionReport
    photos : dict of str to str
        Place (`place_of`) -> path of each photo to look for.
    """
    failed = (x for x in report.errors if x.place in photos)
    failures = [x._replace(path=photos[x.place]) for x in failed]
    if report.unreadable:
        told = {x.place for x in failures}
        failures += [
            Failure(path, "unreadable", "it can't be read any more", place=place)
            for place, path in photos.items()
            if place not in told and not is_url(path) and read_state(path) is None
        ]
    return tuple(failures)


def check_job(
    output: str | os.PathLike,
    layers: str | Sequence[str] = ("fc7",),
    batch_size: int | str = "auto",
    shard_size: int = SHARD_SIZE,
    repeats: str = "drop",
    missing: str = "drop",
    max_errors: int | str | None = None,
    cluster: str | None = None,
    cluster_workers: int | None = None,
    cluster_min_workers: int = 1,
    gpus_per_worker: float | None = None,
) -> Target:
    """Check arguments of `extract_features`, before the weights are loaded.

    Raises
    ------
    UsageError, OutputError
        As `extract_features`.
    """
    target = Target(output)
    target.check()
    names, auto = blob_names(layers), batch_size == "auto"
    if not auto and (not isinstance(batch_size, int) or batch_size < 1):
        advice = "Use 1 or more, or auto."
        raise UsageError(f"batch of {batch_size}", "not a number of photos", advice)
    if shard_size < 1:
        raise UsageError(f"shard of {shard_size}", "not a number of photos", "Use 1 or more.")
    if target.suffix == ".npy" and (len(set(names)) > 1 or ALL in names):
        advice = "Choose one layer, or another format."
        raise UsageError(f"{' '.join(names)} in {target}", "an .npy holds one array", advice)
    for name, value, other in (("repeats", repeats, "keep"), ("missing", missing, "nan")):
        if value not in ("drop", other):
            raise UsageError(f"{name} {value!r}", "no such choice", f"Use drop or {other}.")
        if value == other and target.is_folder:
            found, advice = "a folder of shards has one row per photo", "Name a file, such as f.h5."
            raise UsageError(f"{name} {value} with {target}", found, advice)
    if missing == "nan" and target.suffix == ".parquet":
        found = "a .parquet file has rows, with a status, for photos that can't be read anyway"
        advice = "Leave it out, or name a .h5, .npz, .npy or .mat."
        raise UsageError(f"missing nan with {target}", found, advice)
    _error_limit(max_errors, 0)
    wishes = cluster_workers, cluster_min_workers, gpus_per_worker
    if cluster is None and wishes != (None, 1, None):
        raise UsageError(
            "cluster_workers, cluster_min_workers, gpus_per_worker",
            "they are settings of a cluster, but none is given",
            "Pass --cluster ray (cluster='ray') for one on this machine.",
        )
    _own_header(target)
    return target


def _worker_pool(make, workers, cluster, worker_count, min_workers, gpus):
    """The context manager that runs the shards of a job: a `Worker` or a `RayWorkers`."""
    if cluster is not None:
        from tf_alexnet.extraction.ray_cluster import RayWorkers

        return RayWorkers(
            cluster,
            make,
            worker_count=worker_count,
            min_workers=min_workers,
            gpus=gpus,
            decoders=workers,
        )
    return make(workers=workers)


def _error_limit(given: int | str | None, inputs: int) -> int | None:
    """Number of photos that may fail; None for all."""
    if given is None:
        return None
    text = str(given).strip()
    with contextlib.suppress(ValueError):
        if not text.endswith("%") and int(text) >= 0:
            return int(text)
        if text.endswith("%") and 0 <= float(text[:-1]) <= 100:
            return int(inputs * float(text[:-1]) / 100)
    raise UsageError(f"max_errors {text!r}", "not a limit", "Use a number or a percentage, as 1%.")


def run_job(
    target: Target,
    paths: Sequence[str],
    pool: Any,
    *,
    shard_size: int = SHARD_SIZE,
    limit: int | None = None,
    retry_errors: bool = False,
    force: bool = False,
    add: bool = False,
    discard_damaged: bool = False,
    listing: _Listing | None = None,
    progress: Progress | None = None,
) -> ExtractionReport:
    """Extract with a `Worker` or `RayWorkers`; otherwise as `extract_features`."""
    with _opened(target, pool.settings, force) as job:
        look = _Looker()
        repair = job.repair(paths, look, discard_damaged)
        plan = job.plan(paths, look, retry_errors)
        if job.has_rows and not plan.known and not add:
            raise UsageError(
                str(target),
                f"it has rows, but none for the {counted(len(paths), 'photo', 'photos')} named",
                "Were they moved? Pass --add (add=True) to add them all.",
            )
        if listing and plan.absent:
            raise UsageError(
                str(target),
                f"{counted(plan.absent, 'photo of it is', 'photos of it are')} not among these "
                "inputs, but rows must follow the inputs",
                "Name another output, or leave out --repeats keep and --missing nan.",
            )
        relisted = job.is_finished and job.mark != (listing and listing.mark)
        if target.suffix == ".mat":
            check_mat_size(_shapes(pool.settings), plan.kept + len(plan.todo))
        if plan.todo or plan.doubtful or repair or relisted:
            job.begin(repair, pool.attributes)
            job.reread(plan)
        if (plan.todo or relisted) and not job.can_grow:
            found = "its rows differ"
            if plan.todo:
                found = f"{counted(len(plan.todo), 'photo is', 'photos are')} new or changed"
            raise UsageError(
                str(target),
                f"it is finished, and {found}; {target.suffix} files don't grow",
                "Name another output, use .h5, .parquet or a folder/, or pass --force.",
            )
        tell = _teller(plan, limit, progress)
        size = fair_size(shard_size, len(plan.todo), pool.worker_count, pool.batch_size)
        with contextlib.closing(pool.run(job.shards(plan, size), job.store, tell)) as finished:
            for shard, found in finished:
                job.commit(shard, found, plan)
        return job.finish(plan, pool.attributes, listing)


def _shapes(settings: Mapping[str, str]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Layer -> shape and dtype of the rows of a job with these settings."""
    table, shapes = ARCHITECTURES[settings["architecture"]], {}
    blobs = {row.name: row.output_shape for row in table.rows()}
    for name in settings["layers"].split():
        shape = blobs.get(name.removesuffix(PREACT), blobs["fc8"])
        shapes[name] = shape if settings["pool"] == "none" else shape[-1:], np.dtype("f4")
    return shapes


class _Listing(NamedTuple):
    """The rows of an output, in order, if that is not one per photo."""

    lines: Sequence[str]
    nan: bool  # whether photos that can't be read have rows

    @property
    def mark(self) -> str:
        """Digest recorded in the output."""
        text = "\0".join(self.lines).encode("utf-8", "surrogateescape")
        return digest_of(text) + "+nan" * self.nan


@dataclass
class _Plan:
    """What a run has to do."""

    places: dict[str, str]  # input -> place
    # Photos to process, and the stat to record if reading them gives none
    todo: dict[str, str | None] = field(default_factory=dict)
    # Known photos that look different; they are read to see whether they are
    doubtful: dict[str, Entry] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # input -> other name it is known by
    known: int = 0  # inputs known from earlier runs
    failed: int = 0  # inputs that failed before and are not tried again
    kept: int = 0  # photos left as they are
    absent: int = 0  # those of them that are not inputs
    changed: int = 0  # inputs whose content changed
    unreadable: int = 0  # inputs that can't be read now

    def known_as(self, read: Photo | Failure) -> Photo | Failure:
        """A photo that was read, with the name, place and stat to record."""
        stat = read.stat
        if stat is None and (is_url(read.path) or read.digest is None):
            stat = self.todo[read.path]
        name = self.names.get(read.path, read.path)
        return read._replace(path=name, stat=stat, place=self.places[read.path])


class _Job:
    """An output that is locked by one run. Nothing is written before `begin`."""

    def __init__(
        self, target: Target, settings: Mapping[str, str], force: bool, stack: contextlib.ExitStack
    ):
        self._target, self._stack = target, stack
        self._finished: Sequence[Path] = ()  # the file that the job continues
        self._versions = self._look_up()  # before they are read
        self._was_there = any(self._versions)  # an .npy's names alone may be another program's
        header = _own_header(target)
        self._had_header, self._begun = header is not None, False
        base = self._read_base(header, force) if self._was_there else None
        if header is None:
            recorded = base.info["settings"] if base else settings
            known = {name: recorded.get(name, "unknown") for name in settings}
            header = new_header(known, base.info["id"] if base else token(), ended_jobs(target.job))
        self._open(header, base)
        differences = changes(header["settings"], settings)
        if differences and self.has_rows and not force:
            raise UsageError(
                str(target),
                f"it was started with other settings ({', '.join(differences)})",
                "Use the same settings, name another output, or pass --force (force=True).",
            )
        if differences or force:
            former = [header["id"], *header["former"]]
            self._open(new_header(settings, token(), former, forced=True), None)

    def _look_up(self) -> list[str | None]:
        """The versions of the finished file and of an .npy's names; None if there is none."""
        target = self._target
        return [] if target.is_folder else [target.parent.version(name) for name in target.names]

    def _open(self, header: dict, base: Record | None) -> None:
        target = self._target
        self._base_number = base and base.number
        self.mark = base and base.info["settings"].get("listing")  # of a finished file
        self.store = Store(target.job, target.data, header["id"], target.shard_suffix)
        self.records = Records(self.store, header, base)
        self.fold = self.records.fold

    @property
    def has_rows(self) -> bool:
        """Whether the output has any rows."""
        return any(entry.lives for entry in self.fold.by_path.values())

    @property
    def is_finished(self) -> bool:
        """Whether the job continues a finished file."""
        return self._base_number is not None

    @property
    def can_grow(self) -> bool:
        """Whether rows can be added; some finished files are fixed."""
        return not self.is_finished or self._target.suffix not in FIXED

    def _read_base(self, header: Mapping[str, Any] | None, force: bool) -> Record | None:
        """The finished file as the first record of a job; None if it will be replaced."""
        target, settings, record = self._target, {}, None
        with contextlib.suppress(*_UNREADABLE), reading_of(str(target)):
            self._finished = self._stack.enter_context(target.parent.reading(*target.names))
            with open_output(*self._finished) as output:
                settings = output.attributes
                record = Record(
                    int(settings["record"]),
                    place=BASE,
                    photos=output.photos,
                    failures=output.failures,
                    info={"settings": settings, "id": settings["id"]},
                )
        if force:
            return None
        if record and (header is None or header["id"] == settings["id"]):
            return record
        names = target.parent.read(target.names[-1]) if target.suffix == ".npy" else b""
        # A forced job replaces it. The names of an .npy are the last that is written.
        if header and (header["forced"] or names in (None, UNFINISHED)):
            return None
        if record:
            found = f"it does not belong to the unfinished job in {target.job}"
            raise OutputError(str(target), found, "Move one of the two away.")
        found = "it exists already, and was not written by an extraction"
        if "weights_digest" in settings:
            found = "it was written by an older version, which did not record the content of its "
            found += "photos"
        elif names == UNFINISHED:
            found = "it is unfinished, and its job is gone"
        is_json = target.suffix == ".npy" and (header is not None or self._versions[0] is None)
        raise OutputError(
            f"{target}.json" if is_json else str(target),
            found,
            "Name another output, or pass --force (force=True) to replace it.",
        )

    def repair(self, paths: Sequence[str], look: _Looker, discard: bool) -> dict[str, Any]:
        """Find damaged and missing files; return what `begin` has to record.

        Raises OutputError if photos that are not among the inputs lose their rows.
        """
        records, fold = self.records, self.fold
        damaged = records.damaged()
        if not (damaged or records.missing):
            return {}
        inputs, rows = {*paths, *map(look.place, paths)}, fold.rows()
        lost = sum(inputs.isdisjoint((x.path, x.place)) for n in damaged for x in rows[n])
        if (lost or records.missing) and not discard:
            names = [fold.records[n].data for n in damaged]
            names += [f"{n:06d}-{self.store.id}.json" for n in records.missing]
            more = f", and {len(names) - 1} more" * (len(names) > 1)
            what = (
                f"{counted(lost, 'of its photos is', 'of its photos are')} not among these inputs"
            )
            if not lost:
                what = "the photos it names are not known"
            raise OutputError(
                f"{self._target.data}/{names[0]}",
                f"it is missing or damaged{more}; {what}",
                "Restore it, name its photos too, or discard its rows with --discard-damaged.",
            )
        replaces = {x for n in damaged for x in (n, *fold.records[n].replaces)}
        failures = [x for n in damaged for x in fold.drop(n, inputs if discard else None)]
        return {"replaces": tuple(sorted({*replaces, *records.missing})), "failures": failures}

    def plan(self, paths: Sequence[str], look: _Looker, retry: bool) -> _Plan:
        """Compare the inputs with the records."""
        fold = self.fold
        plan = _Plan({})
        for path in paths:
            place = look.place(path)
            # Share the fold's string: a million copies take 100 MB.
            plan.places[path] = fold.by_place[place].place if place in fold.by_place else place
        for path, place in plan.places.items():
            entry = fold.by_path.get(path)
            if entry is None and (entry := fold.by_place.get(place)):
                if plan.places.get(entry.path, entry.place) != entry.place:
                    entry = None  # its former name is another photo's now
                else:
                    plan.names[path] = entry.path
            stat, believed = look(path)
            plan.known += entry is not None
            if entry and entry.lives:
                if stat is None:
                    plan.unreadable += 1
                    continue
                if (stat, place) == (entry.stat, entry.place):
                    continue
                plan.doubtful[path] = entry
            elif entry and stat == entry.failure.stat and entry.failure.code != LOST and not retry:
                plan.failed += 1
                continue
            plan.todo[path] = stat if believed else None
        again = sum(fold.find(path, plan.places[path]) is not None for path in plan.todo)
        plan.kept, plan.absent = len(fold.by_path) - again, len(fold.by_path) - plan.known
        return plan

    def begin(self, repair: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Claim the output for this run, and delete unfinished files of other runs."""
        if not self.can_grow:
            return  # there is nothing to write
        self._claim()
        records = self.records
        garbage = records.garbage(spare_readers=True)
        records.commit(info={"versions": dict(versions)}, **repair)
        for folder, name in garbage:
            folder.remove(name)

    def _claim(self) -> None:
        """Write ``job.json``, once: after that, no other job can end unnoticed."""
        store, header = self.store, self.records.header
        if self._begun:
            return
        data = json.dumps(header, indent=1).encode()
        if not self._had_header:
            try:
                store.job.create(HEADER, data, store.temporary())
            except FileExistsError:
                raise OutputError(
                    str(self._target),
                    "another job has just started writing it",
                    "Wait for it to end, then run the same command again.",
                ) from None
            if self._look_up() != self._versions:
                self._dissolve()
                raise overtaken(str(self._target))
        elif read_header(store.job) != header:
            with store.job.replacing(HEADER, store.job, store.temporary()) as file:
                file.write(data)
        self._begun = True

    def reread(self, plan: _Plan) -> None:
        """Read known photos that look different, and keep those with the same bytes."""
        doubtful = list(plan.doubtful)
        with ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as pool:
            for start in range(0, len(doubtful), SHARD_SIZE):
                paths = doubtful[start : start + SHARD_SIZE]
                states = zip(paths, pool.map(read_state, paths), strict=True)
                seen = [photo for path, state in states if (photo := self._seen(plan, path, state))]
                if seen and self._begun:
                    self.records.commit(seen=seen)

    def _seen(self, plan: _Plan, path: str, state: tuple[str | None, str] | None) -> Photo | None:
        """The photo, if it still has the bytes its row was computed from, and so keeps the row."""
        entry, there = plan.doubtful[path], self.fold.by_place.get(plan.places[path])
        if state and (state[1] != entry.digest or there not in (None, entry)):
            plan.changed += 1
            return None
        photo = state and plan.known_as(Photo(path, *state))
        del plan.todo[path]
        plan.kept += 1
        plan.unreadable += not state
        return photo

    def shards(self, plan: _Plan, size: int) -> Iterator[Shard]:
        """Split the photos to process into shards; a resumed job splits them the same way."""
        taken = {record.place for record in self.fold.records.values()}
        free = (place for place in itertools.count() if place not in taken)
        paths = list(plan.todo)
        for start in range(0, len(paths), size):
            yield Shard(next(free), paths[start : start + size])

    def commit(self, shard: Shard, found: Finished, plan: _Plan) -> None:
        """Record a finished shard."""
        photos, failures = (list(map(plan.known_as, x)) for x in (found.photos, found.failures))
        self.records.commit(found.data, place=shard.place, photos=photos, failures=failures)

    def abandon(self) -> None:
        """After a failure: keep the recorded rows; if there are none, delete the job."""
        if self._begun and not self.records.header["forced"] and not self.has_rows:
            self._dissolve()

    def _dissolve(self) -> None:
        with contextlib.suppress(OutputError):
            self.records.dissolve()

    def finish(
        self, plan: _Plan, attributes: Mapping[str, str], listing: _Listing | None
    ) -> ExtractionReport:
        """Complete the output, if it is not, and report what it holds.

        Raises ImageError if it has no rows, OutputError if it can't be written.
        """
        if not self.has_rows:
            first, *more = self.fold.failures()
            raise ImageError(
                counted(1 + len(more), "photo", "photos"),
                f"none could be read; the first: {first.path}: {first.detail}",
                "Check the files.",
            )
        listed = None
        if listing:
            attributes = {**attributes, "listing": listing.mark}
            entries = (self.fold.by_path[plan.names.get(x, x)] for x in listing.lines)
            listed = [entry for entry in entries if listing.nan or entry.lives]
        if self._target.is_folder:
            content = self._settle(attributes)
        else:
            content = self._export(attributes, listed)
        rows = content.totals["rows"]
        return ExtractionReport(
            str(self._target),
            content.totals["inputs"],
            rows,
            tuple(content.failures),
            {name: (rows, *shape) for name, (shape, _) in content.layers.items()},
            content.attributes,
            *(plan.kept, plan.absent, plan.changed, plan.unreadable),
            nan=sum(not entry.lives for entry in listed or ()),
        )

    def _settle(self, attributes: Mapping[str, str]) -> _Content:
        """Rewrite data files to hold living rows only; write the failures and the manifest."""
        records, store, data = self.records, self.store, self._target.data
        if (
            records.published == records.highest
            and data.read(ERRORS) == _table(self.fold.failures())
            and not records.garbage(spare_readers=False)
        ):
            return _Content(self, attributes, layers=records.manifest["layers"])
        rows = self.fold.rows()
        for number, record in sorted(records.fold.records.items()):
            if record.data and len(rows[number]) < record.rows:
                self._rewrite(record, rows[number])
        garbage = records.garbage(spare_readers=False)
        records.commit()
        content = _Content(self, attributes)
        records.check_last()
        with data.replacing(ERRORS, store.job, store.temporary()) as file:
            file.write(_table(content.failures))
        records.check_last()
        layers = {name: (shape, str(dtype)) for name, (shape, dtype) in content.layers.items()}
        manifest = {"id": store.id, "record": records.highest, **content.totals, "layers": layers}
        manifest["attributes"] = content.attributes
        manifest["shards"] = [
            {"name": part.data, "rows": part.rows, "size": part.size} for part in content.parts
        ]
        with data.replacing(MANIFEST, store.job, store.temporary()) as file:
            file.write(json.dumps(manifest, indent=1).encode())
        for folder, name in garbage:
            folder.remove(name)
        return content

    def _rewrite(self, record: Record, entries: list[Entry]) -> None:
        """Copy the living rows of a data file into a new one at the same place."""
        name, store = None, self.store
        if entries:
            with (
                self.opened(record) as output,
                store.writing(record.place) as (name, file),
                data_writer(store.suffix)(file) as writer,
            ):
                rows = output.blocks(list(output.layers), [entry.row for entry in entries])
                writer.add_all([entry.path for entry in entries], rows)
                writer.finish(output.attributes)
        failed = (entry for entry in self.fold.by_path.values() if entry.failure)
        self.records.commit(
            name,
            place=record.place,
            photos=[entry.photo for entry in entries],
            failures=[entry.failure for entry in failed if entry.failed_in == record.number],
            replaces=(record.number, *record.replaces),
        )

    def _export(self, attributes: Mapping[str, str], listed: Sequence[Entry] | None) -> _Content:
        """Write the finished file, unless it is up to date, and delete the job."""
        is_new = self.records.highest != self._base_number
        if is_new:
            self._claim()
            self.records.commit()
        content = _Content(self, attributes, listed)
        if is_new:
            self._write(content)
        self._dissolve()
        return content

    def _write(self, content: _Content) -> None:
        """Write the finished file, replacing an older one."""
        target, store = self._target, self.store
        # The names of an .npy come last. Those of an older array are first replaced by empty ones,
        # not deleted: if another job has just ended, they are its own, and these files are gone.
        emptied = target.names[1:] if self._was_there else ()
        names = [*emptied, *target.names]
        temporary = [store.temporary() for _ in names]
        try:
            with contextlib.ExitStack() as stack:
                files = [stack.enter_context(store.job.writing(name)) for name in temporary]
                for empty in files[: len(emptied)]:
                    empty.write(UNFINISHED)
                file, *rest = files[len(emptied) :]
                export(target.suffix, file, content, *rest)
            self.records.check_header()
            for source, name in zip(temporary, names, strict=True):
                store.job.rename(source, target.parent, name, exclusive=not self._was_there)
        except BaseException as error:
            with contextlib.suppress(OutputError):
                for name in temporary:
                    store.job.remove(name)
            if not isinstance(error, FileExistsError):
                raise
            found = "another file appeared there meanwhile"
            raise OutputError(str(target), found, "Name another output.") from None

    @contextlib.contextmanager
    def opened(self, record: Record) -> Iterator[Output]:
        """Open the data file of a record."""
        place, reading = str(self._target), contextlib.nullcontext(self._finished)
        if record.place != BASE:
            place = f"{self.store.data}/{record.data}"
            reading = self.store.data.reading(record.data)
        try:
            with reading_of(place), reading as paths, open_output(*paths) as output:
                if output.count != record.rows:
                    raise ValueError(f"{output.count} rows instead of {record.rows}")
                yield output
        except AlexNetError:
            raise
        except FileNotFoundError as error:
            advice = "Run the same command again to repeat its photos."
            raise OutputError(place, "it is missing", advice) from error
        except _UNREADABLE as error:
            raise OutputError(
                place,
                f"it is damaged ({str(error) or type(error).__name__})",
                "Delete this file and run the same command again to repeat its photos.",
            ) from error


class _Content:
    """All living rows, in the order of the output or of a list, like one `formats.Output`."""

    def __init__(
        self,
        job: _Job,
        attributes: Mapping[str, str],
        listed: Sequence[Entry] | None = None,
        layers: Mapping[str, tuple[Sequence[int], str]] | None = None,  # if known
    ):
        records, fold = job.records, job.fold
        self._opened, self._listed, self._rows = job.opened, listed, fold.rows()
        parts = (fold.records[number] for number in self._rows)
        self.parts = sorted(parts, key=lambda part: (part.place, part.number))
        entries = [entry for part in self.parts for entry in self._rows[part.number]]
        self.photos = [entry.photo for entry in (entries if listed is None else listed)]
        self.failures = fold.failures()
        rows, errors = len(self.photos), len(self.failures)
        self.totals = {"inputs": len(entries) + errors, "rows": rows, "errors": errors}
        self.attributes = {**records.header["settings"], **attributes, "id": job.store.id}
        self.attributes["record"] = str(records.highest)
        self.attributes |= {name: str(value) for name, value in self.totals.items()}
        if layers:
            self.layers = {name: (tuple(x), np.dtype(y)) for name, (x, y) in layers.items()}
        else:
            with self._opened(self.parts[0]) as output:
                self.layers = output.layers

    def blocks(self, layers: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Rows of some layers, in order."""
        if self._listed is not None:
            yield from self._listed_blocks(layers)
            return
        for part in self.parts:
            with self._opened(part) as output:
                yield from output.blocks(layers, [x.row for x in self._rows[part.number]])

    def _listed_blocks(self, layers: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Rows in the order of the list, gathered from all data files."""
        row_size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.layers.values())
        step = max(1, _LISTED_BYTES // row_size)
        with contextlib.ExitStack() as stack:
            outputs = {x.number: stack.enter_context(self._opened(x)) for x in self.parts}
            for start in range(0, len(self._listed), step):
                some = self._listed[start : start + step]
                wanted = defaultdict(list)
                for i, entry in enumerate(some):
                    if entry.lives:
                        wanted[entry.record].append((entry.row, i))
                rows = {}
                for name in layers:
                    shape, dtype = self.layers[name]
                    rows[name] = np.full((len(some), *shape), np.nan, dtype)
                for number, found in wanted.items():
                    sources, targets = np.array(sorted(found)).T
                    for block in outputs[number].blocks(layers, sources):
                        here, targets = np.split(targets, [len(next(iter(block.values())))])
                        for name, values in block.items():
                            rows[name][here] = values
                yield rows


def _table(failures: Iterable[Failure]) -> bytes:
    """The failures, as CSV."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("path", "code", "detail"))
    for path, code, detail, *_ in failures:
        writer.writerow((encoded(path).decode("utf-8", "surrogateescape"), code, detail))
    return encoded(table.getvalue())


@contextlib.contextmanager
def _opened(target: Target, settings: Mapping[str, str], force: bool) -> Iterator[_Job]:
    """Lock an output for one run."""
    target.data.make()
    target.job.make()
    try:
        with locked(target.job, str(target)), contextlib.ExitStack() as stack:
            job = _Job(target, settings, force, stack)
            try:
                yield job
            except BaseException:
                job.abandon()
                raise
    finally:
        target.job.remove_empty()
        target.data.remove_empty()


def _own_header(target: Target) -> dict[str, Any] | None:
    """The header of an unfinished job; OutputError for a folder that is not an extraction's."""
    header = read_header(target.job)
    names = () if header else target.data.sizes()
    found = [x for x in names if not (x == ".job" if target.is_folder else is_ours(x))]
    if found:
        what = f"it holds files that no extraction wrote ({found[0]})"
        if {"manifest.json", "shards"} <= set(found):
            what = "it was started by an older version"
        raise OutputError(str(target.data), what, "Name another output, or move it away.")
    return header


def read_state(path: str) -> tuple[str | None, str] | None:
    """(stat, digest) of a photo read now; None if it can't be read."""
    try:
        if is_url(path):
            return None, digest_of(read_url(path))
        data, found = read_file(path)
        return found and stat_text(found, time.time()), digest_of(data)
    except (ImageError, OSError, ValueError):
        return None


class _Looker:
    """Looks up the stat of photos, a text that changes with them, and whether it is reliable."""

    def __init__(self):
        self._folders: dict[str, dict[str, Any]] = {}
        self._real = functools.cache(os.path.realpath)

    def place(self, path: str) -> str:
        """As `place_of`."""
        return place_of(path, self._real)

    def __call__(self, path: str) -> tuple[str | None, bool]:
        if is_url(path):
            return self._behind_url(path)
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None, False
        believed = stat_text(found, time.time())
        return believed or stat_text(found, math.inf), believed is not None

    def _behind_url(self, url: str) -> tuple[str | None, bool]:
        """From a listing of its folder: a request for each photo would take hours."""
        # For zip://photos/a.jpg::p.zip, this lists photos/ in the archive.
        link, *archive = url.split("::") if "://" in url.partition("::")[0] else [url]
        folder, slash, name = link.rpartition("/")
        folder = "::".join([folder + slash, *archive])
        if folder not in self._folders:
            self._folders[folder] = {}
            with contextlib.suppress(Exception):  # errors differ by service; reading reports them
                files, path = filesystem(folder)
                files.invalidate_cache(path)
                self._folders[folder] = {
                    entry["name"].rpartition("/")[2]: entry for entry in files.ls(path, detail=True)
                }
        entry = self._folders[folder].get(name)
        if entry is None:
            return None, False
        mark = mark_of(entry)
        return f"{entry.get('size')} {mark}", mark is not None


def _teller(plan: _Plan, limit: int | None, progress: Progress | None) -> Tell:
    """A callback that counts photos, reports progress, and stops at too many errors."""
    done, errors, size = 0, plan.failed, 0

    def tell(photos: int, failures: Sequence[Failure], more: int) -> None:
        nonlocal done, errors, size
        done, errors, size = done + photos, errors + len(failures), size + more
        if progress:
            progress(done, len(plan.todo), errors, size)
        if limit is not None and errors > limit:
            last = f"; the last: {failures[-1].path}: {failures[-1].detail}" if failures else ""
            raise ImageError(
                counted(errors, "photo", "photos"),
                f"could not be read, and at most {limit} may fail{last}",
                "Check the files, or allow more errors; the same command resumes from here.",
            )

    tell(0, [], 0)
    return tell


def fair_size(size: int, photos: int, worker_count: int, batch_size: int) -> int:
    """Photos per shard if several run at a time: at most `size`, and about four shards per worker.

    Whole batches, so that the shard size does not change which photos share a batch.
    """
    if worker_count == 1:
        return size
    share = -(-photos // (_ROUNDS * worker_count))
    return min(size, max(1, -(-share // batch_size)) * batch_size)
