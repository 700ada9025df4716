"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from tf_alexnet.errors import OutputError


def check_folder(path: str | os.PathLike) -> None:
    """Refuse a path that no file could be written to.

    Raises
    ------
    OutputError
        If its folder is missing or not writable, or if the path itself is a folder.
    """
    folder = Path(path).parent
    if Path(path).is_dir():
        raise OutputError(os.fspath(path), "it is a folder", "Name a file in it.")
    if not folder.is_dir():
        raise OutputError(
            os.fspath(path), f"there is no folder {folder}", f"Create it: mkdir -p {folder}."
        )
    if not os.access(folder, os.W_OK):
        raise OutputError(
            os.fspath(path), f"the folder {folder} can't be written to", "Choose another folder."
        )


def publish(temporary: str | os.PathLike, path: str | os.PathLike) -> None:
    """Give a file its final name; file and name survive a power cut."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path))


def sync_folder(folder: str | os.PathLike) -> None:
    """Make new names in a folder survive a power cut (Windows opens no folders)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it once the block ends well.

    A reader of `path` sees the old file or the new one, never half of one.

    Raises
    ------
    OutputError
        If anything in the block or the renaming fails for the operating system's reasons.
    """
    path = Path(path)
    temporary = path.with_name(f".tf-alexnet-{uuid.uuid4().hex}.part")
    try:
        yield temporary
        publish(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            os.fspath(path),
            f"it can't be written ({reason})",
            "Check that the folder exists, may be written to and has space left.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
