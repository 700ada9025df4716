"""Prototxt files: which network, which classifier, how photos were prepared; or the reason not."""

import contextlib
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_alexnet.architectures import ARCHITECTURES, Conv
from tf_alexnet.errors import AlexNetError, UsageError, WeightsError
from tf_alexnet.weights.deploy import deploy_prototxt as prototxt
from tf_alexnet.weights.prototxt import Declared, PrototxtError, parse, resolve_architecture

DATA = """
name: "KevinNet"
layer {
  name: "data" type: "Data" top: "data" top: "label"
  include { phase: TRAIN }
  transform_param { mirror: true crop_size: 227 mean_file: "data/train_mean.binaryproto" }
}
layer {  # validation
  name: "data" type: "Data" top: "data" top: "label"
  include { phase: TEST }
  transform_param { mirror: false crop_size: 227 %s }
}
"""
TAIL = """
layer { name: "accuracy" type: "Accuracy" bottom: "fc8" bottom: "label" top: "accuracy"
        include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc8" bottom: "label" top: "loss" }
"""


def text_of(name, **changes):
    """A deploy prototxt, with some of its text replaced."""
    text = prototxt(ARCHITECTURES[name])
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def declared(tmp_path, text):
    (tmp_path / "net.prototxt").write_text(text)
    return resolve_architecture(tmp_path / "net.prototxt")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_table_is_known_by_its_prototxt(tmp_path, name):
    table = ARCHITECTURES[name]
    assert declared(tmp_path, text_of(name)) == Declared(
        name, None, table.classes, table.input_size, None, None
    )


def train_val(name="bvlc_alexnet", transform='mean_file: "data/mean.binaryproto"', tail=TAIL):
    deploy = text_of(name)
    layers = deploy[deploy.index('layer { name: "conv1"') :]
    layers = layers[: layers.index('layer { name: "prob"')]
    return DATA % transform + layers + tail


def test_a_training_network_says_how_photos_are_prepared(tmp_path):
    found = declared(tmp_path, train_val())
    assert found.preset == "caffe-mean-image"
    assert (found.architecture, found.mean_file) == ("bvlc_alexnet", "mean.binaryproto")
    assert found.mirror is True
    values = "mean_value: 104 mean_value: 117.5 mean_value: 123"
    assert declared(tmp_path, train_val(transform=values)).preset == "caffe.mean104-117.5-123"
    assert declared(tmp_path, train_val(transform="mean_value: 127")).preset == (
        "caffe.mean127-127-127"
    )
    assert declared(tmp_path, train_val(transform="")).preset == "caffe"
    assert declared(tmp_path, train_val("caffenet")).architecture == "caffenet"
    with pytest.raises(WeightsError, match=r"scales photos by 0\.00390625"):
        declared(tmp_path, train_val(transform="scale: 0.00390625"))


def test_presets_it_names_exist(tmp_path):
    from tf_alexnet.images import preset_named

    found = declared(tmp_path, train_val(transform="mean_value: 104 mean_value: 117 mean_value: 9"))
    assert preset_named(found.preset).mean == (104.0, 117.0, 9.0)


def test_the_classifier_keeps_its_name_and_its_classes(tmp_path):
    text = (
        text_of("caffenet")
        .replace('"fc8"', '"fc8_kevin"')
        .replace("num_output: 1000", "num_output: 48")
    )
    found = declared(tmp_path, text)
    assert (found.architecture, found.classifier, found.classes) == ("caffenet", "fc8_kevin", 48)
    second = (
        'layer { name: "color" type: "InnerProduct" bottom: "fc7" top: "color" '
        "inner_product_param { num_output: 12 } }"
    )
    both = declared(tmp_path, text + second)
    assert (both.architecture, both.classifier) == ("caffenet", None), "two: the caller chooses"


def test_files_of_2014(tmp_path):
    text = text_of("bvlc_alexnet").replace("layer {", "layers {")
    for new, old in (
        *(('"Convolution"', "CONVOLUTION"), ('"Pooling"', "POOLING"), ('"LRN"', "LRN")),
        *(('"InnerProduct"', "INNER_PRODUCT"), ('"ReLU"', "RELU"), ('"Softmax"', "SOFTMAX")),
    ):
        text = text.replace(new, old)
    start = text.index("layers {")
    text = text[:start] + text[text.index('layers { name: "conv1"') :]
    dims = 'input: "data"\ninput_dim: 10\ninput_dim: 3\ninput_dim: 227\ninput_dim: 227\n'
    assert declared(tmp_path, dims + text).input_size == 227
    shape = 'input: "data"\ninput_shape < dim: 10 dim: 3 dim: 227 dim: 227 >\n'
    found = declared(tmp_path, shape + text)
    assert (found.architecture, found.input_size) == ("bvlc_alexnet", 227)


def test_another_input_size_is_part_of_the_preset(tmp_path):
    found = declared(tmp_path, text_of("bvlc_alexnet").replace("dim: 227", "dim: 224"))
    assert (found.architecture, found.input_size, found.preset) == (
        *("bvlc_alexnet", 224, "caffe.size224"),
    )


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("11 stride: 4 pad: 0", "11 stride: 2 pad: 0", "'conv1' has stride 2, conv1 of .* has 4"),
        ("pad: 2 group: 2", "pad: 2 group: 1", "'conv2' has groups 1, conv2 of .* has 2"),
        ("alpha: 0.0001", "alpha: 0.0005", "'norm1' has alpha 0.0005, norm1 of bvlc_alexnet has"),
        ("pool: MAX", "pool: AVE", "'pool1' has pool AVE"),
        ("num_output: 4096", "num_output: 2048", "'fc6' has units 2048"),
        ("num_output: 384", "num_output: 512", "'conv3' has filters 512, conv3 of .* has 384"),
        ('type: "ReLU"', 'type: "PReLU"', "a network with PReLU"),
        ('type: "LRN"', 'type: "MVN"', "layer 'norm1' is MVN where bvlc_alexnet has LRN"),
    ],
)
def test_other_networks_are_refused_at_their_first_different_layer(tmp_path, old, new, found):
    text = text_of("bvlc_alexnet")
    assert old in text
    with pytest.raises(WeightsError, match=found) as caught:
        declared(tmp_path, text.replace(old, new))
    assert "\n" not in str(caught.value)


def test_vgg_is_not_alexnet(tmp_path):
    table = ARCHITECTURES["bvlc_alexnet"]
    layers = [dataclasses.replace(x, kernel=3) if isinstance(x, Conv) else x for x in table.layers]
    text = prototxt(dataclasses.replace(table, layers=tuple(layers)))
    with pytest.raises(WeightsError, match=r"'conv1' has kernel 3, conv1 of .* has 11"):
        declared(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "layer { name: 1 ", "layer }", "layer: 3", "a { " * 40, 'name: "x', "layer [",
     "layer { type: [1, 2", "\0", "layer { include { phase: [] } transform_param: [] }",
     "layer { name : { } type: { } bottom: { x: 1 } }"],
)  # fmt: skip
def test_what_is_not_a_prototxt_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(AlexNetError, match=r"net\.prototxt") as caught:
        declared(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UsageError, match="it can't be read"):
        resolve_architecture(tmp_path / "none.prototxt")
    (tmp_path / "net.prototxt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(WeightsError, match="not a prototxt"):
        resolve_architecture(tmp_path / "net.prototxt")
    with pytest.raises(UsageError, match="there is no such network"):
        resolve_architecture("alexnet")
    assert resolve_architecture(None) == Declared()
    assert resolve_architecture("caffenet") == Declared("caffenet")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutants_end_in_one_error(data):
    text = train_val()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        piece = data.draw(st.sampled_from(["", "{", "}", ":", '"', "layer", "[", "-1", "\\", "<"]))
        text = text[:at] + piece + text[at + data.draw(st.integers(0, 30)) :]
    with contextlib.suppress(PrototxtError):
        parse(text)
