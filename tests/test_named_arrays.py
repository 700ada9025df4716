"""Which array of a file belongs to which layer, and what is refused because it is not AlexNet's."""

import pickle
import struct
import warnings

import numpy as np
import pytest
import safetensors.numpy
from weight_seeds import (
    TORCH_KEYS,
    channels_first,
    small_network,
    torch_parts,
    torch_pickle,
    torch_stream,
    torch_tensor,
    torch_zip,
    unicode,
)

from tf_alexnet.errors import WeightsError
from tf_alexnet.weights import LayerArrays, WeightArrays
from tf_alexnet.weights.formats import read_file, write_file
from tf_alexnet.weights.formats.named import named_layers, split_key

NETWORK = small_network()
CAFFE = channels_first(NETWORK)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("conv1/kernel", ("conv1", "kernel")),
        ("conv1/conv1_W:0", ("conv1", "kernel")),
        ("alexnet/conv1/biases:0", ("conv1", "bias")),
        ("conv1_w_0", ("conv1", "kernel")),
        ("fc8_kevin_b", ("fc8_kevin", "bias")),
        ("fc_w/kernel", ("fc_w", "kernel")),
        ("net._orig_mod.features.module.0.weight", ("conv1", "kernel")),
        ("classifier.6.1.weight", ("classifier.6.1", "kernel")),
        ("module.head.bias", ("head", "bias")),
        ("model.head/bias", ("model.head", "bias")),  # as we write it
        ("model.weight", ("model", "kernel")),
        ("bn1/moving_mean:0", ("bn1", "moving_mean")),
        ("conv1/weights/Momentum", ("conv1/weights", "Momentum")),
        ("global_step", ("global_step", "")),
        ("/" * 70_000, ("/" * 69_999, "")),
    ],
)
def test_names(key, found):
    assert split_key(key) == found


def torch_file(tmp_path, more=(), container=torch_zip, storage=b"Float", code="<f4", before=None):
    """A state dict with further tensors: at its end, or before the parameter `before`."""
    legacy = container is torch_stream
    entries, storages = torch_parts(NETWORK, legacy=legacy)
    added = {}
    for name, shape in more:
        key = str(100 + len(storages))
        storages[key] = np.ones(shape, code).tobytes()
        named = b"ctorch\n" + storage + b"Storage\n"
        added[name] = torch_tensor(key, shape, legacy=legacy, storage=named)
    at = list(entries).index(before) if before else len(entries)
    items = list(entries.items())
    entries = dict(items[:at] + list(added.items()) + items[at:])
    (tmp_path / "x").write_bytes(container(torch_pickle(entries), storages))
    return tmp_path / "x"


PARAMETERS = [("{}.weight", (8,)), ("{}.bias", (8,))]
STATISTICS = [*PARAMETERS, ("{}.running_mean", (8,)), ("{}.running_var", (8,))]


@pytest.mark.parametrize(
    ("name", "tensors", "before", "found"),
    [
        ("bn1", STATISTICS, "features.3.weight", "batch normalisation .layer 'bn1'"),
        ("bn1", STATISTICS, None, "batch normalisation .layer 'bn1'"),
        ("norm1", PARAMETERS, "features.3.weight", "normalisation layers .layer 'norm1'"),
        ("features.1", PARAMETERS[:1], None, "PReLU .layer 'features.1'"),
        ("act", PARAMETERS[:1], "classifier.6.weight", "PReLU .layer 'act'"),
        (
            "features.4",
            [("{}.weight", (12, 12, 3, 3)), ("{}.bias", (12,))],
            None,
            r"a kernel of shape \(12, 12, 3, 3\) .layer 'features.4'",
        ),
    ],
)
def test_layers_among_those_of_alexnet_are_named(tmp_path, name, tensors, before, found):
    more = [(key.format(name), shape) for key, shape in tensors]
    with pytest.raises(WeightsError, match=f"a network with {found}") as caught:
        read_file(torch_file(tmp_path, more, before=before))
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_head_may_have_any_layers(tmp_path):
    head = [("head.0.weight", (8, 5)), ("head.0.bias", (8,))]
    head += [(key.format("head.1"), shape) for key, shape in STATISTICS]
    with pytest.warns(UserWarning, match=r"left out: head\.1\.weight, head\.1\.bias, head\.1\.run"):
        found = read_file(torch_file(tmp_path, head))
    assert found.set_aside == ("head.0",)
    # The names of a safetensors file are sorted: what follows what is not known.
    tensors = {f"{TORCH_KEYS[n]}.weight": pair[0] for n, pair in CAFFE.items()}
    tensors |= {f"{TORCH_KEYS[n]}.bias": pair[1] for n, pair in CAFFE.items()}
    tensors |= {name: np.ones(shape, "f4") for name, shape in head}
    safetensors.numpy.save_file(tensors, tmp_path / "y")
    with pytest.raises(WeightsError, match=r"batch normalisation \(layer 'head\.1'\), not AlexNet"):
        read_file(tmp_path / "y")


@pytest.mark.parametrize("container", [torch_zip, torch_stream])
def test_whole_numbers_in_a_state_dict(tmp_path, container):
    """Counters are left out, and their storages have other sizes; weights are refused."""
    kinds = [(b"Long", "<i8"), (b"Int", "<i4"), (b"Short", "<i2"), (b"Byte", "u1"), (b"Bool", "?")]
    for storage, code in kinds:
        path = torch_file(tmp_path, [("mask", (3,))], container, storage, code)
        if container is torch_stream:  # its counts are of numbers
            raw = path.read_bytes()
            size = np.dtype(code).itemsize
            end = raw.rindex(np.ones(3, code).tobytes())
            counted = raw[: end - 8] + struct.pack("<q", 3) + raw[end : end + 3 * size]
            path.write_bytes(counted)
        with pytest.warns(UserWarning, match="left out: mask"):
            assert read_file(path).digest == NETWORK.digest
    entries, storages = torch_parts(NETWORK)
    for key in entries:
        entries[key] = entries[key].replace(b"torch\nFloat", b"torch\nInt")
    (tmp_path / "x").write_bytes(torch_zip(torch_pickle(entries), storages))
    with pytest.raises(WeightsError, match=r"'features\.0\.weight', which is not a tensor of fl"):
        read_file(tmp_path / "x")


@pytest.mark.parametrize("container", [torch_zip, torch_stream])
def test_tensors_of_2017(tmp_path, container):
    """`_rebuild_tensor` has neither gradient nor hooks."""
    entries, storages = torch_parts(NETWORK, legacy=container is torch_stream)
    for key, stream in entries.items():
        head, _, rest = stream.partition(b"_rebuild_tensor_v2")
        cut = rest.rindex(b"\x89ccollections")
        entries[key] = head + b"_rebuild_tensor" + rest[:cut] + b"tR"
    (tmp_path / "x").write_bytes(container(torch_pickle(entries), storages))
    assert read_file(tmp_path / "x").digest == NETWORK.digest


def test_a_checkpoint_in_a_checkpoint(tmp_path):
    entries, storages = torch_parts(NETWORK, "module.")
    storages["99"] = struct.pack("<f", 56.5)
    inner = b"}(" + unicode("model") + torch_pickle(entries)[2:-1] + b"u"
    stream = b"\x80\x02}(" + unicode("accuracy/top1") + torch_tensor("99", (1,))
    stream += unicode("weights") + unicode("IMAGENET1K_V1")
    stream += unicode("state_dict") + inner + b"u."
    (tmp_path / "x").write_bytes(torch_zip(stream, storages))
    assert read_file(tmp_path / "x").digest == NETWORK.digest
    itself = b"\x80\x02}q\x00(" + unicode("model") + b"h\x00u."
    (tmp_path / "x").write_bytes(torch_zip(itself, {}))
    with pytest.raises(WeightsError, match="no layer with weights in it, but 'model'"):
        read_file(tmp_path / "x")


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_names_of_layers_set_aside_come_back(tmp_path, suffix):
    extra = LayerArrays(np.ones((18, 3), "f4"), np.ones(3, "f4"))
    arrays = WeightArrays({**NETWORK.layers, "model.head": extra, "aux/net": extra})
    write_file(arrays, tmp_path / f"x{suffix}")
    found = read_file(tmp_path / f"x{suffix}")
    assert found.set_aside == ("aux/net", "model.head")
    assert found.digest == arrays.digest


@pytest.mark.parametrize("save", ["npz", "npy", "safetensors"])
def test_caffe_s_layout_is_told_by_the_shapes(tmp_path, save):
    arrays = {f"{n}/{p}": a for n, pair in CAFFE.items() for p, a in zip("Wb", pair, strict=True)}
    if save == "npz":
        np.savez(tmp_path / "x.npz", **arrays)
    elif save == "npy":
        np.save(tmp_path / "x.npy", np.array(CAFFE, object), allow_pickle=True)
    else:
        safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    assert read_file(tmp_path / f"x.{save}").digest == NETWORK.digest


@pytest.mark.parametrize(
    ("kernel", "bias", "outputs_first"),
    [
        ("fc7/kernel", "fc7/bias", False),
        ("fc7_W", "fc7_b", False),
        ("classifier.4.weight", "classifier.4.bias", True),
    ],
)
def test_square_kernels_lie_as_the_names_say(kernel, bias, outputs_first):
    rows = np.broadcast_to(np.arange(4096, dtype="f4")[:, None], (4096, 4096))
    arrays = {kernel: rows, bias: np.zeros(4096, "f4")}
    found = named_layers(arrays, arrays.get)["fc7"].kernel
    assert found[0, 5] == (5 if outputs_first else 0)


@pytest.mark.parametrize("protocol", range(6))
def test_what_stands_beside_the_layers_of_a_pickle(tmp_path, protocol):
    beside = {"epoch": 90, "input_size": [227, 227, 3], "data_mean": np.ones(3), "note": "x"}
    layers = {name: list(layer) for name, layer in NETWORK.layers.items()}
    whole = np.array(None, object)
    whole[()] = {**layers, **beside}
    for value in (whole, whole.item()):
        (tmp_path / "x").write_bytes(pickle.dumps(value, protocol))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert read_file(tmp_path / "x").digest == NETWORK.digest
        assert [str(x.message)[:16] for x in caught] == ["left out: data_m"]


def test_a_state_dict_under_any_one_name(tmp_path):
    entries, storages = torch_parts(NETWORK)
    body = torch_pickle(entries)[2:-1]
    one = b"\x80\x02}(" + unicode("encoder") + body + unicode("epoch") + b"K\x05u."
    (tmp_path / "x").write_bytes(torch_zip(one, storages))
    assert read_file(tmp_path / "x").digest == NETWORK.digest
    two = b"\x80\x02}(" + unicode("student") + body + unicode("teacher") + body + b"u."
    (tmp_path / "x").write_bytes(torch_zip(two, storages))
    with pytest.raises(WeightsError, match=r"several state dicts \(student, teacher\)"):
        read_file(tmp_path / "x")


def test_scopes_of_layers(tmp_path):
    arrays = {f"alexnet_v2/{n}/{p}": a for n, pair in NETWORK.layers.items()
              for p, a in zip(("weights", "biases"), pair, strict=True)}  # fmt: skip
    np.savez(tmp_path / "x.npz", **arrays)
    assert read_file(tmp_path / "x.npz").digest == NETWORK.digest
    extra = {"up/weights": np.ones((2, 2, 3, 4), "f4"), "up/biases": np.ones(5, "f4")}
    np.savez(tmp_path / "y.npz", **arrays, **extra)
    with pytest.warns(UserWarning, match="left out: up/weights, up/biases"):
        assert read_file(tmp_path / "y.npz").digest == NETWORK.digest
