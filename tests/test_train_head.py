"""A classifier on features, by function and by command, on photos with a planted signal."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from planted import CLASSES, photo, plant

import tf_alexnet as ta
from tf_alexnet.errors import ImageError, UsageError, WeightsError
from tf_alexnet.training import Run, head, train_head
from tf_alexnet.weights import WeightArrays

pytestmark = pytest.mark.usefixtures("simple")
SETTINGS = {"weights": "torchvision-convs"}
COMMAND = [sys.executable, "-m", "tf_alexnet"]
# The same with shards of three photos, so that an extraction can be interrupted between two.
IN_SHARDS = """
from tf_alexnet.cli.main import run
from tf_alexnet.training import head
head._SHARD = 3
run()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("photos") / "data")


@pytest.fixture
def few(tmp_path):
    """A folder of a test's own, with four photos for training and two for validation a class."""
    return plant(tmp_path / "data", train=4, val=2)


@pytest.fixture(scope="module")
def stages():
    return []


@pytest.fixture(scope="module")
def run(data, stages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("head") / "run"
    return train_head(data, folder, **SETTINGS, progress=lambda *x: stages.append(x)).run


def test_the_planted_signal_is_found(run):
    record = run.record
    assert (record.mode, record.layer, record.classes) == ("head", "pool5", CLASSES)
    assert record.metrics["val_accuracy"] >= 0.9
    counts = {"drawn": False, "train": 36, "val": 12, "skipped": 0}
    assert {**record.split, **counts} == record.split
    assert json.loads((run.folder / "class_indices.json").read_text()) == {
        str(i): name for i, name in enumerate(CLASSES)
    }
    for name in ("curves.png", "confusion.png", "model.keras"):
        assert (run.folder / name).stat().st_size > 1000
    rows = (run.folder / "history.csv").read_text().splitlines()
    assert rows[0] == "l2,train_loss,train_accuracy,val_loss,val_accuracy,iterations"
    losses = [float(row.split(",")[3]) for row in rows[1:]]
    assert record.metrics["val_loss"] == min(losses)
    assert float(rows[1 + int(np.argmin(losses))].split(",")[0]) == record.metrics["l2"]


def test_progress_tells_of_photos_and_fits(run, stages):
    photos = [x for x in stages if x[0] == "photos"]
    fits = [x for x in stages if x[0] == "fits"]
    assert photos[-1] == ("photos", 48, 48, {"errors": 0})
    assert [x[1] for x in fits] == list(range(1, len(fits) + 1))
    assert {"l2", "val_accuracy"} <= fits[-1][3].keys()


def test_the_network_of_the_run_has_the_accuracy_that_is_recorded(run, data):
    model = ta.AlexNet(run.arrays)
    right = []
    for label, name in enumerate(CLASSES):
        photos = [ta.load_image(path) for path in sorted((data / "val" / name).iterdir())]
        x = ta.preprocess_input(photos, run.record.preset)
        right += (model.predict(x, verbose=0).argmax(1) == label).tolist()
    assert np.mean(right) == pytest.approx(run.record.metrics["val_accuracy"])


def test_features_are_shared_and_an_end_is_an_end(run, data, tmp_path):
    shutil.copy(run.folder / "features.h5", tmp_path / "features.h5")
    seen = []
    other = train_head(
        data, tmp_path / "run", **SETTINGS, l2=0.5, features=tmp_path / "features.h5",
        progress=lambda *x: seen.append(x),
    ).run  # fmt: skip
    assert other.record.metrics["l2"] == 0.5
    assert len([x for x in seen if x[0] == "fits"]) == 1
    steps = [x[1] for x in seen if x[0] == "photos" and 0 < x[1] < 48]
    assert not steps, "no photo is looked at again"
    again = train_head(data, run.folder, **SETTINGS, resume=True)
    assert again.finished_before
    assert again.run.record == run.record


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"l2": 0.1}, "l2 None -> 0.1"),
        ({"pool": "none"}, "pool avg -> none"),
        ({"weights": None}, "other weights"),
    ],
)
def test_changed_settings_are_refused_by_name(changed, named, run, data):
    settings = {**SETTINGS, **changed}
    if settings["weights"] is None:
        base = run.arrays
        layers = {**base.layers, "conv5": base.layers["conv5"]._replace(bias=np.ones(256, "f4"))}
        layers.pop("fc8")
        settings["weights"] = WeightArrays(layers, "torchvision")
    with pytest.raises(UsageError, match=f"started with other settings: {named}. Use the same"):
        train_head(data, run.folder, **settings, resume=True)


def test_photos_that_can_not_be_read_are_skipped_and_counted(few, tmp_path):
    (few / "train" / "level" / "bad.jpg").write_text("no photo")
    found = train_head(few, tmp_path / "run", **SETTINGS, l2=0.01)
    assert [x.path.rsplit("/", 1)[1] for x in found.skipped] == ["bad.jpg"]
    assert found.run.record.split["skipped"] == 1
    assert "bad.jpg" in (tmp_path / "run" / "report.md").read_text()
    for path in (few / "train" / "rising").iterdir():
        path.write_text("no photo")
    with pytest.raises(ImageError, match="training photos of rising: none of them could be read"):
        train_head(few, tmp_path / "new", **SETTINGS, l2=0.01)
    assert not (tmp_path / "new" / "run.json").exists()


def test_features_of_photos_that_changed_are_not_used_again(few, tmp_path):
    """Names tell nothing: each photo of two classes gets the name of one of the other."""
    settings = {**SETTINGS, "l2": 0.01}
    train_head(few, tmp_path / "run", **settings)
    for part in ("train", "val"):
        one, other = (few / part / name for name in CLASSES[:2])
        one.rename(tmp_path / "x")
        other.rename(one)
        (tmp_path / "x").rename(other)
    with pytest.raises(UsageError, match="other settings: other photos, labels or splits"):
        train_head(few, tmp_path / "run", **settings)
    seen = []
    again = train_head(
        few, tmp_path / "run", **settings, force=True, progress=lambda *x: seen.append(x)
    ).run
    assert {x[2] for x in seen if x[0] == "photos"} == {12}, "of 18 photos in three classes"
    fresh = train_head(few, tmp_path / "fresh", **settings).run
    kernels = [run.arrays.layers["fc8"].kernel for run in (again, fresh)]
    np.testing.assert_allclose(*kernels, atol=1e-4 * np.abs(kernels[1]).max())
    photo = few / "train" / CLASSES[0] / "000.png"
    photo.unlink()
    photo.symlink_to("nowhere")
    lost = train_head(few, tmp_path / "run", **settings, force=True)
    assert [x.path for x in lost.skipped] == [str(photo)], "what it held before is not used"
    assert (lost.run.record.split["train"], lost.run.record.split["skipped"]) == (11, 1)


def test_features_are_found_by_the_place_of_a_photo(few, tmp_path, monkeypatch):
    """Whatever name they were extracted under; photos of other folders are added."""
    monkeypatch.chdir(tmp_path)
    ta.extract_features(few.name, "f.h5", layers=["pool5"], pool="avg", **SETTINGS)
    settings, seen = {**SETTINGS, "l2": 0.5, "features": tmp_path / "f.h5"}, []
    train_head(few, tmp_path / "run", **settings, progress=lambda *x: seen.append(x))
    assert {x[2] for x in seen if x[0] == "photos"} == {0}
    shutil.copytree(few, tmp_path / "copy")
    train_head(tmp_path / "copy", tmp_path / "run2", **settings)


def test_calls_that_can_not_work_are_refused(data, tmp_path):
    for settings, message in (
        ({"l2": 0.0}, "l2 0.0: not an L2 penalty"),
        ({"pool": "max"}, "pool 'max': no such pooling"),
        ({"layer": "conv5"}, "conv5"),
    ):
        with pytest.raises(UsageError, match=message):
            train_head(data, tmp_path / "run", **SETTINGS, **settings)
    assert not (tmp_path / "run").exists()


def test_a_layer_that_the_weights_lack_costs_no_finished_run(run, data):
    with pytest.raises(WeightsError, match=r"no fc6, fc7 for a classifier on fc7.*--layer pool5"):
        train_head(data, run.folder, **SETTINGS, layer="fc7", force=True)
    assert Run.open(run.folder).record == run.record


@pytest.mark.slow
def test_kill_9_costs_nothing_that_the_next_call_does_not_make_good(run, data, tmp_path):
    folder = tmp_path / "run"
    command = [*COMMAND, "train", str(data), "-o", str(folder), "-w", "torchvision-convs"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (folder / "features.h5").exists():  # the features are there, the fit is not
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (folder / "run.json").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "36 training, 12 validation" in done.stdout
    assert Run.open(folder).record.weights_digest == run.record.weights_digest
    assert not [x.name for x in folder.iterdir() if x.name.startswith(".tf-alexnet-")]
    changed = [*command, "--resume", "--l2", "0.1"]
    refused = subprocess.run(changed, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "l2 None -> 0.1" in refused.stderr


def stop_soon(stage, done, *_):
    if stage == "photos" and done >= 12:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (None, None),  # in this process
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_an_extraction_that_was_stopped_is_gone_on_with(number, code, tmp_path, monkeypatch):
    # Photos of wildly different sizes, too.
    data = plant(tmp_path / "data", train=6, val=3, sizes=((96, 80), (9, 700), (900, 11), (1, 1)))
    folder = tmp_path / "run"
    records = folder / "features.h5.job"
    settings = {**SETTINGS, "l2": 0.01}
    if number is None:
        monkeypatch.setattr(head, "_SHARD", 3)
        with pytest.raises(KeyboardInterrupt):
            train_head(data, folder, **settings, progress=stop_soon)
        monkeypatch.undo()
    else:
        command = [sys.executable, "-c", IN_SHARDS, "train", str(data), "-o", str(folder)]
        command += ["-w", "torchvision-convs", "--workers", "1", "--l2", "0.01"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until = time.monotonic() + 60
        while len(list(records.glob("[0-9]*.json"))) < 3:  # the run's own, and two shards
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == code
    assert not (folder / "run.json").exists()
    kept = len(list(records.glob("[0-9]*.json"))) - 1
    assert 2 <= kept < 9, "of 27 photos"
    seen = []
    whole = train_head(data, folder, **settings, resume=True, progress=lambda *x: seen.append(x))
    todo = {x[2] for x in seen if x[0] == "photos"}
    assert todo == {27 - 3 * kept}
    unbroken = train_head(data, tmp_path / "unbroken", **settings)
    kernels = [x.run.arrays.layers["fc8"].kernel for x in (whole, unbroken)]
    # Other batches, other sums: features differ in the last digits.
    assert np.abs(kernels[0] - kernels[1]).max() < 1e-3 * np.abs(kernels[1]).max()
    assert whole.run.record.metrics["val_accuracy"] == unbroken.run.record.metrics["val_accuracy"]


def test_classes_can_be_balanced(data, run, tmp_path):
    """Photos of one class are rare; `test_linear` compares weights with scikit-learn's."""
    rare = shutil.copytree(data, tmp_path / "data")
    for path in sorted((rare / "train" / "level").iterdir())[2:]:
        path.unlink()
    settings = {**SETTINGS, "l2": 0.3, "features": tmp_path / "f.h5"}
    plain = train_head(rare, tmp_path / "plain", **settings).run
    even = train_head(rare, tmp_path / "even", **settings, class_weight="balanced").run
    assert even.record.settings["class_weight"] == "balanced"
    assert "classes weighted by inverse frequency" in (even.folder / "report.md").read_text()
    recalls = []
    for found in (plain, even):
        photos = sorted((data / "val" / "level").iterdir())
        named = [x.predictions[0].label for x in found.predict(photos)]
        recalls.append(named.count("level"))
    assert recalls[1] > recalls[0]
    with pytest.raises(UsageError, match="class_weight None -> balanced"):
        train_head(rare, plain.folder, **settings, class_weight="balanced")


def test_a_classifier_that_learned_nothing_says_so(data, tmp_path):
    """Each class of the validation photos has the name of another."""
    mixed = shutil.copytree(data, tmp_path / "data")
    for old, new in zip((*CLASSES, "x"), ("x", *CLASSES), strict=True):
        (mixed / "val" / old).rename(mixed / "val" / new)
    notes = []
    found = train_head(mixed, tmp_path / "RUN", **SETTINGS, note=notes.append)
    assert "no better than always predicting the largest class (33.3%)" in " ".join(notes)
    assert "at the edge of the usual range" in " ".join(notes)
    assert set(notes) == set(found.notes)
    assert "largest class" in (found.run.folder / "report.md").read_text()


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A table of photos with labels for their stripes, some also "warm" or "pale", and a run."""
    folder = tmp_path_factory.mktemp("several")
    lines = []
    for kind, name in enumerate(CLASSES):
        for number in range(16):
            picture = photo(kind, number)
            red, _, blue = np.asarray(picture).mean(axis=(0, 1))
            picture.save(folder / f"{name}{number}.png")
            marks = [name] + ["warm"] * int(red > blue + 10) + ["pale"] * int(red + blue > 260)
            lines.append(f"{name}{number}.png,{'|'.join(marks)}")
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    run = train_head(folder / "labels.csv", folder / "RUN", **SETTINGS, multi_label=True).run
    return run, sorted(folder.glob("*.png"))


def test_several_labels_have_a_sigmoid_each(several):
    import keras

    run, photos = several
    record = json.loads((run.folder / "run.json").read_text())
    assert record["multi_label"] is True
    assert run.classes == ("level", "pale", "rising", "upright", "warm")
    assert run.record.metrics["val_map"] > 0.6
    history = (run.folder / "history.csv").read_text().splitlines()
    assert history[0] == "l2,train_loss,train_map,val_loss,val_map,iterations"
    text = (run.folder / "report.md").read_text()
    assert "one sigmoid per class" in text
    assert "mean average precision" in text
    found = run.predict(photos[:5])
    ours = np.array([[q.probability for q in sorted(p.predictions, key=lambda z: z.index)]
                     for p in found])  # fmt: skip
    assert np.abs(ours.sum(axis=1) - 1).max() > 0.1, "they are independent"
    x = ta.preprocess_input([ta.load_image(path) for path in photos[:5]], run.record.preset)
    saved = keras.saving.load_model(run.folder / "model.keras")
    for model in (run.model, saved):
        assert np.abs(model.predict(x, verbose=0) - ours).max() < 1e-4
    # The weight file alone: a softmax would be plausible, and wrong.
    alone = ta.read_weights(run.folder / "weights.safetensors")
    for use in (
        ta.AlexNet,
        lambda weights: ta.FeatureExtractor(weights, ["fc8", "prob"]),
        lambda weights: ta.write_weights(weights, run.folder / "x.onnx"),
    ):
        with pytest.raises(UsageError, match=r"a softmax on .*: these weights are multi-label"):
            use(alone)
    independent = ta.AlexNet(alone, classifier_activation="sigmoid")
    assert np.abs(independent.predict(x, verbose=0) - ours).max() < 1e-4


def test_predict_shows_several_labels(several, capfd, monkeypatch):
    from tf_alexnet.cli.main import main

    run, photos = several
    arguments = ["predict", str(photos[0]), "--model", str(run.folder), "--json"]
    monkeypatch.setattr(sys, "argv", ["tf-alexnet", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    (shown,) = json.loads(capfd.readouterr().out)
    expected = {p.label: p.probability for p in run.predict(photos[0])[0].predictions}
    for prediction in shown["predictions"]:
        assert prediction["probability"] == pytest.approx(expected[prediction["label"]], abs=1e-4)
