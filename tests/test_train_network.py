"""Training the network itself: what changes, what stays, and where it goes on after a stop."""

import csv
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import training
from reference import relative_error
from sklearn.metrics import average_precision_score

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import ImageError, OutputError, UsageError, WeightsError
from tf_alexnet.images.presets import PRESETS
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.training import Run, callbacks, read_photos, report
from tf_alexnet.training import finetune as room
from tf_alexnet.training.callbacks import CHECKPOINT, Checkpoint, State
from tf_alexnet.training.data import Photos, examine_photos
from tf_alexnet.training.finetune import Dropout, train_network
from tf_alexnet.training.folders import PhotoSet
from tf_alexnet.weights import WeightArrays, find_weights, fresh_layers

pytestmark = pytest.mark.usefixtures("simple")
SMALL = {
    **{"epochs": 2, "batch_size": 5, "weights": "torchvision-convs", "augment": "light"},
    "workers": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training.class_folders(tmp_path_factory.mktemp("photos") / "data")


def trained_and_stopped(folder, data, **settings):
    """A finished training, and a folder as it would be if it had ended after its first epoch."""
    write = callbacks.write_checkpoint

    def written(*arguments):
        write(*arguments)
        if arguments[-1].epoch == 1:
            shutil.copytree(folder / "run", folder / "stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "write_checkpoint", written)
        return train_network(data, folder / "run", **settings).run, folder / "stopped"


@pytest.fixture(scope="module")
def whole_and_stopped(data, tmp_path_factory):
    return trained_and_stopped(tmp_path_factory.mktemp("unbroken"), data, **SMALL)


@pytest.fixture(scope="module")
def unbroken(whole_and_stopped):
    """A finished training with `SMALL`."""
    return whole_and_stopped[0]


@pytest.fixture(scope="module")
def stopped(whole_and_stopped):
    """What the same training leaves if it ends after its first epoch."""
    return whole_and_stopped[1]


@pytest.fixture(scope="module", autouse=True)
def _narrow():
    """`compact` is narrow, here and in processes: dense layers take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "compact", training.narrow(ARCHITECTURES["compact"]))
        yield


def same(one, other):
    assert one.record.metrics == other.record.metrics
    assert one.record.weights_digest == other.record.weights_digest


def test_frozen_layers_stay_to_the_bit_and_others_change(unbroken):
    base = ta.read_weights(find_weights("torchvision-convs"))
    assert list(unbroken.arrays.layers) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc8"]
    for name in ("conv1", "conv2", "conv3", "conv4"):
        for one, other in zip(unbroken.arrays.layers[name], base.layers[name], strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(unbroken.arrays.layers["conv5"], base.layers["conv5"], strict=True):
        assert not np.array_equal(one, other)


def test_the_run_is_what_was_trained(unbroken, data):
    record = unbroken.record
    assert (record.mode, record.layer, record.classes) == (
        "finetune",
        "pool5",
        ("blue", "green", "red"),
    )
    photos = read_photos(data)
    model = ta.AlexNet(unbroken.arrays)
    x = ta.preprocess_input([ta.load_image(e.path) for e in photos.val], record.preset)
    found = model.predict(x, verbose=0).argmax(1)
    accuracy = np.mean(found == [e.label for e in photos.val])
    assert accuracy == pytest.approx(record.metrics["val_accuracy"])
    theirs = keras.saving.load_model(unbroken.folder / "model.keras")
    np.testing.assert_allclose(theirs(x[:2]), model(x[:2]), atol=1e-6)
    assert record.metrics["train_accuracy"] > 0.8
    assert record.metrics["val_accuracy"] > 0.6
    rows = (unbroken.folder / "history.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,train_loss,train_accuracy,val_loss,val_accuracy,")
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
    text = (unbroken.folder / "report.md").read_text()
    # conv5: 3 * 3 * 256 * 256 + 256; fc8: 9216 * 3 + 3
    assert "conv5, fc8 are trained, 617,731 parameters; conv1 to conv4 stay as they are" in text
    assert "waiting for photos" in text
    assert (unbroken.folder / "curves.png").stat().st_size > 1000


def test_events_are_written_without_tensorboard(tmp_path):
    with room._events(tmp_path / "events") as log:
        for epoch in (1, 2):
            log({"epoch": epoch, "val_loss": 0.5 / epoch})
    (file,) = (tmp_path / "events").iterdir()
    found = []
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found.append((event.step, value.tag, float(tf.make_ndarray(value.tensor))))
    assert found == [
        (1, "epoch", 1.0), (1, "val_loss", 0.5), (2, "epoch", 2.0), (2, "val_loss", 0.25)
    ]  # fmt: skip


class Stop(Exception):
    pass


@pytest.fixture
def stop(monkeypatch):
    """A function: training stops after so many epochs, or in the midst of one, as killed."""

    def stop_after(epochs, steps=None):
        write, end = callbacks.write_checkpoint, callbacks.Epochs.on_train_batch_end

        def written(*arguments):
            write(*arguments)
            if steps is None and arguments[-1].epoch == epochs:
                raise Stop

        def ended(self, batch, logs):
            end(self, batch, logs)
            if self._data.epoch == epochs + 1 and batch + 1 == steps:
                raise Stop

        monkeypatch.setattr(callbacks, "write_checkpoint", written)
        monkeypatch.setattr(callbacks.Epochs, "on_train_batch_end", ended)

    return stop_after


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "steps", "workers"), [(1, 2, 3), (1, None, 1)])
def test_a_training_that_was_stopped_ends_as_an_unbroken_one(
    epochs, steps, workers, data, unbroken, tmp_path, stop, monkeypatch
):
    stop(epochs, steps)
    with pytest.raises(Stop):
        train_network(data, tmp_path / "run", **{**SMALL, "workers": workers})
    assert not (tmp_path / "run" / "run.json").exists()
    monkeypatch.undo()
    same(train_network(data, tmp_path / "run", **SMALL, resume=True).run, unbroken)
    again = train_network(data, tmp_path / "run", **SMALL, resume=True)
    assert again.finished_before


SCRATCH = {"mode": "scratch", "epochs": 2, "batch_size": 5, "workers": 1}


@pytest.fixture(scope="module")
def scratch(data, tmp_path_factory):
    """A training from scratch and what it leaves after its first epoch, as `unbroken`."""
    return trained_and_stopped(tmp_path_factory.mktemp("scratch"), data, **SCRATCH)


def test_adam_and_dropout_go_on_too(data, scratch, tmp_path):
    whole, stopped = scratch
    shutil.copytree(stopped, tmp_path / "run")
    same(train_network(data, tmp_path / "run", **SCRATCH, resume=True).run, whole)
    assert whole.record.settings["optimizer"] == "Adam"
    assert whole.record.settings["schedule"] == "constant"
    assert whole.record.architecture == "compact"


def test_a_finished_run_continues(data, unbroken, tmp_path, stop, monkeypatch):
    run, told = tmp_path / "run", []
    first = train_network(data, run, **{**SMALL, "epochs": 1}).run
    assert first.record.metrics["epochs"] == 1
    stop(1, 2)
    with pytest.raises(Stop):
        train_network(data, run, **{**SMALL, "workers": 3})
    monkeypatch.undo()
    # The finished training is there until the longer one replaces it.
    assert Run.open(run).record.metrics["epochs"] == 1
    assert train_network(data, run, **{**SMALL, "epochs": 1}).finished_before
    same(train_network(data, run, **SMALL, note=told.append).run, unbroken)
    assert "continuing after epoch 1" in told
    assert train_network(data, run, **SMALL, resume=True).finished_before
    rows = (run / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
    with pytest.raises(UsageError, match="started with other settings: epochs 2 -> 1"):
        train_network(data, run, **{**SMALL, "epochs": 1})


def plan_of(mode="scratch", architecture="compact", weights=None, classes=7, **settings):
    optional = ("epochs", "learning_rate", "schedule", "gamma", "step_size", "class_weight")
    usual = {
        **dict.fromkeys((*optional, "layer", "patience")),
        **{"mode": mode, "unfreeze_from": "conv5", "batch_size": 4, "augment": "none", "seed": 0},
        **{"multi_label": False, "mixed_precision": False, "val_split": 0.2},
    }
    photos = PhotoSet(".", tuple("abcdefg"[:classes]), (), (), split=True)
    return room.planned(photos, weights, architecture, None, {**usual, **settings})


def test_from_scratch_rates_fall_as_caffes_did():
    found = plan_of(architecture="bvlc_alexnet").settings
    names = ("learning_rate", "schedule", "gamma", "step_size", "optimizer")
    assert [found[name] for name in names] == [0.01, "step", 0.1, 10, "CaffeSGD"]
    assert plan_of().settings["schedule"] == "constant"


@pytest.mark.parametrize("name", ["compact", pytest.param("caffenet", marks=pytest.mark.slow)])
def test_frozen_layers_get_no_gradient_and_sums_are_the_networks(name):
    plan = plan_of(mode="finetune", weights=synthetic_weights(name), architecture=name)
    model = room.training_model(plan, 3)
    assert model.output_shape == (None, 7)
    network = ta.AlexNet(room.first_weights(plan), classifier_activation=None)
    x = np.random.default_rng(0).normal(0, 1, (2, *model.input_shape[1:])).astype(np.float32)
    assert relative_error(model(x).numpy(), network(x).numpy()) < 1e-5  # observed 0
    variables = {name: model.get_layer(name).kernel.value for name in (*plan.frozen, *plan.trained)}
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True))
    gradients = dict(zip(variables, tape.gradient(loss, [*variables.values()]), strict=True))
    assert [name for name, value in gradients.items() if value is None] == [*plan.frozen]
    assert [v.path for v in model.trainable_variables] == [
        f"{name}/{kind}" for name in plan.trained for kind in ("kernel", "bias")
    ]


def test_dropout_is_a_function_of_its_seed():
    x = tf.constant(np.random.default_rng(0).uniform(1, 2, (8, 5000)).astype(np.float32))
    layer = Dropout(0.4)

    def drop(*state):
        layer.seed_generator.state.assign(state)
        return layer(x, training=True).numpy()

    np.testing.assert_array_equal(layer(x), x)
    one = drop(1, 2)
    np.testing.assert_array_equal(one, drop(1, 2))
    assert not np.array_equal(one, drop(1, 3))
    kept = one > 0
    assert kept.mean() == pytest.approx(0.6, abs=0.01)
    np.testing.assert_allclose(one[kept], (x / 0.6).numpy()[kept], rtol=1e-6)


def test_half_precision_is_near_and_keeps_float32_variables(data, tmp_path, unbroken):
    settings = {**SMALL, "epochs": 1, "mixed_precision": True}
    run = train_network(data, tmp_path / "run", **settings).run
    with open(unbroken.folder / "history.csv") as file:
        first = next(csv.DictReader(file))
    loss = pytest.approx(float(first["train_loss"]), rel=0.1)
    assert run.record.metrics["train_loss"] == loss
    kernel = run.arrays.layers["conv5"].kernel
    assert not np.array_equal(kernel, tf.cast(tf.cast(kernel, tf.bfloat16), tf.float32))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed 0 -> 1, other photos.*"),
        ({"learning_rate": 0.5}, "learning_rate 0.001 -> 0.5"),
        ({"unfreeze_from": "fc8"}, "unfreeze_from conv5 -> fc8"),
        ({"augment": "paper", "batch_size": 4}, "batch_size 5 -> 4, augment light -> paper"),
    ],
)
def test_changed_settings_are_refused_by_name(changed, named, data, unbroken):
    with pytest.raises(UsageError, match=f"started with other settings: {named}. Use the same"):
        train_network(data, unbroken.folder, **{**SMALL, **changed}, resume=True)


def test_other_weights_and_other_photos_are_refused(data, unbroken, tmp_path):
    base = ta.read_weights(find_weights("torchvision-convs"))
    layers = {**base.layers, "conv5": base.layers["conv5"]._replace(bias=np.zeros(256, "f4"))}
    other = WeightArrays(layers, base.architecture)
    with pytest.raises(UsageError, match="other settings: other weights"):
        train_network(data, unbroken.folder, **{**SMALL, "weights": other})
    shutil.copytree(data, tmp_path / "data")
    next((tmp_path / "data" / "red").iterdir()).unlink()
    with pytest.raises(
        UsageError, match="started with other settings: photos 18 -> 17, other photos"
    ):
        train_network(tmp_path / "data", unbroken.folder, **SMALL)


def test_a_loss_that_is_no_number_stops_in_one_line(data, tmp_path):
    with pytest.raises(UsageError, match=r"training diverged. .*lower learning rate") as caught:
        train_network(data, tmp_path / "run", **{**SMALL, "learning_rate": 1e20})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_weights_that_are_no_numbers_are_found_behind_a_relu(tmp_path):
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(3, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="fc8")(hidden))
    model.compile(optimizer="sgd")
    model.optimizer.build(model.trainable_variables)
    checkpoint = Checkpoint(tmp_path / CHECKPOINT, State("x"), "accuracy", None, lambda row: None)
    checkpoint.set_model(model)
    names = ("cross_entropy", "accuracy", "val_cross_entropy", "val_accuracy")
    logs = dict.fromkeys((*names, "photos_per_second", "data_wait", "seconds"), 1.0)
    checkpoint.on_epoch_end(0, logs)
    before = (tmp_path / CHECKPOINT).read_bytes()
    model.get_layer("hidden").bias.assign([0, np.nan, 0])
    with pytest.raises(UsageError, match=r"epoch 2: model/hidden/bias holds NaN .*diverged"):
        checkpoint.on_epoch_end(1, logs)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_accuracy_of_chance_is_called_that(data, tmp_path):
    for name in ("blue", "red"):  # photos alike: all are taken for one class
        shutil.copytree(f"{data}/blue", tmp_path / "data" / name)
    told = []
    settings = {**SMALL, "epochs": 1, "augment": "none", "unfreeze_from": "fc8"}
    found = train_network(tmp_path / "data", tmp_path / "run", **settings, note=told.append)
    assert found.run.record.metrics["val_accuracy"] == 0.5
    (line,) = [text for text in told if "no better than" in text]
    assert line in found.notes
    assert line in (tmp_path / "run" / "report.md").read_text()


@pytest.fixture(scope="module")
def quick(data, tmp_path_factory):
    """A training of `fc8` for one epoch: its run, notes, and calls of progress."""
    told, lines = [], []
    base = ta.read_weights(find_weights("torchvision-convs"))
    metadata = {**base.metadata, "classes": "1000", "origin_digest": "sha256:0", "licence": "x"}
    settings = {**SMALL, "weights": replace(base, metadata=metadata), "note": told.append}
    settings |= {"epochs": 1, "unfreeze_from": "fc8", "schedule": "cosine"}
    folder = tmp_path_factory.mktemp("quick") / "run"
    progress = lambda *values: lines.append(values)  # noqa: E731
    return train_network(data, folder, **settings, progress=progress).run, told, lines


def test_what_was_true_of_the_base_alone_is_not_inherited(quick):
    metadata = quick[0].arrays.metadata
    assert metadata["licence"] == "x"
    assert not {"classes", "origin_digest", "untrained"} & metadata.keys()


def test_the_first_lines_say_what_is_trained_on_what(quick):
    _, told, lines = quick
    assert told[0] == "on CPU: 15 photos for training, 3 for validation, 3 classes"
    assert told[1].startswith("fc8 are trained, 27,651 parameters; conv1 to conv5 stay")
    stage, done, total, figures = lines[-1]
    assert (stage, done, total) == ("epoch 1/1", 15, 15)
    assert list(figures) == ["loss", "accuracy", "val_loss", "val_accuracy"]


def test_a_cosine_ends_with_its_epochs(quick, data):
    run, *_ = quick
    last = (run.folder / "history.csv").read_text().splitlines()[-1].split(",")[5]
    assert float(last) == pytest.approx(0, abs=1e-9)
    settings = {**SMALL, "epochs": 2, "unfreeze_from": "fc8", "schedule": "cosine"}
    with pytest.raises(UsageError, match="cosine_epochs 1 -> 2"):
        train_network(data, run.folder, **settings)


@pytest.fixture(scope="module")
def patient(data, tmp_path_factory):
    """A training whose first epoch is the best, on photos of which two can't be read."""
    folder = tmp_path_factory.mktemp("patient")
    shutil.copytree(data, folder / "data")
    for name in ("blue/x.jpg", "red/y.png"):
        (folder / "data" / name).write_text("no photo")
    settings = {**SMALL, "unfreeze_from": "fc8", "patience": 2, "epochs": 9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "merit", lambda self, row: -row["epoch"])
        patch.setattr(report, "draw", lambda *arguments: [])
        return folder, settings, train_network(folder / "data", folder / "run", **settings)


def test_patience_ends_a_training(patient):
    folder, settings, found = patient
    assert found.run.record.metrics["epochs"] == 3
    assert found.run.record.metrics["epoch"] == 1
    more = train_network(folder / "data", folder / "run", **{**settings, "epochs": 12}).run
    assert more.record.metrics == found.run.record.metrics
    np.testing.assert_array_equal(*(x.arrays.layers["fc8"].kernel for x in (found.run, more)))


def test_photos_that_can_not_be_read_are_skipped_and_counted(data, patient, tmp_path):
    folder, _, found = patient
    assert {(x.path.rsplit("/", 1)[1], x.code) for x in found.skipped} == {
        ("x.jpg", "not_an_image"),
        ("y.png", "not_an_image"),
    }
    assert found.run.record.split["skipped"] == 2
    assert "x.jpg" in (folder / "run" / "report.md").read_text()
    shutil.copytree(data, tmp_path / "data")
    for photo in (tmp_path / "data" / "green").iterdir():
        photo.write_text("no photo")
    with pytest.raises(ImageError, match=r"photos of green: none can be read; .*not"):
        train_network(tmp_path / "data", tmp_path / "new", **SMALL)


def test_calls_that_can_not_work_are_refused(data, tmp_path):
    def attempt(**settings):
        train_network(data, tmp_path / "run", **{**SMALL, **settings})

    with pytest.raises(UsageError, match=r"mode 'heads': .*Use finetune or scratch"):
        attempt(mode="heads")
    with pytest.raises(UsageError, match=r"unfreeze from 'pool5': .*Use one of conv1, .*fc8"):
        attempt(unfreeze_from="pool5")
    with pytest.raises(UsageError, match="learning rate 0"):
        attempt(learning_rate=0.0)
    with pytest.raises(UsageError, match="epochs 0: nothing would be done"):
        attempt(epochs=0)
    with pytest.raises(UsageError, match=r"schedule 'linear': .*Use constant or step or"):
        attempt(schedule="linear")
    with pytest.raises(UsageError, match="gamma or step size: only the schedule step has them"):
        attempt(gamma=0.5)
    with pytest.raises(UsageError, match="gamma inf: out of range"):
        attempt(schedule="step", gamma=float("inf"))
    with pytest.raises(UsageError, match=r"class weight 'equal': .*Use balanced"):
        attempt(class_weight="equal")
    with pytest.raises(UsageError, match="seed -1: out of range"):
        attempt(seed=-1)
    with pytest.raises(UsageError, match="makes 227x227 pixels, the network takes 224"):
        attempt(preset="caffe")
    with pytest.raises(WeightsError, match="fc6 is missing"):
        attempt(layer="fc7")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="no training was started there"):
        train_network(data, tmp_path / "none", **SMALL, resume=True)


@pytest.mark.parametrize("fault", ["cut", "flipped", "nan", "foreign"])
def test_a_damaged_checkpoint_is_refused_in_a_line(fault, data, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    whole = path.read_bytes()
    if fault == "cut":
        path.write_bytes(whole[:-100])
    elif fault == "flipped":
        path.write_bytes(whole[:9] + b"\xff" + whole[10:])
    elif fault == "nan":
        path.write_bytes(whole[:-4] + np.float32("nan").tobytes())
    else:
        path.write_bytes(whole.replace(b'epoch\\": 1', b'epoch\\": 7', 1))
        assert path.read_bytes() != whole
    with pytest.raises(OutputError, match=r"checkpoint.safetensors: .* Start over with --force"):
        train_network(data, tmp_path / "run", **SMALL, resume=True)


def batches(photos):
    return [photos[index] for index in range(len(photos))]


def test_batches_are_a_function_of_seed_epoch_and_index(data):
    examples = read_photos(data).train
    settings = {"shuffle": True, "augment": "light", "seed": 3}
    with (
        Photos(examples, PRESETS["torchvision"], 4, workers=1, **settings) as one,
        Photos(examples, PRESETS["torchvision"], 4, workers=3, **settings) as other,
    ):
        one.epoch, other.epoch = 2, 1
        first, before = batches(one), batches(other)
        other.epoch = 2
        for index in (3, 0, 2, 1):
            for a, b in zip(first[index], other[index], strict=True):
                np.testing.assert_array_equal(a, b)
    labels = [y.tolist() for _, y, _ in first]
    assert labels != [y.tolist() for _, y, _ in before]
    assert sorted(y for some in labels for y in some) == sorted(x.label for x in examples)


def test_validation_batches_are_those_of_the_preset(data):
    examples = read_photos(data).val
    with Photos(examples, PRESETS["torchvision"], 2) as photos:
        found = batches(photos)
    wanted = ta.preprocess_input([ta.load_image(x.path) for x in examples], "torchvision")
    np.testing.assert_array_equal(np.concatenate([x for x, *_ in found]), wanted)
    assert np.concatenate([y for _, y, _ in found]).tolist() == [x.label for x in examples]


@pytest.mark.parametrize(
    ("photos", "batch", "sizes"),
    [(65, 32, [22, 22, 21]), (64, 32, [32, 32]), (1, 32, [1]), (33, 32, [17, 16])],
)
def test_batches_have_nearly_equal_sizes_and_weights_that_make_a_mean(data, photos, batch, sizes):
    examples = [read_photos(data, duplicates=False).train[0]] * photos
    with Photos(examples, PRESETS["compact"], batch, augment="none") as some:
        assert [some.size(i) for i in range(len(some))] == sizes
        pixels, _, weights = some[len(some) - 1]
    assert len(pixels) == len(weights) == sizes[-1]
    assert weights.sum() == pytest.approx(1)


def test_classes_have_weights(data):
    examples = read_photos(data, duplicates=False).train
    with Photos(examples, PRESETS["compact"], 3, class_weights=np.float32([1, 2, 3])) as photos:
        _, labels, weights = photos[len(photos) - 1]
    np.testing.assert_allclose(weights, (1 + labels) / 3, rtol=1e-6)


def test_photos_of_several_labels_are_trained_with_sigmoids(data, tmp_path):
    names = {"blue": "cold|sea", "green": "cold|wood", "red": "warm"}
    rows = [
        f"{data}/{colour}/{number}.png,{labels}"
        for colour, labels in names.items()
        for number in range(6)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    settings = {**SMALL, "epochs": 1, "unfreeze_from": "fc8", "multi_label": True}
    settings |= {"learning_rate": 1e-2}
    run = train_network(tmp_path / "labels.csv", tmp_path / "run", **settings).run
    assert run.record.multi_label
    assert run.classes == ("cold", "sea", "warm", "wood")
    photos = read_photos(tmp_path / "labels.csv", multi_label=True)
    x = ta.preprocess_input([ta.load_image(e.path) for e in photos.val], run.record.preset)
    truth = np.array([[i in e.label for i in range(4)] for e in photos.val])
    found = keras.saving.load_model(run.folder / "model.keras")(x).numpy()
    logits = ta.AlexNet(run.arrays, classifier_activation=None)(x).numpy()
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-6)
    used = truth.any(axis=0)
    wanted = average_precision_score(truth[:, used], found[:, used], average="macro")
    assert run.record.metrics["val_map"] == pytest.approx(wanted, abs=1e-6)
    with np.errstate(over="ignore"):
        loss = np.log1p(np.exp(-np.where(truth, logits, -logits).astype(np.float64))).mean()
    assert run.record.metrics["val_loss"] == pytest.approx(loss, rel=1e-4)
    with pytest.raises(UsageError, match="class weight with several labels per photo"):
        train_network(
            tmp_path / "labels.csv", tmp_path / "new", **settings, class_weight="balanced"
        )


def test_rare_classes_may_weigh_as_much_as_others(data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "data")
    for number in range(2, 6):
        (tmp_path / "data" / "red" / f"{number}.png").unlink()
    given = []

    def stop(plan, steps):
        raise Stop

    def photos(examples, *arguments, class_weights=None, **settings):
        given.append(class_weights)
        return Photos(examples, *arguments, **settings)

    monkeypatch.setattr(room, "training_model", stop)
    monkeypatch.setattr(room, "Photos", photos)
    with pytest.raises(Stop):
        train_network(tmp_path / "data", tmp_path / "run", **SMALL, class_weight="balanced")
    train, val = given  # one of each class is for validation: 5, 5 and 1 are left
    np.testing.assert_allclose(train, [11 / 15, 11 / 15, 11 / 3], rtol=1e-6)
    assert val is None


def test_labels_may_be_several(data):
    examples = [x._replace(label=(0, 2)) for x in read_photos(data, duplicates=False).train]
    with Photos(examples, PRESETS["compact"], 2, classes=4) as photos:
        _, labels, _ = photos[0]
    assert labels.tolist() == [[1, 0, 1, 0]] * 2


def test_a_photo_that_goes_in_the_midst_is_named(data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "data")
    begin = callbacks.Epochs.on_epoch_begin

    def gone(self, epoch, logs=None):
        for photo in (tmp_path / "data" / "red").iterdir():
            photo.unlink()
        begin(self, epoch, logs)

    monkeypatch.setattr(callbacks.Epochs, "on_epoch_begin", gone)
    settings = {**SMALL, "unfreeze_from": "fc8"}
    with pytest.raises(ImageError, match=r"red/\d.png") as caught:
        train_network(tmp_path / "data", tmp_path / "run", **settings)
    assert "\n" not in str(caught.value)


def test_the_first_pass_finds_the_colours_of_the_training_photos(data):
    photos = read_photos(data)
    paths = [[x.path for x in part] for part in (photos.train, photos.val)]
    for name in ("caffe", "torchvision"):
        failures, covariance = examine_photos(*paths, PRESETS[name], covariance=True)
        size = PRESETS[name].size
        rows = []
        for path in paths[0]:
            x = ta.preprocess_input([ta.load_image(path)], name)[0].reshape(size * size, 3)
            if name == "caffe":
                x = (x + np.float32(PRESETS[name].mean))[:, ::-1] / 255
            else:
                x = x * np.float32(PRESETS[name].std) + np.float32(PRESETS[name].mean)
            rows.append(x.astype(np.float64))
        wanted = np.cov(np.concatenate(rows).T, bias=True)
        np.testing.assert_allclose(covariance, wanted, rtol=1e-4)
        assert failures == []


# What follows starts processes.


def start(data, run, settings):
    """A process with a training."""
    command = [sys.executable, training.__file__, data, str(run), str({**SMALL, **settings})]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)


def on_two_devices(data, folder, settings):
    """The RUN of a training on two devices, in a process of its own."""
    process = start(data, folder, {**settings, "devices": ["/CPU:0", "/CPU:1"]})
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return Run.open(folder)


@pytest.mark.slow
def test_two_devices_come_to_the_same_weights(data, scratch, tmp_path):
    # Batches of 5 are split into 3 and 2. The network has dropout, which must be the same.
    whole, run = scratch[0], on_two_devices(data, tmp_path / "run", SCRATCH)
    for name, value in whole.record.metrics.items():
        assert run.record.metrics[name] == pytest.approx(value, rel=1e-3), name
    fresh = fresh_layers(ARCHITECTURES["compact"].with_classes(3), whole.record.settings["seed"])
    for name, layer in whole.arrays.layers.items():
        # Adam makes much of rounding where gradients are small: observed, 0.05 of what training
        # changed; where the devices share a mask of dropout, 0.7 or more of each kernel's change.
        for one, other, before in zip(run.arrays.layers[name], layer, fresh[name], strict=True):
            change = np.linalg.norm(other - before)
            assert np.linalg.norm(one - other) < 0.2 * change, name


@pytest.mark.slow
def test_a_batch_may_have_fewer_photos_than_there_are_devices(data, tmp_path):
    settings = {**SMALL, "epochs": 1, "batch_size": 1, "unfreeze_from": "fc8", "augment": "none"}
    whole = train_network(data, tmp_path / "one", **settings).run
    metrics = on_two_devices(data, tmp_path / "two", settings).record.metrics
    for name, value in whole.record.metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), name


def killed_and_resumed(data, folder, unbroken, kills, seed, **settings):
    """Kill a training at random moments, then let it end by itself; how often it was killed."""
    moments, count = random.Random(seed), 0
    for _ in range(kills):
        process = start(data, folder, settings)
        any(line.startswith("epoch") for line in process.stdout)  # reads on until then
        try:
            process.wait(moments.uniform(0, 3))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        count += 1
    if process.returncode:
        train_network(data, folder, **{**SMALL, **settings})
    same(Run.open(folder), unbroken)
    return count


def interrupted(command, folder, _):
    """Exit code and standard error of a command that gets Ctrl-C after its first epoch."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tf_alexnet", *command], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not (folder / CHECKPOINT).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    return process.returncode, err


def interrupted_here(command, _, run):
    """The same in this process."""
    write = callbacks.write_checkpoint

    def written(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "write_checkpoint", written)
        code, _, err = run(*command)
    return code, err


@pytest.mark.parametrize("as_process", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ctrl_c_ends_in_130_and_the_command_goes_on(as_process, data, unbroken, tmp_path, run):
    folder = tmp_path / "run"
    command = ["train", data, "-o", str(folder), "--mode", "finetune", "-w", "torchvision-convs"]
    command += ["--epochs", "2", "--batch", "5", "--workers", "1"]
    code, err = (interrupted if as_process else interrupted_here)(command, folder, run)
    assert code == 130, err
    assert not (folder / "run.json").exists()
    assert "Traceback" not in err
    code, out, err = run(*command, "--resume")
    assert code == 0, err
    assert "validation" in out
    same(Run.open(folder), unbroken)
    code, _, err = run(*command, "--resume", "--lr", "0.5")
    assert code == 2
    assert "learning_rate 0.001 -> 0.5" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_kill_9_at_any_moment_costs_no_more_than_an_epoch(data, unbroken, tmp_path):
    killed_and_resumed(data, tmp_path / "run", unbroken, 1, seed=1)
    assert not [x for x in (tmp_path / "run").iterdir() if x.name.startswith(".tf")]


@pytest.mark.kills
@pytest.mark.parametrize(
    ("kills", "settings"),
    [
        (20, {"mode": "scratch", "epochs": 5, "batch_size": 4}),
        (3, {"architecture": "bvlc_alexnet", "epochs": 2, "batch_size": 8}),
    ],
)
def test_killed_again_and_again(kills, settings, data, tmp_path, alexnet_file):
    if "architecture" in settings:
        settings |= {"weights": str(alexnet_file)}
    settings = {**SMALL, **settings}
    whole = train_network(data, tmp_path / "whole", **settings).run
    count, number = 0, 0
    while count < kills:
        run = tmp_path / f"run{number}"
        workers = 1 + number % 3
        count += killed_and_resumed(
            data, run, whole, min(4, kills - count), number, **{**settings, "workers": workers}
        )
        number += 1
        shutil.rmtree(run)
    print(f"killed {count} times in {number} trainings")
