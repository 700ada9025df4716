"""Folders on a disk or behind a URL, and files that appear in them whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
from fsspec.implementations.local import LocalFileSystem

from tf_alexnet import remote
from tf_alexnet.errors import AlexNetError, OutputError, UsageError
from tf_alexnet.files import check_folder, sync_folder

_AGAIN = "then run the same command again: finished shards are kept."
# What link(2) says where a file system has no hard links (FAT, some network drives).
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)


@contextlib.contextmanager
def reading_of(place: str) -> Iterator[None]:
    """Part a file that can't be read at the moment from one that is damaged, or gone.

    Only the operating system numbers its errors; the libraries say of damage what they like.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.ENOENT, errno.EINVAL):  # EINVAL: damage led to a wild seek
            raise
        raise OutputError(
            place, f"it can't be read ({os.strerror(error.errno)})", f"See that it can; {_AGAIN}"
        ) from error


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the end of the block, or of the function that this adorns.

    A handler that raises while HDF5 or Arrow write through a Python file raises in the middle of
    their code: the exception is lost, and so may be what was to be written. Handlers run in the
    first thread only.
    """
    waiting, handlers = [], {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
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

    The HDF5 library can't be told of a failed write without it complaining again, from places
    where nobody can catch it, whenever one of its objects goes. So writes seem to succeed here.
    """

    def __init__(self, path: str | os.PathLike):
        self.failure: BaseException | None = None
        super().__init__(path, "w+b")

    def write(self, data) -> int:
        """Write all of `data`, or remember why not."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self.failure is None:
                done += self._put(view[done:])
        except BaseException as error:  # also a signal's: it must not get lost in C code
            self.failure = self.failure or error
        return len(view)

    def _put(self, data: memoryview) -> int:
        """One call of the operating system; it may take less than all."""
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        """Change the size, or remember why not."""
        try:
            if self.failure is None:
                return super().truncate(size)
        except BaseException as error:
            self.failure = self.failure or error
        return self.tell() if size is None else size

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.failure is not None:
            raise self.failure


class Folder:
    """A folder, on a local disk or behind a URL that fsspec can open.

    Parameters
    ----------
    location : str
        Path or URL. Nothing is created.

    Raises
    ------
    UsageError
        If what the URL's scheme needs is not installed.
    """

    def __init__(self, location: str):
        self.location = location.rstrip("/") or location
        self.is_local = not remote.is_url(location)
        if self.is_local:
            self._fs, self._root = LocalFileSystem(), self.location
        else:
            self._fs, self._root = remote.filesystem(self.location)

    def __str__(self) -> str:
        return self.location

    def __reduce__(self):
        return Folder, (self.location,)

    def at(self, name: str) -> str:
        """The full path of a file in the folder."""
        return os.path.join(self._root, name)

    def make(self) -> None:
        """Create the folder, unless it is there."""
        with self._telling("written"):
            if not self._fs.isdir(self._root):
                self._fs.makedirs(self._root, exist_ok=True)
                if self.is_local:
                    sync_folder(os.path.dirname(self._root))

    def sizes(self) -> dict[str, int | None]:
        """Name -> bytes of all files in the folder (None for folders); one listing."""
        with self._telling("read"):
            try:
                if self.is_local:
                    return {x.name: _size(x) for x in os.scandir(self._root)}
                self._fs.invalidate_cache(self._root)
                found = self._fs.ls(self._root, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        return {
            entry["name"].rstrip("/").rpartition("/")[2]: entry["size"]
            if entry["type"] == "file"
            else None
            for entry in found
        }

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        with self._telling("read", name):
            return self._fs.exists(self.at(name))

    def read(self, name: str) -> bytes | None:
        """All of a small file; None if there is none."""
        with self._telling("read", name):
            try:
                return self._fs.cat_file(self.at(name))
            except (FileNotFoundError, NotADirectoryError):
                return None

    @contextlib.contextmanager
    def reading(self, *names: str) -> Iterator[list[Path]]:
        """Paths on this machine of files in the folder; those behind a URL are fetched."""
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
        """A new file, durable when the block ends; nothing is left of it when the block fails.

        Behind a URL it is written here first, and appears whole.
        """
        with contextlib.ExitStack() as stack:
            if self.is_local:
                place = self.at(name)
            else:
                here = tempfile.TemporaryDirectory(prefix="tf-alexnet-")
                place = os.path.join(stack.enter_context(here), "file")
            try:
                with self._telling("written", name):
                    file = OutputFile(place)
                with contextlib.closing(file):
                    try:
                        yield file
                    finally:
                        with self._telling("written", name):
                            file.check()  # the cause, where a library fails in words of its own
                    with self._telling("written", name):
                        os.fsync(file.fileno())
                        if not self.is_local:
                            self._fs.put_file(place, self.at(name))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(place)
                raise

    def rename(self, name: str, to: Folder, new: str, *, exclusive: bool = False) -> None:
        """Give a file another name, durably; behind a URL it is copied and deleted.

        Raises
        ------
        FileExistsError
            If `exclusive` (on a disk) and the name is taken.
        OutputError
            If it can't be renamed.
        """
        source, target = self.at(name), to.at(new)
        with to._telling("written", new):
            if not self.is_local:
                self._fs.copy(source, target)
                self._fs.rm_file(source)
                return
            if exclusive:
                _move_exclusively(source, target)
            else:
                os.replace(source, target)
            sync_folder(os.path.dirname(target))

    def publish(self, name: str, to: Folder, new: str, *, exclusive: bool = False) -> None:
        """As `rename`, for a file that is worth nothing under its old name."""
        try:
            self.rename(name, to, new, exclusive=exclusive)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self.at(name))
            raise

    def create(self, name: str, data: bytes, temporary: str) -> None:
        """Write a small file that must not exist, whole or not at all.

        Raises
        ------
        FileExistsError
            If the name is taken.
        OutputError
            If it can't be written.
        """
        if self.is_local:
            with self.writing(temporary) as file:
                file.write(data)
            self.publish(temporary, self, name, exclusive=True)
        else:
            with self._telling("written", name):
                self._fs.pipe_file(self.at(name), data, mode="create")

    @contextlib.contextmanager
    def replacing(
        self, name: str, via: Folder, temporary: str, *, exclusive: bool = False
    ) -> Iterator[OutputFile]:
        """A file that appears when the block ends well; readers see the old or the new one.

        Parameters
        ----------
        name : str
            Its name.
        via, temporary : Folder and str
            Where it is written until it is whole, if the folder is on a disk.
        exclusive : bool
            Whether to refuse a name that is taken (FileExistsError).
        """
        if self.is_local:
            with via.writing(temporary) as file:
                yield file
            via.publish(temporary, self, name, exclusive=exclusive)
        else:
            if exclusive and self.exists(name):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            with self.writing(name) as file:
                yield file

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with self._telling("deleted", name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self.at(name))

    def remove_empty(self) -> None:
        """Delete the folder if it is empty."""
        with contextlib.suppress(Exception):
            if not self.sizes():
                self._fs.rmdir(self._root)

    @contextlib.contextmanager
    def _telling(self, verb: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except (FileExistsError, AlexNetError):
            raise
        except OSError as error:
            gone = error.errno == errno.ENOENT or isinstance(error, FileNotFoundError)
            if verb == "read" and (gone or (self.is_local and error.errno is None)):
                raise
            raise self._error(verb, name, error.strerror or error) from error
        except Exception as error:  # every service has errors of its own kind
            if self.is_local:
                raise
            raise self._error(verb, name, error or type(error).__name__) from error

    def _error(self, verb: str, name: str, reason: object) -> OutputError:
        what = f"{self.location}/{name}" if name else self.location
        if self.is_local:
            return OutputError(what, f"it can't be {verb} ({reason})", f"Check the disk; {_AGAIN}")
        return OutputError(
            what,
            f"it can't be {verb} ({reason})",
            f"Check the address and your rights there; {_AGAIN}",
        )


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
    """Keep other jobs on this machine out of a folder for the time of the block.

    A courtesy: what is written is safe without it. The kernel releases the lock of a process that
    ends, however it ends. A folder behind a URL is locked for this machine's user only.

    Raises
    ------
    OutputError
        If another job holds the lock.
    """
    if folder.is_local:
        path, holder = folder.at(".lock"), Path(folder.at(".holder"))
    else:
        digest = hashlib.sha256(folder.location.encode()).hexdigest()[:32]
        path = os.path.join(tempfile.gettempdir(), f"tf-alexnet-{os.getuid()}-{digest}.lock")
        holder = Path(f"{path}-holder")
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        who = "another process"
        with contextlib.suppress(OSError):
            who = holder.read_text(errors="replace")[:200]
        raise OutputError(
            what,
            f"another job is writing it ({who})",
            "Wait for it to end, or name another output.",
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, PermissionError):
            raise OutputError(
                path, "it can't be locked (Permission denied)", "Check the folder's permissions."
            ) from None
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
    """Where a photo lies: the real path of its folder, and its name there; a URL as it is."""
    folder, slash, name = path.rpartition("/")
    return path if remote.is_url(path) else f"{real(folder + slash)}/{name}"


def token() -> str:
    """64 random bits, in hexadecimal."""
    return uuid.uuid4().hex[:16]


SUFFIXES = (".h5", ".hdf5", ".npz", ".npy", ".mat", ".parquet")


class Target:
    """An output, and the places that belong to it.

    Parameters
    ----------
    output : path or URL
        A name that ends in a slash, or has no suffix, is a folder of shards: of Parquet if it
        ends in ``.parquet/``, else of HDF5. Any other is one file.

    Attributes
    ----------
    location : str
        The file or the folder.
    is_folder : bool
        Whether shards are the result.
    suffix : str
        Kind of the file, or of the shards, in lower case.
    parent : Folder
        The folder that the output lies in.
    name : str
        Its name there.
    data, job : Folder
        Where shards lie, and where the records lie.
    shard_suffix : str
        Kind of the shards.
    names : tuple of str
        The file, and the JSON that belongs to an ``.npy``.
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
        """Refuse an output that could not be written, before any work is done for it.

        Raises
        ------
        UsageError
            If pyarrow is needed and not installed.
        OutputError
            If the folder is missing or not writable, or a file is a folder or the other way round.
        """
        if self.suffix == ".parquet":
            try:
                import pyarrow  # noqa: F401
            except ImportError:
                raise UsageError(
                    self.location,
                    "pyarrow is not installed",
                    "Install it: pip install 'tf-alexnet[parquet]'.",
                ) from None
        if not self.parent.is_local:
            return
        if not self.is_folder and os.path.isdir(self.location):
            raise OutputError(
                self.location, "it is a folder", "Name a file in it, or end the name in /."
            )
        if self.is_folder and os.path.isdir(self.location):
            check_folder(os.path.join(self.location, "x"))
        elif self.is_folder and os.path.lexists(self.location):
            raise OutputError(self.location, "it is a file", "Name a folder, or give it a suffix.")
        else:
            check_folder(self.location)


def check_output(path: str | os.PathLike) -> None:
    """As `Target.check`, for a path or URL."""
    Target(path).check()
