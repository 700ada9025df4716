"""`SharedRows`: memory that decoder processes write and the network reads, without a copy."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref

import numpy as np

from tf_alexnet.errors import AlexNetError


class SharedRows:
    """Blocks of float32 in a file that has no name, so that nothing of it can be left behind.

    A block is taken as an array; once that array and all views of it are gone, the next who asks
    gets the same memory again, whose pages are in place already.

    Attributes
    ----------
    file : int
        Descriptor for the processes that write.
    """

    def __init__(self):
        if hasattr(os, "memfd_create"):
            self.file = os.memfd_create("tf-alexnet pixels")
        else:
            with tempfile.TemporaryFile() as file:
                self.file = os.dup(file.fileno())
        self._end = self._blocks = 0
        self._closed = False
        self._free: list[tuple[int, mmap.mmap]] = []

    def take(self, values: int) -> tuple[int, np.ndarray]:
        """A block for so many values: its offset in bytes, and the values, which hold anything.

        Raises
        ------
        AlexNetError
            If there is no memory for it, or one may not have so much.
        """
        for number, (_, block) in enumerate(self._free):
            if len(block) >= 4 * values:
                offset, block = self._free.pop(number)
                break
        else:
            offset, length = self._end, -(-4 * values // mmap.PAGESIZE) * mmap.PAGESIZE
            try:
                os.ftruncate(self.file, offset + length)
                block = mmap.mmap(self.file, length, offset=offset)
            except OSError as error:
                raise AlexNetError(
                    "memory for photos",
                    f"there are not {length:,} bytes more ({error.strerror})",
                    "Use a smaller batch, or see what the limits of this program are (ulimit -a).",
                ) from error
            self._end += length
            self._blocks += 1
        # All views of an array made from a foreign buffer have it for their base, so it lives as
        # long as any of them does.
        array = np.frombuffer(block, np.float32, values)
        weakref.finalize(array, self._give_back, offset, block).atexit = False
        return offset, array

    @property
    def taken(self) -> int:
        """Blocks in use. Each has a file descriptor, so there should not be hundreds."""
        return self._blocks - len(self._free)

    def _give_back(self, offset: int, block: mmap.mmap) -> None:
        if not self._closed:
            self._free.append((offset, block))

    def close(self) -> None:
        """Close the file; arrays that were taken stay as they are."""
        self._closed = True
        self._free.clear()
        os.close(self.file)
