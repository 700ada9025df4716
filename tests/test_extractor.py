"""FeatureExtractor as an object: photos to arrays, pickling, parity with the plain model."""

import functools
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
import tensorflow as tf
from conftest import model_of, weights_of
from PIL import Image

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import ImageError, InputError
from tf_alexnet.testing import synthetic_weights


def test_paths_and_arrays_give_the_same_rows_in_order(example_photos):
    extractor = ta.FeatureExtractor("torchvision-convs", ["pool5", "conv3"])
    arrays = [ta.load_image(path) for path in example_photos]
    expected = extractor(extractor.preprocess(arrays))
    mixed = [example_photos[0], arrays[1], str(example_photos[2]), *arrays[3:]]
    for batch_size in (64, 2):
        found = extractor.from_images(mixed, batch_size)
        for name, blob in expected.items():
            # Batches of 2, 2 and 1: observed 0 on AVX-512, 1e-6 on AVX2.
            assert reference.relative_error(found[name], blob) < (5e-6 if batch_size < 5 else 1e-9)


def test_from_images_takes_photos_of_any_kind_from_any_container(example_photos):
    extractor = ta.FeatureExtractor("torchvision-convs", "pool5")
    paths = [str(path) for path in example_photos[:3]]
    pixels = [ta.load_image(path) for path in paths]
    expected = extractor.from_images(pixels)["pool5"]
    square = np.stack([x[:100, :100] for x in pixels])
    of_square = extractor.from_images(list(square))["pool5"]
    files = [open(path, "rb") for path in paths]  # noqa: SIM115
    for images, wanted in (
        (paths, expected),
        (paths[0], expected[:1]),
        (pixels[0], expected[:1]),
        ((path for path in paths), expected),
        (pd.Series(paths, index=[5, 1, 9]), expected),
        (pd.Index(paths), expected),
        (pd.DataFrame({"path": paths}), expected),
        (np.array(paths), expected),
        (set(paths), expected),  # sorted
        ([Path(paths[0]), pixels[1], Image.open(paths[2])], expected),
        ([Path(path).read_bytes() for path in paths], expected),
        ([io.BytesIO(Path(path).read_bytes()) for path in paths], expected),
        (files, expected),
        ([f"file://{os.path.abspath(path)}" for path in paths], expected),
        (square, of_square),
        (tf.constant(square), of_square),
        (list(tf.constant(square)), of_square),
        (Tensor(square), of_square),
    ):
        found = extractor.from_images(images)["pool5"]
        assert reference.relative_error(found, wanted) < 5e-6, type(images)  # observed 1e-6
    for file in files:
        file.close()


@functools.cache
def conv1():
    return ta.FeatureExtractor("torchvision-convs", ["conv1"])


class Tensor:
    """What `torch.Tensor` has that is used; it may be on a GPU."""

    def __init__(self, values):
        self._values = values

    def detach(self):
        return self

    def cpu(self):
        return self._values


@pytest.mark.parametrize(
    ("images", "error", "line"),
    [
        ([], InputError, "it got no photo"),
        (["PHOTO", None], InputError, r"images\[1\]: "),
        (["PHOTO", float("nan")], InputError, r"images\[1\]: "),
        (["PHOTO", 7], InputError, r"images\[1\]: "),
        ([["PHOTO"]], InputError, r"images\[0\]: "),
        ({"a": "PHOTO"}, InputError, "a dictionary"),
        (np.zeros((2, 3)), InputError, "neither paths nor pixels"),
        (["PHOTO", np.full((9, 9, 3), 0.5)], InputError, r"images\[1\]: got float64"),
        (["PHOTO", np.zeros((3, 9, 9), np.uint8)], InputError, r"images\[1\]: .* Channels come"),
        (["PHOTO", "nosuch.jpg"], ImageError, r"nosuch\.jpg: there is no such file"),
        (b"no image", ImageError, "not an image format we read"),
    ],
)
def test_from_images_names_what_is_not_a_photo(images, error, line, example_photos):
    extractor = conv1()
    if isinstance(images, list):
        images = [example_photos[0] if isinstance(x, str) and x == "PHOTO" else x for x in images]
    with pytest.raises(error, match=line):
        extractor.from_images(images)


def test_a_pickled_extractor_is_small_and_gives_the_same_rows(tmp_path, example_photos):
    path = tmp_path / "w.npy"
    ta.write_weights(synthetic_weights(ARCHITECTURES["bvlc_alexnet"].until("pool5")), path)
    extractor = ta.FeatureExtractor(path, ["pool5"], architecture="bvlc_alexnet")
    stream = pickle.dumps(extractor)
    assert len(stream) < 1000, "the path of the weights, not the weights"
    copy = pickle.loads(stream)
    assert copy.weights_digest == extractor.weights_digest
    rows = [e.from_images(example_photos[:2])["pool5"] for e in (extractor, copy)]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "caffenet" else name
        for name in ARCHITECTURES
    ],
)
def test_both_engines_equal_the_plain_model_blob_by_blob(name, example_photos):
    table = ARCHITECTURES[name]
    if name in ("bvlc_alexnet", "compact"):
        weights, model = weights_of(name), model_of(name)
    else:  # their dense layers are those of bvlc_alexnet
        table = table.until("pool5")
        weights = synthetic_weights(table)
        model = ta.AlexNet(weights, include_top=False)
    names = [*table.blobs, *table.preacts]
    x = plain = None
    for engine in ("tensorflow", "openvino"):
        extractor = None  # it is large
        extractor = ta.FeatureExtractor(weights, names, engine=engine)
        if plain is None:
            x = extractor.preprocess([ta.load_image(path) for path in example_photos[:3]])
            plain = ta.features(model, names).predict(x, verbose=0)
        assert extractor.engine == engine
        for count in (1, len(x)):
            for blob, ours in extractor(x[:count]).items():
                error = reference.relative_error(ours, plain[blob][:count])
                assert error < 1e-5, (engine, blob)  # observed 3e-6


@pytest.mark.slow
@pytest.mark.parametrize("onednn", ["0", "1"])
def test_without_onednn_after_a_fork_and_in_loops(onednn):
    """Kernels for groups are oneDNN's; without them groups are split. TensorFlow asks but once.

    A fork is noticed, and TensorFlow warns of no retracing.
    """
    code = """
import os, numpy as np, tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import AlexNetError
from tf_alexnet.testing import synthetic_weights
weights = synthetic_weights(ARCHITECTURES["bvlc_alexnet"].until("pool5"))
x = np.random.default_rng(0).uniform(-120, 130, (3, 227, 227, 3)).astype(np.float32)
plain = ta.AlexNet(weights, include_top=False).predict(x, verbose=0)
extractor = ta.FeatureExtractor(weights, ["pool5"], engine="tensorflow")
for n in (1, 3):
    print(np.abs(extractor(x[:n])["pool5"] - plain[:n]).max() / np.abs(plain).max())
for layer in ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4"):
    extractor = ta.FeatureExtractor(weights, layer, engine="tensorflow")
    assert set(extractor(x[:1])) == {layer}
if os.fork() == 0:
    again = lambda: ta.FeatureExtractor(weights, "conv1", engine="tensorflow")(x)
    for use in (lambda: extractor(x), again):
        try:
            use()
        except AlexNetError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
"""
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn, "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run(
        [sys.executable, "-u", "-W", "ignore", "-c", code],
        **{"env": environment, "capture_output": True, "text": True, "timeout": 120},
    )
    assert "retracing" not in run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 4, run.stderr
    assert max(map(float, lines[:2])) < 1e-5  # observed 2e-6
    assert all("TensorFlow was used before the fork" in line for line in lines[2:])
