"""A pickle reader that can only build dictionaries of arrays.

AlexNet's weights travel as NumPy object arrays and torch files, that is as pickles, and Python's
own reader runs whatever such a file asks for. This one is a small stack machine over the file's
bytes: it knows the opcodes that a dictionary of arrays needs, in protocols 0 to 5, and refuses the
others. Names that the file refers to become members of an enumeration, and "calling" one of them
fills in a record.
Nothing named in the file is imported or called, and nothing is looked up outside the `Dialect`
that the kind of file speaks.

Memory and time are bounded by the file's own size: every length is checked against the bytes that
are left, large byte strings are views, and `MAX_STEPS` caps opcodes, stack, memo and containers.

The opcodes are described in the comments of CPython's ``Lib/pickletools.py``.
"""

from __future__ import annotations

import codecs
import math
import struct
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

COMMENT = "tf_alexnet:"
MAX_STEPS = 20_000  # a dictionary of eight layers takes about 500
MAX_NAME = 256
MAX_TEXT = 1 << 16
MAX_RANK = 4


class PickleError(Exception):
    """The stream is damaged, or asks for more than a dictionary of arrays."""


class Pickled(NamedTuple):
    """What a stream held.

    Attributes
    ----------
    value : object
        dict, list, tuple, str, int, bool, None, memoryview, or one of this module's records.
    comment : str or None
        The text that `tf_alexnet` leaves behind the header, without its prefix.
    end : int
        Offset of the first byte after the stream.
    """

    value: object
    comment: str | None
    end: int


class Name(Enum):
    """The names a file may refer to. They stand for themselves and do nothing."""

    RECONSTRUCT = "_reconstruct"
    FROMBUFFER = "_frombuffer"
    NDARRAY = "ndarray"
    DTYPE = "dtype"
    ENCODE = "encode"
    BYTEARRAY = "bytearray"
    ORDERED_DICT = "OrderedDict"


NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): Name.RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): Name.RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): Name.FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): Name.FROMBUFFER,
    ("numpy", "ndarray"): Name.NDARRAY,
    ("numpy", "dtype"): Name.DTYPE,
    ("_codecs", "encode"): Name.ENCODE,
    ("builtins", "bytearray"): Name.BYTEARRAY,
    ("__builtin__", "bytearray"): Name.BYTEARRAY,
    ("collections", "OrderedDict"): Name.ORDERED_DICT,
}


class LongText:
    """Text too long for a name: bytes that protocols 0 to 2 wrote as Latin-1 characters."""

    def __init__(self, raw: memoryview, encoding: str):
        self.raw, self.encoding = raw, encoding
        self._bytes: memoryview | None = None

    def latin1(self) -> memoryview:
        """The bytes, decoded once however often the stream asks."""
        if self._bytes is None:
            decoder = codecs.getincrementaldecoder(self.encoding)("strict")
            out = bytearray()
            for start in range(0, len(self.raw), 1 << 20):
                piece = self.raw[start : start + (1 << 20)]
                out += decoder.decode(bytes(piece)).encode("latin-1")
            out += decoder.decode(b"", final=True).encode("latin-1")
            self._bytes = memoryview(out).toreadonly()
        return self._bytes


@dataclass
class PickledDtype:
    """A dtype as the stream spells it."""

    code: str
    order: str = ""

    def __post_init__(self):
        self.order = self.code[0] if self.code[:1] in ("<", ">", "|", "=") else "<"
        self.code = self.code.lstrip("<>|=")

    @property
    def is_object(self) -> bool:
        """Whether it stands for an array of Python objects."""
        return self.code in ("O", "O4", "O8")


@dataclass
class PickledArray:
    """An array as the stream describes it; nothing is believed until `array` is called."""

    shape: tuple | None = None
    dtype: PickledDtype | None = None
    order: str = "C"
    axes: tuple | None = None
    data: memoryview | list | None = None

    def array(self) -> np.ndarray:
        """A view of the file's bytes, float16, float32 or float64, rank 1 to 4.

        Raises
        ------
        PickleError
            If dtype, shape and number of bytes do not describe such an array.
        """
        require(isinstance(self.dtype, PickledDtype), "an array without a dtype")
        code = self.dtype.code
        require(code in ("f2", "f4", "f8"), f"an array of dtype {code[:20]!r} instead of floats")
        require(isinstance(self.data, memoryview), "an array without bytes")
        shape = self.shape
        require(isinstance(shape, tuple) and 1 <= len(shape) <= MAX_RANK, "an array of odd rank")
        require(all(type(n) is int and n > 0 for n in shape), "an array of odd shape")
        dtype = np.dtype((">" if self.dtype.order == ">" else "<") + code)
        if math.prod(shape) * dtype.itemsize != len(self.data):
            raise PickleError(f"an array of shape {shape} with {len(self.data)} bytes")
        flat = np.frombuffer(self.data, dtype)
        if self.axes is None:
            return flat.reshape(shape, order=self.order)
        require(
            all(type(n) is int for n in self.axes) and sorted(self.axes) == list(range(len(shape))),
            "an array with odd axes",
        )
        return flat.reshape(shape).transpose(self.axes)


def require(condition: bool, fault: str) -> None:
    """Refuse the stream with `fault` unless `condition` holds."""
    if not condition:
        raise PickleError(fault)


def as_text(value: object) -> str:
    """A short text, which Python 2 wrote as bytes."""
    if isinstance(value, memoryview) and len(value) <= MAX_NAME:
        return str(value, "latin-1")
    require(type(value) is str and len(value) <= MAX_NAME, "something else where a name belongs")
    return value


def buffer_order(order: object = "C", axes: object = None, *more: object) -> tuple:
    """The memory order that ``_frombuffer`` was given, and the axes that follow the order "K"."""
    order = as_text(order)
    require(order in (("C", "F") if axes is None else ("K",)) and not more, "an odd array order")
    require(axes is None or isinstance(axes, tuple), "an array with odd axes")
    return order, axes


class Dialect:
    """What one kind of file may say beyond plain values. This one may say nothing.

    Attributes
    ----------
    names : mapping
        (module, name) -> the token that stands for it.
    """

    names: Mapping[tuple[str, str], Enum] = MappingProxyType({})

    def key(self, value: object) -> Hashable:
        """`value` as a dictionary's key."""
        return as_text(value)

    def call(self, machine: _Machine, name: object, *arguments: object) -> object:
        """What stands for the result of calling `name`."""
        raise PickleError("a call that no weights need")

    def build(self, target: object, state: object) -> None:
        """Fill in a record."""
        raise PickleError("a state that no weights need")

    def persistent(self, identity: object) -> object:
        """What stands for something outside the stream."""
        raise PickleError("a reference to something outside of it")


class NumpyDialect(Dialect):
    """Dictionaries of NumPy arrays."""

    names = NAMES

    def call(self, machine, name, *arguments):
        """A record for an array or a dtype; bytes for encoded text; a dict."""
        match name, *arguments:
            case [Name.RECONSTRUCT, Name.NDARRAY, tuple(), _]:
                return PickledArray()
            case [Name.FROMBUFFER, memoryview() as data, PickledDtype() as dtype, shape, *rest]:
                return PickledArray(shape, dtype, *buffer_order(*rest), data)
            case [Name.DTYPE, code, *_]:
                return PickledDtype(as_text(code))
            case [Name.ENCODE, str() as text, "latin1"]:
                return memoryview(text.encode("latin-1"))
            case [Name.ENCODE, LongText() as text, "latin1"]:
                return text.latin1()
            case [Name.BYTEARRAY, memoryview() as data]:
                return data
            case [Name.ORDERED_DICT, *pairs]:
                return machine.ordered_dict(*pairs)
        return super().call(machine, name, *arguments)

    def build(self, target, state):
        """The state of a dtype or an array."""
        require(isinstance(state, tuple) and len(state) < 10, "an odd state")
        match target, *state:
            case [PickledDtype(), 3 | 4, order, None, None, None, -1, -1, int()]:
                target.order = as_text(order)
                require(target.order in ("<", ">", "|", "="), "an unknown byte order")
            case [PickledArray(), 0 | 1, shape, PickledDtype() as dtype, fortran, data]:
                data_fits = isinstance(data, list if dtype.is_object else memoryview)
                require(data_fits, "an array with odd contents")
                target.shape, target.dtype, target.data = shape, dtype, data
                target.order = "F" if fortran else "C"
            case _:
                super().build(target, state)


_OPCODES: dict[int, Callable[[_Machine], None]] = {}
_MARK = object()


def _opcode(codes: bytes):
    """Enter a method of `_Machine` into the table of opcodes."""

    def enter(method):
        _OPCODES.update(dict.fromkeys(codes, method))
        return method

    return enter


class _Machine:
    """Stack, memo and position in one stream. `code` is the opcode at work."""

    def __init__(self, data: bytes, start: int, dialect: Dialect):
        self.data, self.view, self.dialect = data, memoryview(data), dialect
        self.at, self.steps, self.code = start, 0, 0
        self.stack: list = []
        self.memo: dict[int, object] = {}
        self.comment: str | None = None

    def run(self) -> Pickled:
        while True:
            self.code = self.take(1)[0]
            self.spend(1)
            if self.code == ord("."):
                value = self.pop()
                require(not self.stack, "values left over at its end")
                return Pickled(value, self.comment, self.at)
            method = _OPCODES.get(self.code)
            require(method is not None, f"opcode {bytes([self.code])!r}, which no weights need")
            method(self)

    def spend(self, steps: int) -> None:
        self.steps += steps
        require(self.steps <= MAX_STEPS, f"more than {MAX_STEPS} steps")

    def take(self, size: int) -> memoryview:
        require(0 <= size <= len(self.view) - self.at, "a value that runs past the end")
        self.at += size
        return self.view[self.at - size : self.at]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> memoryview:
        end = self.data.find(b"\n", self.at)
        require(end >= 0, "a line that runs past the end")
        line = self.take(end - self.at)
        self.at += 1
        return line

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        require(bool(self.stack) and self.stack[-1] is not _MARK, "too few values on the stack")
        return self.stack.pop()

    def top(self, kind: type) -> object:
        require(bool(self.stack) and isinstance(self.stack[-1], kind), "a misplaced container")
        return self.stack[-1]

    def pop_mark(self) -> list:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise PickleError("no mark on the stack")

    # Stream and stack

    @_opcode(b"\x80")
    def proto(self):
        require(self.take(1)[0] <= 5, "an unknown protocol")

    @_opcode(b"\x95")
    def frame(self):
        size = self.number("<Q")
        require(size <= len(self.view) - self.at, "a frame that runs past the end")

    @_opcode(b"(")
    def mark(self):
        self.push(_MARK)

    @_opcode(b"0")
    def pop_value(self):
        value = self.pop()
        if type(value) is str and value.startswith(COMMENT) and not self.stack:
            self.comment = value[len(COMMENT) :]

    @_opcode(b"1")
    def pop_to_mark(self):
        self.pop_mark()

    # Memo

    @_opcode(b"p")
    def put(self):
        self.store(self.decimal())

    @_opcode(b"q")
    def binput(self):
        self.store(self.number("<B"))

    @_opcode(b"r")
    def long_binput(self):
        self.store(self.number("<I"))

    @_opcode(b"\x94")
    def memoize(self):
        self.store(len(self.memo))

    @_opcode(b"g")
    def get(self):
        self.recall(self.decimal())

    @_opcode(b"h")
    def binget(self):
        self.recall(self.number("<B"))

    @_opcode(b"j")
    def long_binget(self):
        self.recall(self.number("<I"))

    def store(self, index: int) -> None:
        require(0 <= index < MAX_STEPS, "a memo index out of all proportion")
        value = self.pop()
        self.push(value)
        self.memo[index] = value

    def recall(self, index: int) -> None:
        require(index in self.memo, "a reference to nothing")
        self.push(self.memo[index])

    # Numbers

    def decimal(self) -> int:
        digits = bytes(self.line()).rstrip(b"L")
        require(digits.lstrip(b"-").isdigit() and len(digits) <= 20, "an odd number")
        try:
            return int(digits)
        except ValueError:
            raise PickleError("an odd number") from None

    @_opcode(b"N\x88\x89")
    def constant(self):
        self.push({ord("N"): None, 0x88: True, 0x89: False}[self.code])

    @_opcode(b"I")
    def int_line(self):
        is_bool = bytes(self.view[self.at : self.at + 3]) in (b"00\n", b"01\n")
        value = self.decimal()
        self.push(bool(value) if is_bool else value)

    @_opcode(b"L")
    def long_line(self):
        self.push(self.decimal())

    @_opcode(b"JKM")
    def binint(self):
        self.push(self.number({ord("J"): "<i", ord("K"): "<B", ord("M"): "<H"}[self.code]))

    @_opcode(b"\x8a\x8b")
    def long(self):
        size = self.number("<B" if self.code == 0x8A else "<i")
        require(size <= 9, "an integer out of all proportion")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    @_opcode(b"G")
    def binfloat(self):
        self.push(self.number(">d"))

    # Bytes and text

    @_opcode(b"UTCB\x8e\x96")
    def binary(self):
        sizes = {ord("U"): "<B", ord("C"): "<B", ord("T"): "<i", ord("B"): "<I"}
        self.push(self.take(self.number(sizes.get(self.code, "<Q"))))

    @_opcode(b"S")
    def string_line(self):
        line = self.line()
        quoted = len(line) >= 2 and line[0] == line[-1] and line[0] in b"'\""
        require(quoted, "a string without quotes")
        with warnings.catch_warnings():  # unknown escapes are kept as they are, as Python 2 did
            warnings.simplefilter("ignore")
            try:
                text = codecs.escape_decode(line[1:-1])[0]
            except ValueError:
                raise PickleError("a string with broken escapes") from None
        self.push(memoryview(text))

    @_opcode(b"\x8cX\x8d")
    def binunicode(self):
        size = self.number({0x8C: "<B", ord("X"): "<I", 0x8D: "<Q"}[self.code])
        self.push_text(self.take(size), "utf-8")

    @_opcode(b"V")
    def unicode_line(self):
        self.push_text(self.line(), "raw-unicode-escape")

    def push_text(self, raw: memoryview, encoding: str) -> None:
        short = len(raw) <= MAX_TEXT
        self.push(codecs.decode(raw, encoding) if short else LongText(raw, encoding))

    # Containers

    @_opcode(b"}])")
    def empty(self):
        self.push({ord("}"): dict, ord("]"): list, ord(")"): tuple}[self.code]())

    @_opcode(b"ltd")
    def gather(self):
        items = self.pop_mark()
        if self.code == ord("l"):
            self.push(items)
        elif self.code == ord("t"):
            self.push(tuple(items))
        else:
            self.push({})
            self.fill(items)

    @_opcode(b"\x85\x86\x87")
    def short_tuple(self):
        items = [self.pop() for _ in range(self.code - 0x84)]
        self.push(tuple(reversed(items)))

    @_opcode(b"a")
    def append(self):
        value = self.pop()
        self.top(list).append(value)

    @_opcode(b"e")
    def appends(self):
        items = self.pop_mark()
        self.top(list).extend(items)

    @_opcode(b"s")
    def setitem(self):
        value, key = self.pop(), self.pop()
        self.fill([key, value])

    @_opcode(b"u")
    def setitems(self):
        self.fill(self.pop_mark())

    def fill(self, items: list) -> None:
        """Enter keys and values into the dictionary on top of the stack."""
        target = self.top(dict)
        require(len(items) % 2 == 0, "a key without a value")
        self.spend(len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            name = self.dialect.key(key)
            require(name not in target, f"{name!r} twice")
            target[name] = value

    # Names, and what is done with them

    @_opcode(b"c")
    def global_lines(self):
        self.refer(self.line(), self.line())

    @_opcode(b"\x93")
    def stack_global(self):
        name, module = self.pop(), self.pop()
        self.refer(module, name)

    def refer(self, module: object, name: object) -> None:
        module, name = as_text(module), as_text(name)
        require((module, name) in self.dialect.names, f"a reference to {module}.{name}")
        self.push(self.dialect.names[module, name])

    @_opcode(b"Q")
    def binpersid(self):
        self.push(self.dialect.persistent(self.pop()))

    @_opcode(b"R")
    def reduce(self):
        arguments, name = self.pop(), self.pop()
        require(isinstance(arguments, tuple) and len(arguments) < 9, "a call with odd arguments")
        self.push(self.dialect.call(self, name, *arguments))

    def ordered_dict(self, *pairs: object) -> dict:
        """A dictionary, empty or of one list of (key, value) pairs."""
        require(all(isinstance(x, list) for x in pairs) and len(pairs) < 2, "an odd dictionary")
        self.push({})
        self.fill([part for found in pairs for pair in found for part in self.pair(pair)])
        return self.pop()

    def pair(self, value: object) -> list:
        self.spend(1)
        require(type(value) in (list, tuple) and len(value) == 2, "an entry that is no pair")
        return list(value)

    @_opcode(b"b")
    def build(self):
        state = self.pop()
        self.dialect.build(self.top(object), state)


def load(data: bytes, start: int = 0, dialect: Dialect | None = None) -> Pickled:
    """Read one pickle out of `data`, beginning at byte `start`; by default one of NumPy arrays.

    Byte strings and arrays of the result are views of `data`.

    Raises
    ------
    PickleError
        If the stream is cut off, damaged, or asks for anything but dictionaries of arrays. The
        message completes the sentence "it holds ...".
    """
    try:
        return _Machine(data, start, dialect or NumpyDialect()).run()
    except UnicodeError:
        raise PickleError("text in a broken encoding") from None
