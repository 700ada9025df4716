"""Finding and downloading, against servers on this machine only."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest
from mirrors import GIT_BLOB, GOOD, LENGTH, SHA1, SHA256, publisher, serving

from tf_alexnet.errors import OutputError, WeightsError
from tf_alexnet.weights import (
    Source,
    download,
    fetch_weights,
    find_weights,
    known_weights,
    read_weights,
    write_weights,
)

CATALOG_MODULE = sys.modules[known_weights.__module__]
FILE = "bvlc_alexnet.caffemodel"
EMBEDDED = find_weights("torchvision-convs")
HASHES = [f"sha256:{SHA256}", f"sha1:{SHA1}", f"git_blob:{GIT_BLOB}"]


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
    for name, seconds in {"CONNECT": 0.5, "READ": 0.6, "PAUSE": 0.0}.items():
        monkeypatch.setattr(download, f"{name}_SECONDS", seconds)


@pytest.fixture
def publish(server, monkeypatch):
    """Put one record, served here, in the catalogue's place."""
    return publisher(server, monkeypatch)


def cached():
    return sorted(str(p.name) for p in Path(os.environ["TF_ALEXNET_CACHE"]).rglob("*"))


@pytest.mark.parametrize("checksum", HASHES)
def test_good_file_is_fetched_once_and_found_again(publish, server, checksum):
    publish("good", checksum=checksum)
    seen = []
    path = fetch_weights("imagenet", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == GOOD
    assert cached() == [FILE]
    assert path.stat().st_mode & 0o777 == 0o644
    assert seen[-1] == (LENGTH, LENGTH)
    assert find_weights("bvlc_alexnet") == fetch_weights("bvlc_alexnet") == path
    assert server.served == ["good"]


@pytest.mark.parametrize("checksum", HASHES)
def test_wrong_bytes_are_never_kept(publish, checksum):
    publish("wrong", checksum=checksum)
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1:\d+: not the published file") as caught:
        fetch_weights("bvlc_alexnet")
    assert "\n" not in str(caught.value)
    assert "./weights" in str(caught.value)
    assert cached() == []


def test_next_source_is_asked_and_each_has_its_own_check(publish, server, tmp_path):
    """One set of weights, several files: the second is kept under its own name."""
    port = server.server_address[1]
    second = Source("other.onnx", (f"http://127.0.0.1:{port}/good/x",), LENGTH, f"sha256:{SHA256}")
    publish("wrong", others=(second,))
    assert fetch_weights("imagenet") == tmp_path / "cache" / "other.onnx"
    assert server.served == ["wrong", "good"]
    assert find_weights("imagenet").name == "other.onnx"
    (tmp_path / "cache" / "other.onnx").write_bytes(GOOD[::-1])
    for call in (find_weights, fetch_weights):
        with pytest.raises(WeightsError, match=r"other\.onnx: its sha256 is .*Delete it and run"):
            call("imagenet")


def test_a_conversion_of_ones_own_is_neither_refused_nor_passed_off(publish, server, tmp_path):
    """bvlc_alexnet.npy is a published name without a published size."""
    port = server.server_address[1]
    url = f"http://127.0.0.1:{port}/good/bvlc_alexnet.npy"
    publish("missing", others=(Source("bvlc_alexnet.npy", (url,), None, f"sha256:{SHA256}"),))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bvlc_alexnet.npy").write_bytes(b"converted")
    with pytest.raises(WeightsError, match="HTTP status 404"):
        fetch_weights("imagenet", to=tmp_path / "mine")
    publish("good", others=(Source("bvlc_alexnet.npy", (url,), None, f"sha256:{SHA256}"),))
    assert fetch_weights("imagenet", to=tmp_path / "mine").name == FILE
    assert (tmp_path / "mine" / "bvlc_alexnet.npy").read_bytes() == b"converted"


def test_without_a_checksum_a_file_must_be_readable(publish, server, tmp_path):
    """A captive portal's page never gets the name of weights."""
    publish("page", checksum=None, size=None)
    with pytest.raises(WeightsError, match="an HTML or XML page"):
        fetch_weights("imagenet")
    publish("good", checksum=None, size=None)
    with pytest.raises(WeightsError, match=r"no mirror served it \(127"):
        fetch_weights("imagenet")
    assert cached() == []
    server.content = EMBEDDED.read_bytes()
    assert fetch_weights("imagenet").read_bytes() == server.content


def test_dead_and_silent_mirrors_do_not_hold_up_a_living_one(publish, server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(
            f"http://127.0.0.1:9/{FILE}",
            f"http://127.0.0.1:{silent.getsockname()[1]}/{FILE}",
            "good",
        )
        started = time.monotonic()
        assert fetch_weights("bvlc_alexnet").read_bytes() == GOOD
        assert time.monotonic() - started < 2
    assert server.served == ["good"]


def test_no_network_is_told_in_one_line(publish, monkeypatch):
    publish(f"http://nowhere.invalid/{FILE}", f"http://127.0.0.1:9/{FILE}")

    def fail(*_, **__):
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(WeightsError, match=r"nowhere\.invalid: no connection; 127.*Check the netw"):
        find_weights("imagenet")


def test_dead_proxy_is_named(publish, monkeypatch):
    publish(f"http://nowhere.invalid/{FILE}")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"the proxy does not answer"):
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
    with pytest.raises(WeightsError, match=r"'imagenet': not on this machine\. Run `tf-alexnet w"):
        find_weights("imagenet", download=False)
    assert server.served == []
    monkeypatch.setenv("TF_ALEXNET_OFFLINE", "0")
    assert find_weights("imagenet").read_bytes() == GOOD


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_file_in_the_cache_is_refused(publish, damage):
    publish("good")
    path = fetch_weights("imagenet")
    flipped = GOOD[:1000] + b"!" + GOOD[1001:]
    path.write_bytes({"flipped": flipped, "cut": GOOD[:-9], "empty": b""}[damage])
    for call in (find_weights, fetch_weights):
        with pytest.raises(WeightsError, match=rf"^{path}: .*Delete it and run `tf-al.*` again"):
            call("imagenet")
    path.unlink()
    assert find_weights("imagenet").read_bytes() == GOOD


def test_fetch_leaves_files_and_folders_of_others_alone(publish, tmp_path):
    publish("good")
    folder = tmp_path / "mine"
    for name in (".download-old", "download", "tmpabcd"):
        (folder / name).mkdir(parents=True)
        (folder / name / "thesis.tex").write_text("mine")
        os.utime(folder / name, (0, 0))
    before = set(folder.rglob("*"))
    assert fetch_weights("imagenet", to=folder) == folder / FILE
    assert set(folder.rglob("*")) == before | {folder / FILE}


def test_folder_that_is_a_file_and_full_disk(publish, tmp_path, server):
    publish("good")
    (tmp_path / "occupied").write_text("")
    with pytest.raises(OutputError, match=r"occupied: can't save bvlc_alexnet\.caffemodel here"):
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
    for name in ("bvlc-alexnet.npy", "bvlc_alexnet.npy", "bvlcalexnet-12.onnx", FILE):
        put(Path("weights"), name)
        assert find_weights("imagenet") == find_weights("bvlc_alexnet-npy") == Path("weights", name)
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
    with pytest.raises(WeightsError, match="a folder, not a file"):
        read_weights(find_weights(tmp_path))
    for impossible in ("a\0b", "x" * 5000, "line\nbreak"):
        with pytest.raises(WeightsError, match="neither a file nor") as caught:
            find_weights(impossible)
        assert "\n" not in str(caught.value)
    # A folder of photos called like the weights must not hide them.
    Path("imagenet").mkdir()
    Path("weights").mkdir()
    Path("weights", "bvlc_alexnet.npy").write_bytes(b"x")
    assert find_weights("imagenet").name == "bvlc_alexnet.npy"


def test_another_network_under_the_name_that_was_asked_for(monkeypatch, tmp_path):
    convs = read_weights(find_weights("torchvision-convs"))
    Path("weights").mkdir()
    write_weights(convs, "weights/bvlc_alexnet.npy")
    match = r"bvlc_alexnet\.npy: found as bvlc_alexnet, but it is torchvision \(by fingerprint\)"
    with pytest.warns(UserWarning, match=match):
        read_weights(find_weights("imagenet"))
    with pytest.warns(UserWarning, match=match):
        read_weights(Path("weights/bvlc_alexnet.npy").absolute())
    write_weights(convs, tmp_path / "mine.h5")
    read_weights(tmp_path / "mine.h5")  # a path that was asked for is what was asked for
    monkeypatch.setenv("TF_ALEXNET_WEIGHTS", str(tmp_path / "mine.h5"))
    with pytest.warns(UserWarning, match=r"mine\.h5: found as bvlc_alexnet, but it is torchvis"):
        read_weights(find_weights("imagenet"))
    write_weights(convs, "weights/alexnet-owt-7be5be79.safetensors")
    read_weights("weights/alexnet-owt-7be5be79.safetensors")  # the network of that name
