"""Finding and downloading, against servers on this machine only."""

import os
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mirrors import GIT_BLOB, GOOD, SHA1, SHA256, serving

from tf_alexnet.errors import OutputError, WeightsError
from tf_alexnet.weights import fetch_weights, find_weights, known_weights, store

CATALOG_MODULE = sys.modules[known_weights.__module__]


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    """An empty working folder and cache, no variables, no proxy, and no patience."""
    for name in list(os.environ):
        if name.startswith("TF_ALEXNET_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TF_ALEXNET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    impatience = {"PROBE": 1.0, "GRACE": 0.3, "STALL": 0.6, "PAUSE": 0.0}
    for name, seconds in impatience.items():
        monkeypatch.setattr(store, f"{name}_SECONDS", seconds)


@pytest.fixture
def publish(server, monkeypatch):
    """Put one record, served here, in the catalogue's place."""

    def publish(*what, base="bvlc_alexnet", **changes):
        port = server.server_address[1]
        original = known_weights(base)
        mirrors = tuple(
            w if "://" in w else f"http://127.0.0.1:{port}/{w}/{original.file_name}" for w in what
        )
        none = {"size": len(GOOD), "sha256": None, "sha1": None, "git_blob": None}
        record = replace(original, mirrors=mirrors, **{**none, "sha256": SHA256, **changes})
        monkeypatch.setattr(CATALOG_MODULE, "_CATALOG", (record,))
        return record

    return publish


def cached():
    return sorted(str(p.name) for p in Path(os.environ["TF_ALEXNET_CACHE"]).rglob("*"))


@pytest.mark.parametrize("hashes", [{"sha256": SHA256}, {"sha1": SHA1}, {"git_blob": GIT_BLOB}])
def test_good_file_is_fetched_once_and_found_again(publish, server, hashes):
    publish("good", **{"sha256": None, **hashes})
    seen = []
    path = fetch_weights("imagenet", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == GOOD
    assert cached() == ["bvlc_alexnet.caffemodel"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert seen[-1] == (len(GOOD), len(GOOD))
    assert find_weights("bvlc_alexnet") == fetch_weights("bvlc_alexnet") == path
    assert server.served == ["good"]


@pytest.mark.parametrize("hashes", [{"sha256": SHA256}, {"sha1": SHA1}, {"git_blob": GIT_BLOB}])
def test_wrong_bytes_are_never_kept(publish, hashes):
    publish("wrong", **{"sha256": None, **hashes})
    with pytest.raises(WeightsError, match=r"served the right bytes.*127\.0\.0\.1") as caught:
        fetch_weights("bvlc_alexnet")
    assert "\n" not in str(caught.value)
    assert "./weights" in str(caught.value)
    assert cached() == []


@pytest.mark.parametrize("first", ["missing", "wrong", "cut", "stall", "drip"])
def test_next_mirror_is_asked(publish, server, first):
    publish(first, "good")
    started = time.monotonic()
    assert fetch_weights("bvlc_alexnet").read_bytes() == GOOD
    assert time.monotonic() - started < 5
    assert server.served == [first, "good"]
    assert cached() == ["bvlc_alexnet.caffemodel"]


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("missing", r"HTTP status 404"),
        ("cut", r"the connection broke off|the checksum is wrong"),
        ("stall", r"stalled after 0 bytes|no answer in time|no connection"),
        ("drip", r"stalled after 0 bytes"),
    ],
)
def test_failures_say_what_happened_and_leave_nothing(publish, what, text):
    publish(what)
    with pytest.raises(WeightsError, match=text):
        fetch_weights("bvlc_alexnet")
    assert cached() == []


def test_cut_file_without_checksum_is_not_kept(publish):
    publish("cut", sha256=None, size=None)
    with pytest.raises(WeightsError, match="broke off"):
        fetch_weights("bvlc_alexnet")
    assert cached() == []


def test_dead_and_silent_mirrors_do_not_hold_up_a_living_one(publish, server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(
            "http://127.0.0.1:9/bvlc_alexnet.caffemodel",
            f"http://127.0.0.1:{silent.getsockname()[1]}/bvlc_alexnet.caffemodel",
            "good",
        )
        started = time.monotonic()
        assert fetch_weights("bvlc_alexnet").read_bytes() == GOOD
        assert time.monotonic() - started < 0.95  # the grace, not the whole probe
    assert server.served == ["good"]


def test_no_network_is_known_in_time_whatever_the_name_server_does(publish, monkeypatch):
    publish("http://nowhere.invalid/bvlc_alexnet.caffemodel")
    released = threading.Event()

    def hang(*_, **__):
        released.wait(20)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"no mirror can be reached.*no answer in time.*network"):
        find_weights("imagenet")
    assert time.monotonic() - started < 2
    released.set()


def test_dead_proxy_is_named(publish, monkeypatch):
    publish("http://nowhere.invalid/bvlc_alexnet.caffemodel")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"the proxy does not answer.*proxy variables"):
        fetch_weights("bvlc_alexnet")


def test_interrupted_download_leaves_nothing(publish):
    publish("good")

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_weights("bvlc_alexnet", progress=interrupt)
    assert cached() == []


def test_offline_asks_nobody(publish, server, monkeypatch):
    publish("good")
    monkeypatch.setenv("TF_ALEXNET_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"TF_ALEXNET_OFFLINE is set\. Unset.*\./weights"):
        find_weights("imagenet")
    assert server.served == []
    monkeypatch.setenv("TF_ALEXNET_OFFLINE", "0")
    assert find_weights("imagenet").read_bytes() == GOOD


def test_damaged_file_in_the_cache_is_not_passed_off_as_fetched(publish):
    publish("good")
    fetch_weights("bvlc_alexnet").write_bytes(GOOD[:-1])
    with pytest.raises(WeightsError, match=r"262143 bytes.*Delete it"):
        fetch_weights("bvlc_alexnet")


def test_folder_that_is_a_file_and_full_disk(publish, tmp_path, server):
    publish("good")
    (tmp_path / "occupied").write_text("")
    with pytest.raises(OutputError, match=r"occupied: can't keep bvlc_alexnet\.caffemodel here"):
        fetch_weights("bvlc_alexnet", to=tmp_path / "occupied")
    publish("good", size=1 << 60)
    with pytest.raises(OutputError, match=r"bytes are free.*TF_ALEXNET_CACHE"):
        fetch_weights("bvlc_alexnet")
    assert server.served == []


def test_user_without_a_home(publish, monkeypatch):
    publish("good")
    monkeypatch.delenv("TF_ALEXNET_CACHE")
    monkeypatch.setattr("pooch.os_cache", lambda _: Path("~nobody-here/.cache/tf_alexnet"))
    with pytest.raises(OutputError, match=r"no home folder.*Set TF_ALEXNET_CACHE"):
        find_weights("imagenet")


def test_order_of_places_and_spellings(monkeypatch, tmp_path):
    def put(folder, name):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
        return folder / name

    monkeypatch.setenv("TF_ALEXNET_OFFLINE", "1")
    expected = put(tmp_path / "cache", "bvlc-alexnet.npy")
    assert find_weights("imagenet") == expected
    put(Path("weights"), "bvlc_alexnet.npy")
    assert find_weights("imagenet") == Path("weights/bvlc_alexnet.npy")
    put(Path("weights"), "bvlc_alexnet.caffemodel")
    assert find_weights("imagenet") == Path("weights/bvlc_alexnet.caffemodel")
    own = put(tmp_path / "own", "bvlc_alexnet.safetensors")
    monkeypatch.setenv("TF_ALEXNET_WEIGHTS", str(own.parent))
    assert find_weights("bvlc_alexnet") == own
    # A file stands for the default network under any name, for others only under theirs.
    mine = put(tmp_path, "mine.h5")
    monkeypatch.setenv("TF_ALEXNET_WEIGHTS", str(mine))
    assert find_weights("imagenet") == mine
    with pytest.raises(WeightsError, match=r"bvlc_reference_caffenet\.caffemodel is not on this"):
        find_weights("caffenet")
    monkeypatch.setenv("TF_ALEXNET_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(WeightsError, match=r"TF_ALEXNET_WEIGHTS=.*gone: there is no such"):
        find_weights("imagenet")


def test_embedded_network_needs_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_ALEXNET_OFFLINE", "1")
    path = find_weights("torchvision-convs")
    assert path.name == "torchvision_convs.safetensors"
    assert fetch_weights("torchvision-convs") == path
    copy = fetch_weights("torchvision-convs", to=tmp_path)
    assert copy.parent == tmp_path
    assert copy.read_bytes() == path.read_bytes()


def test_paths_names_and_folders(monkeypatch, tmp_path):
    file = tmp_path / "any.bin"
    file.write_bytes(b"x")
    assert find_weights(file) == find_weights(str(file)) == file
    with pytest.raises(WeightsError, match=r"'gone\.npy': neither a file nor.*imagenet, bvlc_al"):
        find_weights("gone.npy")
    with pytest.raises(WeightsError, match="this is a folder"):
        find_weights(tmp_path)
    for impossible in ("a\0b", "x" * 5000, "line\nbreak"):
        with pytest.raises(WeightsError, match="neither a file nor") as caught:
            find_weights(impossible)
        assert "\n" not in str(caught.value)
    # A folder of photos called like the weights must not hide them.
    Path("imagenet").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "bvlc_alexnet.npy").write_bytes(b"x")
    assert find_weights("imagenet").name == "bvlc_alexnet.npy"
