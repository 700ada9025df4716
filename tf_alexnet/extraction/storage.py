"""Where a job's files lie: a folder here or behind a URL, and files that get there whole."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from tf_alexnet import remote
from tf_alexnet.errors import OutputError

_PART = ".tf-alexnet-"


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


@contextlib.contextmanager
def _complaining(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            place,
            f"it can't be written ({error.strerror or error})",
            "Check that the folder exists, may be written to and has space left; then run the same "
            "command again: what is finished is kept.",
        ) from error


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
            place,
            f"it can't be read ({os.strerror(error.errno)})",
            "See that it can; then run the same command again: what is finished is kept.",
        ) from error


def _sync(folder: str) -> None:
    """See to it that a power cut does not take a new name back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def make(self) -> bool:
        """Create the folder; whether it is new."""
        with _complaining(str(self)):
            new = not self.path.is_dir()
            self.path.mkdir(exist_ok=True)
            if new:
                _sync(os.path.dirname(self.path) or ".")
            return new

    def writing(self, name: str) -> contextlib.AbstractContextManager[OutputFile]:
        """A file that appears as `name` in the folder when the block ends well, synced to disk."""
        return self.writing_beside(str(self.path / name))

    @contextlib.contextmanager
    def writing_beside(self, location: str) -> Iterator[OutputFile]:
        """The same for a file outside, on the same file system; half of it never gets there."""
        temporary = self.path / f"{_PART}{uuid.uuid4().hex}.part"
        try:
            with _complaining(location):
                file = OutputFile(temporary)
            with contextlib.closing(file):
                try:
                    yield file
                except Exception:
                    with _complaining(location):
                        file.check()  # the cause, where a library fails over it in words of its own
                    raise
                with _complaining(location):
                    file.check()
                    os.fsync(file.fileno())
                    os.replace(temporary, location)
                    _sync(os.path.dirname(location) or ".")
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """A path on this machine with what `name` holds."""
        yield self.path / name

    def text(self, name: str) -> str | None:
        """What a text file holds; None if there is none."""
        with reading_of(f"{self}/{name}"):
            try:
                return (self.path / name).read_text(encoding="utf-8", errors="surrogateescape")
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        with reading_of(f"{self}/{name}"):
            try:
                return (self.path / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def names(self) -> list[str]:
        """What lies in the folder."""
        with reading_of(str(self)):
            try:
                return sorted(os.listdir(self.path))
            except FileNotFoundError:
                return []

    def clear_parts(self) -> None:
        """Remove what killed jobs left half written."""
        for name in self.names():
            if name.startswith(_PART):
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()

    def remove(self, name: str) -> None:
        """Remove a file or folder in it, if it is there."""
        with contextlib.suppress(OSError):
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name, ignore_errors=True)
            else:
                (self.path / name).unlink(missing_ok=True)

    def remove_empty(self) -> None:
        """Remove the folder if nothing is left in it."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


class RemoteFolder:
    """A folder behind a URL. Files are made here and go there whole."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._fs, self._root = remote.filesystem(self.url)

    def __str__(self) -> str:
        return self.url

    def make(self) -> bool:
        """Create the folder; whether it is new."""
        with _reaching(self.url):
            new = not self._fs.exists(self._root)
            self._fs.makedirs(self._root, exist_ok=True)
            return new

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[OutputFile]:
        """A file that goes to `name` in the folder when the block ends well."""
        with self.writing_beside(f"{self.url}/{name}") as file:
            yield file

    @contextlib.contextmanager
    def writing_beside(self, location: str) -> Iterator[OutputFile]:
        """The same for a file outside."""
        with tempfile.TemporaryDirectory(prefix="tf-alexnet-") as folder:
            here = LocalFolder(folder)
            with here.writing("file") as file:
                yield file
            with _reaching(location):
                self._fs.put_file(os.path.join(folder, "file"), remote.filesystem(location)[1])

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """A path on this machine with what `name` holds."""
        with tempfile.TemporaryDirectory(prefix="tf-alexnet-") as folder:
            here = Path(folder, name.rpartition("/")[2])
            with _reaching(f"{self.url}/{name}"):
                self._fs.get_file(f"{self._root}/{name}", str(here))
            yield here

    def text(self, name: str) -> str | None:
        """What a text file holds; None if there is none."""
        with _reaching(f"{self.url}/{name}"):
            try:
                data = self._fs.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None
        return data.decode("utf-8", "surrogateescape")

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        with _reaching(f"{self.url}/{name}"):
            try:
                return self._fs.size(f"{self._root}/{name}")
            except FileNotFoundError:
                return None

    def names(self) -> list[str]:
        """What lies in the folder."""
        with _reaching(self.url):
            try:
                found = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def clear_parts(self) -> None:
        """Nothing: files come here whole."""

    def remove(self, name: str) -> None:
        """Remove a file or folder in it, if it is there."""
        with contextlib.suppress(Exception):
            self._fs.rm(f"{self._root}/{name}", recursive=True)

    def remove_empty(self) -> None:
        """Remove the folder if nothing is left in it."""
        with contextlib.suppress(Exception):
            if not self._fs.ls(self._root):
                self._fs.rmdir(self._root)


@contextlib.contextmanager
def _reaching(place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every service has errors of its own kind
        raise OutputError(
            place,
            f"it can't be reached or written ({error or type(error).__name__})",
            "Check the address and your rights there; then run the same command again: what is "
            "finished is kept.",
        ) from error


Folder = LocalFolder | RemoteFolder


def folder_at(location: str) -> Folder:
    """The folder that a path or URL names."""
    return RemoteFolder(location) if remote.is_url(location) else LocalFolder(location)
