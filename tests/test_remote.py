"""URLs; photos and outputs in S3, on a server here (``pip install moto[server] s3fs``)."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import types

import fsspec
import h5py
import numpy as np
import pytest

from tf_alexnet import remote
from tf_alexnet.errors import UsageError
from tf_alexnet.extraction import PhotoReader, extract_features
from tf_alexnet.images import find_images
from tf_alexnet.images.discovery import _full_url

SETTINGS = {"weights": "torchvision-convs", "layers": ["pool5"], "pool": "avg"}


@pytest.mark.parametrize(
    ("listed", "name", "url"),
    [
        ("ftp://host/in/", "/in/a.jpg", "ftp://host/in/a.jpg"),
        ("ftp://u:p@host:21/in/*.jpg", "/in/a.jpg", "ftp://u:p@host:21/in/a.jpg"),
        ("ftp://host", "/in/a.jpg", "ftp://host/in/a.jpg"),
        ("ftp://host/", "/in/a.jpg", "ftp://host/in/a.jpg"),
        ("ftp://in/in", "/in/a.jpg", "ftp://in/in/a.jpg"),
        ("sftp://host/in", "/in/b/a.jpg", "sftp://host/in/b/a.jpg"),
        ("zip://::p.zip", "in/a.jpg", "zip://in/a.jpg::p.zip"),
        ("zip://*::ftp://host/in/p.zip", "a.jpg", "zip://a.jpg::ftp://host/in/p.zip"),
        ("tar://in::/x/p.tar", "in/a.jpg", "tar://in/a.jpg::/x/p.tar"),
        ("http://host/in/", "http://host/in/a.jpg", "http://host/in/a.jpg"),
        ("memory://in", "/in/a.jpg", "memory:///in/a.jpg"),
        ("s3://bucket/in", "bucket/in/a.jpg", "s3://bucket/in/a.jpg"),
        ("simplecache::s3://bucket/in", "bucket/in/a.jpg", "simplecache::s3://bucket/in/a.jpg"),
        ("filecache::memory://in", "/in/a.jpg", "filecache::memory://in/a.jpg"),
    ],
)
def test_urls_of_what_is_listed(listed, name, url):
    link = next(link for link in listed.split("::") if "://" in link)
    scheme = link.partition("://")[0]
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        pytest.skip(str(error))
    files = types.SimpleNamespace(  # not connected
        _get_kwargs_from_urls=kind._get_kwargs_from_urls,
        unstrip_protocol=lambda name: kind.unstrip_protocol(kind, name),
    )
    assert _full_url(listed, kind._strip_protocol(link), name, files) == url


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    for package in ("moto", "flask", "s3fs"):
        if not importlib.util.find_spec(package):
            pytest.skip(f"no {package}")
    log = tmp_path_factory.mktemp("moto") / "log"
    # Its own process: it imports hundreds of modules, and warns.
    command = [sys.executable, "-m", "moto.server", "-p", "0"]
    with open(log, "wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as server:
        try:
            while "Running on http" not in (text := log.read_text()):
                assert server.poll() is None, text
                time.sleep(0.1)
            yield text.partition("Running on ")[2].split()[0]
        finally:
            server.terminate()


@pytest.fixture
def bucket(endpoint, example_photos):
    """Options for the server, and a folder of photos there."""
    options = {"s3": {"endpoint_url": endpoint, "key": "k", "secret": "s"}}
    with remote.storage_options(options):
        files = fsspec.filesystem("s3")
        files.mkdirs("photos", exist_ok=True)
        for path in example_photos:
            files.put_file(str(path), f"photos/in/{path.name}")
        files.pipe_file("photos/in/bad.jpg", b"no photo")
    return options


def test_photos_and_output_in_s3(bucket, example_photos, tmp_path):
    extract_features([*map(str, example_photos)], tmp_path / "local.h5", **SETTINGS)
    with remote.storage_options(bucket):
        names = find_images("s3://photos/in/")
        assert names == sorted(
            f"s3://photos/in/{name}" for name in ["bad.jpg", *(x.name for x in example_photos)]
        )
        report = extract_features(["s3://photos/in"], "s3://photos/out.h5", **SETTINGS)
        assert (report.rows, [x.code for x in report.errors]) == (
            len(example_photos),
            ["not_an_image"],
        )
        assert extract_features(["s3://photos/in"], "s3://photos/out.h5", **SETTINGS).kept
        assert extract_features(["s3://photos/in"], "s3://photos/f/", **SETTINGS).rows
        remote.filesystem("s3://photos")[0].get_file("photos/out.h5", str(tmp_path / "out.h5"))
    with h5py.File(tmp_path / "local.h5") as local, h5py.File(tmp_path / "out.h5") as out:
        assert [x.decode().rpartition("/")[2] for x in out["paths"]] == [
            x.decode().rpartition("/")[2] for x in local["paths"]
        ]
        np.testing.assert_array_equal(out["pool5"], local["pool5"])


def test_what_is_not_there(bucket):
    with remote.storage_options(bucket), PhotoReader("caffe", workers=1) as reader:
        (batch,) = reader.batches(["s3://photos/none.jpg", "s3://nobucket/none.jpg"], 9)
    assert [failure[1:3] for failure in batch.failures] == [
        ("missing", "there is no such file")
    ] * 2


def test_the_command_takes_the_server_from_the_environment(bucket, example_photos, tmp_path):
    variables = {f"FSSPEC_S3_{name.upper()}": value for name, value in bucket["s3"].items()}
    command = [sys.executable, "-m", "tf_alexnet", "extract", "s3://photos/in/*.jpg"]
    command += ["-o", "s3://photos/env.h5", "-w", "torchvision-convs", "-l", "pool5"]
    done = subprocess.run(
        [*command, "--max-errors", "1"],
        env={**os.environ, **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(example_photos)} rows + 1 errors" in done.stdout.replace("1 error ", "1 errors ")


def test_options_end_with_their_block(monkeypatch):
    from fsspec.config import conf

    monkeypatch.setitem(conf, "memory", {"one": 1})
    before = json.dumps(conf)
    with remote.storage_options({"memory": {"two": 2}, "s3": {"key": "k"}}):
        files, _ = remote.filesystem("memory://a")
        assert files.storage_options == {"one": 1, "two": 2}
    assert json.dumps(conf) == before
    with remote.storage_options(None):
        assert json.dumps(conf) == before
    with pytest.raises(UsageError, match="grouped by scheme"), remote.storage_options({"key": "k"}):
        pass
