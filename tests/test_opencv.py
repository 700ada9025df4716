"""OpenCV's Caffe importer reads what we write and computes what we compute, blob by blob."""

import cv2
import numpy as np
import pytest
import reference
from conftest import model_of, weights_of
from prototxt import prototxt

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES, Conv, Dense

BOUND = 1e-5  # observed on 13 photos: at most 7e-6 (prob), 4.4e-6 before it


@pytest.fixture(scope="module", params=["bvlc_alexnet", "caffenet"])
def engines(request, tmp_path_factory):
    """Our model, and OpenCV's of a caffemodel that we wrote, full size."""
    folder = tmp_path_factory.mktemp("caffe")
    table = ARCHITECTURES[request.param]
    (folder / "deploy.prototxt").write_text(prototxt(table))
    ta.write_weights(weights_of(table.name), folder / "net.caffemodel")
    net = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(folder / "net.caffemodel"))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.enableFusion(False)  # or blobs inside a fused group could not be asked for
    net.enableWinograd(False)  # an approximation good to 1e-4 only
    (folder / "net.caffemodel").unlink()
    return table, model_of(table.name), net


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
    check_photos(engines, example_photos)


def test_blobs_and_top5_agree_with_opencv_on_more_photos(engines, shared_photos):
    check_photos(engines, shared_photos[::4])
