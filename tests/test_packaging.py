"""What is published: the source distribution, the wheel as users install it, their metadata."""

import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import h5py
import pytest
from conftest import EXAMPLE_PHOTOS, ROOT

from tf_alexnet.version import VERSION

# Beside these a working folder holds weights, environments and results.
PUBLISHED = [
    *(".ci", "benchmarks", "docs", "examples", "tests", "tf_alexnet", "mkdocs.yml", "setup.cfg"),
    *("CHANGELOG.md", "CITATION.cff", "Dockerfile", "LICENSE", "MANIFEST.in", "Makefile"),
    *("README.md", "pyproject.toml", "weights/README.md", "weights/SHA256SUMS"),
]
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # they replace sys.argv
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""


def run(*command, cwd, **environment):
    environment = {**os.environ, **environment}
    for name in ("PYTHONPATH", "TF_ALEXNET_WEIGHTS"):
        environment.pop(name, None)
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(source distribution, wheel), built from a copy of the repository."""
    folder = tmp_path_factory.mktemp("built")
    for name in PUBLISHED:
        source, copy = ROOT / name, folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    (folder / "source" / "weights" / "large.npy").touch()
    run(sys.executable, "-W", "ignore", "-c", BUILD, folder, cwd=folder / "source")
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A fresh environment with the wheel; only its requirements come from this one."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", "--quiet", built[1], cwd=folder)
    (packages,) = (folder / "venv").rglob("site-packages")
    # A line of a .pth file adds a folder without what .pth files in that folder add: this tree.
    requirements = Path(importlib.util.find_spec("numpy").origin).parents[1]
    (packages / "requirements.pth").write_text(f"{requirements}\n")
    return folder, scripts / "tf-alexnet"


def test_the_source_distribution_is_the_repository(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for path in PUBLISHED:
        files = [ROOT / path] if (ROOT / path).is_file() else (ROOT / path).rglob("*")
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                assert file.relative_to(ROOT).as_posix() in names
    assert "weights/large.npy" not in names
    assert not [name for name in names if name.endswith(".pyc")]


def test_metadata_of_the_wheel(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
        (path,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(path).decode())
    files = (path for path in (ROOT / "tf_alexnet").rglob("*") if path.is_file())
    own = {x.relative_to(ROOT).as_posix() for x in files if "__pycache__" not in x.parts}
    assert "tf_alexnet/py.typed" in own
    assert own <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"tf_alexnet"}
    citation = (ROOT / "CITATION.cff").read_text()
    said = dict(re.findall(r"^(\S+): (.+)$", citation, flags=re.M))
    assert metadata["Version"] == said["version"] == VERSION
    assert metadata["License-Expression"] == said["license"]
    assert metadata["Home-page"] == said["repository-code"]
    assert metadata["Author"] == re.search(r"^authors:\n  - name: (.+)$", citation, flags=re.M)[1]
    for url in metadata.get_all("Project-URL"):
        assert url.partition(", ")[2].startswith(metadata["Home-page"])
    classifiers = metadata.get_all("Classifier")
    for version in ("3.10", "3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in classifiers
    assert "Typing :: Typed" in classifiers
    assert any(x.startswith("Operating System :: ") for x in classifiers)


def test_the_wheel_works_outside_the_tree(installed):
    folder, command = installed
    settings = {"TF_ALEXNET_OFFLINE": "1", "TF_ALEXNET_CACHE": str(folder / "cache")}
    out = run(command, "demo", cwd=folder, **settings)
    shown = re.findall(r"^(/.+\.jpg)$", out, flags=re.M)
    assert len(shown) == len(list(EXAMPLE_PHOTOS.glob("*.jpg")))
    assert all(Path(path).is_relative_to(folder / "venv") for path in shown)
    assert (folder / "demo-contact-sheet.png").exists()
    network = ("-w", "random:7", "--architecture", "compact")
    photo = EXAMPLE_PHOTOS / "chelsea.jpg"
    (row,) = json.loads(run(command, "predict", photo, *network, "--json", cwd=folder, **settings))
    assert len(row["predictions"]) == 5
    run(command, "extract", photo, *network, "-o", "fc7.h5", cwd=folder, **settings)
    with h5py.File(folder / "fc7.h5") as file:
        assert file["fc7"].shape == (1, 2048)


def test_the_container(tmp_path):
    """Not built here; what it installs exists, and hadolint has nothing to say."""
    hadolint = Path(sys.executable).with_name("hadolint")
    assert run(hadolint, ROOT / "Dockerfile", cwd=tmp_path) == ""
    text = (ROOT / "Dockerfile").read_text()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    (extras,) = re.findall(r'"/source\[(.+?)\]"', text)
    assert set(extras.split(",")) <= set(config["options.extras_require"])
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), flags=re.M)
    assert all((ROOT / name).exists() for name in kept)
