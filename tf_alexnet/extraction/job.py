"""A whole extraction: photos in, paths and features out, whatever ends it in between."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import math
import os
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_alexnet import remote
from tf_alexnet.architectures import ALL, ARCHITECTURES, PREACT, blob_names
from tf_alexnet.engines import choose_engine
from tf_alexnet.errors import AlexNetError, ImageError, OutputError, UsageError
from tf_alexnet.extraction.decoder import Failure, Photo, digest_of, stat_text
from tf_alexnet.extraction.formats import (
    Output,
    check_size,
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
    Fold,
    Record,
    Records,
    Store,
    ended_jobs,
    is_ours,
    new_header,
    read_header,
)
from tf_alexnet.extraction.spec import ExtractionSpec, changes
from tf_alexnet.extraction.storage import FIXED, Target, locked, place_of, reading_of, token
from tf_alexnet.extraction.worker import Finished, Shard, Worker
from tf_alexnet.images import find_images
from tf_alexnet.images.decode import read_file, read_url
from tf_alexnet.images.mean_image import Mean
from tf_alexnet.images.presets import Preset
from tf_alexnet.progress import progress_callback
from tf_alexnet.remote import filesystem, is_url
from tf_alexnet.weights import WeightArrays

SHARD_SIZE = 4096
ERRORS = "_errors.csv"
_LISTED_BYTES = 2**26  # rows in memory, where they follow a list
_ROUNDS = 4  # shards per worker: the slowest keeps the others waiting for part of its last one
# What opening a file that is not ours, or is damaged, may end in.
_UNREADABLE = (
    *(OSError, LookupError, ValueError, TypeError, AttributeError, EOFError, RuntimeError),
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class ExtractionReport:
    """What there is now; `rows` + `len(errors)` = `inputs`, unless rows follow the list.

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
        Photos that earlier runs had done, and this one left as they are.
    absent : int
        Those of them that are not among this run's inputs; their rows stay.
    changed : int
        Photos whose content was another one than before, and which were done again.
    unreadable : int
        Photos that can't be read now, and whose rows of earlier runs stay.
    repeats : int
        Lines of this run's inputs that name a photo again.
    nan : int
        Rows of NaN, one for each line whose photo could not be read.
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


def extract_features(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    weights: str | os.PathLike | WeightArrays = "imagenet",
    layers: Sequence[str] = ("fc7",),
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
    progress: Callable[[int, int, int, int], None] | bool | None = None,
) -> ExtractionReport:
    """Extract features of photos into a file, or a folder of files, with paths and rows together.

    Photos are done in shards, each written whole before it is recorded. The same call again,
    whatever ended the first, keeps what is recorded and does the rest: photos that are new, and
    those whose content has changed since. Photos that are gone, or can't be read now, keep their
    rows. A single file is put together from its shards at the end and renamed.

    Parameters
    ----------
    images : path, or sequence of paths
        Photos, folders (searched recursively), patterns (``*``, ``?``, ``**``), lists (``.txt``,
        ``.csv``), ``-`` for a list on standard input, URLs that fsspec can open. A photo is known
        by its path as it stands here.
    output : path or URL
        ``.h5``: ``paths`` (N,), one (N, ...) array per layer, a group ``errors`` with ``paths``,
        ``codes`` and ``details``, and attributes (weights digest, architecture, preset, layers,
        dtype, versions). ``.npz``, ``.mat`` (for MATLAB): the same as arrays, ``errors_paths`` ..
        and ``attributes``. ``.npy``: the array of one layer, and the rest in ``<output>.json``.
        ``.parquet``: one row per photo, with path, status, detail, each layer a list of fixed size.
        All of them also hold ``places``, ``stats`` and ``digests``, which tell a photo that has
        changed. A name that ends in a slash or has no suffix: a folder of ``*.h5`` (``*.parquet``
        if it ends in ``.parquet/``) with rows, ``_errors.csv`` and ``_manifest.json``. Files and
        folders grow by new photos; finished ``.npz``, ``.npy`` and ``.mat`` don't.
    weights, layers, architecture, preset, mean_image
        As in `FeatureExtractor`.
    batch_size : int or "auto"
        Photos that go through the network together.
    dtype : {"float32", "float16"}
        Type of the rows; the network always computes in float32.
    pool : {"none", "avg", "max"}
        Convolutional blobs (height, width, channels) pooled to (channels,).
    shard_size : int
        Photos per shard: the most that is done twice after an interruption.
    workers, timeout, depth, fast_decode
        As in `PhotoReader`.
    crops : {"center", "ten"}
        The centre of a photo; or its corners, its centre and their mirror images, each of which
        goes through the network (and is pooled): the row is the mean of the ten.
    engine, precision : str
        As in `FeatureExtractor`; "auto" goes by the number of photos, too. Rows of the two engines
        differ by rounding, at most 1e-5 of a blob's maximum, and may be mixed; those of the two
        precisions may not.
    max_errors : int or "P%", optional
        Stop when more of the inputs than this, or than this share of them, can't be read.
    retry_errors : bool
        Try photos again that could not be read before.
    force : bool
        Begin anew. What is there is replaced at the end; a folder must be an extraction's.
    add : bool
        Add the inputs to an output that knows none of them.
    discard_damaged : bool
        Let rows go whose file is missing or damaged, and whose photos are not among the inputs.
    repeats : {"drop", "keep"}
        A photo that is named more than once has one row; or one for each line, in the order of
        the inputs (files only, which then hold exactly these inputs).
    missing : {"drop", "nan"}
        A photo that can't be read has no row; or one of NaN, in the order of the inputs (as
        `repeats`; in ``.parquet`` failures are rows already).
    storage_options : dict of dicts, optional
        Options of fsspec's file systems by scheme, for inputs and output:
        ``{"s3": {"endpoint_url": "http://localhost:9000", "key": ..., "secret": ...}}``.
    cluster : "ray", "auto" or address, optional
        Where shards run, instead of in this process: on workers of a Ray of their own on this
        machine, of the one that runs here, or of the one at an address
        (`tf_alexnet.extraction.ray_cluster`). Rows, files and what is kept are the same.
    cluster_workers, cluster_min_workers, gpus_per_worker
        `places`, `fewest` and `gpus` of a `RayCrew`.
    progress : callable or bool, optional
        True shows a progress bar. A callable is called with (photos done, photos to do, errors,
        bytes of rows written) of this run: at its beginning and after every batch; on a cluster,
        after every shard.

    Returns
    -------
    ExtractionReport

    Raises
    ------
    UsageError
        For a call that can't work, or one whose settings are not those that the output was begun
        with; found out before the first photo is read.
    OutputError
        If the output can't be written, is damaged, is being written by another job, or was not
        written by an extraction.
    WeightsError
        If the weights can't be had.
    ImageError
        If no photo at all, or too few of them, can be read.
    """
    plan = (cluster, cluster_workers, cluster_min_workers, gpus_per_worker)
    with remote.storage_options(storage_options):
        target = check_job(
            output, layers, batch_size, shard_size, repeats, missing, max_errors, *plan
        )
        spec = ExtractionSpec(
            *(weights, layers, architecture, preset, mean_image, dtype, pool, crops),
            *(fast_decode, precision, depth),
        )
        lines = find_images(images, repeats=True)
        paths = list(dict.fromkeys(lines))
        listing = None
        if repeats == "keep" or missing == "nan":
            listing = _Listing(lines if repeats == "keep" else paths, missing == "nan")
        make = functools.partial(
            Worker,
            spec,
            batch_size,
            engine=choose_engine(engine, len(paths), precision),
            timeout=timeout,
            storage=storage_options,
        )
        with _crew(make, workers, *plan) as crew, progress_callback(progress) as progress:
            report = run_job(
                target,
                paths,
                crew,
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
    """Refuse arguments of `extract_features` that can't work, before weights are looked for.

    Raises
    ------
    UsageError, OutputError
        As `extract_features`.
    """
    target = Target(output)
    target.check()
    _check_sizes(batch_size, shard_size, blob_names(layers), target)
    _check_listing(target, repeats, missing)
    _error_limit(max_errors, 0)
    given = cluster_workers is not None or cluster_min_workers != 1 or gpus_per_worker is not None
    if given and cluster is None:
        raise UsageError(
            "cluster_workers, cluster_min_workers, gpus_per_worker",
            "they are settings of a cluster, and none is named",
            "Name it: --cluster ray (cluster='ray') is one on this machine.",
        )
    refuse_foreign(target, read_header(target.job))
    return target


def _crew(make, workers, cluster, places, fewest, gpus):
    """What runs the shards of a job, as a context: a `Worker`, or a `RayCrew` of them."""
    if cluster is not None:
        from tf_alexnet.extraction.ray_cluster import RayCrew

        return RayCrew(cluster, make, places=places, fewest=fewest, gpus=gpus, decoders=workers)
    return make(workers=workers)


def _check_sizes(
    batch_size: int | str, shard_size: int, layers: Sequence[str], target: Target
) -> None:
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise UsageError(f"batch of {batch_size}", "not a number of photos", "Use 1 or more, auto.")
    if shard_size < 1:
        raise UsageError(f"shard of {shard_size}", "not a number of photos", "Use 1 or more.")
    if target.suffix == ".npy" and (len(set(layers)) > 1 or ALL in layers):
        raise UsageError(
            f"{' '.join(layers)} in {target}",
            "an .npy holds one array",
            "Choose one layer, or another format.",
        )


def _check_listing(target: Target, repeats: str, missing: str) -> None:
    for name, value, choices in (
        ("repeats", repeats, ("drop", "keep")),
        ("missing", missing, ("drop", "nan")),
    ):
        if value not in choices:
            raise UsageError(f"{name} {value!r}", "no such choice", f"Use {' or '.join(choices)}.")
        if value != "drop" and target.is_folder:
            raise UsageError(
                f"{name} {value} with {target}",
                "a folder of shards has one row per photo",
                "Name a file, for example features.h5.",
            )
    if missing == "nan" and target.suffix == ".parquet":
        raise UsageError(
            f"missing nan with {target}",
            "photos that can't be read are rows of a .parquet file already, with status and nulls",
            "Leave it out, or name a .h5, .npz, .npy or .mat.",
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
    raise UsageError(f"max_errors {text!r}", "not a limit", "Use a number, or a share such as 1%.")


def run_job(
    target: Target,
    paths: Sequence[str],
    crew: Any,
    *,
    shard_size: int = SHARD_SIZE,
    limit: int | None = None,
    retry_errors: bool = False,
    force: bool = False,
    add: bool = False,
    discard_damaged: bool = False,
    listing: _Listing | None = None,
    progress: Callable[[int, int, int, int], None] | None = None,
) -> ExtractionReport:
    """Extract with a `Worker`, or several behind a `RayCrew`; as `extract_features` otherwise."""
    with _opened(target, crew.settings, force) as job:
        look = _Looker()
        repair = job.repair(paths, look, discard_damaged)
        plan = job.plan(paths, look, retry_errors)
        if job.has_rows and not plan.known and not add:
            raise UsageError(
                str(target),
                f"it has rows, and none of these {len(paths):,} photos is known in it: were they "
                "moved?",
                "Pass --add (add=True) to add them all.",
            )
        if listing and plan.absent:
            raise UsageError(
                str(target),
                f"it has {plan.absent:,} photos that are not among these inputs, and rows are to "
                "follow the inputs",
                "Name another output, or leave out --repeats keep and --missing nan.",
            )
        relisted = job.lists_others(listing)
        if target.suffix == ".mat":
            check_size(target.suffix, _shapes(crew.settings), plan.kept + len(plan.todo))
        if plan.todo or plan.doubtful or repair or relisted:
            job.begin(repair, crew.attributes)
            job.reread(plan)
        job.check_growth(plan, relisted)
        tell = _Tell(plan, limit, progress)
        size = fair_size(shard_size, len(plan.todo), crew.places, crew.batch_size)
        with contextlib.closing(crew.run(job.shards(plan, size), job.store, tell)) as finished:
            for shard, found in finished:
                job.commit(shard, found, plan)
        return job.finish(plan, crew.attributes, listing)


def _shapes(settings: Mapping[str, str]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shapes and type of the rows that a job with these settings makes."""
    table, shapes = ARCHITECTURES[settings["architecture"]], {}
    blobs = {row.name: row.output_shape for row in table.rows()}
    for name in settings["layers"].split():
        shape = blobs.get(name.removesuffix(PREACT), blobs["fc8"])
        shapes[name] = shape if settings["pool"] == "none" else shape[-1:], np.dtype("f4")
    return shapes


class _Listing(NamedTuple):
    """Whose rows an output has, in order, where that is not each photo's once."""

    lines: Sequence[str]
    nan: bool  # whether photos that failed have rows

    @property
    def mark(self) -> str:
        """What an output says of it."""
        text = "\0".join(self.lines).encode("utf-8", "surrogateescape")
        return digest_of(text) + "+nan" * self.nan


@dataclass
class _Plan:
    """What a run has to do."""

    places: dict[str, str]  # inputs, and where they lie
    # Photos to be done, what they looked like, and whether to believe it
    todo: dict[str, tuple[str | None, bool]] = field(default_factory=dict)
    # Those that are known but look different; they are read to see whether they are
    doubtful: dict[str, Entry] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # known names of inputs called otherwise
    known: int = 0  # inputs of earlier runs
    failed: int = 0  # inputs that failed before and are not tried again
    kept: int = 0  # photos left as they are
    absent: int = 0  # those of them that are not inputs
    changed: int = 0  # inputs whose content changed
    unreadable: int = 0  # inputs that can't be read now


class _Job:
    """An output while one run holds it. Nothing is written before `begin`."""

    def __init__(
        self,
        target: Target,
        settings: Mapping[str, str],
        force: bool,
        stack: contextlib.ExitStack,
    ):
        self._target, self._stack = target, stack
        self._finished: Sequence[Path] = ()  # the file that the job goes on from
        self._was_there = not target.is_folder and target.parent.exists(target.name)
        header = read_header(target.job)
        refuse_foreign(target, header)
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
                f"it was begun with other settings ({', '.join(differences)})",
                "Use the same again, name another output, or pass --force (force=True) to begin "
                "anew.",
            )
        if differences or force:
            self._finished = ()
            former = [header["id"], *header["former"]]
            self._open(new_header(settings, token(), former, forced=True), None)

    def _open(self, header: dict, base: Record | None) -> None:
        target = self._target
        self._base_number = base.number if base else None
        self._base_mark = base.info["settings"].get("listing") if base else None
        self.store = Store(target.job, target.data, header["id"], target.shard_suffix)
        self.records = Records(self.store, header, base)
        self.fold = self.records.fold

    @property
    def has_rows(self) -> bool:
        """Whether there is anything to lose."""
        return any(entry.lives for entry in self.fold.by_path.values())

    def _read_base(self, header: Mapping[str, Any] | None, force: bool) -> Record | None:
        """The finished file as the first record of a job; None if it is to be replaced."""
        target = self._target
        settings, record = {}, None
        with contextlib.suppress(*_UNREADABLE), contextlib.ExitStack() as stack:
            stack.enter_context(reading_of(str(target)))
            paths = self._stack.enter_context(target.parent.reading(*target.names))
            output = stack.enter_context(open_output(*paths))
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
            self._finished = paths
            return record
        # A job that was forced replaces it. An .npy has no names while the job is replacing it.
        if header and (header["forced"] or (target.suffix == ".npy" and not settings)):
            return None
        if record:
            raise OutputError(
                str(target),
                f"it does not belong to the unfinished job in {target.job}",
                "Move one of the two away.",
            )
        raise OutputError(
            str(target),
            "it was written by an older version, which did not record what its photos were"
            if "weights_digest" in settings
            else "it is there already, and was not written by an extraction",
            "Name another output, or pass --force (force=True) to replace it.",
        )

    def repair(self, paths: Sequence[str], look: _Looker, discard: bool) -> dict[str, Any]:
        """Find out what is damaged or missing; what `begin` has to record of it.

        Raises
        ------
        OutputError
            If rows are lost of photos that are not among the inputs.
        """
        records, fold = self.records, self.fold
        damaged = records.damaged()
        if not (damaged or records.missing):
            return {}
        inputs = set(paths) | set(map(look.place, paths))
        rows = fold.rows()
        lost = sum(
            not inputs & {entry.path, entry.place} for n in damaged for entry in rows.get(n, ())
        )
        if (lost or records.missing) and not discard:
            names = [fold.records[n].data for n in damaged]
            names += [f"{n:06d}-{self.store.id}.json" for n in records.missing]
            what = f"{lost:,} of its photos" if lost else "the photos it names"
            raise OutputError(
                f"{self._target.data}/{names[0]}",
                f"it is missing or damaged{f', and {len(names) - 1} more' * (len(names) > 1)}; "
                f"{what} {'are not among these inputs' if lost else 'are not known'}",
                "Restore it, name its photos too, or let its rows go with --discard-damaged.",
            )
        replaces = {x for n in damaged for x in (n, *fold.records[n].replaces)}
        failures = [x for n in damaged for x in fold.drop(n, inputs if discard else None)]
        return {
            "replaces": tuple(sorted(replaces | set(records.missing))),
            "failures": failures,
        }

    def plan(self, paths: Sequence[str], look: _Looker, retry_errors: bool) -> _Plan:
        """Compare the inputs with what is known of them."""
        fold = self.fold
        plan = _Plan({})
        for path in paths:
            place = look.place(path)
            # The same string as in the fold: a million of them are 100 MB.
            plan.places[path] = fold.by_place[place].place if place in fold.by_place else place
        for path, place in plan.places.items():
            entry = fold.by_path.get(path)
            if entry is None and (entry := fold.by_place.get(place)):
                if plan.places.get(entry.path, entry.place) != entry.place:
                    entry = None  # what had its name before is another photo now
                else:
                    plan.names[path] = entry.path
            stat, believed = look(path)
            if entry is None:
                plan.todo[path] = stat, believed
                continue
            plan.known += 1
            if not entry.lives:
                if retry_errors or entry.failure.code == LOST or stat != entry.failure.stat:
                    plan.todo[path] = stat, believed
                else:
                    plan.failed += 1
            elif stat is None:
                plan.unreadable += 1
            elif stat != entry.stat or place != entry.place:
                plan.todo[path], plan.doubtful[path] = (stat, believed), entry
        again = sum(fold.find(path, plan.places[path]) is not None for path in plan.todo)
        plan.kept, plan.absent = len(fold.by_path) - again, len(fold.by_path) - plan.known
        return plan

    def begin(self, repair: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Make this run the one that writes, and clear away what others left half done."""
        if self._finished and not self._can_grow:
            return  # there is nothing to write: see `check_growth`
        store, records = self.store, self.records
        data = json.dumps(records.header, indent=1).encode()
        if not self._had_header:
            try:
                store.job.create(HEADER, data, store.temporary())
            except FileExistsError:
                raise OutputError(
                    str(self._target),
                    "another job has just begun to write it",
                    "Wait for it to end, then run the same command again.",
                ) from None
        elif read_header(store.job) != records.header:
            with store.job.replacing(HEADER, store.job, store.temporary()) as file:
                file.write(data)
        self._begun = True
        garbage = records.garbage(spare_readers=True)
        records.commit(info={"versions": dict(versions)}, **repair)
        for folder, name in garbage:
            folder.remove(name)

    def reread(self, plan: _Plan) -> None:
        """Read known photos that look different; those with the same bytes are not done again."""
        doubtful = list(plan.doubtful)
        with ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as pool:
            for start in range(0, len(doubtful), SHARD_SIZE):
                paths = doubtful[start : start + SHARD_SIZE]
                states = zip(paths, pool.map(read_state, paths), strict=True)
                seen = [photo for path, state in states if (photo := self._seen(plan, path, state))]
                if seen and self._begun:
                    self.records.commit(seen=seen)

    def _seen(self, plan: _Plan, path: str, state: tuple[str | None, str] | None) -> Photo | None:
        """The photo, if it has the bytes that its row was computed from; planned anew otherwise."""
        entry, place = plan.doubtful[path], plan.places[path]
        if state and (
            state[1] != entry.digest or self.fold.by_place.get(place, entry) is not entry
        ):
            plan.changed += 1
            return None
        looked = plan.todo.pop(path)
        plan.kept += 1
        if not state:
            plan.unreadable += 1
            return None
        return Photo(entry.path, _stat_of(path, state[0], looked), state[1], place)

    @property
    def _can_grow(self) -> bool:
        return self._target.suffix not in FIXED

    def lists_others(self, listing: _Listing | None) -> bool:
        """Whether a finished file has rows in another order than is asked for."""
        return bool(self._finished) and self._base_mark != (listing and listing.mark)

    def check_growth(self, plan: _Plan, relisted: bool) -> None:
        """Refuse to change a finished file that can't grow."""
        target = self._target
        if (plan.todo or relisted) and self._finished and not self._can_grow:
            found = f"{_counted(len(plan.todo))} new or changed" if plan.todo else "its rows differ"
            raise UsageError(
                str(target),
                f"it is finished, and {found}; {target.suffix} files don't grow",
                "Name another output, use .h5, .parquet or a folder/, or pass --force to replace "
                "it.",
            )

    def shards(self, plan: _Plan, size: int) -> Iterator[Shard]:
        """The photos that are to be done, in shards; a job that was stopped plans the same."""
        taken = {record.place for record in self.fold.records.values()}
        paths, place = list(plan.todo), 0
        for start in range(0, len(paths), size):
            while place in taken:
                place += 1
            yield Shard(place, paths[start : start + size])
            place += 1

    def commit(self, shard: Shard, found: Finished, plan: _Plan) -> None:
        """Make a finished shard count."""

        def known(read: Photo | Failure) -> Photo | Failure:
            return read._replace(
                path=plan.names.get(read.path, read.path),
                stat=_stat_of(read.path, read.stat, plan.todo[read.path], read.digest),
                place=plan.places[read.path],
            )

        self.records.commit(
            found.data,
            place=shard.place,
            photos=list(map(known, found.photos)),
            failures=list(map(known, found.failures)),
        )

    def abandon(self) -> None:
        """After a failure: keep what is recorded, and leave nothing if that is not a single row."""
        if self._begun and not self.records.header["forced"] and not self.has_rows:
            self._dissolve()

    def _dissolve(self) -> None:
        with contextlib.suppress(OutputError):
            self.records.dissolve()

    def finish(
        self, plan: _Plan, attributes: Mapping[str, str], listing: _Listing | None
    ) -> ExtractionReport:
        """Complete the output, unless it is; what it holds.

        Raises
        ------
        ImageError
            If there is not a single row.
        OutputError
            If it can't be written.
        """
        failures = self.fold.failures()
        if not self.has_rows:
            first = failures[0]
            raise ImageError(
                f"{len(failures)} photo{'s' * (len(failures) > 1)}",
                f"none could be read; the first: {first.path}: {first.detail}",
                "Check the files.",
            )
        if self._target.is_folder:
            content = self._settle(attributes)
        elif listing:
            names = (plan.names.get(line, line) for line in listing.lines)
            entries = [self.fold.by_path[name] for name in names]
            listed = [entry for entry in entries if listing.nan or entry.lives]
            content = self._export({**attributes, "listing": listing.mark}, listed)
        else:
            content = self._export(attributes)
        return ExtractionReport(
            str(self._target),
            content.inputs,
            content.count,
            tuple(content.failures),
            {name: (content.count, *shape) for name, (shape, _) in content.layers.items()},
            content.attributes,
            plan.kept,
            plan.absent,
            plan.changed,
            plan.unreadable,
            nan=content.nan,
        )

    def _settle(self, attributes: Mapping[str, str]) -> _Content:
        """Leave data files of living rows only, and the snapshot for readers."""
        records, store, data = self.records, self.store, self._target.data
        manifest = records.manifest
        is_latest = manifest.get("id") == store.id and manifest["record"] == records.highest
        if is_latest and not records.garbage(spare_readers=False):
            return self._content(attributes, manifest["layers"])
        rows = self.fold.rows()
        for number, record in sorted(records.fold.records.items()):
            if record.data and len(rows.get(number, ())) < record.rows:
                self._rewrite(record, rows.get(number, []))
        garbage = records.garbage(spare_readers=False)
        records.commit()
        content = self._content(attributes)
        if records.newer():
            return content
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("path", "code", "detail"))
        for path, code, detail, *_ in content.failures:
            writer.writerow((encoded(path).decode("utf-8", "surrogateescape"), code, detail))
        with data.replacing(ERRORS, store.job, store.temporary()) as file:
            file.write(encoded(table.getvalue()))
        if records.newer():  # another job's snapshot is the one that counts
            return content
        shards = [
            {"name": record.data, "rows": record.rows, "size": record.size}
            for _, record in content.parts
        ]
        manifest = {"id": store.id, "record": records.highest} | content.totals
        layers = {name: (shape, str(dtype)) for name, (shape, dtype) in content.layers.items()}
        manifest |= {"layers": layers, "attributes": content.attributes, "shards": shards}
        with data.replacing(MANIFEST, store.job, store.temporary()) as file:
            file.write(json.dumps(manifest, indent=1).encode())
        for folder, name in garbage:
            folder.remove(name)
        return content

    def _rewrite(self, record: Record, entries: list[Entry]) -> None:
        """Copy the living rows of a data file into a new one at the same place."""
        name = None
        if entries:
            with (
                self.store.data.reading(record.data) as paths,
                _opened_data(f"{self.store.data}/{record.data}", paths) as output,
                self.store.writing(record.place) as (name, file),
                data_writer(self.store.suffix)(file) as writer,
            ):
                at = 0
                for rows in output.blocks(list(output.layers), [entry.row for entry in entries]):
                    count = len(next(iter(rows.values())))
                    writer.add([entry.path for entry in entries[at : at + count]], rows)
                    at += count
                writer.finish(output.attributes)
        failures = [
            entry.failure
            for entry in self.fold.by_path.values()
            if entry.failure and entry.failed_in == record.number
        ]
        self.records.commit(
            name,
            place=record.place,
            photos=[entry.photo for entry in entries],
            failures=failures,
            replaces=(record.number, *record.replaces),
        )

    def _export(
        self, attributes: Mapping[str, str], listed: Sequence[Entry] | None = None
    ) -> _Content:
        """Put the finished file together, and delete the job."""
        target, records, store = self._target, self.records, self.store
        if self._finished and records.highest == self._base_number:
            content = self._content(attributes, listed=listed)
            self._dissolve()
            return content
        records.commit()
        content = self._content(attributes, listed=listed)
        try:
            with contextlib.ExitStack() as stack:
                # The names of an .npy come last: without them it counts as being written.
                files = [
                    stack.enter_context(
                        target.parent.replacing(
                            name, store.job, store.temporary(), exclusive=not self._was_there
                        )
                    )
                    for name in reversed(target.names)
                ]
                export(target.suffix, files[-1], content, *files[:-1])
                for name in target.names[1:]:
                    target.parent.remove(name)
        except FileExistsError:
            raise OutputError(
                str(target), "something else appeared there meanwhile", "Name another output."
            ) from None
        self._dissolve()
        return content

    def _content(
        self,
        attributes: Mapping[str, str],
        layers: Mapping | None = None,
        listed: Sequence[Entry] | None = None,
    ) -> _Content:
        known = {**self.records.header["settings"], **attributes}
        known |= {"id": self.store.id, "record": str(self.records.highest)}
        return _Content(self.fold, self.store, self._finished, known, layers, listed)


class _Content:
    """All living rows in the order of the output, or of a list, as one `formats.Output`."""

    def __init__(
        self,
        fold: Fold,
        store: Store,
        base: Sequence[Path],
        attributes: dict[str, str],
        layers: Mapping | None,
        listed: Sequence[Entry] | None,
    ):
        self._store, self._base, self._listed = store, base, listed
        self._rows = fold.rows()
        self.parts = sorted(
            ((number, fold.records[number]) for number in self._rows),
            key=lambda part: (part[1].place, part[0]),
        )
        entries = [entry for number, _ in self.parts for entry in self._rows[number]]
        self.failures = fold.failures()
        self.inputs = len(entries) + len(self.failures)
        self.photos = [entry.photo for entry in (entries if listed is None else listed)]
        self.count = len(self.photos)
        self.nan = sum(not entry.lives for entry in listed or ())
        self.totals = {"inputs": self.inputs, "rows": self.count, "errors": len(self.failures)}
        self.attributes = attributes | {name: str(value) for name, value in self.totals.items()}
        if layers:
            self.layers = {name: (tuple(x), np.dtype(y)) for name, (x, y) in layers.items()}
        else:
            with self._part(self.parts[0][1]) as output:
                self.layers = output.layers

    def blocks(self, layers: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Rows of some layers, in order."""
        if self._listed is not None:
            yield from self._listed_blocks(layers)
            return
        for number, record in self.parts:
            entries = self._rows[number]
            wanted = None if len(entries) == record.rows else [entry.row for entry in entries]
            with self._part(record) as output:
                yield from output.blocks(layers, wanted)

    def _listed_blocks(self, layers: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Rows in the order of the list; they may be anywhere."""
        records = dict(self.parts)
        row_size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.layers.values())
        step = max(1, _LISTED_BYTES // row_size)
        with contextlib.ExitStack() as stack:
            part = functools.cache(lambda n: stack.enter_context(self._part(records[n])))
            for start in range(0, len(self._listed), step):
                some = self._listed[start : start + step]
                rows = {}
                for name in layers:
                    shape, dtype = self.layers[name]
                    rows[name] = np.full((len(some), *shape), np.nan, dtype)
                wanted: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
                for i, entry in enumerate(some):
                    if entry.lives:
                        wanted[entry.record][entry.row].append(i)
                for number, places in wanted.items():
                    order = iter(sorted(places))
                    for block in part(number).blocks(layers, sorted(places)):
                        for *values, row in zip(*block.values(), order, strict=False):
                            for name, value in zip(block, values, strict=True):
                                rows[name][places[row]] = value
                yield rows

    @contextlib.contextmanager
    def _part(self, record: Record) -> Iterator[Output]:
        with contextlib.ExitStack() as stack:
            if record.place == BASE:
                paths, place = self._base, str(self._base[0])
            else:
                paths = stack.enter_context(self._store.data.reading(record.data))
                place = f"{self._store.data}/{record.data}"
            output = stack.enter_context(_opened_data(place, paths))
            if output.count != record.rows:
                raise _damaged(place, f"{output.count} rows instead of {record.rows}")
            yield output


@contextlib.contextmanager
def _opened_data(place: str, paths: Sequence[Path]) -> Iterator[Output]:
    try:
        with reading_of(place), open_output(*paths) as output:
            yield output
    except _UNREADABLE as error:
        if isinstance(error, AlexNetError):
            raise
        raise _damaged(place, str(error) or type(error).__name__) from error


def _damaged(place: str, reason: str) -> OutputError:
    return OutputError(
        place,
        f"it is damaged ({reason})",
        "Delete this file and run the same command again: its photos are done again.",
    )


@contextlib.contextmanager
def _opened(target: Target, settings: Mapping[str, str], force: bool) -> Iterator[_Job]:
    """Hold an output for one run."""
    target.data.make()
    target.job.make()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(target.job, str(target)))
            job = _Job(target, settings, force, stack)
            try:
                yield job
            except BaseException:
                job.abandon()
                raise
    finally:
        target.job.remove_empty()
        target.data.remove_empty()


def refuse_foreign(target: Target, header: Mapping[str, Any] | None) -> None:
    """Refuse an output folder, or a folder of records, that an extraction did not make."""
    if header is not None:
        return
    found = [
        name
        for name in target.data.sizes()
        if not (name == ".job" if target.is_folder else is_ours(name))
    ]
    if found:
        older = {"manifest.json", "shards"} <= set(found)
        raise OutputError(
            str(target.data),
            "it was begun by an older version"
            if older
            else f"it holds files that are not of an extraction ({found[0]})",
            "Name another output, or move it away.",
        )


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
    """What photos look like in this run: a text that changes with them, and if it is believed."""

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
        # Of zip://photos/a.jpg::p.zip, the photos in the archive.
        link, *archive = url.split("::") if "://" in url.partition("::")[0] else [url]
        folder, slash, name = link.rpartition("/")
        folder = "::".join([folder + slash, *archive])
        if folder not in self._folders:
            self._folders[folder] = {}
            with contextlib.suppress(Exception):  # each service has its own; reading it will tell
                files, path = filesystem(folder)
                files.invalidate_cache(path)
                self._folders[folder] = {
                    entry["name"].rpartition("/")[2]: entry for entry in files.ls(path, detail=True)
                }
        entry = self._folders[folder].get(name)
        if entry is None:
            return None, False
        marks = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "updated", "created", "CRC")
        mark = next((str(entry[name]) for name in marks if entry.get(name)), None)
        return f"{entry.get('size')} {mark}", mark is not None


def _stat_of(
    path: str, read: str | None, looked: tuple[str | None, bool], digest: str | None = ""
) -> str | None:
    """The stat of a photo that was read; of a URL or an unopened file, what it looked like."""
    if read is None and looked[1] and (is_url(path) or digest is None):
        return looked[0]
    return read


class _Tell:
    """Counts photos as they are done: reports progress, and stops at too many errors."""

    def __init__(
        self,
        plan: _Plan,
        limit: int | None,
        progress: Callable[[int, int, int, int], None] | None,
    ):
        self._total, self._limit, self._progress = len(plan.todo), limit, progress
        self._done, self._errors, self._bytes = 0, plan.failed, 0
        self(0, [], 0)

    def __call__(self, done: int, failures: Sequence[Failure], size: int) -> None:
        self._done += done
        self._errors += len(failures)
        self._bytes += size
        if self._progress:
            self._progress(self._done, self._total, self._errors, self._bytes)
        if self._limit is not None and self._errors > self._limit:
            last = f"; the last: {failures[-1].path}: {failures[-1].detail}" if failures else ""
            raise ImageError(
                f"{self._errors} photos",
                f"they could not be read, and at most {self._limit} may fail{last}",
                "Check the files, or allow more; the same command again goes on from here.",
            )


def _counted(photos: int) -> str:
    return "1 photo is" if photos == 1 else f"{photos:,} photos are"


def fair_size(size: int, photos: int, places: int, batch_size: int) -> int:
    """Photos per shard where several run at a time: no more than `size`, and four per worker.

    Whole batches, so that photos keep the company that they have in shards of any other size.
    """
    if places == 1:
        return size
    share = -(-photos // (_ROUNDS * places))
    return min(size, max(1, -(-share // batch_size)) * batch_size)
