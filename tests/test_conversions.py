"""From every form a file may have to every form that can be written, and back: bit by bit."""

import itertools

import numpy as np
import pytest
from trained import trained_layer
from weight_seeds import (
    SMALL,
    ask_here,
    deep_compression_file,
    npy_header,
    python2_pickle,
    python2_text_pickle,
    small_network,
    torch_parts,
    torch_pickle,
    torch_stream,
    torch_zip,
)

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.weights import (
    LayerArrays,
    WeightArrays,
    identify_weights,
    read_weights,
    write_weights,
)
from tf_alexnet.weights.formats import (
    deep_compression,
    hdf5_file,
    read_file,
    write_file,
)

METADATA = {
    "preset": "caffe",
    "licence": "unrestricted use",
    "origin": "sha256:4bff",
    "classes": '["tench", "é"]',
}
WRITTEN = {
    "npy list": (".npy", {"form": "list"}),
    "npy dict": (".npy", {"form": "dict"}),
    "npz": (".npz", {}),
    "h5 of keras": (".h5", {"form": "keras"}),
    "h5 of caffe": (".h5", {"form": "caffe"}),
    "safetensors": (".safetensors", {}),
    **{
        f"caffemodel {a} {b} {'packed' if c else 'unpacked'}": (
            ".caffemodel",
            {"layers": a, "blobs": b, "packed": c},
        )
        for a, b, c in itertools.product(("new", "v1"), ("shaped", "legacy"), (True, False))
    },
}
READ_ONLY = ["torch zip", "torch legacy", "python 2", "python 2 text", "deep compression"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """HDF5 files opened right here."""
    monkeypatch.setattr(hdf5_file, "_ask_child", ask_here)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """The network of few channels is a known one, here."""
    monkeypatch.setitem(ARCHITECTURES, "small", SMALL)
    monkeypatch.setattr(deep_compression, "ARCHITECTURE", SMALL)


def quantised(arrays):
    """What the Deep Compression format can hold: 255 or 15 values, and many zeros."""
    random = np.random.default_rng(5)
    codes, books, biases = {}, {}, {}
    for name, layer in arrays.layers.items():
        size = 256 if layer.kernel.ndim == 4 else 16
        codes[name] = random.integers(0, size, layer.kernel.size)
        codes[name][-1] = 1
        books[name] = random.normal(size=size).astype("f4")
        books[name][0] = 0
        biases[name] = layer.bias
    return deep_compression_file(codes, books, biases)


def source(form, path):
    """A file of a form, and the arrays in it."""
    arrays = small_network(3, architecture="small", metadata=METADATA)
    if form in WRITTEN:
        suffix, options = WRITTEN[form]
        path = path.with_suffix(suffix)
        write_file(arrays, path, **options)
        return path, arrays
    if form.startswith("torch"):
        entries, storages = torch_parts(arrays, legacy=form == "torch legacy")
        container = torch_stream if form == "torch legacy" else torch_zip
        path.write_bytes(container(torch_pickle(entries), storages))
    elif form == "deep compression":
        path.write_bytes(quantised(arrays))
        return path, read_file(path)
    else:
        stream = python2_pickle if form == "python 2" else python2_text_pickle
        path.write_bytes(npy_header() + stream(arrays))
    return path, arrays


@pytest.mark.parametrize("form", [*WRITTEN, *READ_ONLY])
def test_every_conversion_keeps_every_bit(tmp_path, form):
    """One read, then every writer with every option, each read back."""
    path, arrays = source(form, tmp_path / "source")
    found = read_file(path)
    for name, layer in arrays.layers.items():
        for part, array in zip(("kernel", "bias"), layer, strict=True):
            np.testing.assert_array_equal(
                getattr(found.layers[name], part), array, err_msg=f"{name}/{part}", strict=True
            )
    for index, (suffix, options) in enumerate(WRITTEN.values()):
        target = tmp_path / f"{index}{suffix}"
        write_file(found, target, **options)
        again = read_file(target)
        assert again.digest == arrays.digest, target
        assert list(again.layers) == list(arrays.layers)
        assert again.architecture == found.architecture
        if suffix != ".caffemodel":  # where nothing has room but the network's name
            assert again.metadata == found.metadata


@pytest.mark.parametrize("form", WRITTEN)
def test_what_a_form_can_hold_it_holds(tmp_path, form):
    path, _ = source(form, tmp_path / "source")
    found = read_weights(path)
    assert found.architecture == "small"
    if path.suffix != ".caffemodel":
        assert METADATA.items() <= found.metadata.items()


def test_identification_does_not_pile_up(tmp_path):
    """Converted again and again, a file says the same of itself."""
    arrays = small_network(3, architecture="small", metadata=METADATA)
    path = tmp_path / "0.npz"
    write_weights(arrays, path)
    first = read_weights(path)
    for index, suffix in enumerate((".h5", ".safetensors", ".npy", ".npz"), start=1):
        write_weights(read_weights(path), path := tmp_path / f"{index}{suffix}")
    again = read_weights(path)
    assert (again.digest, again.architecture) == (first.digest, first.architecture)
    assert again.metadata == first.metadata


@pytest.mark.parametrize("network", ["bvlc_alexnet", "caffenet", "torchvision"])
def test_trained_networks_are_told_apart_in_every_format(tmp_path, network):
    """Also with noise on one array, and with a record that says otherwise."""
    random = np.random.default_rng(9)
    kernel, bias = trained_layer(network, "conv1")
    noisy = bias + random.normal(0, 1e-4, len(bias)).astype("f4")
    layers = {"conv1": LayerArrays(kernel, noisy)}
    arrays = WeightArrays(layers, "compact", "made for the test")
    for index, (suffix, options) in enumerate(WRITTEN.values()):
        write_file(arrays, tmp_path / f"{index}{suffix}", **options)
        found = identify_weights(tmp_path / f"{index}{suffix}")
        assert (found.name, found.how) == (network, "fingerprint"), suffix
        assert found.distance < 1e-3
    if network == "torchvision":
        entries, storages = torch_parts(arrays, legacy=False)
        (tmp_path / "a.pth").write_bytes(torch_zip(torch_pickle(entries), storages))
        assert identify_weights(tmp_path / "a.pth").name == network
