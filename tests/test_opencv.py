"""OpenCV's Caffe importer reads what we write and computes what we compute, blob by blob."""

import cv2
import numpy as np
import pytest
import reference
from conftest import free, model_of, weights_of

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES, Conv, Dense
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights.deploy import deploy_prototxt as prototxt

BOUND = 1e-5  # observed on 13 photos: at most 7e-6 (prob), 4.4e-6 before it


# Before `engines`, whose networks stay to the end of the module.
def test_the_command_line_agrees_with_opencv_end_to_end(
    alexnet_file, shared_photos, tmp_path, monkeypatch
):
    """`tf-alexnet extract` against OpenCV alone: its decoder, its resize, its network."""
    import sys

    import h5py

    from tf_alexnet.cli.main import main

    shared_photos = shared_photos[::4]
    command = ["tf-alexnet", "extract", *shared_photos, "-o", tmp_path / "f.h5"]
    command += ["-w", alexnet_file, "-l", "fc7", "-l", "prob"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    table = ARCHITECTURES["bvlc_alexnet"]
    (tmp_path / "deploy.prototxt").write_text(prototxt(table))
    ta.write_weights(weights_of(table.name), tmp_path / "net.caffemodel")
    free(keep=False)
    net = cv2.dnn.readNetFromCaffe(
        str(tmp_path / "deploy.prototxt"), str(tmp_path / "net.caffemodel")
    )
    net.enableWinograd(False)
    with h5py.File(tmp_path / "f.h5") as file:
        assert list(file["paths"].asstr()) == [str(path) for path in shared_photos]
        for path, fc7, prob in zip(shared_photos, file["fc7"], file["prob"], strict=True):
            image = cv2.resize(cv2.imread(str(path)), (256, 256))[14:241, 14:241]
            mean = (104.00698793, 116.66876762, 122.67891434)
            net.setInput(cv2.dnn.blobFromImage(image, mean=mean), "data")
            theirs_fc7, theirs_prob = (x.ravel() for x in net.forward(["relu7", "prob"]))
            assert reference.relative_error(fc7, theirs_fc7) < BOUND, path  # observed 1.7e-6
            assert reference.relative_error(prob, theirs_prob) < BOUND, path  # observed 4.8e-6
            top5 = [np.argsort(-x, kind="stable")[:5].tolist() for x in (prob, theirs_prob)]
            assert top5[0] == top5[1], path


@pytest.fixture(scope="module", params=["bvlc_alexnet", "caffenet"])
def engines(request, tmp_path_factory):
    """Our model, and OpenCV's of a caffemodel that we wrote, full size."""
    folder = tmp_path_factory.mktemp("caffe")
    table = ARCHITECTURES[request.param]
    (folder / "deploy.prototxt").write_text(prototxt(table))
    ta.write_weights(weights_of(table.name), folder / "net.caffemodel")
    model = model_of(table.name)
    weights_of.cache_clear()
    net = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(folder / "net.caffemodel"))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.enableFusion(False)  # or blobs inside a fused group could not be asked for
    net.enableWinograd(False)  # an approximation good to 1e-4 only
    (folder / "net.caffemodel").unlink()
    yield table, model, net
    del model, net
    free(keep=False)


def opencv_blobs(table, net, x):
    """Blob name -> array in Caffe's layout; blobs with a ReLU are fetched behind it."""
    relus = {
        layer.name: f"relu{layer.name[-1]}"
        for layer in table.layers
        if isinstance(layer, Conv) or (isinstance(layer, Dense) and layer.relu)
    }
    names = [name for name in table.blobs if name != "data"]
    net.setInput(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), "data")
    outputs = net.forward([relus.get(name, name) for name in names])
    return dict(zip(names, outputs, strict=True))


def check_photos(engines, paths):
    table, model, net = engines
    multi = ta.features(model, [name for name in table.blobs if name != "data"])
    worst = {}
    for path in paths:
        x = ta.preprocess_input([ta.load_image(path)], preset="caffe")
        ours = multi.predict(x, verbose=0)
        for name, theirs in opencv_blobs(table, net, x).items():
            blob = ours[name].transpose(0, 3, 1, 2) if ours[name].ndim == 4 else ours[name]
            worst[name] = max(
                worst.get(name, 0), reference.relative_error(blob, theirs.reshape(blob.shape))
            )
        top = np.argsort(-theirs.ravel(), kind="stable")[:5]
        assert [p.index for p in ta.decode_predictions(ours["prob"])[0]] == top.tolist()
    print({name: f"{error:.1e}" for name, error in worst.items()})
    assert max(worst.values()) < BOUND, worst


def test_blobs_and_top5_agree_with_opencv(engines, example_photos):
    check_photos(engines, example_photos[:4])


def test_blobs_and_top5_agree_with_opencv_on_more_photos(engines, shared_photos):
    check_photos(engines, shared_photos[::8])


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("bvlc_alexnet", 8),
        pytest.param("bvlc_alexnet", 4, marks=pytest.mark.slow),
        pytest.param("caffenet", 4, marks=pytest.mark.slow),
    ],
)
def test_open_input_sizes_pool_as_caffe_does(name, step, tmp_path):
    """Ten or twenty sizes, most of which leave pooling windows hanging over the edge."""
    table = ARCHITECTURES[name].until("pool5")
    arrays = synthetic_weights(table)
    ta.write_weights(arrays, tmp_path / "net.caffemodel")
    base = ta.AlexNet(arrays, include_top=False, input_shape=(None, None, 3))
    multi = ta.features(base, ["pool1", "pool2", "pool5"])
    generator = np.random.default_rng(0)
    hanging, text = 0, prototxt(table)
    for height in range(67, 147, step):
        width = int(generator.integers(67, 200))
        x = generator.uniform(-120, 130, (1, height, width, 3)).astype(np.float32)
        sizes = text.replace("dim: 227 dim: 227", f"dim: {height} dim: {width}")
        assert sizes != text
        (tmp_path / "net.prototxt").write_text(sizes)
        net = cv2.dnn.readNetFromCaffe(
            str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")
        )
        net.enableWinograd(False)
        net.setInput(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), "data")
        outputs = net.forward(["pool1", "pool2", "pool5"])
        found = {k: np.asarray(v).transpose(0, 3, 1, 2) for k, v in multi(x).items()}
        for blob, theirs in zip(found, outputs, strict=True):
            error = reference.relative_error(found[blob], theirs)
            assert error < BOUND, (blob, x.shape)
        fixed = ta.AlexNet(arrays, include_top=False, input_shape=x.shape[1:])
        hanging += any(layer.name.endswith("_pad") for layer in fixed.layers)
        if height % 16 == 3:  # the same with the padding that a fixed size needs
            error = reference.relative_error(
                np.asarray(fixed(x)).transpose(0, 3, 1, 2), found["pool5"]
            )
            assert error < BOUND
    assert hanging > 40 / step
