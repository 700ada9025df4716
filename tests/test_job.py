"""Jobs: shards, resuming, refusals, every kind of output. The network is a small stand-in."""

import csv
import errno
import glob
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import threading
import time
import types

import h5py
import jobs
import numpy as np
import pyarrow.parquet as pq
import pytest

import tf_alexnet as ta
from tf_alexnet.errors import ImageError, OutputError, UsageError
from tf_alexnet.extraction import job, outputs, sinks, state
from tf_alexnet.extraction.manifest import ShardRecord
from tf_alexnet.extraction.plan import changes, fingerprint, plan_shards
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.extraction.state import JobState, working_on
from tf_alexnet.extraction.target import Target

OUTPUTS = ["f.h5", "f.npz", "f.npy", "f.parquet", "f/", "f.parquet/"]


@pytest.fixture
def extract(monkeypatch, tmp_path):
    """`extract_features` of some photos into files here."""
    monkeypatch.setattr(job, "FeatureExtractor", jobs.Network)
    monkeypatch.setattr(job, "PhotoReader", jobs.Reader)
    monkeypatch.chdir(tmp_path)

    def extract(images, output="f.h5", **arguments):
        arguments = {"shard_size": 4, "batch_size": 2, "workers": 1, **arguments}
        return ta.extract_features(images, output, **arguments)

    return extract


def read(output, layer="fc7"):
    """(rows by path, failures by path) of an output, with the tools that its readers use."""
    files = sorted(glob.glob(f"{output}shards/*")) if output.endswith("/") else [output]
    rows, failed = {}, {}
    for file in files:
        some, codes = READERS[os.path.splitext(file)[1]](file, layer)
        assert not set(rows) & set(some), "no row twice"
        assert not set(failed) & set(codes), "no failure twice"
        rows.update(some)
        failed.update(codes)
    assert not set(rows) & set(failed)
    return rows, failed


def read_h5(path, layer):
    with h5py.File(path) as file:
        names, paths, codes = (
            [raw.decode("utf-8", "surrogateescape") for raw in file[name]]
            for name in ("paths", "errors/paths", "errors/codes")
        )
        return dict(zip(names, file[layer][:], strict=True)), dict(zip(paths, codes, strict=True))


def read_npz(path, layer):
    with np.load(path, allow_pickle=False) as file:
        failed = zip(file["errors_paths"].tolist(), file["errors_codes"].tolist(), strict=True)
        return dict(zip(file["paths"].tolist(), file[layer], strict=True)), dict(failed)


def read_npy(path, _):
    with open(f"{path}.json") as file:
        names = json.load(file)
    failed = {failure["path"]: failure["code"] for failure in names["errors"]}
    return dict(zip(names["paths"], np.load(path), strict=True)), failed


def read_parquet(path, layer):
    rows, failed = {}, {}
    with open(path, "rb") as file:
        table = pq.read_table(file).to_pylist()
    for row in table:
        name = row["path"]
        if row["path_bytes"] is not None:
            name = row["path_bytes"].decode("utf-8", "surrogateescape")
        if row["status"] == "ok":
            assert row["detail"] is None
            rows[name] = np.array(row[layer], np.float32)
        else:
            assert row[layer] is None
            assert row["detail"]
            failed[name] = row["status"]
    return rows, failed


READERS = {".h5": read_h5, ".npz": read_npz, ".npy": read_npy, ".parquet": read_parquet}


def expected(paths):
    images = [ta.load_image(path) for path in paths]
    rows = jobs.Network(None, ["fc7"])(ta.preprocess_input(images, "torchvision"))["fc7"]
    return dict(zip(map(str, paths), rows, strict=True))


def check(output, good, bad=()):
    """An output holds the right row for each good photo, and a reason for each bad one."""
    rows, failed = read(output)
    assert set(failed) == set(bad)
    assert set(rows) == set(good)
    for path, row in expected(good).items():
        np.testing.assert_array_equal(rows[path], row)


def files_below(top):
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                found[os.path.relpath(os.path.join(folder, name), top)] = file.read()
    return found


def test_plan():
    paths = [f"{i}.jpg" for i in range(10)]
    plan = list(plan_shards(paths, 4))
    assert [shard.name for shard in plan] == ["shard-000000", "shard-000001", "shard-000002"]
    assert [shard.paths for shard in plan] == [paths[:4], paths[4:8], paths[8:]]
    # Shard 1 done elsewhere first: what is left is planned as before.
    left = plan_shards(paths[:4] + paths[8:], 4, {"shard-000001"})
    assert list(left) == [plan[0], plan[2]]
    assert list(plan_shards([], 4)) == []


def test_what_plans_and_records_needs_no_tensorflow():
    modules = (
        "lock",
        "manifest",
        "outputs",
        "plan",
        "sinks",
        "state",
        "storage",
        "target",
        "worker",
    )
    names = ", ".join(f"tf_alexnet.extraction.{name}" for name in modules)
    code = f"import sys, {names}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("output", ["f.h5", "f.parquet/"])
def test_a_job_of_a_million_photos_starts_soon(output, tmp_path, monkeypatch):
    """3 s on a quiet machine."""
    monkeypatch.chdir(tmp_path)
    paths = [f"photos/{i % 1000:03d}/ILSVRC2012_val_{i:08d}.JPEG" for i in range(10**6)]
    settings = {"layers": "fc7"}
    with working_on(Target(output), settings, paths, False) as state:
        target, rows = Target(output), np.zeros((4096, 4), np.float32)
        for shard in plan_shards(state.remaining(False)):
            if shard.number % 10 == 9:
                continue
            name, (bad, *good) = f"{shard.name}{target.shard_suffix}", shard.paths
            with (
                target.shards.writing(name) as file,
                sinks.writer_for(target.shard_suffix)(file) as writer,
            ):
                writer.add(good, {"fc7": rows[: len(good)]})
                writer.finish([Failure(bad, "missing", "it is gone")], settings)
            size = target.shards.size(name)
            state.manifest.shards[shard.name] = ShardRecord(name, len(good) + 1, len(good), 1, size)
        state.manifest.save(target.work)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with working_on(Target(output), settings, paths, False) as state:
        assert len(state.remaining(False)) == 24 * 4096
        assert state.kept == 10**6 - 24 * 4096
        assert time.monotonic() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_fingerprint_names_what_changed():
    settings = {
        "weights_digest": "sha256:1",
        "architecture": "bvlc_alexnet",
        "layers": ("fc6", "fc7"),
        "preset": "caffe",
        "mean_image": None,
        "dtype": "float32",
        "pool": "none",
        "fast_decode": False,
        "crops": "center",
    }
    old = fingerprint(**settings)
    assert changes(old, fingerprint(**settings)) == []
    new = fingerprint(**{**settings, "dtype": "float16", "layers": ("fc7",)})
    assert changes(old, new) == ["layers fc6 fc7 -> fc7", "dtype float32 -> float16"]
    means = [np.full((3, 256, 256), float(i), np.float32) for i in range(2)]
    with_mean = {**settings, "preset": "caffe-mean-image"}
    one, two = (fingerprint(**{**with_mean, "mean_image": mean}) for mean in means)
    assert [change.split()[0] for change in changes(one, two)] == ["mean_image"]


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_grows_by_new_photos_and_repaired_ones(output, extract, tmp_path):
    good = jobs.photos(tmp_path / "photos", 9)
    bad = [str(tmp_path / "photos" / name) for name in ("0002b.png", "0007b.png")]
    for path in bad:
        pathlib.Path(path).write_text("no picture")
    report = extract("photos", output)
    names = [os.path.relpath(path) for path in good]
    bad = [os.path.relpath(path) for path in bad]
    assert (report.inputs, report.rows, report.kept) == (11, 9, 0)
    assert [failure.path for failure in report.errors] == bad
    check(output, names, bad)

    before = files_below(".")
    again = extract("photos", output)
    assert files_below(".") == before, "nothing to do, nothing done"
    assert (again.errors, again.shapes, again.attributes) == (
        *(report.errors, report.shapes, report.attributes),
    )
    assert again.kept == 11

    names += [os.path.relpath(path) for path in jobs.photos(tmp_path / "photos", 3, start=20)]
    report = extract("photos", output)
    assert (report.inputs, report.rows, report.kept, report.absent) == (14, 12, 11, 0)
    check(output, names, bad)

    (tmp_path / bad[0]).write_bytes((tmp_path / names[0]).read_bytes())
    assert extract("photos", output).rows == 12, "a failure is known until it is asked for again"
    report = extract("photos", output, retry_errors=True)
    assert (report.inputs, report.rows, report.kept) == (14, 13, 14)
    assert [failure.path for failure in report.errors] == bad[1:]
    check(output, [*names, bad[0]], bad[1:])

    report = extract(names[3], output)
    assert (report.inputs, report.absent) == (14, 13)
    check(output, [*names, bad[0]], bad[1:])
    assert not glob.glob("f*.job"), "a finished job leaves no working folder"


@pytest.mark.parametrize("output", ["f/", "f.parquet/"])
def test_a_folder_of_shards_says_what_it_holds(output, extract, tmp_path):
    jobs.photos(tmp_path / "photos", 6)
    odd = 'photos/a "b"\n\udcff.png'
    open(odd, "w").close()
    report = extract("photos", output, layers=["fc7", "conv5"])
    with open(f"{output}manifest.json") as file:
        manifest = json.load(file)
    assert [manifest[name] for name in ("inputs", "rows", "errors")] == [7, 6, 1]
    assert manifest["job"].items() <= report.attributes.items()
    sizes = {name: len(data) for name, data in files_below(f"{output}shards").items()}
    assert {shard["name"]: shard["size"] for shard in manifest["shards"]} == sizes
    for shard in manifest["shards"]:
        assert shard["rows"] + shard["errors"] == shard["inputs"]
    with open(f"{output}errors.csv", newline="", errors="surrogateescape") as file:
        table = list(csv.reader(file))
    assert table == [["path", "code", "detail"], list(report.errors[0][:3])]
    assert table[1][:2] == [odd, "empty"]
    if output == "f.parquet/":
        table = pq.read_table("f.parquet/shards")  # as one table
        assert table.num_rows == 7
        assert table.schema.field("conv5").metadata == {b"shape": b"2 2 6"}
        assert table.schema.field("conv5").type.list_size == 24


@pytest.mark.parametrize("output", OUTPUTS)
def test_names_come_back_as_they_are(output, extract, tmp_path):
    names = ["new\nline", "quote'\"", "bytes\udcff", "ünï\U0001f431", "  spaces ", "c,s;v\r", "\\x"]
    jobs.photos(tmp_path / "p", 1)
    picture = (tmp_path / "p" / "0000.png").read_bytes()
    for name in names:
        (tmp_path / f"{name}.png").write_bytes(picture)
        (tmp_path / f"bad {name}.png").touch()
    extract([f"{kind}{name}.png" for name in names for kind in ("", "bad ")], output)
    check(output, [f"{name}.png" for name in names], [f"bad {name}.png" for name in names])
    if output == "f.parquet":
        shown = pq.read_table("f.parquet")["path"].to_pylist()
        assert r"bytes\xff.png" in shown
        assert "ünï\U0001f431.png" in shown


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_may_have_any_name(output, extract, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.Network, "weights_source", "net\udcff\n.npy")
    paths = jobs.photos(tmp_path / "photos", 6)
    output = f"new\nline \udcff{output}"
    extract(paths[:5], output)
    assert extract(paths, output).kept == 5
    check(output, paths)


@pytest.mark.parametrize("output", ["f.h5", "f.npz", "f.parquet", "f/"])
def test_two_runs_give_the_same_bytes(output, extract, tmp_path):
    jobs.photos(tmp_path / "photos", 9)
    (tmp_path / "photos" / "bad.png").touch()
    extract("photos", output)
    first = files_below(".")
    extract("photos", output, force=True)
    assert files_below(".") == first


@pytest.mark.parametrize("output", ["f.h5", "f.parquet/"])
def test_all_photos_of_a_shard_may_be_bad(output, extract, tmp_path):
    good = jobs.photos(tmp_path / "photos", 2)
    bad = [f"photos/{i}bad.png" for i in range(5)]
    for path in bad:
        open(path, "w").close()
    extract([*bad, *good], output, layers=["fc7", "conv5"])
    check(output, good, bad)
    if output == "f.h5":
        with h5py.File(output) as file:
            assert file["conv5"].shape == (2, 2, 2, 6)
    else:
        assert pq.read_schema("f.parquet/shards/shard-000000.parquet").names[-1] == "conv5"


def test_pooling(extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 3)
    extract(paths, "none.h5", layers=["conv5", "fc7"])
    with h5py.File("none.h5") as whole:
        for pool, reduce in (("avg", np.mean), ("max", np.max)):
            report = extract(paths, f"{pool}.h5", layers=["conv5", "fc7"], pool=pool)
            assert report.shapes == {"conv5": (3, 6), "fc7": (3, 32)}
            with h5py.File(f"{pool}.h5") as file:
                np.testing.assert_array_equal(file["fc7"], whole["fc7"])
                wanted = reduce(whole["conv5"][:], axis=(1, 2))
                np.testing.assert_allclose(file["conv5"], wanted, rtol=1e-6)


@pytest.mark.parametrize("output", OUTPUTS)
def test_other_settings_are_refused(output, extract, tmp_path, monkeypatch):
    paths = jobs.photos(tmp_path / "photos", 5)
    extract(paths, output)
    before = files_below(".")
    for arguments, change in (
        ({"dtype": "float16"}, "dtype float32 -> float16"),
        ({"layers": ["conv5"]}, "layers fc7 -> conv5"),
        ({"pool": "max", "fast_decode": True}, "pool none -> max, fast_decode no -> yes"),
        ({"crops": "ten"}, "crops center -> ten"),
    ):
        with pytest.raises(UsageError, match=rf"begun with other settings \({change}\)\. Use"):
            extract(paths, output, **arguments)
        with pytest.raises(UsageError, match="--force"):  # also with something new to do
            extract([*paths, *jobs.photos(tmp_path / "photos", 1, 7)], output, **arguments)
    monkeypatch.setattr(jobs.Network, "weights_digest", "sha256:2")
    with pytest.raises(UsageError, match="weights_digest sha256:0 -> sha256:2"):
        extract(paths, output)
    os.unlink("photos/0007.png")
    assert files_below(".") == before
    report = extract(paths, output, layers=["conv5"], force=True)
    assert list(report.shapes) == ["conv5"]
    assert report.kept == 0
    # Sizes of batches and shards are no settings of that kind.
    assert extract(paths, output, layers=["conv5"], batch_size=5, shard_size=9).kept == 5


def test_what_is_not_ours_is_left_alone(extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 2)
    for name in ("f.h5", "f.npz", "f.npy", "f.parquet"):
        (tmp_path / name).write_text("a diary")
        with pytest.raises(OutputError, match="it is there already, and was not written by an"):
            extract(paths, name)
    (tmp_path / "g").mkdir()
    for name in ("g", "g.h5.job"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "diary").write_text("dear")
        for force in (False, True):
            with pytest.raises(OutputError, match="holds files that are not of an extraction"):
                extract(paths, name.removesuffix(".job"), force=force)
    diaries = {"f.h5", "f.npz", "f.npy", "f.parquet", "g/diary", "g.h5.job/diary"}
    assert {name for name in files_below(".") if "photos" not in name} == diaries
    extract(paths, "f.h5", force=True)
    check("f.h5", paths)
    with pytest.raises(OutputError, match=r"f\.h5: it is a file"):
        extract(paths, "f.h5/")
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "manifest.json").write_text('{"shards": [1]}')
    with pytest.raises(OutputError, match=r"h/manifest\.json: it is damaged, .*--force"):
        extract(paths, "h")


class StopError(Exception):
    """Ends a job from within."""


def stop_after(photos):
    def progress(done, *_):
        if done >= photos:
            raise StopError

    return progress


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_interrupted_job_goes_on(output, extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 14)
    extract(paths, f"whole {output}")
    with pytest.raises(StopError):
        extract(paths, output, progress=stop_after(2))
    assert not [name for name in os.listdir(".") if name.startswith("f")], "nothing to go on from"
    with pytest.raises(StopError):
        extract(paths, output, progress=stop_after(10))
    shards = glob.glob("f*/shards/*")
    assert len(shards) == 2
    kept = {path: os.stat(path).st_ino for path in shards}
    asked = []
    report = extract(paths, output, progress=lambda *numbers: asked.append(numbers))
    assert report.kept == 8
    assert asked[0] == (0, 6, 0, 0)
    assert asked[-1] == (6, 6, 0, 6 * 32 * 4), "progress is this run's"
    if output.endswith("/"):
        assert {path: os.stat(path).st_ino for path in shards} == kept
        assert files_below(output) == files_below(f"whole {output}")
    else:
        assert (tmp_path / output).read_bytes() == (tmp_path / f"whole {output}").read_bytes()
    check(output, paths)


def test_shards_that_were_lost_or_damaged_are_done_again(extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 14)
    extract(paths, "f/")
    whole = files_below("f")
    os.unlink("f/shards/shard-000001.h5")
    with open("f/shards/shard-000002.h5", "r+b") as file:
        file.truncate(100)
    with open("f/shards/shard-000003.h5", "r+b") as file:
        file.write(b"\0" * 100)  # of the same size
    report = extract(paths, "f/")
    assert report.kept == 4
    assert files_below("f") == whole


@pytest.mark.parametrize("output", ["f.h5", "f/", "f.parquet/"])
def test_what_can_not_be_read_at_the_moment_is_not_taken_for_lost(
    output, extract, tmp_path, monkeypatch
):
    paths = jobs.photos(tmp_path / "photos", 10)
    with pytest.raises(StopError):
        extract(paths, output, progress=stop_after(9))
    before = files_below(".")

    def failing(*_, **__):
        raise OSError(errno.EIO, "whatever the library says")

    for name in ("f*/shards/*-000001.*", "f*/shards/*"):
        failed = [os.path.abspath(path) for path in glob.glob(name)]
        assert failed
        with monkeypatch.context() as patch:
            opening = outputs.open_output
            patch.setattr(
                state,
                "open_output",
                lambda path, names, failed=failed, opening=opening: (
                    failing if os.path.abspath(path) in failed else opening
                )(path, names),
            )
            with pytest.raises(OutputError, match=r"it can't be read \(Input/output error\)\. See"):
                extract(paths, output)
        assert files_below(".") == before
    stat = pathlib.Path.stat
    with monkeypatch.context() as patch:
        patch.setattr(
            pathlib.Path,
            "stat",
            lambda path, **how: (failing if "shards" in path.parts else stat)(path, **how),
        )
        with pytest.raises(OutputError, match=r"it can't be read \(Input/output error\)\. See"):
            extract(paths, output)
    assert files_below(".") == before
    assert extract(paths, output).kept == 8
    check(output, paths)


@pytest.mark.parametrize("output", ["f.h5", "f.npz", "f.npy", "f.parquet"])
def test_a_kill_between_the_last_steps_doubles_nothing(output, extract, tmp_path, monkeypatch):
    paths = jobs.photos(tmp_path / "photos", 10)
    # A new file, and some that go on from another. It is there, and so is the working folder.
    for count, skipped in (
        (4, ["_retire", "discard"]),
        (8, ["_retire", "discard"]),
        (10, ["discard"]),
    ):
        with monkeypatch.context() as patch:
            for name in skipped:
                patch.setattr(JobState, name, lambda _: None)
            extract(paths[:count], output)
        shards = glob.glob("f*.job/shards/*")
        assert shards
        if len(skipped) == 1:
            os.unlink(shards[0])  # killed while removing them
        again = extract(paths[:count], output)
        assert (again.inputs, again.rows, again.kept) == (count, count, count)
        check(output, paths[:count])
        assert not glob.glob("f*.job")


def test_an_npy_and_its_names_may_be_of_two_ages(extract, tmp_path):
    """A kill between the renaming of the two."""
    paths = jobs.photos(tmp_path / "photos", 10)
    extract(paths[:5], "f.npy")
    old = (tmp_path / "f.npy.json").read_bytes()
    with pytest.raises(StopError):
        extract(paths, "f.npy", progress=stop_after(5))
    extract(paths, "g.npy")
    (tmp_path / "f.npy").write_bytes((tmp_path / "g.npy").read_bytes())
    assert (tmp_path / "f.npy.json").read_bytes() == old
    extract(paths, "f.npy")
    check("f.npy", paths)


def test_errors_may_be_limited(extract, tmp_path):
    good = jobs.photos(tmp_path / "photos", 10)
    bad = [f"photos/bad{i}.png" for i in range(3)]
    for path in bad:
        open(path, "w").close()
    images = [*good[:5], bad[0], *good[5:], *bad[1:]]
    for limit, shards in (("0", 1), (1, 2), ("8%", 2), (2, 3), ("22%", 3), (0, 3)):
        with pytest.raises(ImageError, match=r"at most [012] may fail; the last: photos/bad\d.png"):
            extract(images, "f.h5", max_errors=limit)
        assert len(glob.glob("f.h5.job/shards/*")) == shards
    report = extract(images, "f.h5", max_errors="25%")
    assert (report.rows, len(report.errors), report.kept) == (10, 3, 12)
    check("f.h5", good, bad)


def test_one_job_at_a_time(extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 6)
    inside, go = threading.Event(), threading.Event()

    def progress(*_):
        inside.set()
        assert go.wait(20)

    first = threading.Thread(target=extract, args=(paths, "f.h5"), kwargs={"progress": progress})
    first.start()
    try:
        assert inside.wait(20)
        for name in ("f.h5", str(tmp_path / "f.h5")):
            with pytest.raises(OutputError, match=r"f\.h5: another job is writing it \(process \d"):
                extract(paths, name)
    finally:
        go.set()
        first.join()
    check("f.h5", paths)
    assert sorted(os.listdir(".")) == ["f.h5", "photos"]


def test_a_lock_that_was_left_is_no_lock(extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 2)
    (tmp_path / "f.h5.job").mkdir()
    (tmp_path / "f.h5.job" / ".lock").write_text(f"process {os.getpid()} on here")
    (tmp_path / "f.h5.job" / ".tf-alexnet-0.part").write_text("half a manifest")
    extract(paths, "f.h5")
    assert sorted(os.listdir(".")) == ["f.h5", "photos"]


@pytest.mark.parametrize("output", OUTPUTS)
def test_files_behind_urls(output, extract, tmp_path, monkeypatch):
    import fsspec

    from tf_alexnet.extraction.reader import PhotoReader

    monkeypatch.setattr(job, "PhotoReader", PhotoReader)
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    local = jobs.photos(tmp_path / "photos", 6)
    for path in local:
        files.put_file(path, f"/in/{os.path.basename(path)}")
    files.pipe_file("/in/bad.jpg", b"no picture")
    files.pipe_file("/in/.hidden.jpg", b"")
    files.pipe_file("/in/notes.pdf", b"")
    url = f"memory://bucket/out/{output}"
    with pytest.raises(StopError):
        extract("memory://in", url, progress=stop_after(6))
    assert files.glob("/bucket/out/*/manifest.json")
    report = extract("memory://in", url)
    assert (report.rows, report.kept, report.errors[0].code) == (6, 4, "not_an_image")
    files.put_file(local[0], "/in/more/last.png")
    report = extract(["memory://in"], url)
    assert (report.rows, report.kept) == (7, 7)
    assert report.errors[0].path == "memory:///in/bad.jpg"
    files.get(f"/bucket/out/{output}", output, recursive=output.endswith("/"))
    if output == "f.npy":
        files.get(f"/bucket/out/{output}.json", f"{output}.json")
    rows, _ = read(output)
    wanted = expected(local)
    for path in local:
        found = rows[f"memory:///in/{os.path.basename(path)}"]
        np.testing.assert_array_equal(found, wanted[path])
    assert not [name for name in files.find("/bucket") if ".job" in name]
    with pytest.raises(UsageError, match=r"nosuch://x: it can't be reached"):
        extract("nosuch://x", "g.h5")


def test_what_is_not_installed_is_named(extract, tmp_path, monkeypatch):
    paths = jobs.photos(tmp_path / "photos", 1)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'tf-alexnet\[parquet\]'"):
        extract(paths, "f.parquet")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'tf-alexnet[remote]'")):
        extract(paths, "memory://f.h5")


def test_a_gpu_gets_larger_batches(monkeypatch):
    for devices, size in (([], 64), (["GPU"], 256)):
        config = types.SimpleNamespace(list_physical_devices=lambda _, found=devices: found)
        monkeypatch.setattr(job.tf, "config", config)
        assert job._batch_size("auto", "center") == size
        assert job._batch_size("auto", "ten") == size // 10, "as many pictures, or a few less"
