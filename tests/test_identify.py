"""Which network is it: hash, biases, the file's word, shapes, in this order of belief."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trained import trained_layer

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import WeightsError
from tf_alexnet.weights import (
    LayerArrays,
    WeightArrays,
    catalog,
    find_weights,
    identify_weights,
    known_weights,
    read_weights,
    write_weights,
)
from tf_alexnet.weights.catalog import file_checksum
from tf_alexnet.weights.identify import fingerprints, kernel_figures

CATALOG_MODULE = sys.modules[known_weights.__module__]
ROOT = Path(__file__).parents[1]
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def arrays_of(table, network=None, classes=1000, noise=0.0, layers=None, **fields):
    """Arrays in the shapes of `table`: of a trained network, or zero kernels and random biases."""
    rng = np.random.default_rng(1)
    made = {}
    for name, shapes in ARCHITECTURES[table].with_classes(classes).parameter_shapes().items():
        kernel, bias = (np.zeros(shape, np.float32) for shape in shapes)
        bias[:] = rng.normal(0, 0.5, bias.shape)
        if network and name in fingerprints()[network]:
            kernel, bias = trained_layer(network, name)
            bias += rng.uniform(-noise, noise, bias.shape).astype(np.float32)
        if layers is None or name in layers:
            made[name] = LayerArrays(kernel, bias)
    return WeightArrays(made, **fields)


@pytest.mark.parametrize("network", ["bvlc_alexnet", "caffenet", "torchvision"])
@pytest.mark.parametrize("classes", [1000, 20])
def test_biases_tell_trained_networks_apart(network, classes):
    arrays = arrays_of(network, network, classes, noise=1e-3)
    found = identify_weights(arrays)
    assert (found.name, found.architecture, found.how) == (network, network, "fingerprint")
    assert found.trained
    assert found.nearest == network
    assert 9e-4 < found.distance < 1.1e-3
    assert found.preset == ARCHITECTURES[network].preset


def test_fingerprints_are_far_apart_and_fit_their_tables():
    assert {network: len(layers) for network, layers in fingerprints().items()} == {
        "bvlc_alexnet": 1,
        "caffenet": 5,
        "torchvision": 5,
    }
    for network in ("bvlc_alexnet", "caffenet", "torchvision"):
        shapes = ARCHITECTURES[network].parameter_shapes()
        for layer, biases in fingerprints()[network].items():
            assert biases.shape == shapes[layer][1]
        for layer, known in kernel_figures()[network].items():
            assert tuple(known["shape"]) == shapes[layer][0]
    alexnet, caffenet = fingerprints()["bvlc_alexnet"], fingerprints()["caffenet"]
    apart = np.abs(np.subtract(alexnet["conv1"], caffenet["conv1"])).max()
    assert apart > 0.5  # a hundred times the tolerance
    # Caffe started CaffeNet's conv2 biases at 1 and AlexNet's at 0.1 (train_val.prototxt).
    assert np.median(caffenet["conv2"]) == pytest.approx(1, abs=0.01)


def test_each_layer_alone_is_enough_and_one_off_is_too_many():
    for layer in CONVOLUTIONS:
        arrays = arrays_of("caffenet", "caffenet", layers=(layer,))
        assert identify_weights(arrays).name == "caffenet"
    arrays = arrays_of("caffenet", "caffenet")
    arrays.layers["conv4"].bias[200] += 0.006
    found = identify_weights(arrays)
    assert (found.name, found.how, found.trained) == (None, "unknown", False)
    assert found.nearest == "caffenet"
    assert found.distance == pytest.approx(0.006, abs=1e-5)


def test_half_precision_is_still_known():
    arrays = arrays_of("caffenet", "caffenet")
    halved = {
        name: LayerArrays(layer.kernel, layer.bias.astype(np.float16).astype(np.float32))
        for name, layer in arrays.layers.items()
    }
    assert identify_weights(WeightArrays(halved)).name == "caffenet"


def test_a_false_record_loses_to_the_biases():
    lying = arrays_of("caffenet", "caffenet", architecture="bvlc_alexnet")
    found = identify_weights(lying)
    assert (found.architecture, found.how) == ("caffenet", "fingerprint")


def test_a_record_is_believed_where_the_biases_are_silent():
    arrays = arrays_of("caffenet", architecture="caffenet", metadata={"preset": "squash"})
    found = identify_weights(arrays)
    assert (found.name, found.architecture, found.how) == (None, "caffenet", "recorded")
    assert (found.preset, found.trained) == ("squash", False)


def test_a_record_that_the_shapes_contradict_is_not_believed():
    found = identify_weights(arrays_of("compact", architecture="caffenet"))
    assert (found.architecture, found.how) == ("compact", "shapes")


@pytest.mark.parametrize("table", ["torchvision", "compact"])
def test_shapes_decide_where_only_one_network_has_them(table):
    found = identify_weights(arrays_of(table, classes=7))
    assert (found.architecture, found.how, found.candidates) == (table, "shapes", (table,))
    assert (found.preset, found.trained) == (table, False)


def test_alexnet_or_caffenet_is_not_guessed():
    found = identify_weights(arrays_of("bvlc_alexnet", classes=365))
    assert (found.architecture, found.how) == (None, "unknown")
    assert found.candidates == ("bvlc_alexnet", "caffenet")


def test_nothing_to_compare_and_nothing_finite():
    dense = identify_weights(arrays_of("bvlc_alexnet", layers=("fc7", "fc8")))
    assert (dense.distance, dense.nearest, dense.how) == (None, None, "unknown")
    broken = arrays_of("bvlc_alexnet", "bvlc_alexnet")
    broken.layers["conv1"].bias[3] = np.nan
    assert identify_weights(broken).distance is None
    foreign = WeightArrays({"conv1": LayerArrays(np.zeros((3, 3)), np.zeros(7))})
    assert identify_weights(foreign).candidates == ()


def test_embedded_file_is_known_by_its_hash_and_read_with_its_preset():
    path = find_weights("torchvision-convs")
    found = identify_weights(path)
    assert (found.name, found.how, found.trained) == ("torchvision-convs", "sha256", True)
    arrays = read_weights(path)
    assert (arrays.architecture, list(arrays.layers)) == ("torchvision", list(CONVOLUTIONS))
    assert arrays.metadata["identified"] == "torchvision-convs"
    assert arrays.metadata["preset"] == "torchvision"
    for layer in CONVOLUTIONS:
        off = np.abs(arrays.layers[layer].bias - fingerprints()["torchvision"][layer]).max()
        assert off < 1e-6  # observed 5e-7: the figures are rounded to six places
    assert identify_weights(arrays).distance < 1e-6


def test_file_is_hashed_only_where_its_size_is_a_published_one(tmp_path, monkeypatch):
    path = tmp_path / "embedded"
    content = find_weights("torchvision-convs").read_bytes()
    path.write_bytes(content)
    known = [known_weights("torchvision")]

    def publish(size):
        record = known_weights("torchvision-convs") if len(known) == 1 else known[1]
        source = replace(record.sources[0], size=size)
        known[1:] = [replace(record, name="mine", sources=(source,))]
        monkeypatch.setattr(CATALOG_MODULE, "_CATALOG", tuple(known))

    publish(len(content))
    assert identify_weights(path).name == "mine"
    publish(len(content) + 1)
    # Calling it would be a TypeError.
    monkeypatch.setattr(CATALOG_MODULE, "file_checksum", None)
    assert identify_weights(path).how == "fingerprint"


def test_missing_file_is_a_weights_error(tmp_path):
    for call in (identify_weights, read_weights):
        with pytest.raises(WeightsError, match=r"gone\.npy"):
            call(tmp_path / "gone.npy")


def test_reading_replaces_stale_notes_and_a_false_preset(tmp_path, monkeypatch):
    notes = {"identified": "bvlc_alexnet", "preset": "torchvision", "licence": "mine"}
    lying = arrays_of("caffenet", "caffenet", architecture="torchvision", metadata=notes)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"x")
    monkeypatch.setattr("tf_alexnet.weights.formats.read_file", lambda _: lying)
    arrays = read_weights(path)
    assert arrays.architecture == "caffenet"
    assert arrays.metadata == {
        "identified": "caffenet",
        "identified_by": "fingerprint",
        "preset": "caffe",
        "licence": "mine",
    }
    own = arrays_of("caffenet", architecture="caffenet", metadata=notes)
    monkeypatch.setattr("tf_alexnet.weights.formats.read_file", lambda _: own)
    assert "identified" not in read_weights(path).metadata


def reversed_channels(kernel):
    return kernel[:, :, ::-1]


@pytest.mark.parametrize("network", ["caffenet", "torchvision"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (reversed_channels, "its input channels are in reverse order"),
        (lambda kernel: kernel.transpose(1, 0, 2, 3), "its height and width are swapped"),
        (lambda kernel: kernel[::-1, ::-1], "it is rotated by 180 degrees"),
        (lambda kernel: kernel / 255, "fine-tuned, or stored in another layout"),
        (lambda kernel: kernel.reshape(kernel.shape[::-1]), "stored in another layout"),
    ],
)
def test_right_biases_with_wrong_kernels_are_not_identified(tmp_path, network, change, why):
    arrays = arrays_of(network, network, layers=CONVOLUTIONS)
    found = identify_weights(arrays)
    assert found.compared.startswith("biases of conv1 to conv5, kernels of conv1 to conv")
    assert found.convolutions_only
    kernel, bias = arrays.layers["conv1"]
    layers = {**arrays.layers, "conv1": LayerArrays(np.ascontiguousarray(change(kernel)), bias)}
    found = identify_weights(WeightArrays(layers))
    assert (found.name, found.trained, found.convolutions_only) == (None, False, False)
    assert (found.nearest, found.distance < 1e-6) == (network, True)
    assert found.contradiction.startswith(f"biases of {network}, but the kernel of conv1 is not: ")
    assert why in found.contradiction
    if kernel.shape != layers["conv1"].kernel.shape:
        return
    write_weights(WeightArrays(layers), tmp_path / "x.npz")
    with pytest.warns(UserWarning, match=f"x.npz: biases of {network}, but the kernel of conv1"):
        assert "identified" not in read_weights(tmp_path / "x.npz").metadata


def test_embedded_convolutions_with_channels_reversed():
    """The real kernels, not those of `trained_layer`."""
    arrays = read_weights(find_weights("torchvision-convs"))
    kernel, bias = arrays.layers["conv1"]
    layers = {**arrays.layers, "conv1": LayerArrays(kernel[:, :, ::-1], bias)}
    assert "reverse order" in identify_weights(WeightArrays(layers)).contradiction
    tuned = kernel + np.random.default_rng(0).normal(0, 2e-3, kernel.shape).astype("f4")
    layers["conv1"] = LayerArrays(tuned, bias)
    assert identify_weights(WeightArrays(layers)).name == "torchvision"


def test_of_bvlc_alexnet_only_biases_are_known():
    arrays = arrays_of("bvlc_alexnet", "bvlc_alexnet", layers=("conv1",))
    found = identify_weights(arrays)
    assert (found.name, found.compared) == ("bvlc_alexnet", "biases of conv1")
    assert found.convolutions_only


def test_a_checksum_is_remembered_with_the_arrays_it_was_taken_of(tmp_path, monkeypatch):
    """Nothing but its checksum tells what Deep Compression's file is."""
    path = tmp_path / "AlexNet_compressed.net"
    write_weights(arrays_of("caffenet", layers=CONVOLUTIONS), tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").rename(path)
    record = known_weights("deep-compression")
    checksum = f"git_blob:{file_checksum(path, 'git_blob')}"
    record = replace(record, sources=(replace(record.sources[0], checksum=checksum),))
    monkeypatch.setattr(CATALOG_MODULE, "_CATALOG", (record, *catalog()))
    arrays = read_weights(path)
    assert (arrays.architecture, arrays.metadata["identified_by"]) == ("bvlc_alexnet", "git_blob")
    found = identify_weights(arrays)
    assert (found.name, found.how, found.trained) == ("deep-compression", "git_blob", True)
    assert not found.convolutions_only
    kernel, bias = arrays.layers["conv5"]
    others = {**arrays.layers, "conv5": LayerArrays(kernel, bias + 1)}
    assert not identify_weights(replace(arrays, layers=others)).trained
    write_weights(replace(arrays, layers=others), tmp_path / "y.npz")
    assert not identify_weights(read_weights(tmp_path / "y.npz")).trained


def test_a_file_does_not_vouch_for_itself(tmp_path):
    """Only what was read from a published file is known by its checksum, not what says it was."""
    arrays = arrays_of("torchvision", layers=CONVOLUTIONS)
    claim = {"identified_digest": arrays.digest}
    for more in ({}, {"identified": "caffenet", "identified_by": "sha256"}):
        write_weights(replace(arrays, metadata={**claim, **more}), tmp_path / "x.safetensors")
        found = identify_weights(tmp_path / "x.safetensors")
        assert (found.architecture, found.how, found.trained) == ("torchvision", "shapes", False)
        assert read_weights(tmp_path / "x.safetensors").metadata["identified_by"] == "shapes"


def test_shared_archive_holds_the_embedded_arrays():
    archive = ROOT.parent / "shared" / "data" / "torchvision_alexnet_convs.npz"
    if not archive.is_file():
        pytest.skip("no archive of the original arrays beside the repository")
    from safetensors.numpy import load_file

    embedded = load_file(find_weights("torchvision-convs"))
    with np.load(archive) as original:
        assert len(embedded) == len(original.files) == 10
        for name, array in embedded.items():
            np.testing.assert_array_equal(array, original[name.replace("/", "_")])


def tuned(classes, last="fc8", path="anywhere", **fields):
    """CaffeNet's shapes with biases of no known network, as a fine-tuning leaves them."""
    arrays = arrays_of("caffenet", classes=classes, source=str(path), **fields)
    layers = {last if name == "fc8" else name: x for name, x in arrays.layers.items()}
    return replace(arrays, layers=layers)


@pytest.mark.parametrize(
    ("file_name", "classes", "expected"),
    [
        ("alexnet_places365.caffemodel", 365, ("caffenet", "name")),
        ("finetune_flickr_style.caffemodel", 20, ("caffenet", "name")),
        ("mine.caffemodel", 365, (None, "unknown")),
        ("alexnet_places365.caffemodel", 205, (None, "unknown")),
        # Its fingerprint would have told; a name alone never makes an AlexNet.
        ("bvlc_alexnet.caffemodel", 1000, (None, "unknown")),
        ("bvlc_alexnet.npy", 1000, (None, "unknown")),
    ],
)
def test_published_names_count_only_where_nothing_else_can(
    tmp_path, monkeypatch, file_name, classes, expected
):
    path = tmp_path / file_name
    path.write_bytes(b"x")
    monkeypatch.setattr("tf_alexnet.weights.formats.read_file", lambda p: tuned(classes, path=p))
    found = identify_weights(path)
    assert (found.architecture, found.how) == expected
    assert (found.name, found.trained) == (None, False)
    arrays = read_weights(path)
    assert (arrays.architecture, arrays.metadata["identified_by"]) == expected
    assert arrays.classes == classes
    assert identify_weights(tuned(classes, path=path)).how == "unknown", "no file, no name"


def test_last_layer_renamed_by_a_fine_tuning_is_fc8(tmp_path, monkeypatch):
    from weight_seeds import small_arrays

    from tf_alexnet.weights.formats import caffemodel

    small = small_arrays(3)
    layers = {"fc8_flickr" if name == "fc8" else name: x for name, x in small.layers.items()}
    path = tmp_path / "finetune_flickr_style.caffemodel"
    caffemodel.write(WeightArrays(layers), path)
    arrays = read_weights(path)
    assert list(arrays.layers) == list(small.layers)
    assert arrays.digest == small.digest
    assert arrays.metadata["renamed"] == "fc8_flickr -> fc8"
    for others in (
        {"fc8": small.layers["fc8"], "fc8_flickr": small.layers["fc8"]},
        {"fc8_a": small.layers["fc8"], "fc8_b": small.layers["fc8"]},
        {"fc8_conv": small.layers["conv1"]},
        {"style": small.layers["fc8"], "scene": small.layers["fc8"]},
    ):
        layers = {name: x for name, x in small.layers.items() if name != "fc8"} | others
        caffemodel.write(WeightArrays(layers), path)
        arrays = read_weights(path)
        assert set(arrays.layers) == set(layers), "not guessed"
        assert "renamed" not in arrays.metadata


def test_flickr_style_and_places_become_models_of_their_classes(tmp_path, monkeypatch):
    import tf_alexnet as ta

    for name, classes, last in (
        ("finetune_flickr_style.caffemodel", 20, "fc8_flickr"),
        ("alexnet_places365.caffemodel", 365, "fc8"),
    ):
        path = tmp_path / name
        path.write_bytes(b"x")
        made = tuned(classes, last, path)
        monkeypatch.setattr("tf_alexnet.weights.formats.read_file", lambda _, made=made: made)
        model = ta.AlexNet(path)
        assert model.output_shape == (None, classes)
        names = [layer.name for layer in model.layers]
        assert names.index("pool1") < names.index("norm1"), "CaffeNet's order"
        assert ta.preset_of(model) == "caffe"
        np.testing.assert_array_equal(model.get_layer("fc8").bias, made.layers[last].bias)
