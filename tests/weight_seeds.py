"""Small weight files for the tests, spelt byte by byte where no present tool writes them."""

import struct

import numpy as np

from tf_alexnet.weights import LayerArrays, WeightArrays

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
