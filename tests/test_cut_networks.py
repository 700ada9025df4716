"""Networks cut after pool5 or fc6, with a classifier of their own: built, found, converted."""

from dataclasses import replace

import numpy as np
import pytest
import reference

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES, BVLC_ALEXNET, COMPACT, HEAD_LAYERS, TORCHVISION
from tf_alexnet.errors import LayerError, WeightsError
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights import LayerArrays, WeightArrays, adapted_table, inspect_weights
from tf_alexnet.weights.formats import read_file, write_file


def cut_weights(table, layer, classes=5):
    """Weights of `table` with a classifier on `layer`, and what its file records."""
    arrays = synthetic_weights(table.with_head(layer, classes))
    return replace(arrays, metadata={"head": layer})


def names_after_pool5(table):
    names = [layer.name for layer in table.layers]
    return names[names.index("pool5") + 1 :]


def test_the_dropout_before_the_next_dense_layer_stays():
    expected = {
        "pool5": ["drop5", "fc8", "prob"],
        "fc6": ["drop5", "fc6", "drop6", "fc8", "prob"],
        "fc7": ["drop5", "fc6", "drop6", "fc7", "fc8", "prob"],
    }
    for layer, names in expected.items():
        assert names_after_pool5(TORCHVISION.with_head(layer, 3)) == names
    assert names_after_pool5(BVLC_ALEXNET.with_head("pool5", 3)) == ["fc8", "prob"]
    assert names_after_pool5(BVLC_ALEXNET.with_head("fc7", 3)) == names_after_pool5(BVLC_ALEXNET)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_shapes_of_a_classifier_are_those_of_the_layer_below(name):
    table = ARCHITECTURES[name]
    inputs = {row.name: int(np.prod(row.output_shape)) for row in table.rows()}
    for layer in HEAD_LAYERS:
        cut = table.with_head(layer, 7)
        assert cut.parameter_shapes()["fc8"] == ((inputs[layer], 7), (7,))
        assert cut.classes == 7
    assert table.with_head("fc7", 7).parameters == table.with_classes(7).parameters


def test_a_classifier_stands_on_the_end_of_the_convolutions_or_a_dense_layer():
    for layer in ("conv5", "fc8", "drop6", "pool4"):
        with pytest.raises(LayerError, match=r"Use one of pool5, fc6, fc7\."):
            COMPACT.with_head(layer, 2)


@pytest.mark.parametrize(("name", "layer"), [("compact", "fc6"), ("torchvision", "pool5")])
def test_a_cut_network_equals_the_reference_and_the_fast_path(name, layer, example_photos):
    arrays = cut_weights(ARCHITECTURES[name], layer)
    model = ta.AlexNet(arrays)
    assert model.output_shape == (None, 5)
    extractor = ta.FeatureExtractor(arrays, ["prob", layer])
    x = extractor.preprocess([ta.load_image(path) for path in example_photos[:2]])
    expected = reference.forward(
        adapted_table(arrays, ARCHITECTURES[name]), arrays, x.transpose(0, 3, 1, 2)
    )
    probabilities = expected["prob"]
    assert reference.relative_error(model.predict(x, verbose=0), probabilities) < 1e-5
    assert reference.relative_error(extractor(x)["prob"], probabilities) < 1e-5  # observed 1e-6


@pytest.mark.parametrize(
    ("layer", "suffix"),
    [
        *(("pool5", suffix) for suffix in (".safetensors", ".h5", ".npz", ".onnx")),
        ("fc6", ".safetensors"),
        *(pytest.param("fc6", x, marks=pytest.mark.slow) for x in (".h5", ".npz", ".onnx")),
    ],
)
def test_a_cut_network_is_an_ordinary_weight_file(layer, suffix, tmp_path):
    arrays = cut_weights(COMPACT, layer)
    path = tmp_path / f"w{suffix}"
    ta.write_weights(arrays, path)
    again = ta.read_weights(path)
    assert again.digest == arrays.digest
    assert again.architecture == "compact"
    assert again.metadata["preset"] == "compact"
    assert adapted_table(again, COMPACT) == COMPACT.with_head(layer, 5)
    found = inspect_weights(path)
    assert found.classes == 5
    assert found.identity.candidates == ("compact",)
    assert found.warnings == ("of unknown origin: not the weights of a known trained network",)


def test_a_classifier_on_pool5_is_told_by_its_rows_in_formats_that_record_nothing(tmp_path):
    for suffix in (".npy", ".caffemodel"):
        ta.write_weights(cut_weights(COMPACT, "pool5"), tmp_path / f"w{suffix}")
        again = ta.read_weights(tmp_path / f"w{suffix}")
        assert again.architecture == "compact"
        assert ta.AlexNet(again).output_shape == (None, 5)


def test_a_file_that_lost_a_dense_layer_is_not_taken_for_a_shorter_network():
    layers = {
        name: LayerArrays(*(np.broadcast_to(np.float32(0), shape) for shape in shapes))
        for name, shapes in COMPACT.parameter_shapes().items()
    }
    full = WeightArrays(layers, "compact")
    for lost in (["fc7"], ["fc6"], ["fc6", "fc7"]):
        layers = {name: x for name, x in full.layers.items() if name not in lost}
        with pytest.raises(WeightsError, match=f"{lost[0]} is missing"):
            ta.AlexNet(replace(full, layers=layers))


def test_a_classifier_on_pool5_has_no_dense_features():
    arrays = cut_weights(COMPACT, "pool5")
    with pytest.raises(LayerError, match=r"layer 'fc7': this compact has no such layer"):
        ta.AlexNet(arrays, feature_extract=True)
    with pytest.raises(LayerError, match=r"layer 'fc6': compact has no such blob"):
        ta.FeatureExtractor(arrays, ["fc6"])
    assert ta.AlexNet(arrays, include_top=False).output_shape == (None, 6, 6, 128)


def test_other_classes_than_those_of_a_cut_network_start_untrained():
    with pytest.warns(UserWarning, match="fc8 is for 5 classes, but classes=3"):
        model = ta.AlexNet(cut_weights(COMPACT, "pool5"), classes=3)
    assert model.output_shape == (None, 3)


def test_a_safetensors_header_of_any_length_is_no_pickle(tmp_path):
    # 0x480 little-endian begins as a pickle of protocol 4 does.
    layers = synthetic_weights(COMPACT.until("pool1")).layers
    lengths = set()
    for room in range(0, 260, 8):
        arrays = WeightArrays(layers, metadata={"note": "x" * room})
        write_file(arrays, tmp_path / "w.safetensors")
        lengths.add((tmp_path / "w.safetensors").read_bytes()[0])
        assert read_file(tmp_path / "w.safetensors").metadata == arrays.metadata
    assert 0x80 in lengths
