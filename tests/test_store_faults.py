"""Downloads under every fault, and what is remembered of files that were verified.

A few points of each fault by default; the whole campaign is `make faults`.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mirrors import GOOD, SHA256, serving

from tf_alexnet.errors import OutputError, WeightsError
from tf_alexnet.weights import (
    cache,
    fetch_weights,
    find_weights,
    identify_weights,
    known_weights,
    store,
    workplace,
)

CATALOG_MODULE = sys.modules[known_weights.__module__]
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
    impatience = {"PROBE": 2.0, "GRACE": 0.3, "STALL": 1.0, "PAUSE": 0.0}
    for name, seconds in impatience.items():
        monkeypatch.setattr(store, f"{name}_SECONDS", seconds)


@pytest.fixture
def publish(server, monkeypatch):
    """Put one record, served by `server`, in the catalogue's place."""

    def publish(*what, **changes):
        server.served.clear()
        server.sent = 0
        record = replace(known_weights("bvlc_alexnet"), **published(server, *what))
        record = replace(record, **changes)
        monkeypatch.setattr(CATALOG_MODULE, "_CATALOG", (record,))
        return record

    return publish


def published(server, *what):
    """Fields of a record for what this server does."""
    port = server.server_address[1]
    mirrors = tuple(f"http://127.0.0.1:{port}/{w}/{FILE}" for w in what)
    hashes = {"sha256": SHA256, "sha1": None, "git_blob": None}
    return {"mirrors": mirrors, "size": len(GOOD), **hashes}


def kept(folder=None):
    folder = Path(folder or os.environ["TF_ALEXNET_CACHE"])
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


FAULTS = {
    "wrong": "the checksum is wrong",
    "page": "the checksum is wrong",
    "empty": "the checksum is wrong",
    "silent_cut": "the checksum is wrong",
    "short": "the checksum is wrong",
    "long": f"more than {len(GOOD)} bytes",
    "packed": "ContentDecodingError",
    "endless": f"more than {len(GOOD)} bytes",
    "missing": "HTTP status 404",
    "busy": "HTTP status 503",
    "cut-0": "the connection broke off",
    "stall": "stalled after 0 bytes",
    "redirect-wrong": "the checksum is wrong",
    "redirect-loop": "it redirects without end",
    "redirect-ftp": "it redirects to something other than the web",
    "redirect-file": "it redirects to something other than the web",
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
    publish("endless", size=None, sha256=None)
    monkeypatch.setattr(store, "MOST_BYTES", 1_000_000)
    with pytest.raises(WeightsError, match="more than 1000000 bytes"):
        fetch_weights("imagenet")
    time.sleep(0.1)
    sent = server.sent
    time.sleep(0.2)
    assert server.sent == sent, "the abandoned thread still reads"


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
from tf_alexnet.weights import cache, fetch_weights, find_weights, known_weights, store, workplace
catalog, setting = sys.modules[known_weights.__module__], json.loads(sys.argv[1])
fields = {k: tuple(v) if isinstance(v, list) else v for k, v in setting["record"].items()}
catalog._CATALOG = (dataclasses.replace(known_weights("imagenet"), **fields),)
folder, good = os.environ.get("TF_ALEXNET_CACHE"), bytes(range(256)) * 1024
final = os.path.join(folder or "", "bvlc_alexnet.caffemodel")
store.GRACE_SECONDS, store.PAUSE_SECONDS = 0.3, 0
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
def leftovers():
    return [n for n in os.listdir(folder) if n.startswith(".download-")]
"""


def child(server, *what, script, cache_folder):
    """Run `script` after CHILD; what it printed, as JSON, and its standard error."""
    record = published(server, *what)
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1])}
    if cache_folder:
        variables["TF_ALEXNET_CACHE"] = str(cache_folder)
    command = [sys.executable, "-c", CHILD + script, json.dumps({"record": record})]
    ran = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=580)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout), ran.stderr


KILL = """
workplace.YOUNG_SECONDS = 0
os.makedirs(folder)
whole = most = during = 0
for moment in range(setting_count):
    process = forked(lambda: fetch_weights("imagenet"))
    time.sleep(random.Random(moment).uniform(0, 0.3))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    most, during = max(most, len(leftovers())), during + bool(leftovers())
    if os.path.exists(final):
        assert open(final, "rb").read() == good
        os.unlink(final)
        whole += 1
assert os.waitpid(forked(lambda: fetch_weights("imagenet")), 0)[1] == 0
assert open(final, "rb").read() == good
print(json.dumps({"whole": whole, "most": most, "during": during, "left": os.listdir(folder)}))
"""


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_downloads_leave_no_name_and_no_litter(server, tmp_path, count):
    script = KILL.replace("setting_count", str(count))
    found, _ = child(server, "slow-150", script=script, cache_folder=tmp_path / "cache")
    assert found["left"] == [FILE]
    assert found["most"] <= 1, "each run clears away what the one before left"
    assert found["during"] >= count / 4, "kills met downloads at work"
    print(found)


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
        f"{folder}: can't keep {FILE} here, file too large. Set TF_ALEXNET_CACHE to a folder with "
        f"room that you may write to, or put {FILE} into ./weights."
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
        for size, found in ((None, "no space left on device"), (len(GOOD), "bytes are free")):
            publish("good", size=size)
            with pytest.raises(OutputError, match=rf"small: .*{found}.* Set TF_ALEXNET_CACHE to"):
                fetch_weights("imagenet")
            assert kept() == []
        with pytest.raises(OutputError, match=r"small: .*\. Name a folder with room"):
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
cache.LEAST_BYTES = 0
try:
    path = find_weights("imagenet")
    print(json.dumps([str(path), cache.remembered_checksum(path, "sha256")]))
except AlexNetError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def test_cache_of_somebody_else(server):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        (kind, text), _ = child(server, "good", script=STRANGER, cache_folder=folder)
        assert kind == "OutputError"
        assert text.startswith(f"{folder}: can't keep {FILE} here, permission denied. Set TF_ALEX")
        os.chmod(folder, 0o755)
        (Path(folder) / FILE).write_bytes(GOOD)
        os.chmod(folder, 0o555)
        found, _ = child(server, "missing", script=STRANGER, cache_folder=folder)
        assert found == [str(Path(folder) / FILE), SHA256]
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


def test_offline_with_and_without_the_file(publish, monkeypatch, server):
    publish("good")
    monkeypatch.setenv("TF_ALEXNET_OFFLINE", "1")
    with pytest.raises(WeightsError, match=rf"{FILE} is not on this.*TF_ALEXNET_OFFLINE is set"):
        find_weights("imagenet")
    Path("cache").mkdir()
    Path("cache", FILE).write_bytes(GOOD)
    assert find_weights("imagenet") == Path("cache", FILE).absolute()
    assert server.served == []


def test_folders_in_use_are_left_alone_and_dead_ones_removed(tmp_path, monkeypatch):
    old = time.time() - 10
    with workplace.workplace(tmp_path) as place:
        (place / "part").write_bytes(b"half")
        for path in (place / "part", place):
            os.utime(path, (old, old))
        workplace.clear_leftovers(tmp_path)
        assert (place / "part").exists(), "its lock is held"
        dead = tmp_path / ".download-dead"
        fresh = tmp_path / ".download-fresh"
        dead.mkdir()
        fresh.mkdir()
        (dead / "part").write_bytes(b"half")
        for path in (dead / "part", dead):
            os.utime(path, (old, old))
        workplace.clear_leftovers(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([fresh, place])
        # Where folders can't be locked, age decides.
        monkeypatch.setitem(sys.modules, "fcntl", None)
        os.utime(fresh, (old, old))
        workplace.clear_leftovers(tmp_path)
        assert fresh.exists()
        os.utime(fresh, (old - 3600, old - 3600))
        workplace.clear_leftovers(tmp_path)
        assert not fresh.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def reads(monkeypatch):
    """Counts how often a file's checksum is computed; small and young files are remembered too."""
    computed = []

    def counted(path, algorithm, original=cache.file_checksum):
        computed.append(Path(path).name)
        return original(path, algorithm)

    monkeypatch.setattr(cache, "file_checksum", counted)
    monkeypatch.setattr(cache, "LEAST_BYTES", 0)
    monkeypatch.setattr(cache, "SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(cache, "_notes", {})
    return computed


def test_cached_file_is_verified_once(publish, reads):
    publish("good")
    path = fetch_weights("imagenet")
    for _ in range(3):
        assert find_weights("imagenet") == path
        assert identify_weights(path).how == "sha256"
        cache._notes.clear()  # as another process would have it
    assert reads == [FILE]
    assert len(list((path.parent / "checksums").iterdir())) == 1


def test_anything_that_changes_has_the_file_read_again(publish, reads, tmp_path):
    publish("good")
    path = fetch_weights("imagenet")
    find_weights("imagenet")
    status = path.stat()

    def again():
        before = len(reads)
        find_weights("imagenet")
        find_weights("imagenet")
        return len(reads) - before

    assert again() == 0
    os.utime(path, ns=(0, 0))
    assert again() == 1
    content = bytearray(path.read_bytes())
    path.write_bytes(content)
    assert again() == 1
    # Another inode of the same name, size and time of change.
    (tmp_path / "copy").write_bytes(content)
    os.utime(path, ns=(5, 5))
    assert again() == 1
    os.utime(tmp_path / "copy", ns=(5, 5))
    os.replace(tmp_path / "copy", path)
    assert path.stat().st_ino != status.st_ino
    assert again() == 1
    # Another path with the same everything: a hard link.
    Path("weights").mkdir()
    os.link(path, Path("weights") / "other")
    before = len(reads)
    assert identify_weights(Path("weights") / "other").how == "sha256"
    assert len(reads) == before + 1
    # Other bytes, with the times of the old ones put back.
    find_weights("imagenet")
    content[7] ^= 1
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=times)
    with pytest.raises(WeightsError, match=rf"{FILE}: its sha256 is .* Delete it and run"):
        find_weights("imagenet")


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_file_in_the_cache_is_refused_in_one_line(publish, reads, damage):
    publish("good")
    path = fetch_weights("imagenet")
    find_weights("imagenet")
    content = bytearray(GOOD)
    content[1000] ^= 64
    path.write_bytes({"flipped": content, "cut": GOOD[:-9], "empty": b""}[damage])
    with pytest.raises(WeightsError, match=rf"^{path}: .*Delete it and run `tf-al.*` again\.$"):
        find_weights("imagenet")
    path.unlink()
    assert find_weights("imagenet").read_bytes() == GOOD


def test_notes_that_are_damaged_lie_or_cannot_be_written(publish, reads, tmp_path):
    publish("good")
    path = fetch_weights("imagenet")
    find_weights("imagenet")
    (note,) = (path.parent / "checksums").iterdir()
    good = json.loads(note.read_text())
    lie = {**good, "checksums": {"sha256": "0" * 64}}
    odd = ("", "{", "[]", "7", "[" * 10**5, "\ud800", '{"file": 1}')
    for text in (*odd, json.dumps({**good, "checksums": 3}), json.dumps(lie)):
        note.write_bytes(text.encode("utf-8", "surrogatepass"))
        cache._notes.clear()
        assert find_weights("imagenet") == path
    # A note can never refuse a file, only spare its reading; nor accept another.
    note.unlink()
    cache._notes.clear()
    (path.parent / "checksums").rmdir()
    (path.parent / "checksums").write_text("a file in the way")
    del reads[:]
    assert find_weights("imagenet") == find_weights("imagenet") == path
    assert reads == [FILE], "this process remembers by itself"


def test_young_files_are_not_remembered(publish, reads, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED_SECONDS", 60.0)
    publish("good")
    path = fetch_weights("imagenet")
    find_weights("imagenet")
    find_weights("imagenet")
    assert reads == [FILE, FILE]
    assert kept() == [path.name]


def test_notes_by_many_threads(publish, reads):
    publish("good")
    fetch_weights("imagenet")
    failures = []

    def load():
        try:
            for _ in range(20):
                cache._notes.clear()
                find_weights("imagenet")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [n for n in kept() if n.endswith(".part")] == []
