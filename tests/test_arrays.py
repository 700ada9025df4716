"""Training on arrays and iterables: the Udacity exercise, and what can be wrong with it."""

import json

import numpy as np
import pytest
from planted import CLASSES, photo

import tf_alexnet as ta
from tf_alexnet.errors import AlexNetError, InputError, UsageError
from tf_alexnet.training import train_head

SETTINGS = {"weights": "torchvision-convs"}
SIDE = 32


@pytest.fixture(scope="module")
def signs():
    """Images (72, 32, 32, 3) uint8 and labels (72,), class by class."""
    y = np.repeat(np.arange(3), 24)
    x = np.stack([np.asarray(photo(kind, i, (SIDE, SIDE))) for i, kind in enumerate(y)])
    return x, y


@pytest.fixture(scope="module")
def report(signs):
    return train_head(*signs, classes=CLASSES, **SETTINGS)


@pytest.fixture(scope="module")
def few(signs):
    """Six of the images of each class, their labels, and a classifier on them."""
    x, y = (part[::4] for part in signs)
    found = train_head(x, y, classes=CLASSES, l2=0.01, **SETTINGS)
    return x, y, found.run.arrays.layers["fc8"].kernel


@pytest.fixture(scope="module")
def features(signs):
    """The rows that `report` was fitted on, from another function."""
    extractor = ta.FeatureExtractor("torchvision-convs", ("pool5",))
    return extractor.from_images(signs[0])["pool5"].mean(axis=(1, 2))


def test_images_and_labels_make_a_network(report, signs):
    x, y = signs
    run = report.run
    assert run.folder is None
    assert run.classes == report.classifier.classes == CLASSES
    assert "in memory" in repr(run)
    assert run.record.split["train"], run.record.split["val"] == (57, 15)
    assert run.record.metrics["val_accuracy"] >= 0.8
    found = run.predict(x[::10])
    assert [p.path for p in found] == [f"images[{i}]" for i in range(len(found))]
    named = [p.predictions[0].label for p in found]
    assert np.mean([a == CLASSES[b] for a, b in zip(named, y[::10], strict=True)]) > 0.8
    ours = np.array([[q.probability for q in sorted(p.predictions, key=lambda z: z.index)]
                     for p in found])  # fmt: skip
    theirs = run.model.predict(ta.preprocess_input(x[::10], ta.preset_of(run.model)), verbose=0)
    assert np.abs(ours - theirs).max() < 1e-4


def test_features_alone_make_the_same_classifier(report, signs, features):
    other = train_head(features, signs[1], classes=CLASSES)
    assert other.run is None
    ours, theirs = other.classifier, report.classifier
    assert np.abs(ours.kernel - theirs.kernel).max() < 1e-3 * np.abs(theirs.kernel).max()
    probabilities = ours.predict_proba(features)
    assert probabilities.shape == (72, 3)
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-6
    assert (probabilities.argmax(axis=1) == signs[1]).mean() > 0.9
    assert ours.metrics["val_accuracy"] == theirs.metrics["val_accuracy"]


@pytest.mark.parametrize("kind", ["pairs", "batches", "one-hot", "names"])
def test_whatever_form_they_come_in(kind, few):
    import tensorflow as tf

    x, y, kernel = few
    pairs = tf.data.Dataset.from_tensor_slices((x, y))  # what TensorFlow Datasets give
    data = {
        "pairs": ((image.numpy(), int(label)) for image, label in pairs),
        "batches": pairs.batch(7),
        "one-hot": x,
        "names": list(x),  # may be of many sizes
    }[kind]
    labels = {"one-hot": np.eye(3)[y], "names": np.array(CLASSES)[y]}.get(kind)
    names = None if kind == "names" else CLASSES
    run = train_head(data, labels, classes=names, l2=0.01, **SETTINGS).run
    assert run.classes == CLASSES
    found = run.arrays.layers["fc8"].kernel
    assert np.abs(found - kernel).max() < 1e-4 * np.abs(kernel).max()


def test_a_run_of_arrays_is_written_and_not_trained_twice(signs, tmp_path):
    x, y = (part[::6] for part in signs)
    first = train_head(x, y, run=tmp_path / "RUN", l2=0.01, **SETTINGS)
    loaded = ta.load_run(tmp_path / "RUN")
    assert loaded.classes == ("0", "1", "2")
    assert loaded.record == first.run.record
    again = train_head(x, y, run=tmp_path / "RUN", l2=0.01, **SETTINGS)
    assert again.finished_before
    assert again.run.record == first.run.record
    with pytest.raises(UsageError, match="other settings: other photos, labels or splits"):
        train_head(x[::-1], y, run=tmp_path / "RUN", l2=0.01, **SETTINGS)
    with pytest.raises(UsageError, match=r"no training was started there"):
        train_head(x, y, run=tmp_path / "new", resume=True, **SETTINGS)


def test_validation_data_are_not_trained_on(signs, features):
    _, y = signs
    train, val = np.arange(72) % 4 > 0, np.arange(72) % 4 == 0
    given = (features[val], y[val])
    whole = train_head(features[train], y[train], validation_data=given, l2=0.01).classifier
    assert whole.metrics["val_accuracy"] == np.mean(
        whole.predict_proba(features[val]).argmax(axis=1) == y[val]
    )
    other = train_head(features[train], y[train], validation_data=(-features[val], y[val]), l2=0.01)
    np.testing.assert_array_equal(other.classifier.kernel, whole.kernel)


def test_several_labels_per_image(signs, features):
    from sklearn.metrics import average_precision_score

    flags = np.stack([signs[1] == 0, signs[1] > 0, signs[1] == 2], axis=1).astype(np.uint8)
    val = (features[::3], flags[::3])
    found = train_head(features, flags, multi_label=True, validation_data=val).classifier
    probabilities = found.predict_proba(features[::3])
    assert np.abs(probabilities.sum(axis=1) - 1).max() > 0.3, "they are independent"
    expected = average_precision_score(flags[::3], probabilities)
    assert found.metrics["val_map"] == pytest.approx(expected, rel=1e-6)


def test_copies_in_both_splits_are_noted(signs):
    x, y = signs
    notes = []
    val, settings = (x[::12], y[::12]), {**SETTINGS, "l2": 0.01}
    train_head(x[::6], y[::6], validation_data=val, note=notes.append, **settings)
    assert any("6 of 6 validation photos are among the training photos, too" in x for x in notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1]}, r"labels: shape \(2,\), with 72 images"),
        ({"labels": None}, r"data\[0\]: ndarray, not an \(image, label\) pair.*as_supervised=True"),
        ({"labels": [[0], [0, 1]] * 36}, "labels: their shapes differ"),
        ({"data": 5, "labels": None}, "data: int without images"),
        ({"labels": np.zeros(72, int)}, "classes: 1 different names for 1 classes"),
        ({"classes": ["a", "b"]}, "labels of 2 classes: not all are integers from 0 to 1"),
        ({"classes": ["a", "a", "b"]}, "classes: 2 different names for 3 classes"),
        ({"labels": np.ones((72, 3))}, "Pass multi_label=True"),
        ({"labels": np.full((72, 3), 0.5)}, "not of 0 and 1"),
        ({"multi_label": True}, r"Give 0 and 1, \(N, classes\)"),
        ({"val_split": 1.5}, "val_split 1.5"),
        ({"seed": -1}, "seed -1: out of range"),
        ({"data": np.full((72, 5), np.nan), "run": None}, "features: NaN or infinite values"),
        ({"data": np.ones((72, 5)), "run": "RUN"}, "RUN RUN: features, without the network"),
        ({"class_weight": "auto"}, "class_weight 'auto'"),
        ({"weights": None}, "weights=None"),
        ({"data": "folder"}, "a path needs a RUN"),
    ],
)
def test_what_can_not_work_is_said_in_one_line(change, message, signs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = signs
    call = {"data": x, "labels": y, "run": "new", **SETTINGS, **change}
    with pytest.raises(AlexNetError, match=message) as caught:
        train_head(call.pop("data"), call.pop("labels"), **call)
    assert isinstance(caught.value, InputError | UsageError)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_images_in_0_to_1_are_refused(signs):
    x, y = signs
    with pytest.raises(InputError, match=r"images\[0\].*0\.\.1"):
        train_head(x[:, ::2] / np.float32(255), y, **SETTINGS)


def test_the_record_of_arrays_holds_no_more_than_json(report):
    content = json.loads(report.run.record.text())
    assert content["settings"]["multi_label"] is False
    assert content["split"]["val_photos"][0].startswith("images[")
