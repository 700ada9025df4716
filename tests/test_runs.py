"""The RUN: what is written is read back, and what was tampered with is refused in one line."""

import csv
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from reference import relative_error

import tf_alexnet as ta
from tf_alexnet.architectures import COMPACT, Conv
from tf_alexnet.errors import OutputError, PresetError, UsageError, WeightsError
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.training import Run, RunRecord, write_run
from tf_alexnet.training.run import TrainingReport, begin_run, find_run, working_in

CLASSES = ("ant", "bee | *wasp*", "caf\udce9")
SETTINGS = {"mode": "head", "l2": 0.01, "seed": 0, "photos": 9}
HISTORY = [
    {
        "epoch": i,
        "train_loss": 1 / i,
        "train_accuracy": 0.5,
        "val_loss": 1.5 / i,
        "val_accuracy": i / 9,
    }
    for i in range(1, 5)
]


def record(**changes):
    entries = {
        "classes": CLASSES,
        "architecture": "compact",
        "preset": "compact",
        "layer": "pool5",
        "mode": "head",
        "base": {"digest": "sha256:0", "source": "x.npy"},
        "settings": SETTINGS,
        "split": {
            "drawn": True,
            "train": 6,
            "val": 3,
            "skipped": 1,
            "val_photos": ["ant/\udce9.jpg"],
        },
        "metrics": {
            "train_loss": 0.25,
            "train_accuracy": 1.0,
            "val_loss": 0.5,
            "val_accuracy": 0.5,
        },
    }
    return RunRecord(**{**entries, **changes})


@pytest.fixture(scope="module")
def weights():
    return synthetic_weights(COMPACT.with_head("pool5", 3))


@pytest.fixture(scope="module")
def written(tmp_path_factory, weights):
    """A RUN, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "RUN"
    folder.mkdir()
    write_run(
        folder,
        record(),
        weights,
        ta.AlexNet(weights),
        history=HISTORY,
        confusion=np.array([[3, 0, 0], [1, 2, 0], [0, 0, 0]]),
        notes=["a <b>note</b> with | and *stars*"],
        skipped=[Failure("bad\n`x`.jpg", "damaged", "it is <cut off>")],
        explanation="Why it is so.",
    )
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it."""
    return shutil.copytree(written, tmp_path / "RUN")


def refusal(folder, kind=WeightsError):
    with pytest.raises(kind) as caught:
        Run.open(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read_back(written, weights):
    run = Run.open(written)
    assert replace(run.record, weights_digest="", versions={}) == record()
    assert run.record.weights_digest == run.arrays.digest == weights.digest
    assert run.table == COMPACT.with_head("pool5", 3)
    assert run.arrays.metadata["preset"] == "compact"
    assert ta.AlexNet(run.weights).output_shape == (None, 3)
    assert json.loads((written / "class_indices.json").read_text()) == {
        str(i): name for i, name in enumerate(CLASSES)
    }
    with open(written / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == [x["val_loss"] for x in HISTORY]


def test_keras_loads_the_same_network(written):
    import keras

    run = Run.open(written)
    model = keras.saving.load_model(written / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    ours = ta.AlexNet(run.arrays).predict(x, verbose=0)
    assert relative_error(model.predict(x, verbose=0), ours) < 1e-5  # observed 0


def test_the_report_says_it_all_and_nothing_in_it_is_markup(written):
    text = (written / "report.md").read_text()
    for line in (
        "# 3 classes, 50.0% of 3 validation photos right",
        "Why it is so.",
        "| training | 6 | 100.0% | 0.250 |",
        "| ant | 3 | 100.0% | 75.0% |",
        r"| bee \| \*wasp\* | 3 | 66.7% | 100.0% |",
        r"| caf\\udce9 | 0 | - | - |",
        r"- a &lt;b>note&lt;/b> with \| and \*stars\*",
        r"- `bad\n'x'.jpg`: it is &lt;cut off> (damaged)",
        "## 1 photo could not be read and was left out",
        "- l2: `0.01`",
    ):
        assert line in text.splitlines(), line


def test_the_pictures_show_what_they_are_told(written, tmp_path):
    from tf_alexnet.training.report import confusion_figure
    from tf_alexnet.visualize.figures import save_figure

    for name in ("curves.png", "confusion.png"):
        with Image.open(written / name) as picture:
            assert min(picture.size) > 200
    pictures = []
    for matrix in ([[5, 0], [0, 5]], [[0, 5], [5, 0]]):
        save_figure(confusion_figure(["a", "b"], np.array(matrix), "title"), tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as picture:
            pictures.append(np.asarray(picture.convert("L"), int))
    same, swapped = pictures
    upper, lower = (x[: len(x) // 2].mean() for x in (same[:, ::-1], same))
    assert np.abs(same - swapped).max() > 100
    assert upper == pytest.approx(lower)


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 30])
def test_epochs_are_whole_numbers(epochs):
    from tf_alexnet.training.report import curves_figure

    rows = [{"epoch": i, "train_loss": 1 / i, "val_accuracy": 0.5} for i in range(1, epochs + 1)]
    figure = curves_figure(rows, epochs)
    figure.draw_without_rendering()
    low, high = figure.axes[1].get_xlim()
    ticks = [x for x in figure.axes[1].get_xticks() if low <= x <= high]
    assert ticks
    assert all(x == round(x) for x in ticks), ticks


def test_without_matplotlib_the_report_says_so(tmp_path, weights, monkeypatch):
    from tf_alexnet.visualize import figures

    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    write_run(
        tmp_path,
        record(),
        weights,
        ta.AlexNet(weights),
        history=HISTORY,
        confusion=np.eye(3, dtype=int),
    )
    text = (tmp_path / "report.md").read_text()
    assert "matplotlib is not installed" in text
    assert not (tmp_path / "curves.png").exists()
    assert "curves.png" not in text


def test_missing_folders_and_files(folder, tmp_path):
    assert "there is no such folder" in refusal(tmp_path / "nosuch", UsageError)
    assert "a file, not a folder" in refusal(folder / "report.md", UsageError)
    assert Run.open(folder / "run.json").record == Run.open(folder).record
    (folder / "weights.safetensors").rename(folder / "w")
    assert "weights.safetensors: there is no such file" in refusal(folder)
    (folder / "run.json").unlink()
    assert "it holds no finished training (no run.json)" in refusal(folder, UsageError)


def test_what_names_a_run(folder, tmp_path, monkeypatch):
    run = Run.open(folder)
    for source in (run, folder, folder / "weights.safetensors"):
        assert find_run(source).record == run.record
    # Photos are often in a folder that is called as a name of the catalogue.
    monkeypatch.chdir(tmp_path)
    begun = tmp_path / "imagenet"
    begun.mkdir()
    for source in ("imagenet", "nosuch", run.arrays, None):
        assert find_run(source) is None
    (begun / "settings.json").write_text("{}")
    with pytest.raises(WeightsError, match="an unfinished training"):
        ta.read_weights(begun)


def test_a_figure_beyond_all_numbers_is_refused(folder):
    path = folder / "run.json"
    path.write_text(path.read_text().replace('"val_loss": 0.5', '"val_loss": 1e999'))
    with pytest.raises(WeightsError, match="metrics is not a table of finite numbers"):
        Run.open(folder)


def test_files_for_people_may_go(folder):
    for name in ("model.keras", "class_indices.json", "history.csv", "report.md", "curves.png"):
        (folder / name).unlink()
    assert Run.open(folder).record.classes == CLASSES


def test_weights_of_another_training_are_refused(folder, weights):
    other = synthetic_weights(COMPACT.with_head("pool5", 3), seed=1)
    ta.write_weights(other, folder / "weights.safetensors")
    assert "not the weights that run.json describes" in refusal(folder)
    data = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(data[:-100])
    assert "damaged safetensors file" in refusal(folder)


def changed(folder, **changes):
    """`run.json` with other entries; Ellipsis removes one."""
    path = folder / "run.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "it is of another version than this tf_alexnet"),
        ({"format": ...}, "it does not describe a training"),
        ({"mode": ...}, "missing or unknown entries: mode"),
        ({"__class__": "os.system"}, "missing or unknown entries: __class__"),
        ({"classes": ["a", "b"]}, "fc8 has 3 outputs, and run.json names 2 classes"),
        ({"classes": ["a", "b", "b"]}, "classes is not a list of two or more different names"),
        ({"classes": "abc"}, "classes is not a list"),
        ({"classes": [1, 2, 3]}, "classes is not a list"),
        ({"layer": "conv5"}, "layer is not one of pool5, fc6, fc7"),
        ({"layer": "fc7"}, "its classifier is not on fc7"),
        ({"layer": ["pool5"]}, "layer is not one of"),
        ({"architecture": "caffenet"}, "run.json records caffenet, these are compact weights"),
        ({"architecture": "resnet"}, "architecture is not one of"),
        ({"preset": "../../etc"}, "preset is not a known preset"),
        ({"mode": "magic"}, "mode is not one of"),
        ({"metrics": {"val_accuracy": "1"}}, "metrics is not a table of finite numbers"),
        ({"metrics": {"val_accuracy": float("nan")}}, "it is not JSON .NaN in it."),
        ({"metrics": {"val_accuracy": True}}, "metrics is not a table"),
        ({"metrics": {}}, "metrics is not a table"),
        ({"metrics": {"val_accuracy": 1.5}}, "metrics is not a table"),
        ({"metrics": {"train_accuracy": 0.5}}, "with val_accuracy in 0..1"),
        ({"settings": {"l2": [1]}}, "settings is not a flat table"),
        ({"split": {"drawn": 1}}, "split is not a split"),
        ({"split": {"drawn": False, "train": -1, "val": 0, "skipped": 0}}, "split is not a split"),
        ({"versions": [1]}, "versions is not"),
        ({"base": {"digest": {"a": 1}}}, "base is not a table of texts"),
        ({"base": None}, "base is not a table of texts"),
        ({"weights_digest": "sha256:12"}, "weights_digest is not a SHA-256 digest"),
    ],
)
def test_a_strangers_record_is_checked_entry_by_entry(changes, message, folder):
    changed(folder, **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        Run.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "\0", "[" * 100_000, '{"format": 1' + "0" * 5000 + "}", "\udcff"],
)
def test_what_is_no_record_at_all(text, folder):
    (folder / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refusal(folder)


def test_a_record_out_of_all_proportion(folder, monkeypatch):
    monkeypatch.setattr("tf_alexnet.training.run.MAX_BYTES", 100)
    assert "more than" in refusal(folder)


def test_a_run_is_finished_only_when_all_is_written(tmp_path, weights, monkeypatch):
    from tf_alexnet.training import run as room

    def full(path, text):
        if path.name == "report.md":
            raise OutputError(str(path), "no space left", "Free some.")
        room_write(path, text)

    room_write = room.write_text
    monkeypatch.setattr(room, "write_text", full)
    with pytest.raises(OutputError):
        write_run(
            tmp_path,
            record(),
            weights,
            ta.AlexNet(weights),
            history=HISTORY,
            confusion=np.eye(3, dtype=int),
        )
    assert "it holds no finished training" in refusal(tmp_path, UsageError)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_settings_are_compared_with_those_it_was_begun_with(tmp_path):
    run = tmp_path / "RUN"
    with working_in(run) as place:
        assert begin_run(place, SETTINGS) is None
        assert begin_run(place, SETTINGS) is None, "gone on with"
        for changes, named in (
            ({"l2": 0.1}, "l2 0.01 -> 0.1"),
            ({"l2": 0.1, "seed": 4}, "l2 0.01 -> 0.1, seed 0 -> 4"),
            ({"new": "x"}, "new None -> x"),
        ):
            with pytest.raises(UsageError, match=named):
                begin_run(place, {**SETTINGS, **changes})
        assert begin_run(place, {**SETTINGS, "seed": 4}, force=True) is None
        with pytest.raises(UsageError, match="seed 4 -> 0"):
            begin_run(place, SETTINGS)
        (place / "settings.json").write_text("{")
        with pytest.raises(OutputError, match="Start over with --force"):
            begin_run(place, SETTINGS)


def test_a_finished_run_is_what_comes_of_the_same_settings(folder):
    with working_in(folder, resume=True) as place:
        assert begin_run(place, SETTINGS).record.classes == CLASSES
        with pytest.raises(UsageError, match="photos 9 -> 10"):
            begin_run(place, {**SETTINGS, "photos": 10})


def test_one_training_at_a_time_and_nothing_foreign(tmp_path):
    with (
        working_in(tmp_path / "RUN") as place,
        pytest.raises(OutputError, match="another job is writing it"),
        working_in(place),
    ):
        pass
    with pytest.raises(UsageError, match=r"no training was started there\. Leave --resume out"):
        working_in(tmp_path / "RUN", resume=True).__enter__()
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(OutputError, match="it holds other files and no training"):
        working_in(tmp_path).__enter__()
    with pytest.raises(OutputError, match="it is a file"):
        working_in(tmp_path / "thesis.tex").__enter__()
    with working_in(tmp_path / "a" / "b") as place:
        assert place.is_dir()


def test_the_model_and_its_name_are_durable(tmp_path, weights, monkeypatch):
    from tf_alexnet.training import run as room

    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    room._save_model(ta.AlexNet(weights), tmp_path)
    assert os.path.basename(synced[0]) == "model.keras"
    assert synced[1:] == [str(tmp_path)]


def test_leftovers_of_a_killed_training_go(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / ".tf-alexnet-1.part").mkdir()
    (tmp_path / ".tf-alexnet-1.part" / "model.keras").write_text("half")
    (tmp_path / ".tf-alexnet-2.part").write_text("half")
    with working_in(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_cut_network_has_the_convolutions_of_the_whole(written):
    arrays = Run.open(written).arrays
    convolutions = [layer.name for layer in COMPACT.layers if isinstance(layer, Conv)]
    assert list(arrays.layers) == [*convolutions, "fc8"]


def test_a_loaded_run_predicts_and_says_what_it_is(written, tmp_path):
    run = ta.load_run(written)
    about = "3 classes, compact, classifier on pool5, mode head, val_accuracy 0.500>"
    assert repr(run) == f"<Run {written}: {about}"
    assert repr(run.record) == f"<RunRecord {about}"
    assert repr(TrainingReport(run, ("a note",))) == (
        f"<TrainingReport {run!r}, notes 1, skipped 0>"
    )
    assert run.classes == CLASSES
    assert run.model is run.model
    pixels = np.random.default_rng(0).integers(0, 256, (2, 60, 50, 3), np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, x in zip(paths, pixels, strict=True):
        Image.fromarray(x).save(path)
    (tmp_path / "bad.jpg").write_text("no photo")
    expected = run.model.predict(ta.preprocess_input(pixels, "compact"), verbose=0)
    for images in (paths, pixels, str(tmp_path), [Image.fromarray(x) for x in pixels]):
        found = {x.path: x for x in run.predict(images)}
        if isinstance(images, str):
            assert found.pop(str(tmp_path / "bad.jpg")).error
        assert len(found) == 2
        for (_, photo), row in zip(sorted(found.items()), expected, strict=True):
            assert {p.label for p in photo.predictions} == set(CLASSES)
            for p in photo.predictions:
                assert p.probability == pytest.approx(row[p.index], abs=1e-5)
    (best,) = run.predict(paths[0], top=1)[0].predictions
    assert best.index == expected[0].argmax()
    with pytest.raises(PresetError, match="crops='ten' with preset 'compact'"):
        run.predict(pixels, crops="ten")


def test_a_run_is_loaded_by_any_of_its_files(written):
    for name in ("run.json", "weights.safetensors", "model.keras"):
        assert ta.load_run(written / name).record == ta.load_run(written).record
