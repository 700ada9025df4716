"""HDF5 files of Keras and Caffe: what they write is read, what is written they read."""

import itertools
import os
import re
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import h5py
import numpy as np
import pytest
from weight_seeds import SMALL, ask_here, channels_first, small_network

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights import with_classifier
from tf_alexnet.weights.formats import hdf5_child, hdf5_file, read_file, write_file

ARRAYS = small_network(architecture="small", metadata={"licence": "CC BY"})
AUTOMATIC = dict(
    zip(
        ARRAYS.layers,
        ("conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "conv2d_9", "dense", "dense_1", "dense_2"),
        strict=True,
    )
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "small", SMALL)


def refusal(path):
    with pytest.raises(WeightsError) as caught:
        read_file(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def keras_2(group, names=AUTOMATIC, suffix=":0", extra=("flatten",), **options):
    """`save_weights` of Keras 2: fixed-length names, groups of groups."""
    group.attrs["layer_names"] = [name.encode() for name in [*names.values(), *extra]]
    group.attrs["backend"], group.attrs["keras_version"] = b"tensorflow", b"2.4.0"
    for name in extra:
        group.create_group(name).attrs["weight_names"] = []
    for name, given in names.items():
        paths = [f"{given}/{part}{suffix}" for part in ("kernel", "bias")]
        inner = group.create_group(given)
        inner.attrs["weight_names"] = [path.encode() for path in paths]
        for path, array in zip(paths, ARRAYS.layers[name], strict=True):
            inner.create_dataset(path, data=array, **options)


def keras_3(group, names=AUTOMATIC, named=False):
    """`.weights.h5` of Keras 3; its first versions did not write the names."""
    for name, given in names.items():
        variables = group.create_group(f"layers/{given}/vars")
        if named:
            variables.attrs["name"] = name
        for index, array in enumerate(ARRAYS.layers[name]):
            variables.create_dataset(str(index), data=array)
    seed = group.create_group("layers/dropout/seed_generator/vars")
    seed.create_dataset("0", data=np.zeros(2, "u4"))
    group.create_group("optimizer/vars").create_dataset("0", data=np.zeros(2))


def caffe(file, legacy=False):
    """`Net::ToHDF5`: a group a layer, also where there are no parameters."""
    file.create_group("data/relu1")
    for name, (kernel, bias) in channels_first(ARRAYS).items():
        if legacy:
            kernel = kernel if kernel.ndim == 4 else kernel[None, None]
            bias = bias[None, None, None]
        file.create_dataset(f"data/{name}/0", data=kernel)
        file.create_dataset(f"data/{name}/1", data=bias)
        file.create_dataset(f"diff/{name}/0", data=kernel)


def nested(file):
    """A model within a model: all weights in one group."""
    keras_2(file.create_group("inner"), {}, extra=())
    del file["inner"]
    file.attrs["layer_names"] = [b"input", b"alexnet"]
    file.create_group("input").attrs["weight_names"] = []
    group, paths = file.create_group("alexnet"), []
    for name, layer in ARRAYS.layers.items():
        for part, array in zip(("kernel:0", "bias:0"), layer, strict=True):
            paths.append(f"{name}/{part}".encode())
            group.create_dataset(f"{name}/{part}", data=array)
    group.attrs["weight_names"] = paths


def own_names():
    return {name: name for name in ARRAYS.layers}


def many_names(file):
    """Lists too long for one attribute are cut up."""
    keras_2(file, extra=[f"activation_{i}" for i in range(20)])
    names = list(file.attrs["layer_names"])
    del file.attrs["layer_names"]
    file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:11], names[11:]


FORMS = {
    "keras 2": lambda file: keras_2(file, own_names()),
    "keras 2, automatic names": keras_2,
    "keras 2, gzip and shuffle": lambda file: keras_2(file, compression="gzip", shuffle=True),
    "keras 2, lzf in chunks": lambda file: keras_2(file, compression="lzf", chunks=True),
    "keras 2, float64": lambda file: keras_2(file, dtype="f8"),
    "keras 2, big endian": lambda file: keras_2(file, dtype=">f4"),
    "keras 2, many names": many_names,
    "keras 2, a whole model": lambda file: keras_2(file.create_group("model_weights")),
    "keras 2, nested": nested,
    "keras 3": keras_3,
    "keras 3, named": lambda file: keras_3(file, named=True),
    "keras 2.13": lambda file: (
        keras_3(file), file.move("layers", "_layer_checkpoint_dependencies")
    ),
    "caffe": caffe,
    "caffe, legacy": lambda file: caffe(file, legacy=True),
}  # fmt: skip


@pytest.fixture
def here(monkeypatch):
    """Files opened in this process: what it starts for them has tests below."""
    monkeypatch.setattr(hdf5_file, "_ask_child", ask_here)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(tmp_path, form):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        FORMS[form](file)
    found = read_file(tmp_path / "x.h5")
    assert found.digest == ARRAYS.digest
    assert (found.architecture, found.metadata) == (None, {})


def test_caffes_form_is_as_caffe_expects(tmp_path):
    write_file(ARRAYS, tmp_path / "net.h5", form="caffe")
    with h5py.File(tmp_path / "net.h5") as file:
        assert set(file["data"]) == set(ARRAYS.layers)
        for name, pair in channels_first(ARRAYS).items():
            for index, array in enumerate(pair):
                np.testing.assert_array_equal(file[f"data/{name}/{index}"], array, strict=True)
    with pytest.raises(UsageError, match=r"form='torch'.* Use one of keras, caffe\."):
        write_file(ARRAYS, tmp_path / "net.h5", form="torch")


def caffe_with(path, change=lambda name, pair: pair, **more):
    """A snapshot of Caffe's with changed blobs, and `more` layers."""
    layers = {name: change(name, pair) for name, pair in channels_first(ARRAYS).items()}
    with h5py.File(path, "w") as file:
        for name, blobs in {**layers, **more}.items():
            for index, array in enumerate(blobs):
                file.create_dataset(f"data/{name}/{index}", data=np.float32(array))
    return path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("last", ["fc6", "fc7", "fc8"])
def test_fully_convolutional_networks_of_caffe(tmp_path, last):
    """Layers up to `last` are convolutions over the whole map; a second head is kept."""

    def as_convolution(name, pair):
        kernel, bias = pair
        if not "fc6" <= name <= last:
            return pair
        side = 2 if name == "fc6" else 1
        return kernel.reshape(len(kernel), -1, side, side), bias

    head = np.ones((3, 18)), np.ones(3)
    found = read_file(caffe_with(tmp_path / "x.h5", as_convolution, score=head))
    assert found.set_aside == ("score",)
    assert found.layers["fc6"].kernel.shape == (2, 2, 12, 20)
    found = with_classifier(found)
    for name, pair in ARRAYS.layers.items():
        for array, expected in zip(found.layers[name], pair, strict=True):
            np.testing.assert_array_equal(array, expected, strict=True)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("blobs", "found"),
    [
        ([np.ones(8), np.ones(8), np.ones(1)], "a network with batch normalisation "),
        ([np.ones(8), np.ones(8)], "a network with scaling "),
        ([np.ones(8)], "a network with PReLU or scaling "),
    ],
)
def test_layers_of_caffe_that_alexnet_does_not_have(tmp_path, blobs, found):
    text = refusal(caffe_with(tmp_path / "x.h5", extra=blobs))
    assert f"{found}(layer 'extra'), not AlexNet. Use the weights of an AlexNet." in text
    bare = caffe_with(tmp_path / "y.h5", lambda name, x: x[:1] if name == "conv2" else x)
    assert "layer conv2 has arrays of shape (12, 4, 5, 5)" in refusal(bare)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("bvlc_alexnet", "net.weights.h5"),
        ("torchvision", "net.h5"),
        *(
            pytest.param(network, name, marks=pytest.mark.slow)
            for network, name in itertools.product(ARCHITECTURES, ("net.weights.h5", "net.h5"))
            if (network, name)
            not in (("bvlc_alexnet", "net.weights.h5"), ("torchvision", "net.h5"))
        ),
    ],
)
def test_keras_loads_what_is_written_and_is_read_back(network, name, tmp_path):
    import tf_alexnet as ta

    table = ARCHITECTURES[network].with_head("pool5", 3)
    arrays = synthetic_weights(table)
    shuffled = dict(sorted(arrays.layers.items(), reverse=True))
    write_file(replace(arrays, layers=shuffled), tmp_path / name)
    assert (tmp_path / name).stat().st_size < 17e6  # two names for an array, not two arrays
    model = ta.AlexNet(replace(arrays, layers={k: (0 * x, y) for k, (x, y) in shuffled.items()}))
    model.load_weights(tmp_path / name)
    for layer, pair in arrays.layers.items():
        for found, array in zip(model.get_layer(layer).get_weights(), pair, strict=True):
            np.testing.assert_array_equal(found, array, strict=True)
    model.save_weights(tmp_path / "saved.weights.h5")
    assert read_file(tmp_path / "saved.weights.h5").digest == arrays.digest


def test_whole_models_give_their_weights_and_nothing_else(tmp_path):
    """A Lambda layer's code in the configuration is never run, in neither form."""
    import keras

    import tf_alexnet as ta

    base = ta.AlexNet(weights=None, architecture="compact", include_top=False)
    marker = tmp_path / "MARKER"

    def code(x):
        import pathlib

        pathlib.Path(marker).write_text("run")
        return x

    model = keras.Model(
        base.input, keras.layers.Lambda(code, output_shape=(6, 6, 128))(base.output)
    )
    marker.unlink(missing_ok=True)  # Keras itself has called it once
    with np.errstate(all="ignore"):
        model.save(tmp_path / "whole.h5")
        model.save(tmp_path / "whole.keras")
    kernel = base.get_layer("conv2").get_weights()[0]
    for name in ("whole.h5", "whole.keras"):
        found = read_file(tmp_path / name)
        assert list(found.layers) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
        np.testing.assert_array_equal(found.layers["conv2"].kernel, kernel, strict=True)
        assert found.metadata["preset"] == "compact"
        assert found.source == str(tmp_path / name)
    assert not marker.exists()


@pytest.mark.usefixtures("here")
def test_layers_that_cannot_be_told_are_listed(tmp_path):
    other = {**AUTOMATIC, "fc8": "fc7_bn"}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        keras_2(file, other)
        del file["fc7_bn/fc7_bn/kernel:0"]
        file.create_dataset("fc7_bn/fc7_bn/kernel:0", data=np.ones((7, 5), "f4"))
    assert "conv2d_9, dense, dense_1, fc7_bn, whose shapes are not AlexNet's" in refusal(
        tmp_path / "x.h5"
    )
    # As many classes as fc7 has units, and inputs as many: two layers of the same shape.
    twice = SMALL.with_classes(18)
    shapes = {n: np.zeros(s, "f4") for n, (s, _) in twice.parameter_shapes().items()}
    shapes["fc7"] = np.zeros((18, 18), "f4")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file.attrs["layer_names"] = [x.encode() for x in AUTOMATIC.values()]
        for name, given in AUTOMATIC.items():
            group = file.create_group(given)
            group.attrs["weight_names"] = [b"kernel", b"bias"]
            group["kernel"], group["bias"] = shapes[name], np.zeros(shapes[name].shape[-1:], "f4")
    assert "whose shapes are not AlexNet's" in refusal(tmp_path / "y.h5")


def test_features_and_other_files_are_no_weights(tmp_path):
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["fc7"] = np.ones((3, 4096), "f4")
    assert "without weights in the layout of Keras or Caffe" in refusal(tmp_path / "features.h5")


def test_metadata_and_architecture_travel(tmp_path):
    for form in ("keras", "caffe"):
        write_file(ARRAYS, tmp_path / "x.h5", form=form)
        found = read_file(tmp_path / "x.h5")
        assert (found.architecture, found.metadata) == ("small", {"licence": "CC BY"})


# The other process


def test_reading_does_not_depend_on_folder_or_environment(tmp_path, monkeypatch):
    write_file(ARRAYS, tmp_path / "x.h5")
    (tmp_path / "h5py.py").write_text("raise SystemExit(9)")
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "h5py.py"))
    monkeypatch.setenv("HDF5_DRIVER", "nonsense")
    assert read_file("x.h5").digest == ARRAYS.digest
    os.rename("x.h5", "-c \n.h5")
    assert read_file("-c \n.h5").digest == ARRAYS.digest


def test_the_child_imports_no_tensorflow(tmp_path):
    write_file(ARRAYS, tmp_path / "x.h5")
    code = (
        f"import runpy, sys; m = runpy.run_path({hdf5_child.__file__!r});"
        f"m['answer']({str(tmp_path / 'x.h5')!r}, 10**9, open('/dev/null', 'wb'));"
        "sys.exit(bool({'tensorflow', 'keras', 'tf_alexnet'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


CHILDREN = {
    "sleeps": ("import time; time.sleep(60)", "too long"),
    "aborts": ("import os; os.abort()", r"fails to read \(SIGABRT\)"),
    "says nothing": ("", "fails to read"),
    "exits": ("raise SystemExit(3)", r"fails to read \(exit code 3\)"),
    "talks nonsense": ("print('hello ' * 100)", "fails to read"),
    "promises 4 GB of JSON": ("OUT.write(b'\\xff' * 4)", "fails to read"),
    "promises 4 TB": ("say({'form': 'keras', 'metadata': None,"
                      " 'layers': [['fc8', [10**6, 10**6], [1]]]})", "fails to read"),
    "negative shape": ("say({'form': 'keras', 'metadata': None,"
                       " 'layers': [['fc8', [-4, -4], [4]]]})", "fails to read"),
    "cut off": ("say({'form': 'keras', 'metadata': None, 'layers': [['fc8', [4, 4], [4]]]});"
                "OUT.write(bytes(60))", "fails to read"),
    "burns time": ("M['limit'](0, 1 << 28)\nwhile True: pass", "too long"),
    "takes memory": ("M['limit'](9, 1 << 28); bytearray(1 << 30)", "fails to read"),
    "opens files": ("M['seal'](); open('/etc/hostname')", "fails to read"),
}  # fmt: skip


@pytest.mark.parametrize(
    "deed",
    [
        pytest.param(x, marks=pytest.mark.slow)
        if x in ("says nothing", "talks nonsense", "negative shape")
        else x
        for x in CHILDREN
    ],
)
def test_a_child_gone_astray(tmp_path, monkeypatch, deed):
    code, found = CHILDREN[deed]
    script = tmp_path / "child.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, runpy, struct, sys
        sys.path[:] = json.loads(sys.argv[1])
        M = runpy.run_path({hdf5_child.__file__!r})
        OUT = sys.stdout.buffer
        def say(head):
            raw = json.dumps(head).encode()
            OUT.write(struct.pack("<I", len(raw)) + raw)
        """)
        + code
    )
    monkeypatch.setattr(hdf5_child, "__file__", str(script))
    monkeypatch.setattr(hdf5_file, "WALL_SECONDS", 1 if deed == "sleeps" else 20)
    write_file(ARRAYS, tmp_path / "x.h5")
    threads = threading.active_count()
    assert re.search(found, refusal(tmp_path / "x.h5"))
    assert threading.active_count() <= threads
