"""The same network as people's files spell it: types, prefixes, names, forms and layouts."""

import pickle

import numpy as np
import pytest
import safetensors.numpy
from weight_seeds import (
    TORCH_KEYS,
    channels_first,
    small_network,
    torch_pickle,
    torch_stream,
    torch_tensor,
    torch_zip,
    unicode,
)

from tf_alexnet.errors import WeightsError
from tf_alexnet.weights import LayerArrays, WeightArrays, with_classifier
from tf_alexnet.weights.formats import read_file

# Halves, so that every type holds the same numbers.
NETWORK = WeightArrays(
    {
        name: LayerArrays(*(np.float32(np.round(array * 4) / 4) for array in layer))
        for name, layer in small_network().layers.items()
    }
)
CAFFE = channels_first(NETWORK)


def torch_file(names=lambda layer: TORCH_KEYS[layer], form="<f4", legacy=False, wrap=None, more=()):
    """A state dict of `CAFFE`."""
    kinds = {"<f4": "Float", "<f8": "Double", "<f2": "Half", "bfloat16": "BFloat16"}
    storage = f"ctorch\n{kinds[form]}Storage\n".encode()
    entries, storages = {}, {}
    for layer, pair in CAFFE.items():
        for part, array in zip(("weight", "bias"), pair, strict=True):
            key = str(len(storages))
            half = array.view("<u4") >> 16 if form == "bfloat16" else array
            storages[key] = half.astype("<u2" if form == "bfloat16" else form).tobytes()
            entries[f"{names(layer)}.{part}"] = torch_tensor(
                key, array.shape, legacy=legacy, storage=storage
            )
    for name, array in more:
        key = str(len(storages))
        storages[key] = array.astype("<f4").tobytes()
        entries[name] = torch_tensor(key, array.shape, legacy=legacy)
    stream = torch_pickle(entries)
    if wrap:
        body = stream[2:-1]  # without protocol and stop
        stream = b"\x80\x02}(" + unicode("epoch") + b"K\x07" + unicode(wrap) + body + b"u."
    if not legacy:
        return torch_zip(stream, storages)
    sizes = {"<f4": 4, "<f8": 8, "<f2": 2, "bfloat16": 2}[form]
    raw = torch_stream(stream, {})
    import struct

    end = raw.index(b"\x80\x02](e.") if b"\x80\x02](e." in raw else len(raw)
    out = raw[:end] + b"\x80\x02](" + b"".join(map(unicode, storages)) + b"e."
    return out + b"".join(struct.pack("<q", len(x) // sizes) + x for x in storages.values())


def assert_same(tmp_path, raw, name="x"):
    path = tmp_path / name
    path.write_bytes(raw)
    assert read_file(path).digest == NETWORK.digest


@pytest.mark.parametrize("form", ["<f4", "<f8", "<f2", "bfloat16"])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_s_types(tmp_path, form, legacy):
    assert_same(tmp_path, torch_file(form=form, legacy=legacy))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.model."],
)
def test_torch_s_prefixes(tmp_path, prefix):
    assert_same(tmp_path, torch_file(lambda layer: prefix + TORCH_KEYS[layer]))


@pytest.mark.parametrize("wrap", ["state_dict", "net", "weights", "model_state", "model"])
def test_torch_s_wrappers(tmp_path, wrap):
    assert_same(tmp_path, torch_file(wrap=wrap))


def test_caffe_s_names_and_shapes_in_torch_files(tmp_path, monkeypatch):
    old = {
        name: (
            kernel[None, None] if kernel.ndim == 2 else kernel,
            bias[None, None, None],
        )
        for name, (kernel, bias) in CAFFE.items()
    }
    monkeypatch.setitem(globals(), "CAFFE", old)
    assert_same(tmp_path, torch_file(lambda layer: layer))


def test_extra_tensors_of_torch_files(tmp_path):
    head = [("head.weight", np.ones((4, 18))), ("head.bias", np.ones(4))]
    (tmp_path / "x").write_bytes(torch_file(more=head))
    assert read_file(tmp_path / "x").set_aside == ("head",)
    (tmp_path / "x").write_bytes(torch_file(more=[("scale", np.ones(3))]))
    with pytest.warns(UserWarning, match="left out: scale"):
        assert read_file(tmp_path / "x").digest == NETWORK.digest
    (tmp_path / "x").write_bytes(torch_file(more=[("features.1.running_mean", np.ones(8))]))
    with pytest.raises(
        WeightsError, match=r"batch normalisation \(layer 'features\.1'\)"
    ) as caught:
        read_file(tmp_path / "x")
    assert "damaged" not in str(caught.value)


KEYS = [
    ("{}/kernel", "{}/bias"),
    ("{}/W", "{}/b"),
    ("{}/weights", "{}/biases"),
    ("{}/weights", "{}/bias"),
    ("{}_W", "{}_b"),
    ("{}_weights", "{}_biases"),
    ("{}.weight", "{}.bias"),
    ("{}/weights:0", "{}/biases:0"),
]


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("save", ["npz", "safetensors", "npy"])
def test_names_of_arrays(tmp_path, keys, save):
    arrays = {
        key.format(name): array
        for name, layer in NETWORK.layers.items()
        for key, array in zip(keys, layer, strict=True)
    }
    if save == "npz":
        np.savez(tmp_path / "x.npz", **arrays)
    elif save == "safetensors":
        safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    else:
        np.save(tmp_path / "x.npy", np.array(arrays, object), allow_pickle=True)
    assert read_file(tmp_path / f"x.{save}").digest == NETWORK.digest


@pytest.mark.parametrize("save", ["npz", "safetensors"])
def test_torch_s_layout_in_other_containers(tmp_path, save):
    arrays = {
        f"{TORCH_KEYS[name]}.{part}": array
        for name, pair in CAFFE.items()
        for part, array in zip(("weight", "bias"), pair, strict=True)
    }
    if save == "npz":
        np.savez(tmp_path / "x", **arrays)
    else:
        safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    assert read_file(tmp_path / f"x.{save}").digest == NETWORK.digest


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("keys", [None, ("weights", "biases"), ("W", "b"), ("weights", "bias")])
def test_bare_pickles(tmp_path, protocol, keys):
    layers = {
        name: list(layer) if keys is None else dict(zip(keys, layer, strict=True))
        for name, layer in NETWORK.layers.items()
    }
    assert_same(tmp_path, pickle.dumps(layers, protocol), "x.pkl")
    objects = np.empty((), object)
    objects[()] = layers
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    assert read_file(tmp_path / "x.npy").digest == NETWORK.digest


def test_bfloat16_in_safetensors(tmp_path):
    import json
    import struct

    header, data = {}, b""
    for name, layer in NETWORK.layers.items():
        for part, array in zip(("kernel", "bias"), layer, strict=True):
            raw = (np.ascontiguousarray(array).view("<u4") >> 16).astype("<u2").tobytes()
            header[f"{name}/{part}"] = {
                **{"dtype": "BF16", "shape": list(array.shape)},
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    assert_same(tmp_path, struct.pack("<Q", len(text)) + text + data, "x.safetensors")


def vectors(n=8):
    return np.ones(n, "f4")


def in_npz(path, more):
    arrays = {
        f"{k}/{p}": a for k, v in NETWORK.layers.items() for p, a in zip("Wb", v, strict=True)
    }
    np.savez(path, **arrays, **more)


def in_npy(path, more):
    layers = {name: list(layer) for name, layer in NETWORK.layers.items()}
    np.save(path, np.array({**layers, **more}, object), allow_pickle=True)


def in_torch(path, more):
    path.write_bytes(torch_file(more=more.items()))


@pytest.mark.parametrize(
    ("save", "more"),
    [
        (in_torch, {"features.1.weight": vectors()}),  # PReLU
        (in_torch, {"features.1.weight": vectors(), "features.1.bias": vectors()}),  # LayerNorm
        (in_torch, {"features.1.running_var": vectors()}),
        (in_npz, {"prelu1/alpha": vectors()}),
        (in_npz, {"bn1/gamma": vectors(), "bn1/beta": vectors()}),
        (in_npy, {"scale1": [vectors(), vectors()]}),
    ],
)
def test_normalisation_and_prelu_are_never_dropped(tmp_path, save, more):
    """Without these layers, every number behind them would be wrong."""
    save(tmp_path / "x.npz", more)
    path = next(tmp_path.iterdir())
    with pytest.raises(WeightsError, match=r"a network with .*(normalisation|PReLU) .*not AlexNet"):
        read_file(path)


def test_normalisation_in_hdf5(tmp_path):
    import h5py

    for names, shapes in (
        (["gamma", "beta", "moving_mean", "moving_variance"], [(8,)] * 4),
        (["alpha"], [(8,)]),
    ):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.attrs["layer_names"] = [b"conv1", b"bn1"]
            for layer, parts in (("conv1", ["kernel", "bias"]), ("bn1", names)):
                group = file.create_group(layer)
                group.attrs["weight_names"] = [f"{layer}/{x}".encode() for x in parts]
                arrays = NETWORK.layers["conv1"] if layer == "conv1" else map(np.ones, shapes)
                for part, array in zip(parts, arrays, strict=True):
                    group[f"{layer}/{part}"] = np.float32(array)
        kind = "PReLU" if names == ["alpha"] else "batch normalisation"
        match = rf"with {kind} \(layer 'bn1'\), not AlexNet"
        with pytest.raises(WeightsError, match=match) as caught:
            read_file(tmp_path / "x.h5")
        assert "damaged" not in str(caught.value)


def test_caffe_s_hdf5_files(tmp_path):
    import h5py

    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, pair in CAFFE.items():
            for index, array in enumerate(pair):
                file[f"data/{name}/{index}"] = array
        file["data/upscore/0"] = np.ones((2, 1, 4, 4), "f4")
    with pytest.warns(UserWarning, match="left out: upscore"):
        assert read_file(tmp_path / "x.h5").digest == NETWORK.digest
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["iter"] = 7
        file["history/0"] = np.ones(3, "f4")
    with pytest.raises(WeightsError, match="a Caffe solver's state, not a network"):
        read_file(tmp_path / "y.h5")


def test_a_head_of_two_layers_has_no_classifier_to_guess(tmp_path):
    head = {
        **{"head.0.weight": np.ones((7, 18)), "head.0.bias": np.ones(7)},
        **{"head.2.weight": np.ones((3, 7)), "head.2.bias": np.ones(3)},
    }
    layers = {k: v for k, v in NETWORK.layers.items() if k != "fc8"}
    arrays = WeightArrays(layers | {
        "head.0": (np.ones((18, 7), "f4"), np.ones(7, "f4")),
        "head.2": (np.ones((7, 3), "f4"), np.ones(3, "f4")),
    })  # fmt: skip
    assert "fc8" not in with_classifier(arrays).layers
    in_torch(tmp_path / "x", head)
    assert read_file(tmp_path / "x").set_aside == ("head.0", "head.2")


def test_extras_of_other_kinds_do_not_blame_our_layers(tmp_path):
    more = {"up.weight": np.ones((18, 5, 2, 2)), "up.bias": np.ones(5)}  # ConvTranspose
    in_torch(tmp_path / "x", more)
    with pytest.warns(UserWarning, match="left out: up"):
        assert read_file(tmp_path / "x").digest == NETWORK.digest


def test_scopes_and_flax(tmp_path):
    arrays = {
        f"{name}/{name}/{part}:0": array
        for name, layer in NETWORK.layers.items()
        for part, array in zip(("kernel", "bias"), layer, strict=True)
    }
    np.savez(tmp_path / "x.npz", **arrays)
    assert read_file(tmp_path / "x.npz").digest == NETWORK.digest
    params = {
        name: dict(zip(("kernel", "bias"), layer, strict=True))
        for name, layer in NETWORK.layers.items()
    }
    np.save(tmp_path / "x.npy", np.array({"params": params}, object), allow_pickle=True)
    assert read_file(tmp_path / "x.npy").digest == NETWORK.digest
