"""Jobs whose processes are killed at random moments: nothing is lost, doubled or wrong.

`make kill-tests` runs the campaigns, `make test` a few kills. What is killed is the whole process
group, the program alone, or any process that works for it: a decoder, a worker of Ray's. Then the
same command is given again, up to three times; the last time it may end.
"""

import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import jobs
import numpy as np
import pytest
from test_job import check, data_files, files_below, read, records
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
    pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="kills-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    yield
    until = time.monotonic() + 30
    while left := [pid for pid, _ in processes()]:
        assert time.monotonic() < until, f"still running: {left}"
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


def processes():
    """Ids and command lines of what jobs of this test have running."""
    mine = f"JOBS_LOG={os.environ['JOBS_LOG']}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            if mine in environment and int(folder.name) != os.getpid():
                yield int(folder.name), (folder / "cmdline").read_bytes()


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
    length = (time.monotonic() - begun) * (4 if cluster else 1)
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
            done = [name for record in records(output) if (name := record["data"])]
            now = {x: os.stat(x).st_ino for x in data_files(output) if os.path.basename(x) in done}
            assert len(now) == len(done), "what is recorded is there"
            assert now.items() >= kept.items() or not now, "a recorded shard is done once"
            kept = now
        killed += toll.kills
        finish_with_errors(start(seconds, "photos", "-o", output, *cluster))
        if seconds is not None:
            check(output, *parted(photos))
            assert 20 <= os.path.getsize("log") <= 20 + toll.photos
        layer = "pool5" if seconds is None else "fc7"
        compare(output, f"whole/{output}", layer, exactly=not cluster)
        left = files_below(f"{output}.job")  # F.job/ and X/.job/
        assert not [name for name in left if name.startswith(("tmp-", ".lock", ".holder"))]
        if not output.endswith("/"):
            assert not os.path.exists(f"{output}.job")
    assert not [name for name in os.listdir(".") if name.startswith(".")]


def compare(output, whole, layer="fc7", *, exactly=False):
    """An output is what an unbroken run made; of a cluster's, each row."""
    (rows, failed), (wanted, reasons) = read(output, layer), read(whole, layer)
    assert failed == reasons
    assert set(rows) == set(wanted)
    largest = max(np.abs(row).max() for row in wanted.values())
    bound = 0 if exactly else 1e-6 * largest
    assert all(np.abs(row - wanted[x]).max() <= bound for x, row in rows.items())
    assert not exactly or list(rows) == list(wanted), "in the same order"


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
