"""The members of a zip archive, each checked against what the archive says of it. Nothing is
extracted.

Python's own `zipfile` reads the archive, but no more than `PIECE` of it at once: by itself it would
take a directory of any size, and inflate all of a member whatever size the member declares.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

from tf_alexnet.weights.formats.common import affordable

MAX_MEMBERS = 1000  # a torch file of AlexNet has about 22
MAX_RATIO = 100  # pruned weights shrink to a twentieth; deflate can do a thousandth
PIECE = 1 << 17  # bytes; the directory is read in one piece
# What zipfile raises on damaged archives; text in a broken encoding is a ValueError.
_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(RuntimeError, ValueError, OverflowError),
)


class ZipError(Exception):
    """The archive is damaged, or a trap; the message completes "a zip archive with ..."."""


class _Pieces(io.RawIOBase):
    """Bytes in memory as a file that gives out `PIECE` of them at most."""

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
        If the directory is damaged, names a member twice, or declares sizes out of proportion.
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
            raise ZipError("a directory out of all proportion")
        if len(set(self)) < len(found):
            raise ZipError("a member twice")
        end = 0
        for member in sorted(found, key=lambda x: x.header_offset):
            _check(member)
            if member.header_offset < end:  # a bomb could count the same bytes again and again
                raise ZipError("members that overlap")
            end = member.header_offset + 30 + len(member.filename) + member.compress_size
        if end > self._archive.start_dir:
            raise ZipError("a member that runs past the end")

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.namelist())

    def size(self, name: str) -> int:
        """Bytes of a member, as declared; `pieces` checks it."""
        return self._archive.getinfo(name).file_size

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a member, a piece at a time.

        Raises
        ------
        ZipError
            If they are fewer, more or other ones than declared; after the last piece.
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
        """All of a member; a view of the file where it is not compressed. See `pieces`."""
        member = self._archive.getinfo(name)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            return memoryview(b"".join(self.pieces(name)))
        try:
            self._archive.open(name).close()  # checks the header before the bytes
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
        raise ZipError(f"the member {name[:80]!r}, a path out of it")
    if member.flag_bits & 1 or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ZipError(f"the member {name[:80]!r} encrypted or packed by method {method}")
    if method == zipfile.ZIP_STORED and member.file_size != member.compress_size:
        raise ZipError(f"two sizes for {name[:80]!r}")
    if member.file_size > MAX_RATIO * member.compress_size + 1024:
        raise ZipError(
            f"{member.file_size} bytes of {name[:80]!r} packed into {member.compress_size}"
        )
