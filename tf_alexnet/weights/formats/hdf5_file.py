"""HDF5 files: Keras' (of all its versions) and Caffe's.

The HDF5 library has crashed and hung on damaged files, so a file is opened by another process,
`hdf5_child`, with limits of time and memory, which returns plain float32. A model's configuration,
which may hold code, is never looked at.

Keras keeps TensorFlow's layout. Caffe's layout is that of `caffemodel`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

import h5py
import numpy as np

from tf_alexnet.architectures import ARCHITECTURES, preset_layer
from tf_alexnet.errors import WeightsError
from tf_alexnet.weights.arrays import (
    LAYER_ORDER,
    LayerArrays,
    WeightArrays,
    fitting_architectures,
    network_order,
)
from tf_alexnet.weights.formats import hdf5_child
from tf_alexnet.weights.formats.common import (
    ADVICE,
    GET_ANOTHER,
    NotAlexNetError,
    affordable,
    as_float32,
    assemble,
    damaged,
    from_channels_first,
    metadata_text,
    modern,
    parsed_metadata,
    to_channels_first,
)

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_ANSWER = 1 << 20
CPU_SECONDS = 5  # beyond the start and the bytes; reading 244 MB takes half a second
WALL_SECONDS = 30
BYTES_A_SECOND = 10_000_000  # a slow disk


def read(path: str | os.PathLike) -> WeightArrays:
    """Read weights that Keras or Caffe saved as HDF5.

    Of Keras: what ``save_weights`` writes, and whole models, of which only the weights are taken;
    models within the model may hold the layers. Where no layer is called ``conv1``, layers are told
    by their shapes if these are a known network's. Of Caffe: what ``Net::ToHDF5`` writes
    (``.caffemodel.h5``).

    Raises
    ------
    WeightsError
        If the file is damaged, unfolds to far more than an AlexNet, refers to other files, takes
        too long, or its layers can't be told.
    """
    form, text, layers, names = _ask_child(path)
    if form == "caffe":
        try:
            # The groups are sorted by name.
            ordered = {name: modern(*layers[name]) for name in network_order(layers)}
            layers = from_channels_first(ordered)
        except NotAlexNetError as error:
            raise damaged(path, f"an HDF5 file of Caffe's with {error}", ADVICE) from None
    elif "conv1" in layers:
        for name, (kernel, bias) in list(layers.items()):
            if name not in LAYER_ORDER and bias.shape != kernel.shape[-1:]:
                _warn_left_out(name, f"{kernel.shape} and {bias.shape}")
                del layers[name]
    elif layers:
        layers = _renamed(path, layers)
    return described(assemble(path, layers, *parsed_metadata(text)), names)


def described(arrays: WeightArrays, names: Sequence[str]) -> WeightArrays:
    """`arrays` with what the names of a Keras model's layers, in order, tell of the network."""
    prefix = preset_layer("")
    presets = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    architecture = arrays.architecture
    if architecture is None and {"norm1", "pool1"} <= set(names):
        first = names.index("norm1") < names.index("pool1")
        told = "bvlc_alexnet" if first else "caffenet"
        architecture = told if told in fitting_architectures(arrays) else None
    metadata = {"preset": presets[0], **arrays.metadata} if presets else arrays.metadata
    return replace(arrays, architecture=architecture, metadata=metadata)


def _warn_left_out(name: str, shapes: str) -> None:
    warnings.warn(f"left out: {name[:80]} (arrays of the shape {shapes})", stacklevel=6)


def _ask_child(path) -> tuple[str, str | None, dict[str, LayerArrays], list[str]]:
    """What `hdf5_child` finds: "keras" or "caffe", metadata, layers, names of all layers."""
    size = os.stat(path).st_size
    slack = size // BYTES_A_SECOND
    search_path = json.dumps([x for x in sys.path if isinstance(x, str) and x])
    # Isolated and without site: nothing in the folder or the environment can add to it.
    command = [sys.executable, "-I", "-S", hdf5_child.__file__, search_path]
    command += [os.fsdecode(path), str(affordable(size)), str(CPU_SECONDS + slack)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=_environment(), **pipes) as child:
        timer = threading.Timer(WALL_SECONDS + slack, child.kill)
        timer.daemon = True
        timer.start()
        try:
            return _received(path, child.stdout, affordable(size))
        except (EOFError, json.JSONDecodeError, UnicodeDecodeError):
            child.stdout.close()
            raise damaged(path, _cause(child.wait())) from None
        finally:
            timer.cancel()
            timer.join()
            child.kill()


def _environment() -> dict[str, str]:
    """The environment without what would have the HDF5 library load plugins or log to files."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HDF5_")}
    # "::" is HDF5's word for no plugins at all. Network drives may know no locks, and to read none
    # is needed. One thread, since each reserves memory.
    return own | {
        "HDF5_PLUGIN_PRELOAD": "::",
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _cause(code: int) -> str:
    """What a child's exit code says."""
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if name in ("SIGXCPU", "SIGKILL"):
        return "an HDF5 file that takes the HDF5 library too long to read"
    return f"an HDF5 file that the HDF5 library breaks down on ({name})"


def _received(path, stream: BinaryIO, max_bytes: int) -> tuple:
    """The child's answer, believed no further than it must be."""
    size = struct.unpack("<I", _filled(stream, bytearray(4)))[0]
    if size > MAX_ANSWER:
        raise EOFError
    head = json.loads(_filled(stream, bytearray(size)))
    if "fault" in head:
        raise damaged(path, str(head["fault"]), ADVICE if head.get("sound") else GET_ANOTHER)
    for name, found in head.get("left_out", ()):
        if name in LAYER_ORDER:
            words = f"an HDF5 file whose layer {name} has arrays of the shape {found}"
            raise damaged(path, words, "A layer has a kernel and a bias.")
        _warn_left_out(name, found)
    shapes = [shape for _, *pair in head["layers"] for shape in pair]
    total = 4 * sum(math.prod(shape) for shape in shapes)
    if total > max_bytes or not all(shape and min(shape) > 0 for shape in shapes):
        raise EOFError
    layers = {}
    for name, *pair in head["layers"]:
        if name in layers:
            raise damaged(path, f"an HDF5 file with the layer {name[:80]!r} twice")
        layers[name] = LayerArrays(*(_filled(stream, np.empty(x, "<f4")) for x in pair))
    return head["form"], head["metadata"], layers, head.get("names", [])


def _filled(stream: BinaryIO, buffer):
    """`buffer`, filled from the stream."""
    if stream.readinto(buffer) != memoryview(buffer).nbytes:
        raise EOFError
    return buffer


def _renamed(path, layers: Mapping[str, LayerArrays]) -> dict[str, LayerArrays]:
    """The layers under Caffe's names, told by their shapes; the last may have any units."""
    for table in ARCHITECTURES.values():
        *shapes, (last, ((inputs, _), _)) = table.parameter_shapes().items()
        known = {kernel: name for name, (kernel, _) in shapes}
        names = [known.get(layer.kernel.shape, last) for layer in layers.values()]
        found = dict(zip(names, layers.values(), strict=True))
        fits = last not in found or found[last].kernel.shape[:-1] == (inputs,)
        whole = {*known.values(), last}, {layer.name for layer in table.convolutions}
        if fits and len(found) == len(layers) and found.keys() in whole:
            return found
    raise damaged(
        path,
        f"an HDF5 file with the layers {', '.join(layers)[:200]}, and not of AlexNet's shapes",
        f"Call them {', '.join(LAYER_ORDER)}.",
    )


def write(arrays: WeightArrays, path: str | os.PathLike, form: str = "keras") -> None:
    """Write an HDF5 file for Keras or for Caffe, with architecture and metadata as an attribute.

    Parameters
    ----------
    arrays : WeightArrays
        What to write.
    path : path-like
        Where to.
    form : {"keras", "caffe"}
        "keras": ``load_weights`` of a model from `AlexNet` takes the file, called
        ``<name>.weights.h5`` or ``<name>.h5``; each array has a name for either way. "caffe": for
        ``Net::CopyTrainedLayersFrom`` (call it ``<name>.caffemodel.h5``).

    Raises
    ------
    UsageError
        If the metadata are too long to be read back.
    WeightsError
        If for Caffe it is not known how the rows of a dense layer are ordered.
    """
    text = metadata_text(arrays)
    try:
        with h5py.File(path, "w") as file:
            file.attrs["metadata"] = text
            (_write_keras if form == "keras" else _write_caffe)(file, arrays)
    except RuntimeError as error:
        raise OSError(str(error)) from error
    except ValueError as error:
        raise WeightsError(arrays.source, str(error), "Write a .npy file instead.") from None


def _write_keras(file: h5py.File, arrays: WeightArrays) -> None:
    """Keras 3 finds layers by class and number, Keras 2 by the listed names: hard links serve both.

    See ``saving_lib.py`` and ``legacy_h5_format.py`` in Keras.
    """
    counts, filters = {}, 3
    layers = {name: arrays.layers[name] for name in network_order(arrays.layers)}
    file.attrs["layer_names"] = [name.encode() for name in layers]
    # By these Keras knows that kernels need no conversion.
    file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"3.0.0"
    for name, layer in layers.items():
        kind = "dense"
        if layer.kernel.ndim == 4:
            kind = "conv2d" if layer.kernel.shape[2] == filters else "grouped_conv2d"
            filters = layer.kernel.shape[3]
        number = f"_{counts[kind]}" if kind in counts else ""
        counts[kind] = counts.get(kind, 0) + 1
        variables = file.create_group(f"layers/{kind}{number}/vars")
        variables.attrs["name"] = name
        listed = file.create_group(name)
        names = [f"{name}/{part}" for part in LayerArrays._fields]
        listed.attrs["weight_names"] = [x.encode() for x in names]
        for index, (array, other) in enumerate(zip(layer, names, strict=True)):
            listed[other] = variables.create_dataset(str(index), data=as_float32(array))


def _write_caffe(file: h5py.File, arrays: WeightArrays) -> None:
    for name, kernel in to_channels_first(arrays):
        group = file.create_group(f"data/{name}")
        group.create_dataset("0", data=kernel)
        group.create_dataset("1", data=as_float32(arrays.layers[name].bias))
