"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from tf_alexnet.errors import OutputError, UsageError


def check_folder(path: str | os.PathLike, suffix: str = "") -> None:
    """Refuse a path that no file could be written to. Missing folders are made when it is written.

    Parameters
    ----------
    path : path
        The file.
    suffix : str
        How its name must end.

    Raises
    ------
    UsageError
        If the name ends otherwise.
    OutputError
        If the path is a folder, or its folder is not writable or can't be made.
    """
    if not os.fspath(path).endswith(suffix):
        raise UsageError(os.fspath(path), f"not the name of an {suffix}", f"End it in {suffix}.")
    if Path(path).is_dir():
        raise OutputError(os.fspath(path), "it is a folder", "Name a file in it.")
    folder = next(x for x in Path(path).parents if os.path.lexists(x))
    if not folder.is_dir():
        raise OutputError(os.fspath(path), f"{folder} is not a folder", "Choose another place.")
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

    Missing folders are made. A reader of `path` sees the old file or the new one, never half of
    one.

    Raises
    ------
    OutputError
        If anything in the block or the renaming fails for the operating system's reasons.
    """
    path = Path(path)
    temporary = path.with_name(f".tf-alexnet-{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
