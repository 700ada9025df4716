"""torch's files, both containers, spelt opcode by opcode: torch itself is not needed."""

import struct

import numpy as np
import pytest
from weight_seeds import (
    ORDERED,
    small_network,
    torch_parts,
    torch_pickle,
    torch_stream,
    torch_tensor,
    torch_zip,
    unicode,
)

from tf_alexnet.errors import WeightsError
from tf_alexnet.weights.formats import read_file

ARRAYS = small_network()
CONTAINERS = {"zip": torch_zip, "legacy": torch_stream}


def found_in(path, raw):
    path.write_bytes(raw)
    return read_file(path)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict(tmp_path, container, prefix):
    entries, storages = torch_parts(ARRAYS, prefix, legacy=container == "legacy")
    found = found_in(tmp_path / "x.pth", CONTAINERS[container](torch_pickle(entries), storages))
    assert found.digest == ARRAYS.digest
    assert list(found.layers) == list(ARRAYS.layers)
    assert found.architecture is None


def test_every_place_of_fc6_and_conv2(tmp_path):
    """The layout, index by index: torch flattens channels before height and width."""
    entries, storages = torch_parts(ARRAYS)
    found = found_in(tmp_path / "x.pth", torch_zip(torch_pickle(entries), storages)).layers
    stored = {k: np.frombuffer(v, "<f4") for k, v in storages.items()}
    conv2, fc6 = stored["2"].reshape(12, 4, 5, 5), stored["10"].reshape(20, 12, 2, 2)
    for y, x, c, o in np.ndindex(5, 5, 4, 12):
        assert found["conv2"].kernel[y, x, c, o] == conv2[o, c, y, x]
    for y, x, c, o in np.ndindex(2, 2, 12, 20):
        assert found["fc6"].kernel[(y * 2 + x) * 12 + c, o] == fc6[o, c, y, x]


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_checkpoint(tmp_path, wrapper, container):
    """As training scripts write: an epoch, a measure, a tensor, an optimizer's numbered state."""
    entries, storages = torch_parts(ARRAYS, "module.", legacy=container == "legacy")
    storages["99"] = struct.pack("<f", 56.5)
    scalar = torch_tensor("99", (), 1, legacy=container == "legacy")
    momentum = b"}K\x00}" + unicode("momentum_buffer") + scalar + b"ss"
    groups = b"](}(" + unicode("lr") + b"G" + struct.pack(">d", 0.1) + unicode("nesterov") + b"\x89"
    optimizer = b"}(" + unicode("state") + momentum
    optimizer += unicode("param_groups") + groups + unicode("params") + b"](K\x00K\x01eue"
    stream = b"\x80\x02}(" + unicode("epoch") + b"K\x5a" + unicode("best_acc1") + scalar
    stream += unicode("optimizer") + optimizer + b"u"
    stream += unicode(wrapper) + torch_pickle(entries)[2:-1] + b"u."
    found = found_in(tmp_path / "x.pth", CONTAINERS[container](stream, storages))
    assert found.digest == ARRAYS.digest


def test_parameters_big_endian_and_strided(tmp_path):
    entries, storages = torch_parts(ARRAYS)
    entries = {
        name: b"ctorch._utils\n_rebuild_parameter\n(" + tensor + b"\x88" + ORDERED + b"tR"
        for name, tensor in entries.items()
    }
    swapped = {k: np.frombuffer(v, "<f4").astype(">f4").tobytes() for k, v in storages.items()}
    found = found_in(tmp_path / "x.pth", torch_zip(torch_pickle(entries), swapped, "big"))
    assert found.digest == ARRAYS.digest
    # fc7 as a transposed view of a longer storage
    entries, storages = torch_parts(ARRAYS)
    kernel = ARRAYS.layers["fc7"].kernel
    storages["12"] = bytes(28) + kernel.tobytes() + bytes(8)
    entries["classifier.4.weight"] = torch_tensor("12", (18, 20), 360 + 9, (1, 18), 7)
    found = found_in(tmp_path / "y.pth", torch_zip(torch_pickle(entries), storages))
    assert found.digest == ARRAYS.digest


def test_convolutions_alone_and_one_storage_for_all(tmp_path):
    entries, storages = torch_parts(ARRAYS)
    entries = {k: v for k, v in entries.items() if k.startswith("features")}
    found = found_in(tmp_path / "x.pth", torch_zip(torch_pickle(entries), storages))
    assert list(found.layers) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    one = np.arange(100, dtype="<f4")
    entries = {
        "classifier.6.weight": torch_tensor("0", (3, 18), 100, offset=4),
        "classifier.6.bias": torch_tensor("0", (3,), 100, offset=90),
        "features.0.weight": torch_tensor("0", (2, 1, 3, 3), 100),
        "features.0.bias": torch_tensor("0", (2,), 100),
        "classifier.4.weight": torch_tensor("0", (2, 2), 100),
        "classifier.4.bias": torch_tensor("0", (2,), 100),
    }
    found = found_in(tmp_path / "x.pth", torch_zip(torch_pickle(entries), {"0": one.tobytes()}))
    np.testing.assert_array_equal(found.layers["fc8"].bias, one[90:93], strict=True)
    np.testing.assert_array_equal(
        found.layers["fc8"].kernel,
        one[4:58].reshape(3, 2, 3, 3).transpose(2, 3, 1, 0).reshape(18, 3),
    )


def changed(name, value):
    entries, storages = torch_parts(ARRAYS)
    return torch_zip(torch_pickle({**entries, name: value}), storages)


def without(key):
    entries, storages = torch_parts(ARRAYS)
    del storages[key]
    return torch_zip(torch_pickle(entries), storages)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (changed("features.1.running_mean", torch_tensor("1", (8,))), "batch normalisation"),
        (changed("features.0.bias", b"K\x07"), r"'features\.0\.bias', which is not a tensor"),
        (changed("module.features.0.bias", torch_tensor("1", (8,))), "two arrays for the bias"),
        (changed("features.0.bias", torch_tensor("1", (9,))), "of 9 numbers with 32 bytes"),
        (changed("features.0.bias", torch_tensor("77", (8,))), "no bytes for the storage '77'"),
        (changed("features.0.bias", torch_tensor("1", (8, 1))), "layer conv1 .* a bias of"),
        (without("3"), "no bytes for the storage '3'"),
        (torch_zip(b"\x80\x02K\x01.", {}), "no state dict"),
        (torch_zip(torch_pickle({}), {}), "no layer with weights"),
        (torch_zip(*[torch_pickle(torch_parts(ARRAYS)[0]), {}], order="middle"), "byte order"),
        (
            changed(
                "features.0.bias", torch_tensor("1", (8,), storage=b"ctorch\nComplexFloatStorage\n")
            ),
            r"a reference to torch\.ComplexFloatStorage\. Save the state dict alone",
        ),
    ],
)  # fmt: skip
def test_other_files_are_named(tmp_path, raw, found):
    with pytest.raises(WeightsError, match=found) as caught:
        found_in(tmp_path / "x.pth", raw)
    assert "\n" not in str(caught.value)


def test_a_layer_without_its_bias(tmp_path):
    entries, storages = torch_parts(ARRAYS)
    del entries["classifier.1.bias"]
    with pytest.raises(WeightsError, match="layer fc6 with only a kernel"):
        found_in(tmp_path / "x.pth", torch_zip(torch_pickle(entries), storages))


@pytest.mark.parametrize("cut", range(1, 2000, 97))
def test_a_legacy_file_cut_off_anywhere(tmp_path, cut):
    entries, storages = torch_parts(ARRAYS, legacy=True)
    raw = torch_stream(torch_pickle(entries), storages)
    with pytest.raises(WeightsError):
        found_in(tmp_path / "x.pth", raw[: -cut * len(raw) // 2000])
    if cut == 1:
        with pytest.raises(WeightsError, match="1 bytes after its last storage"):
            found_in(tmp_path / "x.pth", raw + b"x")
