"""A RUN from a stranger: every lie in it is refused in a line, and nothing in it is executed."""

import json
import shutil

import numpy as np
import pytest

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import AlexNetError, UsageError, WeightsError
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.training import Run, RunRecord
from tf_alexnet.training.run import write_run

CLASSES = ("a", "b", "ü \udcff")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    folder.mkdir()
    arrays = synthetic_weights(ARCHITECTURES["compact"].with_head("pool5", len(CLASSES)))
    record = RunRecord(
        classes=CLASSES, architecture="compact", preset="compact", layer="pool5", mode="scratch",
        base={}, settings={"mode": "scratch", "epochs": 1, "lr": 0.1, "l2": None},
        split={"drawn": False, "train": 6, "val": 3, "skipped": 0},
        metrics={"train_accuracy": 1.0, "val_accuracy": 0.5, "train_loss": 0.1, "val_loss": 0.9},
    )  # fmt: skip
    history = [
        {"epoch": 1, "train_loss": 0.1, "train_accuracy": 1.0, "val_loss": 0.9, "val_accuracy": 0.5}
    ]
    model = ta.AlexNet(arrays, architecture="compact")
    return write_run(folder, record, arrays, model, history=history, confusion=np.eye(3, dtype=int))


@pytest.fixture
def folder(made, tmp_path):
    """A copy of what counts, to be spoilt."""
    for name in ("run.json", "weights.safetensors"):
        shutil.copy(made.folder / name, tmp_path / name)
    return tmp_path


def edit(folder, **changes):
    content = json.loads((folder / "run.json").read_text())
    for name, value in changes.items():
        if value is ...:
            del content[name]
        else:
            content[name] = value
    (folder / "run.json").write_text(json.dumps(content))


def refused(folder, error, text):
    with pytest.raises(error) as caught:
        Run.open(folder)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_is_written_is_read(made, folder):
    run = Run.open(folder)
    assert run.record == made.record
    assert run.record.classes == CLASSES
    assert run.arrays.metadata["preset"] == "compact"
    assert run.table.parameter_shapes()["fc8"][0][1] == 3
    assert RunRecord.parsed(made.record.text(), "x") == made.record


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": 2}, "another version"),
        ({"format": ...}, "does not record a training"),
        ({"layer": ...}, "missing or unknown entries: layer"),
        ({"extra": 1}, "missing or unknown entries: extra"),
        ({"classes": ["a", "b"]}, "fc8 has 3 outputs, and run.json names 2 classes"),
        ({"classes": ["a", "a", "b"]}, "classes is not"),
        ({"classes": "abc"}, "classes is not"),
        ({"classes": [["a"], {}, 3]}, "classes is not"),
        ({"architecture": "torchvision"}, "records torchvision, these are compact weights"),
        ({"architecture": "__class__"}, "architecture is not one of"),
        ({"architecture": ["compact"]}, "architecture is not one of"),
        ({"preset": "../../etc/passwd"}, "preset is not"),
        ({"layer": "fc6"}, "does not stand on fc6"),
        ({"mode": "exec"}, "mode is not"),
        ({"base": {"digest": {"a": 1}}}, "base is not"),
        ({"settings": {"a": [1]}}, "settings is not"),
        ({"split": {"drawn": 1}}, "split is not"),
        ({"split": {"drawn": False, "train": -1, "val": 0, "skipped": 0}}, "split is not"),
        ({"metrics": {"val_accuracy": "high"}}, "metrics is not"),
        ({"weights_digest": "sha256:" + "0" * 64}, "not the weights that run.json records"),
        ({"weights_digest": "md5:0"}, "weights_digest is not"),
        ({"versions": [1]}, "versions is not"),
    ],
)
def test_a_record_that_lies_is_refused(changes, text, folder):
    edit(folder, **changes)
    refused(folder, WeightsError, text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "no JSON"),
        (b"[1]", "does not record"),
        (b"{" * 100_000, "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"format": NaN}', "no JSON"),
        (b'{"format": 1e999}', "another version"),
        (b"\xff\xfe", "can't be read"),
        (b'{"format": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"format": 1, "\\u001b[31m\\nx": 1}', "missing or unknown"),
    ],
)
def test_hostile_json_is_refused(content, text, folder):
    (folder / "run.json").write_bytes(content)
    refused(folder, WeightsError, text)


def test_a_metric_beyond_all_numbers_is_refused(folder):
    text = (folder / "run.json").read_text().replace('"val_loss": 0.9', '"val_loss": 1e999')
    (folder / "run.json").write_text(text)
    refused(folder, WeightsError, "metrics is not a table of finite numbers")


def test_files_that_are_missing_or_foreign_are_named(folder, tmp_path_factory):
    weights = folder / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\0\0\0")
    refused(folder, WeightsError, "not the weights that run.json records")
    weights.write_bytes(content[:1000])
    refused(folder, WeightsError, str(weights))
    weights.unlink()
    refused(folder, AlexNetError, str(weights))
    (folder / "run.json").unlink()
    refused(folder, UsageError, "no finished training is there")
    (folder / "run.json").mkdir()
    refused(folder, WeightsError, "can't be read")
    refused(folder / "none", UsageError, "there is no such folder")
    (folder / "file").touch()
    refused(folder / "file", UsageError, "a file, not a folder")
