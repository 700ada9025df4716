"""Hostile weight files: refused in one line, at once, in little memory, with nothing run."""

import json
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from weight_seeds import (
    as_dictionary,
    message,
    npy_header,
    python2_pickle,
    python2_text_pickle,
    small_arrays,
    varint,
)

from tf_alexnet.errors import WeightsError
from tf_alexnet.weights.formats import caffemodel, npy, read_file, safetensors_file

ARRAYS = small_arrays()
BLANK = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
F4 = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x89\x88tR"


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def layer(kernel):
    """A dictionary with one layer, around a kernel."""
    return b"\x80\x04}" + text("fc8") + b"](" + kernel + BLANK + b"es."


def array(shape, data, dtype=F4):
    return BLANK + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


def integer(value):
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw


CODE = {
    "GLOBAL": b"\x80\x02cos\nsystem\n(X\x15\x00\x00\x00echo > MARKER_OF_ATTACKtR.",
    "posix": b"cposix\nsystem\n(S'echo > MARKER_OF_ATTACK'\ntR.",
    "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93"
    + text("echo > MARKER_OF_ATTACK") + b"\x85R.",
    "eval": b"c__builtin__\neval\n(S'open(\"MARKER_OF_ATTACK\", \"w\")'\ntR.",
    "getattr": b"\x80\x02cbuiltins\ngetattr\n.",
    "import": b"cantigravity\nfly\n.",
    "dotted": b"\x80\x04" + text("numpy") + text("ndarray.tofile") + b"\x93.",
    "numpy eval": b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
    "numpy load": b"cnumpy\nload\n(S'MARKER_OF_ATTACK'\ntR.",
    "numpy memmap": b"cnumpy\nmemmap\n(S'MARKER_OF_ATTACK'\ntR.",
    "INST": b"(S'echo > MARKER_OF_ATTACK'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'echo > MARKER_OF_ATTACK'\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04" + text("os") + text("system") + b"\x93)}\x92.",
    "NEWOBJ of ndarray": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pfile\n.",
    "BINPERSID": b"\x80\x02" + text("file") + b"Q.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05\x97\x98.",
    "call of ndarray": b"\x80\x04cnumpy\nndarray\n(K\x01tR.",
    "call of a string": b"\x80\x04" + text("os") + text("x") + b"\x85R.",
    "call of an array": b"\x80\x04" + BLANK + b")R.",
    "subtype of ndarray": BLANK.replace(b"numpy\nndarray", b"numpy\nmatrix") + b".",
    "BUILD on a name": b"\x80\x04cnumpy\nndarray\n}" + text("__setstate__") + text("x") + b"sb.",
    "BUILD on a dict": b"\x80\x04}}" + text("__class__") + text("x") + b"sb.",
    "BUILD with slots": b"\x80\x04" + BLANK + b"N}" + text("data") + text("x") + b"s\x86b.",
    "codec": b"c_codecs\nencode\n(V" + b"x\nVzlib\ntR.",
    "codecs.open": b"ccodecs\nopen\n(S'MARKER_OF_ATTACK'\nS'w'\ntR.",
    "bytearray of 1 TB": b"\x80\x04cbuiltins\nbytearray\n" + integer(1 << 40) + b"\x85R.",
    "copyreg": b"ccopy_reg\n_reconstructor\n.",
}  # fmt: skip

SIZES = {
    "LONG_BINPUT 2^28": b"\x80\x02Nr" + struct.pack("<I", 1 << 28) + b".",
    "LONG_BINPUT 2^30": b"\x80\x02]r" + struct.pack("<I", 1 << 30) + b".",
    "PUT 10^18": b"]p1" + b"0" * 18 + b"\n.",
    "PUT -1": b"]p-1\n.",
    "PUT of 10^6 digits": b"]p" + b"9" * 10**6 + b"\n.",
    "LONG of 10^6 digits": b"L" + b"9" * 10**6 + b"L\n.",
    "LONG4 of 1 MB": b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\xff" * (1 << 20) + b".",
    "LONG4 negative": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"\xff" * 9 + b".",
    "BINSTRING negative": b"\x80\x02T" + struct.pack("<i", -1) + b"xx.",
    "BINSTRING 2^31": b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"xx.",
    "BINBYTES 2^32": b"\x80\x03B\xff\xff\xff\xffxx.",
    "BINBYTES8 2^63": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 63) + b"xx.",
    "BYTEARRAY8 2^64": b"\x80\x05\x96" + b"\xff" * 8 + b"xx.",
    "BINUNICODE8 2^62": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"xx.",
    "FRAME 2^63": b"\x80\x04\x95" + struct.pack("<Q", 1 << 63) + b"N.",
    "protocol 6": b"\x80\x06N.",
    "tuple doubling": b"\x80\x02K\x00" + b"2\x86" * 40 + b".",
    "tuple doubling by memo": b"\x80\x02K\x00" + b"q\x00h\x00\x86" * 40 + b".",
    "tuple doubling as a key": b"\x80\x02}K\x00" + b"q\x00h\x00\x86" * 40 + b"Ns.",
    "list in itself": b"\x80\x02]q\x00h\x00ah\x00a.",
    "dict in itself": b"\x80\x02}q\x00" + text("fc8") + b"h\x00s.",
    "marks": b"\x80\x02" + b"(" * 10**6 + b".",
    "nested lists": b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    "nested dicts": layer(b"N")[:-1] + b"0" + b"}(" * 10**6,
    "pops": b"\x80\x02" + b"N0" * 10**6 + b"N.",
    "memo bomb": b"\x80\x04]" + b"\x94" * 10**6 + b".",
    "pairs again and again": b"\x80\x02]q\x01(" + b"".join(
        text(str(i)) + b"N\x86" for i in range(3000)
    ) + b"eccollections\nOrderedDict\nq\x020" + b"h\x02h\x01\x85R0" * 4000 + b"N.",
    "bytes encoded again and again": b"\x80\x02X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
    + b"q\x01c_codecs\nencode\nq\x02" + text("latin1") + b"q\x03"
    + b"h\x02h\x01h\x03\x86R" * 3000 + b".",
    "shape 10^6 x 10^6": layer(array(b"J@B\x0f\x00J@B\x0f\x00\x86", b"C\x04abcd")),
    "shape 2^32 x 2^32": layer(array(integer(1 << 32) * 2 + b"\x86", b"C\x00")),
    "shape 2^62 x 4": layer(array(integer(1 << 62) + b"K\x04\x86", b"C\x00")),
    "shape 0 x 2^62": layer(array(b"K\x00" + integer(1 << 62) + b"\x86", b"C\x00")),
    "shape -1 x -1": layer(array(integer(-1) * 2 + b"\x86", b"C\x04abcd")),
    "shape of booleans": layer(array(b"\x88\x88\x86", b"C\x04abcd")),
    "shape of strings": layer(array(text("2") + text("2") + b"\x86", b"C\x10" + bytes(16))),
    "no shape": layer(array(b"N", b"C\x04abcd")),
    "rank 5000": layer(array(b"(" + b"K\x01" * 5000 + b"t", b"C\x04abcd")),
    "object array of data": layer(array(b"K\x01\x85", b"C\x08abcdefgh", F4.replace(b"f4", b"O8"))),
    "list for data": layer(array(b"K\x01\x85", b"]")),
    "structured dtype": layer(array(b"K\x01\x85", b"C\x04abcd", F4.replace(b"f4", b"V4"))),
    "dtype by number": layer(array(b"K\x01\x85", b"C\x04abcd", b"cnumpy\ndtype\nK\x01\x85R")),
    "no dtype": layer(array(b"K\x01\x85", b"C\x04abcd", b"N")),
    "no array": layer(b"N"),
    "array never filled": layer(BLANK),
    "frombuffer past the end": layer(
        b"cnumpy.core.numeric\n_frombuffer\n(C\x04abcd" + F4 + b"K\x02K\x02\x86" + text("C") + b"tR"
    ),
    "frombuffer with odd axes": layer(
        b"cnumpy._core.numeric\n_frombuffer\n(C\x04abcd" + F4 + b"K\x01K\x01\x86" + text("K")
        + b"K\x00K\x00\x86tR"
    ),
    "empty stream": b"\x80\x04.",
    "unknown reference": b"\x80\x04h\x07.",
    "surrogate": b"\x80\x04}" + b"\x8c\x03\xed\xa0\x80" + b"Ns.",
    "newline in a name": b"\x80\x04c" + b"os\nsys\x0btem\n.",
}  # fmt: skip


def refuse(path, memory):
    """Read a hostile file: WeightsError, one line, within a second and `memory` bytes."""
    start = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        read_file(path)
    assert time.perf_counter() - start < 1
    tracemalloc.start()
    with pytest.raises(WeightsError):
        read_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < memory
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000 + len(str(path))
    return str(caught.value)


@pytest.mark.parametrize("name", [*CODE, *SIZES])
def test_hostile_pickles(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    stream = CODE.get(name) or SIZES[name]
    path = tmp_path / "x.npy"
    path.write_bytes(npy_header() + stream)
    assert "it holds" in refuse(path, memory=6e6 + 3 * len(stream))
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def test_the_attacks_would_work_elsewhere(tmp_path, monkeypatch):
    """Two of them in Python's own reader: the streams above are no straw men."""
    monkeypatch.chdir(tmp_path)
    for name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ"):
        if name == "GLOBAL":
            command = b"echo > MARKER_OF_ATTACK"
            stream = b"\x80\x02cos\nsystem\n(U" + bytes([len(command)]) + command + b"tR."
        else:
            stream = CODE[name]
        pickle.loads(stream)
        assert (tmp_path / "MARKER_OF_ATTACK").exists()
        (tmp_path / "MARKER_OF_ATTACK").unlink()


AUDIT = """
import json, os, sys
from tf_alexnet.errors import WeightsError
from tf_alexnet.weights.formats import read_file
good, hostile = json.load(open(sys.argv[1]))
for path in good:
    read_file(path)  # lazy imports (codecs, say) happen here
for path in hostile[:1]:
    try:
        read_file(path)
    except WeightsError:
        pass
events = []
sys.addaudithook(lambda event, args: events.append((event, str(args[0]) if args else "")))
refused = 0
for path in [*good, *hostile]:
    try:
        read_file(path)
    except WeightsError as error:
        refused += 1
found = sorted({(e, a if a not in good and a not in hostile else "PATH") for e, a in events})
print(json.dumps([refused, found]))
"""


def test_nothing_is_run_imported_or_opened(tmp_path):
    """Every event that Python's audit hook reports while good and hostile files are read."""
    good, hostile = [], []
    for index, raw in enumerate(seeds(tmp_path)):
        good.append(str(tmp_path / f"good{index}"))
        (tmp_path / f"good{index}").write_bytes(raw)
    for index, stream in enumerate([*CODE.values(), *SIZES.values()]):
        for raw in (npy_header() + stream, stream):
            hostile.append(str(tmp_path / f"hostile{index}_{len(raw)}"))
            (tmp_path / f"hostile{index}_{len(raw)}").write_bytes(raw)
    listing = tmp_path / "list.json"
    listing.write_text(json.dumps([good, hostile]))
    ran = subprocess.run(
        [sys.executable, "-c", AUDIT, str(listing)], cwd=tmp_path, capture_output=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr.decode()
    refused, events = json.loads(ran.stdout)
    assert refused == len(hostile)
    assert {tuple(x) for x in events if x[0] == "open"} == {("open", "PATH")}
    harmless = {"open", "mmap.__new__", "object.__getattr__", "sys._getframe"}
    assert {x[0] for x in events} <= harmless
    assert not (tmp_path / "MARKER_OF_ATTACK").exists()


BLOBS = {
    "length 2 GiB + 1": message(1, b"net") + b"\x12" + varint((1 << 31) + 1) + b"x" * 100,
    "length 2^63": b"\x12" + varint(1 << 63) + b"x" * 100,
    "length 2^64": b"\x12" + b"\xff" * 9 + b"\x01" + b"x" * 100,
    "groups": b"\x0a\x01n" + b"\x13" * 10_000,
    "many fields": message(1, b"n") + b"\x18\x00" * 10**6,
    "many layers": message(100, b"") * 10**6,
    "many dimensions": message(100, message(7, message(7, b"\x08\x01" * 10**6))),
    "shape 2^62": message(100, message(1, b"c") + message(7, message(7, b"\x08" + varint(1 << 62))
                                                          + message(5, bytes(8)))),
    "shape 2^16 to the 4th": message(
        100, message(1, b"c") + message(7, message(7, message(1, varint(1 << 16) * 4)))
    ),
    "4 GB of one float": message(
        100, message(1, b"c") + message(7, message(7, message(1, varint(1 << 30)))
                                        + message(5, bytes(4)))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*BLOBS, "nesting"])
def test_hostile_caffemodels(tmp_path, name):
    raw = BLOBS.get(name)
    if raw is None:
        raw = b""
        for depth in range(10_000):
            raw = message((2, 1, 6, 7, 100)[depth % 5], raw)
        raw = message(2, raw)
    path = tmp_path / "x.caffemodel"
    path.write_bytes(raw)
    refuse(path, memory=6e6)


def seeds(folder):
    """Good files of every format and form."""
    objects = np.array(None, object)
    objects[()] = as_dictionary(ARRAYS)
    yield npy_header() + python2_pickle(ARRAYS)
    yield npy_header() + python2_text_pickle(ARRAYS)
    for protocol in (0, 2, 3, 4, 5):
        yield npy_header() + pickle.dumps(objects, protocol)
    path = folder / "seed"
    npy.write(ARRAYS, path)
    yield path.read_bytes()
    safetensors_file.write(ARRAYS, path)
    yield path.read_bytes()
    for layers, blobs, packed in (("new", "shaped", True), ("v1", "legacy", False)):
        caffemodel.write(ARRAYS, path, layers, blobs, packed)
        yield path.read_bytes()
    path.unlink()


def mutant(raw, other, dice):
    """One to three accidents: flipped bits, bytes, lengths, cuts, repeats, foreign pieces."""
    raw = bytearray(raw)
    for _ in range(dice.randint(1, 3)):
        # half of the accidents near the front, where the structure is
        at = dice.randrange(min(len(raw), dice.choice((200, len(raw))))) if raw else 0
        piece = dice.randrange(1, 60)
        match dice.randrange(8):
            case 0:
                raw[at : at + 1] = bytes([(raw[at] if raw else 0) ^ 1 << dice.randrange(8)])
            case 1:
                raw[at : at + 1] = bytes([dice.randrange(256)])
            case 2:
                del raw[at:]
            case 3:
                del raw[at : at + piece]
            case 4:
                raw[at:at] = raw[at : at + piece]
            case 5:
                start = dice.randrange(len(other))
                raw[at:at] = other[start : start + piece]
            case 6:
                form, size = dice.choice((("<I", 32), ("<Q", 64), ("<H", 16)))
                number = dice.choice((0, 1, 2**31 - 1, 2**31, 2**28, 2**size - 1)) % 2**size
                raw[at : at + size // 8] = struct.pack(form, number)
            case 7:
                raw[at : at + 1] = dice.choice(pickletools.opcodes).code.encode("latin-1")
    return bytes(raw)


@pytest.mark.parametrize("lot", range(4))
def test_mutants_are_read_or_refused(tmp_path, lot):
    """1,600 seeded accidents: arrays of float32, or a WeightsError of one line; nothing else."""
    dice = random.Random(lot)
    pool = list(seeds(tmp_path))
    path = tmp_path / "mutant"
    read, refusals = 0, []
    for index in range(400):
        raw = mutant(pool[index % len(pool)], dice.choice(pool), dice)
        path.write_bytes(raw)
        start = time.perf_counter()
        try:
            found = read_file(path)
        except WeightsError as error:
            refusals.append(str(error))
        else:
            read += 1
            for pair in found.layers.values():
                assert all(a.dtype == np.float32 and a.size for a in pair)
        assert time.perf_counter() - start < 1
    assert read > 20  # accidents within the data leave a readable file
    assert len(refusals) > 200
    assert not [text for text in refusals if "\n" in text or not text.isprintable()]
    assert os.listdir(tmp_path) == ["mutant"]
