"""Atomic writing of files: a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from tf_alexnet.errors import OutputError, UsageError


def check_folder(path: str | os.PathLike, suffix: str = "") -> None:
    """Raise an error if no file can be written to `path`. Missing folders are not an error.

    Parameters
    ----------
    path : path
        File to be written.
    suffix : str
        Required end of its name.

    Raises
    ------
    UsageError
        If the name does not end in `suffix`.
    OutputError
        If the path is a folder, or its folder is not writable or can't be created.
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
    """Rename a finished file to `path`, synced to disk so that it survives a power cut."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path))


def sync_folder(folder: str | os.PathLike) -> None:
    """Sync a folder, so that new names in it survive a power cut. Does nothing on Windows."""
    if os.name == "nt":
        return
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Context manager: a temporary path that is renamed to `path` if the block succeeds.

    Missing folders are created. A reader of `path` sees the old file or the new one, never half of
    one.

    Raises
    ------
    OutputError
        If the block or the renaming raises an OSError.
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
            "Check that the folder exists, is writable and has space left.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
