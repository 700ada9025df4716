"""Dense layers after convolutions: every one reordered, whatever its name and place in the file."""

import h5py
import numpy as np
import pytest
from weight_seeds import message

from tf_alexnet.errors import WeightsError
from tf_alexnet.weights import LayerArrays, WeightArrays, read_weights, write_weights
from tf_alexnet.weights.deploy import deploy_prototxt as prototxt
from tf_alexnet.weights.formats import read_file

RANDOM = np.random.default_rng(5)
SIDE, MAPS = 3, 4  # of the last map


def caffe_layers(names):
    """{name: (kernel, bias)} in Caffe's layout: conv* of `MAPS` filters, fc6*, fc7*, others."""
    found = {}
    for name in names:
        rows = {"conv": (MAPS, 3, 1, 1), "fc6": (16, MAPS * SIDE * SIDE), "fc7": (16, 16)}
        shape = next((s for start, s in rows.items() if name.startswith(start)), (5, 16))
        kernel = RANDOM.normal(size=shape).astype("f4")
        found[name] = kernel, RANDOM.normal(size=shape[:1]).astype("f4")
    return found


def blob(array):
    shape = message(7, message(1, b"".join(bytes([n]) for n in array.shape)))
    return shape + message(5, array.tobytes())


def model_file(path, layers, links=None, kinds=None):
    """A .caffemodel; `links` maps a layer to the layers it reads, which write a graph."""
    raw = message(1, b"some net")
    for name, pair in layers.items():
        kind = (kinds or {}).get(name, "Convolution" if pair[0].ndim == 4 else "InnerProduct")
        layer = message(1, name.encode()) + message(2, kind.encode())
        if links is not None:
            layer += b"".join(message(3, x.encode()) for x in links[name])
            layer += message(4, name.encode())
        raw += message(100, layer + b"".join(message(7, blob(x)) for x in pair))
    path.write_bytes(raw)
    return path


def answers(layers, name, photo):
    """fc6-like layer `name` on a map, computed on Caffe's arrays, channels first."""
    kernel, bias = layers[name]
    return kernel @ photo.transpose(2, 0, 1).reshape(-1) + bias


def assert_right(found, layers, names):
    """Layers `names` give Caffe's values when they read a (height, width, channels) map."""
    for name in names:
        photo = RANDOM.normal(size=(SIDE, SIDE, MAPS)).astype("f4")
        value = photo.reshape(-1) @ found.layers[name].kernel + found.layers[name].bias
        error = np.abs(value - answers(layers, name, photo)).max() / np.abs(value).max()
        assert error < 1e-6, f"{name}: {error}"


CASES = {
    "two streams": ["conv1", "conv5", "fc6", "fc7", "conv1_p", "conv5_p", "fc6_p", "fc7_p"],
    "renamed": ["conv1", "conv5", "fc6_new", "fc7", "fc8"],
    "renamed last": ["conv1", "conv5", "fc7", "fc8", "fc6_new"],
}


@pytest.mark.parametrize("case", CASES)
def test_every_dense_layer_after_a_convolution_is_reordered(tmp_path, case):
    layers = caffe_layers(CASES[case])
    found = read_file(model_file(tmp_path / "x.caffemodel", layers))
    assert_right(found, layers, [name for name in layers if name.startswith("fc6")])
    for name in ("fc7", "fc8"):
        if name in layers:
            np.testing.assert_array_equal(found.layers[name].kernel, layers[name][0].T)
    assert list(found.layers) == CASES[case], "the file's order"
    write_weights(found, tmp_path / "back.caffemodel")
    back = read_file(tmp_path / "back.caffemodel")
    assert back.digest == found.digest
    assert list(back.layers) == CASES[case]


def test_groups_sorted_by_name_in_a_snapshot(tmp_path):
    layers = caffe_layers(["conv5", "score", "fc6_new", "fc7", "conv1"])
    with h5py.File(tmp_path / "x.caffemodel.h5", "w") as file:
        for name, pair in layers.items():
            for index, array in enumerate(pair):
                file[f"data/{name}/{index}"] = array
    found = read_file(tmp_path / "x.caffemodel.h5")
    assert_right(found, layers, ["fc6_new"])
    np.testing.assert_array_equal(found.layers["score"].kernel, layers["score"][0].T)


def test_the_graph_decides_where_counts_cannot(tmp_path):
    layers = caffe_layers(["conv1", "fc7", "side"])
    layers["conv1"] = np.ones((4, 3, 1, 1), "f4"), np.ones(4, "f4")
    layers["fc7"] = np.ones((16, 16), "f4"), np.ones(16, "f4")
    layers["side"] = RANDOM.normal(size=(2, 16)).astype("f4"), np.ones(2, "f4")
    by_map = {"conv1": ["data"], "fc7": ["conv1"], "side": ["conv1"]}
    by_vector = {"conv1": ["data"], "fc7": ["conv1"], "side": ["fc7"]}
    kernel = layers["side"][0]
    reordered = kernel.reshape(2, 4, 2, 2).transpose(2, 3, 1, 0).reshape(16, 2)
    for links, expected in ((by_map, reordered), (by_vector, kernel.T)):
        found = read_file(model_file(tmp_path / "x.caffemodel", layers, links))
        np.testing.assert_array_equal(found.layers["side"].kernel, expected)
        write_weights(found, tmp_path / "back.caffemodel")
        raw = (tmp_path / "back.caffemodel").read_bytes()
        assert kernel.tobytes() in raw, "written in Caffe's order again"


def test_two_streams_that_are_joined(tmp_path):
    layers = caffe_layers(["conv5", "conv5_p"])
    layers["fc6"] = RANDOM.normal(size=(7, 72)).astype("f4"), np.ones(7, "f4")
    links = {"conv5": ["data"], "conv5_p": ["data_p"], "fc6": ["both"]}
    path = model_file(tmp_path / "x.caffemodel", layers, links)
    with pytest.raises(WeightsError, match="fc6 has 72 inputs in an unknown order"):
        read_file(path)
    concat = message(1, b"both") + message(2, b"Concat")
    concat += message(3, b"conv5") + message(3, b"conv5_p") + message(4, b"both")
    raw = path.read_bytes()
    at = raw.index(message(1, b"fc6") + message(2, b"InnerProduct")) - 5
    while not raw.startswith(b"\xa2\x06", at):
        at += 1
    path.write_bytes(raw[:at] + message(100, concat) + raw[at:])
    found = read_file(path).layers["fc6"].kernel
    kernel = layers["fc6"][0].reshape(7, 8, 3, 3).transpose(2, 3, 1, 0).reshape(72, 7)
    np.testing.assert_array_equal(found, kernel)


def test_what_cannot_be_known_is_refused_or_left_out(tmp_path):
    layers = caffe_layers(["conv1", "conv5", "fc6", "fc7"])
    layers["aside"] = np.ones((2, 37), "f4"), np.ones(2, "f4")
    path = model_file(tmp_path / "x.caffemodel", layers)
    with pytest.warns(UserWarning, match="left out: aside has 37 inputs in an unknown order"):
        assert "aside" not in read_file(path).layers
    arrays = WeightArrays({"fc6": (np.ones((37, 2), "f4"), np.ones(2, "f4"))})
    with pytest.raises(WeightsError, match="fc6 has 37 inputs in an unknown order"):
        write_weights(arrays, tmp_path / "y.caffemodel")


@pytest.mark.parametrize("first", ["LRN", "Pooling"])
def test_the_graph_tells_alexnet_from_caffenet(tmp_path, first):
    """And the name of the net is not believed against it: Places calls its CaffeNet AlexNet."""
    from tf_alexnet.architectures import ARCHITECTURES
    from tf_alexnet.weights.graph import match_graph
    from tf_alexnet.weights.prototxt import parse

    table = ARCHITECTURES["bvlc_alexnet" if first == "LRN" else "caffenet"]
    match = match_graph(parse(prototxt(table).replace(f'"{table.name}"', '"AlexNet"')).nodes)
    assert (match.architecture, match.difference) == (table.name, None)
    assert match.classifiers == ("fc8",)
    assert match.flattened == {"fc6": 256, "fc7": 0, "fc8": 0}


def test_own_names_and_the_net_s_name_come_back(tmp_path):
    layers = caffe_layers(["conv1", "conv5", "fc6", "fc7", "fc8_kevin"])
    arrays = read_weights(model_file(tmp_path / "x.caffemodel", layers))
    assert arrays.classifier == "fc8_kevin"
    assert arrays.metadata["net"] == "some net"
    write_weights(arrays, tmp_path / "y.caffemodel")
    raw = (tmp_path / "y.caffemodel").read_bytes()
    assert raw.startswith(message(1, b"some net"))
    assert message(1, b"fc8_kevin") in raw
    again = read_weights(tmp_path / "y.caffemodel")
    assert (again.digest, again.classifier) == (arrays.digest, "fc8_kevin")


def test_nvidia_s_raw_blobs(tmp_path):
    values = RANDOM.normal(size=(4, 3, 1, 1)).astype("f2")
    for kind, form in ((0, "<f8"), (1, "<f4"), (2, "<f2")):
        raws = []
        for array in (values, values[:, 0, 0, 0]):
            shape = message(7, message(1, bytes(array.shape)))
            raws.append(shape + bytes([10 << 3, kind]) + message(12, array.astype(form).tobytes()))
        layer = message(1, b"conv1") + b"".join(message(7, raw) for raw in raws)
        (tmp_path / "x.caffemodel").write_bytes(message(1, b"net") + message(100, layer))
        found = read_file(tmp_path / "x.caffemodel").layers["conv1"]
        np.testing.assert_array_equal(found.kernel, values.transpose(2, 3, 1, 0).astype("f4"))
    (tmp_path / "x.caffemodel").write_bytes((tmp_path / "x.caffemodel").read_bytes()[:-1])
    with pytest.raises(WeightsError, match="damaged Caffe model"):
        read_file(tmp_path / "x.caffemodel")


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("BatchNorm", "a network with batch normalisation \\(layer 'bn1'\\), not AlexNet"),
        ("PReLU", "a network with PReLU"),
        ("TanH", "a network with tanh units"),
    ],
)
def test_other_networks_are_named_for_what_they_are(tmp_path, kind, found):
    layers = caffe_layers(["conv1", "fc6"])
    both = {"conv1": layers["conv1"], "bn1": (np.ones(4, "f4"),), "fc6": layers["fc6"]}
    links = {"conv1": ["data"], "bn1": ["conv1"], "fc6": ["bn1"]}
    for chained in (links, None):
        path = model_file(tmp_path / "x.caffemodel", both, chained, {"bn1": kind})
        with pytest.raises(WeightsError, match=found) as caught:
            read_file(path)
        assert "damaged" not in str(caught.value)


def test_layers_of_other_kinds_are_left_out_by_name(tmp_path):
    layers = caffe_layers(["conv1", "conv5"]) | {"upscore": (np.ones((2, 1, 4, 4), "f4"),)}
    path = model_file(tmp_path / "x.caffemodel", layers, None, {"upscore": "Deconvolution"})
    with pytest.warns(UserWarning, match=r"left out: upscore \(Deconvolution with 1 blobs\)"):
        assert list(read_file(path).layers) == ["conv1", "conv5"]


def test_fully_convolutional_dense_layers(tmp_path):
    layers = caffe_layers(["conv1", "conv5", "fc6", "fc7", "score_fr"])
    as_maps = dict(layers)
    as_maps["fc6"] = layers["fc6"][0].reshape(16, MAPS, SIDE, SIDE), layers["fc6"][1]
    for name in ("fc7", "score_fr"):
        as_maps[name] = layers[name][0][:, :, None, None], layers[name][1]
    dense = read_weights(model_file(tmp_path / "x.caffemodel", layers))
    found = read_weights(model_file(tmp_path / "y.caffemodel", as_maps))
    assert found.digest == dense.digest
    assert found.classifier == "score_fr"


def test_the_classifier_is_found_or_named(tmp_path):
    layers = caffe_layers(["conv1", "conv5", "fc6", "fc7", "cls_score", "bbox_pred"])
    layers["bbox_pred"] = np.ones((20, 16), "f4"), np.ones(20, "f4")
    arrays = read_weights(model_file(tmp_path / "x.caffemodel", layers))
    assert "fc8" not in arrays.layers
    assert arrays.set_aside == ("cls_score", "bbox_pred")
    from tf_alexnet.weights import with_classifier

    for name, classes in (("cls_score", 5), ("bbox_pred", 20)):
        chosen = with_classifier(arrays, name)
        assert (chosen.classes, chosen.classifier) == (classes, name)
        arrays = chosen  # choosing another one later restores the first one's name
        assert len(chosen.layers) == len(layers)
    with pytest.raises(WeightsError, match=r"Layers that could be the classifier: .*cls_score"):
        with_classifier(arrays, "fc9")
    rcnn = caffe_layers(["conv1", "conv5", "fc6", "fc7", "fc-rcnn"])
    assert read_weights(model_file(tmp_path / "y.caffemodel", rcnn)).classifier == "fc-rcnn"


def test_plain_tuples_are_layers():
    kernel, bias = np.zeros((3, 3, 1, 2), "f4"), np.zeros(2, "f4")
    arrays = WeightArrays({"conv1": (kernel, bias)})
    assert isinstance(arrays.layers["conv1"], LayerArrays)
    assert arrays.digest == WeightArrays({"conv1": LayerArrays(kernel, bias)}).digest


def test_a_chosen_classifier_stays_chosen(tmp_path):
    from tf_alexnet.weights import convert_weights

    layers = caffe_layers(["conv1", "conv5", "fc6", "fc7", "cls_score", "bbox_pred"])
    path = model_file(tmp_path / "x.caffemodel", layers)
    for suffix in ("caffemodel", "npz", "safetensors", "h5", "npy"):
        target = tmp_path / f"y.{suffix}"
        written = convert_weights(path, target, classifier="bbox_pred")
        assert written.classifier == "bbox_pred"
        again = read_weights(target)
        assert (again.classifier, again.digest) == ("bbox_pred", written.digest)


def test_layers_behind_those_wanted_may_be_missing(tmp_path):
    from conftest import weights_of

    import tf_alexnet as ta

    whole = weights_of("compact")
    layers = {k: v for k, v in whole.layers.items() if k != "fc8"}
    heads = {
        name: (np.zeros((2048, n), "f4"), np.zeros(n, "f4")) for name, n in (("a", 2), ("b", 3))
    }
    arrays = WeightArrays(layers | heads, "compact")
    photo = np.zeros((1, 224, 224, 3), "f4")
    with pytest.warns(UserWarning, match="has no layer a, b; left out"):
        found = ta.FeatureExtractor(arrays, ("fc7", "fc6_preact"))(photo)
    expected = ta.FeatureExtractor(whole, ("fc7", "fc6_preact"))(photo)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    with pytest.raises(WeightsError, match="Pass the classifier: classifier='a' or 'b'"):
        ta.FeatureExtractor(arrays, ("prob",))
