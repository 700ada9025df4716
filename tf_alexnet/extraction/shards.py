"""The state of a job: append-only records, and their fold.

A data file holds rows and never changes. Its rows count once a record is created, exclusively,
after it. Records are numbered in order; the newest row of a photo is the living one. So the records
are valid at any moment, even if a job is killed.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tf_alexnet.errors import OutputError
from tf_alexnet.extraction.decoder import Failure, Photo
from tf_alexnet.extraction.spec import digest_of_settings
from tf_alexnet.extraction.storage import Folder, OutputFile, token

HEADER = "job.json"
MANIFEST = "_manifest.json"
BASE = -1  # the place of a finished file that a job continues
LOST, LET_GO = "lost", "let go"  # codes of failures: rows whose data file is damaged
_ENDED = "ended.json"
_VERSION = 2
_ID = "[0-9a-f]{16}"
_RECORD = re.compile(rf"(\d{{6,}})-({_ID})\.json")
_DATA = re.compile(rf"\d{{6,}}-({_ID})-{_ID}\.(?:h5|parquet)")
_TEMPORARY = re.compile(rf"tmp-({_ID})-.+")
# Fields of a record
_PLAIN = ("number", "data", "size", "place", "replaces", "info")
_TABLES = {"photos": Photo, "failures": Failure, "seen": Photo}


@dataclass(frozen=True)
class Record:
    """One step of a job."""

    number: int  # in the order of steps
    data: str | None = None  # data file
    size: int | None = None  # its bytes
    place: int | None = None  # of the data file in the order of the output
    photos: Sequence[Photo] = ()  # one for each row of the data file
    failures: Sequence[Failure] = ()
    # Known photos with the same bytes, but another stat or place
    seen: Sequence[Photo] = ()
    replaces: tuple[int, ...] = ()  # records that no longer count, and all that they replaced
    info: Mapping[str, Any] = field(default_factory=dict)  # host, process and versions
    rows: int = 0  # of the data file, where `photos` are not kept

    def encoded(self, job: str, settings: str) -> bytes:
        """The record as JSON."""
        folders: dict[str, str] = {}
        content = {"id": job, "spec": settings, **{x: getattr(self, x) for x in _PLAIN}}
        content |= {x: _columns(getattr(self, x), folders) for x in _TABLES}
        return json.dumps({**content, "folders": folders}, separators=(",", ":")).encode()

    @classmethod
    def decoded(cls, data: bytes) -> Record:
        """Parse a record; ValueError, KeyError or TypeError if it is not one."""
        content = json.loads(data)
        known = {x: content[x] for x in _PLAIN}
        known |= {x: _rows(kind, content[x], content["folders"]) for x, kind in _TABLES.items()}
        return cls(**{**known, "replaces": tuple(known["replaces"])})


def _columns(rows: Iterable[Any], folders: dict[str, str]) -> dict[str, list]:
    """Columns of photos; a place that follows from the folder's real path is left out."""
    rows = list(rows)
    if not rows:
        return {}
    columns = dict(zip(rows[0]._fields, map(list, zip(*rows, strict=True)), strict=True))
    for i, (path, place) in enumerate(zip(columns["path"], columns["place"], strict=True)):
        folder, _, name = path.rpartition("/")
        real, _, real_name = place.rpartition("/")
        if real_name == name and folders.setdefault(folder, real) == real:
            columns["place"][i] = None
    return columns


def _rows(kind: type, columns: Mapping[str, list], folders: Mapping[str, str]) -> list:
    if not columns:
        return []
    paths = columns["path"]
    for i, place in enumerate(columns["place"]):
        if place is None:
            folder, _, name = paths[i].rpartition("/")
            columns["place"][i] = f"{folders[folder]}/{name}"
    return list(map(kind, *(columns[name] for name in kind._fields)))


@dataclass(slots=True, eq=False)
class Entry:
    """The state of one photo: a row, a failure, or a row overruled by a failure."""

    path: str
    place: str
    stat: str | None = None
    digest: str | None = None
    record: int | None = None  # where its row is
    row: int = 0
    failure: Failure | None = None
    failed_in: int | None = None

    @property
    def lives(self) -> bool:
        """Whether its row is part of the output."""
        return self.record is not None and self.failure is None

    @property
    def photo(self) -> Photo:
        """The photo as recorded; without a living row, only its path and place."""
        if not self.lives:
            return Photo(self.path, place=self.place)
        return Photo(self.path, self.stat, self.digest, self.place)


class Fold:
    """The state that records add up to: one entry per photo, found by path or place."""

    def __init__(self):
        self.by_path: dict[str, Entry] = {}
        self.by_place: dict[str, Entry] = {}
        self.records: dict[int, Record] = {}  # those that count

    def find(self, path: str, place: str) -> Entry | None:
        """The photo with this path, or else the one at this place."""
        return self.by_path.get(path) or self.by_place.get(place)

    def add(self, record: Record) -> None:
        """Apply the next record."""
        for number in record.replaces:
            self.records.pop(number, None)
        # The entries hold the photos: don't keep a million of them twice.
        count = len(record.photos)
        self.records[record.number] = replace(record, rows=count, photos=(), failures=(), seen=())
        failed = {failure.path for failure in record.failures}
        for row, photo in enumerate(record.photos):
            if photo.path in failed:  # a finished file may have rows of NaN
                continue
            entry = self._claim(photo.path, photo.place)
            if entry.record == record.number:  # or several rows for a repeated photo
                continue
            entry.stat, entry.digest, entry.failure = photo.stat, photo.digest, None
            entry.record, entry.row = record.number, row
        for failure in record.failures:
            self._fail(failure, record.number)
        for photo in record.seen:
            entry = self.find(photo.path, photo.place)
            if entry and entry.failure and entry.failure.digest == photo.digest:
                entry = self._claim(photo.path, photo.place)
                entry.failure = entry.failure._replace(stat=photo.stat, place=photo.place)
            elif entry and entry.record is not None and entry.digest == photo.digest:
                entry = self._claim(photo.path, photo.place)
                entry.stat, entry.failure = photo.stat, None

    def _claim(self, path: str, place: str) -> Entry:
        """The entry that now has this path and place, which no other entry keeps."""
        entry = self.find(path, place) or Entry(path, place)
        for old in (entry, self.by_place.get(place)):
            if old:
                self.by_path.pop(old.path, None)
                self.by_place.pop(old.place, None)
        entry.path, entry.place = path, place
        self.by_path[path] = self.by_place[place] = entry
        return entry

    def _fail(self, failure: Failure, number: int) -> None:
        """Apply a failure: a photo without a row, or one whose row is damaged or discarded."""
        entry = self.find(failure.path, failure.place)
        if failure.code == LET_GO:
            if entry:
                del self.by_path[entry.path], self.by_place[entry.place]
        # A photo that could not be opened keeps its row.
        elif failure.code == LOST or not (
            entry and entry.lives and failure.digest in (None, entry.digest)
        ):
            entry = self._claim(failure.path, failure.place)
            entry.failure, entry.failed_in = failure, number
            if failure.code == LOST:  # an older row must not take its place
                entry.record = None

    def drop(self, number: int, inputs: Container[str] | None = None) -> list[Failure]:
        """Drop a record whose data file is damaged; return the failures to record in its place.

        Photos that lose their row fail; with `inputs` (paths and places), those that are not among
        them are discarded instead.
        """
        data = self.records.pop(number).data
        failures = []
        for entry in list(self.by_path.values()):
            if entry.lives and entry.record == number:
                among = inputs is None or entry.path in inputs or entry.place in inputs
                detail = f"its row was in {data}, which is missing or damaged"
                code = LOST if among else LET_GO
                failures.append(Failure(entry.path, code, detail, place=entry.place))
                self._fail(failures[-1], number)
            elif entry.failure and entry.failed_in == number:
                failures.append(entry.failure)
            if entry.record == number:
                entry.record = None
        return failures

    def rows(self) -> dict[int, list[Entry]]:
        """Number of a record -> entries whose living rows it holds, in row order."""
        found: dict[int, list[Entry]] = defaultdict(list)
        for entry in self.by_path.values():
            if entry.lives:
                found[entry.record].append(entry)
        for entries in found.values():
            entries.sort(key=lambda entry: entry.row)
        return found

    def failures(self) -> list[Failure]:
        """Failures of photos without a row, in the order in which they occurred."""
        failed = [entry for entry in self.by_path.values() if entry.failure]
        failed.sort(key=lambda entry: entry.failed_in)
        return [entry.failure for entry in failed]


@dataclass(frozen=True)
class Store:
    """Where the files of a job go; can be pickled."""

    job: Folder  # records and temporary files
    data: Folder  # data files
    id: str  # of the job
    suffix: str  # of the data files: .h5 or .parquet

    def temporary(self) -> str:
        """A new name for a temporary file in `job`."""
        return f"tmp-{self.id}-{token()}"

    @contextmanager
    def writing(self, place: int) -> Iterator[tuple[str, OutputFile]]:
        """Open a new data file, durable when the block ends; yields its name and the file.

        On a disk it is a temporary file until it is published.
        """
        name = f"{place:06d}-{self.id}-{token()}{self.suffix}"
        folder = self.job if self.data.is_local else self.data
        with folder.writing(self._unpublished(name)) as file:
            yield name, file

    def publish(self, name: str) -> None:
        """Give a data file its final name."""
        if self.data.is_local:
            self.job.rename(self._unpublished(name), self.data, name, keep=False)

    def size(self, name: str) -> int | None:
        """Size in bytes of a data file not yet published; None if it does not exist."""
        if not self.data.is_local:
            return self.data.sizes().get(name)
        path = self.job.at(self._unpublished(name))
        return os.path.getsize(path) if os.path.exists(path) else None

    def _unpublished(self, name: str) -> str:
        return f"tmp-{self.id}-{name}" if self.data.is_local else name


class Records:
    """Reads and appends the records of a job; `fold` is the state they add up to.

    `header` is the content of ``job.json``, `base` the record of a finished file that the job
    continues; `missing` has the numbers of records that are gone.
    """

    def __init__(self, store: Store, header: Mapping[str, Any], base: Record | None = None):
        self.store, self.header = store, header
        self.fold = Fold()
        self.highest = -1 if base is None else base.number
        self._settings = digest_of_settings(header["settings"])
        found = self._read(self.highest)
        replaced = {number for record in found.values() for number in record.replaces}
        numbers = range(self.highest + 1, max([self.highest, self.published, *found]) + 1)
        self.missing = [n for n in numbers if n not in found and n not in replaced]
        self.highest = numbers.stop - 1
        if base:
            found[base.number] = base
        for number in sorted(found):
            record = found.pop(number)  # don't keep a million photos twice
            if number not in replaced:
                self.fold.add(record)

    @property
    def ids(self) -> set[str]:
        """Ids of the job, including former ones; only files with one of them may be deleted."""
        return {self.store.id, *self.header["former"]}

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of a folder of shards; empty if there is none."""
        found = read_json(self.store.data, MANIFEST) or {}
        return found if found.get("id") in self.ids else {}

    @property
    def published(self) -> int:
        """Number of the last record in the manifest; -1 if there is none."""
        manifest = self.manifest
        return manifest["record"] if manifest.get("id") == self.store.id else -1

    def _read(self, above: int) -> dict[int, Record]:
        found = {}
        for name in self.store.job.sizes():
            match = _RECORD.fullmatch(name)
            if not match or match[2] != self.store.id or int(match[1]) <= above:
                continue
            try:
                record = Record.decoded(self.store.job.read(name) or b"")
                if record.number != int(match[1]):
                    raise ValueError
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                raise OutputError(
                    f"{self.store.job}/{name}",
                    "this record of the job is damaged",
                    "Restore it, or delete it and pass --discard-damaged.",
                ) from None
            found[record.number] = record
        return found

    def check_header(self) -> None:
        """Raise OutputError if another job has finished meanwhile, or started over."""
        if read_json(self.store.job, HEADER) != self.header:
            raise overtaken(str(self.store.job))

    def check_last(self) -> None:
        """Raise OutputError if another job has written a newer record."""
        newer = [name for name in self.store.job.sizes() if self._number(name) > self.highest]
        if newer:
            raise self._other_job(min(newer))

    def commit(self, data: str | None = None, **content: Any) -> Record:
        """Publish and record a data file; or record a step without data.

        Raises OutputError if another job has written to the output meanwhile, or the disk is full.
        """
        store, number = self.store, self.highest + 1
        if data is not None:
            content["size"] = store.size(data)
            store.publish(data)
        info = {"host": socket.gethostname(), "pid": os.getpid(), **content.pop("info", {})}
        record = Record(number, data, info=info, **content)
        name = f"{number:06d}-{store.id}.json"
        try:
            store.job.create(name, record.encoded(store.id, self._settings), store.temporary())
        except FileExistsError:
            raise self._other_job(name) from None
        self.check_header()
        self.highest = number
        self.fold.add(record)
        return record

    def _other_job(self, record: str) -> OutputError:
        info = (read_json(self.store.job, record) or {}).get("info", {})
        return OutputError(
            str(self.store.job),
            f"another job is writing it (process {info.get('pid')} on {info.get('host')})",
            "Wait for it to end, then run the same command again.",
        )

    def damaged(self) -> list[int]:
        """Numbers of records whose data file is missing or has another size."""
        sizes = self.store.data.sizes()
        living = (self.fold.records[number] for number in sorted(self.fold.rows()))
        return [x.number for x in living if x.place != BASE and sizes.get(x.data) != x.size]

    def garbage(self, *, spare_readers: bool) -> list[tuple[Folder, str]]:
        """Files of this job that neither its records nor (`spare_readers`) its manifest need.

        Data comes before records.
        """
        store, records = self.store, self.fold.records
        needed = {record.data for record in records.values()}
        if spare_readers:
            needed |= {shard["name"] for shard in self.manifest.get("shards", ())}
        data = [
            (store.data, name)
            for name in store.data.sizes()
            if (x := _DATA.fullmatch(name)) and x[1] in self.ids and name not in needed
        ]
        rest = []
        # The last record first: the ones that an interruption leaves have no gaps.
        for name in sorted(store.job.sizes(), reverse=True):
            record, temporary = _RECORD.fullmatch(name), _TEMPORARY.fullmatch(name)
            job = record[2] if record else temporary and temporary[1]
            if job in self.ids and not (job == store.id and self._number(name) in records):
                rest.append((store.job, name))
        return data + rest

    def dissolve(self) -> None:
        """Delete all files of the job, unless another job has continued it.

        Other files stay. The header is renamed first, which works on a full disk, so that no job
        reuses the numbers of deleted records.
        """
        store = self.store
        self.fold.records.clear()
        garbage = self.garbage(spare_readers=True)
        if any(self._number(name) > self.highest for _, name in garbage):
            return
        ended = f"tmp-{store.id}-{_ENDED}"
        if store.job.exists(HEADER):
            store.job.rename(HEADER, store.job, ended)
        for folder, name in garbage:
            folder.remove(name)
        store.job.remove(ended)
        store.job.remove_empty()

    def _number(self, name: str) -> int:
        """The number of a record of this job; -1 for other files."""
        match = _RECORD.fullmatch(name)
        return int(match[1]) if match and match[2] == self.store.id else -1


def new_header(
    settings: Mapping[str, str], job: str, former: Iterable[str] = (), *, forced: bool = False
) -> dict[str, Any]:
    """Content of ``job.json``; `forced` is for a job that replaces an output."""
    return {
        "version": _VERSION,
        "id": job,
        "token": token(),  # a job that goes on from a finished file has its id
        "former": [x for x in former if x != job],
        "forced": forced,
        "settings": dict(settings),
    }


def overtaken(place: str) -> OutputError:
    """The error of a job that another one has overtaken."""
    found = "another job has finished meanwhile, or started over"
    return OutputError(place, found, "Run the same command again.")


def read_header(folder: Folder) -> dict[str, Any] | None:
    """Read ``job.json``; None if there is none, OutputError if it is not ours."""
    header = read_json(folder, HEADER)
    if header is None:
        return None
    kinds = {"id": str, "former": list, "forced": bool, "settings": dict}
    whole = all(isinstance(header.get(name), kind) for name, kind in kinds.items())
    if header.get("version") != _VERSION or not whole:
        found = "it was not written by an extraction of this version"
        raise OutputError(f"{folder}/{HEADER}", found, "Name another output.")
    return header


def ended_jobs(folder: Folder) -> list[str]:
    """Ids of ended jobs whose files were not all deleted."""
    names = [name for name in folder.sizes() if _TEMPORARY.fullmatch(name)]
    found = [read_json(folder, name) or {} for name in names if name.endswith(_ENDED)]
    return [x for header in found for x in (header.get("id"), *header.get("former", ())) if x]


def is_ours(name: str) -> bool:
    """Whether a file in a folder of records has a name that jobs use."""
    given = any(pattern.fullmatch(name) for pattern in (_RECORD, _DATA, _TEMPORARY))
    return given or name in (HEADER, ".lock", ".holder")


def read_json(folder: Folder, name: str) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file, empty if it holds anything else."""
    data = folder.read(name)
    if data is None:
        return None
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
