"""Accidents to good weight files of every format: each must be read or refused, and nothing else.

    python tests/fuzz.py 100000

A worker process reads the mutants, one after the other, under an audit hook; its parent waits for
each at most ten seconds. HDF5 files are opened within the worker by the code that otherwise runs in
a child process of its own; where the HDF5 library crashes or hangs there, the parent reads the
same file the proper way and expects the one-line error. Every 40th HDF5 mutant is read the proper
way in any case.
"""

import contextlib
import io
import json
import os
import pickle
import pickletools
import random
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import safetensors.numpy
from onnx_seeds import export, torch, zoo
from weight_seeds import (
    SMALL,
    as_dictionary,
    channels_first,
    message,
    npy_header,
    python2_pickle,
    python2_text_pickle,
    small_arrays,
    small_network,
    torch_parts,
    torch_pickle,
    torch_stream,
    torch_zip,
    varint,
)

from tf_alexnet.errors import WeightsError
from tf_alexnet.weights.formats import (
    caffemodel,
    deep_compression,
    hdf5_child,
    hdf5_file,
    npy,
    npz,
    read_file,
    safetensors_file,
)
from tf_alexnet.weights.formats.common import affordable

MAX_SECONDS = 10
MAX_MEMORY = 256_000_000  # beyond twice the file
PROPERLY = 40
HARMLESS = {"builtins.id", "mmap.__new__", "object.__getattr__", "sys._getframe"}


def numpy_seeds(arrays):
    """.npy of every writer there has been, and .npz."""
    objects = np.array(None, object)
    objects[()] = as_dictionary(arrays)
    yield npy_header() + python2_pickle(arrays)
    yield npy_header() + python2_text_pickle(arrays)
    for protocol in (0, 1, 2, 3, 4, 5):
        raw = pickle.dumps(objects, protocol)
        yield npy_header() + raw
        if protocol in (0, 3):
            yield npy_header() + raw.replace(b"numpy._core", b"numpy.core")
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(
            file, **{f"{n}/{p}": getattr(v, p) for n, v in arrays.layers.items() for p in v._fields}
        )
        yield file.getvalue()
    for protocol in (0, 1, 4):  # bare
        yield pickle.dumps(as_dictionary(arrays), protocol)


def spelling_seeds(network):
    """Other names of arrays, and Caffe's layout: flat in .npz, torch's in safetensors."""
    layers = channels_first(network, 2)
    for kernel, bias in (("{}_W", "{}_b"), ("module.{}.weight", "module.{}.bias")):
        flat = {kernel.format(name): pair[0] for name, pair in layers.items()}
        flat |= {bias.format(name): pair[1] for name, pair in layers.items()}
        file = io.BytesIO()
        np.savez(file, **flat)
        yield file.getvalue()
        yield safetensors.numpy.save({key: array.astype("f2") for key, array in flat.items()})


def written_seeds(arrays, path):
    """What this package writes."""
    writers = [
        (npy.write, {}),
        (npz.write, {}),
        (safetensors_file.write, {}),
        (hdf5_file.write, {}),
        (hdf5_file.write, {"form": "caffe"}),
        (caffemodel.write, {}),
        (caffemodel.write, {"layers": "v1", "blobs": "legacy", "packed": False}),
    ]
    for write, options in writers:
        write(arrays, path, **options)
        yield path.read_bytes()


def torch_seeds(arrays):
    """Both containers, as they are and as a checkpoint."""
    for container, legacy in ((torch_zip, False), (torch_stream, True)):
        entries, storages = torch_parts(arrays, legacy=legacy)
        yield container(torch_pickle(entries), storages)
    file = io.BytesIO()
    entries, storages = torch_parts(arrays, "module.")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", torch_pickle(entries))
        for key, raw in storages.items():
            archive.writestr(f"x/data/{key}", raw)
    yield file.getvalue()
    for name, code in ((b"Half", "<f2"), (b"BFloat16", "<u2"), (b"Double", "<f8")):
        entries, storages = torch_parts(arrays)
        entries = {k: v.replace(b"torch\nFloat", b"torch\n" + name) for k, v in entries.items()}
        storages = {k: np.frombuffer(v, "<f4").astype(code).tobytes() for k, v in storages.items()}
        yield torch_zip(torch_pickle(entries), storages)


def onnx_seeds(network):
    """Raw and listed numbers, and the spelling of other exporters."""
    layers = channels_first(network, 2)
    for names, options in (
        (zoo, {}),
        (torch, {"form": "list"}),
        (zoo, {"dtype": np.float16, "matmul": True}),
    ):
        yield export(SMALL, layers, names, **options).SerializeToString()


def graph_seeds(network):
    """A Caffe model with the layers that a network has beside those with weights, and raw data."""
    raw, before = message(1, b"AlexNet"), b"data"
    layers = channels_first(network, 2)
    for layer in SMALL.layers:
        name, kind = layer.name.encode(), type(layer).__name__
        kind = {"Conv": "Convolution", "Dense": "InnerProduct", "MaxPool": "Pooling"}.get(
            kind, kind
        )
        fields = message(1, name) + message(2, kind.encode())
        fields += message(3, before) + message(4, name) + message(106, b"\x08\x08 \x0b0\x04")
        for array in layers.get(layer.name, ()):
            shape = message(7, message(1, b"".join(map(varint, array.shape))))
            half = shape + b"\x50\x02" + message(12, array.astype("<f2").tobytes())
            fields += message(7, half)
        raw, before = raw + message(100, fields), name
    yield raw


def hdf5_seeds(arrays, path):
    """Keras's forms, plain and packed, the latest file format of the library, and Caffe's form."""
    import h5py

    for libver, options in (
        (None, {}),
        (None, {"compression": "gzip"}),
        ("latest", {"chunks": True}),
    ):
        with h5py.File(path, "w", libver=libver) as file:
            file.attrs["layer_names"] = [name.encode() for name in arrays.layers]
            for name, layer in arrays.layers.items():
                names = [f"{name}/{part}:0" for part in layer._fields]
                group = file.create_group(name)
                group.attrs["weight_names"] = [x.encode() for x in names]
                for array, part in zip(layer, names, strict=True):
                    group.create_dataset(part, data=array, **options)
        yield path.read_bytes()
    with h5py.File(path, "w") as file:  # Keras 3: a model within the model, and what is left out
        for name, layer in arrays.layers.items():
            group = file.create_group(f"layers/functional/layers/{name}_1/vars")
            group.attrs["name"] = name
            for index, array in enumerate(layer):
                group[str(index)] = array
        file["layers/dense/vars/0"] = np.ones((6, 5), "f4")
        file.create_group("layers/reshape/vars").attrs["name"] = "preset_caffe"
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, "u4")
        file["optimizer/vars/0"] = 7
    yield path.read_bytes()
    with h5py.File(path, "w") as file:  # Caffe
        for name, pair in channels_first(arrays, 2).items():
            for index, array in enumerate(pair):
                file[f"data/{name}/{index}"] = array
        file["data/upscore/0"] = np.ones((2, 1, 4, 4), "f4")
        file.create_group("data/relu1")
    yield path.read_bytes()


def deep_compression_seed():
    """bvlc_alexnet with 1,000 codes a layer."""
    dice = np.random.default_rng(0)
    out = struct.pack("<8I", *[1000] * 8)
    for kernel, bias in deep_compression.ARCHITECTURE.parameter_shapes().values():
        bits = 8 if len(kernel) == 4 else 4
        out += dice.normal(size=2**bits + bias[0]).astype("<f4").tobytes()
        out += dice.bytes(1000 * bits // 8) + dice.bytes(500)
    return out


def seeds(folder):
    """(bytes, whether HDF5) of good files of every format and form."""
    arrays, network = small_arrays(), small_network()
    path = Path(folder) / "seed"
    found = [*numpy_seeds(arrays), *written_seeds(arrays, path), *torch_seeds(network)]
    found += [*onnx_seeds(network), *graph_seeds(network), *spelling_seeds(network)]
    found += [*hdf5_seeds(arrays, path), deep_compression_seed()]
    path.unlink()
    return [(raw, raw.startswith(hdf5_file.MAGIC)) for raw in found]


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


def mutant_at(index, seed, pool):
    """The mutant of this number, the same in every process, and whether it is of an HDF5 file."""
    dice = random.Random(f"{seed}:{index}")
    raw, is_hdf5 = pool[index % len(pool)]
    changed = mutant(raw, dice.choice(pool)[0], dice)
    return changed, is_hdf5 and changed.startswith(hdf5_file.MAGIC)


def peak(reset=False):
    """This process's largest resident memory in bytes since the last reset; 0 where unknown."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@contextlib.contextmanager
def memory_limit(size):
    """As the child has it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(path, in_process):
    """Whether a file was "read" or "refused", or what went wrong."""
    try:
        if in_process:
            sink, room = io.BytesIO(), affordable(path.stat().st_size)
            try:
                hdf5_child.answer(str(path), room, sink)
            except Exception:
                return "refused"  # the child ends badly, and its parent says so
            size = struct.unpack("<I", sink.getbuffer()[:4])[0]
            return (
                "refused"
                if "fault" in json.loads(sink.getbuffer()[4 : 4 + size].tobytes())
                else "read"
            )
        found = read_file(path)
    except WeightsError as error:
        text = str(error)
        return (
            "refused" if text.isprintable() and len(text) < 1000 + len(str(path)) else "odd error"
        )
    except BaseException as error:
        return f"{type(error).__name__}"
    arrays = [array for layer in found.layers.values() for array in layer]
    return "read" if all(a.dtype == np.float32 and a.size for a in arrays) else "odd arrays"


def work(folder, seed, start, stop):
    """Read the mutants `start` to `stop`; print a line about each."""
    pool = seeds(folder)
    path, active, events = Path(folder) / "mutant", [False], []

    def hook(event, arguments):
        own = event == "open" and str(arguments[0]) == str(path)
        if active[0] and not own and event not in HARMLESS:
            events.append(event)

    for raw, is_hdf5 in pool:  # codecs and the like are imported by the first who need them
        path.write_bytes(raw)
        assert outcome(path, is_hdf5) == "read"
    for name in ("unicode_escape", "raw_unicode_escape", "utf_32_le", "utf_32_be", "ascii"):
        "x".encode(name)
    warnings.simplefilter("ignore")  # to show one opens the source file
    sys.addaudithook(hook)
    for index in range(start, stop):
        raw, is_hdf5 = mutant_at(index, seed, pool)
        path.write_bytes(raw)
        properly = is_hdf5 and index // len(pool) % PROPERLY == 0
        before = peak(reset=True)
        limited = is_hdf5 and not properly
        with memory_limit(affordable(len(raw))) if limited else contextlib.nullcontext():
            active[0] = not properly
            began = time.perf_counter()
            found = outcome(path, limited)
            seconds = time.perf_counter() - began
            active[0] = False
        memory = max(0, peak() - before)
        if events:
            found = "events: " + " ".join(sorted(set(events)))
            events.clear()
        if memory > 2 * len(raw) + MAX_MEMORY:
            found = f"{memory} bytes of memory"
        print(json.dumps([index, found, seconds, memory]), flush=True)


def campaign(count, seed, folder):
    """Figures of `count` mutants.

    Returns
    -------
    dict
        read, refused, contained (crashes and hangs of the HDF5 library that became an error), worst
        seconds and bytes of one file, and faults: a list of (index, what happened).
    """
    figures = {"read": 0, "refused": 0, "contained": 0, "seconds": 0.0, "bytes": 0, "faults": []}
    pool = seeds(folder)
    at = 0
    while at < count:
        command = [sys.executable, __file__, "--work", str(folder), str(seed), str(at), str(count)]
        start = at
        with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
            at = follow(worker, at, count, figures)
            worker.kill()
        if at == start and worker.returncode == 1:
            raise RuntimeError("the worker does not start")
        if at < count:  # the worker died or hung on this one
            raw, is_hdf5 = mutant_at(at, seed, pool)
            path = Path(folder) / "culprit"
            path.write_bytes(raw)
            began = time.perf_counter()
            found = outcome(path, False) if is_hdf5 else "crash or hang"
            figures["seconds"] = max(figures["seconds"], time.perf_counter() - began)
            if found in ("read", "refused"):
                figures["contained"] += 1
            else:
                figures["faults"].append((at, found))
            at += 1
    return figures


def follow(worker, at, count, figures):
    """Take the worker's lines until it ends, dies or hangs; the number of the next mutant."""
    patience, pending = 60, b""  # for its imports
    while at < count and select.select([worker.stdout], [], [], patience)[0]:
        received = os.read(worker.stdout.fileno(), 1 << 16)
        if not received:
            break
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            index, found, seconds, memory = json.loads(line)
            assert index == at
            at, patience = at + 1, MAX_SECONDS
            if found in ("read", "refused") and seconds < MAX_SECONDS:
                figures[found] += 1
            else:
                figures["faults"].append((index, found))
            figures["seconds"] = max(figures["seconds"], seconds)
            figures["bytes"] = max(figures["bytes"], memory)
    return at


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
        sys.exit()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        result = campaign(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "0", place)
    print(
        f"{sys.argv[1]} mutants in {time.perf_counter() - started:.0f} s: {result['read']} read, "
        f"{result['refused']} refused, {result['contained']} crashes or hangs of the HDF5 library "
        f"contained; worst {result['seconds']:.2f} s and {result['bytes'] / 1e6:.0f} MB; "
        f"{len(result['faults'])} faults"
    )
    for fault in result["faults"]:
        print(*fault)
    sys.exit(bool(result["faults"]))
