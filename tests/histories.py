"""Random histories of one output, with a dictionary for the truth.

Photos, their stats and the clock are inventions; the job, its records, its files and its formats
are the real thing. Every step that changes storage may be the last one of its process, fail, or
find that another job has written in between.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tf_alexnet.errors import AlexNetError, ImageError, OutputError, UsageError
from tf_alexnet.extraction import job as jobs
from tf_alexnet.extraction.decoder import Failure, Photo, digest_of
from tf_alexnet.extraction.formats import data_writer, open_output
from tf_alexnet.extraction.storage import Folder, Target
from tf_alexnet.extraction.worker import Finished

NAMES = [f"p/{letter}.jpg" for letter in "abcdefgh"]
ERROR = b"error"
KINDS = ("f/", "f.h5", "f.parquet/", "f.parquet", "f/", "f.npz", "f.npy", "f.mat")


NAME = st.sampled_from(NAMES)
CHANGES = st.tuples(
    st.sampled_from(["write", "write", "touch", "delete", "swap", "wait", "wait", "unmount"]),
    *(NAME, NAME),
    st.sampled_from([b"abc", b"abd", b"abe", b"xxx"]),
    st.integers(1, 3),
)
STEP = st.integers(1, 25)
SOME = st.sets(NAME, min_size=1)


def empty_memory():
    """The file system ``memory://``, without files."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    return files


class Killed(BaseException):
    """The process is no more."""


class World:
    """Photos and a clock. Contents are three bytes long, so that sizes tell nothing."""

    def __init__(self):
        self.now = 1000
        self.files: dict[str, tuple[bytes, int, int]] = {}
        self.mounted = True
        self.links: dict[str, str] = {}

    def place(self, path):
        folder, _, name = path.rpartition("/")
        return f"/{self.links.get(folder, folder)}/{name}"

    def put(self, path, content, mtime=None):
        self.files[self.place(path)] = (content, mtime or self.now, self.now)

    def look(self, path):
        found = self.files.get(self.place(path))
        if found is None or not self.mounted:
            return None, False
        content, mtime, ctime = found
        return f"{len(content)} {mtime} {ctime}", max(mtime, ctime) <= self.now - 2

    def read(self, path):
        """(stat, digest, content), or None."""
        found = self.files.get(self.place(path))
        if found is None or not self.mounted:
            return None
        stat, believed = self.look(path)
        return (stat if believed else None), digest_of(found[0]), found[0]

    def truth(self, path):
        """What a fresh run makes of a photo: its row as bytes, or `ERROR`."""
        found = self.read(path)
        return ERROR if found is None or found[2].startswith(b"x") else row_of(found[2]).tobytes()


def row_of(content):
    """Four numbers that no other content has."""
    return np.frombuffer(hashlib.sha256(content).digest()[:4], np.uint8).astype(np.float32)


class Crew:
    """A `Worker` without a network."""

    worker_count, batch_size = 1, 2
    attributes = {"tf_alexnet_version": "test"}  # noqa: RUF012

    def __init__(self, world, setting="a"):
        self._world = world
        self.settings = {"weights_digest": "sha256:0", "layers": "fc7", "dtype": setting}
        self.settings |= {"architecture": "bvlc_alexnet", "pool": "none"}

    def run(self, shards, store, tell):
        for shard in shards:
            yield shard, self._shard(shard, store, tell)

    def _shard(self, shard, store, tell):
        good, rows, failures = [], [], []
        for path in shard.paths:
            found = self._world.read(path)
            if found is None:
                failures.append(Failure(path, "missing", "there is no such file"))
            elif found[2].startswith(b"x"):
                failures.append(Failure(path, "damaged", "it is damaged", *found[:2]))
            else:
                good.append(Photo(path, *found[:2]))
                rows.append(row_of(found[2]))
        tell(len(shard.paths), failures, 0)
        if not good:
            return Finished(None, [], failures, 0)
        with store.writing(shard.place) as (name, file), data_writer(store.suffix)(file) as writer:
            writer.add([photo.path for photo in good], {"fc7": np.array(rows)})
            writer.finish(self.settings)
        return Finished(name, good, failures, 0)


class Steps:
    """Every change of storage, counted; what is to happen at one of them."""

    def __init__(self):
        self.reset()
        self.watch = lambda: None

    def reset(self, at=None, what=None, inner_at=None):
        self.count, self.at, self.what, self.dead, self.busy = 0, at, what, False, False
        self.inner_count, self.inner_at = 0, inner_at

    def before(self, name):
        if self.busy:  # the steps of the other job
            self.inner_count += 1
            if self.inner_at and self.inner_count >= self.inner_at:
                raise Killed
            return
        if self.dead:
            raise Killed
        self.count += 1
        if self.count == self.at:
            self.happen(name)

    def happen(self, name):
        if self.what == "kill":
            self.dead = True
            raise Killed
        if self.what == "full" and name != "remove":
            raise OutputError(name, f"it can't be written ({os.strerror(errno.ENOSPC)})", "Check.")
        if self.what == "stuck" and name == "remove":
            raise OutputError(name, "it can't be deleted", "Check.")
        if callable(self.what):
            self.busy = True
            try:
                self.what()
            finally:
                self.busy = False

    def after(self):
        if not self.busy and not self.dead:
            self.watch()


@contextlib.contextmanager
def invented(world, steps):
    """Let the job see the world's photos, and the steps its changes."""
    original = {name: getattr(Folder, name) for name in ("rename", "create", "remove", "make")}
    writing = Folder.writing

    def wrapped(name):
        def method(self, *args, **kwargs):
            steps.before(name)
            found = original[name](self, *args, **kwargs)
            steps.after()
            return found

        return method

    @contextlib.contextmanager
    def wrapped_writing(self, name, **kwargs):
        steps.before("writing")
        try:
            with writing(self, name, **kwargs) as file:
                yield file
                steps.before("writing")
        except Killed:
            if self.is_local:  # a process that is killed leaves its temporary files
                Path(self.at(name)).write_bytes(b"half")
            raise
        steps.after()

    @contextlib.contextmanager
    def unlocked(*_):
        yield

    def read_state(path):
        found = world.read(path)
        return found and found[:2]

    patches = [
        (jobs, "locked", unlocked),
        (jobs, "read_state", read_state),
        (jobs._Looker, "place", lambda _, path: world.place(path)),
        (jobs._Looker, "__call__", lambda _, path: world.look(path)),
        (Folder, "writing", wrapped_writing),
        (os, "fsync", lambda _: None),
        *((Folder, name, wrapped(name)) for name in original),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def contents(output):
    """Path -> row as bytes or `ERROR`; as any reader finds it, not by the job's records."""
    target = Target(output)
    if not target.is_folder:
        with target.parent.reading(*target.names) as paths, open_output(*paths) as file:
            return _rows(file) | _errors(x.path for x in file.failures), len(file.failures)
    manifest = json.loads(target.data.read("_manifest.json"))
    found = {}
    for shard in manifest["shards"]:
        with target.data.reading(shard["name"]) as paths, open_output(*paths) as file:
            assert file.count == shard["rows"]
            some = _rows(file)
            assert not found.keys() & some.keys(), "a photo is there twice"
            found |= some
    table = csv.DictReader(io.StringIO(target.data.read("_errors.csv").decode()))
    failed = _errors(row["path"] for row in table)
    assert manifest["rows"] == len(found)
    return found | failed, manifest["errors"]


def _rows(file):
    blocks = list(file.blocks(["fc7"]))
    rows = np.concatenate([block["fc7"] for block in blocks]) if blocks else []
    assert len(set(file.paths)) == len(file.paths) == len(rows), "a photo is there twice"
    return {path: row.tobytes() for path, row in zip(file.paths, rows, strict=True)}


def _errors(paths):
    return dict.fromkeys(paths, ERROR)


class Histories(RuleBasedStateMachine):
    """Everything that can happen to an output."""

    def __init__(self):
        super().__init__()
        self.world, self.steps = World(), Steps()
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(invented(self.world, self.steps))
        self.possible: dict[str, set] = {}  # photo -> what the output may hold of it; None: nothing
        self.ever: dict[str, set] = {}  # the same for all of its past
        self.sure: set[str] = set()  # photos of runs that ended well
        self.doubt = False  # whether something was damaged, so that a refusal is right
        self.limbo = False  # whether a forced run may or may not have begun
        self.must_refuse = False  # a record in the middle is gone
        self.apart = False  # whether that was the case in the last run
        self.beside = False  # whether two jobs have written it at the same time
        self.foreign: dict[str, bytes] = {}
        self.steps.watch = self.watch

    @initialize(kind=st.sampled_from(KINDS), where=st.sampled_from(["disk", "memory"]))
    def begin(self, kind, where):
        self.kind = kind
        for number, name in enumerate(NAMES[:6]):
            self.world.put(name, b"ab%d" % number)
        self.world.now += 5
        if where == "disk":
            self.root = tempfile.mkdtemp(prefix="histories-")
        else:
            self.root = "memory://histories"
            empty_memory().makedirs("/histories")
        self.output = f"{self.root}/{kind}"
        self.can_grow = kind not in ("f.npz", "f.npy", "f.mat")

    def teardown(self):
        self.stack.close()
        if not self.root.startswith("memory"):
            shutil.rmtree(self.root)

    def target(self):
        return Target(self.output)

    # The world

    @rule(changes=st.lists(CHANGES, min_size=1, max_size=5))
    def change_the_world(self, changes):
        files, place = self.world.files, self.world.place
        for what, one, other, content, seconds in changes:
            if what == "write":
                self.world.put(one, content)
            elif what == "touch" and place(one) in files:
                self.world.put(one, files[place(one)][0])
            elif what == "delete":
                files.pop(place(one), None)
            elif what == "swap" and place(one) in files and place(other) in files:
                a, b = files[place(one)], files[place(other)]  # a rename changes the ctime only
                files[place(one)], files[place(other)] = (
                    (*b[:2], self.world.now),
                    (*a[:2], self.world.now),
                )
            elif what == "unmount":
                self.world.mounted = not self.world.mounted
            elif what == "wait":
                self.world.now += seconds

    # Damage

    def data_files(self):
        found = self.target().data.sizes()
        return sorted(x for x in found if fnmatch.fnmatch(x, "??????-*-*.*"))

    @rule(which=st.integers(0, 20), how=st.sampled_from(["truncate", "delete", "lose a record"]))
    def damage(self, which, how):
        target = self.target()
        folder, pattern = target.data, "??????-*-*.*"
        if how == "lose a record":
            folder, pattern = target.job, "??????-*.json"
        names = sorted(x for x in folder.sizes() if fnmatch.fnmatch(x, pattern))
        if not names:
            return
        path = folder.at(names[which % len(names)])
        data = folder._fs.cat_file(path)
        folder._fs.rm_file(path)
        self.doubt = True
        self.sure.clear()
        if how == "truncate":
            folder._fs.pipe_file(path, data[:-7])
        elif how == "lose a record":
            self.must_refuse |= self.is_needed(json.loads(data), folder)
            for name, past in self.ever.items():
                self.possible[name] = past | {None}

    def is_needed(self, record, folder):
        """Whether other records tell that this one of a folder of shards is gone."""
        others = [
            json.loads(folder.read(x))
            for x in folder.sizes()
            if re.fullmatch(r"\d{6}-\w+\.json", x)
        ]
        others = [x for x in others if x["id"] == record["id"]]
        replaced = any(record["number"] in x["replaces"] for x in others)
        later = any(x["number"] > record["number"] for x in others)
        header = jobs.read_header(folder) or {}
        is_now = header.get("id") == record["id"] and self.kind.endswith("/")
        return is_now and later and not replaced

    @rule(where=st.sampled_from(["data", "job", "parent"]), name=st.sampled_from(["n.txt", "a.h5"]))
    def add_stranger(self, where, name):
        folder = getattr(self.target(), where)
        if "job.json" in self.target().job.sizes() and not self.kind.endswith(name):
            folder._fs.pipe_file(folder.at(name), b"mine")
            self.foreign[folder.at(name)] = b"mine"

    @rule()
    def write_late(self):
        """A worker that was given up finishes its shard."""
        header = jobs.read_header(self.target().job)
        if header:
            store = jobs.Store(self.target().job, self.target().data, header["id"], ".h5")
            with store.writing(3) as (_, file):
                file.write(b"late")

    # Runs

    @rule(names=SOME, size=st.integers(1, 3), retry=st.booleans())
    def run(self, names, size, retry):
        self.attempt(sorted(names), size, retry=retry)

    @rule(size=st.integers(1, 3), at=STEP, what=st.sampled_from(["kill", "full", "stuck"]))
    def run_all_and_fail(self, size, at, what):
        self.attempt(NAMES, size, at=at, what=what)

    @rule(names=SOME, size=st.integers(1, 3), at=STEP, what=st.sampled_from(["kill", "full"]))
    def run_and_fail(self, names, size, at, what):
        self.attempt(sorted(names), size, at=at, what=what)

    @rule(names=SOME, others=SOME, size=st.integers(1, 3), at=STEP, inner_at=st.none() | STEP)
    def run_beside_another(self, names, others, size, at, inner_at):
        def another():
            self.attempt(sorted(others), size)

        self.attempt(sorted(names), size, at=at, what=another, inner_at=inner_at)

    @rule(names=SOME, at=STEP, name=NAME)
    def run_while_a_photo_changes(self, names, at, name):
        self.attempt(sorted(names), 2, at=at, what=lambda: self.world.put(name, b"new"))

    @rule(names=SOME, at=st.none() | STEP)
    def force(self, names, at):
        self.attempt(sorted(names), 2, force=True, at=at, what="kill")

    @rule(names=SOME)
    def discard(self, names):
        self.attempt(sorted(names), 3, discard=True)

    @precondition(lambda self: not (self.doubt or self.limbo or self.foreign))
    @rule(names=SOME)
    def change_a_setting(self, names):
        sure = all(None not in values for values in self.possible.values())
        if sure and self.has_row():
            with pytest.raises(UsageError, match="other settings"):
                jobs.run_job(self.target(), sorted(names), Crew(self.world, "b"), add=True)

    def attempt(self, names, size, *, retry=False, force=False, discard=False, **happening):
        if force or discard:  # these may let go what is lost
            self.must_refuse = False
            self.sure.clear()
        nested = self.steps.busy
        self.beside |= nested
        self.apart |= nested
        truths = {name: {self.world.truth(name)} for name in names}
        before = {name: set(values) for name, values in self.possible.items()}
        for name in names:
            self.possible.setdefault(name, {None}).update(truths[name])
        if not nested:
            self.steps.reset(**happening)
        try:
            jobs.run_job(
                self.target(),
                names,
                Crew(self.world),
                shard_size=size,
                retry_errors=retry,
                force=force,
                add=True,
                discard_damaged=discard,
            )
        except (Killed, AlexNetError) as error:
            self.failed(names, truths, error, force, discard, nested)
        else:
            for name in names:
                truths[name].add(self.world.truth(name))
            if callable(self.steps.what):
                self.failed(names, truths, None, force, discard, nested)
            self.succeeded(names, truths, before, force, discard)
        if not nested:
            self.steps.reset()
        self.check_foreign()

    def failed(self, names, truths, error, force, discard, nested):
        """What may be there after a run that did not end well."""
        disturbed = nested or self.steps.count >= (self.steps.at or 1e9)
        if isinstance(error, ImageError):
            assert force or not self.has_row() or disturbed or self.doubt or self.limbo, error
        elif isinstance(error, UsageError):
            assert not self.can_grow, error
        elif error is not None and not isinstance(error, Killed):
            stranger = self.foreign and "no extraction wrote" in str(error)
            # Two jobs that began at the same time, as machines without a common lock may.
            apart = self.beside and "does not belong to the unfinished job" in str(error)
            assert disturbed or self.doubt or stranger or apart, error
            if apart:  # the user moves the job away
                self.sure.clear()
                job = self.target().job
                for name in job.sizes():
                    job._fs.rm_file(job.at(name))
                for values in self.possible.values():
                    values.add(None)
            if stranger:  # the user moves it away
                for path in list(self.foreign):
                    self.target().data._fs.rm_file(path)
                    del self.foreign[path]
        if force:
            self.limbo = True
        for name in names:
            self.possible.setdefault(name, {None}).update(truths[name])
            self.ever.setdefault(name, set()).update(truths[name])
        if self.doubt:  # a lost row is an error until the photo is done again
            for values in self.possible.values():
                values.add(ERROR)
        if force or self.limbo or discard:
            for values in self.possible.values():
                values.add(None)

    def has_row(self):
        return any(
            values - {ERROR, None} and None not in values for values in self.possible.values()
        )

    def succeeded(self, names, truths, before, force, discard):
        assert not self.must_refuse, "a lost record was not noticed"
        found, errors = contents(self.output)
        if not (discard or self.limbo):
            self.sure.update(names)
        if not callable(self.steps.what):
            assert self.sure <= found.keys(), "rows of a run that ended well are gone"
            # The table and the snapshot are two files.
            assert errors == sum(value == ERROR for value in found.values())
        if force:
            self.possible, self.ever, self.limbo = {}, {}, False
        for name in names:
            old = before.get(name, set()) if not force else set()
            allowed = set(truths[name])
            if ERROR in truths[name] and self.world.read(name) is None:
                allowed |= old - {None}
            if callable(self.steps.what):
                allowed |= self.possible.get(name, set()) - {None}
            assert name in found, f"{name} is not there"
            assert found[name] in allowed, f"{name} has the wrong row"
        for name, values in self.possible.items():
            if name not in names and not discard:
                assert found.get(name) in values, f"{name}: {found.get(name)} of {values}"
        assert found.keys() <= self.possible.keys() | set(names)
        # A job beside this one may have recorded more since, even if it was killed.
        since = self.possible if callable(self.steps.what) else {}
        self.possible = {name: {value} | since.get(name, set()) for name, value in found.items()}
        for name in since.keys() - found.keys():
            self.possible[name] = since[name] | {None}
        for name, value in found.items():
            self.ever.setdefault(name, set()).add(value)
        if discard:
            self.doubt = False
        if not callable(self.steps.what):
            self.apart = False
        if self.kind.endswith("/"):
            self.glob(found)
        else:
            self.doubt, self.limbo = False, False

    def glob(self, found):
        """Readers that know nothing of the job find the same rows."""
        folder, paths = self.target().data, []
        for name in folder.sizes():
            ours = name.endswith((".h5", ".parquet")) and folder.at(name) not in self.foreign
            if ours:
                with folder.reading(name) as local, open_output(*local) as file:
                    paths += file.paths
        if not callable(self.steps.what):
            assert sorted(paths) == sorted(x for x, value in found.items() if value != ERROR)

    def watch(self):
        """The snapshot for readers is whole at every step.

        Unless a job that has no lock in common with this one writes an older one over a newer one:
        no file system has a step that could exclude that.
        """
        is_folder = self.kind.endswith("/") and not (self.doubt or self.apart)
        if is_folder and self.target().data.exists("_manifest.json"):
            contents(self.output)

    def check_foreign(self):
        for path, data in self.foreign.items():
            assert self.target().data._fs.cat_file(path) == data, f"{path} was changed"
