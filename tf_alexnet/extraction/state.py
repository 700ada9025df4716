"""`JobState`: what a job finds done when it starts, and what it leaves behind."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence

from tf_alexnet.errors import ImageError, OutputError, UsageError
from tf_alexnet.extraction.lock import LOCK, locked
from tf_alexnet.extraction.manifest import NAME, Manifest, ShardRecord
from tf_alexnet.extraction.outputs import Joined, Output, open_output
from tf_alexnet.extraction.plan import Shard, changes
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.extraction.sinks import write_names, write_output
from tf_alexnet.extraction.storage import Folder, reading_of
from tf_alexnet.extraction.target import Target

ERRORS = "errors.csv"
# What opening a file that is none of ours may end in.
_UNREADABLE = (
    *(OSError, LookupError, ValueError, TypeError, AttributeError, EOFError, RuntimeError),
    zipfile.BadZipFile,
)

Part = Callable[[], contextlib.AbstractContextManager[Output]]


@contextlib.contextmanager
def working_on(
    target: Target, job: Mapping[str, str], paths: Sequence[str], force: bool
) -> Iterator[JobState]:
    """Hold an output, and find out what is done of it.

    What is half written when the block fails goes; finished shards stay. Nothing stays of a job
    that finished none.

    Raises
    ------
    UsageError
        If what is there was begun with other settings.
    OutputError
        If another job holds the output, or what is there is none of ours.
    """
    target.work.make()
    try:
        with locked(target):
            target.work.clear_parts()
            target.shards.clear_parts()
            state = JobState(target, dict(job), paths, force)
            try:
                yield state
            except BaseException:
                if not state.manifest.shards:
                    state.discard()
                raise
    finally:
        target.work.remove_empty()


class JobState:
    """What is done of a job.

    Parameters
    ----------
    target : Target
        The output, locked.
    job : dict of str to str
        The fingerprint of this run.
    paths : sequence of str
        The inputs of this run.
    force : bool
        Whether to forget what is there.

    Attributes
    ----------
    manifest : Manifest
        Finished shards.
    failed : dict of str to Failure
        Photos that could not be read in earlier runs.
    kept, absent : int
        Photos that earlier runs did, and those of them that are not in `paths`.
    """

    def __init__(self, target: Target, job: dict[str, str], paths: Sequence[str], force: bool):
        self._target = target
        if force:
            self.discard()
        manifest = None if force else Manifest.read(target.work)
        if manifest is None:
            self._refuse_foreign_folder()
            manifest = Manifest(job, extends=target.exists() and not force)
        self._refuse_changes(manifest.job, job)
        self.manifest = manifest
        self._base = self._find_base(job) if manifest.extends else None
        self._drop_unusable()
        self._todo = dict.fromkeys(paths)  # the same strings: a million of them weigh 100 MB
        known = Joined(self._parts(), {})
        self.failed = {failure.path: failure for failure in known.failures}
        self.kept, self.absent = known.count + len(self.failed), 0
        for some, _ in known.blocks([]):
            for path in some:
                self.absent += self._todo.pop(path, 0) is not None
        self.absent += sum(path not in self._todo for path in self.failed)

    def remaining(self, retry_errors: bool) -> list[str]:
        """The inputs that are still to be done, in their order."""
        todo = [path for path in self._todo if retry_errors or path not in self.failed]
        self._todo = {}
        if todo:
            self.manifest.totals = {}
            self.manifest.save(self._target.work)
            self._target.shards.make()
        return todo

    def record(self, shard: Shard, record: ShardRecord) -> None:
        """A shard is finished: its file is there, now it counts."""
        self.manifest.shards[shard.name] = record
        self.manifest.save(self._target.work)

    def finish(self, attributes: Mapping[str, str]) -> Joined:
        """Complete the output; what it holds.

        Raises
        ------
        ImageError
            If there is not a single row.
        OutputError
            If it can't be written.
        """
        rows = Joined(self._parts(), dict(attributes))
        if not rows.count:
            first = rows.failures[0]
            self.discard()
            raise ImageError(
                f"{len(rows.failures)} photo{'s' * (len(rows.failures) > 1)}",
                f"none could be read; the first: {first.path}: {first.detail}",
                "Check the files.",
            )
        totals = {"rows": rows.count, "errors": len(rows.failures)}
        totals = {"inputs": sum(totals.values()), **totals}
        rows.attributes.update({name: str(value) for name, value in totals.items()})
        if self._target.is_folder:
            self._finish_folder(rows, totals)
        else:
            self._finish_file(rows)
        return rows

    def discard(self) -> None:
        """Remove what belongs to the job; a finished file stays."""
        for name in ("shards", ERRORS, NAME):  # what is there without a manifest is none of ours
            self._target.work.remove(name)

    def _finish_file(self, rows: Joined) -> None:
        target = self._target
        if not (self._base and not self.manifest.shards):
            with target.work.writing_beside(target.location) as file:
                write_output(target.suffix, file, rows)
            if target.names:
                with target.work.writing_beside(target.names) as file:
                    write_names(file, rows)
            self._retire()
        self.discard()

    def _retire(self) -> None:
        """From now on the file is what there is, however much of the shards is removed."""
        self.manifest = Manifest(self.manifest.job, extends=True)
        self.manifest.save(self._target.work)

    def _finish_folder(self, rows: Joined, totals: dict[str, int]) -> None:
        work = self._target.work
        if totals == self.manifest.totals:
            return
        self._drop_superseded(rows.failures)
        with work.writing(ERRORS) as file:
            file.write(_table([Failure._fields[:3]]))
            for start in range(0, len(rows.failures), 1000):
                file.write(_table([x[:3] for x in rows.failures[start : start + 1000]]))
        self.manifest.totals = totals
        self.manifest.save(work)

    def _drop_superseded(self, failures: Sequence[Failure]) -> None:
        """Write shards anew that name photos as failed which another shard has by now."""
        named_by = dict.fromkeys(failure.path for failure in failures)
        for name, record in sorted(self.manifest.shards.items(), reverse=True):
            if not record.errors:
                continue
            with self._part(record)() as output:
                valid = [x for x in output.failures if named_by.get(x.path, name) is None]
                named_by.update((x.path, name) for x in valid)
                if len(valid) < record.errors:
                    self._rewrite(name, record, output, valid)

    def _rewrite(self, name: str, record: ShardRecord, output: Output, failures: list) -> None:
        shards = self._target.shards
        if not output.paths and not failures:
            del self.manifest.shards[name]
            self.manifest.save(self._target.work)
            shards.remove(record.name)
            return
        output.failures = failures
        with shards.writing(record.name) as file:
            write_output(self._target.shard_suffix, file, output)
        rows, errors = output.count, len(failures)
        self.manifest.shards[name] = ShardRecord(
            record.name, rows + errors, rows, errors, shards.size(record.name) or 0
        )
        self.manifest.save(self._target.work)

    def _parts(self) -> list[Part]:
        base = [self._base] if self._base else []
        return base + [self._part(x) for _, x in sorted(self.manifest.shards.items())]

    def _part(self, record: ShardRecord) -> Part:
        return functools.partial(_opened, self._target.shards, record.name)

    def _find_base(self, job: dict[str, str]) -> Part | None:
        """The finished file that this job goes on from."""
        target = self._target
        if not target.exists():
            return None
        base = functools.partial(_opened, target.parent, target.name)
        try:
            with base() as output:
                found = output.attributes
        except _UNREADABLE:
            found = {}
        if "weights_digest" not in found:
            raise OutputError(
                str(target),
                "it is there already, and was not written by an extraction of this version",
                "Name another output, or pass --force (force=True) to replace it.",
            )
        self._refuse_changes(found, job)
        return base

    def _drop_unusable(self) -> None:
        """Forget shards that are not as they were recorded, or that are in the file already."""
        there: set[str] = set()
        if self._base and self.manifest.shards:
            with self._base() as output:
                there.update(output.paths)
        for name, record in list(self.manifest.shards.items()):
            usable = self._target.shards.size(record.name) == record.size
            if usable:
                try:
                    with self._part(record)() as output:
                        usable = output.count == record.rows and there.isdisjoint(output.paths)
                except _UNREADABLE:
                    usable = False
            if not usable:
                del self.manifest.shards[name]

    def _refuse_foreign_folder(self) -> None:
        if set(self._target.work.names()) - {LOCK}:
            raise OutputError(
                str(self._target.work),
                "it is there already, and holds files that are not of an extraction",
                "Name another output, or remove it.",
            )

    def _refuse_changes(self, old: Mapping[str, str], new: Mapping[str, str]) -> None:
        if differences := changes(old, new):
            raise UsageError(
                str(self._target),
                f"it was begun with other settings ({', '.join(differences)})",
                "Use the same again, name another output, or pass --force (force=True) to begin "
                "anew.",
            )


@contextlib.contextmanager
def _opened(folder: Folder, name: str) -> Iterator[Output]:
    with contextlib.ExitStack() as stack:
        names = None
        path = stack.enter_context(folder.reading(name))
        if name.lower().endswith(".npy"):
            names = stack.enter_context(folder.reading(f"{name}.json"))
        with reading_of(f"{folder}/{name}"):
            output = stack.enter_context(open_output(path, names))
        yield output


def _table(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
