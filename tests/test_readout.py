"""Linear read-outs of several layers: one pass, one table, one plot."""

import csv

import numpy as np
import pytest
from PIL import Image
from planted import plant

import tf_alexnet as ta
from tf_alexnet.errors import LayerError, UsageError, WeightsError
from tf_alexnet.evaluation.readout import LayerResult, linear_readout, readout_figure
from tf_alexnet.training import train_head

SETTINGS = {"weights": "torchvision-convs"}
LAYERS = ("conv1", "pool2", "conv5", "pool5")


pytestmark = pytest.mark.usefixtures("simple")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("photos") / "data", train=8)


@pytest.fixture(scope="module")
def report(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readout") / "RUN"
    stages = []
    found = linear_readout(
        data, folder, LAYERS, **SETTINGS, progress=lambda *x: stages.append(x)
    )  # fmt: skip
    assert {x[2] for x in stages if x[0] == "photos"} == {36}, "one pass for all layers"
    assert {x[0] for x in stages} == {"photos", *(f"fits on {name}" for name in LAYERS)}
    return found


def test_a_table_a_plot_and_a_report(report):
    assert [x.layer for x in report.layers] == list(LAYERS)
    assert [x.features for x in report.layers] == [64, 192, 256, 256]
    with open(report.folder / "readout.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == list(LAYERS)
    for row, result in zip(rows, report.layers, strict=True):
        assert float(row["val_accuracy"]) == result.val
        assert float(row["train_accuracy"]) == result.train
    text = (report.folder / "report.md").read_text()
    assert "# Linear read-out of 4 layers: 3 classes, 24 training and 12 validation photos" in text
    assert "| conv1 | 64 |" in text
    assert "This folder holds no network" in text
    with Image.open(report.folder / "readout.png") as picture:
        assert min(picture.size) > 300


def test_each_layer_is_what_it_is_alone(report, data, tmp_path):
    """pool5 against `train_head`; conv1 against scikit-learn on features of other code."""
    from sklearn.linear_model import LogisticRegression

    results = {x.layer: x for x in report.layers}
    alone = train_head(data, tmp_path / "RUN", layer="pool5", **SETTINGS).run.record.metrics
    assert alone["val_accuracy"] == results["pool5"].val
    assert alone["l2"] == results["pool5"].l2
    photos = ta.training.read_photos(data)
    extractor = ta.FeatureExtractor("torchvision-convs", ("conv1",))
    x, val = (
        extractor.from_images([e.path for e in part])["conv1"].mean(axis=(1, 2))
        for part in (photos.train, photos.val)
    )
    centre = x.mean(axis=0)
    scale = 1 / np.sqrt(((x - centre) ** 2).sum(axis=1).mean())
    peer = LogisticRegression(C=1 / (results["conv1"].l2 * len(x)), max_iter=5000, tol=1e-8)
    peer.fit((x - centre) * scale, [e.label for e in photos.train])
    score = peer.score((val - centre) * scale, [e.label for e in photos.val])
    assert abs(score - results["conv1"].val) <= 1 / 12


def test_an_end_is_an_end_and_changes_are_refused(report, data):
    again = linear_readout(data, report.folder, LAYERS, **SETTINGS)
    assert again.finished_before
    assert again.layers == report.layers
    with pytest.raises(UsageError, match="layer conv1 pool2 conv5 pool5 -> conv1"):
        linear_readout(data, report.folder, "conv1", **SETTINGS)
    with pytest.raises(UsageError, match="mode readout -> head"):
        train_head(data, report.folder, **SETTINGS)


def test_a_readout_is_no_network(report):
    with pytest.raises(UsageError, match=r"a read-out of layers, which has no network.*--layer"):
        ta.load_run(report.folder)


@pytest.mark.parametrize(
    ("layers", "settings", "error", "message"),
    [
        ("conv1,fc7", {}, WeightsError, "no fc6, fc7 for a classifier on fc7"),
        ("conv9", {}, LayerError, "conv9"),
        ("data", {}, LayerError, "data"),
        ("conv1", {"pool": "median"}, UsageError, "pool 'median'"),
    ],
)
def test_what_can_not_work_leaves_no_folder(layers, settings, error, message, data, tmp_path):
    with pytest.raises(error, match=message):
        linear_readout(data, tmp_path / "RUN", layers, **SETTINGS, **settings)
    assert not (tmp_path / "RUN").exists()


def test_the_plot_has_a_point_per_layer_and_percents():
    rows = [LayerResult(f"conv{i}", 64, 0.1, 1.0, i / 5) for i in range(1, 6)]
    figure = readout_figure(rows, share=0.4)
    (axes,) = figure.axes
    training, validation, chance = axes.lines
    np.testing.assert_allclose(validation.get_ydata(), [20, 40, 60, 80, 100])
    np.testing.assert_allclose(training.get_ydata(), 100)
    np.testing.assert_allclose(chance.get_ydata(), 40)
    assert [x.get_text() for x in axes.get_xticklabels()] == [x.layer for x in rows]
    assert axes.get_ylabel() == "accuracy (%)"


def test_the_command_shows_the_table(tmp_path, run):
    data = plant(tmp_path / "data", train=3, val=1)
    command = ["train", data, "-o", tmp_path / "RUN", "-w", "torchvision-convs"]
    code, out, _ = run(*command, "--layer", "conv1,pool5", "--l2", "0.01", "-q")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "conv1", "pool5", "written"]
    assert run(*command, "--layer", "conv1,pool5", "--l2", "0.01", "-q")[1].endswith(
        "(finished before, nothing was done)\n"
    )
    code, _, err = run("predict", data, "--model", tmp_path / "RUN", "-q")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "it holds a read-out of layers, which has no network" in err
    code, _, err = run(*command, "--layer", "conv3", "--features", tmp_path / "f.h5")
    assert (code, "--features" in err) == (2, True)
    code, _, err = run(*command, "--layer", "conv0", "--force")
    assert (code, "conv0" in err) == (2, True)
