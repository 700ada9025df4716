"""A safe pickle reader, which can only build dictionaries of arrays.

AlexNet's weights are often distributed as NumPy object arrays and torch files, which are pickles,
and Python's own reader can run arbitrary code from them. This one is a small stack machine:
`pickletools` describes the opcodes, and `Unpickler.execute` implements those that a dictionary of
arrays needs, in protocols 0 to 5, and rejects the others. Names in the file become members of an
enumeration, and "calling" one of them fills in a record. Nothing named in the file is imported or
called.

Memory and time are bounded by the size of the file: every length is checked against the remaining
bytes, large byte strings are views, and `MAX_STEPS` limits opcodes, stack, memo and containers.
"""

from __future__ import annotations

import codecs
import math
import pickletools
import re
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import chain
from types import MappingProxyType

import numpy as np

COMMENT = "tf_alexnet:"
MAX_STEPS = 20_000  # a dictionary of eight layers takes about 500
MAX_NAME = 256
MAX_TEXT = 1 << 16
MAX_RANK = 4
DECODED = 1 << 20  # bytes of a long text to decode at a time
# Opcodes that push their argument.
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}


class PickleError(Exception):
    """The stream is damaged, or contains more than a dictionary of arrays."""


class Name(Enum):
    """The names that a file may refer to; nothing is imported for them."""

    RECONSTRUCT = "numpy.core.multiarray._reconstruct"
    FROMBUFFER = "numpy.core.numeric._frombuffer"
    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    ENCODE = "_codecs.encode"
    BYTEARRAY = "builtins.bytearray"
    ORDERED_DICT = "collections.OrderedDict"


class LongText:
    """Text too long for a name: bytes that protocols 0 to 2 write as Latin-1 characters."""

    def __init__(self, raw: memoryview, encoding: str):
        self.raw, self.encoding = raw, encoding

    @cached_property
    def latin1(self) -> memoryview:
        """The bytes; decoded once and cached."""
        starts = range(0, len(self.raw), DECODED)
        pieces = (bytes(self.raw[start : start + DECODED]) for start in starts)
        out = bytearray()
        for text in codecs.iterdecode(pieces, self.encoding):
            out += text.encode("latin-1")
        return memoryview(out).toreadonly()


@dataclass
class PickledDtype:
    """A dtype as described by the stream."""

    code: str
    order: str = ""

    def __post_init__(self):
        self.order = self.code[0] if self.code[:1] in ("<", ">", "|", "=") else "<"
        self.code = self.code.lstrip("<>|=")

    @property
    def is_object(self) -> bool:
        """Whether it is an object dtype."""
        return self.code in ("O", "O4", "O8")


@dataclass
class PickledArray:
    """An array as described by the stream; it is checked when `array` is called."""

    data: memoryview | list | None = None
    dtype: PickledDtype | None = None
    shape: tuple | None = None
    order: str = "C"
    axes: tuple | None = None

    def array(self) -> np.ndarray:
        """A view of the file's bytes as float16, float32 or float64, of rank 1 to 4.

        Raises
        ------
        PickleError
            If dtype, shape and number of bytes are not those of such an array.
        """
        require(isinstance(self.dtype, PickledDtype), "an array without a dtype")
        code = self.dtype.code
        require(code in ("f2", "f4", "f8"), f"an array of dtype {code[:20]!r} instead of floats")
        require(isinstance(self.data, memoryview), "an array without bytes")
        shape = self.shape
        require(
            isinstance(shape, tuple) and 1 <= len(shape) <= MAX_RANK, "an array of invalid rank"
        )
        require(all(type(n) is int and n > 0 for n in shape), "an array of invalid shape")
        dtype = np.dtype((">" if self.dtype.order == ">" else "<") + code)
        if math.prod(shape) * dtype.itemsize != len(self.data):
            raise PickleError(f"an array of shape {shape} with {len(self.data)} bytes")
        flat = np.frombuffer(self.data, dtype)
        if self.axes is None:
            return flat.reshape(shape, order=self.order)
        are_axes = all(type(n) is int for n in self.axes)
        require(
            are_axes and sorted(self.axes) == [*range(len(shape))], "an array with invalid axes"
        )
        return flat.reshape(shape).transpose(self.axes)


def require(condition: bool, fault: str) -> None:
    """Raise a PickleError unless `condition` holds."""
    if not condition:
        raise PickleError(fault)


def as_text(value: object) -> str:
    """`value` as a short text; Python 2 wrote texts as bytes."""
    if isinstance(value, memoryview) and len(value) <= MAX_NAME:
        return str(value, "latin-1")
    require(type(value) is str and len(value) <= MAX_NAME, "something else where a name belongs")
    return value


class Unpickler:
    """Reads pickles of plain values and dictionaries. Subclasses add what their files need.

    Parameters
    ----------
    data : bytes
        The whole file. Byte strings in results are views of it.
    at : int
        Offset of the first pickle.

    Attributes
    ----------
    at : int
        Offset after the last pickle read.
    comment : str or None
        The text that `tf_alexnet` writes after the header, without its prefix.
    names : mapping
        Dotted name that a file may refer to -> the object that represents it.
    """

    names: Mapping[str, object] = MappingProxyType({Name.ORDERED_DICT.value: Name.ORDERED_DICT})

    def __init__(self, data: bytes, at: int = 0):
        self.data, self.view, self.at = data, memoryview(data), at
        self.comment: str | None = None

    def load(self) -> object:
        """Read the next pickle.

        Returns
        -------
        object
            Dictionaries, lists, tuples, text, numbers and None; byte strings as memoryviews; and
            the subclass's records.

        Raises
        ------
        PickleError
            If the stream is truncated, damaged, or contains anything but dictionaries of arrays.
            The message completes the sentence "it holds ...".
        """
        self.steps, self.stack, self.marks, self.memo = 0, [], [0], {}
        try:
            while True:
                code = self.read(1)[0]
                self.spend(1)
                opcode = pickletools.code2op.get(chr(code))
                require(opcode is not None, f"the unknown opcode {code}")
                operands = self.popped(opcode.stack_before) + self.arguments(opcode.arg)
                if opcode.name == "STOP":
                    require(not self.stack and len(self.marks) == 1, "values left over at its end")
                    return operands[0]
                self.execute(opcode.name, operands)
        except UnicodeError:
            raise PickleError("text in a broken encoding") from None

    # Methods that subclasses extend

    def key(self, value: object) -> Hashable:
        """`value` as the key of a dictionary."""
        return as_text(value)

    def call(self, name: object, *arguments: object) -> object:
        """The object that represents the result of calling `name`."""
        match [name, *arguments]:
            case [Name.ORDERED_DICT]:
                return {}
            case [Name.ORDERED_DICT, list() as pairs]:
                self.spend(len(pairs))
                are_pairs = all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs)
                require(are_pairs, "an entry that is not a pair")
                return self.filled({}, list(chain.from_iterable(pairs)))
        raise PickleError("a call that weights don't need")

    def build(self, target: object, state: object) -> None:
        """Fill in a record."""
        raise PickleError("a state that weights don't need")

    def persistent(self, identity: object) -> object:
        """The object that represents something outside the stream."""
        raise PickleError("a reference to something outside it")

    # Opcodes

    def execute(self, name: str, operands: list) -> None:
        """Execute an opcode on values popped from the stack and its arguments."""
        push = self.stack.append
        match [name, *operands]:
            case ["PROTO", protocol]:
                require(protocol <= 5, "an unknown protocol")
            case ["FRAME", size]:
                require(size <= len(self.view) - self.at, "a frame that runs past the end")
            case ["MARK"]:
                self.marks.append(len(self.stack))
            case ["POP", str() as text] if text.startswith(COMMENT) and not self.stack:
                self.comment = text.removeprefix(COMMENT)
            case ["POP", _] | ["POP_MARK", *_]:
                pass
            case ["PUT" | "BINPUT" | "LONG_BINPUT", index]:
                require(0 <= index < MAX_STEPS, "a memo index that is too large")
                (value,) = self.popped([pickletools.anyobject])
                self.memo[index] = value
                push(value)
            case ["MEMOIZE", value]:
                self.memo[len(self.memo)] = value
                push(value)
            case ["GET" | "BINGET" | "LONG_BINGET", index]:
                require(index in self.memo, "a reference to nothing")
                push(self.memo[index])
            case ["NONE"]:
                push(None)
            case ["NEWTRUE" | "NEWFALSE"]:
                push(name == "NEWTRUE")
            case ["EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "TUPLE", *items]:
                push(tuple(items))
            case ["EMPTY_LIST" | "LIST", *items]:
                push(items)
            case ["EMPTY_DICT" | "DICT", *items]:
                push(self.filled({}, items))
            case ["APPEND" | "APPENDS", list() as target, *items]:
                target.extend(items)
                push(target)
            case ["SETITEM" | "SETITEMS", dict() as target, *items]:
                push(self.filled(target, items))
            case ["GLOBAL" | "STACK_GLOBAL", module, attribute]:
                dotted = f"{as_text(module)}.{as_text(attribute)}"
                require(dotted in self.names, f"a reference to {dotted}")
                push(self.names[dotted])
            case ["BINPERSID", identity]:
                push(self.persistent(identity))
            case ["REDUCE", function, tuple() as arguments] if len(arguments) < 9:
                push(self.call(function, *arguments))
            case ["BUILD", target, state]:
                self.build(target, state)
                push(target)
            case [_, value] if name in _VALUES:
                push(value)
            case _:
                raise PickleError(f"an unexpected opcode {name}")

    def filled(self, target: dict, items: list) -> dict:
        """Add alternating keys and values to `target`."""
        require(len(items) % 2 == 0, "a key without a value")
        self.spend(len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            name = self.key(key)
            require(name not in target, f"the key {name!r} twice")
            target[name] = value
        return target

    def spend(self, steps: int) -> None:
        self.steps += steps
        require(self.steps <= MAX_STEPS, f"more than {MAX_STEPS} steps")

    def popped(self, kinds: list) -> list:
        """Pop the values that an opcode takes from the stack, described by `pickletools`."""
        start = len(self.stack)
        if pickletools.stackslice in kinds:  # everything above a mark
            require(len(self.marks) > 1, "no mark on the stack")
            start, kinds = self.marks.pop(), kinds[:-2]
        start -= len(kinds)
        require(start >= self.marks[-1], "too few values on the stack")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def arguments(self, kind: pickletools.ArgumentDescriptor | None) -> list:
        """Read the arguments of an opcode. `pickletools` decodes numbers."""
        if kind is None:
            return []
        if sized := re.fullmatch("(string|bytes|bytearray|unicodestring)([148])", kind.name):
            size = int.from_bytes(self.read(int(sized[2])), "little")
            raw = self.read(size)
            return [decoded(raw, "utf-8") if sized[1] == "unicodestring" else raw]
        match kind.name:
            case "stringnl":
                return [unquoted(self.line())]
            case "stringnl_noescape_pair":
                return [self.line(), self.line()]
            case "unicodestringnl":
                return [decoded(self.line(), "raw-unicode-escape")]
        try:
            number = kind.reader(self)
        except ValueError:
            raise PickleError("an invalid argument") from None
        large = isinstance(number, int) and abs(number) >= 1 << 64
        require(not large, "an integer of more than 64 bits")
        return [number]

    def read(self, size: int) -> memoryview:
        require(0 <= size <= len(self.view) - self.at, "a value that runs past the end")
        self.at += size
        return self.view[self.at - size : self.at]

    def line(self) -> memoryview:
        end = self.data.find(b"\n", self.at)
        require(end >= 0, "a line that runs past the end")
        return self.read(end + 1 - self.at)[:-1]

    def readline(self) -> bytes:
        """A short line, for `pickletools`."""
        line = self.line()
        require(len(line) <= MAX_NAME, "an invalid argument")
        return bytes(line) + b"\n"


def decoded(raw: memoryview, encoding: str) -> str | LongText:
    """`raw` as text; long texts are decoded later."""
    return str(raw, encoding) if len(raw) <= MAX_TEXT else LongText(raw, encoding)


def unquoted(line: memoryview) -> memoryview:
    """The bytes in a quoted string, as written by Python 2."""
    quoted = len(line) >= 2 and line[0] == line[-1] and line[0] in b"'\""
    require(quoted, "a string without quotes")
    with warnings.catch_warnings():  # unknown escapes are kept, as in Python 2
        warnings.simplefilter("ignore")
        try:
            return memoryview(codecs.escape_decode(line[1:-1])[0])
        except ValueError:
            raise PickleError("a string with broken escapes") from None


class NumpyUnpickler(Unpickler):
    """Reads dictionaries of NumPy arrays, as views of the file."""

    names = MappingProxyType(
        {name.value: name for name in Name}
        | {name.value.replace("numpy.core", "numpy._core"): name for name in Name}
        | {"__builtin__.bytearray": Name.BYTEARRAY}
    )

    def call(self, name, *arguments):
        """Record of an array or dtype, bytes for encoded text, or a dict."""
        match [name, *arguments]:
            case [Name.RECONSTRUCT, Name.NDARRAY, tuple(), _]:
                return PickledArray()
            case (
                [Name.FROMBUFFER, memoryview(), PickledDtype(), _, "C" | "F"]
                | [Name.FROMBUFFER, memoryview(), PickledDtype(), _, "C" | "F", None]
                | [Name.FROMBUFFER, memoryview(), PickledDtype(), _, "K", tuple()]
            ):
                return PickledArray(*arguments)
            case [Name.DTYPE, code, *_]:
                return PickledDtype(as_text(code))
            case [Name.ENCODE, str() as text, "latin1"]:
                return memoryview(text.encode("latin-1"))
            case [Name.ENCODE, LongText() as text, "latin1"]:
                return text.latin1
            case [Name.BYTEARRAY, memoryview() as data]:
                return data
        return super().call(name, *arguments)

    def build(self, target, state):
        """Set the state of a dtype or an array."""
        require(isinstance(state, tuple) and len(state) < 10, "an invalid state")
        match target, *state:
            case [PickledDtype(), 3 | 4, order, None, None, None, -1, -1, int()]:
                target.order = as_text(order)
                require(target.order in ("<", ">", "|", "="), "an unknown byte order")
            case [PickledArray(), 0 | 1, shape, PickledDtype() as dtype, fortran, data]:
                data_fits = isinstance(data, list if dtype.is_object else memoryview)
                require(data_fits, "an array with invalid contents")
                target.shape, target.dtype, target.data = shape, dtype, data
                target.order = "F" if fortran else "C"
            case _:
                super().build(target, state)
