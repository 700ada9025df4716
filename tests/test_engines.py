"""The choice of an engine, what each leaves alone, and a command that needs no TensorFlow."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import reference
from conftest import weights_of
from test_portable import COMMANDS

import tf_alexnet as ta
from tf_alexnet import engines
from tf_alexnet.errors import UsageError
from tf_alexnet.extraction.formats import open_output


@pytest.mark.parametrize(
    ("asked", "machine", "chosen"),
    [
        ({}, {}, "openvino"),
        ({"photos": 10**6}, {}, "openvino"),
        ({"photos": 10**6}, {"features": {"avx2"}}, "tensorflow"),
        ({"photos": 100}, {"features": {"avx2"}}, "openvino"),
        ({}, {"gpu": True}, "tensorflow"),
        ({}, {"installed": False}, "tensorflow"),
        ({"engine": "openvino"}, {"gpu": True}, "openvino"),
        ({"engine": "tensorflow"}, {}, "tensorflow"),
        ({"precision": "bfloat16"}, {"gpu": True}, "openvino"),
        ({"engine": "openvino"}, {"installed": False}, r"pip install 'tf-alexnet\[openvino\]'"),
        ({"precision": "bfloat16"}, {"installed": False}, "OpenVINO is not installed"),
        ({"engine": "tensorflow", "precision": "bfloat16"}, {}, "it computes in float32"),
        ({"engine": "torch"}, {}, "Use one of auto, tensorflow, openvino"),
        ({"precision": "float16"}, {}, "Use one of float32, bfloat16"),
    ],
)
def test_choice_of_an_engine(asked, machine, chosen, monkeypatch):
    found = machine.get("features", {"avx2", "avx512f"})
    monkeypatch.setattr(engines, "processor_features", lambda: frozenset(found))
    monkeypatch.setattr(engines, "_has_gpu", lambda: machine.get("gpu", False))
    installed = machine.get("installed", True)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda _: installed or None)
    if chosen in engines.ENGINES:
        assert engines.choose_engine(**asked) == chosen
    else:
        with pytest.raises(UsageError, match=chosen):
            engines.choose_engine(**asked)


def test_commands_with_openvino_need_no_tensorflow(tmp_path, example_photos):
    code = "import sys; sys.modules['tensorflow'] = None\n" + COMMANDS
    paths, convolutions = list(map(str, example_photos[:3])), ["-w", "torchvision-convs"]
    commands = [
        ["predict", *paths, "-w", "random:3", "--architecture", "compact"],
        ["extract", *paths, *convolutions, "-l", "pool5", "-o", "f.h5"],
        ["demo", *paths, *convolutions],
    ]
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "check": False},
    )
    assert run.returncode == 0, run.stderr
    for shown in ("n0", "3 rows", "pool5: 9216 values"):
        assert shown in run.stdout
    expected = ta.FeatureExtractor("torchvision-convs", "pool5", engine="tensorflow")
    with open_output(tmp_path / "f.h5") as file:
        assert file.paths == paths
        assert file.attributes["engine"].startswith("openvino ")
        rows = np.concatenate([block["pool5"] for block in file.blocks(["pool5"])])
    found = expected.from_images(paths)["pool5"]
    assert reference.relative_error(rows, found) < 1e-5  # observed 1e-6


def test_precision_is_a_setting_and_full_precision_is_kept(example_photos, tmp_path, monkeypatch):
    weights, paths = weights_of("compact"), list(map(str, example_photos[:2]))
    whole = {"weights": weights, "layers": "fc7", "engine": "openvino", "workers": 1}
    ta.extract_features(paths, tmp_path / "f.h5", **whole, precision="bfloat16")
    with pytest.raises(UsageError, match="precision bfloat16 -> float32"):
        ta.extract_features(paths, tmp_path / "f.h5", **whole)
    rows = {}
    for precision in engines.PRECISIONS:
        network = ta.FeatureExtractor(weights, "fc7", engine="openvino", precision=precision)
        rows[precision] = network.from_images(paths)["fc7"]
    assert reference.relative_error(rows["bfloat16"], rows["float32"]) < 0.05  # observed 0.01

    tf = pytest.importorskip("tensorflow")
    switch, calls = tf.config.experimental, []
    monkeypatch.setattr(switch, "enable_tensor_float_32_execution", calls.append)
    ta.FeatureExtractor(weights, "conv1", engine="tensorflow").from_images(paths[0])
    assert calls == [False, True], "TensorFloat-32 is off while the network computes"


@pytest.mark.parametrize("engine", ["openvino", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_the_environment_does_not_lower_precision(engine, tmp_path):
    code = f"""
import logging, os, sys
logging.basicConfig(format="%(message)s")
import numpy as np, tf_alexnet as ta
extractor = ta.FeatureExtractor("torchvision-convs", "pool5", engine={engine!r})
np.save("rows.npy", extractor(np.load("x.npy"))["pool5"])
print(os.environ["ONEDNN_DEFAULT_FPMATH_MODE"])
"""
    x = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ONEDNN_DEFAULT_FPMATH_MODE": "BF16"},
        **{"cwd": tmp_path, "capture_output": True, "text": True, "check": True},
    )
    assert run.stdout.split()[-1] == "STRICT"
    assert "ONEDNN_DEFAULT_FPMATH_MODE=BF16 is ignored" in run.stderr
    expected = ta.FeatureExtractor("torchvision-convs", "pool5", engine=engine)(x)["pool5"]
    assert os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT") == "STRICT"
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected)
