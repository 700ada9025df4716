"""Every public name as a user's program has it: `mypy --strict` must pass, and know each result.

Nothing here is run. See test_typing.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import tf_alexnet as ta
from tf_alexnet.evaluation.metrics import Evaluation
from tf_alexnet.export import Export
from tf_alexnet.extraction import ExtractionReport
from tf_alexnet.labels import Prediction
from tf_alexnet.training.run import Run, TrainingReport
from tf_alexnet.weights import Identification, KnownWeights, WeightArrays

Array = npt.NDArray[Any]


def photos_to_classes(path: Path) -> list[list[Prediction]]:
    """Keras models are `Any`: Keras has no types for checkers."""
    model = ta.AlexNet(path, architecture="caffenet", seed=1)
    assert_type(ta.preset_of(model), str)
    photo = ta.load_image(path, depth="12")
    assert_type(photo, Array)
    x = ta.preprocess_input(photo[None], model, mean_image=(104, 117, 123), crops="ten")
    x = ta.preprocess_input([photo], ta.Preset("mine", size=227, mean=(104, 117, 123)))
    best = ta.decode_predictions(model.predict(x), top=5)
    assert_type(best, list[list[Prediction]])
    assert_type(best[0][0].probability, float)
    assert_type(best[0][0].index, int)
    synset, label, probability = best[0][0]
    assert_type((synset, label, probability), tuple[str, str, float])
    ta.features(ta.load_model(path), ["pool5", "fc7_preact"])
    ta.Preprocessing("caffe", name="preprocess")(photo)
    return best


def weight_files(path: Path) -> None:
    """Weights in and out."""
    assert_type(ta.catalog(), tuple[KnownWeights, ...])
    assert_type(ta.fetch_weights("imagenet", to=path), Path)
    arrays = ta.read_weights(path)
    assert_type(arrays, WeightArrays)
    assert_type(arrays.layers["fc7"].kernel, Array)
    assert_type(arrays.classes, int | None)
    found = ta.identify_weights(arrays)
    assert_type(found, Identification)
    assert_type(found.name, str | None)
    ta.write_weights(arrays, path / "weights.onnx", lrn="ops")


def photos_to_features(path: Path) -> None:
    """Files and rows."""
    report = ta.extract_features([path], path / "fc7.h5", layers=["fc7"], dtype="float16")
    assert_type(report, ExtractionReport)
    assert_type(report.rows, int)
    assert_type(report.errors[0].path, str)
    extractor = ta.FeatureExtractor("random:7", ("fc6", "fc7"), engine="tensorflow")
    assert_type(extractor.layers, tuple[str, ...])
    assert_type(extractor.engine, str)
    assert_type(extractor.from_images(np.zeros((2, 9, 9, 3), np.uint8)), dict[str, Array])
    for photo in ta.predict_photos([path], ta.FeatureExtractor(layers="prob"), top=1):
        assert_type(photo.predictions, tuple[Prediction, ...])
    transformer = ta.AlexNetFeatures("pool5", weights="torchvision-convs", pool="avg").fit()
    assert_type(transformer, ta.AlexNetFeatures)


def classifiers(path: Path) -> None:
    """Training and its measure."""
    head = ta.train_head(path, run=path, layer="pool5", l2=0.1)
    assert_type(head, TrainingReport)
    assert_type(ta.train_network(path, path, mode="scratch", epochs=2).run, Run | None)
    run = ta.load_run(path)
    assert_type(run, Run)
    assert_type(run.classes, tuple[str, ...])
    assert_type(run.record.metrics["val_accuracy"], float)
    measured = ta.evaluate_photos(path, model=path, crops="ten")
    if isinstance(measured, Evaluation):
        assert_type(measured.top5, float | None)
    else:
        assert_type(measured.mean_average_precision, float)
    assert_type(ta.export_model(run, "onnx", path), Export)
    assert_type(run.predict([path], top=1)[0].predictions[0].label, str)
    for photo in ta.predict_photos(path, run.extractor):
        assert_type(photo.error, str | None)


def pictures(path: Path) -> None:
    """A module of functions."""
    features = ta.visualize.read_features(path)
    assert_type(features.layers["fc7"], Array)
    assert_type(ta.visualize.linear_cka(features.layers), Array)
