"""What an object shows of itself: one short line that says what it is."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.evaluation.metrics import Evaluation, MultiLabelEvaluation
from tf_alexnet.evaluation.readout import LayerResult, ReadoutReport
from tf_alexnet.export.exporter import Export
from tf_alexnet.export.verification import Verification
from tf_alexnet.images import PRESETS, preset_named
from tf_alexnet.labels import Label
from tf_alexnet.training import Example, PhotoSet
from tf_alexnet.training.linear import Classifier
from tf_alexnet.training.run import TrainingReport
from tf_alexnet.visualize import SaliencyMap, SanityCheck
from tf_alexnet.visualize.features_file import Features
from tf_alexnet.weights import LayerArrays, find_weights, inspect_weights


@pytest.fixture(scope="module")
def convs():
    return find_weights("torchvision-convs")


def line(value, length=250):
    text = repr(value)
    assert "\n" not in text
    assert len(text) <= length
    assert text.startswith(f"<{type(value).__name__} ")
    return text


def test_presets_say_what_they_do():
    assert line(PRESETS["caffe"]) == (
        "<Preset caffe: squash to 256, centre crop 227, BGR, minus 104.007/116.669/122.679>"
    )
    assert "squash to 256, centre crop 224, BGR, minus 1/2/3.5>" in line(
        preset_named("caffe.size224.mean1-2-3.5")
    )
    assert "caffe.anysize: BGR, minus 104" in line(preset_named("caffe.anysize"))
    assert line(PRESETS["torchvision"]) == (
        "<Preset torchvision: shorter side to 256 (antialiased), centre crop 224, RGB, "
        "divided by 255, minus 0.485/0.456/0.406, divided by 0.229/0.224/0.225>"
    )
    assert "minus the photo's own mean>" in line(PRESETS["udacity"])
    assert "minus a mean image>" in line(PRESETS["caffe-mean-image"])
    assert line(PRESETS["raw"]) == "<Preset raw: conversion to float32>"
    assert line(ta.Preset("mine", size=9, divisor=2)) == (
        "<Preset mine: squash to 9, RGB, divided by 2>"
    )


def test_networks():
    table = ARCHITECTURES["bvlc_alexnet"]
    assert line(table) == (
        "<Architecture bvlc_alexnet: input 227x227 BGR, conv1 to prob, 60,965,224 parameters>"
    )
    assert "conv1 to pool5, 2,334,080 parameters" in line(table.until("pool5"))


def test_weights(convs):
    arrays = ta.read_weights(convs)
    assert line(arrays) == (
        "<WeightArrays torchvision: conv1, conv2, conv3, conv4, conv5, 2,469,696 numbers, "
        f"from {convs}>"
    )
    assert line(arrays.layers["conv1"]) == "<LayerArrays kernel (11, 11, 3, 64), bias (64,)>"
    assert line(LayerArrays([[1.0]], [2.0])) == "<LayerArrays kernel (1, 1), bias (1,)>"
    assert f"{convs}: safetensors, torchvision-convs, 5 layers, no check failed>" in line(
        inspect_weights(convs)
    )
    for known in ta.catalog():
        assert f"<KnownWeights {known.name}: {known.architecture}, " in line(known)


def test_features(convs, tmp_path):
    extractor = ta.FeatureExtractor(convs, ["conv5", "pool5"], engine="tensorflow")
    assert line(extractor) == (
        "<FeatureExtractor conv5, pool5 of torchvision (torchvision weights), preset torchvision, "
        "tensorflow float32>"
    )
    assert "of compact (untrained weights)" in line(
        ta.FeatureExtractor("random:7", "pool5", architecture="compact", engine="tensorflow")
    )
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    report = ta.extract_features(tmp_path, tmp_path / "f\n.npz", weights=convs, layers=["pool5"])
    assert line(report) == (
        rf"<ExtractionReport {tmp_path}/f\n.npz: inputs 2, rows 1, errors 1; pool5 (1, 6, 6, 256)>"
    )


def test_evaluations():
    labels = tuple(Label("", name) for name in "abcdefgh")
    confusion = np.diag(np.arange(8))
    confusion[0, 1] = 4
    about = ("caffenet", "caffe", "center", "w.npy", None)
    found = Evaluation(labels, confusion, 30, (), (), *about)
    assert line(found) == "<Evaluation w.npy: 32 photos, 8 classes, top-1 87.5%, top-5 93.8%>"
    found = Evaluation(labels[:2], np.diag([3, 1]), 0, (), (), *about)
    assert line(found) == "<Evaluation w.npy: 4 photos, 2 classes, top-1 100.0%>"
    found = MultiLabelEvaluation(labels, np.array([0.5, np.nan, 1]), 9, (), (), *about)
    assert line(found) == (
        "<MultiLabelEvaluation w.npy: 9 photos, 8 classes, mean average precision 0.750>"
    )
    results = (LayerResult("conv1", 96, 0.1, 1.0, 0.25), LayerResult("fc7", 4096, 0.1, 1.0, 0.75))
    assert line(ReadoutReport(Path("RUN"), "accuracy", results)) == (
        "<ReadoutReport RUN: validation accuracy conv1 0.250, fc7 0.750>"
    )


def test_trainings_and_exports():
    photos = PhotoSet("data", ("a", "b"), (Example("a/1.png", 0),) * 3, (), False, source="data")
    assert line(photos) == "<PhotoSet data: 2 classes, train 3, val 0, test 0>"
    head = Classifier(("a", "b"), np.zeros((9216, 2)), np.zeros(2), False, {})
    assert line(head) == "<Classifier 9216 features, 2 classes>"
    assert line(TrainingReport(None, ("note",), classifier=head)) == (
        f"<TrainingReport {head!r}, notes 1, skipped 0>"
    )
    measured = Verification(
        "onnxruntime 1.20",
        "tensorflow",
        5,
        {"fc7": 1e-6, "prob": 2e-6},
        1.0,
        1.0,
        9,
        1.0,
        1.0,
        True,
    )
    assert line(Export(Path("out"), "onnx", "float32", Path("out/m.onnx"), measured)) == (
        "<Export out/m.onnx: onnx float32, largest error 2.0e-06 on 5 photos>"
    )


def test_pictures():
    features = Features(["a", "b"], {"fc7": np.zeros((2, 4096))}, {})
    assert line(features) == "<Features 2 photos: fc7 (2, 4096)>"
    found = SaliencyMap(np.zeros((30, 40)), 281, 12.345, None, "gradcam")
    assert line(found) == "<SaliencyMap gradcam (30, 40) of class 281, score 12.3>"
    check = SanityCheck(("trained", "fc8", "conv1"), {"gradcam": [found] * 3}, {}, 281)
    assert line(check) == "<SanityCheck gradcam of class 281, trained to conv1>"
