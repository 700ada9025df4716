"""Jobs whose processes are killed at random moments: nothing is lost, doubled or wrong.

`make kill-tests` runs the campaigns, `make faults` a few kills. What is killed is the whole process
group, the program alone, or any process that works for it: a decoder, a worker of Ray's. Then the
same command is given again, up to three times; the last time it may end.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import jobs
import pytest
from jobs import processes
from test_job import check, read
from test_job_faults import finish_with_errors, parted, remove, start

SHARD = 4  # photos, as `start` has it
RAY = ("--cluster", "ray", "--cluster-workers", "2")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two bad photos among 22, in a working folder; pictures that were computed are counted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOBS_LOG", str(tmp_path / "log"))
    paths = jobs.photos(Path("photos"), 22)
    for path in (paths[5], paths[17]):
        Path(path).write_text("no picture")
    os.mkdir("whole")
    return paths


@pytest.fixture
def ray_folder(monkeypatch):
    """Where Ray keeps what killed programs leave behind; the path of a socket is short."""
    folder = tempfile.mkdtemp(prefix="kills-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    yield
    # Agents whose raylet was killed as it started them look for it for more than a minute.
    until = time.monotonic() + 180
    while left := [pid for pid, _ in processes()]:
        assert time.monotonic() < until, f"still running: {left}"
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


def kill_one(kinds):
    """Kill a process whose command line has one of some words; False if there is none."""
    found = [pid for pid, line in processes() if any(kind in line for kind in kinds)]
    if not found:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(random.choice(found), signal.SIGKILL)
    return True


class Toll:
    """What kills may cost: photos that are computed twice."""

    def __init__(self, places):
        self.places, self.kills, self.photos = places, 0, 0

    def of_program(self, process, group):
        if process.poll() is None:
            self.kills += 1
            self.photos += SHARD * self.places
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)

    def of_worker(self):
        if kill_one([b"ray::_Worker"]):
            self.kills += 1
            self.photos += SHARD

    def of_decoder(self):
        if kill_one([b"tf_alexnet.extraction.decoder"]):
            self.kills += 1


def kill_often(output, photos, kills, seed, seconds=0.05, cluster=()):
    """Kill a job's processes at random moments; then let one end, and look at what it made."""
    random.seed(seed)
    begun = time.monotonic()
    finish_with_errors(start(seconds, "photos", "-o", f"whole/{output}"))
    if cluster:
        begun = time.monotonic()
        finish_with_errors(start(seconds, "photos", "-o", output, *cluster))
    length = time.monotonic() - begun
    killed = 0
    while killed < kills:
        remove(output)
        Path("log").write_bytes(b"")
        toll, kept = Toll(2 if cluster else 1), {}
        for _ in range(3):  # the same job up to three times
            process = start(seconds, "photos", "-o", output, *cluster)
            time.sleep(random.uniform(0.1, 1) * length)
            if random.random() < 0.4:
                toll.of_decoder()
                time.sleep(random.uniform(0, 0.2) * length)
            if cluster and random.random() < 0.6:
                toll.of_worker()
                time.sleep(random.uniform(0, 0.4) * length)
            toll.of_program(process, random.random() < 0.7)
            out, err = process.communicate()
            assert process.returncode in (-9, 5), (out, err)
            now = records(output)
            ended = not os.path.exists(f"{output}.job/job.json")  # its records are deleted then
            assert now.items() >= kept.items() or ended, "a record stays as it is"
            kept = now
        killed += toll.kills
        finish_with_errors(start(seconds, "photos", "-o", output, *cluster))
        if seconds is not None:
            check(output, *parted(photos))
            assert 20 <= os.path.getsize("log") <= 20 + toll.photos
        assert_same(output, f"whole/{output}", "fc7" if seconds is not None else "pool5")
        assert_tidy(output)
    assert not [name for name in os.listdir(".") if name.startswith(".")]


def records(output):
    """Name -> inode of what makes shards of an unfinished file, or of a folder, count."""
    found = Path(f"{output}.job").glob("[0-9]*.json")
    return {path.name: path.stat().st_ino for path in found}


def assert_same(output, whole, layer):
    """An output has the rows and failures of an unbroken run, bit for bit."""
    (rows, failed), (wanted, reasons) = read(output, layer), read(whole, layer)
    assert failed == reasons
    assert rows.keys() == wanted.keys()
    assert all(row.tobytes() == wanted[path].tobytes() for path, row in rows.items())


def assert_tidy(output):
    """Nothing lies about that is not part of an output."""
    if not output.endswith("/"):
        assert not os.path.exists(f"{output}.job")
        return
    manifest = json.loads(Path(output, "_manifest.json").read_text())
    names = {".job", "_errors.csv", "_manifest.json", *(x["name"] for x in manifest["shards"])}
    assert set(os.listdir(output)) == names
    for name in os.listdir(f"{output}.job"):
        assert re.fullmatch(r"job\.json|\d{6}-[0-9a-f]{16}\.json", name), name


@pytest.mark.slow
@pytest.mark.parametrize("output", ["f.h5", "f.parquet/"])
def test_killed_at_random_moments(output, photos):
    kill_often(output, photos, 3, seed=time.time_ns() % 1000)


@pytest.mark.kills
@pytest.mark.parametrize(
    ("output", "kills"),
    [("f.h5", 20), ("f.npz", 16), ("f.npy", 16), ("f.parquet", 16), ("f/", 16), ("f.parquet/", 16)],
)
def test_killed_many_times(output, kills, photos):
    kill_often(output, photos, kills, seed=1)


@pytest.mark.kills
@pytest.mark.parametrize(
    ("output", "kills"),
    [("f.h5", 20), ("f.npz", 16), ("f.npy", 16), ("f.parquet", 16), ("f/", 16), ("f.parquet/", 16)],
)
def test_killed_many_times_on_ray(output, kills, photos, ray_folder):
    kill_often(output, photos, kills, seed=3, seconds=0.2, cluster=RAY)


@pytest.mark.kills
@pytest.mark.parametrize("output", ["f.h5", "f.parquet/"])
def test_killed_with_the_real_network(output, photos):
    kill_often(output, photos, 20, seed=2, seconds=None)
