"""Training the network itself: what changes, what stays, and where it goes on after a stop."""

import random
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
import training

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES, BVLC_ALEXNET
from tf_alexnet.errors import ImageError, OutputError, UsageError, WeightsError
from tf_alexnet.images.presets import PRESETS
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.training import Run, read_photos
from tf_alexnet.training import finetune as room
from tf_alexnet.training.batches import BatchReader, examine_photos
from tf_alexnet.training.checkpoint import CHECKPOINT
from tf_alexnet.training.finetune import train_network
from tf_alexnet.training.network import Network, dropped
from tf_alexnet.weights import WeightArrays, find_weights

SMALL = {"epochs": 2, "batch_size": 5, "weights": "torchvision-convs", "augment": "light"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training.class_folders(tmp_path_factory.mktemp("photos") / "data")


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """A finished training with `SMALL`."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    return train_network(data, run, **SMALL).run


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
    rows = (unbroken.folder / "history.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,train_loss,train_accuracy,val_loss,val_accuracy,")
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
    assert not (unbroken.folder / CHECKPOINT).exists()
    report = (unbroken.folder / "report.md").read_text()
    # conv5: 3 * 3 * 256 * 256 + 256; fc8: 9216 * 3 + 3
    assert "conv5, fc8 are trained, 617,731 parameters; conv1 to conv4 stay as they are" in report
    assert "waiting for photos" in report


def test_the_network_learns(data, tmp_path):
    run = train_network(data, tmp_path / "run", **{**SMALL, "epochs": 3}).run
    assert run.record.metrics["train_accuracy"] > 0.8
    assert run.record.metrics["val_accuracy"] > 0.6


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


@pytest.mark.parametrize("stopped", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_that_was_stopped_ends_as_an_unbroken_one(
    stopped, data, unbroken, tmp_path, monkeypatch
):
    def stop(*arguments):
        write(*arguments)
        if arguments[-1].epoch == stopped:
            raise Stop

    write = room.write_checkpoint
    monkeypatch.setattr(room, "write_checkpoint", stop)
    with pytest.raises(Stop):
        train_network(data, tmp_path / "run", **SMALL)
    assert not (tmp_path / "run" / "run.json").exists()
    monkeypatch.undo()
    same(train_network(data, tmp_path / "run", **SMALL, resume=True).run, unbroken)
    again = train_network(data, tmp_path / "run", **SMALL, resume=True)
    assert again.finished_before


def test_adam_goes_on_too(data, tmp_path, monkeypatch):
    settings = {"mode": "scratch", "epochs": 2, "batch_size": 6}
    whole = train_network(data, tmp_path / "whole", **settings).run
    write = room.write_checkpoint

    def stop(*arguments):
        write(*arguments)
        raise Stop

    monkeypatch.setattr(room, "write_checkpoint", stop)
    with pytest.raises(Stop):
        train_network(data, tmp_path / "run", **settings)
    monkeypatch.undo()
    same(train_network(data, tmp_path / "run", **settings, resume=True).run, whole)
    assert whole.record.settings["optimizer"] == "Adam"
    assert whole.record.architecture == "compact"


def tape(function, variables):
    with tf.GradientTape() as watch:
        loss = function()
    return watch.gradient(loss, variables)


@pytest.mark.parametrize(
    "name",
    [
        "bvlc_alexnet",
        "compact",
        pytest.param("caffenet", marks=pytest.mark.slow),
        pytest.param("torchvision", marks=pytest.mark.slow),
    ],
)
def test_sums_and_gradients_are_the_keras_models(name):
    table = ARCHITECTURES[name].with_classes(7)
    model = ta.AlexNet(synthetic_weights(table), classifier_activation=None)
    layers = {layer.name: model.get_layer(layer.name) for layer in table.weighted}
    variables = {x: (layer.kernel.value, layer.bias.value) for x, layer in layers.items()}
    network = Network(table, variables, "conv1")
    x = np.random.default_rng(0).normal(0, 1, (2, table.input_size, table.input_size, 3))
    x = tf.constant(x.astype(np.float32))
    wanted = model(x, training=False)
    np.testing.assert_allclose(network.logits(x), wanted, atol=1e-5 * np.abs(wanted).max())
    several = [v for pair in variables.values() for v in pair]
    factors = np.random.default_rng(1).normal(size=wanted.shape).astype(np.float32)
    ours = tf.function(lambda: tape(lambda: tf.reduce_sum(network.logits(x) * factors), several))()
    theirs = tape(lambda: tf.reduce_sum(model(x, training=False) * factors), several)
    for one, other in zip(ours, theirs, strict=True):
        bound = 1e-4 * np.abs(other).max()  # 6e-6 was seen
        np.testing.assert_allclose(one, other, atol=bound)


def test_dropout_is_a_function_of_its_seed_and_of_the_place_in_the_batch():
    x = tf.constant(np.random.default_rng(0).uniform(1, 2, (8, 5000)).astype(np.float32))
    one, other, third = (dropped(x, 0.4, tf.constant(s), 0) for s in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, third)
    kept = one.numpy() > 0
    assert kept.mean() == pytest.approx(0.6, abs=0.01)
    np.testing.assert_allclose(one.numpy()[kept], (x / 0.6).numpy()[kept], rtol=1e-6)
    second_half = dropped(x[4:], 0.4, tf.constant([1, 2]), 4)
    np.testing.assert_array_equal(second_half, one[4:])


def test_half_precision_is_near_and_keeps_float32_variables(data, tmp_path, unbroken):
    run = train_network(data, tmp_path / "run", **SMALL, mixed_precision=True).run
    assert run.record.metrics["train_loss"] == pytest.approx(
        unbroken.record.metrics["train_loss"], rel=0.1
    )
    kernel = run.arrays.layers["conv5"].kernel
    assert not np.array_equal(kernel, tf.cast(tf.cast(kernel, tf.bfloat16), tf.float32))


def test_response_normalisation_has_a_half_precision_step_too():
    table = BVLC_ALEXNET.until("conv2")
    arrays = synthetic_weights(BVLC_ALEXNET)
    pairs = {x.name: tuple(map(tf.Variable, arrays.layers[x.name])) for x in table.weighted}
    x = tf.random.stateless_normal((2, 227, 227, 3), [0, 0])
    plain, half = (Network(table, pairs, "conv1", t).logits(x) for t in (tf.float32, tf.bfloat16))
    np.testing.assert_allclose(half, plain, atol=0.03 * np.abs(plain).max())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed 0 -> 1, data .*"),
        ({"learning_rate": 0.5}, "learning_rate 0.001 -> 0.5"),
        ({"unfreeze_from": "fc8"}, "unfreeze_from conv5 -> fc8"),
        ({"augment": "paper", "batch_size": 4}, "batch_size 5 -> 4, augment light -> paper"),
    ],
)
def test_changed_settings_are_refused_by_name(changed, named, data, unbroken):
    with pytest.raises(UsageError, match=f"begun with other settings: {named}. Use the same"):
        train_network(data, unbroken.folder, **{**SMALL, **changed}, resume=True)


def test_other_weights_and_other_photos_are_refused(data, unbroken, tmp_path):
    base = ta.read_weights(find_weights("torchvision-convs"))
    layers = {**base.layers, "conv5": base.layers["conv5"]._replace(bias=np.zeros(256, "f4"))}
    other = WeightArrays(layers, base.architecture)
    with pytest.raises(UsageError, match="begun with other settings: weights sha256:"):
        train_network(data, unbroken.folder, **{**SMALL, "weights": other})
    shutil.copytree(data, tmp_path / "data")
    next((tmp_path / "data" / "red").iterdir()).unlink()
    with pytest.raises(UsageError, match="begun with other settings: photos 18 -> 17, data sha256"):
        train_network(tmp_path / "data", unbroken.folder, **SMALL)


def test_a_loss_that_is_no_number_stops_in_one_line(data, tmp_path):
    with pytest.raises(UsageError, match=r"the loss is (nan|inf): .*lower learning rate") as caught:
        train_network(data, tmp_path / "run", **{**SMALL, "learning_rate": 1e20})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_patience_ends_a_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_merit", lambda row: -row["epoch"])
    run = train_network(data, tmp_path / "run", **{**SMALL, "epochs": 9}, patience=2).run
    assert run.record.metrics["epochs"] == 3
    assert run.record.metrics["epoch"] == 1


def test_photos_that_can_not_be_read_are_skipped_and_counted(data, tmp_path, unbroken):
    shutil.copytree(data, tmp_path / "data")
    for name in ("blue/x.jpg", "red/y.png"):
        (tmp_path / "data" / name).write_text("no photo")
    report = train_network(tmp_path / "data", tmp_path / "run", **{**SMALL, "epochs": 1})
    assert {(x.path.rsplit("/", 1)[1], x.code) for x in report.skipped} == {
        ("x.jpg", "not_an_image"),
        ("y.png", "not_an_image"),
    }
    assert report.run.record.split["skipped"] == 2
    assert "x.jpg" in (tmp_path / "run" / "report.md").read_text()
    for photo in (tmp_path / "data" / "green").iterdir():
        photo.write_text("no photo")
    with pytest.raises(ImageError, match=r"photos of green: none can be read; .*not"):
        train_network(tmp_path / "data", tmp_path / "new", **SMALL)


def test_calls_that_can_not_work_are_refused(data, tmp_path):
    def attempt(**settings):
        train_network(data, tmp_path / "run", **{**SMALL, **settings})

    with pytest.raises(UsageError, match="mode 'heads'"):
        attempt(mode="heads")
    with pytest.raises(UsageError, match=r"unfreeze from 'pool5': .*Use one of conv1, .*fc8"):
        attempt(unfreeze_from="pool5")
    with pytest.raises(UsageError, match="learning rate 0"):
        attempt(learning_rate=0.0)
    with pytest.raises(UsageError, match="epochs 0: nothing would be done"):
        attempt(epochs=0)
    with pytest.raises(UsageError, match="makes 227x227 pixels, the network takes 224"):
        attempt(preset="caffe")
    with pytest.raises(WeightsError, match="fc6 is missing"):
        attempt(layer="fc7")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="no training was begun there"):
        train_network(data, tmp_path / "none", **SMALL, resume=True)


@pytest.fixture(scope="module")
def stopped_run(data, tmp_path_factory):
    """A training that ended after its first epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    write = room.write_checkpoint

    def stop(*arguments):
        write(*arguments)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "write_checkpoint", stop)
        with pytest.raises(Stop):
            train_network(data, folder, **SMALL)
    return folder


@pytest.mark.parametrize("fault", ["cut", "flipped", "nan", "foreign"])
def test_a_damaged_checkpoint_is_refused_in_a_line(fault, data, stopped_run, tmp_path):
    shutil.copytree(stopped_run, tmp_path / "run")
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
    with pytest.raises(OutputError, match=r"checkpoint.safetensors: .* Begin anew with --force"):
        train_network(data, tmp_path / "run", **SMALL, resume=True)


def test_batches_read_ahead_are_those_of_the_preset(data):
    photos = read_photos(data)
    preset = PRESETS["torchvision"]
    with BatchReader(preset, "light", 4, seed=0) as reader:
        found = list(reader.validation(photos.val))
        one, other = (list(reader.training(photos.train, epoch)) for epoch in (1, 2))
        same = list(reader.training(photos.train, 1))
    wanted = ta.preprocess_input([ta.load_image(x.path) for x in photos.val], "torchvision")
    np.testing.assert_array_equal(np.concatenate([x.pixels for x in found]), wanted)
    assert np.concatenate([x.labels for x in found]).tolist() == [x.label for x in photos.val]
    assert sum(len(x.labels) for x in one) == len(photos.train)
    assert sorted(np.concatenate([x.labels for x in one])) == sorted(x.label for x in photos.train)
    assert [x.labels.tolist() for x in one] == [x.labels.tolist() for x in same]
    assert [x.labels.tolist() for x in one] != [x.labels.tolist() for x in other]
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


def test_the_first_pass_finds_the_colours_of_the_training_photos(data):
    photos = read_photos(data)
    paths = [[x.path for x in part] for part in (photos.train, photos.val)]
    for name in ("caffe", "torchvision"):
        found = examine_photos(*paths, PRESETS[name], covariance=True)
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
        np.testing.assert_allclose(found.covariance, wanted, rtol=1e-4)
        assert found.failures == ()


# What follows starts processes.


def start(data, run, **settings):
    pairs = [f"{key}={value!r}" for key, value in {**SMALL, **settings}.items()]
    command = [sys.executable, training.__file__, data, str(run), *pairs]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)


def wait_for_epochs(process, count):
    """Until so many epochs have been kept; False if it ended before."""
    return any(line.startswith(f"epoch {count + 1}/") for line in process.stdout)


def test_two_devices_come_to_the_same_weights(data, unbroken, tmp_path):
    # A batch of 5 is parted into 3 and 2; dropout is the same.
    process = start(data, tmp_path / "two", two_devices=True)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    run = Run.open(tmp_path / "two")
    for name, value in unbroken.record.metrics.items():
        assert run.record.metrics[name] == pytest.approx(value, rel=1e-3), name
    for one, other in zip(run.arrays.layers["fc8"], unbroken.arrays.layers["fc8"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def killed_and_resumed(data, folder, unbroken, kills, seed):
    """Kill a training at random moments until it ends by itself."""
    moments = random.Random(seed)
    count = 0
    while True:
        process = start(data, folder, **{})
        if count < kills:
            try:
                process.wait(moments.uniform(3, 12))
            except subprocess.TimeoutExpired:
                process.kill()
                count += 1
                process.communicate()
                continue
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        same(Run.open(folder), unbroken)
        return


def test_ctrl_c_ends_in_130_and_the_command_goes_on(data, unbroken, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tf_alexnet", "train", data, "-o", str(run)]
    command += ["--mode", "finetune", "-w", "torchvision-convs", "--epochs", "2", "--batch", "5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (run / CHECKPOINT).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert "validation" in done.stdout
    same(Run.open(run), unbroken)
    changed = subprocess.run([*command, "--resume", "--lr", "0.5"], capture_output=True, text=True)
    assert changed.returncode == 2
    assert "learning_rate 0.001 -> 0.5" in changed.stderr
    assert len(changed.stderr.splitlines()) == 1


def test_kill_9_at_any_moment_costs_no_more_than_an_epoch(data, unbroken, tmp_path):
    killed_and_resumed(data, tmp_path / "run", unbroken, 1, seed=1)
    assert not [x for x in (tmp_path / "run").iterdir() if x.name.startswith(".tf")]


@pytest.mark.slow
def test_kill_9_at_ten_random_moments(data, unbroken, tmp_path):
    for number in range(5):
        killed_and_resumed(data, tmp_path / f"run{number}", unbroken, 2, seed=100 + number)
