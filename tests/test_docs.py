"""README and docs are true: commands and Python run, output is what comes out, links work."""

import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import warnings
from importlib.util import find_spec

import jobs
import keras
import numpy as np
import pytest
from conftest import ROOT, trained_arrays
from planted import plant
from weight_seeds import message, varint

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.weights import WeightArrays
from tf_alexnet.weights.deploy import deploy_prototxt as prototxt

DOCS = ROOT / "docs"
PHOTOS = ROOT / "examples" / "photos"
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))]
HOME = "https://github.com/tf-alexnet/tf-alexnet/blob/main/"
_OPTIONAL = {"rsatoolbox"}  # is used on one page, and too large to install for that
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the pages expect it: photos and weights in it, nothing to download."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "examples" / "photos").mkdir(parents=True)
    for name in ("astronaut", "chelsea", "hopper", "raccoon"):
        (folder / "examples" / "photos" / f"{name}.jpg").symlink_to(PHOTOS / f"{name}.jpg")
    (folder / "weights").mkdir()
    plant(folder / "planted", train=4, val=0, classes=("roses", "daisy", "tulips"))
    (folder / "planted" / "train").rename(folder / "flowers")
    arrays = trained_arrays()
    ta.write_weights(arrays, folder / "weights" / "bvlc-alexnet.npy")
    stimuli = [f"examples/photos/{name}.jpg" for name in ("chelsea", "astronaut", "chelsea")]
    (folder / "stimuli.txt").write_text("\n".join(stimuli))
    photos = sorted((folder / "flowers").rglob("*.png"))
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in photos]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]))
    write_own_model(folder, arrays)
    return folder


def write_own_model(folder, arrays):
    """What somebody who has trained in Caffe has: photos, model, prototxt, mean and labels."""
    (folder / "photos").symlink_to(PHOTOS)
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


@pytest.fixture
def inside(folder, tmp_path, monkeypatch):
    """A working folder that holds links to `folder`; no network, no weights from elsewhere."""
    for path in folder.iterdir():
        if path.name not in ("weights", "RUN"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "bvlc-alexnet.npy").symlink_to(folder / "weights" / "bvlc-alexnet.npy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_ALEXNET_OFFLINE", "1")
    monkeypatch.setenv("TF_ALEXNET_CACHE", str(folder / "cache"))
    monkeypatch.delenv("TF_ALEXNET_WEIGHTS", raising=False)
    yield tmp_path
    shutil.rmtree(tmp_path)  # some pages write networks of 244 MB


def blocks(page, *kinds):
    """(kind, text) of a page's code blocks, in their order, also of those in tabs."""
    found = _BLOCK.findall((ROOT / page).read_text())
    return [(kind, textwrap.dedent(text)) for _, kind, text in found if not kinds or kind in kinds]


def commands(text):
    return re.sub(r"\\\n *", "", text).splitlines()


def test_kinds_of_blocks():
    """`bash` and `python` are run; the rest is output, or for other programs and machines."""
    for page in PAGES:
        kinds = {kind for kind, _ in blocks(page)}
        assert kinds <= {"bash", "python", "text", "sh", "matlab", "r"}, page


# Several pages begin with this one. Where a RUN is finished, it says so and ends.
TRAIN = ["train", "flowers", "-o", "RUN", "--weights", "torchvision-convs"]
# The same on other pages would show nothing new, and nothing on them reads what it writes.
ONCE = ("predict", "export")


@pytest.fixture(scope="module")
def ran():
    """Commands that ran on some page."""
    return set()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash", "python")])
def test_page(page, folder, inside, run, ran, monkeypatch):
    """A page's commands and its Python, from top to bottom."""
    if page != "docs/guides/caffe.md":  # it has a mean image
        jobs.simplify(monkeypatch)
    names = {"__name__": "__main__"}
    with contextlib.ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
        free.close()
        for kind, text in blocks(page, "bash", "python"):
            text = text.replace("8000", port)
            if kind == "python" and all(map(find_spec, _OPTIONAL.intersection(text.split()))):
                with warnings.catch_warnings():
                    warnings.simplefilter("default")
                    exec(compile(text, page, "exec"), names)
            for command in commands(text) if kind == "bash" else ():
                program, *arguments = shlex.split(command)
                if program == "curl":
                    out = subprocess.run([program, *arguments], check=True, capture_output=True)
                    assert b"error" not in out.stdout
                elif arguments[0] == "serve":
                    stack.enter_context(serving(arguments))
                else:
                    assert program == "tf-alexnet", command
                    if arguments[0] in ONCE and command in ran:
                        continue
                    ran.add(command)
                    if arguments == TRAIN and (folder / "RUN").exists():
                        shutil.copytree(folder / "RUN", "RUN")
                    code, out, err = run(*arguments)
                    assert code == 0, (command, err)
                    assert out, command
                    if arguments == TRAIN and not (folder / "RUN").exists():
                        shutil.copytree("RUN", folder / "RUN")


@contextlib.contextmanager
def serving(arguments):
    """A server in a process of its own, from when it is ready until the page has been read."""
    command = [sys.executable, "-m", "tf_alexnet", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as server:
        try:
            assert server.stdout.readline().startswith(b"http://")
            yield
        finally:
            server.terminate()


def test_output_of_the_demo(empty_folder, tmp_path, run):
    """What `make demo` is said to print is what it prints without weights and network."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code, out, err = run("demo", "examples/photos")
    assert code == 0, err
    (shown,) = [text for _, text in blocks("README.md", "text") if "weights: " in text]
    before, _, after = shown.strip().partition("\n...\n")
    lines = [line for line in before.splitlines() if not line.startswith("note: ")]
    assert out.startswith("\n".join(lines))
    assert out.strip().endswith(after.strip())


def test_links_of_the_readme():
    """They are absolute, so that they lead somewhere from PyPI's page too."""
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://"), target
        if target.startswith(HOME):
            path, _, anchor = target.removeprefix(HOME).partition("#")
            assert (ROOT / path).exists(), target
            assert not anchor or anchor in anchors(ROOT / path), target


def anchors(path):
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text().count("\n") <= 150


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages; a warning, such as one of a dead link, is an error."""
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", target],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return target


def test_the_site_leaves_out_the_code_that_builds_it(site):
    assert not [*site.rglob("*.py"), *site.rglob("*.pyc")]


def test_the_site_asks_no_other_host(site):
    """Scripts, styles, fonts and pictures all come with it."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        text = page.read_text()
        loaded = re.findall(
            r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"']?([^\"' >]+)", text
        )
        loaded += [
            re.search(r"href=[\"']?([^\"' >]+)", link)[1]
            for link in re.findall(r"<link\b[^>]*>", text)
            if "href" in link
        ]
        for target in loaded:
            assert not re.match(r"(https?:)?//", target), (page, target)
        assert "data-md-component=source" not in text.replace('"', "")  # asks GitHub for its stars
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text()), style


def test_reference_names_everything(site):
    """Every public name, every command, every option."""
    text = (DOCS / "reference" / "python.md").read_text()
    listed = {line.rpartition(".")[2] for line in re.findall(r"^::: (.+)$", text, re.M)}
    pictures = {name for name in ta.visualize.__all__ if callable(getattr(ta.visualize, name))}
    assert {*ta.__all__, *pictures} - {"visualize"} <= listed
    page = (site / "reference" / "cli.html").read_text()
    for name in ("predict", "extract", "train", "weights convert", "--layer", "--max-errors"):
        assert name in page


@pytest.mark.parametrize("name", sorted(x.name for x in (ROOT / "examples").glob("*.ipynb")))
def test_notebook(name, inside):
    """All cells, in order; no outputs are kept, which might show other people's photos."""
    notebook = json.loads((ROOT / "examples" / name).read_text())
    assert notebook["nbformat"] == 4
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code)
    exec(compile("\n".join("".join(x["source"]) for x in code), name, "exec"), {})


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_examples(script, inside, monkeypatch, capfd):
    source = (ROOT / "examples" / script).read_text()
    assert source.count("\n") <= 40
    photos = sorted(PHOTOS.glob("*.jpg"))[:4]
    classes = inside / "classes"
    for i, path in enumerate(photos):  # two classes of two photos
        (classes / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (classes / "ab"[i % 2] / path.name).symlink_to(path)
    arguments = {
        "fc7_features.py": ["examples/photos", "weights/bvlc-alexnet.npy"],
        "fine_tune.py": [classes],
        "keras_recipe.py": [classes],
        "sklearn_pipeline.py": [classes],
        "pandas_sklearn.py": [classes, "weights/bvlc-alexnet.npy"],
    }.get(script, photos)
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    keras.backend.clear_session()  # layers are numbered from the start
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    expected = {
        "compare_layers.py": "conv5",
        "fc7_features.py": "is most like",
        "fine_tune.py": "validation accuracy",
        "keras_recipe.py": "training conv2, conv3, conv4, conv5, dense, dense_1\n",
        "sklearn_pipeline.py": "f1-score",
        "pandas_sklearn.py": "4 photos, 2 classes: accuracy",
        "top5.py": "  n",
    }[script]
    assert expected in capfd.readouterr().out
