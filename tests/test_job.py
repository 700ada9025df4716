"""Jobs: resuming, refusals, every kind of output. The network is a small stand-in."""

import csv
import errno
import glob
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time

import fsspec
import h5py
import jobs
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.io import loadmat

import tf_alexnet as ta
from tf_alexnet.errors import ImageError, OutputError, UsageError, WeightsError
from tf_alexnet.extraction import decoder, job, storage, worker
from tf_alexnet.extraction.decoder import Failure, Photo
from tf_alexnet.extraction.formats import UNFINISHED, open_output
from tf_alexnet.extraction.spec import ExtractionSpec, changes
from tf_alexnet.extraction.storage import Folder, Target

OUTPUTS = ["f.h5", "f.npz", "f.npy", "f.mat", "f.parquet", "f/", "f.parquet/"]
GROWING = ["f.h5", "f.parquet", "f/", "f.parquet/"]


@pytest.fixture
def extract(monkeypatch, tmp_path):
    """`extract_features` of some photos into files here."""
    monkeypatch.setattr(worker, "FeatureExtractor", jobs.Network)
    monkeypatch.setattr(worker, "PhotoReader", jobs.Reader)
    monkeypatch.setattr(decoder, "_RACY", 0)  # files that were just written are believed
    monkeypatch.chdir(tmp_path)

    def extract(images, output="f.h5", **arguments):
        arguments = {"shard_size": 4, "batch_size": 2, "workers": 1, **arguments}
        return ta.extract_features(images, output, **arguments)

    return extract


def read(output, layer="fc7"):
    """(rows by path, failures by path) of an output, with the tools that its readers use."""
    if not output.endswith("/"):
        return READERS[os.path.splitext(output)[1]](output, layer)
    rows = {}
    for file in data_files(output):
        some = READERS[os.path.splitext(file)[1]](file, layer)[0]
        assert not set(rows) & set(some), "no row twice"
        rows.update(some)
    with open(f"{output}_errors.csv", newline="", errors="surrogateescape") as file:
        failed = {row["path"]: row["code"] for row in csv.DictReader(file)}
    assert not set(rows) & set(failed)
    return rows, failed


def read_h5(path, layer):
    with h5py.File(path) as file:
        names, paths, codes = (
            [raw.decode("utf-8", "surrogateescape") for raw in file.get(name, ())]
            for name in ("paths", "errors/paths", "errors/codes")
        )
        assert len(set(names)) == len(names)
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
        assert name not in rows
        if row.get("status", "ok") == "ok":
            assert row.get("detail") is None
            rows[name] = np.array(row[layer], np.float32)
        else:
            assert row[layer] is None
            assert row["detail"]
            failed[name] = row["status"]
    return rows, failed


def read_mat(path, layer):
    found = loadmat(path, variable_names=["record", layer])
    known = json.loads(found["record"].tobytes())
    failed = {failure["path"]: failure["code"] for failure in known["errors"]}
    return dict(zip(known["paths"], found[layer], strict=True)), failed


READERS = {
    ".h5": read_h5,
    ".npz": read_npz,
    ".npy": read_npy,
    ".mat": read_mat,
    ".parquet": read_parquet,
}


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


def data_files(output):
    """Data files of a job; of a file's, while it is not finished."""
    folder = output if output.endswith("/") else f"{output}.job/"
    return sorted(glob.glob(f"{folder}[0-9]*-*-*.*"))


def records(output):
    """What the records of an unfinished job, or of a folder, hold."""
    found = glob.glob(f"{output}.job/[0-9]*-*.json")  # F.job/ and X/.job/
    return [json.loads(pathlib.Path(path).read_text()) for path in sorted(found)]


def kept_in(output):
    """How many photos an unfinished job knows."""
    columns = [r[name].get("path", []) for r in records(output) for name in ("photos", "failures")]
    return len({path for paths in columns for path in paths})


def files_below(top):
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                found[os.path.relpath(os.path.join(folder, name), top)] = file.read()
    return found


def content(output):
    """All that two runs with the same photos have in common: everything but ids and numbers."""
    if output.endswith("/"):
        manifest = json.loads(pathlib.Path(f"{output}_manifest.json").read_text())
        parts = [_content(f"{output}{shard['name']}") for shard in manifest["shards"]]
        errors = pathlib.Path(f"{output}_errors.csv").read_bytes()
        return parts, errors, _common(manifest["attributes"])
    return _content(output)


def _content(file):
    with open_output(file) as output:
        rows = {name: [] for name in output.layers}
        for block in output.blocks(list(rows)):
            for name, values in block.items():
                rows[name].append(values.tobytes())
        rows = {name: b"".join(values) for name, values in rows.items()}
        layers = {name: (tuple(shape), dtype) for name, (shape, dtype) in output.layers.items()}
        return output.photos, output.failures, layers, rows, _common(output.attributes)


def _common(attributes):
    return {name: x for name, x in attributes.items() if name not in ("id", "record")}


class StopError(Exception):
    """Ends a job from within."""


def stop_after(photos):
    def progress(done, *_):
        if done >= photos:
            raise StopError

    return progress


def test_what_plans_and_records_needs_no_tensorflow():
    modules = ("decoder", "formats", "reader", "shards", "spec", "storage")
    names = ", ".join(f"tf_alexnet.extraction.{name}" for name in modules)
    code = f"import sys, {names}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def peak():
    """Most memory of this process since `forget_peak`, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("output", ["f.h5", "f.parquet/"])
def test_a_million_photos(output, tmp_path, monkeypatch, capsys):
    """Planned, and gone on with, in seconds and in little memory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo").touch()
    # A million files are too many for a test, and their stats are a million calls all the same.
    look = job._Looker.__call__
    monkeypatch.setattr(decoder, "_RACY", 0)
    monkeypatch.setattr(job._Looker, "__call__", lambda self, _: look(self, "photo"))
    paths = [f"photos/{i % 1000:03d}/ILSVRC2012_val_{i:08d}.JPEG" for i in range(10**6)]
    target, settings, stat = Target(output), {"layers": "fc7"}, job._Looker()("photo")[0]

    def plan(opened):
        looker = job._Looker()
        assert not opened.repair(paths, looker, False)
        return opened.plan(paths, looker, False)

    def measured(function):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before, start = peak(), time.monotonic()
        with job._opened(target, settings, False) as opened:
            found = function(opened)
            seconds, size = time.monotonic() - start, peak() - before
        with capsys.disabled():
            print(f"\n{output} {function.__name__}: {seconds:.1f} s, {size / 2**20:.0f} MiB")
        return found, seconds, size

    def planned(opened):
        return list(opened.shards(plan(opened), 4096))

    shards, seconds, size = measured(planned)
    assert len(shards) == 245
    assert seconds < 60
    assert size < 2**30

    with job._opened(target, settings, False) as opened:
        opened.begin({}, {})
        for shard in shards:
            with opened.store.writing(shard.place) as (name, file):
                file.write(b"rows")
            digests = (f"{hash(path) % 2**128:032x}" for path in shard.paths)
            photos = [
                Photo(path, stat, digest, storage.place_of(path))
                for path, digest in zip(shard.paths, digests, strict=True)
            ]
            bad = Failure(*photos[0][:1], "damaged", "it is", *photos[0][1:])
            opened.records.commit(name, place=shard.place, photos=photos[1:], failures=[bad])
    del opened

    def resumed(opened):
        found = plan(opened)
        return found.kept, found.failed, len(found.todo)

    found, seconds, size = measured(resumed)
    assert found == (10**6, 245, 0)
    assert seconds < 30
    assert size < 2**30


def test_fingerprint_names_what_changed():
    settings = {"architecture": "bvlc_alexnet", "layers": ("fc6", "fc7"), "preset": "caffe"}

    def fingerprint(digest="sha256:1", **changed):
        return ExtractionSpec(**{**settings, **changed}).fingerprint(digest)

    old = fingerprint()
    assert changes(old, fingerprint()) == []
    assert fingerprint(layers=["fc6", "fc7"]) == old
    new = fingerprint(dtype="float16", layers=("fc7",))
    assert changes(old, new) == ["layers fc6 fc7 -> fc7", "dtype float32 -> float16"]
    assert changes(old, fingerprint("sha256:2")) == ["weights_digest sha256:1 -> sha256:2"]
    means = [np.full((3, 256, 256), float(i), np.float32) for i in range(2)]
    one, two = (fingerprint(preset="caffe-mean-image", mean_image=mean) for mean in means)
    assert [change.split()[0] for change in changes(one, two)] == ["mean_image"]


def test_a_spec_travels_and_checks_itself(tmp_path):
    np.save(tmp_path / "mean.npy", np.ones((3, 256, 256), np.float32))
    spec = ExtractionSpec("w.npy", ["fc7"], mean_image=tmp_path / "mean.npy", crops="ten")
    os.unlink(tmp_path / "mean.npy")
    copy = pickle.loads(pickle.dumps(spec))
    assert (copy.layers, copy.crops) == (("fc7",), "ten")
    np.testing.assert_array_equal(copy.mean_image, spec.mean_image)
    with pytest.raises(AttributeError):
        spec.crops = "center"
    for name, advice in (("dtype", "float32 or float16"), ("pool", "none, avg or max")):
        with pytest.raises(UsageError, match=f"{name} 'x'.* Use {advice}"):
            ExtractionSpec(**{name: "x"})


@pytest.mark.parametrize("output", GROWING)
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

    assert extract("photos", output, retry_errors=True).kept == 12, "tried, and bad again"
    (tmp_path / bad[0]).write_bytes((tmp_path / names[0]).read_bytes())
    report = extract("photos", output)
    assert (report.inputs, report.rows, report.kept) == (14, 13, 13)
    assert [failure.path for failure in report.errors] == bad[1:]
    check(output, [*names, bad[0]], bad[1:])

    report = extract(names[3], output)
    assert (report.inputs, report.absent) == (14, 13)
    check(output, [*names, bad[0]], bad[1:])
    assert not glob.glob("f*.job"), "a finished job leaves no working folder"


@pytest.mark.parametrize("output", ["f.npz", "f.npy", "f.mat"])
def test_finished_archives_do_not_grow(output, extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 5)
    extract(paths, output)
    before = files_below(".")
    assert extract(paths[1:], output).kept == 5
    jobs.photos(tmp_path / "photos", 1, start=7)
    with pytest.raises(
        UsageError, match=r"1 photo is new or changed; \.(np.|mat) files don't grow"
    ):
        extract("photos", output, add=True)
    os.unlink("photos/0007.png")
    assert files_below(".") == before
    jobs.photos(tmp_path / "photos", 1, start=7)
    assert extract("photos", output, force=True).rows == 6


def test_photos_are_known_by_their_content(extract, tmp_path):
    """Whatever they are called; what changed is done again, and what is gone stays."""
    paths = jobs.photos(tmp_path / "photos", 6)
    names = [os.path.relpath(path) for path in paths]
    extract("photos", "f/")
    os.rename(names[0], "x")  # renumbered
    os.rename(names[1], names[0])
    os.rename("x", names[1])
    jobs.photos(tmp_path / "photos", 1, start=2)  # touched
    os.unlink(names[3])
    report = extract("photos", "f/")
    assert (report.rows, report.kept, report.changed, report.absent) == (6, 4, 2, 1)
    rows, _ = read("f/")
    jobs.photos(tmp_path / "photos", 1, start=3)
    for name, row in expected(names).items():
        np.testing.assert_array_equal(rows[name], row)


@pytest.mark.parametrize("output", OUTPUTS)
def test_one_folder_has_many_names(output, extract, tmp_path):
    jobs.photos(tmp_path / "day1", 5)
    names = [f"day1/{i:04d}.png" for i in range(5)]
    extract(["day1", "./day1"], output)
    os.symlink("day1", "today")
    for name in ("./day1", tmp_path / "day1", "today", "day1/../day1", ["today", "day1"]):
        assert extract(name, output).kept == 5
        check(output, names)


def test_moved_photos_need_add(extract, tmp_path):
    jobs.photos(tmp_path / "day1", 5)
    extract("day1", "f/")
    os.rename("day1", "day2")
    before = files_below(".")
    with pytest.raises(
        UsageError, match=r"none for the 5 photos named\. Were they moved\? Pass --add"
    ):
        extract("day2", "f/")
    assert files_below(".") == before
    report = extract("day2", "f/", add=True)
    assert (report.inputs, report.rows, report.absent) == (10, 10, 5)


@pytest.mark.parametrize("output", ["f/", "f.parquet/"])
def test_a_folder_of_shards_says_what_it_holds(output, extract, tmp_path):
    jobs.photos(tmp_path / "photos", 6)
    odd = 'photos/a "b"\n\udcff.png'
    open(odd, "w").close()
    report = extract("photos", output, layers=["fc7", "conv5"])
    with open(f"{output}_manifest.json") as file:
        manifest = json.load(file)
    assert [manifest[name] for name in ("inputs", "rows", "errors")] == [7, 6, 1]
    assert manifest["attributes"] == report.attributes
    sizes = {os.path.basename(path): os.path.getsize(path) for path in data_files(output)}
    assert {shard["name"]: shard["size"] for shard in manifest["shards"]} == sizes
    assert sum(shard["rows"] for shard in manifest["shards"]) == 6
    assert set(os.listdir(output)) == {".job", "_errors.csv", "_manifest.json", *sizes}
    with open(f"{output}_errors.csv", newline="", errors="surrogateescape") as file:
        table = list(csv.reader(file))
    assert table == [["path", "code", "detail"], list(report.errors[0][:3])]
    assert table[1][:2] == [odd, "empty"]


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
def test_a_name_that_no_file_can_have_is_one_failure(output, extract, tmp_path):
    (path,) = jobs.photos(tmp_path / "photos", 1)
    os.rename(path, os.fsencode("p\udcff.png"))
    pathlib.Path("list.txt").write_bytes(b"none\xfe.png\n" + b"n" * 5000 + b".png\n")
    images = [b"p\xff.png", "list.txt", "\ud800.png"]  # the last is not even bytes
    report = extract(images, output)
    assert (report.rows, len(report.errors)) == (1, 3)
    assert extract(images, output).kept == 4


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_may_have_any_name(output, extract, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.Network, "weights_source", "net\udcff\n.npy")
    paths = jobs.photos(tmp_path / "photos", 6)
    output = f"new\nline \udcff{output}"
    extract(paths[: 5 if output in GROWING else 6], output)
    assert extract(paths, output).kept >= 5
    check(output, paths)


@pytest.mark.parametrize("output", ["f.H5", "f.NPZ", "f.Npy", "f.PARQUET", "F.Parquet/"])
def test_suffixes_in_capitals(output, extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "bad.png").touch()
    extract("photos", output)
    assert extract("photos", output).kept == 4
    assert not output.endswith("/") or len(pq.read_table(output)) == len(paths)


@pytest.mark.parametrize("output", OUTPUTS)
def test_two_runs_give_the_same(output, extract, tmp_path):
    jobs.photos(tmp_path / "photos", 9)
    (tmp_path / "photos" / "bad.png").touch()
    extract("photos", output)
    first = content(output)
    extract("photos", output, force=True)
    assert content(output) == first


@pytest.mark.parametrize("output", GROWING)
def test_all_photos_of_a_shard_may_be_bad(output, extract, tmp_path):
    good = jobs.photos(tmp_path / "photos", 2)
    bad = [f"photos/{i}bad.png" for i in range(5)]
    for path in bad:
        open(path, "w").close()
    for retry in (False, True):
        extract([*bad, *good], output, layers=["fc7", "conv5"], retry_errors=retry)
        check(output, good, bad)
        if output.startswith("f.parquet"):
            assert pq.read_table(output).column_names[-1] == "conv5"
        else:
            for path in glob.glob(f"{output}*.h5") or [output]:
                with h5py.File(path) as file:
                    assert file["conv5"].shape == (2, 2, 2, 6)


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
        with pytest.raises(UsageError, match=rf"started with other settings \({change}\)\. Use"):
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
    # Sizes of batches and shards are not such settings.
    assert extract(paths, output, layers=["conv5"], batch_size=5, shard_size=9).kept == 5


@pytest.mark.parametrize("output", GROWING)
def test_releases_of_libraries_are_no_settings(output, extract, tmp_path, monkeypatch):
    paths = jobs.photos(tmp_path / "photos", 6)
    extract(paths[:4], output)
    monkeypatch.setattr(worker, "VERSION", "9.9")
    monkeypatch.setattr(worker.PIL, "__version__", "99.0")
    monkeypatch.setattr(worker.cv2, "__version__", "99.0")
    report = extract(paths, output)
    assert (report.rows, report.kept) == (6, 4)
    assert report.attributes["pillow_version"] == "99.0"
    monkeypatch.setattr("tf_alexnet.extraction.spec.PIPELINE_VERSION", 99)
    with pytest.raises(UsageError, match=r"pipeline_version \d+ -> 99"):
        extract(paths, output)


def test_what_is_not_ours_is_left_alone(extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 2)
    for name in ("f.h5", "f.npz", "f.npy", "f.parquet"):
        (tmp_path / name).write_text("a diary")
        with pytest.raises(OutputError, match="it exists already, and was not written by an"):
            extract(paths, name)
    for name, file in (("g", "diary"), ("g.h5.job", "diary"), ("h", "shards"), ("i", "a.h5")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("dear")
        (tmp_path / name / "_errors.csv").write_text("mine")
        (tmp_path / name / "_manifest.json").write_text('{"shards": [1]}')
        for force in (False, True):
            with pytest.raises(OutputError, match="holds files that no extraction wrote"):
                extract(paths, f"{name}/".removesuffix(".job/"), force=force)
            found = files_below(name)
            assert found == {
                file: b"dear",
                "_errors.csv": b"mine",
                "_manifest.json": b'{"shards": [1]}',
            }
    (tmp_path / "j" / ".job").mkdir(parents=True)
    (tmp_path / "j" / ".job" / "job.json").write_text("{}")
    for force in (False, True):
        with pytest.raises(OutputError, match="not written by an extraction of this version"):
            extract(paths, "j/", force=force)
    extract(paths, "f.h5", force=True)
    check("f.h5", paths)
    with pytest.raises(OutputError, match=r"f\.h5: it is a file"):
        extract(paths, "f.h5/")


def test_strangers_among_the_files_of_a_job_stay(extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 6)
    extract(paths, "f/")
    strangers = ("f/notes.txt", "f/000000-a.h5", "f/.job/notes", "f/.job/tmp-x")
    for name in strangers:
        pathlib.Path(name).write_text("mine")
    (tmp_path / "f" / "old").mkdir()
    extract(paths[:2], "f/", force=True)
    assert {pathlib.Path(name).read_text() for name in strangers} == {"mine"}
    assert os.path.isdir("f/old")
    assert len(data_files("f/")) == 1


@pytest.mark.parametrize("output", OUTPUTS)
def test_force_costs_nothing_before_there_is_something_new(output, extract, tmp_path, monkeypatch):
    paths = jobs.photos(tmp_path / "photos", 6)
    extract(paths, output)
    before, old = files_below("."), content(output)

    def no_weights(*_, **__):
        raise WeightsError("w.npy", "there is no such file", "Check the name.")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "FeatureExtractor", no_weights)
        with pytest.raises(WeightsError):
            extract(paths, output, force=True)
    with pytest.raises(UsageError, match="no image found"):
        extract([], output, force=True)
    assert files_below(".") == before
    with pytest.raises(StopError):
        extract(paths, output, force=True, progress=stop_after(5))
    assert content(output) == old, "until its successor is whole"
    assert extract(paths, output).rows == 6
    assert content(output) == old
    (tmp_path / "photos" / "bad.png").touch()
    with pytest.raises(ImageError, match="none could be read"):
        extract("photos/bad.png", output, force=True)
    assert content(output) == old


@pytest.mark.parametrize("output", ["f/", "f.parquet/", "f.h5"])
def test_outputs_of_version_0_1_are_refused(output, extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 3)
    folder = tmp_path / (output if output.endswith("/") else f"{output}.job")
    (folder / "shards").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    for force in (False, True):
        with pytest.raises(OutputError, match="it was started by an older version"):
            extract(paths, output, force=force)
    (folder / "manifest.json").unlink()
    (folder / "shards").rmdir()
    folder.rmdir()
    if output == "f.h5":
        with h5py.File("f.h5", "w") as file:
            file.create_dataset("fc7", data=np.zeros((1, 2)), chunks=True)
            file.create_dataset("paths", data=["a"], dtype=h5py.string_dtype(), chunks=True)
            for name in ("paths", "codes", "details"):
                text = h5py.string_dtype()
                file.create_dataset(f"errors/{name}", (0,), text, maxshape=(None,), chunks=True)
            file.attrs.update({"weights_digest": "sha256:0", "layers": "fc7"})
        with pytest.raises(OutputError, match=r"written by an older version.*--force"):
            extract(paths, "f.h5")


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_interrupted_job_goes_on(output, extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 14)
    extract(paths, f"whole {output}")
    with pytest.raises(StopError):
        extract(paths, output, progress=stop_after(2))
    assert not [name for name in os.listdir(".") if name.startswith("f")], "nothing to go on from"
    with pytest.raises(StopError):
        extract(paths, output, progress=stop_after(10))
    kept = {path: os.stat(path).st_ino for path in data_files(output)}
    assert len(kept) == 2
    asked = []
    report = extract(paths, output, progress=lambda *numbers: asked.append(numbers))
    assert report.kept == 8
    assert asked[0] == (0, 6, 0, 0)
    assert asked[-1] == (6, 6, 0, 6 * 32 * 4), "progress is this run's"
    if output.endswith("/"):
        assert kept.items() <= {path: os.stat(path).st_ino for path in data_files(output)}.items()
    assert content(output) == content(f"whole {output}")
    check(output, paths)


@pytest.mark.parametrize("output", ["f/", "f.parquet/", "f.h5"])
def test_shards_that_were_lost_or_damaged(output, extract, tmp_path):
    """They are done again, or refused if their photos are not among the inputs."""
    paths = jobs.photos(tmp_path / "photos", 14)
    whole = f"whole-{output}"
    extract(paths, whole)

    def stopped(done, *_):
        if done > 12:
            raise StopError

    for case in ("again", "refused"):
        subprocess.run(["rm", "-rf", output, "f.h5.job"], check=True)
        with pytest.raises(StopError):
            extract(paths, output, progress=stopped)
        files = data_files(output)
        os.unlink(files[1])
        os.truncate(files[2], 100)
        if case == "again":
            assert extract(paths, output).kept == 4
            assert content(output) == content(whole)
            continue
        before = files_below(".")
        for inputs in (paths[:4], paths[4:9]):
            with pytest.raises(
                OutputError, match=r"missing or damaged, and 1 more; [83] of its ph"
            ):
                extract(inputs, output)
        assert files_below(".") == before
        report = extract(paths[4:9], output, discard_damaged=True)
        assert (report.inputs, report.rows, report.kept) == (9, 9, 4)
        check(output, paths[:9])


@pytest.mark.parametrize("output", ["f.h5", "f.parquet"])
def test_damage_that_keeps_the_size_is_found_when_rows_are_read(output, extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 10)
    with pytest.raises(StopError):
        extract(paths, output, progress=stop_after(9))
    (name, _) = data_files(output)
    data = bytearray(pathlib.Path(name).read_bytes())
    start = data.index(expected(paths[:1])[paths[0]].tobytes())
    data[start] ^= 1
    pathlib.Path(name).write_bytes(data)
    with pytest.raises(OutputError, match=r"it is damaged .*Delete this file and run the same"):
        extract(paths, output)
    os.unlink(name)
    assert extract(paths, output).rows == 10
    check(output, paths)


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

    for owner, name in (
        (storage.os, "scandir"),
        (storage.LocalFileSystem, "cat_file"),
        (job, "open_output"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            with pytest.raises(OutputError, match=r"it can't be read \((Input/output|whatever)"):
                extract(paths, output)
        if name != "open_output":
            assert files_below(".") == before
    assert extract(paths, output).rows == 10
    check(output, paths)


def test_errors_may_be_limited(extract, tmp_path):
    good = jobs.photos(tmp_path / "photos", 10)
    bad = [f"photos/bad{i}.png" for i in range(3)]
    for path in bad:
        open(path, "w").close()
    images = [*good[:5], bad[0], *good[5:], *bad[1:]]
    for limit, shards in (("0", 1), (1, 2), ("8%", 2), (2, 3), ("22%", 3), (0, 3)):
        with pytest.raises(
            ImageError, match=r"at most [012] may fail(; the last: photos/bad\d.p)?"
        ):
            extract(images, "f.h5", max_errors=limit)
        assert len(data_files("f.h5")) == shards
    report = extract(images, "f.h5", max_errors="25%")
    assert (report.rows, len(report.errors), report.kept) == (10, 3, 12)
    check("f.h5", good, bad)
    with pytest.raises(ImageError, match="3 photos: could not be read, and at most 2 may"):
        extract(images, "f.h5", max_errors=2)  # also when nothing is left to do
    # What counts is this run's inputs and their errors, not those of other runs.
    assert extract([*good, bad[0]], "f.h5", max_errors="10%").absent == 2
    with pytest.raises(ImageError, match="at most 0 may fail"):
        extract([*good[:8], bad[0]], "f.h5", max_errors="10%")


@pytest.mark.parametrize("output", OUTPUTS)
def test_file_systems_without_hard_links_will_do(output, extract, tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    paths = jobs.photos(tmp_path / "photos", 6)
    extract(paths, output)
    check(output, paths)
    assert extract(paths, output).kept == 6


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
    (tmp_path / "f.h5.job" / ".lock").write_text("")
    (tmp_path / "f.h5.job" / ".holder").write_text(f"process {os.getpid()} on here")
    extract(paths, "f.h5")
    assert sorted(os.listdir(".")) == ["f.h5", "photos"]


def test_calls_leave_no_file_open(extract, tmp_path):
    paths = jobs.photos(tmp_path / "photos", 3)
    outputs = OUTPUTS[:-1]
    for output in outputs:
        extract(paths, output)
    before = sorted(os.listdir("/proc/self/fd"))
    for output in outputs:
        extract(paths, output)
        for arguments in ({"dtype": "float16"}, {"max_errors": "x"}, {"layers": ["fc9"]}):
            with pytest.raises((UsageError, KeyError)):
                extract(paths, output, **arguments)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("output", OUTPUTS)
def test_names_are_durable_too(output, extract, tmp_path, monkeypatch):
    """Whatever gets a name, its folder is written to the disk after it."""
    events = []

    def spied(name, kind):
        call = getattr(os, name)

        def spy(*arguments):
            found = call(*arguments)
            path = (
                arguments[-1] if name != "fsync" else os.readlink(f"/proc/self/fd/{arguments[0]}")
            )
            events.append((kind, os.path.abspath(path)))
            return found

        monkeypatch.setattr(storage.os, name, spy)

    spied("fsync", "sync")
    spied("replace", "named")
    spied("link", "named")
    extract(jobs.photos(tmp_path / "photos", 6), output)
    named = [i for i, (kind, _) in enumerate(events) if kind == "named"]
    assert len(named) > 5
    for i in named:
        folder = os.path.dirname(events[i][1])
        assert events[i + 1] == ("sync", folder), events[i]
        assert events[i - 1][0] == "sync", "its content before it"


def test_a_replaced_file_and_its_name_are_durable(tmp_path, monkeypatch):
    from tf_alexnet import files

    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    with files.replacing(tmp_path / "x") as temporary:
        temporary.write_text("text")
    assert synced[1:] == [str(tmp_path)]
    assert synced[0].endswith(".part")


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    return files


@pytest.mark.parametrize(
    "output",
    [x if x in ("f.h5", "f/") else pytest.param(x, marks=pytest.mark.slow) for x in OUTPUTS],
)
def test_files_behind_urls(output, extract, tmp_path, monkeypatch, memory):
    from tf_alexnet.extraction.reader import PhotoReader

    monkeypatch.setattr(worker, "PhotoReader", PhotoReader)
    local = jobs.photos(tmp_path / "photos", 6)
    for path in local:
        memory.put_file(path, f"/in/{os.path.basename(path)}")
    memory.pipe_file("/in/bad.jpg", b"no picture")
    memory.pipe_file("/in/.hidden.jpg", b"")
    memory.pipe_file("/in/notes.pdf", b"")
    url = f"memory://bucket/out/{output}"
    with pytest.raises(StopError):
        extract("memory://in", url, progress=stop_after(6))
    assert memory.glob("/bucket/out/*/job.json") or memory.glob("/bucket/out/*/.job/job.json")
    report = extract("memory://in", url)
    assert (report.rows, report.kept, report.errors[0].code) == (6, 4, "not_an_image")
    if output in GROWING:
        memory.put_file(local[0], "/in/more/last.png")
        report = extract(["memory://in"], url)
        assert (report.rows, report.kept) == (7, 7)
    assert report.errors[0].path == "memory:///in/bad.jpg"
    memory.get(f"/bucket/out/{output}", output, recursive=output.endswith("/"))
    if output == "f.npy":
        memory.get(f"/bucket/out/{output}.json", f"{output}.json")
    rows, _ = read(output)
    wanted = expected(local)
    for path in local:
        found = rows[f"memory:///in/{os.path.basename(path)}"]
        np.testing.assert_array_equal(found, wanted[path])
    assert output.endswith("/") or not [x for x in memory.find("/bucket") if ".job" in x]
    with pytest.raises(UsageError, match=r"nosuch://x: it can't be reached"):
        extract("nosuch://x", "g.h5")


def test_photos_in_an_archive_are_done_once(extract, tmp_path, monkeypatch):
    from tf_alexnet.extraction.reader import PhotoReader

    monkeypatch.setattr(worker, "PhotoReader", PhotoReader)
    jobs.photos(tmp_path / "photos", 3)
    shutil.make_archive("p", "zip", tmp_path / "photos")
    for url in ("zip://*.png::p.zip", "zip://::p.zip"):
        report = extract(url, "f.h5")
        assert (report.rows, report.kept, report.unreadable) == (3, 0, 0)
        report = extract(url, "f.h5")
        assert (report.rows, report.kept, report.unreadable) == (3, 3, 0)
        os.remove("f.h5")


@pytest.mark.parametrize("output", OUTPUTS)
def test_nothing_is_fetched_to_be_counted(output, extract, tmp_path, monkeypatch, memory):
    paths = jobs.photos(tmp_path / "photos", 9)
    url = f"memory://bucket/{output}"
    extract(paths, url)
    fetched, get_file = [], Folder.reading

    def reading(self, *names):
        fetched.extend(names)
        return get_file(self, *names)

    monkeypatch.setattr(Folder, "reading", reading)
    assert extract(paths, url).kept == 9
    files = 0 if output.endswith("/") else 2 if output == "f.npy" else 1
    assert len(fetched) == files, "a finished file once, of a folder nothing"


def test_what_is_not_installed_is_named(extract, tmp_path, monkeypatch):
    paths = jobs.photos(tmp_path / "photos", 1)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'tf-alexnet\[parquet\]'"):
        extract(paths, "f.parquet")


def test_a_gpu_gets_larger_batches(extract, monkeypatch):
    for on_gpu, size in ((False, 64), (True, 256)):
        monkeypatch.setattr(jobs.Network, "on_gpu", on_gpu)
        assert worker.Worker(ExtractionSpec()).batch_size == size
        ten = worker.Worker(ExtractionSpec(crops="ten")).batch_size
        assert ten == size // 10, "as many pictures, or a few less"


LISTED = [name for name in OUTPUTS if not name.endswith("/")]


def listed(output):
    """(paths, rows) of a finished file, as they stand."""
    with open_output(output) as found:
        blocks = list(found.blocks(["fc7"]))
        return found.paths, np.concatenate([block["fc7"] for block in blocks])


def test_names_of_an_npy_that_are_not_ours_stay(extract, tmp_path):
    paths = jobs.photos(tmp_path / "p", 3)
    names = tmp_path / "f.npy.json"
    names.write_text("{}\n")
    message = (
        r"^f\.npy\.json: it exists already, and was not written by an extraction\. Name another"
    )
    with pytest.raises(OutputError, match=message):
        extract(paths, "f.npy")
    names.unlink()
    with pytest.raises(OutputError, match="another file appeared there meanwhile"):
        extract(paths, "f.npy", progress=lambda *_: names.touch())
    with pytest.raises(OutputError, match=message):
        extract(paths, "f.npy")
    assert names.read_bytes() == b""
    names.unlink()
    assert extract(paths, "f.npy").rows == 3
    names.write_bytes(UNFINISHED)
    with pytest.raises(ValueError, match=r"^it is unfinished$"):
        listed("f.npy")
    with pytest.raises(OutputError, match=r"^f\.npy: it is unfinished, and its job is gone\. Name"):
        extract(paths, "f.npy")


@pytest.mark.parametrize("output", LISTED)
def test_every_line_of_a_list_may_have_its_row(extract, tmp_path, output):
    paths = jobs.photos(tmp_path / "p", 6)
    lines = [paths[3], paths[0], paths[3], *paths, paths[5], paths[0]]
    report = extract(lines, output)
    assert (report.rows, report.inputs, report.repeats) == (6, 6, 5)
    assert listed(output)[0] == [paths[3], paths[0], paths[1], paths[2], paths[4], paths[5]]

    for again in range(2):  # the second finds it finished
        arguments = {"force": not again, "repeats": "keep"}
        report = extract(lines, output, **arguments)
        assert (report.rows, report.inputs, report.repeats) == (11, 6, 5)
        found, rows = listed(output)
        assert found == lines
        wanted = expected(paths)
        np.testing.assert_array_equal(rows, [wanted[path] for path in lines])

    if output in GROWING:  # another order is another file
        assert extract(paths, output).rows == 6
        assert listed(output)[0] == list(dict.fromkeys(lines))
        assert extract(lines[::-1], output, repeats="keep").kept == 6
        assert listed(output)[0] == lines[::-1]
    else:
        with pytest.raises(UsageError, match="its rows differ"):
            extract(lines[::-1], output, repeats="keep")
        assert listed(output)[0] == lines


@pytest.mark.parametrize("output", ["f.h5", "f.npz", "f.npy", "f.mat"])
def test_photos_that_cannot_be_read_may_have_rows_of_nan(extract, tmp_path, output):
    paths = jobs.photos(tmp_path / "p", 5)
    (tmp_path / "p" / "0001.png").write_bytes(b"not a photo")
    os.unlink(paths[3])
    lines = [*paths, paths[1]]
    report = extract(lines, output, repeats="keep", missing="nan")
    assert (report.rows, report.inputs, report.nan, len(report.errors)) == (6, 5, 3, 2)
    found, rows = listed(output)
    assert found == lines
    assert np.isnan(rows).all(1).tolist() == [False, True, False, True, False, True]
    good = expected([paths[0], paths[2], paths[4]])
    np.testing.assert_array_equal(rows[[0, 2, 4]], list(good.values()))

    assert extract(lines, output, repeats="keep", missing="nan").kept == 5
    if output == "f.h5":  # rows of NaN are not taken for rows
        jobs.photos(tmp_path / "p", 5)
        report = extract(lines, output, missing="nan", retry_errors=True)
        assert (report.rows, report.nan, len(report.errors)) == (5, 0, 0)
        np.testing.assert_array_equal(listed(output)[1], list(expected(paths).values()))


def test_listings_that_cannot_be_had(extract, tmp_path):
    paths = jobs.photos(tmp_path / "p", 3)
    for output, arguments, line in (
        ("f/", {"repeats": "keep"}, "a folder of shards has one row per photo"),
        ("f.parquet/", {"missing": "nan"}, "a folder of shards has one row per photo"),
        ("f.parquet", {"missing": "nan"}, "a .parquet file has rows, with a status"),
        ("f.h5", {"missing": "none"}, "Use drop or nan"),
    ):
        with pytest.raises(UsageError, match=line):
            extract(paths, output, **arguments)
    extract(paths)
    with pytest.raises(UsageError, match="1 photo of it is not among these inputs"):
        extract(paths[:2], repeats="keep")
    check("f.h5", paths)
