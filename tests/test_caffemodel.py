"""The Caffe model reader and writer against protobuf's own runtime, with caffe.proto's numbers."""

import itertools
import tracemalloc

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from weight_seeds import message, small_arrays, varint

from tf_alexnet.architectures import BVLC_ALEXNET
from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.weights import LayerArrays, WeightArrays
from tf_alexnet.weights.formats import caffemodel, npy, write_file
from tf_alexnet.weights.graph import GraphMatch

ARRAYS = small_arrays()
VARIANTS = list(itertools.product(["new", "v1"], ["shaped", "legacy"], [True, False]))

# Message -> field -> (number, type, repeated); from BVLC/caffe src/caffe/proto/caffe.proto.
PROTO = {
    "BlobShape": {"dim": (1, "int64", True)},
    "BlobProto": {
        "num": (1, "int32", False),
        "channels": (2, "int32", False),
        "height": (3, "int32", False),
        "width": (4, "int32", False),
        "data": (5, "float", True),
        "diff": (6, "float", True),
        "shape": (7, "BlobShape", False),
        "double_data": (8, "double", True),
        "double_diff": (9, "double", True),
    },
    "V0LayerParameter": {
        "name": (1, "string", False),
        "type": (2, "string", False),
        "num_output": (3, "uint32", False),
        "blobs": (50, "BlobProto", True),
    },
    "V1LayerParameter": {
        "layer": (1, "V0LayerParameter", False),
        "bottom": (2, "string", True),
        "top": (3, "string", True),
        "name": (4, "string", False),
        "type": (5, "int32", False),
        "blobs": (6, "BlobProto", True),
        "blobs_lr": (7, "float", True),
    },
    "LayerParameter": {
        "name": (1, "string", False),
        "type": (2, "string", False),
        "bottom": (3, "string", True),
        "top": (4, "string", True),
        "loss_weight": (5, "float", True),
        "blobs": (7, "BlobProto", True),
        "phase": (10, "int32", False),
    },
    "NetParameter": {
        "name": (1, "string", False),
        "layers": (2, "V1LayerParameter", True),
        "input": (3, "string", True),
        "input_dim": (4, "int32", True),
        "force_backward": (5, "bool", False),
        "layer": (100, "LayerParameter", True),
    },
}


def _classes(packed):
    """Message classes of protobuf's runtime, with floats and doubles `packed` or not."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for name, fields in PROTO.items():
        kind = file.message_type.add(name=name)
        for field, (number, type_name, repeated) in fields.items():
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            entry = kind.field.add(name=field, number=number, label=label)
            if type_name in PROTO:
                entry.type, entry.type_name = kinds.TYPE_MESSAGE, f".caffe.{type_name}"
            else:
                entry.type = getattr(kinds, f"TYPE_{type_name.upper()}")
                if repeated and type_name != "string":
                    entry.options.packed = packed or field == "dim"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
        for name in PROTO
    }


CAFFE = {packed: _classes(packed) for packed in (True, False)}


def caffe_layout(name, layer):
    """(kernel, bias) as Caffe has them; written apart from the code under test."""
    kernel = layer.kernel
    if kernel.ndim == 4:
        return np.einsum("hwio->oihw", kernel), layer.bias
    if name == "fc6":
        channels = ARRAYS.layers["conv2"].kernel.shape[3]
        side = round((len(kernel) / channels) ** 0.5)
        cube = kernel.reshape(side, side, channels, -1)
        return np.einsum("hwco->ochw", cube).reshape(kernel.shape[1], -1), layer.bias
    return kernel.T, layer.bias


def fill(blob, array, legacy=False, field="data"):
    if legacy:
        shape = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = shape
    else:
        blob.shape.dim.extend(array.shape)
    getattr(blob, field).extend(array.ravel().tolist())


def net_bytes(kind="layer", legacy=False, field="data", packed=True, title="Net", arrays=ARRAYS):
    """A NetParameter as Caffe would store it, serialised by protobuf."""
    net = CAFFE[packed]["NetParameter"](name=title, input=["data"], input_dim=[1, 3, 8, 8])
    net.force_backward = False
    for name, layer in arrays.layers.items():
        relu = getattr(net, "layer" if kind == "layer" else "layers").add()
        if kind != "v0":
            relu.name = f"relu_{name}"
        entry = getattr(net, "layer" if kind == "layer" else "layers").add()
        entry.bottom.append("below")
        target = entry.layer if kind == "v0" else entry
        target.name = name
        for array in caffe_layout(name, layer):
            blob = target.blobs.add()
            fill(blob, array, legacy, field)
            blob.diff.extend([7.0] * 3)
    return net.SerializeToString()


def read_bytes(folder, raw):
    path = folder / "net.caffemodel"
    path.write_bytes(raw)
    return caffemodel.read(path)


def assert_same(found, expected=ARRAYS):
    assert list(found.layers) == list(expected.layers)
    for name, layer in expected.layers.items():
        for a, b in zip(found.layers[name], layer, strict=True):
            assert a.flags.c_contiguous
            np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("field", ["data", "double_data"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["layer", "v1", "v0"])
def test_files_that_protobuf_wrote(tmp_path, kind, legacy, field, packed):
    assert_same(read_bytes(tmp_path, net_bytes(kind, legacy, field, packed)))


@pytest.mark.parametrize(("layers", "blobs", "packed"), VARIANTS)
def test_protobuf_reads_what_we_write(tmp_path, layers, blobs, packed):
    path = tmp_path / "net.caffemodel"
    arrays = small_arrays(architecture="caffenet")
    caffemodel.write(arrays, path, layers, blobs, packed)
    net = CAFFE[packed]["NetParameter"].FromString(path.read_bytes())
    assert net.name == "caffenet"
    assert net.ByteSize() == path.stat().st_size  # packed or not as asked
    entries = net.layers if layers == "v1" else net.layer
    assert [x.name for x in entries] == list(ARRAYS.layers)
    convolution, dense = (4, 14) if layers == "v1" else ("Convolution", "InnerProduct")
    assert [x.type for x in entries] == 2 * [convolution] + 3 * [dense]
    for entry in entries:
        expected = caffe_layout(entry.name, ARRAYS.layers[entry.name])
        for blob, array in zip(entry.blobs, expected, strict=True):
            if blobs == "legacy":
                shape = (blob.num, blob.channels, blob.height, blob.width)
                assert shape == (1,) * (4 - array.ndim) + array.shape
            else:
                assert tuple(blob.shape.dim) == array.shape
            np.testing.assert_array_equal(np.array(blob.data, "f4"), array.ravel())
    assert_same(caffemodel.read(path))


def test_data_in_several_pieces_and_shape_in_single_fields(tmp_path):
    one, two = np.arange(12, dtype="<f4"), np.arange(3, dtype="<f4")
    pieces = message(5, one[:2].tobytes()) + b"\x2d" + one[2:3].tobytes() + message(5, b"")
    pieces += message(6, b"\0" * 8) + message(5, one[3:].tobytes())
    kernel = message(7, b"\x08\x03\x08\x04") + pieces
    bias = message(7, b"\x0a\x01\x03") + message(5, two.tobytes())
    conv = message(1, b"conv") + message(7, message(7, b"\x0a\x04\x04\x01\x01\x01")
                                         + message(5, b"\0" * 16))  # fmt: skip
    conv += message(7, message(7, b"\x0a\x01\x04") + message(5, b"\0" * 16))
    dense = message(1, b"dense") + message(7, kernel) + message(7, bias)
    found = read_bytes(tmp_path, message(100, conv) + message(100, dense)).layers["dense"]
    np.testing.assert_array_equal(found.kernel, one.reshape(3, 4).T)
    np.testing.assert_array_equal(found.bias, two)


@pytest.mark.parametrize(
    ("title", "classes", "architecture"),
    [
        ("AlexNet", 1000, "bvlc_alexnet"),
        ("CaffeNet", 1000, "caffenet"),
        ("bvlc_alexnet", 20, "bvlc_alexnet"),
        ("caffenet", 20, "caffenet"),
        ("AlexNet", 365, None),  # Places365 calls its CaffeNet so
        ("CaffeNet", 205, None),
        ("alexnet", 1000, None),
        ("torchvision", 1000, None),  # and its shapes are others
    ],
)
def test_only_a_name_that_fits_says_the_architecture(tmp_path, title, classes, architecture):
    shapes = BVLC_ALEXNET.with_classes(classes).parameter_shapes().items()
    layers = {
        name: LayerArrays(*(np.broadcast_to(np.float32(0), s) for s in pair))
        for name, pair in shapes
    }
    assert caffemodel._architecture(title, GraphMatch(), WeightArrays(layers)) == architecture


def test_the_whole_network_there_and_back(tmp_path):
    some = np.random.default_rng(3).normal(size=99_991).astype("f4")
    shapes = BVLC_ALEXNET.parameter_shapes().items()
    layers = {name: LayerArrays(*(np.resize(some, x) for x in pair)) for name, pair in shapes}
    network = WeightArrays(layers, "bvlc_alexnet")
    path = tmp_path / "net.caffemodel"
    caffemodel.write(network, path)
    tracemalloc.start()
    found = caffemodel.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.architecture == "bvlc_alexnet"
    for name, pair in layers.items():
        assert all(map(np.array_equal, found.layers[name], pair)), name
    assert peak < 1.02 * 243_860_896  # the arrays themselves, and no second copy of any
    tracemalloc.start()
    npy.write(found, tmp_path / "net.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    found = npy.read(tmp_path / "net.npy")
    for name, pair in layers.items():
        assert all(map(np.array_equal, found.layers[name], pair)), name


def test_every_variant_there_and_back_through_npy(tmp_path):
    npy.write(ARRAYS, tmp_path / "net.npy")
    for layers, blobs, packed in VARIANTS:
        caffemodel.write(npy.read(tmp_path / "net.npy"), tmp_path / "net", layers, blobs, packed)
        npy.write(caffemodel.read(tmp_path / "net"), tmp_path / "back.npy")
        assert (tmp_path / "back.npy").read_bytes() == (tmp_path / "net.npy").read_bytes()


def blob_of(array, **options):
    blob = CAFFE[True]["BlobProto"]()
    fill(blob, np.asarray(array, "f4"), **options)
    return blob.SerializeToString()


def layer_of(name, *blobs):
    return message(100, message(1, name.encode()) + b"".join(message(7, b) for b in blobs))


CONV = layer_of("conv5", blob_of(np.ones((2, 3, 1, 1))), blob_of(np.ones(2)))
FC7 = (blob_of(np.ones((3, 8))), blob_of(np.ones(3)))


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (blob_of(np.ones((1, 3, 4, 4)), legacy=True), r"a single Caffe blob \(a mean image\?\)"),
        (blob_of(np.ones((1, 3, 4, 4))), "a single Caffe blob"),
        (b"\x08\x05" + message(2, b"net") + message(3, blob_of(np.ones(3))), "a Caffe solver's"),
        (
            b"\x08\x07" + message(2, b"pytorch") + message(7, b""),
            "another kind of file: a field 1 ",
        ),  # ONNX
        (message(1, b"AlexNet"), "no layer with weights in it"),
        (CONV + CONV, "layer 'conv5' twice"),
        (CONV + layer_of("fc7", *FC7)[:-1], "a field that runs past the end"),
        (layer_of("fc7", *FC7), "fc7 has 8 inputs in an unknown order"),
        (
            CONV + layer_of("fc7", blob_of(np.ones((3, 6))), FC7[1]),
            "fc7 has 6 inputs in an unknown order",
        ),
        (CONV + layer_of("fc7", FC7[0]), "layer 'fc7' is without a bias, not AlexNet"),
        (CONV + layer_of("fc7", *FC7, FC7[1]), "layer 'fc7' is with 3 blobs"),
        (CONV + layer_of("fc7", FC7[1], FC7[0]), r"blobs of \(3,\) and \(3, 8\)"),
        (layer_of("c", message(7, b"\x0a\x01\x02") + message(5, b"\0" * 12)), "with 3 values"),
        (layer_of("c", message(7, b"\x0a\x01\x03") + message(5, b"\0" * 11)), "within a number"),
        (layer_of("c", message(5, b"\0" * 12)), r"an array of shape \(\) with 3 values"),
        (layer_of("c", message(7, b"\x08" + varint(2**64 - 1))), r"shape \(-1,\)"),
        (layer_of("c", message(7, message(1, b"\x01" * 9))), "more than 8 dimensions"),
        (layer_of("c", message(7, message(1, b"\x01" * 5)) + message(5, b"\0" * 4)), "1, 1, 1, 1"),
        (message(1, b"x") + b"\x13", "a field of wire type 3"),
        (message(1, b"x") + b"\x00\x00", "a field of number 0"),
        (message(1, b"x") + b"\x10\x00", "a field 2 of wire type 0"),
        (message(1, b"x") + b"\xff" * 12, "a number that runs past its end"),
        (message(1, b"\xff\xfe"), "a name that is not UTF-8"),
        (message(1, b"n" * 300), "a name of 300 bytes"),
        (message(1, b"x") + b"\x30\x01" * 20_001, "more than 20000 fields"),
        (layer_of("c", b"\x2d\0\0\0\0\x35\0\0\0\0" * 10_001), "more than 20000 fields"),
    ],
)
def test_damage_and_strangers_are_named(tmp_path, raw, found):
    with pytest.raises(WeightsError, match=found) as caught:
        read_bytes(tmp_path, raw)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"layers='v2'.* Use one of new, v1\.$"):
        write_file(ARRAYS, tmp_path / "x.caffemodel", layers="v2")
    alone = WeightArrays({"fc7": ARRAYS.layers["fc7"]})
    with pytest.raises(WeightsError, match="fc7 has 10 inputs in an unknown order"):
        caffemodel.write(alone, tmp_path / "x")
    assert not list(tmp_path.iterdir())
