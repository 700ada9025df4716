"""Safe reading of zip archives; nothing is extracted to disk.

Archives are read by Python's `zipfile`, but at most `PIECE` bytes at a time: by itself it accepts a
directory of any size, and inflates members beyond their declared size.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

from tf_alexnet.weights.formats.common import affordable

MAX_MEMBERS = 1000  # a torch file of AlexNet has about 22
MAX_RATIO = 100  # pruned weights compress 20 times; deflate can reach 1000
PIECE = 1 << 17  # bytes; also the largest directory
# Raised by zipfile for damaged archives; a ValueError for text in a broken encoding.
_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(RuntimeError, ValueError, OverflowError),
)


class ZipError(Exception):
    """The archive is damaged or malicious; the message completes "a zip archive with ..."."""


class _Pieces(io.RawIOBase):
    """Bytes in memory as a file that returns at most `PIECE` of them per read."""

    def __init__(self, view: memoryview):
        self.view, self.at = view, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, len(self.view))[whence]
        if self.at < 0:
            raise ValueError("a negative offset")
        return self.at

    def read(self, size: int = -1) -> bytes:
        rest = max(0, len(self.view) - self.at)
        size = min(size, rest) if size >= 0 else rest
        if size > PIECE:
            raise ZipError(f"a directory of {size} bytes")
        self.at += size
        return bytes(self.view[self.at - size : self.at])


class ZipMembers:
    """The members of an archive, by name.

    Parameters
    ----------
    data : bytes-like
        The whole file.

    Raises
    ------
    ZipError
        If the directory is damaged, contains a name twice, or declares excessive sizes.
    """

    def __init__(self, data):
        self.view = memoryview(data)
        try:
            self._archive = zipfile.ZipFile(_Pieces(self.view))
        except _ERRORS as error:
            raise ZipError(f"a damaged directory ({str(error)[:200]})") from None
        found = self._archive.infolist()
        if sum(member.file_size for member in found) > affordable(len(self.view)):
            raise ZipError("far more in it than an AlexNet")
        if len(found) > MAX_MEMBERS:
            raise ZipError(f"more than {MAX_MEMBERS} members")
        if len(set(self)) < len(found):
            raise ZipError("a member twice")
        end = 0
        for member in sorted(found, key=lambda x: x.header_offset):
            _check(member)
            if member.header_offset < end:  # a bomb may use the same bytes several times
                raise ZipError("members that overlap")
            end = member.header_offset + 30 + len(member.filename) + member.compress_size
        if end > self._archive.start_dir:
            raise ZipError("a member that runs past the end")

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.namelist())

    def size(self, name: str) -> int:
        """Declared size of a member, which `pieces` verifies."""
        return self._archive.getinfo(name).file_size

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a member in pieces.

        Raises
        ------
        ZipError
            If size or checksum are not as declared. Raised after the last piece.
        """
        size = 0
        try:
            with self._archive.open(name) as file:
                while piece := file.read(PIECE):
                    size += len(piece)
                    yield piece
        except _ERRORS as error:
            raise ZipError(f"damaged bytes in {name[:80]!r} ({str(error)[:200]})") from None
        if size != self.size(name):
            raise ZipError(f"{size} bytes in {name[:80]!r} instead of {self.size(name)}")

    def read(self, name: str) -> memoryview:
        """The whole member; a view of the file if it is not compressed. Raises as `pieces`."""
        member = self._archive.getinfo(name)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            return memoryview(b"".join(self.pieces(name)))
        try:
            self._archive.open(name).close()  # checks the local header
            start = member.header_offset + 30
            start += sum(struct.unpack_from("<26xHH", self.view, member.header_offset))
        except _ERRORS as error:
            raise ZipError(f"damaged bytes in {name[:80]!r} ({str(error)[:200]})") from None
        content = self.view[start : start + member.file_size]
        if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
            raise ZipError(f"damaged bytes in {name[:80]!r} (Bad CRC-32)")
        return content


def _check(member: zipfile.ZipInfo) -> None:
    name, method = member.filename, member.compress_type
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise ZipError(f"the member {name[:80]!r}, a path outside it")
    if member.flag_bits & 1 or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ZipError(f"the member {name[:80]!r} encrypted or compressed by method {method}")
    if method == zipfile.ZIP_STORED and member.file_size != member.compress_size:
        raise ZipError(f"two sizes for {name[:80]!r}")
    if member.file_size > MAX_RATIO * member.compress_size + 1024:
        raise ZipError(
            f"{member.file_size} bytes of {name[:80]!r} packed into {member.compress_size}"
        )
