"""`locked`: one job at a time on one output."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator

from tf_alexnet.errors import OutputError
from tf_alexnet.extraction.target import Target

LOCK = ".lock"
_held: set[str] = set()
_guard = threading.Lock()


@contextlib.contextmanager
def locked(target: Target) -> Iterator[None]:
    """Hold an output for the time of the block.

    The kernel takes the lock from a process that ends, however it ends, so no lock is ever stale.
    For an output behind a URL other machines are not kept out, only other processes on this one.

    Raises
    ------
    OutputError
        If another job holds it.
    """
    if target.is_remote:
        digest = hashlib.sha256(target.location.encode()).hexdigest()[:32]
        path = os.path.join(tempfile.gettempdir(), f"tf-alexnet-{os.getuid()}-{digest}.lock")
    else:
        path = os.path.join(os.path.realpath(str(target.work)), LOCK)
    with _claimed(target, path):
        descriptor = _acquire(target, path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(descriptor)


@contextlib.contextmanager
def _claimed(target: Target, path: str) -> Iterator[None]:
    """Keep this process's other threads out: the kernel's locks part processes only."""
    with _guard:
        if path in _held:
            raise _busy(target, f"process {os.getpid()}, this one")
        _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)


def _acquire(target: Target, path: str) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # the other job has just ended, and removed its folder
            target.work.make()
            continue
        except OSError as error:
            raise OutputError(
                path, f"it can't be locked ({error.strerror})", "Check the folder's permissions."
            ) from error
        try:
            # Not flock: its locks live on in child processes after the job was killed.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                _sign(descriptor)
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace") or "another process"
            os.close(descriptor)
            raise _busy(target, holder) from None
        except PermissionError:  # the same, in the words of some systems
            os.close(descriptor)
            raise _busy(target, "another process") from None
        except OSError as error:
            os.close(descriptor)
            raise OutputError(
                path, f"it can't be locked ({error.strerror})", "Write to a folder that has locks."
            ) from error
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Say who holds it; on a full disk nobody is told."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _is_still(path: str, descriptor: int) -> bool:
    """Whether the file that is locked is the one with that name, not one that was removed."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def _busy(target: Target, holder: str) -> OutputError:
    return OutputError(
        str(target),
        f"another job is writing it ({holder})",
        "Wait for it to end, or name another output.",
    )
