"""Downloads under every fault.

A few points of each fault by default; the whole campaign is `make faults`.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mirrors import GOOD, LENGTH, SHA256, publisher, serving

from tf_alexnet.errors import OutputError, WeightsError
from tf_alexnet.weights import download, fetch_weights

FILE = "bvlc_alexnet.caffemodel"


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """An empty working folder and cache, no variables, no proxy, and no patience."""
    for name in list(os.environ):
        if name.startswith("TF_ALEXNET_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TF_ALEXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, seconds in {"CONNECT": 1.0, "READ": 1.0, "PAUSE": 0.0}.items():
        monkeypatch.setattr(download, f"{name}_SECONDS", seconds)


@pytest.fixture
def publish(server, monkeypatch):
    """Put one record, served by `server`, in the catalogue's place."""
    return publisher(server, monkeypatch)


def kept(folder=None):
    folder = Path(folder or os.environ["TF_ALEXNET_CACHE"])
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


FAULTS = {
    "wrong": "its sha256 is",
    "page": f"17 bytes, but {FILE} has {LENGTH}",
    "empty": "0 bytes, but",
    "silent_cut": f"{LENGTH // 2} bytes, but",
    "short": f"{LENGTH - 1} bytes, but",
    "long": f"more than {LENGTH} bytes",
    "packed": "ContentDecodingError",
    "endless": f"more than {LENGTH} bytes",
    "missing": "HTTP status 404",
    "busy": "HTTP status 503",
    "cut-0": "the connection broke off",
    "stall": "no connection",
    "redirect-wrong": "its sha256 is",
    "redirect-loop": "too many redirects",
    "redirect-ftp": "it redirects to something that is not HTTP",
    "redirect-file": "it redirects to something that is not HTTP",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_and_leaves_nothing(publish, fault):
    publish(fault)
    with pytest.raises(WeightsError) as caught:
        fetch_weights("imagenet")
    assert FAULTS[fault] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert f"put {FILE} into ./weights or the folder TF_ALEXNET_WEIGHTS" in str(caught.value)
    assert kept() == []
    publish(fault, "good")
    assert fetch_weights("imagenet").read_bytes() == GOOD
    assert kept() == [FILE]


@pytest.mark.parametrize("way", ["flaky", "redirect-good", "redirect-redirect-good"])
def test_detours_that_lead_to_the_file(publish, way):
    publish(way)
    assert fetch_weights("imagenet").read_bytes() == GOOD


def test_only_failures_that_may_pass_are_tried_again(publish, server):
    for what, times in (("busy", 2), ("cut-1", 2), ("missing", 1), ("wrong", 1), ("endless", 1)):
        publish(what)
        with pytest.raises(WeightsError):
            fetch_weights("imagenet")
        assert len(server.served) == times, what


def test_endless_transfer_is_broken_off(publish, server, monkeypatch):
    publish("endless", size=None, checksum=None)
    monkeypatch.setattr(download, "MOST_BYTES", 1_000_000)
    with pytest.raises(WeightsError, match="more than 1000000 bytes"):
        fetch_weights("imagenet")
    assert kept() == []


def cuts(count):
    """Lengths at which a transfer ends: spread over the file, and at its edges."""
    inner = (len(GOOD) * i // (count - 3) for i in range(1, count - 3))
    return [0, 1, len(GOOD) - 1, *inner][:count]


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_transfers_cut_anywhere(publish, count):
    lengths = cuts(count)
    assert len(set(lengths)) == count - 1
    for length in lengths:
        publish(f"cut-{length}")
        with pytest.raises(WeightsError, match="the connection broke off"):
            fetch_weights("imagenet")
        assert kept() == []
    publish(f"cut-{lengths[-1]}", "good")
    assert fetch_weights("imagenet").read_bytes() == GOOD


# A process that has imported everything and forks: killing costs no start-up.
CHILD = """
import dataclasses, json, os, random, resource, signal, sys, time
import pooch, requests
from tf_alexnet.errors import AlexNetError
from tf_alexnet.weights import Source, download, fetch_weights, find_weights, known_weights
catalog, (urls, size, checksum) = sys.modules[known_weights.__module__], json.loads(sys.argv[1])
source = Source("bvlc_alexnet.caffemodel", tuple(urls), size, checksum)
catalog._CATALOG = (dataclasses.replace(known_weights("imagenet"), sources=(source,)),)
folder, good = os.environ.get("TF_ALEXNET_CACHE"), bytes(range(256)) * 1024
final = os.path.join(folder or "", "bvlc_alexnet.caffemodel")
download.PAUSE_SECONDS = 0
def forked(action):
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__} {error}\\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return child
"""


def child(server, *what, script, cache_folder):
    """Run `script` after CHILD; what it printed, as JSON, and its standard error."""
    port = server.server_address[1]
    urls = [f"http://127.0.0.1:{port}/{w}/{FILE}" for w in what]
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1])}
    if cache_folder:
        variables["TF_ALEXNET_CACHE"] = str(cache_folder)
    setting = json.dumps([urls, LENGTH, f"sha256:{SHA256}"])
    command = [sys.executable, "-c", CHILD + script, setting]
    ran = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=580)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout), ran.stderr


KILL = """
os.makedirs(folder)
whole = 0
for moment in range(setting_count):
    process = forked(lambda: fetch_weights("imagenet"))
    time.sleep(random.Random(moment).uniform(0, 0.3))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    if os.path.exists(final):
        assert open(final, "rb").read() == good
        os.unlink(final)
        whole += 1
assert os.waitpid(forked(lambda: fetch_weights("imagenet")), 0)[1] == 0
assert open(final, "rb").read() == good
print(json.dumps({"whole": whole, "left": os.listdir(folder)}))
"""


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_downloads_never_leave_a_wrong_file(server, tmp_path, count):
    script = KILL.replace("setting_count", str(count))
    found, _ = child(server, "slow-150", script=script, cache_folder=tmp_path / "cache")
    others = [name for name in found["left"] if name != FILE]
    assert all(name.startswith("tmp") for name in others)
    assert len(others) >= count / 4, "kills met downloads at work"


MANY = """
os.makedirs(folder)
started = [forked(lambda: find_weights("imagenet")) for _ in range(16)]
codes = [os.waitpid(process, 0)[1] for process in started]
assert open(final, "rb").read() == good
print(json.dumps([codes, os.listdir(folder)]))
"""


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_sixteen_processes_fill_an_empty_cache(server, tmp_path, rounds):
    for number in range(rounds):
        what = ("flaky", "slow-200", "wrong", "good")[number % 2 :]
        server.served.clear()
        found, errors = child(server, *what, script=MANY, cache_folder=tmp_path / f"c{number}")
        assert found == [[0] * 16, [FILE]], errors


LIMITED = """
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    fetch_weights("imagenet")
except AlexNetError as error:
    print(json.dumps([type(error).__name__, str(error), os.listdir(folder)]))
"""


def test_disk_quota(server, tmp_path):
    folder = tmp_path / "cache"
    (kind, text, left), _ = child(server, "good", script=LIMITED, cache_folder=folder)
    assert (kind, left) == ("OutputError", [])
    assert text == (
        f"{folder}: can't save {FILE} here, file too large. Set TF_ALEXNET_CACHE to a "
        f"writable folder with enough space, or put {FILE} into ./weights."
    )


@contextlib.contextmanager
def mounted(folder, *options):
    """A small file system, where this user may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    try:
        failed = subprocess.run(command, capture_output=True).returncode
    except FileNotFoundError:
        failed = True
    if failed:
        pytest.skip("no right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(publish, tmp_path, monkeypatch):
    with mounted(tmp_path / "small", "size=128k") as folder:
        monkeypatch.setenv("TF_ALEXNET_CACHE", str(folder))
        for size, found in ((None, "no space left on device"), (LENGTH, "bytes are free")):
            publish("good", size=size)
            with pytest.raises(OutputError, match=rf"small: .*{found}.* Set TF_ALEXNET_CACHE to"):
                fetch_weights("imagenet")
            assert kept() == []
        with pytest.raises(OutputError, match=r"small: .*\. Name a writable folder"):
            fetch_weights("imagenet", to=folder)


def test_read_only_file_system(publish, tmp_path, monkeypatch):
    with mounted(tmp_path / "fixed", "ro") as folder:
        monkeypatch.setenv("TF_ALEXNET_CACHE", str(folder))
        publish("good")
        with pytest.raises(OutputError, match=r"fixed: .*read-only file system\. Set TF_ALEXNET_C"):
            fetch_weights("imagenet")


STRANGER = """
if os.geteuid() == 0:
    os.setuid(54321)  # nobody: neither rights nor a home
try:
    print(json.dumps(str(find_weights("imagenet"))))
except AlexNetError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def test_cache_of_somebody_else(server):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        (kind, text), _ = child(server, "good", script=STRANGER, cache_folder=folder)
        assert kind == "OutputError"
        assert text.startswith(f"{folder}: can't save {FILE} here, permission denied. Set TF_ALEX")
        os.chmod(folder, 0o755)
        (Path(folder) / FILE).write_bytes(GOOD)
        os.chmod(folder, 0o555)
        found, _ = child(server, "missing", script=STRANGER, cache_folder=folder)
        assert found == str(Path(folder) / FILE)
        assert kept(folder) == [FILE]
        os.chmod(folder, 0o755)
        (Path(folder) / FILE).chmod(0o000)
        (kind, text), _ = child(server, "missing", script=STRANGER, cache_folder=folder)
        assert (kind, "it can't be read (Permission denied)" in text) == ("WeightsError", True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a home")
def test_user_that_the_system_does_not_know(server):
    (kind, text), _ = child(server, "good", script=STRANGER, cache_folder=None)
    assert kind == "OutputError"
    assert "there is no home folder to keep downloads in. Set TF_ALEXNET_CACHE" in text
