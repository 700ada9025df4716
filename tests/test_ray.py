"""Jobs on Ray: the same rows, each runner goes on from the other's work, workers may die."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import jobs
import numpy as np
import pytest
from conftest import EXAMPLE_PHOTOS

import tf_alexnet as ta
from tf_alexnet.errors import AlexNetError, OutputError, UsageError, WeightsError
from tf_alexnet.extraction import job, ray_cluster
from tf_alexnet.extraction import worker as worker_module
from tf_alexnet.extraction.ray_cluster import RayWorkers, shares
from tf_alexnet.extraction.shards import Store
from tf_alexnet.extraction.storage import Folder
from tf_alexnet.weights import find_weights

ID = "0123456789abcdef"


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """A Ray of two processors, started in another folder than the jobs."""
    os.environ["JOBS_LOG"] = str(tmp_path_factory.mktemp("log") / "log")  # marks its processes
    os.environ["RAY_USAGE_STATS_ENABLED"] = os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray

    here = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    ray.init("local", num_cpus=2, object_store_memory=2**28, **quiet)
    os.chdir(here)
    ray.cloudpickle.register_pickle_by_value(jobs)  # workers need not find that file
    yield ray
    ray.shutdown()
    del os.environ["JOBS_LOG"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """26 photos and two bad ones, by relative paths."""
    monkeypatch.chdir(tmp_path)
    jobs.photos(Path("photos"), 25)
    shutil.copy(sorted(EXAMPLE_PHOTOS.glob("*.jpg"))[0], "photos/odd\udcff\n.jpg")
    Path("photos/0005b.jpg").write_text("no picture")
    Path("photos/bad\udcff.jpg").touch()
    return "photos"


def extract(images, output, **arguments):
    """A job with a real network."""
    settings = {"weights": "torchvision-convs", "layers": ["pool5"], "pool": "avg"}
    settings |= {"shard_size": 8, "batch_size": 4, "workers": 1, **arguments}
    return ta.extract_features(images, output, **settings)


@pytest.fixture
def pretend(monkeypatch):
    """A job whose network takes so many seconds a batch, here or on a cluster."""

    def pretend(images, output, seconds=0.0, **arguments):
        settings = {"weights": "network.npy", "shard_size": 4, "batch_size": 2, "workers": 1}
        with monkeypatch.context() as patch:
            if "cluster" in arguments:
                patch.setattr(job, "Worker", jobs.worker(seconds))
            patch.setattr(worker_module, "FeatureExtractor", jobs.Network)
            return ta.extract_features(images, output, **settings | arguments)

    return pretend


CLUSTER = {"cluster": "ray", "cluster_workers": 2}


def rows_of(path, layer="fc7"):
    """Rows by name, failures by name, and the names in order."""
    with h5py.File(path) as file:
        names, bad, codes = (file[x][:].tolist() for x in ("paths", "errors/paths", "errors/codes"))
        rows = {name: row.tobytes() for name, row in zip(names, file[layer][:], strict=True)}
    assert len(rows) == len(names), "each photo once"
    return rows, dict(zip(bad, codes, strict=True)), names


def stop_after(photos):
    def progress(done, *_):
        if done >= photos:
            raise KeyboardInterrupt

    return progress


def running_shards():
    """Ids of the processes of Ray workers that are at a shard."""
    return [pid for pid, line in jobs.processes() if line.startswith(b"ray::_Worker")]


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
    fair_size = job.fair_size
    assert fair_size(4096, 1_000_000, 2, 64) == 4096
    assert fair_size(4096, 5000, 1, 64) == 4096
    assert fair_size(4096, 5000, 2, 64) == 640  # whole batches: 625 would part one
    assert fair_size(4096, 10, 2, 64) == 64
    assert fair_size(40, 5000, 2, 64) == 40, "never more than was asked for"
    assert fair_size(4096, 0, 2, 64) == 64


def test_rows_are_those_of_a_local_run(ray, photos):
    local = extract(photos, "local.h5")
    arrays = ta.read_weights(find_weights("torchvision-convs"))
    # One worker has all processors, and the batches of a local run.
    report = extract(photos, "one.h5", weights=arrays, cluster="ray")
    assert report.rows == 26
    told = [failure[:3] for failure in report.errors]
    assert told == [failure[:3] for failure in local.errors]
    assert [code for _, code, _ in told] == ["not_an_image", "empty"]
    assert rows_of("one.h5", "pool5") == rows_of("local.h5", "pool5")
    with h5py.File("local.h5") as one, h5py.File("one.h5") as other:
        assert np.ptp(one["pool5"][:], axis=0).max() > 0.1, "rows tell photos apart"
        for name in ("places", "digests", "errors/details"):
            assert one[name][:].tolist() == other[name][:].tolist()
        assert set(one.attrs) == set(other.attrs)
        same = [name for name in one.attrs if one.attrs[name] == other.attrs[name]]
        assert set(one.attrs) - set(same) <= {"id", "record", "weights_source"}


@pytest.mark.slow
@pytest.mark.parametrize("output", ["f/", "f.h5"])
def test_each_goes_on_from_the_others_work(output, ray, photos, pretend):
    pretend(photos, "whole.h5")
    for first, then in ((CLUSTER, {}), ({}, CLUSTER)):
        with pytest.raises(KeyboardInterrupt):
            pretend(photos, output, 0.05, progress=stop_after(9), **first)
        # Bad photos that are only just written are not believed to be the same, and tried again.
        assert 6 <= pretend(photos, output, **then).kept <= 24
        if output == "f.h5":
            assert rows_of(output)[:2] == rows_of("whole.h5")[:2]
            os.unlink(output)
        else:
            rows = {}
            for path in Path(output).glob("*.h5"):
                with h5py.File(path) as file:
                    some = zip(file["paths"][:].tolist(), file["fc7"][:], strict=True)
                    rows |= {name: row.tobytes() for name, row in some}
            assert rows == rows_of("whole.h5")[0]
            shutil.rmtree(output)
    assert sorted(os.listdir(".")) == ["photos", "whole.h5"]


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing_but_time(ray, photos, pretend):
    pretend(photos, "whole.h5")
    killed = []

    def progress(*_):
        if not killed:
            killed.extend(running_shards())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    with pytest.warns(RuntimeWarning, match=r"a worker died on shard \d+ \(The actor died .*\)"):
        pretend(photos, "f.h5", 0.1, progress=progress, **CLUSTER)
    assert killed
    assert rows_of("f.h5") == rows_of("whole.h5")


@pytest.mark.slow
def test_a_finished_output_that_grows_on_a_cluster(ray, photos, pretend):
    pretend(photos, "f.h5", **CLUSTER)
    jobs.photos(Path("more"), 3, start=30)
    report = pretend([photos, "more"], "f.h5", **CLUSTER)
    assert report.rows == 29
    assert 26 <= report.kept <= 28, "bad photos that are so new are not believed"
    pretend([photos, "more"], "whole.h5")
    assert rows_of("f.h5") == rows_of("whole.h5")


@pytest.mark.slow
def test_too_many_errors_on_a_cluster(ray, photos, pretend):
    with pytest.raises(ta.errors.ImageError, match=r"2 photos: .*at most 1 may fail"):
        pretend(photos, "f.h5", max_errors=1, **CLUSTER)
    assert pretend(photos, "f.h5").kept >= 4


def stub(run=None, settings=lambda: {"layers": "fc7"}):
    """What makes a worker that holds no network."""

    class Worker:  # it travels as a whole; without TensorFlow, as `Finished` would bring it along
        def __init__(self, workers):
            self.settings, self.attributes, self.batch_size = settings(), {}, 4

        def run_shard(self, shard, store):
            with store.writing(shard.place) as (name, file):
                file.write(b"x")
                if run:
                    run(shard)
            return SimpleNamespace(data=name, failures=[], size=1)

    return Worker


def run_all(workers, folder, count):
    """Places of the shards, in the order in which they were finished."""
    folder.mkdir()
    shards = [SimpleNamespace(place=i, paths=[f"{i}.jpg"]) for i in range(count)]
    store = Store(Folder(str(folder)), Folder(str(folder)), ID, ".h5")
    with workers:
        return [shard.place for shard, _ in workers.run(shards, store, lambda *_: None)]


@pytest.mark.slow
def test_a_shard_that_ends_every_worker_ends_the_job(ray, tmp_path):
    def deadly(shard):
        if shard.place == 1:
            os._exit(9)

    workers = RayWorkers("ray", stub(deadly), worker_count=2)
    with pytest.warns(RuntimeWarning, match="on shard 1 "), pytest.raises(AlexNetError) as caught:
        run_all(workers, tmp_path / "f", 2)
    assert str(caught.value).startswith(
        "shard 1, from 1.jpg: 3 workers died, the last with: The actor died"
    )
    assert sum(name.startswith(f"tmp-{ID}-000000") for name in os.listdir(tmp_path / "f")) == 1


@pytest.mark.slow
def test_more_workers_than_shards_and_more_than_there_is_room_for(ray, tmp_path):
    begun = time.monotonic()
    workers = RayWorkers("ray", stub(), worker_count=4)
    assert sorted(run_all(workers, tmp_path / "f", 3)) == [0, 1, 2]
    workers = RayWorkers("ray", stub(), worker_count=4)
    assert run_all(workers, tmp_path / "none", 0) == []
    assert time.monotonic() - begun < 20
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() - begun < 20, "none is kept"
        time.sleep(0.1)


def test_workers_that_do_not_start(ray, tmp_path):
    def never():
        os._exit(7)

    with pytest.raises(AlexNetError, match=r"starting workers: 3 workers died"):
        run_all(RayWorkers("ray", stub(settings=never), worker_count=1), tmp_path / "f", 1)


def test_workers_with_other_packages(ray, tmp_path):
    def each_its_own():
        return {"pillow_version": str(os.getpid())}

    def slow(shard):
        time.sleep(0.1)

    workers = RayWorkers("ray", stub(slow, each_its_own), worker_count=2)
    with pytest.raises(UsageError, match=r"workers differ \(pillow_version \d+ -> \d+\)\. Install"):
        run_all(workers, tmp_path / "f", 400)


def test_what_a_worker_meets_is_told_as_it_is(ray, tmp_path):
    def refuse(shard):
        raise WeightsError(f"shard {shard.place}", "no", "Yes.")

    with pytest.raises(WeightsError, match=r"^shard 0: no\. Yes\.$"):
        run_all(RayWorkers("ray", stub(refuse), worker_count=1), tmp_path / "f", 1)
    assert not os.listdir(tmp_path / "f")


@pytest.mark.slow
def test_an_output_that_is_another_one_elsewhere(ray, tmp_path, monkeypatch):
    class Worker(stub()):
        def run_shard(self, shard, store):
            finished = super().run_shard(shard, store)
            os.rename(tmp_path / "f", tmp_path / "g")
            os.mkdir(tmp_path / "f")
            return finished

    monkeypatch.setattr(ray_cluster, "_VISIBLE_SECONDS", 0.5)
    with pytest.raises(OutputError, match=r"/f/000000-.*\.h5: a worker wrote it, but it is not"):
        run_all(RayWorkers("ray", Worker, worker_count=1), tmp_path / "f", 1)


@pytest.mark.slow
def test_a_job_begins_with_the_fewest_workers(ray, tmp_path, monkeypatch):
    def each_its_own(shard):
        time.sleep(0.2)
        Path(tmp_path / str(os.getpid())).touch()

    workers = RayWorkers("ray", stub(each_its_own), worker_count=2, min_workers=2)
    assert sorted(run_all(workers, tmp_path / "f", 2)) == [0, 1]
    assert len([name for name in os.listdir(tmp_path) if name.isdigit()]) == 2
    with pytest.raises(UsageError, match="at least 3 workers: there will be 2 at most"):
        run_all(RayWorkers("ray", stub(), worker_count=2, min_workers=3), tmp_path / "g", 1)
    monkeypatch.setattr(ray_cluster, "_PLACE_SECONDS", 1.0)
    with pytest.raises(UsageError, match=r"had room for [012] of 3 in 1 seconds"):
        run_all(RayWorkers("ray", stub(), worker_count=3, min_workers=3), tmp_path / "h", 1)


def test_no_place_for_a_worker(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_PLACE_SECONDS", 1.0)
    with pytest.raises(
        UsageError, match=r"1 processors and 1 GPUs: the cluster had room for 0 of 1 in"
    ):
        run_all(RayWorkers("ray", stub(), worker_count=2, gpus=1), tmp_path / "f", 1)


def test_addresses_that_lead_nowhere(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster, "_CONNECT_SECONDS", 4.0)
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"127.0.0.1:1: Ray does not answer there within 4 sec"):
        run_all(RayWorkers("127.0.0.1:1", stub()), tmp_path / "f", 1)
    assert time.monotonic() - begun < 8
    with pytest.raises(UsageError, match=r"nonsense: Invalid address format: nonsense\. Start one"):
        RayWorkers("nonsense", stub()).__enter__()


def test_calls_that_make_no_sense(monkeypatch, photos):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"Ray is not installed. .*pip install 'tf-alexnet\[ray\]"):
        extract(photos, "f.h5", cluster="ray")
    for arguments in ({"cluster_workers": 2}, {"gpus_per_worker": 1}):
        with pytest.raises(UsageError, match="none is given"):
            extract(photos, "f.h5", **arguments)
    for wrong in ({"cluster_workers": 0}, {"gpus_per_worker": 1.5}, {"gpus_per_worker": -1}):
        with pytest.raises(UsageError):
            extract(photos, "f.h5", cluster="ray", **wrong)
    assert os.listdir(".") == ["photos"]


def command(*arguments, seconds=0.1):
    words = [str(seconds), "extract", "photos", "-o", "f.h5", "-w", "network.npy"]
    words += ["--shard-size", "4", "--batch", "4", "--workers", "1", "--quiet", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, jobs.__file__, *words]
    return subprocess.Popen(command, start_new_session=True, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_program_with_a_ray_of_its_own_is_stopped(number, code, photos, monkeypatch):
    monkeypatch.setenv("JOBS_LOG", os.path.abspath("log"))
    jobs.photos(Path("photos"), 200)
    process = command("--cluster", "ray", "--cluster-workers", "2")
    while len(list(Path("f.h5.job").glob("[0-9]*.json"))) < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    asked = time.monotonic()
    process.send_signal(number)
    assert process.communicate() == ("", "")
    assert process.returncode == code
    assert time.monotonic() - asked < 10
    while running_shards():
        assert time.monotonic() - asked < 10, "nothing is left running"
        time.sleep(0.1)
    out, err = command(seconds=0).communicate()
    assert "201 rows + 2 errors = 203 photos" in out, err
    assert not Path("f.h5.job").exists()
    assert len(rows_of("f.h5")[0]) == 201
