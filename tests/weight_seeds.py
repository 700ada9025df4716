"""Small weight files for the tests, spelt byte by byte where no present tool writes them."""

import dataclasses
import io
import struct
import zipfile

import numpy as np

from tf_alexnet.architectures import BVLC_ALEXNET, Conv, Dense
from tf_alexnet.weights import LayerArrays, WeightArrays
from tf_alexnet.weights.formats import hdf5_child, hdf5_file

SHAPES = {
    "conv1": (3, 3, 3, 8),
    "conv2": (3, 3, 4, 8),  # two groups
    "fc6": (2 * 2 * 8, 10),
    "fc7": (10, 6),
    "fc8": (6, 5),
}


def small_arrays(seed=0, **record):
    """A network in small: groups, a dense layer behind a convolution, float32 of all magnitudes."""
    random = np.random.default_rng(seed)
    layers = {
        name: LayerArrays(
            (random.normal(size=shape) * 10.0 ** random.integers(-9, 9, shape)).astype("f4"),
            random.normal(size=shape[-1:]).astype("f4"),
        )
        for name, shape in SHAPES.items()
    }
    return WeightArrays(layers, **record)


def ask_here(path):
    """Open an HDF5 file in this process: the child, otherwise, has tests of its own."""
    sink = io.BytesIO()
    hdf5_child.answer(str(path), 10**9, sink)
    sink.seek(0)
    return hdf5_file._received(path, sink, 10**9)


def as_dictionary(arrays, change=lambda a: a):
    """{layer: [kernel, bias]}, each array passed through `change`."""
    return {name: [change(a) for a in layer] for name, layer in arrays.layers.items()}


def npy_header(descr="|O", shape="()", version=1):
    """A NumPy header as `numpy.save` writes it."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    form = "<H" if version == 1 else "<I"
    text = text.ljust(117 if version == 1 else 115) + "\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, len(text)) + text.encode()


def integer(value):
    """What Python 2 chose for an integer of this size."""
    if value < 256:
        return b"K" + bytes([value])
    return b"M" + struct.pack("<H", value) if value < 65536 else b"J" + struct.pack("<i", value)


def python2_string(raw):
    """SHORT_BINSTRING or BINSTRING."""
    if len(raw) < 256:
        return b"U" + bytes([len(raw)]) + raw
    return b"T" + struct.pack("<i", len(raw)) + raw


def python2_pickle(arrays):
    """Protocol 2 of Python 2 for an object array: BINSTRING data, memoised names and dtype."""

    def state(shape, data, is_object=False):
        dims = b"".join(map(integer, shape))
        dims = b"(" + dims + b"t" if len(shape) > 3 else dims + bytes([0x84 + len(shape)])
        dtype = python2_dtype("O8" if is_object else "f4") if is_object else b"h\x09"
        return b"(K\x01" + (dims if shape else b")") + dtype + b"\x89" + data + b"tb"

    def python2_dtype(code):
        order, flags = (b"|", b"K?") if code == "O8" else (b"<", b"K\x00")
        made = b"cnumpy\ndtype\n" + python2_string(code.encode()) + b"K\x00K\x01\x87R"
        rest = b"(K\x03" + python2_string(order) + b"NNN" + b"J\xff\xff\xff\xff" * 2 + flags
        return made + rest + b"tb"

    blank = b"h\x01h\x02K\x00\x85U\x01b\x87R"
    out = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02"
    out += b"K\x00\x85U\x01b\x87Rq\x03"
    out += b"(K\x01)" + python2_dtype("O8") + b"\x89]}("
    for index, (name, layer) in enumerate(arrays.layers.items()):
        out += python2_string(name.encode()) + b"]("
        for part, array in enumerate(layer):
            if index == part == 0:  # the dtype is spelt once and memoised
                first = blank + b"(K\x01" + b"(" + b"".join(map(integer, array.shape)) + b"t"
                out += first + python2_dtype("f4") + b"q\x09\x89"
                out += python2_string(array.tobytes()) + b"tb"
            else:
                out += blank + state(array.shape, python2_string(array.tobytes()))
        out += b"e"
    return out + b"uatb."


def python2_text_pickle(arrays):
    """Protocol 0 of Python 2: text opcodes, escaped strings."""

    def string(raw):
        return b"S" + repr(raw)[1:].encode() + b"\n"

    out = b"(dp0\n"
    for name, layer in arrays.layers.items():
        out += string(name.encode()) + b"(lp1\n"
        for array in layer:
            out += b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
            out += b"(I1\n(" + b"".join(b"L%dL\n" % n for n in array.shape) + b"t"
            out += b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
            out += b"I00\n" + string(array.tobytes()) + b"tba"
        out += b"s"
    return out + b"."


def varint(value):
    """A protobuf base-128 number."""
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(number, raw):
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def _smaller(layer):
    units = {"conv1": 8, "conv2": 12, "conv3": 16, "conv4": 16, "conv5": 12}
    if isinstance(layer, Conv):
        return dataclasses.replace(layer, filters=units[layer.name])
    if isinstance(layer, Dense):
        return dataclasses.replace(layer, units={"fc6": 20, "fc7": 18, "fc8": 5}[layer.name])
    return layer


# bvlc_alexnet with all its layers and groups, few channels, and 2 x 2 places in pool5.
SMALL = dataclasses.replace(
    BVLC_ALEXNET,
    name="small",
    input_size=99,
    layers=tuple(_smaller(layer) for layer in BVLC_ALEXNET.layers),
)


def small_network(seed=0, **record):
    """Weights of `SMALL`."""
    random = np.random.default_rng(seed)
    layers = {
        name: LayerArrays(*(random.normal(size=shape).astype("f4") for shape in pair))
        for name, pair in SMALL.parameter_shapes().items()
    }
    return WeightArrays(layers, **record)


def channels_first(arrays, side=2):
    """{layer: (kernel, bias)} as Caffe and torch keep them."""
    found = {}
    for name, (kernel, bias) in arrays.layers.items():
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
        elif name == "fc6":
            kernel = kernel.reshape(side, side, -1, kernel.shape[1])
            kernel = kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[3], -1)
        else:
            kernel = kernel.T
        found[name] = (np.ascontiguousarray(kernel), bias)
    return found


TORCH_KEYS = {
    **{"conv1": "features.0", "conv2": "features.3", "conv3": "features.6"},
    **{"conv4": "features.8", "conv5": "features.10"},
    **{"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"},
}


def unicode(value):
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


ORDERED = b"ccollections\nOrderedDict\n)R"


def torch_tensor(key, shape, size=None, strides=None, offset=0, legacy=False, **names):
    """The call that rebuilds a tensor."""
    shape = tuple(shape)
    if strides is None:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    size = int(np.prod(shape)) if size is None else size
    storage = names.get("storage", b"ctorch\nFloatStorage\n")
    out = names.get("rebuild", b"ctorch._utils\n_rebuild_tensor_v2\n")
    out += b"((" + unicode("storage") + storage + unicode(key) + unicode("cpu") + integer(size)
    out += (b"N" if legacy else b"") + b"tQ" + integer(offset)
    for dims in (shape, strides):
        out += b"(" + b"".join(map(integer, dims)) + b"t"
    return out + b"\x89" + ORDERED + b"tR"


def torch_pickle(entries):
    """A state dict, as `torch.save` spells it: {name: stream of its value}."""
    out = b"\x80\x02" + ORDERED + b"("
    out += b"".join(unicode(name) + value for name, value in entries.items())
    return out + b"u}" + unicode("_metadata") + ORDERED + b"sb."


def torch_parts(arrays, prefix="", legacy=False):
    """(entries of a state dict, storages): one storage a parameter."""
    entries, storages = {}, {}
    for name, pair in channels_first(arrays).items():
        for part, array in zip(("weight", "bias"), pair, strict=True):
            key = str(len(storages))
            storages[key] = array.tobytes()
            entry = f"{prefix}{TORCH_KEYS[name]}.{part}"
            entries[entry] = torch_tensor(key, array.shape, legacy=legacy)
    return entries, storages


def torch_zip(stream, storages, order="little", root="archive"):
    """The container of torch since 1.6."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", stream)
        archive.writestr(f"{root}/byteorder", order)
        for key, raw in storages.items():
            archive.writestr(f"{root}/data/{key}", raw)
        archive.writestr(f"{root}/version", "3\n")
    return file.getvalue()


def torch_stream(stream, storages):
    """The container of torch before 1.6."""
    out = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03."
    out += b"\x80\x02}(" + unicode("protocol_version") + b"M\xe9\x03"
    out += unicode("little_endian") + b"\x88" + unicode("type_sizes") + b"}("
    out += unicode("short") + b"K\x02" + unicode("int") + b"K\x04uu."
    out += stream + b"\x80\x02](" + b"".join(map(unicode, storages)) + b"e."
    return out + b"".join(struct.pack("<q", len(raw) // 4) + raw for raw in storages.values())


def deep_compression_file(codes, codebooks, biases):
    """Deep Compression's file: layer -> flat codes in Caffe's order, 0 where pruned."""
    streams = {}
    for layer, flat in codes.items():
        gaps, kept, before = [], [], -1
        for position in np.flatnonzero(flat).tolist():
            while position - before - 1 > 15:
                gaps.append(15)
                kept.append(0)
                before += 16
            gaps.append(position - before - 1)
            kept.append(int(flat[position]))
            before = position
        streams[layer] = (kept, gaps)
    out = struct.pack("<8I", *(len(kept) for kept, _ in streams.values()))
    for layer, (kept, gaps) in streams.items():
        out += codebooks[layer].astype("<f4").tobytes() + biases[layer].astype("<f4").tobytes()
        out += bytes(kept) if len(codebooks[layer]) == 256 else nibbles(kept)
        out += nibbles(gaps)
    return out


def nibbles(values):
    """Two numbers a byte, the first one low."""
    values = [*values, 0] if len(values) % 2 else values
    return bytes(a | b << 4 for a, b in zip(values[::2], values[1::2], strict=True))
