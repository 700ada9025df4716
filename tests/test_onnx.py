"""ONNX files of the onnx package, read; and ours, computed by ONNX Runtime and OpenVINO."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import reference
from conftest import weights_of
from onnx import TensorProto, helper, numpy_helper
from onnx_seeds import export, torch, zoo
from weight_seeds import channels_first

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights import adapted_table, convert_weights, read_weights, write_weights
from tf_alexnet.weights.formats import read_file, write_file


def nameless(name):
    return f"onnx::{name[-1]}{name[:2]}k", f"onnx::{name[-1]}{name[:2]}b"


def save(path, model):
    path.write_bytes(model.SerializeToString())
    return path


def convolutions(name):
    """Weights of the convolutions of a network, and their table."""
    table = ARCHITECTURES[name].until("pool5")
    return synthetic_weights(table), table


@pytest.mark.parametrize(
    ("name", "full"),
    [
        *(("bvlc_alexnet", False), ("caffenet", False)),
        pytest.param("bvlc_alexnet", True, marks=pytest.mark.slow),
    ],
)
def test_the_zoo_s_files_are_read_as_the_caffemodels(tmp_path, name, full):
    arrays, table = (weights_of(name), ARCHITECTURES[name]) if full else convolutions(name)
    model = export(table, channels_first(arrays, 6), zoo)
    found = read_weights(save(tmp_path / "x.onnx", model))
    del model
    assert found.digest == arrays.digest
    assert found.architecture == name, "told by the order of the graph"
    assert list(found.layers) == list(arrays.layers)


def test_torch_s_export_of_torchvision_s_network(tmp_path):
    arrays, table = convolutions("torchvision")
    model = export(table, channels_first(arrays), torch)
    found = read_weights(save(tmp_path / "x.onnx", model))
    assert (found.architecture, found.digest) == ("torchvision", arrays.digest)


SMALL = {"conv": 1, "fc6": 16, "fc7": 16, "fc8": 7}


def small_alexnet():
    """All convolutions of bvlc_alexnet and small dense layers, channels first."""
    random = np.random.default_rng(3)
    shapes, rows = ARCHITECTURES["bvlc_alexnet"].parameter_shapes(), 9216
    layers = {}
    for name, (kernel, bias) in shapes.items():
        units = SMALL.get(name, bias[0])
        shape = (units, *(kernel[i] for i in (2, 0, 1))) if len(kernel) == 4 else (units, rows)
        rows = units if len(kernel) == 2 else rows
        layers[name] = random.normal(size=shape).astype("f2"), random.normal(size=units)
    return {name: tuple(x.astype("f2") for x in pair) for name, pair in layers.items()}


@pytest.mark.parametrize("form", ["raw", "list"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_numbers_of_every_kind(tmp_path, form, dtype):
    if (form, dtype) == ("list", np.float16):
        pytest.skip("ONNX keeps a list of half-precision numbers as integers")
    layers = small_alexnet()
    table = ARCHITECTURES["bvlc_alexnet"]
    found = read_file(save(tmp_path / "x.onnx", export(table, layers, zoo, form, dtype)))
    for name, (kernel, _) in layers.items():
        ours = found.layers[name].kernel
        if name == "fc6":
            kernel = kernel.reshape(-1, 256, 6, 6).transpose(2, 3, 1, 0).reshape(9216, -1)
        else:
            kernel = kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(ours, kernel.astype("f4"), strict=True)


def test_other_spellings_give_the_same_arrays(tmp_path):
    layers, table = small_alexnet(), ARCHITECTURES["bvlc_alexnet"]
    expected = read_file(save(tmp_path / "x.onnx", export(table, layers, zoo))).digest
    for options in ({"names": nameless}, {"names": zoo, "matmul": True}):
        model = export(table, layers, **options)
        assert read_file(save(tmp_path / "y.onnx", model)).digest == expected
    kernel, bias = layers["fc6"]
    ours = kernel.reshape(-1, 256, 6, 6).transpose(0, 2, 3, 1).reshape(len(kernel), -1)
    model = export(table, {**layers, "fc6": (ours, bias)}, zoo, last=True)
    assert read_file(save(tmp_path / "z.onnx", model)).digest == expected


def changed(change):
    model = export(ARCHITECTURES["bvlc_alexnet"], small_alexnet(), zoo)
    change(model.graph)
    return model


def external(graph):
    graph.initializer[0].data_location = TensorProto.EXTERNAL
    entry = graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def quantised(graph):
    graph.node[0].op_type = "QLinearConv"


def integers(graph):
    name = graph.initializer[0].name
    kernel = np.zeros((96, 3, 11, 11), np.int8)
    graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel, name))


def normalised(graph):
    node = helper.make_node("BatchNormalization", ["conv1_2", "s", "b", "m", "v"], ["bn"], "bn1")
    graph.node.insert(2, node)
    graph.node[3].input[0] = "bn"


def shared(graph):
    for index in range(200):
        node = helper.make_node("Gemm", ["flat", "fc6_w_0", "fc6_b_0"], [f"x{index}"], transB=1)
        graph.node.append(node)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (external, "weights in another file"),
        (quantised, r"quantised weights \(QLinearConv\): another network"),
        (integers, "int8 weights instead of floats"),
        (normalised, r"batch normalisation \(layer 'bn1'\)"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, change, found):
    with pytest.raises(WeightsError, match=found) as caught:
        read_file(save(tmp_path / "x.onnx", changed(change)))
    assert "damaged" not in str(caught.value)


def test_one_tensor_for_many_layers_is_no_bomb(tmp_path):
    with pytest.raises(WeightsError, match="far more numbers than an AlexNet"):
        read_file(save(tmp_path / "x.onnx", changed(lambda g: [shared(g) for _ in range(3)])))


def test_cut_files_are_refused(tmp_path):
    raw = export(ARCHITECTURES["bvlc_alexnet"], small_alexnet(), zoo).SerializeToString()
    random = np.random.default_rng(1)
    for at in random.integers(1, len(raw), 40):
        (tmp_path / "x.onnx").write_bytes(raw[:at])
        with pytest.raises(WeightsError):
            read_file(tmp_path / "x.onnx")


def test_a_difference_from_the_table_is_recorded(tmp_path):
    def stride(graph):
        attribute = next(x for x in graph.node[0].attribute if x.name == "strides")
        attribute.ints[:] = [2, 2]

    arrays, table = convolutions("bvlc_alexnet")
    model = export(table, channels_first(arrays), zoo)
    stride(model.graph)
    found = read_file(save(tmp_path / "x.onnx", model))
    assert found.architecture == "bvlc_alexnet"
    assert found.metadata["differs"] == "layer 'conv1' has stride 2, conv1 of bvlc_alexnet has 4"


def test_converts_to_a_caffemodel(tmp_path):
    model = export(ARCHITECTURES["bvlc_alexnet"], small_alexnet(), zoo)
    found = read_file(save(tmp_path / "x.onnx", model))
    write_weights(found, tmp_path / "x.caffemodel")
    assert read_file(tmp_path / "x.caffemodel").digest == found.digest


def test_a_model_of_weights_that_differ_warns(tmp_path):
    import tf_alexnet as ta

    arrays, _ = convolutions("bvlc_alexnet")
    differing = dataclasses.replace(arrays, metadata={"differs": "layer 'conv1' has stride 2"})
    with pytest.warns(UserWarning, match="not quite bvlc_alexnet: layer 'conv1' has stride 2"):
        ta.AlexNet(differing, include_top=False)


def test_a_product_of_two_blobs_is_not_a_layer(tmp_path):
    """A MatMul without a kernel, before an Add of a bias: found by mutants."""
    model = export(ARCHITECTURES["bvlc_alexnet"], small_alexnet(), zoo, matmul=True)
    product = next(x for x in model.graph.node if x.output[0] == "fc7_product")
    product.input[1] = "nothing"
    with pytest.raises(WeightsError, match="residual connections"):
        read_file(save(tmp_path / "x.onnx", model))


def engines(path):
    """Two engines that are not ours: functions of a batch that return (name, values)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.get_outputs()
    yield lambda x: (output.name, session.run(None, {"data": x})[0])
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", hints)
    yield lambda x: (compiled.output(0).any_name, compiled(x)[0])


@pytest.mark.parametrize(
    ("name", "end", "lrn"),
    [
        ("bvlc_alexnet", "fc8 on pool5", "operator"),
        ("caffenet", "convolutions", "ops"),
        ("compact", None, None),
        pytest.param("bvlc_alexnet", None, "operator", marks=pytest.mark.slow),
        pytest.param("bvlc_alexnet", None, "ops", marks=pytest.mark.slow),
        pytest.param("compact", "convolutions", "operator", marks=pytest.mark.slow),
        pytest.param("compact", "fc8 on pool5", "operator", marks=pytest.mark.slow),
    ],
)
def test_other_engines_compute_what_caffe_defines(tmp_path, name, end, lrn):
    table = ARCHITECTURES[name]
    if end == "fc8 on pool5":
        arrays = synthetic_weights(table.with_head("pool5", 5))
    else:
        arrays = convolutions(name)[0] if end else weights_of(name)
    path = tmp_path / "x.onnx"
    write_weights(arrays, path, lrn=lrn)

    table = table.until("pool5") if end == "convolutions" else adapted_table(arrays, table)
    limit = 120 if table.channels == "BGR" else 2
    shape = (2, table.input_size, table.input_size, 3)
    x = np.random.default_rng(0).uniform(-limit, limit, shape).astype("f4")
    last = table.layers[-1].name
    expected = reference.forward(table, arrays, x.transpose(0, 3, 1, 2))[last]
    expected = expected.transpose(0, 2, 3, 1) if expected.ndim == 4 else expected
    for compute in engines(path):
        for count in (2, 1):
            found, values = compute(x[:count])
            assert found == last
            assert reference.relative_error(values, expected[:count]) < 1e-5  # observed 4e-6

    again = read_weights(path)
    assert (again.digest, again.architecture) == (arrays.digest, name)
    assert again.metadata["preset"] == table.preset
    assert not again.metadata.keys() & {"differs", "digest"}
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {x.name for x in model.graph.node} >= {*table.blobs[1:], *table.preacts}


def test_a_converted_file_says_what_it_is(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("weights", "convert", "torchvision-convs", "x.onnx", "--lrn", "ops")
    assert code == 0
    assert "5 layers, read back equal" in out
    model = onnx.load("x.onnx")
    found = read_weights("x.onnx")
    assert {x.key: x.value for x in model.metadata_props} == {
        **{"architecture": "torchvision", "preset": "torchvision", "digest": found.digest},
        **{key: found.metadata[key] for key in ("name", "origin", "origin_digest", "licence")},
        "layout": "TensorFlow",
    }
    pixels = "RGB, 0 to 1, minus the mean, divided by the standard deviation"
    assert f"preset torchvision ({pixels})" in model.doc_string
    back = convert_weights("x.onnx", "x.npz")
    assert (back.digest, back.metadata) == (found.digest, found.metadata)


def test_what_has_no_place_in_a_network_is_not_written(tmp_path):
    arrays = synthetic_weights("compact")
    kernel, bias = arrays.layers["fc8"]
    holed = kernel.copy()
    holed[3, 4] = np.nan
    convs = dataclasses.replace(convolutions("bvlc_alexnet")[0], architecture=None)
    for layers, options, error, found in (
        ({**arrays.layers, "fc9": (kernel, bias)}, {}, WeightsError, "fc9 has no place in the"),
        ({**arrays.layers, "fc8": (holed, bias)}, {}, WeightsError, "1 of 2048000 values are NaN"),
        ({"conv1": arrays.layers["conv1"]}, {}, WeightsError, "conv2 is missing"),
        (convs.layers, {"architecture": None}, WeightsError, "fit bvlc_alexnet and caffenet"),
        (arrays.layers, {"lrn": "both"}, UsageError, r"no such lrn\. Use one of operator, ops"),
        (arrays.layers, {"form": "list"}, UsageError, "that format has one form only"),
        (arrays.layers, {"metadata": {"note": "x" * 40000}}, UsageError, "characters are too many"),
    ):
        changes = {k: options.pop(k) for k in ("architecture", "metadata") if k in options}
        with pytest.raises(error, match=found):
            write_file(
                dataclasses.replace(arrays, layers=layers, **changes),
                tmp_path / "x.onnx",
                **options,
            )
    with pytest.raises(UsageError, match="that format has no option lrn"):
        write_weights(arrays, tmp_path / "x.npz", lrn="ops")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda kernel: kernel * np.float32(2), "layer 'norm1' has alpha 0.000199"),
        (lambda kernel: kernel[::-1].copy(), "layer 'norm1' is Div where bvlc_alexnet has LRN"),
    ],
)
def test_only_response_normalisation_is_taken_for_it(tmp_path, change, found):
    arrays, _ = convolutions("bvlc_alexnet")
    write_weights(arrays, tmp_path / "x.onnx", lrn="ops")
    model = onnx.load(tmp_path / "x.onnx")
    window = next(x for x in model.graph.initializer if x.name == "norm1/window")
    window.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(window)), window.name))
    assert found in read_file(save(tmp_path / "y.onnx", model)).metadata["differs"]
