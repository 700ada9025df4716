"""A private folder for a download in progress, and the clearing away of those whose owner died."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".download-"
# A folder this young may belong to a process that has not come to locking it yet.
YOUNG_SECONDS = 5.0
# Where folders can't be locked, one in which nothing was written for so long is given up: a
# living download is broken off much earlier.
OLD_SECONDS = 3600.0


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, gone afterwards whatever happens.

    A process that is killed leaves its folder behind, for `clear_leftovers`. That a folder is
    in use is shown by a lock that dies with its owner. The lock serves tidiness only: without
    it, or against it, no wrong bytes can get their final name.

    Raises
    ------
    OSError
        If `folder` can't be written to.
    """
    # An abandoned download may still write while its folder is being removed.
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=_PREFIX, ignore_cleanup_errors=True
    ) as place:
        descriptor = _locked(Path(place))
        try:
            yield Path(place)
        finally:
            if descriptor:
                os.close(descriptor)


def clear_leftovers(folder: Path) -> None:
    """Remove the folders of dead downloads in `folder`."""
    with contextlib.suppress(OSError):
        for place in folder.glob(f"{_PREFIX}*"):
            if _abandoned(place):
                shutil.rmtree(place, ignore_errors=True)


def _abandoned(place: Path) -> bool:
    """Whether nobody works in `place` any more."""
    try:
        idle = time.time() - max(p.stat().st_mtime for p in (place, *place.rglob("*")))
        if idle < YOUNG_SECONDS:
            return False
        descriptor = _locked(place)
    except OSError:
        # It is being removed, or in use.
        return False
    if descriptor is None:
        return idle > OLD_SECONDS
    os.close(descriptor)
    return True


def _locked(place: Path) -> int | None:
    """A descriptor that holds the lock of `place`; None where folders can't be locked.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    """
    descriptor = None
    try:
        import fcntl

        descriptor = os.open(place, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        os.close(descriptor)
        raise
    except (ImportError, OSError):
        if descriptor is not None:
            os.close(descriptor)
        return None
