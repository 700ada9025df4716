"""Jobs on Ray: the same rows, each runner goes on from the other's work, workers may die."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import EXAMPLE_PHOTOS

import tf_alexnet as ta
from tf_alexnet.errors import AlexNetError, OutputError, UsageError, WeightsError
from tf_alexnet.extraction import ray_cluster
from tf_alexnet.extraction.manifest import ShardRecord
from tf_alexnet.extraction.plan import Shard, fair_size, plan_shards
from tf_alexnet.extraction.ray_cluster import RayCrew, shares
from tf_alexnet.extraction.storage import LocalFolder
from tf_alexnet.weights import find_weights


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """A Ray of two processors, started in another folder than the jobs."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray = pytest.importorskip("ray")
    here = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    ray.init("local", num_cpus=2, object_store_memory=2**28, **quiet)
    os.chdir(here)
    yield ray
    ray.shutdown()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """26 photos and two bad ones, by relative paths."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("photos")
    originals = sorted(EXAMPLE_PHOTOS.glob("*.jpg"))
    for i in range(26):
        shutil.copy(originals[i % len(originals)], f"photos/{i:02d}.jpg")
    shutil.copy("photos/00.jpg", "photos/odd\udcff\n.jpg")
    Path("photos/05b.jpg").write_text("no picture")
    Path("photos/bad\udcff.jpg").touch()
    return "photos"


def extract(images, output, **arguments):
    settings = {"weights": "torchvision-convs", "layers": ["pool5"], "pool": "avg"}
    settings |= {"shard_size": 8, "batch_size": 4, **arguments}
    return ta.extract_features(images, output, **settings)


def rows_of(path):
    with h5py.File(path) as file:
        return file["paths"][:].tolist(), file["pool5"][:], file["errors/codes"][:].tolist()


def stop_after(photos):
    def progress(done, *_):
        if done >= photos:
            raise KeyboardInterrupt

    return progress


def running_shards():
    """Ids of the processes of Ray workers that are at a shard."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::_Worker"):
            found.append(int(folder.name))
    return found


def test_shares():
    small, large = {"CPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}
    assert shares([small], None, None) == (1, 2, 0)
    assert shares([small], 2, None) == (2, 1, 0)
    assert shares([small], 5, None) == (5, 1, 0)  # three wait for a place
    assert shares([{"CPU": 16}], None, None) == (4, 4, 0)
    assert shares([large], None, None) == (4, 4, 1)
    assert shares([large], 8, None) == (8, 2, 0.5)
    assert shares([large], 5, None) == (5, 3, 0.5)
    assert shares([large], 2, None) == (2, 8, 1)
    assert shares([large], None, 0.25) == (16, 1, 0.25)
    assert shares([large], None, 0) == (4, 4, 0)
    # No worker is larger than a machine: 12 processors in threes of four are not two of six.
    assert shares([{"CPU": 4}] * 3, 2, None) == (2, 4, 0)
    assert shares([{"CPU": 4}] * 3, 5, None) == (5, 2, 0)
    assert shares([{"node": 1}], None, None) == (1, 1, 0)  # a head that does no work itself


def test_fair_size():
    assert fair_size(4096, 1_000_000, 2, 64) == 4096
    assert fair_size(4096, 5000, 1, 64) == 4096
    assert fair_size(4096, 5000, 2, 64) == 640  # whole batches: 625 would part one
    assert fair_size(4096, 10, 2, 64) == 64
    assert fair_size(40, 5000, 2, 64) == 40, "never more than was asked for"
    assert fair_size(4096, 0, 2, 64) == 64
    paths = [str(i) for i in range(5000)]
    assert sum(len(shard.paths) for shard in plan_shards(paths, 640)) == 5000


def test_rows_are_those_of_a_local_run(ray, photos):
    local = extract(photos, "local.h5")
    report = extract(photos, "one.h5", cluster="ray", workers=1)
    assert (report.rows, report.errors) == (27, local.errors)
    assert [failure.code for failure in report.errors] == ["not_an_image", "empty"]
    paths, rows, codes = rows_of("local.h5")
    assert np.ptp(rows, axis=0).max() > 0.1, "rows tell photos apart"
    # One worker has all processors, and the batches of a local run.
    assert Path("one.h5").read_bytes() == Path("local.h5").read_bytes()
    arrays = ta.read_weights(find_weights("torchvision-convs"))
    extract(photos, "two.h5", weights=arrays, cluster="ray", cluster_workers=2, workers=1)
    there = rows_of("two.h5")
    assert (there[0], there[2]) == (paths, codes)
    assert np.abs(there[1] - rows).max() <= 1e-6 * np.abs(rows).max()


@pytest.mark.slow
def test_each_goes_on_from_the_others_work(ray, photos):
    extract(photos, "whole.h5")
    cluster = {"cluster": "ray", "cluster_workers": 2, "workers": 1}
    for output, first, then in (("a.h5", cluster, {}), ("b.h5", {}, cluster)):
        with pytest.raises(KeyboardInterrupt):
            extract(photos, output, progress=stop_after(9), **first)
        done = sorted(os.listdir(f"{output}.job/shards"))
        assert done, "what was finished is kept"
        assert all(name.startswith("shard-") for name in done), "what was not is gone"
        kept = extract(photos, output, **then).kept
        assert 4 <= kept <= 24
        for found, wanted in zip(rows_of(output), rows_of("whole.h5"), strict=True):
            if isinstance(wanted, list):
                assert sorted(found) == sorted(wanted)
        order = {path: i for i, path in enumerate(rows_of("whole.h5")[0])}
        paths, rows, _ = rows_of(output)
        wanted = rows_of("whole.h5")[1][[order[path] for path in paths]]
        assert np.abs(rows - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing_but_time(ray, photos):
    extract(photos, "whole.h5")
    killed = []

    def progress(*_):
        if not killed:
            killed.extend(running_shards())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    with pytest.warns(RuntimeWarning, match=r"a worker ended over shard-.* \(The actor died .*\)"):
        extract(photos, "f.h5", cluster="ray", workers=1, shard_size=4, progress=progress)
    assert killed
    assert rows_of("f.h5")[0] == rows_of("whole.h5")[0]
    wanted = rows_of("whole.h5")[1]
    assert np.abs(rows_of("f.h5")[1] - wanted).max() <= 1e-6 * np.abs(wanted).max()


def stub(run=None, job=lambda: {"layers": "fc7"}):
    """What makes a worker that holds no network."""

    class Worker:  # a class of a function travels as a whole: workers need not find this file
        def __init__(self, workers):
            self.job, self.settings = job(), workers

        def run_shard(self, shard, folder, watch):
            name = f"{shard.name}.h5"
            with folder.writing(name) as file:
                file.write(b"x")
                if run:
                    run(shard)
            return ShardRecord(name, 1, 1, 0, 1)

    return Worker


def run_all(crew, folder, count):
    folder.mkdir()
    shards = [Shard(i, f"shard-{i:06d}", [f"{i}.jpg"]) for i in range(count)]
    with crew:
        return [shard.number for shard, _ in crew.run(shards, LocalFolder(folder), print)]


def test_a_shard_that_ends_every_worker_ends_the_job(ray, tmp_path):
    def deadly(shard):
        if shard.number == 1:
            os._exit(9)

    crew = RayCrew("ray", stub(deadly), places=2)
    with pytest.warns(RuntimeWarning, match="shard-000001"), pytest.raises(AlexNetError) as caught:
        run_all(crew, tmp_path / "f", 2)
    assert str(caught.value).startswith(
        "shard shard-000001, from 1.jpg: 3 workers ended over it, the last with: The actor died"
    )
    assert sorted(os.listdir(tmp_path / "f")) == ["shard-000000.h5"]


def test_more_workers_than_shards_and_more_than_there_is_room_for(ray, tmp_path):
    begun = time.monotonic()
    assert sorted(run_all(RayCrew("ray", stub(), places=7), tmp_path / "f", 3)) == [0, 1, 2]
    assert run_all(RayCrew("ray", stub(), places=7), tmp_path / "none", 0) == []
    assert time.monotonic() - begun < 20
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() - begun < 20, "none is kept"
        time.sleep(0.1)


def test_workers_that_do_not_start(ray, tmp_path):
    def never():
        os._exit(7)

    with pytest.raises(AlexNetError, match=r"workers, at their start: 3 workers ended over it"):
        run_all(RayCrew("ray", stub(job=never), places=1), tmp_path / "f", 1)


def test_workers_with_other_packages(ray, tmp_path):
    def each_its_own():
        return {"pillow_version": str(os.getpid())}

    def slow(shard):
        time.sleep(0.1)

    crew = RayCrew("ray", stub(slow, each_its_own), places=2)
    with pytest.raises(UsageError, match=r"don't agree \(pillow_version \d+ -> \d+\)\. Install"):
        run_all(crew, tmp_path / "f", 400)


def test_what_a_worker_meets_is_told_as_it_is(ray, tmp_path):
    def refuse(shard):
        raise WeightsError(shard.name, "no", "Yes.")

    with pytest.raises(WeightsError, match=r"^shard-000000: no\. Yes\.$"):
        run_all(RayCrew("ray", stub(refuse), places=1), tmp_path / "f", 1)
    assert not os.listdir(tmp_path / "f")


def test_an_output_that_is_another_one_elsewhere(ray, tmp_path, monkeypatch):
    def away(shard):
        os.rename(tmp_path / "f", tmp_path / "g")
        os.mkdir(tmp_path / "f")

    class Worker(stub()):
        def run_shard(self, shard, folder, watch):
            record = super().run_shard(shard, folder, watch)
            away(shard)
            return record

    monkeypatch.setattr(ray_cluster, "_VISIBLE_SECONDS", 0.5)
    with pytest.raises(OutputError, match=r"shard-000000\.h5: a worker wrote it, and it is not he"):
        run_all(RayCrew("ray", Worker, places=1), tmp_path / "f", 1)


def test_a_job_begins_with_the_fewest_workers(ray, tmp_path, monkeypatch):
    def each_its_own(shard):
        time.sleep(0.2)
        Path(tmp_path / str(os.getpid())).touch()

    crew = RayCrew("ray", stub(each_its_own), places=2, fewest=2)
    assert sorted(run_all(crew, tmp_path / "f", 2)) == [0, 1]
    assert len([name for name in os.listdir(tmp_path) if name.isdigit()]) == 2
    with pytest.raises(UsageError, match="at least 3 workers: there will be 2 at most"):
        run_all(RayCrew("ray", stub(), places=2, fewest=3), tmp_path / "g", 1)
    monkeypatch.setattr(ray_cluster, "_PLACE_SECONDS", 8.0)
    with pytest.raises(UsageError, match="had place for 2 of 3 in 8 seconds"):
        run_all(RayCrew("ray", stub(), places=3, fewest=3), tmp_path / "h", 1)


def test_no_place_for_a_worker(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_PLACE_SECONDS", 1.0)
    with pytest.raises(
        UsageError, match=r"1 processors and 1 GPUs: the cluster had place for 0 of 1 in"
    ):
        run_all(RayCrew("ray", stub(), places=2, gpus=1), tmp_path / "f", 1)


def test_addresses_that_lead_nowhere(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster, "_CONNECT_SECONDS", 4.0)
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"cluster 127.0.0.1:1: no Ray answers there within 4 sec"):
        run_all(RayCrew("127.0.0.1:1", stub()), tmp_path / "f", 1)
    assert time.monotonic() - begun < 8
    with pytest.raises(UsageError, match=r"nonsense: Invalid address format: nonsense\. Start one"):
        RayCrew("nonsense", stub()).__enter__()


def test_calls_that_make_no_sense(monkeypatch, photos):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"Ray is not installed. .*pip install 'tf-alexnet\[ray\]"):
        extract(photos, "f.h5", cluster="ray")
    for arguments in ({"cluster_workers": 2}, {"gpus_per_worker": 1}):
        with pytest.raises(UsageError, match="none is named"):
            extract(photos, "f.h5", **arguments)
    for wrong in ({"cluster_workers": 0}, {"gpus_per_worker": 1.5}, {"gpus_per_worker": -1}):
        with pytest.raises(UsageError):
            extract(photos, "f.h5", cluster="ray", **wrong)
    assert os.listdir(".") == ["photos"]


def command(*arguments):
    words = ["extract", "photos", "-o", "f.h5", "-w", "torchvision-convs", "-l", "pool5"]
    words += ["--pool", "avg", "--shard-size", "4", "--batch", "4", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-m", "tf_alexnet", *words], start_new_session=True, **pipes
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_program_with_a_ray_of_its_own_is_stopped(number, code, photos):
    pytest.importorskip("ray")
    extract(photos, "whole.h5")
    before = set(running_shards())
    for i in range(400):
        os.link("photos/00.jpg", f"photos/more{i}.jpg")
    process = command("--cluster", "ray", "--cluster-workers", "2", "--workers", "1")
    shards = Path("f.h5.job/shards")
    while not shards.is_dir() or len(list(shards.glob("shard*"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    asked = time.monotonic()
    process.send_signal(number)
    assert process.communicate() == ("", "")
    assert process.returncode == code
    assert time.monotonic() - asked < 10
    while set(running_shards()) - before:
        assert time.monotonic() - asked < 10, "nothing is left running"
        time.sleep(0.1)
    out, err = command().communicate()
    assert "427 rows + 2 errors = 429 photos" in out, err
    assert not Path("f.h5.job").exists()
    found, wanted = rows_of("f.h5"), rows_of("whole.h5")
    assert len(set(found[0])) == 427
    rows = dict(zip(found[0], found[1], strict=True))
    for path, row in zip(wanted[0], wanted[1], strict=True):
        assert np.abs(rows[path] - row).max() <= 1e-6 * np.abs(wanted[1]).max()
