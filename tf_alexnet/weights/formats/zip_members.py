"""The members of a zip archive, each held against what the archive says of it. Nothing is unpacked.

The layout is that of PKWARE's APPNOTE.TXT: local headers before each member, a central directory
behind them, its place and size at the end. Python's own reader builds an object an entry for any
number of entries; this one reads small archives only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

MAX_MEMBERS = 1000  # a torch file of AlexNet has about 22
MAX_DIRECTORY = 1 << 20
MAX_RATIO = 100  # pruned weights shrink to a twentieth; deflate can do a thousandth
STORED, DEFLATED = 0, 8
PIECE = 1 << 20

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


class ZipError(Exception):
    """The archive is damaged, or a trap; the message completes "a zip archive with ..."."""


class Member(NamedTuple):
    """What the central directory says of a member."""

    name: str
    method: int
    checksum: int
    stored_size: int
    size: int
    offset: int


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
        count, size, start = self._end()
        if count > MAX_MEMBERS or size > MAX_DIRECTORY or start + size > len(self.view):
            raise ZipError("a directory out of all proportion")
        self.members: dict[str, Member] = {}
        self._directory_start, at = start, start
        for _ in range(count):
            member, at = self._entry(at, start + size)
            if member.name in self.members:
                raise ZipError(f"the member {member.name[:80]!r} twice")
            self.members[member.name] = member
        self._check_overlap()

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def size(self, name: str) -> int:
        """Bytes of a member, as declared; `pieces` holds it to that."""
        return self.members[name].size

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The bytes of a member: one view where it is stored, else inflated bit by bit.

        Raises
        ------
        ZipError
            If they are fewer, more or other ones than declared; after the last piece.
        """
        member = self.members[name]
        start = self._data_start(member)
        raw = self.view[start : start + member.stored_size]
        checksum = size = 0
        for piece in [raw] if member.method == STORED else _inflated(raw, name):
            size += len(piece)
            if size > member.size:
                break
            checksum = zlib.crc32(piece, checksum)
            yield piece
        if size != member.size or checksum != member.checksum:
            raise ZipError(f"other bytes in {name[:80]!r} than it declares")

    def read(self, name: str) -> memoryview:
        """All of a member; a view of the file where it is stored."""
        pieces = list(self.pieces(name))
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))

    def _end(self) -> tuple[int, int, int]:
        """Number of entries, size and offset of the central directory."""
        tail_start = max(0, len(self.view) - 22 - 0xFFFF)
        tail = bytes(self.view[tail_start:])
        found = tail.rfind(_END)
        if found < 0 or len(tail) - found < 22:
            raise ZipError("no directory at its end")
        end = tail_start + found
        count, size, start = struct.unpack_from("<10xHII", self.view, end)
        if self.view[max(0, end - 20) : max(0, end - 20) + 4] == _LOCATOR64:
            (end64,) = struct.unpack_from("<8xQ", self.view, end - 20)
            if end64 > len(self.view) - 56 or self.view[end64 : end64 + 4] != _END64:
                raise ZipError("a damaged directory")
            count, size, start = struct.unpack_from("<32xQQQ", self.view, end64)
        return count, size, start

    def _entry(self, at: int, end: int) -> tuple[Member, int]:
        """One line of the directory, and where the next begins."""
        if at + 46 > end or self.view[at : at + 4] != b"PK\x01\x02":
            raise ZipError("a damaged directory")
        flags, method, checksum, stored, size, name_size, extra_size, comment_size, offset = (
            struct.unpack_from("<8xHH4xIIIHHH8xI", self.view, at)
        )
        after = at + 46 + name_size + extra_size + comment_size
        if after > end:
            raise ZipError("a damaged directory")
        try:
            name = str(self.view[at + 46 : at + 46 + name_size], "utf-8")
        except UnicodeDecodeError:
            raise ZipError("a name that is no UTF-8") from None
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ZipError(f"the member {name[:80]!r}, a path out of it")
        extra = self.view[at + 46 + name_size : at + 46 + name_size + extra_size]
        size, stored, offset = _wide(extra, [size, stored, offset])
        if flags & 1 or method not in (STORED, DEFLATED):
            raise ZipError(f"the member {name[:80]!r} encrypted or packed by method {method}")
        if method == STORED and size != stored:
            raise ZipError(f"two sizes for {name[:80]!r}")
        if size > MAX_RATIO * stored + 1024:
            raise ZipError(f"{size} bytes of {name[:80]!r} packed into {stored}")
        return Member(name, method, checksum, stored, size, offset), after

    def _data_start(self, member: Member) -> int:
        """Where the bytes of a member begin, behind its local header."""
        at = member.offset
        if at + 30 > self._directory_start or self.view[at : at + 4] != b"PK\x03\x04":
            raise ZipError(f"no header before {member.name[:80]!r}")
        name_size, extra_size = struct.unpack_from("<26xHH", self.view, at)
        if self.view[at + 30 : at + 30 + name_size] != member.name.encode():
            raise ZipError(f"another name in the header of {member.name[:80]!r}")
        start = at + 30 + name_size + extra_size
        if start + member.stored_size > self._directory_start:
            raise ZipError(f"the member {member.name[:80]!r} running past the end")
        return start

    def _check_overlap(self) -> None:
        """No two members share bytes: a bomb could count the same ones again and again."""
        before = 0
        for member in sorted(self.members.values(), key=lambda m: m.offset):
            if member.offset < before:
                raise ZipError("members that overlap")
            before = self._data_start(member) + member.stored_size


def _wide(extra: memoryview, values: list[int]) -> list[int]:
    """The values, those of 2^32 - 1 taken from the ZIP64 field where there is one."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + size]
        at += 4 + size
        if kind != 1:
            continue
        for index, value in enumerate(values):
            if value == 0xFFFFFFFF:
                if len(field) < 8:
                    raise ZipError("a damaged directory")
                values[index] = struct.unpack_from("<Q", field)[0]
                field = field[8:]
    return values


def _inflated(raw: memoryview, name: str) -> Iterator[memoryview]:
    inflater = zlib.decompressobj(-15)
    at = 0
    pending = b""
    try:
        while not inflater.eof:
            if not pending:
                pending = raw[at : at + PIECE]
                at += len(pending)
                if not pending:
                    raise ZipError(f"the member {name[:80]!r} cut off")
            piece = inflater.decompress(pending, PIECE)
            pending = inflater.unconsumed_tail
            if piece:
                yield memoryview(piece)
    except zlib.error:
        raise ZipError(f"damaged bytes in {name[:80]!r}") from None
