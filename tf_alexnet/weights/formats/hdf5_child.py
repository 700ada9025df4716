"""Program that reads an HDF5 file in a process of its own; it is run by `hdf5_file`.

Damaged files can crash or hang the HDF5 library, so the caller waits with a time limit. The answer,
on stdout, is a length (uint32), that many bytes of JSON, and the arrays as little-endian float32 in
the order of the JSON::

    {"form": "keras", "metadata": "...", "layers": [["conv1", [11, 11, 3, 96], [96]], ...],
     "left_out": [["head", "(4096, 5)"], ...], "names": ["conv1", "norm1", ...]}
    {"fault": "what is wrong with the file", "sound": false}

Layers without a pair of kernel and bias are left out. `names` are those of all layers, in order, if
the file lists them, or only that of the layer that records a preset.

Only plain arrays of floats are read: no soft or external links, no external storage, only the
standard filters, and no model configuration. Arguments: the module search path as JSON, the file,
the maximal number of bytes of arrays, and seconds of CPU time.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import re
import struct
import sys
from collections import Counter

if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5t

MAX_OBJECTS = 2000  # a trained Keras model with its optimizer takes about 150
MAX_DEPTH = 12
MAX_NAMES = 1000  # per attribute
MAX_TEXT = 1 << 16
MAX_RATIO = 100  # as in zip_members
MAX_FILTERS = 4
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # groups of a model's layers in Keras 3
FILTERS = {1, 2, 3, 32000}  # deflate, shuffle, fletcher32, lzf
BAND = 1 << 22  # bytes read at a time


# Layers that rule out AlexNet, by Keras's names for their class or their arrays.
KINDS = {
    **dict.fromkeys(("batch_normalization", "moving_mean", "running_mean"), "batch normalisation"),
    **dict.fromkeys(("p_re_lu", "alpha"), "PReLU"),
    **dict.fromkeys(("normalization", "gamma", "variance"), "normalisation"),
}


class Fault(Exception):
    """Why the file is rejected: text that completes "it is ...", and whether the file is valid."""


def require(condition, fault: str, sound: bool = False) -> None:
    """Raise a Fault unless `condition` holds."""
    if not condition:
        raise Fault(fault, sound)


def answer(path: str, max_bytes: int, out, seal=lambda: None) -> None:
    """Read the file at `path` and write the answer to the binary file `out`.

    `seal` is called once the file is open.
    """
    try:
        file = h5py.File(path, "r")
        seal()
        head, datasets = _layers(file, _Tree(file))
        total = sum(_checked_size(dataset) for dataset in datasets)
        require(total <= max_bytes, f"an HDF5 file of {total} bytes, far more than an AlexNet")
    except Fault as fault:
        head, datasets = {"fault": fault.args[0], "sound": fault.args[1]}, []
    except Exception as error:  # a damaged file makes the library raise nearly anything
        text = str(error).strip("'\"").split("\n")[0][:200]
        head, datasets = {"fault": f"a damaged HDF5 file ({type(error).__name__}: {text})"}, []
    raw = json.dumps(head).encode()
    out.write(struct.pack("<I", len(raw)) + raw)
    for dataset in datasets:
        _copy(dataset, out)
    out.flush()


class _Tree:
    """All objects of a file by path. Only hard links are followed."""

    def __init__(self, file):
        self.file = file
        self.groups: dict[str, list[str]] = {}
        self.datasets: set[str] = set()
        self._walk(file.id, "", 0)

    def _walk(self, group, path: str, depth: int) -> None:
        require(depth <= MAX_DEPTH, "an HDF5 file that is nested too deeply")
        room = MAX_OBJECTS - len(self.groups) - len(self.datasets)
        require(group.get_num_objs() <= room, f"an HDF5 file of more than {MAX_OBJECTS} objects")
        self.groups[path] = names = []
        for name in group:
            link = group.links.get_info(name)
            require(link.type == h5l.TYPE_HARD, "an HDF5 file with links, perhaps to other files")
            text = name.decode("utf-8")
            names.append(text)
            child = f"{path}/{text}"
            kind = h5o.get_info(group, name).type
            if kind == h5o.TYPE_GROUP:
                self._walk(h5o.open(group, name), child, depth + 1)
            else:
                require(kind == h5o.TYPE_DATASET, "an HDF5 file with types of its own")
                self.datasets.add(child)

    def dataset(self, path: str):
        """The dataset at a path found by the walk."""
        require(path in self.datasets, f"an HDF5 file without the array {path[:80]!r}")
        return self.file[path]

    def attribute(self, path: str, name: str):
        """An attribute, a text or list of texts, as a list; or None."""
        holder = self.file[path or "/"]
        if not h5a.exists(holder.id, name.encode()):
            return None
        found = h5a.open(holder.id, name.encode())
        size = found.get_space().get_simple_extent_npoints()
        if size == 0:  # an empty list may have any type
            return []
        stored = found.get_storage_size()
        is_text = found.get_type().get_class() == h5t.STRING
        require(
            is_text and size <= MAX_NAMES and stored <= MAX_TEXT, f"an invalid attribute {name!r}"
        )
        value = holder.attrs[name]
        values = [value] if isinstance(value, str | bytes) else list(value.reshape(-1))
        texts = [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values]
        require(sum(map(len, texts)) <= MAX_TEXT, f"an invalid attribute {name!r}")
        return texts

    def names(self, path: str, name: str) -> list[str] | None:
        """A list of texts in one attribute, or split into several as by Keras."""
        found = self.attribute(path, name)
        pieces = 0
        while (piece := self.attribute(path, f"{name}{pieces}")) is not None:
            found = (found or []) + piece
            pieces += 1
            require(len(found) <= MAX_NAMES, f"an invalid attribute {name!r}")
        return found


def _layers(file, tree: _Tree) -> tuple[dict, list]:
    """The head of the answer, and the datasets in its order."""
    text = tree.attribute("", "metadata")
    head = {"metadata": text[0] if text else None, "form": "keras", "names": [], "left_out": []}
    base = "/model_weights" if "/model_weights" in tree.groups else ""
    names = tree.names(base, "layer_names")
    if names is not None:
        head["names"], found = names, _keras_2(tree, base, names)
    elif any(f"/{name}" in tree.groups for name in (*CONTAINERS, "vars")):
        found = _keras_3(tree)
        head["names"] = [layer for _, layer, *_ in found if layer.startswith("preset_")]
    elif "/data" in tree.groups:
        head["form"], found = "caffe", _caffe(tree)
    else:
        require("/history" not in tree.groups, "a Caffe solver's state, not a network", True)
        raise Fault("an HDF5 file without weights in the layout of Keras or Caffe", True)
    layers, counts = [], Counter(layer for _, layer, _, paths in found if paths)
    for place, layer, hints, paths in found:
        if not paths:
            continue
        name = layer if counts[layer] == 1 else place
        shapes = [tree.dataset(path).shape or () for path in paths]
        kind = _kind(hints, shapes)
        require(not kind, f"a network with {kind} (layer {name[:80]!r}), not AlexNet", True)
        if len(paths) == 2 and len(shapes[0]) in (2, 4):
            layers.append([name, *map(tree.dataset, paths)])
        else:
            head["left_out"].append([name, " and ".join(map(str, shapes))])
    head["layers"] = [[name, list(k.shape), list(b.shape)] for name, k, b in layers]
    return head, [dataset for _, *pair in layers for dataset in pair]


def _kind(hints: list[str], shapes: list[tuple]) -> str | None:
    """Kind of a layer that rules out AlexNet, by class, array names and shapes; else None."""
    for word, kind in KINDS.items():
        if any(re.search(rf"(^|_){word}(_\d+)?(:0)?$", hint) for hint in hints):
            return kind
    if all(len(shape) == 1 for shape in shapes):
        return {1: "PReLU or scaling", 2: "scaling"}.get(len(shapes), "batch normalisation")
    return None


# Each of the following returns, for each layer, its path in the file, its name, hints at its kind,
# and the paths of its arrays.


def _keras_2(tree: _Tree, base: str, groups: list[str]) -> list[tuple]:
    """Keras 1 and 2: groups listed in `layer_names`, each with its `weight_names`."""
    layers = []
    for group in groups:
        path = f"{base}/{group}"
        require(path in tree.groups, f"an HDF5 file without the layer {group[:80]!r}")
        names = tree.names(path, "weight_names") or []
        found = {"": names}
        if len(names) > 2:  # a nested model
            found = {}
            for name in names:
                found.setdefault(name.rpartition("/")[0], []).append(name)
        for inner, some in found.items():
            place = f"{group}/{inner}" if inner else group
            parts = [name.rpartition("/")[2] for name in some]
            paths = [f"{path}/{name}" for name in some]
            layers.append((place, place.rpartition("/")[2], parts, paths))
    return layers


def _keras_3(tree: _Tree) -> list[tuple]:
    """Keras 3: arrays `0`, `1`, ... in a group `vars`, whose attribute is the layer's name."""
    layers = []
    for path, names in tree.groups.items():
        *parts, last = path.split("/")
        if last != "vars" or parts[-1] in ("seed_generator", "generator") or len(parts) < 2:
            continue
        if parts[1] in ("optimizer", "metrics", "compile_metrics"):
            continue
        given = tree.attribute(path, "name")
        place = "/".join(part for part in parts[1:] if part not in CONTAINERS)
        arrays = [f"{path}/{name}" for name in sorted(names)]
        layers.append((place, given[0] if given else parts[-1], [parts[-1]], arrays))
    return layers


def _caffe(tree: _Tree) -> list[tuple]:
    """Caffe: arrays `0` and `1` in a group with the layer's name (``Net::ToHDF5`` in net.cpp)."""
    layers = []
    for layer in tree.groups["/data"]:
        names = tree.groups.get(f"/data/{layer}")
        require(names is not None, f"an HDF5 file with the array {layer[:80]!r} instead of layers")
        layers.append((layer, layer, [], [f"/data/{layer}/{name}" for name in sorted(names)]))
    return layers


def _checked_size(dataset) -> int:
    """Bytes of an array as float32; raises a Fault if it must not be read."""
    name = dataset.name[:80]
    kind = dataset.id.get_type()
    is_float = kind.get_class() == h5t.FLOAT and dataset.dtype.kind == "f"
    require(
        is_float and dataset.dtype.itemsize in (2, 4, 8),
        f"an HDF5 file whose array {name!r} does not contain floats",
    )
    require(
        1 <= len(dataset.shape or ()) <= 4 and dataset.size > 0,
        f"an HDF5 file whose array {name!r} has the shape {dataset.shape}",
    )
    plist = dataset.id.get_create_plist()
    layouts = (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED)
    require(
        plist.get_layout() in layouts and plist.get_external_count() == 0,
        "an HDF5 file whose arrays are in other files",
    )
    filters = [plist.get_filter(i)[0] for i in range(min(plist.get_nfilters(), MAX_FILTERS + 1))]
    require(
        len(filters) <= MAX_FILTERS and set(filters) <= FILTERS,
        f"an HDF5 file whose array {name!r} has the filters {filters}",
    )
    declared, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    room = MAX_RATIO * stored + 1024 if stored else 0
    require(declared <= room, f"an HDF5 file that declares {declared} bytes and stores {stored}")
    if dataset.chunks:
        chunk = dataset.dtype.itemsize * math.prod(dataset.chunks)
        require(chunk <= max(declared, BAND), f"an HDF5 file with chunks of {chunk} bytes")
    return 4 * dataset.size


def _copy(dataset, out) -> None:
    """Write the values in C order, some rows at a time, so that each chunk is read once."""
    row = dataset.dtype.itemsize * dataset.size // dataset.shape[0]
    rows = max(1, BAND // row)
    if dataset.chunks:
        rows = -(-rows // dataset.chunks[0]) * dataset.chunks[0]
    for start in range(0, dataset.shape[0], rows):
        with np.errstate(all="ignore"):
            values = np.ascontiguousarray(dataset[start : start + rows], "<f4")
        out.write(memoryview(values).cast("B"))


def limit(seconds: int, max_bytes: int) -> None:
    """Limit CPU time and memory from here on, and forbid writing files."""
    try:
        import resource
    except ImportError:  # not available on this platform; the caller's time limit remains
        return
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limits = {"CPU": int(used) + 1 + seconds, "FSIZE": 0, "CORE": 0}
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
        limits["AS"] = pages * os.sysconf("SC_PAGE_SIZE") + max_bytes
    for name, value in limits.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def seal() -> None:
    """Forbid opening further files from here on."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


if __name__ == "__main__":
    _, path, max_bytes, seconds = sys.argv[1:]
    codecs.lookup("ascii")  # import the codec's module before `seal`
    limit(int(seconds), int(max_bytes))
    answer(path, int(max_bytes), sys.stdout.buffer, seal)
