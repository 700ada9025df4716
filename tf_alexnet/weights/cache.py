"""The cache folder: where it is, and which checksums were computed before.

Reading 244 MB to verify them takes about as long as loading them, so a checksum is remembered: in
a small JSON under ``checksums/`` in the cache folder, one a file. It holds for one path, device,
inode, size, time of change and time of status change. Whatever differs, the file is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from tf_alexnet.errors import OutputError
from tf_alexnet.files import replacing
from tf_alexnet.weights.catalog import file_checksum

# Smaller files are read again: that takes milliseconds, and leaves no note on the disk.
LEAST_BYTES = 16_000_000
# A file this young may still change without its times showing it (FAT counts in steps of 2 s).
SETTLED_SECONDS = 2.0

# For caches that can't be written to: the notes of this process.
_notes: dict[str, dict] = {}


def cache_folder() -> Path:
    """Where downloads are kept: ``TF_ALEXNET_CACHE``, or the system's cache folder.

    Raises
    ------
    OutputError
        If neither is known, as for a user without a home.
    """
    own = os.environ.get("TF_ALEXNET_CACHE")
    if own:
        return Path(os.path.expanduser(own))
    import pooch

    try:
        folder = Path(os.path.expanduser(pooch.os_cache("tf_alexnet")))
    except RuntimeError:  # platformdirs of late; before, it left the ~ in
        folder = Path("~/.cache/tf_alexnet")
    if not folder.is_absolute():
        raise OutputError(
            str(folder),
            "there is no home folder to keep downloads in",
            "Set TF_ALEXNET_CACHE to a folder, or put the file in ./weights.",
        )
    return folder


def remembered_checksum(path: str | os.PathLike, algorithm: str) -> str:
    """Checksum of a file, as hex, without reading the file if it was read before and is the same.

    Parameters
    ----------
    path : str or path
        The file.
    algorithm : {"sha256", "sha1", "git_blob"}
        As in `file_checksum`.

    Raises
    ------
    OSError
        If the file can't be read. A note that can't be read or written is no error.
    """
    before = _stamp(path)
    if before["size"] < LEAST_BYTES:
        return file_checksum(path, algorithm)
    note = _recall(before)
    if algorithm in note:
        return note[algorithm]
    checksum = file_checksum(path, algorithm)
    changed = max(before["mtime_ns"], before["ctime_ns"]) / 1e9
    if _stamp(path) == before and time.time() - changed > SETTLED_SECONDS:
        _remember(before, {**note, algorithm: checksum})
    return checksum


def _stamp(path: str | os.PathLike) -> dict[str, str | int]:
    """What must be the same for a checksum to hold."""
    real = os.path.realpath(path)
    status = os.stat(real)
    return {
        "path": real,
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _note_of(stamp: dict) -> Path:
    """The JSON for the file of that stamp."""
    name = hashlib.sha256(os.fsencode(stamp["path"])).hexdigest()[:32]
    return cache_folder() / "checksums" / f"{name}.json"


def _recall(stamp: dict) -> dict[str, str]:
    """Algorithm -> checksum, as far as they were remembered for exactly this stamp."""
    notes = [_notes.get(stamp["path"])]
    with contextlib.suppress(OSError, OutputError, ValueError, RecursionError):
        notes.append(json.loads(_note_of(stamp).read_text(encoding="utf-8")))
    for note in notes:
        if isinstance(note, dict) and note.get("file") == stamp:
            checksums = note.get("checksums")
            if isinstance(checksums, dict):
                return {k: v for k, v in checksums.items() if isinstance(v, str)}
    return {}


def _remember(stamp: dict, checksums: dict[str, str]) -> None:
    """Write the note whole or not at all; without one the file is read again, no more."""
    note = _notes[stamp["path"]] = {"file": stamp, "checksums": checksums}
    with contextlib.suppress(OSError, OutputError):
        path = _note_of(stamp)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(note), encoding="utf-8")
