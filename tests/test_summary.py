"""`tf-alexnet summary`: networks by name, by their weights and by their RUN, at any input size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES, COMPACT
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.training import RunRecord
from tf_alexnet.weights import find_weights
from tf_alexnet.weights.deploy import deploy_prototxt

pytestmark = pytest.mark.usefixtures("empty_folder")


def table(out):
    """Blob -> the cells of its line."""
    return {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}


def summary(run, *arguments):
    code, out, err = run("summary", *arguments)
    assert (code, err) == (0, "")
    return table(out)


def test_by_name(run):
    lines = summary(run)
    assert lines["conv2"] == (
        ["conv2", "Conv", "5", "1", "2", "2", "27x27x256", "307,456", "223,948,800", "51"]
    )  # fmt: skip
    assert lines["total"][1] == "60,965,224"
    assert summary(run, "torchvision")["total"][1] == "61,100,840"
    assert summary(run, "--architecture", "compact") == summary(run, "compact")
    assert summary(run, "imagenet") == lines


def test_names_of_the_catalogue_are_not_downloaded(run):
    assert summary(run, "places365")["fc8"] == [
        "fc8",
        "Dense",
        "365",
        "1,495,405",
        "1,495,040",
        "227",
    ]
    assert list(summary(run, "torchvision-convs"))[-2:] == ["pool5", "total"]


def test_input_size(run):
    """Against Keras's own shapes and counts."""
    lines = summary(run, "caffenet", "--input-size", 451)
    model = ta.AlexNet(None, architecture="caffenet", include_top=False, input_shape=(451, 451, 3))
    for name in ("conv1", "pool1", "norm1", "conv5", "pool5"):
        shape = model.get_layer(name).output.shape[1:]
        assert "x".join(map(str, shape)) in lines[name]
    for name in ("conv1", "conv2", "conv5"):
        assert f"{model.get_layer(name).count_params():,}" in lines[name]
    assert f"{(13 * 13 * 256 + 1) * 4096:,}" in lines["fc6"]


def test_json(run):
    found = json.loads(run("summary", "bvlc_alexnet", "--json")[1])
    architecture = ARCHITECTURES["bvlc_alexnet"]
    assert (found["name"], found["input_size"], found["channels"]) == ("bvlc_alexnet", 227, "BGR")
    assert (found["preset"], found["parameters"]) == ("caffe", 60_965_224)
    assert [x["name"] for x in found["layers"]] == list(architecture.blobs)
    assert sum(x["parameters"] for x in found["layers"]) == found["parameters"]
    assert sum(x["multiply_adds"] for x in found["layers"]) == found["multiply_adds"]
    conv2 = {x["name"]: x for x in found["layers"]}["conv2"]
    assert conv2["kernel_shape"] == [5, 5, 48, 256]
    assert (conv2["output_shape"], conv2["groups"]) == ([27, 27, 256], 2)


def test_weight_files_and_runs(run, tmp_path):
    assert list(summary(run, find_weights("torchvision-convs")))[-2:] == ["pool5", "total"]
    weights = replace(synthetic_weights(COMPACT.with_head("pool5", 3)), metadata={"head": "pool5"})
    folder = tmp_path / "RUN"
    folder.mkdir()
    ta.write_weights(weights, folder / "weights.safetensors")
    digest = ta.read_weights(folder / "weights.safetensors").digest
    split = {"drawn": False, "train": 6, "val": 3, "skipped": 0}
    about = (("a", "b", "c"), "compact", "compact", "pool5", "head", {}, {}, split)
    record = RunRecord(*about, {"val_accuracy": 0.5}, digest)
    (folder / "run.json").write_text(record.text())
    parameters = f"{3 * (36 * 128 + 1):,}"
    for named in ("RUN", "RUN/run.json", "RUN/weights.safetensors"):
        lines = summary(run, named)
        assert lines["fc8"][1:4] == ["Dense", "3", parameters]
        assert "fc6" not in lines
    assert summary(run, "RUN", "--input-size", 230)["conv1"][6] == "56x56x48"
    code, out, err = run("summary", "RUN", "--input-size", 300)
    assert (code, out) == (2, "")
    assert "its dense layers don't fit the size of pool5" in err
    code, out, err = run("summary", "RUN", "--architecture", "compact")
    assert (code, out) == (2, "")
    assert "the RUN records its own, compact" in err


def test_prototxt(run):
    Path("deploy.prototxt").write_text(deploy_prototxt(ARCHITECTURES["caffenet"].with_classes(7)))
    lines = summary(run, "deploy.prototxt")
    assert lines["caffenet:"]
    assert lines["fc8"][2] == "7"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["vgg"],
            "network 'vgg': neither a known name nor a file. Give a weight file, a RUN, or one of",
        ),
        (["caffenet", "--architecture", "compact"], "it names a network already"),
        (["--architecture", "vgg"], "Use one of: bvlc_alexnet, caffenet, torchvision, compact."),
        (["--input-size", "20"], "input of 20x20: it is too small for layer pool2. Use a "),
        (["--input-size", "0"], "tf-alexnet summary: invalid value for '--input-size': "),
        (["--json", "--plot", "net.doc"], "Use .svg, .md, .txt."),
    ],
)
def test_mistakes(run, arguments, message):
    code, out, err = run("summary", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
