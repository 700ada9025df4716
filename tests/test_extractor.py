"""FeatureExtractor as an object: photos to arrays, pickling, parity with the plain model."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import reference
from conftest import model_of, weights_of

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import ImageError, InputError


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


def test_from_images_refuses_what_is_no_list_of_photos(tmp_path):
    extractor = ta.FeatureExtractor("torchvision-convs", ["pool5"])
    for images in ("photo.jpg", [], tmp_path):
        with pytest.raises(InputError, match="is no sequence of photos"):
            extractor.from_images(images)
    with pytest.raises(ImageError, match=r"nosuch\.jpg: there is no such file"):
        extractor.from_images([tmp_path / "nosuch.jpg"])


def test_a_pickled_extractor_is_small_and_gives_the_same_rows(alexnet_file, example_photos):
    extractor = ta.FeatureExtractor(alexnet_file, ["fc7"], architecture="bvlc_alexnet")
    stream = pickle.dumps(extractor)
    assert len(stream) < 1000, "the path of the weights, not the weights"
    copy = pickle.loads(stream)
    assert copy.weights_digest == extractor.weights_digest
    rows = [e.from_images(example_photos[:2])["fc7"] for e in (extractor, copy)]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_fast_path_equals_the_plain_model_blob_by_blob(name, example_photos):
    table = ARCHITECTURES[name]
    names = [*table.blobs, *table.preacts]
    extractor = ta.FeatureExtractor(weights_of(name), names)
    x = extractor.preprocess([ta.load_image(path) for path in example_photos])
    plain = ta.features(model_of(name), names).predict(x, verbose=0)
    for blob, ours in extractor(x).items():
        assert reference.relative_error(ours, plain[blob]) < 1e-5, blob  # observed 2e-6


@pytest.mark.parametrize("onednn", ["0", "1"])
def test_the_fast_path_holds_with_and_without_onednn(onednn):
    """Kernels for groups are oneDNN's; without them groups are split. TensorFlow asks but once."""
    code = """
import numpy as np, tf_alexnet as ta
from tf_alexnet.testing import synthetic_weights
weights = synthetic_weights("bvlc_alexnet")
x = np.random.default_rng(0).uniform(-120, 130, (3, 227, 227, 3)).astype(np.float32)
plain = ta.AlexNet(weights, feature_extract=True).predict(x, verbose=0)
extractor = ta.FeatureExtractor(weights, ["fc7"])
for n in (1, 3):
    print(np.abs(extractor(x[:n])["fc7"] - plain[:n]).max() / np.abs(plain).max())
"""
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn, "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    errors = [float(line) for line in run.stdout.split()]
    assert len(errors) == 2
    assert max(errors) < 1e-5  # observed 2e-6


def test_a_fork_is_noticed_and_loops_are_quiet():
    code = """
import os, numpy as np, tf_alexnet as ta
from tf_alexnet.errors import AlexNetError
x = np.zeros((1, 224, 224, 3), np.float32)
for layer in ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4"):
    extractor = ta.FeatureExtractor("torchvision-convs", layer)
    assert set(extractor(x)) == {layer}
if os.fork() == 0:
    for use in (lambda: extractor(x), lambda: ta.FeatureExtractor("torchvision-convs", "conv1")):
        try:
            use()
        except AlexNetError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
"""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        **{"env": environment, "capture_output": True, "text": True, "timeout": 120},
    )
    assert "retracing" not in run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 2, run.stderr
    assert all("TensorFlow was used before the fork" in line for line in lines)
