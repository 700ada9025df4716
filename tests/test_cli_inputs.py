"""Calls that can't work end before TensorFlow or a download; names, progress, controls."""

import json
import logging
import os
import subprocess
import sys

import h5py
import jobs
import numpy as np
import pytest
import typer
from conftest import EXAMPLE_PHOTOS
from PIL import Image
from training import narrow

import tf_alexnet as ta
from tf_alexnet import progress
from tf_alexnet.architectures import ARCHITECTURES, BVLC_ALEXNET, TORCHVISION, blob_names
from tf_alexnet.errors import LayerError, UsageError
from tf_alexnet.extraction import predict_photos
from tf_alexnet.training import Run, train_head
from tf_alexnet.weights import WeightArrays, check_layers, fresh_layers, fresh_weights, random_seed

# Runs commands where neither TensorFlow nor a download is to be had, and prints what they say.
CHEAP = """
import contextlib, functools, io, json, os, sys, typer.main
sys.modules["tensorflow"] = sys.modules["openvino"] = None
typer.main.get_command = functools.cache(typer.main.get_command)  # as in conftest.py
os.environ.pop("TF_ALEXNET_WEIGHTS", None)
os.environ["TF_ALEXNET_CACHE"] = os.path.abspath("cache")
from tf_alexnet.cli.main import main
import tf_alexnet.weights.download as download
def fetch(name, **_):
    raise RuntimeError("download of " + name)
download.fetch_weights = fetch
told = []
for arguments in json.load(sys.stdin):
    sys.argv = ["tf-alexnet", *arguments]
    text, code = io.StringIO(), 0
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except RuntimeError as error:
            code = str(error)
        except ImportError as error:
            code = "import of " + error.name
    told.append([code, text.getvalue()])
json.dump(told, sys.stdout)
"""
EXTRACT = ("extract", "a.png", "-o", "f.h5")
CALLS = [
    # What works gets as far as the download, or TensorFlow.
    (EXTRACT, "download of imagenet", ""),
    (("extract", "a.png", "-o", "new/dir/f.h5", "-l", "all"), "download of imagenet", ""),
    ((*EXTRACT, "-w", "random", "--layers", "fc7,fc8_mine"), "import of tensorflow", ""),
    ((*EXTRACT, "-w", "places365", "--batch-size", "4"), "download of places365", ""),
    (("predict", "a.png", "--plot", "new/p.png", "-q"), "download of imagenet", ""),
    (("evaluate", "data", "--csv", "new/c.csv", "--keep", "new/k.h5"), "download of imagenet", ""),
    (("train", "data", "--out", "new/RUN"), "download of imagenet", ""),
    (("train", "data", "-o", "RUN", "--mode", "scratch"), "import of tensorflow", ""),
    # What does not
    (("extract", "nothere", "-o", "f.h5"), 5, "nothere: there is no such file or folder"),
    (("extract", "nothere*", "-o", "f.h5"), 5, "nothere*: there is no such file or folder"),
    (("extract", "empty", "-o", "f.h5"), 2, "empty: no image found"),
    (("extract", "a.png", "-o", "f.csv"), 2, "no format has the suffix '.csv'"),
    (("extract", "a.png", "-o", "a.png/new/f.h5"), 4, "a.png is not a folder"),
    (("extract", "a.png", "-o", "empty.h5"), 4, "it is a folder"),
    ((*EXTRACT, "-l", "fc9"), 2, "layer 'fc9': bvlc_alexnet has no such blob. Use one of: data"),
    ((*EXTRACT, "-l", "fc7,pol5"), 2, "layer 'pol5': "),
    ((*EXTRACT, "-l", " , "), 2, "no layer is named"),
    ((*EXTRACT, "-l", "relu7"), 2, "Caffe's relu7 is fc7 here. Use one of: data, conv1, norm1"),
    ((*EXTRACT, "-l", "norm1", "-w", "torchvision"), 2, ", but bvlc_alexnet and caffenet have. "),
    ((*EXTRACT, "-l", "norm1", "--architecture", "compact"), 2, "compact has no such blob, but "),
    ((*EXTRACT, "-l", "fc9", "-w", "own.npz"), 2, "layer 'fc9': compact has no such blob. "),
    ((*EXTRACT, "-l", "own"), 2, "layer 'own': "),
    ((*EXTRACT, "--architecture", "vgg"), 2, "architecture 'vgg': "),
    ((*EXTRACT, "--architecture", "no.prototxt"), 2, "it can't be read"),
    ((*EXTRACT, "--preset", "vgg"), 2, "preset 'vgg': there is no such preset"),
    ((*EXTRACT, "--preset", "caffe-mean-image"), 2, "it needs a mean image"),
    ((*EXTRACT, "--mean", "no.npy"), 2, "no.npy: it can't be read"),
    ((*EXTRACT, "--mean", "1,2"), 2, "1,2"),
    ((*EXTRACT, "--batch", "0"), 2, "--batch 0: "),
    ((*EXTRACT, "--max-errors", "few"), 2, "max_errors 'few': not a limit"),
    ((*EXTRACT, "--cluster-workers", "2"), 2, "they are settings of a cluster, but none is given"),
    (("extract", "a.png", "-o", "f.npy", "-l", "all"), 2, "an .npy holds one array"),
    (("extract", "a.png", "-o", "f/", "--missing", "nan"), 2, "one row per photo"),
    (("extract", "a.png", "-o", "data/"), 4, "files that no extraction wrote"),
    ((*EXTRACT, "-w", "alexnet.npy"), 3, "neither a file nor a name in the catalogue"),
    ((*EXTRACT, "-w", "random:x"), 2, "weights 'random:x': not a seed"),
    (("predict", "nothere"), 5, "nothere: there is no such file or folder"),
    (("predict", "a.png", "--plot", "p.doc"), 2, "unknown file type"),
    (("predict", "a.png", "--labels", "no.txt"), 2, "no.txt: it can't be read"),
    (("predict", "a.png", "--preset", "vgg"), 2, "preset 'vgg'"),
    (("predict", "a.png", "--model", "nothere"), 2, "nothere: there is no such folder"),
    (("predict", "a.png", "-w", "vgg"), 3, "neither a file nor a name"),
    (("evaluate", "nothere"), 5, "nothere: there is no such folder"),
    (("evaluate", "empty"), 2, "no class folder in it"),
    (("evaluate", "data", "--csv", "a.png/c.csv"), 4, "a.png is not a folder"),
    (("evaluate", "data", "--plot", "c.doc"), 2, "unknown file type"),
    (("evaluate", "data", "--keep", "k.npz"), 2, "k.npz: not the name of an .h5"),
    (("evaluate", "data", "--architecture", "vgg"), 2, "architecture 'vgg'"),
    (("evaluate", "--imagenet-val", "data", "--ground-truth", "no"), 5, "the list can't be read"),
    (("train", "nothere", "-o", "RUN"), 5, "nothere: there is no such folder"),
    (("train", "data/a", "-o", "RUN"), 2, "no class folder in it"),
    (("train", "data", "-o", "a.png"), 4, "a.png: it is a file"),
    (("train", "data", "-o", "data"), 4, "it holds other files and no training"),
    (("train", "data", "-o", "RUN", "--resume"), 2, "no training was started there"),
    (("train", "data", "-o", "RUN", "--val-split", "2"), 2, "val_split 2.0"),
    (("train", "data", "-o", "RUN", "--features", "f.csv"), 2, "no format has the suffix"),
    (("train", "data", "-o", "RUN", "--preset", "vgg"), 2, "preset 'vgg'"),
    (("train", "data", "-o", "RUN", "--architecture", "vgg"), 2, "architecture 'vgg'"),
    (
        ("train", "data", "-o", "RUN", "--mode", "finetune", "--unfreeze-from", "features.8"),
        2,
        "torch's features.8 is conv4_preact here",
    ),
    (
        ("train", "data", "-o", "RUN", "--epochs", "5"),
        2,
        "--epochs with --mode head: that mode has no such option. "
        "Leave it out, or choose --mode finetune or scratch.",
    ),
    (("train", "data", "-o", "RUN", "--mode", "scratch", "-w", "x"), 2, "--mode head or finetune."),
    (
        ("train", "data", "-o", "RUN", "--mode", "scratch", "--unfreeze-from", "conv5"),
        2,
        "choose --mode finetune.",
    ),
    (("demo", "nothere"), 5, "nothere: there is no such file or folder"),
    (("demo", "a.png", "-w", "vgg"), 3, "neither a file nor a name"),
    (("demo", "a.png", "-o", "sheet.doc"), 2, "unknown file type"),
]


# Options of `train` -> the modes that have them, as the help says.
HEAD, FINETUNE, SCRATCH = modes = ("head", "finetune", "scratch")
TRAINING = {
    **dict.fromkeys(("--weights x", "--layer fc6"), (HEAD, FINETUNE)),
    **dict.fromkeys(("--pool avg", "--l2 1", "--features f.h5"), (HEAD,)),
    "--unfreeze-from fc6": (FINETUNE,),
    **dict.fromkeys(
        (
            *("--epochs 1", "--batch 1", "--lr 1", "--augment none", "--patience 1"),
            *("--tensorboard x", "--mixed-precision"),
            *("--schedule step", "--gamma 0.1", "--step-size 1"),
        ),
        (FINETUNE, SCRATCH),
    ),
    **dict.fromkeys(
        (
            *("--architecture compact", "--preset caffe", "--val-split 0.1", "--seed 1"),
            *(
                "--workers 1",
                "--multi-label",
                "--class-weight balanced",
                "--resume",
                "--force",
                "--quiet",
                "--output x",
            ),
        ),
        modes,
    ),
}


def test_every_option_of_train_is_known_for_its_modes():
    from tf_alexnet.cli.main import app

    (command,) = (x for n, x in typer.main.get_command(app).commands.items() if n == "train")
    names = {name for x in command.params for name in x.opts if x.param_type_name == "option"}
    spelt = {"--help", "--out", "-o", "-w", "-l", "--layers", "-q", "--batch-size"}
    assert names - spelt == {"--mode", *(option.split()[0] for option in TRAINING)}


@pytest.mark.parametrize("option", [x for x, known in TRAINING.items() if known != modes])
def test_an_option_that_a_mode_lacks_is_answered_with_those_that_have_it(option, run, folder):
    for mode in set(modes) - set(TRAINING[option]):
        code, out, lines = run("train", "data", "-o", "RUN", "--mode", mode, *option.split())
        assert (code, out) == (2, "")
        (line,) = lines
        name, known = option.split()[0], " or ".join(TRAINING[option])
        assert line == (
            f"error: {name} with --mode {mode}: that mode has no such option. "
            f"Leave it out, or choose --mode {known}."
        )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a photo, an empty folder and two classes."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a.png", *(f"data/{x}/{i}.png" for x in "ab" for i in range(4)))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.h5").mkdir()
    return tmp_path


@pytest.fixture
def run(run):
    """`run` of all tests, with stderr as lines, without the note of the engine."""

    def lines(*arguments):
        code, out, err = run(*arguments)
        return code, out, [x for x in err.splitlines() if not x.startswith("note: engine ")]

    return lines


def test_calls_that_can_not_work_end_before_tensorflow_and_downloads(folder):
    ta.write_weights(fresh_weights(ARCHITECTURES["compact"].with_head("pool5", 2), 0), "own.npz")
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", CHEAP],
        input=json.dumps([arguments for arguments, _, _ in CALLS]),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for (arguments, code, message), found in zip(CALLS, json.loads(done.stdout), strict=True):
        assert (found[0] or 0) == code, (arguments, found)
        assert message in found[1], (arguments, found)
        lines = [x for x in found[1].splitlines() if not x.startswith("note: engine ")]
        assert len(lines) == bool(message), (arguments, found)
    assert sorted(folder.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("relu1", "conv1"),
        ("relu6", "fc6"),
        ("relu7", "fc7"),
        ("drop7", "fc7"),
        ("features.0", "conv1_preact, before the ReLU"),
        ("features.1", "conv1"),
        ("features.5", "pool2"),
        ("features.10", "conv5_preact, before the ReLU"),
        ("features.12", "pool5"),
        ("module.features.12", "pool5"),
        ("avgpool", "pool5"),
        ("classifier.0", "pool5"),
        ("classifier.1", "fc6_preact, before the ReLU"),
        ("classifier.2", "fc6"),
        ("classifier.3", "fc6"),
        ("classifier.4", "fc7_preact, before the ReLU"),
        ("classifier.5", "fc7"),
        ("classifier.6", "fc8"),
        ("fc8 (pre-softmax)", "fc8"),
        ("logits", "fc8"),
        ("ip", "fc6, fc7 or fc8"),
        ("softmax", "prob"),
        ("fc2", "fc7"),
        ("FC7", "fc7"),
        ("fc_7", "fc7"),
        ("conv5_relu", "conv5"),
        ("conv5-preact", "conv5_preact, before the ReLU"),
        ("alexnet_v2/fc7", "fc7"),
    ],
)
def test_names_of_other_programs(name, ours):
    for table in (BVLC_ALEXNET, TORCHVISION):
        with pytest.raises(LayerError) as found:
            table.check_blob(name)
        end = str(found.value).partition(f"{name} is ")[2]
        here, _, rest = end.partition(". Use one of: data, conv1, ")
        assert here.replace(" here", "") == ours
        assert rest


def test_layers_as_people_write_them():
    every = BVLC_ALEXNET.blobs[1:]
    assert blob_names("fc7") == ("fc7",)
    assert blob_names(["fc7, pool5", "fc7"]) == ("fc7", "pool5")
    assert blob_names("all") == ("all",)
    assert blob_names("fc6_preact,all", BVLC_ALEXNET) == ("fc6_preact", *every)
    assert blob_names("all", BVLC_ALEXNET, ["conv1", "conv2"]) == every[: every.index("conv3")]
    for nothing in ("", ",", [], ["fc7", None], [6]):
        with pytest.raises(LayerError):
            blob_names(nothing)


def test_a_file_is_read_where_its_classifier_may_be_meant(tmp_path):
    table = ARCHITECTURES["compact"].with_classes(2)
    layers = fresh_layers(table, 0)
    layers["own"] = layers.pop("fc8")
    path = str(tmp_path / "own.npz")
    ta.write_weights(WeightArrays(layers, "compact"), path)
    check_layers("own,fc7", path)
    with pytest.raises(LayerError, match="compact has no such blob"):
        check_layers("other", path)


def test_lines_of_progress(run, folder, monkeypatch):
    jobs.simplify(monkeypatch)
    command = ("extract", EXAMPLE_PHOTOS, "-w", "torchvision-convs", "-l", "pool5,conv1")
    code, out, err = run(*command, "-o", "new/f.h5", "--batch-size", 2, "--shard-size", 2)
    assert code == 0
    assert "pool5 (8, 6, 6, 256), conv1 (8, 55, 55, 64) float32" in out
    lines = err
    assert [line[: len("note: 2/8 photos, ")] for line in lines] == [
        "note: 2/8 photos, ",
        "note: 4/8 photos, ",
        "note: 6/8 photos, ",
    ], "at the end of each shard but the last"
    assert " 0 errors, 0:" in lines[0]
    assert lines[0].endswith(" left")
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    code, _, err = run(*command, "-o", "g.h5", "--batch", 2)
    assert code == 0
    assert len(err) == 5, "at the beginning and after every batch, as time goes by"
    code, out, err = run(*command, "-o", "h.h5", "--quiet")
    assert (code, err) == (0, [])
    assert out


def test_quiet_and_the_log(run, monkeypatch):
    from tf_alexnet.cli import main as room

    log = logging.getLogger("tf_alexnet.images")
    told = [(log.info, "read"), (log.warning, "left out"), (log.warning, "left out")]

    def app(**_):
        for tell, text in (*told, (log.debug, "detail")):
            tell("%s: 5 photos", text)
        raise UsageError("a", "b", "C.")

    monkeypatch.setattr(room, "app", app)
    lines = ["note: read: 5 photos", "note: left out: 5 photos", "error: a: b. C."]
    assert run()[2] == lines, "each text once"
    monkeypatch.setattr(room, "app", lambda **_: (room.console.be_quiet(True), app()))
    assert run()[2] == lines[-1:]
    monkeypatch.setattr(room, "app", app)
    assert run()[2] == lines, "nothing is left of the run before"
    assert log.parent.handlers in ([], [x for x in log.parent.handlers if x.level == 0])


def test_progress_of_python_functions(folder, monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    jobs.simplify(monkeypatch)
    caplog.set_level(logging.INFO, "tf_alexnet.progress")

    def told():
        texts = [x.getMessage() for x in caplog.records if x.name == "tf_alexnet.progress"]
        caplog.clear()
        return texts

    train_head("data", "RUN", weights="torchvision-convs", progress=True)
    lines = told()
    assert "photos: 8/8, errors 0, 0:00 left" in lines
    assert lines[-1].startswith("fits: ")
    found = ta.evaluate_photos("data", model="RUN", progress=True)
    assert found.photos == 2
    assert told()[-1].startswith("2/2 photos, ")
    extractor = ta.FeatureExtractor(Run.open("RUN").arrays, "prob")
    assert len([*predict_photos("data", extractor, batch_size=3, progress=True)]) == 8
    assert [line.split()[0] for line in told()] == ["0/8", "3/8", "6/8", "8/8"]
    extractor.from_images(["a.png"] * 3, batch_size=2, progress=True)
    assert [line.split()[0] for line in told()] == ["0/3", "2/3", "3/3"]
    calls = []
    extractor.from_images(["a.png"], progress=lambda *figures: calls.append(figures))
    assert calls == [(0, 1, 0, 0), (1, 1, 0, 0)]
    assert not told()


def test_the_bar_of_a_training(capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress_callback(True, "training") as tell:
        tell("epoch 1/2", 3, 8, {"loss": 0.5, "accuracy": 0.25})
        tell("epoch 1/2", 8, 8, {"val_loss": 0.4, "val_accuracy": 0.5, "accuracy": 0.25})
    assert "epoch 1/2: val loss 0.400, val accuracy 50.0%, accuracy 25.0%" in capfd.readouterr().err
    with progress.progress_callback(None) as nobody, progress.progress_callback(False) as neither:
        assert (nobody, neither) == (None, None)


def test_random_seeds():
    names = {"random": 0, "random:7": 7, "random:4294967295": 2**32 - 1, "imagenet": None}
    assert {name: random_seed(name) for name in names} == names
    assert random_seed(None) is random_seed(WeightArrays({})) is None
    for name in ("random:", "random:-1", "random:x", "random:4294967296", "random:1:2"):
        with pytest.raises(UsageError, match="not a seed"):
            random_seed(name)


def test_random_weights_are_the_same_everywhere():
    layers = fresh_layers(TORCHVISION.until("conv2"), 7)
    digest = "sha256:b370555d1576abe433ea7733f29cb539e1ac39b3fd7518071abccb58cea0de7e"
    assert WeightArrays(layers).digest == digest
    arrays = fresh_weights(ARCHITECTURES["compact"], 7)
    assert arrays.untrained
    assert arrays.source == "random:7 (untrained)"
    assert WeightArrays(fresh_layers(TORCHVISION.until("conv2"), 8)).digest != digest
    first = fresh_layers(BVLC_ALEXNET.until("conv2"), 7)
    assert first["conv1"].kernel.std() == pytest.approx(0.01, rel=0.02)
    assert set(first["conv2"].bias) == {np.float32(0.1)}, "Caffe's fillers"


def test_an_untrained_control_is_marked_in_every_output(run, folder, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "compact", narrow(ARCHITECTURES["compact"]))
    jobs.simplify(monkeypatch)
    control = ("-w", "random:7", "--architecture", "compact")
    code, out, err = run("extract", "data", "-o", "f.h5", *control)
    assert (code, err) == (0, [])
    with h5py.File("f.h5") as file:
        assert file.attrs["weights_source"] == "random:7 (untrained)"
        assert file.attrs["untrained"] == "yes"
        rows = file["fc7"][:]
    model = ta.AlexNet("random", architecture="compact", seed=7)
    x = ta.preprocess_input([ta.load_image("data/a/0.png")], model)
    expected = ta.features(model, ["fc7"]).predict(x, verbose=0)["fc7"][0]
    np.testing.assert_allclose(rows[0], expected, atol=1e-5 * np.abs(expected).max())
    code, _, err = run("extract", "data", "-o", "f.h5", "-w", "random:8", *control[2:])
    assert code == 2
    assert "started with other settings (weights_digest" in err[0]
    note = "note: random:7 (untrained): a control, its classes are meaningless"
    for option, mark in (
        ("--json", '"weights": "random:7 (untrained)"'),
        ("--csv", ",random:7 (untrained)"),
        ("--plot=new/p.png", "a.png  random:7 (untrained)"),
    ):
        code, out, err = run("predict", "a.png", *control, option)
        assert (code, err[0]) == (0, note)
        assert mark in out
    names = ("n01440764", "n01443537")
    for old, new in zip("ab", names, strict=True):
        (folder / "data" / old).rename(folder / "data" / new)
    files = ("new/c.csv", "new/er/c.png", "new/est/k.h5")
    code, out, err = run(
        "evaluate", "data", *control, "--csv", files[0], "--plot", files[1], "--keep", files[2]
    )
    assert code == 0
    assert all(map(os.path.isfile, ("new/p.png", *files))), "folders are made"
    assert note in err
    assert out.startswith("random:7 (untrained): compact, 1000 classes")
    code, out, _ = run("train", "data", "-o", "RUN", *control)
    assert code == 0
    assert "starting from random:7 (untrained)" in out
    assert "starting from `random:7 (untrained)`" in (folder / "RUN" / "report.md").read_text()
