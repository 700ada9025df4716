"""Folders on a disk or behind a URL, and files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import os
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
from fsspec.implementations.local import LocalFileSystem

from tf_alexnet import remote
from tf_alexnet.errors import AlexNetError, OutputError, UsageError
from tf_alexnet.files import check_folder, sync_folder

_AGAIN = "then run the same command again: finished shards are kept."
# Errors of link(2) on file systems without hard links (FAT, some network drives).
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)


@contextlib.contextmanager
def reading_of(place: str) -> Iterator[None]:
    """Raise OutputError for a file that can't be read now, unlike a damaged or missing one.

    Only errors of the operating system have a number; libraries report damage without one.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.ENOENT, errno.EINVAL):  # EINVAL: damage led to a wild seek
            raise
        raise OutputError(
            place, f"it can't be read ({os.strerror(error.errno)})", f"Make it readable; {_AGAIN}"
        ) from error


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Defer SIGINT and SIGTERM until the end of the block, or of the decorated function.

    An exception that a handler raises while HDF5 or Arrow write through a Python file gets lost in
    their code, perhaps with the data. Handlers run in the main thread only.
    """
    waiting, numbers = [], (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    handlers = {x: handler for x in numbers if callable(handler := signal.getsignal(x))}
    try:
        for number in handlers:
            signal.signal(number, lambda *arguments: waiting.append(arguments))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in waiting:
            handlers[number](number, frame)


class OutputFile(io.FileIO):
    """A file being written, whose first failure is kept and raised by `check`.

    After a failed write, HDF5 raises again whenever one of its objects is freed, where it can't be
    caught. So writes always appear to succeed.
    """

    def __init__(self, path: str | os.PathLike):
        self.failure: BaseException | None = None
        super().__init__(path, "w+b")

    def write(self, data) -> int:
        """Write all of `data`, or keep the failure."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self.failure is None:
                done += self._put(view[done:])
        except BaseException as error:  # also from a signal: C code would lose it
            self.failure = self.failure or error
        return len(view)

    def _put(self, data: memoryview) -> int:
        """One system call, which may write only a part."""
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        """Change the size, or keep the failure."""
        try:
            if self.failure is None:
                return super().truncate(size)
        except BaseException as error:
            self.failure = self.failure or error
        return self.tell() if size is None else size

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure


class Folder:
    """A folder, on a local disk or behind a URL that fsspec can open.

    Parameters
    ----------
    location : str
        Path or URL (UsageError if a package for its scheme is not installed). Nothing is created.
    """

    def __init__(self, location: str):
        self.location = location.rstrip("/") or location
        self.is_local = not remote.is_url(location)
        if self.is_local:
            self._fs, self._root = LocalFileSystem(), self.location
        else:
            with self._telling("reached"):
                self._fs, self._root = remote.filesystem(self.location)

    def __str__(self) -> str:
        return self.location

    def __reduce__(self):
        return Folder, (self.location,)

    def at(self, name: str) -> str:
        """The full path of a file in the folder."""
        return os.path.join(self._root, name)

    def make(self) -> None:
        """Create the folder, unless it exists."""
        with self._telling("written"):
            if not self._fs.isdir(self._root):
                self._fs.makedirs(self._root, exist_ok=True)
                if self.is_local:
                    sync_folder(os.path.dirname(self._root))

    def sizes(self) -> dict[str, int | None]:
        """Name -> size in bytes of each file in the folder (None for folders), in one listing."""
        with self._telling("read"):
            try:
                if self.is_local:
                    return {x.name: _size(x) for x in os.scandir(self._root)}
                self._fs.invalidate_cache(self._root)
                found = self._fs.ls(self._root, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        names = [x["name"].rstrip("/").rpartition("/")[2] for x in found]
        sizes = [x["size"] if x["type"] == "file" else None for x in found]
        return dict(zip(names, sizes, strict=True))

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder with this name."""
        with self._telling("read", name):
            return self._fs.exists(self.at(name))

    def version(self, name: str) -> str | None:
        """A text that changes with a file when it is replaced; None if it does not exist."""
        with self._telling("read", name):
            try:
                if self.is_local:
                    with open(self.at(name), "rb") as file:  # network drives remember a stat
                        found = os.fstat(file.fileno())
                    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"
                self._fs.invalidate_cache(self._root)
                entry = self._fs.info(self.at(name))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return f"{entry.get('size')} {mark_of(entry)}"

    def read(self, name: str) -> bytes | None:
        """Content of a small file; None if it does not exist."""
        with self._telling("read", name):
            try:
                return self._fs.cat_file(self.at(name))
            except (FileNotFoundError, NotADirectoryError):
                return None

    @contextlib.contextmanager
    def reading(self, *names: str) -> Iterator[list[Path]]:
        """Local paths of files in the folder; files behind a URL are fetched."""
        if self.is_local:
            yield [Path(self.at(name)) for name in names]
            return
        with tempfile.TemporaryDirectory(prefix="tf-alexnet-") as here:
            for name in names:
                with self._telling("read", name):
                    self._fs.get_file(self.at(name), os.path.join(here, name))
            yield [Path(here, name) for name in names]

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[OutputFile]:
        """Open a new file, which is durable when the block ends and deleted when it fails.

        Behind a URL it is written locally first, and appears complete.
        """
        with contextlib.ExitStack() as stack:
            place = self.at(name)
            if not self.is_local:
                here = tempfile.TemporaryDirectory(prefix="tf-alexnet-")
                place = os.path.join(stack.enter_context(here), "file")
            stack.enter_context(_or_gone(place))
            with self._telling("written", name):
                file = stack.enter_context(OutputFile(place))
            try:
                yield file
            finally:
                with self._telling("written", name):
                    file.check()  # raise the cause rather than a library's error
            with self._telling("written", name):
                os.fsync(file.fileno())
                if not self.is_local:
                    self._fs.put_file(place, self.at(name))

    def rename(
        self, name: str, to: Folder, new: str, *, exclusive: bool = False, keep: bool = True
    ) -> None:
        """Rename a file, durably; behind a URL it is copied and deleted.

        With `exclusive`, FileExistsError is raised if the name is taken; without `keep`, a file on
        a disk that can't be renamed is deleted.
        """
        source, target = self.at(name), to.at(new)
        with to._telling("written", new):
            if not self.is_local:
                if exclusive and to._fs.exists(target):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
                self._fs.cp_file(source, target)
                self._fs.rm_file(source)
                return
            with contextlib.nullcontext() if keep else _or_gone(source):
                _move_exclusively(source, target) if exclusive else os.replace(source, target)
                sync_folder(os.path.dirname(target))

    def create(self, name: str, data: bytes, temporary: str) -> None:
        """Write a small file atomically; FileExistsError if the name is taken."""
        if self.is_local:
            with self.writing(temporary) as file:
                file.write(data)
            self.rename(temporary, self, name, exclusive=True, keep=False)
        else:
            with self._telling("written", name):
                self._fs.pipe_file(self.at(name), data, mode="create")

    @contextlib.contextmanager
    def replacing(self, name: str, via: Folder, temporary: str) -> Iterator[OutputFile]:
        """Open a file that appears when the block succeeds; readers see the old or the new one.

        It is called `temporary` in the folder `via` until it is complete, so that a job that begins
        meanwhile deletes it.
        """
        with via.writing(temporary) as file:
            yield file
        via.rename(temporary, self, name, keep=False)

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        with self._telling("deleted", name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self.at(name))

    def remove_empty(self) -> None:
        """Delete the folder if it is empty."""
        with contextlib.suppress(Exception):
            if not self.sizes():
                self._fs.rmdir(self._root)

    @contextlib.contextmanager
    def _telling(self, verb: str, name: str = "") -> Iterator[None]:
        """Turn errors of the disk or a service into an OutputError."""
        try:
            yield
        except (FileExistsError, AlexNetError):
            raise
        except Exception as error:  # each service has its own types of errors
            reason = str(error) or type(error).__name__
            check = "Check the disk" if self.is_local else "Check the address and your permissions"
            if isinstance(error, OSError):
                reason = error.strerror or reason
                gone = error.errno == errno.ENOENT or isinstance(error, FileNotFoundError)
                if verb == "read" and (gone or (self.is_local and error.errno is None)):
                    raise
            elif self.is_local:
                raise
            raise OutputError(
                f"{self.location}/{name}" if name else self.location,
                f"it can't be {verb} ({reason})",
                f"{check}; {_AGAIN}",
            ) from error


@contextlib.contextmanager
def _or_gone(path: str) -> Iterator[None]:
    """Delete a file if the block fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _size(entry: os.DirEntry) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        if entry.is_file():
            return entry.stat().st_size
    return None


def _move_exclusively(source: str, target: str) -> None:
    """Rename a file to a name that must not exist."""
    try:
        os.link(source, target)
        os.unlink(source)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Not exclusive between two machines; on one, the lock keeps other jobs out.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(source, target)


@contextlib.contextmanager
def locked(folder: Folder, what: str) -> Iterator[None]:
    """Lock a folder against other jobs on this machine; OutputError if one holds the lock.

    A courtesy: the output is safe without it. The kernel releases the lock when the process ends,
    even if it is killed. A folder behind a URL is locked for this machine's user only.
    """
    if folder.is_local:
        path, holder = folder.at(".lock"), Path(folder.at(".holder"))
    else:
        digest = hashlib.sha256(folder.location.encode()).hexdigest()[:32]
        user = getattr(os, "getuid", int)()  # on Windows each user has such a folder
        path = os.path.join(tempfile.gettempdir(), f"tf-alexnet-{user}-{digest}.lock")
        holder = Path(f"{path}-holder")
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        who = "another process"
        with contextlib.suppress(OSError):
            who = holder.read_text(errors="replace")[:200]
        found, advice = f"another job is writing it ({who})", "Wait for it to end, or name another"
        raise OutputError(what, found, f"{advice} output.") from None
    except PermissionError:
        found, advice = "it can't be locked (Permission denied)", "Check the folder's permissions."
        raise OutputError(path, found, advice) from None
    except (OSError, NotImplementedError):
        yield  # a file system without locks
        return
    try:
        with contextlib.suppress(OSError):
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
            os.unlink(path)
        lock.release()


def place_of(path: str, real: Callable[[str], str] = os.path.realpath) -> str:
    """Place of a photo: the real path of its folder, and its name in it; a URL unchanged."""
    folder, slash, name = path.rpartition("/")
    return path if remote.is_url(path) else f"{real(folder + slash)}/{name}"


def mark_of(entry: Mapping[str, Any]) -> str | None:
    """What changes with a file behind a URL, from its entry in a listing, if anything does."""
    names = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "updated", "created", "CRC")
    return next((str(entry[name]) for name in names if entry.get(name)), None)


def token() -> str:
    """64 random bits, in hexadecimal."""
    return uuid.uuid4().hex[:16]


FIXED = (".npz", ".npy", ".mat")  # can't grow once finished
SUFFIXES = (".h5", ".hdf5", *FIXED, ".parquet")


class Target:
    """An output, and the folders that belong to it.

    Parameters
    ----------
    output : path or URL
        A name that ends in a slash, or has no suffix, is a folder of shards: Parquet if it ends
        in ``.parquet/``, else HDF5. Any other is a single file.

    Attributes
    ----------
    location, parent, name : str, Folder, str
        The file or folder, its parent folder, and its name in it.
    names : tuple of str
        The file, and the JSON that belongs to an ``.npy``.
    is_folder, suffix : bool, str
        Whether the output is a folder of shards; suffix of the file, or of the shards, in lower
        case.
    data, job, shard_suffix : Folder, Folder, str
        Folder of the shards, folder of the records, and suffix of the shards.
    """

    def __init__(self, output: str | os.PathLike):
        given = os.fsdecode(os.fspath(output))
        self.location = given.rstrip("/") or given
        folder, _, self.name = self.location.rpartition("/")
        suffix = os.path.splitext(self.name)[1].lower()
        self.is_folder = given != self.location or not suffix
        if self.is_folder:
            self.suffix = ".parquet" if suffix == ".parquet" else ".h5"
        elif suffix in SUFFIXES:
            self.suffix = suffix
        else:
            raise UsageError(
                f"output {given}",
                f"no format has the suffix {suffix!r}",
                f"Use one of {', '.join(SUFFIXES)}, or end the name in / for a folder of shards.",
            )
        if remote.is_url(given) and not remote.is_url(f"{folder}/x"):
            folder += "/"  # memory://f.h5
        self.parent = Folder(folder or ("/" if self.location.startswith("/") else "."))
        if self.is_folder:
            self.data, self.job = Folder(self.location), Folder(f"{self.location}/.job")
        else:
            self.data = self.job = Folder(f"{self.location}.job")
        self.shard_suffix = self.suffix if self.is_folder else ".h5"
        self.names = (self.name, f"{self.name}.json") if self.suffix == ".npy" else (self.name,)

    def __str__(self) -> str:
        return self.location

    def check(self) -> None:
        """Check that the output can be written, before any work is done.

        Raises UsageError if pyarrow is needed but not installed; OutputError if the folder is
        missing or not writable, or if there is a folder instead of a file or vice versa.
        """
        if self.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
            advice = "Install it: pip install 'tf-alexnet[parquet]'."
            raise UsageError(self.location, "pyarrow is not installed", advice)
        if not self.parent.is_local:
            return
        inside = self.is_folder and os.path.isdir(self.location)
        if self.is_folder and not inside and os.path.lexists(self.location):
            raise OutputError(self.location, "it is a file", "Name a folder, or give it a suffix.")
        check_folder(f"{self.location}/x" if inside else self.location)


def check_output(path: str | os.PathLike) -> None:
    """As `Target.check`, for a path or URL."""
    Target(path).check()
