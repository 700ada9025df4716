"""What a job has done: append-only records, and what they amount to.

A data file holds rows and is never changed. A record, created exclusively after its data, makes
the rows count; numbers give the order. The newest row of a photo is the one that lives. So
the records are true at any moment, however a job ends.
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
BASE = -1  # the place of a finished file that a job goes on from
LOST, LET_GO = "lost", "let go"  # codes of failures: a row whose data file is damaged
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
    # Known photos found with another stat, or at another place, and the same bytes
    seen: Sequence[Photo] = ()
    replaces: tuple[int, ...] = ()  # records that no longer count, and all that they replaced
    info: Mapping[str, Any] = field(default_factory=dict)  # who wrote it, with which versions
    rows: int = 0  # of the data file, where `photos` are not kept

    def encoded(self, job: str, settings: str) -> bytes:
        """The record as JSON."""
        folders: dict[str, str] = {}
        content = {"id": job, "spec": settings, **{x: getattr(self, x) for x in _PLAIN}}
        content |= {x: _columns(getattr(self, x), folders) for x in _TABLES}
        return json.dumps({**content, "folders": folders}, separators=(",", ":")).encode()

    @classmethod
    def decoded(cls, data: bytes) -> Record:
        """The record that some JSON holds; ValueError, KeyError or TypeError if none."""
        content = json.loads(data)
        known = {x: content[x] for x in _PLAIN}
        known |= {x: _rows(kind, content[x], content["folders"]) for x, kind in _TABLES.items()}
        return cls(**{**known, "replaces": tuple(known["replaces"])})


def _columns(rows: Iterable[Any], folders: dict[str, str]) -> dict[str, list]:
    """Columns of photos; a place is left out where the folder's real path tells it."""
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
    """What is known of one photo: a row, or a failure, or a row that a failure overrules."""

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
        """The photo as it is known now; without a row, its name and place only."""
        if not self.lives:
            return Photo(self.path, place=self.place)
        return Photo(self.path, self.stat, self.digest, self.place)


class Fold:
    """What records amount to: one entry per photo, told by its written name and its place."""

    def __init__(self):
        self.by_path: dict[str, Entry] = {}
        self.by_place: dict[str, Entry] = {}
        self.records: dict[int, Record] = {}  # those that count

    def find(self, path: str, place: str) -> Entry | None:
        """The photo with this name, or else the one at this place."""
        return self.by_path.get(path) or self.by_place.get(place)

    def add(self, record: Record) -> None:
        """Take in the next record."""
        for number in record.replaces:
            self.records.pop(number, None)
        # The entries know the photos: a million of them need not be in memory twice.
        count = len(record.photos)
        self.records[record.number] = replace(record, rows=count, photos=(), failures=(), seen=())
        failed = {failure.path for failure in record.failures}
        for row, photo in enumerate(record.photos):
            if photo.path in failed:  # a finished file may have rows of NaN
                continue
            entry = self._claim(photo.path, photo.place)
            if entry.record == record.number:  # or a row for each line of a list
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
        """The entry that has this name and place from now on; no other one has either."""
        entry = self.find(path, place) or Entry(path, place)
        for old in (entry, self.by_place.get(place)):
            if old:
                self.by_path.pop(old.path, None)
                self.by_place.pop(old.place, None)
        entry.path, entry.place = path, place
        self.by_path[path] = self.by_place[place] = entry
        return entry

    def _fail(self, failure: Failure, number: int) -> None:
        """Take in a failure: a photo without a row, or one whose row is damaged or let go."""
        entry = self.find(failure.path, failure.place)
        if failure.code == LET_GO:
            if entry:
                del self.by_path[entry.path], self.by_place[entry.place]
        # A photo that could not be opened says nothing against the row that there is.
        elif failure.code == LOST or not (
            entry and entry.lives and failure.digest in (None, entry.digest)
        ):
            entry = self._claim(failure.path, failure.place)
            entry.failure, entry.failed_in = failure, number
            if failure.code == LOST:  # an older row must not take its place
                entry.record = None

    def drop(self, number: int, inputs: Container[str] | None = None) -> list[Failure]:
        """Forget a record whose data file is damaged; the failures to record in its place.

        Photos whose rows are lost fail; with `inputs` (names and places) only those among them,
        and the others are let go.
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
        """Number of a record -> entries whose living rows it has, in the order of its rows."""
        found: dict[int, list[Entry]] = defaultdict(list)
        for entry in self.by_path.values():
            if entry.lives:
                found[entry.record].append(entry)
        for entries in found.values():
            entries.sort(key=lambda entry: entry.row)
        return found

    def failures(self) -> list[Failure]:
        """Photos without a row, and why, in the order in which they failed."""
        failed = [entry for entry in self.by_path.values() if entry.failure]
        failed.sort(key=lambda entry: entry.failed_in)
        return [entry.failure for entry in failed]


@dataclass(frozen=True)
class Store:
    """Where a job's files go; can be pickled."""

    job: Folder  # records and temporary files
    data: Folder  # data files
    id: str  # of the job
    suffix: str  # of the data files: .h5 or .parquet

    def temporary(self) -> str:
        """A new name for a temporary file in `job`."""
        return f"tmp-{self.id}-{token()}"

    @contextmanager
    def writing(self, place: int) -> Iterator[tuple[str, OutputFile]]:
        """A new data file and its name; durable when the block ends, part of the output never.

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
        """Bytes of a data file that was written and is not yet published; None if there is none."""
        if not self.data.is_local:
            return self.data.sizes().get(name)
        path = self.job.at(self._unpublished(name))
        return os.path.getsize(path) if os.path.exists(path) else None

    def _unpublished(self, name: str) -> str:
        return f"tmp-{self.id}-{name}" if self.data.is_local else name


class Records:
    """The records of a job, read and appended to; `fold` is what they amount to.

    `header` is what its ``job.json`` holds, `base` a finished file that the job goes on from, and
    `missing` has the numbers of records that are gone.
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
            record = found.pop(number)  # a million photos are in memory once
            if number not in replaced:
                self.fold.add(record)

    @property
    def ids(self) -> set[str]:
        """Ids of the job, former ones included: the files that may be deleted bear one of them."""
        return {self.store.id, *self.header["former"]}

    @property
    def manifest(self) -> dict[str, Any]:
        """The snapshot that a folder of shards has for its readers; empty if there is none."""
        found = read_json(self.store.data, MANIFEST) or {}
        return found if found.get("id") in self.ids else {}

    @property
    def published(self) -> int:
        """The last record that the snapshot knows."""
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
                    "Restore it, or pass --discard-damaged after deleting it.",
                ) from None
            found[record.number] = record
        return found

    def check_header(self) -> None:
        """Refuse to go on (OutputError) where another job has finished meanwhile, or begun anew."""
        header = read_json(self.store.job, HEADER) or {}
        if header.get("id") != self.store.id:
            raise OutputError(
                str(self.store.job),
                "another job has finished meanwhile, or begun anew",
                "Run the same command again.",
            )

    def newer(self) -> bool:
        """Whether another job wrote a record after the last one that is known here."""
        return any(self._number(name) > self.highest for name in self.store.job.sizes())

    def commit(self, data: str | None = None, **content: Any) -> Record:
        """Publish a data file and make it count; or note a step without data.

        An OutputError, if another job has written to the output meanwhile, or the disk is full.
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
        """Files of this job that its records don't need; nor its snapshot for readers, if asked.

        Data before records, so that no record ever names data that is gone.
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
        # The last record first: whenever this ends, those that are left have no gaps.
        for name in sorted(store.job.sizes(), reverse=True):
            record, temporary = _RECORD.fullmatch(name), _TEMPORARY.fullmatch(name)
            job = record[2] if record else temporary and temporary[1]
            if job in self.ids and not (job == store.id and self._number(name) in records):
                rest.append((store.job, name))
        return data + rest

    def dissolve(self) -> None:
        """Delete all files of the job, unless another one has gone on from it.

        What is not its own stays. First the header gets another name, so that nobody takes numbers
        of deleted records; that needs no room on a full disk.
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
    """What ``job.json`` holds; `forced` for a job that replaces what is there."""
    return {
        "version": _VERSION,
        "id": job,
        "former": [x for x in former if x != job],
        "forced": forced,
        "settings": dict(settings),
    }


def read_header(folder: Folder) -> dict[str, Any] | None:
    """The ``job.json`` of a job, None if there is none; an OutputError if it is not ours."""
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
    """Ids of jobs that have ended, and whose files were not all deleted."""
    names = [name for name in folder.sizes() if _TEMPORARY.fullmatch(name)]
    found = [read_json(folder, name) or {} for name in names if name.endswith(_ENDED)]
    return [x for header in found for x in (header.get("id"), *header.get("former", ())) if x]


def is_ours(name: str) -> bool:
    """Whether a file in a folder of records has a name that jobs give."""
    given = any(pattern.fullmatch(name) for pattern in (_RECORD, _DATA, _TEMPORARY))
    return given or name in (HEADER, ".lock", ".holder")


def read_json(folder: Folder, name: str) -> dict[str, Any] | None:
    """A JSON object in a folder; None if there is no such file, empty if it is something else."""
    data = folder.read(name)
    if data is None:
        return None
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
