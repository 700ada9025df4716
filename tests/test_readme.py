"""The README is true: its commands run, its Python runs, its output is what comes out."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from planted import plant
from weight_seeds import message, varint

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.weights import WeightArrays
from tf_alexnet.weights.deploy import deploy_prototxt as prototxt

README = (ROOT / "README.md").read_text()
SCRIPT = f"{sys.executable} -m tf_alexnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained_arrays):
    """A folder as the README expects it: photos and weights in it, nothing to download."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "weights").mkdir()
    plant(folder / "flowers", train=6, val=2)
    ta.write_weights(trained_arrays, folder / "weights" / "bvlc-alexnet.npy")
    write_own_model(folder, trained_arrays)
    return folder


def write_own_model(folder, arrays):
    """What somebody who has trained in Caffe has: photos, model, prototxt, mean and labels."""
    (folder / "photos").symlink_to(ROOT / "examples" / "photos")
    layers = {k: v for k, v in arrays.layers.items() if k != "fc8"}
    layers["fc8_mine"] = (np.zeros((4096, 5), "f4"), np.arange(5, dtype="f4"))
    ta.write_weights(WeightArrays(layers), folder / "mine.caffemodel")
    text = prototxt(ARCHITECTURES["bvlc_alexnet"].with_classes(5)).replace('"fc8"', '"fc8_mine"')
    (folder / "deploy.prototxt").write_text(text)
    data = 'layer { name: "d" type: "Data" top: "data" transform_param { mean_value: 104 } }\n'
    (folder / "train_val.prototxt").write_text(text.replace("layer {", data + "layer {", 1))
    (folder / "labels.txt").write_text("".join(f"class {x}\n" for x in "abcde"))
    shape = b"".join(varint(i << 3) + varint(n) for i, n in enumerate((1, 3, 256, 256), 1))
    mean = np.full((3, 256, 256), 110, "<f4").tobytes()
    (folder / "mean.binaryproto").write_bytes(shape + message(5, mean))


def run(command, folder, **environment):
    environment = {
        **os.environ,
        "TF_ALEXNET_OFFLINE": "1",
        "TF_ALEXNET_CACHE": str(folder / "cache"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **environment,
    }
    environment.pop("TF_ALEXNET_WEIGHTS", None)
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", README, flags=re.M | re.S)


def commands():
    return [
        line[2:] for block in blocks("console") for line in block.splitlines() if line[:2] == "$ "
    ]


def test_commands(folder):
    assert len(commands()) >= 6
    for command in commands():
        assert shlex.split(command)[0] == "tf-alexnet"
        done = run(command.replace("tf-alexnet", SCRIPT, 1), folder)
        assert done.stdout, command
    with np.load(folder / "features.npz") as file:
        assert file["pool5"].shape == (8, 6, 6, 256)
        assert file["fc6_preact"].dtype == np.float16


def test_python(folder):
    block = "\n".join(blocks("python"))
    (folder / "readme.py").write_text(block)
    run(f"{sys.executable} readme.py", folder)
    assert (folder / "fc7.h5").exists()


def test_output_of_the_demo(tmp_path):
    """What `make demo` is said to print is what it prints without weights and network."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = run(f"{SCRIPT} demo examples/photos", tmp_path)
    (shown,) = [block for block in blocks("text") if "contact sheet" in block]
    lines = [line for line in shown.splitlines() if not line.startswith("note: ")]
    assert "\n".join(lines).strip() == done.stdout.strip()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_examples(script, folder, tmp_path):
    source = (ROOT / "examples" / script).read_text()
    assert source.count("\n") <= 40
    photos = sorted((ROOT / "examples" / "photos").glob("*.jpg"))
    arguments = {
        "fc7_features.py": [ROOT / "examples" / "photos", "weights/bvlc-alexnet.npy"],
        "fine_tune.py": [tmp_path],
        "keras_recipe.py": [tmp_path],
        "sklearn_pipeline.py": [tmp_path],
        "pandas_sklearn.py": [tmp_path, "weights/bvlc-alexnet.npy"],
    }.get(script, photos)
    for i, path in enumerate(photos[:4]):  # two classes of two photos
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / path.name).symlink_to(path)
    done = run(
        shlex.join(map(str, [sys.executable, ROOT / "examples" / script, *arguments])), folder
    )
    expected = {
        "compare_layers.py": "conv5",
        "fc7_features.py": "is most like",
        "fine_tune.py": "validation accuracy",
        "keras_recipe.py": "training conv2, conv3, conv4, conv5, dense, dense_1\n",
        "sklearn_pipeline.py": "f1-score",
        "pandas_sklearn.py": "4 photos, 2 classes: accuracy",
        "top5.py": "  n",
    }[script]
    assert expected in done.stdout
