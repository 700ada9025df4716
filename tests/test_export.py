"""Every export does in a fresh process of its own runtime what the library does, or is not made."""

import base64
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import reference
from conftest import EXAMPLE_PHOTOS

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES, LRN
from tf_alexnet.errors import OutputError, UsageError
from tf_alexnet.export import TARGETS, export_model, litert, targets, verification
from tf_alexnet.export.source import open_source
from tf_alexnet.images import read_mean_image
from tf_alexnet.labels import read_labels
from tf_alexnet.testing import synthetic_weights

CLASSES = ["ant", "bee", "cat | dog", "dove", "eel"]
# Groups, response normalisation and a classifier on pool5: 9.5 MB.
TABLE = ARCHITECTURES["bvlc_alexnet"].with_head("pool5", len(CLASSES))
WITHOUT_TENSORFLOW = ("onnx", "openvino", "caffe", "litert")
PHOTOS = sorted(EXAMPLE_PHOTOS.glob("*.jpg"))[:2]


def runtime_or_skip(target):
    try:
        targets.target_named(target)
    except UsageError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def arrays():
    return synthetic_weights(TABLE)


@pytest.fixture(scope="module")
def expected(arrays):
    """Pool5 and prob by NumPy in float64, of photos preprocessed by the library."""
    x = ta.preprocess_input([ta.load_image(path) for path in PHOTOS], preset="caffe")
    blobs = reference.forward(TABLE, arrays, x.transpose(0, 3, 1, 2))
    return {"x": x, "pool5": blobs["pool5"].transpose(0, 2, 3, 1), "prob": blobs["prob"]}


def run_here(file, job, _):
    """`run_program` in this process, which has imported TensorFlow already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(file), str(job)])
        runpy.run_path(str(file), run_name="__main__")


# Keras models are verified and LiteRT's converted here; `test_full_size` does it in processes.
HERE = {"keras": verification, "litert": litert}


@pytest.fixture(scope="module")
def exports(arrays, tmp_path_factory):
    """Target -> what `export_model` returned, made when it is first asked for."""
    made, folder = {}, tmp_path_factory.mktemp("exports")

    def export(target):
        runtime_or_skip(target)
        if target not in made:
            with pytest.MonkeyPatch.context() as patch:
                if target in HERE:
                    patch.setattr(HERE[target], "run_program", run_here)
                made[target] = export_model(
                    arrays, target, folder / target, photos=PHOTOS, labels=CLASSES
                )
        return made[target]

    return export


@pytest.fixture(scope="module")
def saved_model(exports):
    import tensorflow as tf

    return tf.saved_model.load(str(exports("savedmodel").folder / "1"))


@pytest.mark.parametrize(
    "target",
    [pytest.param(x, marks=pytest.mark.slow) if x in ("keras", "litert") else x for x in TARGETS],
)
def test_what_is_measured(target, exports, arrays):
    found = exports(target)
    checked = found.verification
    assert found.file.exists()
    assert checked.photos == 2
    assert checked.errors["pool5"] <= 1e-5
    assert checked.errors["prob"] <= 1e-4
    assert (checked.top1, checked.top5) == (1, 1)
    assert checked.milliseconds > 0
    if target != "litert" or importable("ai_edge_litert"):
        assert checked.without_tensorflow == (target in WITHOUT_TENSORFLOW)
    assert checked.engine == ("tensorflow" if target == "openvino" else "openvino")
    weights = sum(x.nbytes for layer in arrays.layers.values() for x in layer)
    assert weights < checked.size < 1.2 * weights, "the weights are there once"


def importable(name):
    return importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("target", TARGETS)
def test_the_folder_describes_itself(target, exports, arrays):
    folder = exports(target).folder
    card = (folder / "README.md").read_text()
    assert card.startswith("# bvlc_alexnet: ")
    for text in (arrays.digest, "`caffe`", "227", "2 photos", "104.0069879", "not recorded"):
        assert text in card, text
    assert "Untrained" not in card
    record = json.loads((folder / "export.json").read_text())
    assert record["target"] == target
    assert record["outputs"] == {"pool5": ["N", 6, 6, 256], "prob": ["N", 5]}
    assert record["weights_digest"] == arrays.digest
    assert [x.label for x in read_labels(folder / "labels.txt")] == CLASSES
    names = {x.name for x in folder.iterdir()} - {"README.md", "export.json", "labels.txt"}
    more = {"openvino": {"alexnet.bin"}, "caffe": {"deploy.prototxt", "mean.binaryproto"}}
    assert names == {TARGETS[target].file.split("/")[0]} | more.get(target, set())
    assert not [x for x in folder.parent.iterdir() if x.name.startswith(".")]


# What the code on the card leaves in its variables -> pool5 and prob.
READ_BACK = {
    "litert": "pool5, prob = found['pool5'], found['prob']",
    "keras": "pool5, prob = found['pool5'], found['prob']",
    "caffe": "pool5 = pool5.transpose(0, 2, 3, 1)",
}


@pytest.mark.parametrize(
    "target",
    ["litert", "onnx", "openvino", "caffe", pytest.param("keras", marks=pytest.mark.slow)],
)
def test_the_code_on_the_card_computes_what_numpy_does(target, exports, expected, tmp_path):
    folder = exports(target).folder
    if target == "litert" and not importable("ai_edge_litert"):
        pytest.skip("ai-edge-litert is not installed")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    np.save(tmp_path / "x.npy", expected["x"])
    program = f"""
import sys, numpy as np
x = np.load({str(tmp_path / "x.npy")!r})
{code}
{READ_BACK.get(target, "")}
np.savez({str(tmp_path / "found.npz")!r}, pool5=pool5, prob=prob)
assert ("tensorflow" in sys.modules) == {target not in WITHOUT_TENSORFLOW}
"""
    run_python(program, folder)
    found = np.load(tmp_path / "found.npz")
    for name in ("pool5", "prob"):
        error = reference.relative_error(found[name], expected[name])
        assert error < 1e-5, (name, error)  # observed: at most 4e-6


def run_python(program, folder):
    done = subprocess.run(
        [sys.executable, "-c", program],
        **{"cwd": folder, "capture_output": True, "text": True, "check": False},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_saved_model_answers_as_tensorflow_serving_asks(saved_model, expected):
    """Base64 in JSON, a row for each instance; verification ran it without this package."""
    import tensorflow as tf

    loaded = saved_model
    assert ta.preset_of(loaded) == "caffe"
    assert sorted(loaded.signatures) == ["serving_default", "tensor"]
    contents = [path.read_bytes() for path in PHOTOS]
    contents.insert(1, b"no photo")
    instances = [{"image_bytes": {"b64": base64.b64encode(x).decode()}} for x in contents]
    request = json.loads(json.dumps({"instances": instances}))
    photos = [base64.b64decode(x["image_bytes"]["b64"]) for x in request["instances"]]
    found = loaded.signatures["serving_default"](image_bytes=tf.constant(photos))
    found = {name: x.numpy() for name, x in found.items()}
    assert found["status"].tolist() == [b"ok", b"not_an_image", b"ok"]
    assert reference.relative_error(found["pool5"][[0, 2]], expected["pool5"]) < 1e-5
    assert not found["pool5"][1].any()
    for row, prob in zip((0, 2), expected["prob"], strict=True):
        order = np.argsort(-prob)
        assert [x.decode() for x in found["classes"][row]] == [CLASSES[i] for i in order]
        np.testing.assert_allclose(found["probabilities"][row], prob[order], rtol=1e-4)
    assert found["classes"][1].tolist() == [b""] * 5
    rows = loaded.signatures["tensor"](data=tf.constant(expected["x"]))
    for name in ("pool5", "prob"):
        assert reference.relative_error(rows[name].numpy(), expected[name]) < 1e-5


def test_a_saved_model_has_stock_operations_only(saved_model):
    nodes = []
    for signature in saved_model.signatures.values():
        graph = signature.graph.as_graph_def()
        functions = graph.library.function
        nodes += [*graph.node, *(node for f in functions for node in f.node_def)]
        assert not any("_XlaMustCompile" in f.attr for f in functions)
    ops = {node.op for node in nodes}
    assert {"LRN", "Conv2D", "DecodeJpeg"} <= ops
    assert not [x for x in ops if "Py" in x or "Xla" in x or "OneDnn" in x]
    # oneDNN alone has grouped kernels: here inputs and kernels are split.
    assert "Split" in ops


def test_labels_and_warm_up_lie_where_serving_looks(exports, saved_model):
    import tensorflow as tf
    from tensorflow.core.framework.tensor_pb2 import TensorProto

    from tf_alexnet.wire import Wire, fields

    folder = exports("savedmodel").folder / "1"
    assert [x.label for x in read_labels(folder / "assets" / "labels.txt")] == CLASSES
    (record,) = tf.data.TFRecordDataset(str(folder / "assets.extra/tf_serving_warmup_requests"))
    # PredictionLog.predict_log.request: model_spec (name, signature_name), inputs (key, value)
    spec = fields("text", name=1, signature=3)
    entry = {**fields("text", key=1), **fields("bytes", value=2)}
    request = {1: ("spec", spec), 2: ("inputs", entry)}
    schema = {6: ("log", {1: ("request", request)})}
    log = Wire().read(memoryview(record.numpy()), schema)["log"][0]["request"][0]
    assert log["spec"] == [{"name": ["alexnet"], "signature": ["serving_default"]}]
    (given,) = log["inputs"]
    assert given["key"] == ["image_bytes"]
    photos = tf.make_ndarray(TensorProto.FromString(bytes(given["value"][0])))
    served = saved_model.signatures["serving_default"]
    assert served(image_bytes=tf.constant(photos))["status"].numpy().tolist() == [b"ok"]


def test_a_saved_model_runs_in_a_session(exports):
    """As TensorFlow Serving runs it, without eager execution."""
    import tensorflow as tf

    folder, data = exports("savedmodel").folder, PHOTOS[0].read_bytes()
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        loaded = v1.saved_model.load(session, ["serve"], str(folder / "1"))
        signature = loaded.signature_def["serving_default"]
        outputs = {name: x.name for name, x in signature.outputs.items()}
        feed = {signature.inputs["image_bytes"].name: [data, b"", data]}
        found = session.run(outputs, feed)
    assert found["status"].tolist() == [b"ok", b"empty", b"ok"]
    assert reference.relative_error(found["pool5"][0], found["pool5"][2]) < 1e-5
    assert not found["pool5"][1].any()


def test_a_caffe_mean_is_what_the_preset_subtracts(exports):
    mean = read_mean_image(exports("caffe").folder / "mean.binaryproto")
    assert mean.shape == (1, 3, 256, 256)
    np.testing.assert_allclose(mean[0, :, 7, 9], [104.00698793, 116.66876762, 122.67891434])


def wrong(source, fault):
    """A source with one of the faults that copies of this network have had."""
    if fault == "channels":
        layers = dict(source.arrays.layers)
        kernel, bias = layers["conv1"]
        layers["conv1"] = (kernel[:, :, ::-1], bias)
        return replace(source, arrays=replace(source.arrays, layers=layers))
    steps = tuple(
        replace(x, alpha=x.alpha * x.local_size) if isinstance(x, LRN) else x
        for x in source.table.layers
    )
    if fault == "order":
        names = [x.name for x in steps]
        steps = list(source.table.layers)
        i, j = names.index("norm1"), names.index("pool1")
        steps[i], steps[j] = steps[j], steps[i]
    return replace(source, table=replace(source.table, layers=tuple(steps)))


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        *(("caffe", fault) for fault in ("alpha", "order")),
        ("onnx", "channels"),
        pytest.param("caffe", "channels", marks=pytest.mark.slow),
        pytest.param("openvino", "alpha", marks=pytest.mark.slow),
        pytest.param("savedmodel", "alpha", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_export_is_not_made(target, fault, arrays, monkeypatch, tmp_path):
    runtime_or_skip(target)
    module = TARGETS[target].load()
    write = module.write
    monkeypatch.setattr(module, "write", lambda source, path: write(wrong(source, fault), path))
    with pytest.raises(OutputError, match=r"deviates: pool5 is off by"):
        export_model(arrays, target, tmp_path / "out", photos=PHOTOS)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_graph_with_other_jpeg_pixels_is_not_made(arrays, monkeypatch, tmp_path):
    import tensorflow as tf

    decode = tf.io.decode_jpeg
    monkeypatch.setattr(tf.io, "decode_jpeg", lambda x, n, dct_method: decode(x, n))
    with pytest.raises(OutputError, match=r"served pool5 is off by 0\.0\d+ of its maximum"):
        export_model(arrays, "savedmodel", tmp_path / "out", photos=PHOTOS)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_wrong_labels_are_noticed(arrays, monkeypatch, tmp_path):
    module = TARGETS["savedmodel"].load()
    write = module.write

    def swapped(source, path):
        write(replace(source, labels=source.labels[::-1]), path)

    monkeypatch.setattr(module, "write", swapped)
    with pytest.raises(OutputError, match="names the wrong classes"):
        export_model(arrays, "savedmodel", tmp_path / "out", photos=PHOTOS, labels=CLASSES)


@pytest.fixture(scope="module")
def weights(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "head.safetensors"
    ta.write_weights(replace(arrays, metadata={"head": "pool5"}), path)
    return path


def test_command_and_verify_only(run, weights, tmp_path):
    runtime_or_skip("onnx")
    out = tmp_path / "new" / "out"
    arguments = ("export", weights, "--to", "onnx", "-o", out)
    code, shown, err = run(*arguments)
    assert (code, err.count("error")) == (0, 0), err
    assert shown.startswith(f"{out / 'alexnet.onnx'}: written and verified\n")
    assert "same top 5                8 of 8 photos" in shown
    before = {x: x.stat().st_mtime_ns for x in out.iterdir()}
    again = (*arguments, "--verify-only", "--photos", PHOTOS[0])
    code, shown, _ = run(*again)
    assert code == 0
    assert "verified again" in shown
    assert {x: x.stat().st_mtime_ns for x in out.iterdir()} == before

    code, _, err = run(*arguments)
    assert code == 4
    assert "it already exists. Name a new folder." in err
    code, _, err = run(*(x if x != "onnx" else "keras" for x in arguments), "--verify-only")
    assert code == 2
    assert "it is onnx, float32" in err
    code, _, err = run("export", "torchvision-convs", *arguments[2:], "--verify-only")
    assert code == 2
    assert "it was made from other weights" in err
    # Damage after the fact is found.
    data = bytearray((out / "alexnet.onnx").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40000] = np.full(10000, 3, "<f4").tobytes()
    (out / "alexnet.onnx").write_bytes(data)
    code, _, err = run(*again)
    assert code == 4
    assert "deviates: " in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--to", "onnx", "--variant", "float16"), 2, "Use float32."),
        (("--to", "litert", "--variant", "int8"), 2, "Give --calibrate DIR with int8 only."),
        (("--to", "litert", "--calibrate", "."), 2, "Give --calibrate DIR with int8 only."),
        (("--to", "onnx", "--verify-only"), 2, "that `tf-alexnet export` wrote"),
        (("--to", "onnx", "--photos", "nothing.jpg"), 5, "nothing.jpg"),
        (("--to", "onnx", "--preset", "squash.size224"), 2, "the network takes 227"),
        (("--to", "onnx", "--labels", "three.txt"), 2, "3 names for 5 classes"),
        (("--to", "onnx", "--architecture", "compact"), 3, "compact"),
    ],
)
def test_mistakes_end_in_a_line(arguments, code, message, run, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    found, out, err = run("export", weights, "-o", "out", *arguments)
    assert message in err
    assert found == code
    assert err.count("error: ") == 1
    assert out == ""
    assert sorted(x.name for x in tmp_path.iterdir()) == ["three.txt"]


def test_missing_runtimes_are_named_before_anything_is_done(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda _: None)
    for target, package in (("onnx", r"tf-alexnet\[onnx\]"), ("litert", r"tf-alexnet\[litert\]")):
        with pytest.raises(UsageError, match=f"pip install '{package}'"):
            export_model(weights, target, tmp_path / "out")


def test_opencv_5_is_named(weights, tmp_path, monkeypatch):
    import cv2

    monkeypatch.delattr(cv2.dnn, "readNetFromCaffe", raising=False)
    with pytest.raises(UsageError, match="has no Caffe importer"):
        export_model(weights, "caffe", tmp_path / "out")


def test_a_conversion_without_memory_is_not_begun(weights, tmp_path, monkeypatch):
    from tf_alexnet.export import children

    monkeypatch.setattr(children, "_available", lambda: 2**29)
    with pytest.raises(OutputError, match=r"takes about \d\.\d GiB of memory, and 0\.5 are free"):
        export_model(weights, "litert", tmp_path / "out", photos=PHOTOS)
    assert not list(tmp_path.iterdir())


def test_a_conversion_that_is_killed_leaves_nothing(weights, tmp_path, monkeypatch):
    from tf_alexnet.export import children

    monkeypatch.setattr(children, "_PROGRAM", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(OutputError, match=r"killed by signal 9.*ran out of memory"):
        export_model(weights, "litert", tmp_path / "out", photos=PHOTOS)
    assert not list(tmp_path.iterdir())


def test_sources_end_where_their_weights_do(arrays):
    convolutions = open_source("torchvision-convs")
    assert convolutions.blobs == ("pool5",)
    assert convolutions.licence == "BSD-3-Clause"
    assert convolutions.trained_as == "torchvision"
    control = open_source("random:3", architecture="compact")
    assert control.blobs == ("fc7", "prob")
    assert control.arrays.untrained
    assert control.labels[7].label == "cock"
    headed = open_source(arrays)
    assert headed.blobs == ("pool5", "prob")
    assert [x.label for x in headed.labels] == [f"class {i}" for i in range(5)]


def test_untrained_weights_and_other_presets_are_named(tmp_path):
    runtime_or_skip("caffe")
    out = tmp_path / "out"
    export_model("random:3", "caffe", out, photos=PHOTOS, architecture="compact")
    card = (out / "README.md").read_text()
    assert "**Untrained**" in card
    assert "random:3 (untrained)" in card
    assert "antialiased" in card
    assert not (out / "mean.binaryproto").exists(), "no mean says what this preset does"
    assert (out / "labels.txt").read_text().startswith("n01440764 tench, Tinca tinca\n")


def test_a_run_is_exported_with_its_classes(tmp_path, run):
    runtime_or_skip("onnx")
    from planted import CLASSES as PLANTED
    from planted import plant

    from tf_alexnet.training import train_head

    data = plant(tmp_path / "data", train=2, val=1)
    trained = train_head(data, tmp_path / "RUN", weights="torchvision-convs").run
    arguments = ["export", tmp_path / "RUN", "--to", "onnx", "-o", tmp_path / "out"]
    code, shown, err = run(*arguments, "--photos", data / "val")
    assert code == 0, err
    assert "same top 1                3 of 3 photos" in shown
    assert (tmp_path / "out" / "labels.txt").read_text().split() == list(PLANTED)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "RUN RUN: head, 6 photos, validation accuracy" in card
    shutil.rmtree(tmp_path / "out")
    # 9216 rows could be 12x12 places of conv1's 64 channels: the table tells.
    found = export_model(trained, "caffe", tmp_path / "out", photos=data / "val")
    assert found.verification.errors["prob"] < 1e-5
    shutil.rmtree(tmp_path / "out")
    code, _, err = run(*arguments, "--architecture", "torchvision")
    assert code == 2
    assert "the RUN records its own" in err
    record = tmp_path / "RUN" / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "multi_label": True}))
    arguments[1] = tmp_path / "RUN" / "weights.safetensors"
    code, _, err = run(*arguments)
    assert code == 2
    assert "these weights are multi-label" in err
    with pytest.raises(UsageError, match="these weights are multi-label"):
        export_model(ta.load_run(tmp_path / "RUN"), "onnx", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("variant", targets.VARIANTS[1:])
def test_litert_variants(variant, arrays, tmp_path):
    calibrate = {"calibrate": EXAMPLE_PHOTOS} if variant == "int8" else {}
    found = export_model(
        arrays, "litert", tmp_path / "out", photos=PHOTOS, variant=variant, **calibrate
    )
    size = sum(x.nbytes for layer in arrays.layers.values() for x in layer)
    assert found.verification.size < size * {"float16": 0.55}.get(variant, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_full_size(target, tmp_path):
    runtime_or_skip(target)
    weights = synthetic_weights("bvlc_alexnet")
    found = export_model(weights, target, tmp_path / "out", photos=EXAMPLE_PHOTOS)
    assert found.verification.size < 250e6
    assert found.verification.top5 == 1
    assert os.path.exists(found.file)
