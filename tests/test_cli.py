"""The command line as a user meets it: output, exit codes, one-line errors."""

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import typer.main
from conftest import EXAMPLE_PHOTOS, trained_arrays, weights_of
from mirrors import serving
from PIL import Image
from weight_seeds import deep_compression_file

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.cli.main import app
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights import LayerArrays, Source, WeightArrays, catalog, known_weights

CATALOG_MODULE = sys.modules[known_weights.__module__]


pytestmark = pytest.mark.usefixtures("empty_folder")


def one_error(err):
    """The only error line of `err`."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture(scope="module")
def trained_file(tmp_path_factory):
    """A full-size file that is taken for the trained network's."""
    path = tmp_path_factory.mktemp("trained") / "bvlc-alexnet.npy"
    ta.write_weights(trained_arrays(), path)
    return path


@pytest.fixture(scope="module")
def compact_file(tmp_path_factory):
    """A file of the small network, untrained."""
    path = tmp_path_factory.mktemp("compact") / "compact.npy"
    ta.write_weights(weights_of("compact"), path)
    return path


def test_help_needs_no_tensorflow():
    code = (
        "import sys\nsys.argv = ['tf-alexnet', '--help']\n"
        "from tf_alexnet.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'tensorflow', 'keras', 'numpy', 'cv2'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("demo", "predict", "extract", "summary", "weights"):
        assert command in done.stdout


def test_mistakes_in_a_call_are_one_line(run):
    calls = [
        (("predict",), "tf-alexnet predict: missing argument 'PHOTOS'. See tf-alexnet predict -"),
        (("predict", "x", "--top", "y"), "tf-alexnet predict: invalid value for '--top': "),
        (("train", "x", "-o", "y", "--mode", "z"), "invalid value for '--mode': 'z' is not one"),
        (("train", "x", "-o", "y", "--epochs", "0"), "invalid value for '--epochs': "),
        (("train", "x", "--layer"), "option '--layer' requires an argument. See tf-alexnet"),
        (("summary", "--a\nb"), "tf-alexnet summary: no such option: "),
        (("weights", "fetch", "a", "b"), "tf-alexnet weights fetch: got unexpected extra"),
        (("nosuch",), "tf-alexnet: no such command 'nosuch'. See tf-alexnet --help."),
        (("sumary",), "no such command 'sumary'. Did you mean 'summary'? See tf-alexnet --help."),
    ]
    for arguments, message in calls:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err == one_error(err) + "\n"
        assert message in err
    assert "Commands" in run("weights")[1]
    assert run("weights")[::2] == (2, "")


def commands(group, path=()):
    """(words of the call, command) of a command and all below it."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def test_help_shows_no_type_of_flags(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    every = list(commands(typer.main.get_command(app)))
    assert len(every) > 12
    for path, command in every:
        code, out, err = run(*path, "--help")
        assert (code, err) == (0, "")
        assert "<bool>" not in out, path
        assert f"Usage: {' '.join(('tf-alexnet', *path))} " in out
        for option in {name for param in command.params for name in param.opts if "--" in name}:
            assert option in out, path


def test_shell_completion(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    typer.main.get_command.cache_clear()  # which shell this is was asked when it was made
    code, out, err = run("--install-completion", "bash")
    typer.main.get_command.cache_clear()
    assert (code, err) == (0, "")
    assert "bash completion installed" in out
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert str(script) in (tmp_path / ".bashrc").read_text()
    assert "complete -o default -F _tf_alexnet_completion tf-alexnet" in script.read_text()
    monkeypatch.setenv("_TF_ALEXNET_COMPLETE", "complete_bash")
    for words, expected in (
        ("tf-alexnet ex", {"extract"}),
        ("tf-alexnet weights v", {"verify"}),
        ("tf-alexnet predict --crops t", {"ten"}),
        ("tf-alexnet predict --mean", {"--mean", "--mean-image"}),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        code, out, _ = run()
        assert code == 0
        assert expected <= set(out.split()), words


def test_predict_prints_a_table_a_photo(run, compact_file, example_photos):
    code, out, err = run("predict", *example_photos[:2], "-w", compact_file, "--top", 3)
    assert code == 0
    assert "note: " in err
    assert "not the weights of a known trained network" in err
    lines = out.splitlines()
    assert lines[0] == str(example_photos[0])
    assert lines[4] == str(example_photos[1])
    model = ta.AlexNet(weights_of("compact"))
    x = ta.preprocess_input([ta.load_image(path) for path in example_photos[:2]], "compact")
    expected = ta.decode_predictions(model.predict(x, verbose=0), top=3)
    for i, best in enumerate(expected):
        for j, p in enumerate(best):
            probability, synset, label = lines[4 * i + j + 1].split(maxsplit=2)
            assert float(probability) == pytest.approx(p.probability, abs=1e-4)
            assert (synset, label) == (p.synset, p.label)


def test_predict_as_json_csv_and_picture(run, trained_file, example_photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff nothing")
    photos = [example_photos[0], bad, example_photos[1]]
    code, out, err = run("predict", *photos, "-w", trained_file, "--json", "--plot", "p.png")
    assert code == 5
    assert "known trained network" not in err
    assert one_error(err).startswith(f"error: {bad}: ")
    rows = {row["path"]: row for row in json.loads(out)}
    assert set(rows) == set(map(str, photos))
    assert "error" in rows[str(bad)]
    first = rows[str(example_photos[0])]["predictions"]
    assert [set(p) for p in first] == [{"synset", "label", "index", "probability"}] * 5
    with Image.open("p.png") as picture:
        assert picture.width > 400
        assert len(picture.getcolors(2**24)) > 1000, "the photos are in it"
    code, out, err = run("predict", *photos, "-w", trained_file, "--csv")
    assert code == 5
    table = list(csv.DictReader(io.StringIO(out)))
    assert [row["rank"] for row in table] == list("12345") * 2
    assert float(table[0]["probability"]) == pytest.approx(first[0]["probability"])


def test_means_and_labels(run, trained_file, example_photos, tmp_path):
    photo, command = example_photos[0], ("--json", "--top", 2000, "-w", trained_file)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({f"class of {i}": i for i in range(1000)}))
    model = ta.AlexNet(trained_file)
    x = ta.preprocess_input([ta.load_image(photo)], "caffe.mean104-117-123")
    ((best, *_),) = ta.decode_predictions(model.predict(x, verbose=0))
    code, out, _ = run("predict", photo, *command, "--mean", "104,117,123", "--labels", names)
    assert code == 0
    first = json.loads(out)[0]["predictions"]
    assert len(first) == 1000
    assert first[0]["probability"] == pytest.approx(best.probability, rel=1e-4)
    assert first[0]["label"] == f"class of {best.index}"
    image = np.broadcast_to(np.float32([104, 117, 123]), (256, 256, 3))
    np.save(tmp_path / "mean.npy", image)
    code, out, _ = run("predict", photo, *command, "--mean-image", tmp_path / "mean.npy")
    assert code == 0
    again = json.loads(out)[0]["predictions"]
    assert [p["index"] for p in again] == [p["index"] for p in first]
    for option, value in (("--mean", "none.npy"), ("--labels", "none.txt")):
        code, _, err = run("predict", photo, "-w", trained_file, option, value)
        assert code == 2
        assert f"{value}: it can't be read (No such file or directory). " in one_error(err)
    names.write_text("a\nb\n")
    code, _, err = run("predict", photo, "-w", trained_file, "--labels", names)
    assert code == 2
    assert "2 names, but the network has 1000 outputs" in one_error(err)


def test_ten_crops_are_averaged(run, trained_file, example_photos):
    code, out, _ = run("predict", example_photos[0], "-w", trained_file, "--crops", "ten", "--json")
    assert code == 0
    model = ta.AlexNet(trained_file)
    crops = ta.preprocess_input([ta.load_image(example_photos[0])], crops="ten")
    assert crops.shape == (10, 227, 227, 3)
    expected = ta.decode_predictions(model.predict(crops, verbose=0).mean(axis=0)[None])[0]
    for ours, p in zip(json.loads(out)[0]["predictions"], expected, strict=True):
        assert ours["index"] == p.index
        assert ours["probability"] == pytest.approx(p.probability, rel=1e-4)


def test_extract(run, compact_file, tmp_path):
    (tmp_path / "bad.png").touch()
    code, out, err = run(
        *("extract", EXAMPLE_PHOTOS, "bad.png", "-o", "f.h5", "-w", compact_file),
        *("--layer", "fc7", "--layer", "fc6_preact", "--batch", 2, "--dtype", "float16"),
    )
    assert code == 5
    assert "8 rows + 1 errors = 9 photos; fc7 (8, 2048), fc6_preact (8, 2048) float16" in out
    assert one_error(err).startswith("error: bad.png: ")
    with h5py.File("f.h5") as file:
        assert file["fc6_preact"].dtype == np.float16
        assert file["fc6_preact"][:].min() < 0
        assert file.attrs["weights_source"] == "compact.npy"


def test_demo_without_weights(run, monkeypatch):
    code, out, err = run("demo", EXAMPLE_PHOTOS)
    assert code == 0
    note = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(note) == 1
    assert "AlexNet_compressed.net is not on this machine and TF_ALEXNET_OFFLINE is set" in note[0]
    assert "`tf-alexnet weights fetch imagenet` downloads BVLC's weights (244 MB)" in note[0]
    assert "pool5: 9216 values" in out
    assert " n0" not in out, "no classes without the weights for them"
    with Image.open("demo-contact-sheet.png") as sheet:
        assert sheet.height > 1000
    nearest = re.findall(r"(\w+)\.jpg\n  pool5.*\n  nearest: (\w+)\.jpg", out)
    pairs = {"astronaut": "hopper", "chelsea": "raccoon", "galaxies_1": "galaxies_2"}
    pairs |= {"wall_1": "wall_2"}
    assert dict(nearest) == pairs | {other: one for one, other in pairs.items()}


def small_network():
    """A Deep Compression file of the full shapes, all but empty."""
    random = np.random.default_rng(2)
    codes, books, biases = {}, {}, {}
    for name, (kernel, bias) in ARCHITECTURES["bvlc_alexnet"].parameter_shapes().items():
        codes[name] = np.zeros(np.prod(kernel), np.uint8)
        codes[name][:3000] = random.integers(1, 16, 3000)
        books[name] = random.normal(0, 0.05, 256 if len(kernel) == 4 else 16)
        books[name][0] = 0
        biases[name] = random.normal(size=bias)
    return deep_compression_file(codes, books, biases)


@pytest.mark.parametrize("trained", [True, False])
def test_demo_downloads_the_small_network(run, monkeypatch, tmp_path, example_photos, trained):
    """Its classes are shown only if its checksum is the published one."""
    content, name = small_network(), "AlexNet_compressed.net"
    monkeypatch.delenv("TF_ALEXNET_OFFLINE")
    with serving(content) as server:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        url = f"http://127.0.0.1:{server.server_address[1]}/good/{name}"
        source = Source(name, (url,), None, f"git_blob:{blob}" if trained else None)
        known = replace(known_weights("deep-compression"), sources=(source,))
        others = [x for x in catalog() if x.name != known.name]
        monkeypatch.setattr(CATALOG_MODULE, "_CATALOG", (known, *others))
        code, out, err = run("demo", *example_photos[:3])
        assert code == 0
        assert (tmp_path / "cache" / name).read_bytes() == content
        if trained:
            assert run("demo", *example_photos[:3])[1] == out
        assert server.served == ["good"]
    notes = err.splitlines()
    assert "the full weights are not on this machine; `tf-alexnet weights fetch imag" in notes[0]
    assert notes[0].endswith("Until then: Deep Compression (8.9 MB)")
    assert len(notes) == (1 if trained else 2)
    assert out.count("fc7: 4096 values") == 3
    assert sum(line.startswith("  0.") for line in out.splitlines()) == (15 if trained else 0)


def test_demo_with_weights(run, trained_file, example_photos, monkeypatch):
    monkeypatch.setenv("TF_ALEXNET_WEIGHTS", str(trained_file))
    code, out, err = run("demo", *example_photos[:3], "-o", "sheet.png")
    assert (code, err) == (0, "")
    assert out.count("fc7: 4096 values") == 3
    assert sum(line.startswith("  0.") for line in out.splitlines()) == 15


def test_demo_shows_no_classes_of_untrained_weights(run, compact_file):
    code, out, err = run("demo", EXAMPLE_PHOTOS, "-w", compact_file)
    assert code == 0
    assert "note: these are not trained weights" in err
    assert "fc7: 2048 values" in out
    assert " n0" not in out


def broken_files(folder, whole):
    """Weight files a user may have: name -> what the error must say."""
    npy = whole.read_bytes()
    (folder / "truncated.npy").write_bytes(npy[: len(npy) // 2])
    (folder / "empty.npy").touch()
    (folder / "page.npy").write_text("<!DOCTYPE html><html><title>404 Not Found</title></html>")
    (folder / "photo.npy").write_bytes((EXAMPLE_PHOTOS / "chelsea.jpg").read_bytes())
    layers = dict(weights_of("compact").layers)
    nan = layers["fc8"].bias.copy()
    nan[0] = np.nan
    layers["fc8"] = LayerArrays(layers["fc8"].kernel, nan)
    del layers["conv3"]
    ta.write_weights(WeightArrays(layers, "compact"), folder / "faulty.npy")
    convolutions = synthetic_weights(ARCHITECTURES["bvlc_alexnet"].until("pool5")).layers
    ta.write_weights(WeightArrays(convolutions, "caffenet"), folder / "caffenet.caffemodel")
    ta.write_weights(WeightArrays(convolutions), folder / "unknown.npy")
    return {
        "missing.npy": "neither a file nor a name in the catalogue",
        "truncated.npy": "truncated.npy: ",
        "empty.npy": "empty",
        "page.npy": "HTML",
        "photo.npy": "photo.npy: ",
        "faulty.npy": "conv3 is missing; fc8 bias: 1 of 1000 values are NaN",
        ".": "folder",
        "unknown.npy": "its shapes fit bvlc_alexnet and caffenet",
    }


def test_bad_weight_files(run, tmp_path, compact_file):
    photo = EXAMPLE_PHOTOS / "chelsea.jpg"
    for name, message in broken_files(tmp_path, compact_file).items():
        for command in (("predict", photo), ("extract", photo, "-o", "f.h5")):
            code, out, err = run(*command, "-w", name)
            assert code == 3, name
            assert out == ""
            assert message in one_error(err), name
            assert not (tmp_path / "f.h5").exists()
    code, _, err = run(
        "predict", photo, "-w", "caffenet.caffemodel", "--architecture", "bvlc_alexnet"
    )
    assert code == 3
    assert "these are caffenet weights" in one_error(err)


def test_bad_calls(run, tmp_path, monkeypatch):
    photo = EXAMPLE_PHOTOS / "chelsea.jpg"
    convs = ("-w", "torchvision-convs")
    (tmp_path / "none").mkdir()
    (tmp_path / "file.txt").write_text("nosuch.jpg\n")
    (tmp_path / "closed").mkdir()
    calls = [
        (("extract", photo, "-o", "f.h5", *convs, "-l", "fc9"), 2, "Use one of: data, conv1"),
        (("predict", photo, *convs, "--preset", "vgg"), 2, "Use one of: caffe, "),
        (("predict", "none", *convs), 2, "no image found"),
        (("predict", "nosuch.jpg", *convs), 5, "nosuch.jpg"),
        (("predict", "--json", "--csv", photo), 2, "two formats at once"),
        (("extract", photo, "-o", "file.txt/f.h5", *convs), 4, "file.txt is not a folder"),
        (("extract", photo, "-o", "f.csv", *convs), 2, "no format has the suffix"),
        (("predict", photo, *convs, "--plot", "p.txt"), 2, "unknown file type"),
        (("predict", photo, *convs), 3, "it has only convolutions"),
        (("predict", photo), 3, "TF_ALEXNET_OFFLINE is set"),
        (("weights", "fetch", "vgg16"), 3, "Give a path that exists, or one of: imagenet"),
    ]
    for arguments, expected, message in calls:
        code, out, err = run(*arguments)
        assert code == expected, (arguments, err)
        assert out == ""
        assert message in one_error(err), arguments
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: "closed" not in str(path) and real(path, mode)
    )
    code, _, err = run("extract", photo, "-o", "closed/f.h5", *convs)
    assert code == 4
    assert "the folder closed can't be written to" in one_error(err)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".h5", ".part")]


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m tf_alexnet summary | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("bvlc_alexnet: ")
