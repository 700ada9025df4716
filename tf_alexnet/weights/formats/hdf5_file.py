"""HDF5 files of Keras (all versions) and Caffe.

Damaged files can crash or hang the HDF5 library, so files are read by another process,
`hdf5_child`, with limits on time and memory, which returns plain float32. A model's configuration,
which may contain code, is never read.

Keras's files have TensorFlow's layout; Caffe's layout is that of `caffemodel`.
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
CPU_SECONDS = 5  # in addition to start-up and file size; reading 244 MB takes half a second
WALL_SECONDS = 30
BYTES_A_SECOND = 10_000_000  # a slow disk


def read(path: str | os.PathLike) -> WeightArrays:
    """Read weights saved as HDF5 by Keras or Caffe.

    Keras: files written by ``save_weights``, or whole models, of which only the weights are read;
    the layers may be in nested models. If no layer is called ``conv1``, layers are recognised by
    their shapes. Caffe: files written by ``Net::ToHDF5`` (``.caffemodel.h5``).

    Raises
    ------
    WeightsError
        If the file is damaged, decompresses to far more than an AlexNet, refers to other files,
        takes too long to read, or its layers can't be recognised.
    """
    form, text, layers, names = _ask_child(path)
    if form == "caffe":
        try:
            # The file's groups are sorted by name.
            ordered = {name: modern(*layers[name]) for name in network_order(layers)}
            layers = from_channels_first(ordered)
        except NotAlexNetError as error:
            raise damaged(path, f"a Caffe HDF5 file with {error}", ADVICE) from None
    elif "conv1" in layers:
        for name, (kernel, bias) in list(layers.items()):
            if name not in LAYER_ORDER and bias.shape != kernel.shape[-1:]:
                _warn_left_out(name, f"{kernel.shape} and {bias.shape}")
                del layers[name]
    elif layers:
        layers = _renamed(path, layers)
    return described(assemble(path, layers, *parsed_metadata(text)), names)


def described(arrays: WeightArrays, names: Sequence[str]) -> WeightArrays:
    """`arrays` with architecture and preset from the ordered layer names of a Keras model."""
    prefix = preset_layer("")
    presets = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    architecture = arrays.architecture
    if architecture is None and {"norm1", "pool1"} <= set(names):
        first = names.index("norm1") < names.index("pool1")
        shown = "bvlc_alexnet" if first else "caffenet"
        architecture = shown if shown in fitting_architectures(arrays) else None
    metadata = {"preset": presets[0], **arrays.metadata} if presets else arrays.metadata
    return replace(arrays, architecture=architecture, metadata=metadata)


def _warn_left_out(name: str, shapes: str) -> None:
    warnings.warn(f"left out: {name[:80]} (arrays of shape {shapes})", stacklevel=6)


def _ask_child(path) -> tuple[str, str | None, dict[str, LayerArrays], list[str]]:
    """The answer of `hdf5_child`: "keras" or "caffe", metadata, layers, names of all layers."""
    size = os.stat(path).st_size
    slack = size // BYTES_A_SECOND
    search_path = json.dumps([x for x in sys.path if isinstance(x, str) and x])
    # Isolated and without site, so that the current folder and environment have no effect.
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
    """The environment for the child, without variables that make HDF5 load plugins or log."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HDF5_")}
    # "::" disables plugins. Reading needs no locks, which some network drives don't support. One
    # thread, since each reserves memory.
    return own | {
        "HDF5_PLUGIN_PRELOAD": "::",
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _cause(code: int) -> str:
    """The reason given by the child's exit code."""
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if name in ("SIGXCPU", "SIGKILL"):
        return "an HDF5 file that takes the HDF5 library too long to read"
    return f"an HDF5 file that the HDF5 library fails to read ({name})"


def _received(path, stream: BinaryIO, max_bytes: int) -> tuple:
    """Read and validate the child's answer."""
    size = struct.unpack("<I", _filled(stream, bytearray(4)))[0]
    if size > MAX_ANSWER:
        raise EOFError
    head = json.loads(_filled(stream, bytearray(size)))
    if "fault" in head:
        raise damaged(path, str(head["fault"]), ADVICE if head.get("sound") else GET_ANOTHER)
    for name, found in head.get("left_out", ()):
        if name in LAYER_ORDER:
            words = f"an HDF5 file whose layer {name} has arrays of shape {found}"
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
    """The layers with Caffe's names, found from their shapes; the last may have any units."""
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
        f"an HDF5 file with the layers {', '.join(layers)[:200]}, whose shapes are not AlexNet's",
        f"Name them {', '.join(LAYER_ORDER)}.",
    )


def write(arrays: WeightArrays, path: str | os.PathLike, form: str = "keras") -> None:
    """Write an HDF5 file for Keras or Caffe, with architecture and metadata as an attribute.

    Parameters
    ----------
    arrays : WeightArrays
        Weights to write.
    path : path-like
        Output file.
    form : {"keras", "caffe"}
        "keras": for ``load_weights`` of a model from `AlexNet`, either as ``<name>.weights.h5`` or
        as ``<name>.h5``. "caffe": for ``Net::CopyTrainedLayersFrom``, as
        ``<name>.caffemodel.h5``.

    Raises
    ------
    UsageError
        If the metadata is too long to be read back.
    WeightsError
        If, for Caffe, the order of a dense layer's rows is unknown.
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
    """Write a file for Keras 3 and Keras 2.

    Keras 3 finds layers by class and number, Keras 2 by the listed names; hard links provide both.
    See ``saving_lib.py`` and ``legacy_h5_format.py`` in Keras.
    """
    counts, filters = {}, 3
    layers = {name: arrays.layers[name] for name in network_order(arrays.layers)}
    file.attrs["layer_names"] = [name.encode() for name in layers]
    # Tell Keras that kernels need no conversion.
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
