"""`tf-alexnet visualize` as a user meets it."""

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import EXAMPLE_PHOTOS
from PIL import Image

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.visualize import figures

CHELSEA = EXAMPLE_PHOTOS / "chelsea.jpg"
EMBEDDED = ("-w", "torchvision-convs")


pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A weight file with four classes on pool5."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    ta.write_weights(synthetic_weights(ARCHITECTURES["compact"].with_head("pool5", 4)), path)
    return path


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "f.h5"
    ta.extract_features(
        str(EXAMPLE_PHOTOS),
        path,
        weights="torchvision-convs",
        layers=["conv5", "pool5"],
        pool="avg",
    )
    return path


def one_error(err):
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def size_of(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def test_filters_and_architecture(run, small):
    code, out, err = run("visualize", "filters", *EMBEDDED)
    assert (code, err) == (0, "")
    assert out.startswith("filters-conv1.png: 64 filters of conv1")
    assert min(size_of("filters-conv1.png")) > 400
    assert run("visualize", "filters", "-w", small, "--layer", "conv3", "-o", "c3.pdf")[0] == 0
    code, _, err = run("visualize", "filters", "-w", small, "--layer", "fc8")
    assert code == 2
    assert "no such convolution. Use one of conv1" in one_error(err)
    code, out, _ = run("visualize", "architecture", "-a", "caffenet", "-o", "net.svg")
    assert code == 0
    assert out == "net.svg: caffenet, 60,965,224 parameters\n"
    assert "<svg" in Path("net.svg").read_text()
    text = run("visualize", "architecture")[1]
    assert text == run("summary", "--plot", "net.md")[1]
    assert Path("net.md").read_text().startswith("# bvlc_alexnet")
    code, _, err = run("visualize", "architecture", "-o", "net.doc")
    assert code == 2
    assert one_error(err).endswith("Use .svg, .md, .txt.")


def test_activations(run, small):
    code, out, _ = run("visualize", "activations", CHELSEA, "-w", small, "--all")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()][-3:] == ["pool5", "fc8", "prob"]
    assert size_of("chelsea-all.png")[0] > 1500
    code, out, _ = run("visualize", "activations", CHELSEA, *EMBEDDED, "--layer", "conv3")
    assert out.startswith("conv3    13x13x384 ")
    assert size_of("chelsea-conv3.png")[0] > 800


def test_saliency(run, small, tmp_path):
    command = ("visualize", "saliency", CHELSEA, "-w", small)
    code, out, err = run(*command, "--method", "integrated", "--npy", "map.npy", "--class", "2")
    assert code == 0
    assert out.splitlines()[0].startswith(f"{CHELSEA}: integrated of class 2, score ")
    gap = float(out.splitlines()[1].removeprefix("completeness gap: ").rstrip("%"))
    assert gap < 2
    assert "note: wrote map.npy" in err
    found = np.load("map.npy")
    assert found.shape == np.asarray(Image.open(CHELSEA)).shape[:2]
    assert size_of("chelsea-integrated.png")[0] > 800
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nbird\nfish\n")
    code, out, _ = run(*command, "--labels", names, "--class", "Bird", "--target", "crop")
    assert code == 0
    assert ": gradcam of class 2 (bird), score " in out
    code, _, err = run(*command, "--labels", names, "--class", "birds")
    assert code == 2
    assert one_error(err) == "error: class 'birds': there is no such class. Did you mean: bird?"


def test_sanity(run, small):
    methods = ("--method", "gradcam", "--method", "gradient")
    command = ("visualize", "sanity", CHELSEA, "-w", small, *methods, "--csv", "s.csv")
    code, out, _ = run(*command)
    assert code == 0
    lines = [line.split() for line in out.splitlines()[2:]]
    assert lines[0] == ["layer", "gradcam", "gradient"]
    stages = ["trained", "fc8", "conv5", "conv4", "conv3", "conv2", "conv1"]
    assert [line[0] for line in lines[1:]] == stages
    assert lines[1][1:] == ["1.000", "1.000"]
    with open("s.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["randomised_down_to", "gradcam", "gradient"]
    assert float(rows[-1][2]) == pytest.approx(float(lines[-1][2]), abs=1e-3)
    assert size_of("chelsea-sanity.png")[0] > 800


def test_maps_of_features(run, features):
    code, out, _ = run("visualize", "embedding", features, "--csv", "xy.csv")
    assert code == 0
    assert " photos by pool5; component 1 (" in out
    assert size_of("f-map.png")[0] > 800
    with open("xy.csv") as file:
        assert len(list(csv.reader(file))) == 1 + len(list(EXAMPLE_PHOTOS.glob("*.jpg")))
    code, out, _ = run("visualize", "rsm", features, "--distance", "cosine", "-o", "r.png")
    assert code == 0
    assert {"RSA (Spearman)", "linear CKA"} <= set(out.splitlines())
    matrix = np.load("r-pool5.npy")
    with open("r-pool5.csv") as file:
        rows = list(csv.reader(file))
    np.testing.assert_array_equal(np.array([x[1:] for x in rows[1:]], float), matrix)
    assert [x[0] for x in rows[1:]] == rows[0][1:]
    assert Path("r-layers.csv").read_text().count("\n") == 5
    code, _, err = run("visualize", "rsm", features, "--layer", "fc7")
    assert code == 2
    assert "it was not extracted. The file has: conv5, pool5." in one_error(err)


def test_neighbours(run, features, tmp_path):
    code, out, _ = run("visualize", "neighbours", features, "--query", CHELSEA, "-k", 2)
    assert code == 0
    lines = out.splitlines()
    assert (lines[0], len(lines)) == (str(CHELSEA), 3)
    mirrored = tmp_path / "mirrored.png"
    Image.open(CHELSEA).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    command = ("visualize", "neighbours", features, "--query", mirrored)
    code, out, _ = run(*command, *EMBEDDED, "-k", 1, "--csv", "n.csv")
    assert code == 0
    assert out.splitlines()[1].split() == [out.split()[1], str(CHELSEA)]
    assert float(out.split()[1]) > 0.9
    code, _, err = run(*command, "-w", "random:3", "--layer", "pool5")
    assert code == 2
    assert "the file was made with torchvision_convs" in one_error(err)
    code, out, _ = run("visualize", "neighbours", features)
    assert code == 0
    assert size_of("f-neighbours.png")[1] > 1000


def test_files_of_others_are_not_replaced(run, features):
    for name in ("f-map.png", "x-pool5.npy"):
        Path(name).write_text("precious")
    code, _, err = run("visualize", "embedding", features)
    assert code == 4
    assert "it exists, and tf-alexnet did not write it" in one_error(err)
    code, _, err = run("visualize", "rsm", features, "-o", "x.png")
    assert code == 4
    assert "x-pool5.npy: it exists, but its picture, x.png" in one_error(err)
    assert Path("f-map.png").read_text() == Path("x-pool5.npy").read_text() == "precious"
    assert run("visualize", "embedding", features, "-o", "other.png")[0] == 0
    assert run("visualize", "embedding", features, "-o", "other.png")[0] == 0, "ours is replaced"


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        (("saliency", "gone.jpg", *EMBEDDED), 5, "gone.jpg: there is no such file"),
        (("saliency", CHELSEA, "-w", "gone.npy"), 3, "gone.npy"),
        (("saliency", CHELSEA, *EMBEDDED, "-o", "x.txt"), 2, "picture x.txt: unknown file type"),
        (("saliency", CHELSEA, *EMBEDDED, "--npy", "x.txt"), 2, "End it in"),
        (("saliency", CHELSEA, *EMBEDDED, "-m", "run"), 2, "--model with --weights"),
        (("activations", CHELSEA, *EMBEDDED, "--layer", "conv9"), 2, "'conv9'"),
        (("embedding", "gone.h5"), 2, "gone.h5: there is no such file"),
        (("neighbours", CHELSEA), 2, "not a feature file, by its suffix"),
    ],
)
def test_mistakes_are_one_line(run, command, code, line):
    found, out, err = run("visualize", *command)
    assert found == code
    assert line in one_error(err)
    assert out == ""


def test_without_matplotlib(run, monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    code, _, err = run("visualize", "filters", *EMBEDDED)
    assert code == 2
    expected = "matplotlib is not installed. Install it: pip install 'tf-alexnet[plot]'."
    assert one_error(err) == f"error: figures: {expected}"
    assert run("visualize", "architecture", "-o", "net.svg")[0] == 0, "it needs no matplotlib"
