"""`PhotoReader`: order, memory, and that a bad photo costs that photo only."""

import errno
import hashlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tf_alexnet import remote
from tf_alexnet.errors import AlexNetError, ImageError, InputError, PresetError, UsageError
from tf_alexnet.extraction import REASONS
from tf_alexnet.extraction import reader as reader_module
from tf_alexnet.extraction.decoder import digest_of, stat_text
from tf_alexnet.extraction.reader import Batch, Photo, PhotoReader
from tf_alexnet.images import find_images, load_image, preprocess_input

# What a process may take on a busy machine; on a quiet one each of these is over in a second.
SOON = 20.0


def expected(paths, preset="caffe", **options):
    return preprocess_input([load_image(path) for path in paths], preset, **options)


def read(paths, batch_size=4, preset="caffe", **options):
    with PhotoReader(preset, **{"workers": 1, **options}) as reader:
        return list(reader.batches(map(str, paths), batch_size))


def codes(batches):
    return {os.path.basename(f.path): f.code for batch in batches for f in batch.failures}


@pytest.fixture
def photos(tmp_path, example_photos):
    """Eleven small pictures, each its own colour and size."""
    paths = []
    for number in range(11):
        path = tmp_path / f"{number:02}.png"
        Image.new("RGB", (10 + number, 30 - number), (20 * number, 7, 250)).save(path)
        paths.append(str(path))
    return paths


@pytest.fixture
def faulty(monkeypatch):
    monkeypatch.setattr(reader_module, "PROGRAM", "faulty_decoder")
    monkeypatch.setattr(reader_module, "_MIN_STALL", 2.0)


def gone(pid):
    """Whether a process is no more, or waits for nothing but a parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


def pids(reader):
    return [decoder._process.pid for decoder in reader._decoders if decoder._process]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_keep_the_order_of_the_input(photos, tmp_path, workers):
    (tmp_path / "empty.jpg").touch()
    names = [*photos[:6], str(tmp_path / "empty.jpg"), photos[2], photos[2], *photos[6:]]
    batches = read(names, 4, workers=workers)
    assert [len(b.paths) + len(b.failures) for b in batches] == [4, 4, 4, 2]
    assert [p for b in batches for p in b.paths] == [n for n in names if n in photos]
    assert [f.path for f in batches[1].failures] == [names[6]]
    for batch in batches:
        assert isinstance(batch, Batch)
        assert batch.pixels.dtype == np.float32
        assert batch.pixels.flags.c_contiguous
        np.testing.assert_array_equal(batch.pixels, expected(batch.paths))


def test_photos_are_the_same_as_without_processes(example_photos):
    for preset in ("caffe", "torchvision", "udacity"):
        (batch,) = read(example_photos, 64, preset)
        np.testing.assert_array_equal(batch.pixels, expected(example_photos, preset))


def test_fast_decoding_is_for_large_jpegs_only(tmp_path, example_photos):
    large, small = tmp_path / "large.jpg", tmp_path / "small.jpg"
    photo = Image.open(example_photos[0]).convert("RGB")
    photo.resize((1100, 1200)).save(large, quality=95)
    photo.resize((1000, 1200)).save(small, quality=95)
    (plain,) = read([large, small])
    np.testing.assert_array_equal(plain.pixels, expected([large, small]))
    (fast,) = read([large, small], fast_decode=True)
    np.testing.assert_array_equal(fast.pixels[1], plain.pixels[1])
    difference = np.abs(fast.pixels[0] - plain.pixels[0]).mean()
    assert 0 < difference < 5  # observed 1.9


def test_ten_crops_mean_image_and_raw(photos, tmp_path):
    (batch,) = read(photos[:3], crops="ten")
    np.testing.assert_array_equal(batch.pixels, expected(photos[:3], crops="ten"))
    mean = np.arange(3 * 256 * 256, dtype=np.float64).reshape(3, 256, 256) % 251
    np.save(tmp_path / "mean.npy", mean)
    (batch,) = read(photos[:3], preset="caffe-mean-image", mean_image=tmp_path / "mean.npy")
    wanted = expected(photos[:3], "caffe-mean-image", mean_image=mean)
    np.testing.assert_array_equal(batch.pixels, wanted)
    (batch,) = read(photos[:3], preset="caffe", mean_image=mean[:, 14:241, 14:241])
    np.testing.assert_array_equal(batch.pixels, wanted)
    (batch,) = read(photos[:3], preset="squash.size64", mean_image="104,117,123")
    wanted = expected(photos[:3], "squash.size64.mean104-117-123")
    np.testing.assert_array_equal(batch.pixels, wanted)
    (batch,) = read(photos[:1], preset="caffe.anysize", fast_decode=True)
    np.testing.assert_array_equal(batch.pixels, expected(photos[:1], "caffe.anysize"))
    first, second = read([photos[0], photos[1], photos[0]], 2, "raw")
    np.testing.assert_array_equal(first.pixels, expected(photos[:1], "raw"))
    assert first.failures[0].code == "bad_shape"
    assert "11x29 pixels, those before 10x30" in first.failures[0].detail
    assert second.pixels.shape == (1, 30, 10, 3)


def test_a_batch_without_a_readable_photo(tmp_path):
    (batch,) = read([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert batch.pixels.shape == (0, 227, 227, 3)
    assert batch.pixels.dtype == np.float32
    assert batch.paths == []
    assert codes([batch]) == {"a.jpg": "missing", "b.jpg": "missing"}
    assert read([]) == []


def test_every_reason_has_its_code(photos, tmp_path, monkeypatch):
    good = Path(photos[0]).read_bytes()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.png").write_bytes(good[:60])
    Image.new("L", (8000, 6300)).save(tmp_path / "huge.png")
    Image.new("F", (3, 3)).save(tmp_path / "float.tiff")
    Image.new("L", (40000, 2)).save(tmp_path / "line.png")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    wanted = {
        "empty.jpg": "empty",
        "folder.jpg": "is_folder",
        "text.jpg": "not_an_image",
        "cut.png": "damaged",
        "huge.png": "too_large",
        "float.tiff": "unsupported",
        "line.png": "bad_shape",
        "loop.jpg": "unreadable",
        "pipe.jpg": "unreadable",
        "dangling.jpg": "missing",
    }
    batches = read([tmp_path / name for name in wanted], 3, "torchvision")
    assert codes(batches) == wanted
    for batch in batches:
        for failure in batch.failures:
            if failure.code != "bad_shape":  # that is no matter of decoding
                with pytest.raises(ImageError) as caught:
                    load_image(failure.path)
                assert (caught.value.code, caught.value.found) == failure[1:3]
                assert pickle.loads(pickle.dumps(caught.value)).code == failure.code
    assert set(wanted.values()) <= set(REASONS)


def test_no_permission(photos, tmp_path):
    Path(photos[0]).chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    assert codes(read(photos[:2])) == {"00.png": "no_permission"}


def blake2b(path):
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


def test_photos_and_failures_know_what_was_read(photos, tmp_path):
    good = Path(photos[0]).read_bytes()
    (tmp_path / "cut.png").write_bytes(good[:60])
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2**29 + 1)
    names = ["cut.png", "empty.png", "folder.png", "pipe.png", "large.png", "missing.png"]
    names = [*photos, *(str(tmp_path / name) for name in names)]
    for path in names[:13]:
        os.utime(path, (2**33, 2**33))
    with PhotoReader("raw", workers=1) as reader:
        (early,) = reader.batches(names, 99)
        for path in names[1:13]:
            os.utime(path, (5, 5))
        time.sleep(2.1)
        (late,) = reader.batches(names, 99)
    assert early.paths == photos[:1], "of ten sizes"
    assert {found.stat for batch in (early, late) for found in batch.photos} == {None}
    assert {failure.stat for failure in early.failures} == {None}, "of the future"
    stats = {failure.path: failure.stat for failure in late.failures}
    for batch in (early, late):
        digests = {found.path: found.digest for found in (*batch.photos, *batch.failures)}
        assert digests == {
            **{path: blake2b(path) for path in names[:13]},
            **dict.fromkeys(names[13:]),
        }
    for path in names[1:13]:
        found = os.stat(path)
        assert stats[path] == f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    assert [stats[path] for path in names[13:]] == [None] * 4


def test_a_stat_is_believed_after_two_seconds():
    def stat(mtime, ctime):
        times = {"st_mtime_ns": int(mtime * 1e9), "st_ctime_ns": int(ctime * 1e9)}
        return SimpleNamespace(st_size=7, st_mtime=mtime, st_ctime=ctime, **times)

    assert stat_text(stat(98.0, 50.5), 100.0) == "7 98000000000 50500000000"
    assert stat_text(stat(50.5, 98.0), 100.0) == "7 50500000000 98000000000"
    for mtime, ctime in [(98.5, 50), (50, 98.5), (100, 100), (50, 300), (2**33, 50)]:
        assert stat_text(stat(mtime, ctime), 100.0) is None


def test_a_file_that_keeps_changing_has_no_stat(faulty, tmp_path, photos):
    """What was decoded of it has a digest."""
    path = str(tmp_path / "unstable.png")
    Path(path).write_bytes(Path(photos[0]).read_bytes())
    os.utime(path, (5, 5))
    time.sleep(2.1)
    ((found,),) = (batch.photos for batch in read([path]))
    assert found == (path, None, blake2b(path), None)


DIED = "worker_died", "it ended the process that decoded it"
STALLED = "timed_out", "reading it stalled for 2 seconds"
FAULTS = {
    "unread-exits": DIED,
    "unread-sleeps": STALLED,
    "exits": DIED,
    "killed": DIED,
    "crashes": DIED,
    "hungry": ("too_large", "there is not enough memory to decode it"),
    "sleeps": STALLED,
    "hangs": ("timed_out", "it took more than 0.3 seconds of processor time"),
}


@pytest.mark.parametrize(
    ("faults", "copies"),
    [
        (["unread-exits", "exits", "killed", "crashes", "hungry"], 1),
        (["unread-sleeps", "sleeps"], 1),
        (["hangs"], 1),
        *(pytest.param([fault], 2, marks=pytest.mark.slow) for fault in FAULTS),
    ],
    ids=lambda x: x if isinstance(x, int) else " ".join(x),
)
def test_photos_that_end_their_decoders_cost_those_photos(
    faulty, photos, tmp_path, faults, copies, monkeypatch
):
    if "hangs" in faults:  # also where the machine is busy
        monkeypatch.setattr(reader_module, "_MIN_STALL", 60.0)
    bad = [str(tmp_path / f"{fault}-{number}.png") for fault in faults for number in range(copies)]
    for number, path in enumerate(bad):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(path)
    names = [bad[0], *photos[:5], *bad[1:], *photos[5:]]
    late = FAULTS[faults[0]][0] == "timed_out"
    batches = read(names, 5, workers=2, timeout=0.3 if late else 10.0)
    failures = {failure.path: failure for batch in batches for failure in batch.failures}
    assert failures.keys() == set(bad)
    for path, failure in failures.items():
        fault = os.path.basename(path).rpartition("-")[0]
        assert (failure.code, failure.detail) == FAULTS[fault]
        assert failure.digest == (None if "unread" in fault else blake2b(path))
    assert [p for b in batches for p in b.paths] == photos
    for batch in batches:
        np.testing.assert_array_equal(batch.pixels, expected(batch.paths))


def test_a_process_that_others_end_costs_nothing(faulty, photos, tmp_path):
    once = [str(tmp_path / f"{fault}-once.png") for fault in ("exits", "sleeps")]
    for path in once:
        Image.new("RGB", (9, 9)).save(path)
    with PhotoReader("caffe", workers=2, timeout=0.3) as reader:
        batches = list(reader.batches([photos[0], *once, *photos[1:]], 6))
        assert codes(batches) == {}
        seen, ended = 0, 0
        for number, batch in enumerate(reader.batches(photos * 16, 11)):
            assert batch.paths == photos
            np.testing.assert_array_equal(batch.pixels[0], expected(photos[:1])[0])
            if number % 8 == 0:
                for pid in pids(reader):
                    os.kill(pid, signal.SIGKILL)
                    ended += 1
            seen += len(batch.paths)
    assert seen == 176
    assert ended >= 2


@pytest.mark.slow
def test_memory_does_not_grow(photos):
    asked, row = [], 4 * 227 * 227 * 3

    def names():
        for name in photos * 60:
            asked.append(name)
            yield name

    with PhotoReader("caffe", workers=2) as reader:
        tracemalloc.start()
        try:
            for number, batch in enumerate(reader.batches(names(), 33)):
                assert len(asked) <= 33 * (number + 2), "one batch ahead, no more"
                assert batch.pixels.shape == (33, 227, 227, 3)
            assert number == 19
            assert tracemalloc.get_traced_memory()[1] < 3.1 * 33 * row, "three batches at most"
            del batch
            tracemalloc.reset_peak()
            for batch in reader.batches(photos * 20, 1):
                assert len(batch.paths) == 1
            assert tracemalloc.get_traced_memory()[1] < (3.1 * 33 + 36) * row
            for batch in reader.batches(photos * 9, 33):
                assert batch.pixels.shape == (33, 227, 227, 3)
            assert tracemalloc.get_traced_memory()[1] < (3.1 * 33 + 36) * row, "the same again"
        finally:
            tracemalloc.stop()


def test_no_memory_for_photos(photos, monkeypatch):
    def empty(shape, _):
        raise MemoryError(f"Unable to allocate an array with shape {shape}")

    with PhotoReader("caffe") as reader:
        monkeypatch.setattr(reader_module.np, "empty", empty)
        with pytest.raises(AlexNetError, match=r"memory for photos: .* \(Unable to allocate"):
            reader.batches(photos, 4)


def test_batches_that_are_kept_stay_as_they_are(photos):
    with PhotoReader("caffe", workers=1) as reader:
        kept = list(reader.batches(photos, 2))
        views = [batch.pixels[-1:, 50:, 50:] for batch in kept]
        lasts = [batch.paths[-1:] for batch in kept]
        del kept
        for _ in reader.batches(photos[:1] * 30, 2):
            pass
    for view, path in zip(views, lasts, strict=True):
        np.testing.assert_array_equal(view, expected(path)[:, 50:, 50:])
        view += 1  # it is the caller's


def test_many_kept_batches_need_not_many_files(photos):
    before = len(os.listdir("/proc/self/fd"))
    batches = read(photos * 12, 1)
    assert len(os.listdir("/proc/self/fd")) < before + 110 < before + len(batches)
    rows = expected(photos)
    for number, batch in enumerate(batches):
        np.testing.assert_array_equal(batch.pixels[0], rows[number % 11])


def test_readings_may_end_early_and_overlap(photos):
    with PhotoReader("caffe", workers=2) as reader:
        early = reader.batches(photos * 5, 4)
        next(early)
        early.close()
        left, right = reader.batches(photos, 3), reader.batches(photos[::-1], 3)
        for one, other in zip(left, right, strict=True):
            np.testing.assert_array_equal(one.pixels, expected(one.paths))
            np.testing.assert_array_equal(other.pixels, expected(other.paths))
        unfinished = reader.batches(photos * 20, 3)
        next(unfinished)
        reader.batches(photos * 9, 3)  # begun, never asked for
    with pytest.raises(UsageError, match="it is closed"):
        list(unfinished)
    with pytest.raises(UsageError, match="it is closed"):
        reader.batches(photos, 3)


def test_what_the_input_raises_comes_through(photos):
    def names():
        yield from photos
        raise KeyError("list")

    with PhotoReader("caffe", workers=1) as reader, pytest.raises(KeyError, match="list"):
        list(reader.batches(names(), 2))


def test_nothing_is_left_behind(faulty, photos, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "killed.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "sleeps.png")
    before = (set(os.listdir("/dev/shm")), threading.active_count())
    files = len(os.listdir("/proc/self/fd"))
    with PhotoReader("caffe", workers=1, timeout=0.3) as reader:
        names = [*photos, str(tmp_path / "killed.png"), str(tmp_path / "sleeps.png")]
        batches = list(reader.batches(names, 4))
        assert len(codes(batches)) == 2
        batches = list(reader.batches(photos, 4))
        started = pids(reader)
        assert started
        stuck = reader.batches([str(tmp_path / "sleeps.png")], 1)
        assert stuck
    assert all(map(gone, started))
    assert (set(os.listdir("/dev/shm")), threading.active_count()) == before
    del batches, stuck
    assert len(os.listdir("/proc/self/fd")) <= files


def test_odd_names_and_a_working_folder_that_changes(tmp_path, monkeypatch):
    names = ["new\nline.png", "quote'\".png", b"bytes\xff.png", "ünïcode.png", " spaces .png"]
    names = [os.fsdecode(name) for name in names]
    for name in names:
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with PhotoReader("caffe", workers=1) as reader:
        (batch,) = reader.batches(names, 9)
        assert batch.paths == names
        monkeypatch.chdir("elsewhere")
        (batch,) = reader.batches([*names, "nul\0.png", "x" * 100_000, "../new\nline.png"], 9)
        monkeypatch.chdir(tmp_path)
        begun = reader.batches(names * 8, 9)
        monkeypatch.chdir("elsewhere")
        assert [len(batch.paths) for batch in begun] == [9, 9, 9, 9, 4]
    assert batch.paths == ["../new\nline.png"]
    assert [failure.code for failure in batch.failures] == ["missing"] * 5 + ["unreadable"] * 2


def test_urls(photos, monkeypatch):
    files = fsspec.filesystem("memory")
    for number, path in enumerate(photos):
        files.pipe(f"/reader/{number}.png", Path(path).read_bytes())
    big = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    Image.fromarray(big).save(photos[0])  # more than a pipe holds
    files.pipe("/reader/0.png", Path(photos[0]).read_bytes())
    names = [f"memory://reader/{number}.png" for number in range(11)]
    mixed = [*names[:5], "memory://reader/none.png", photos[3], *names[5:]] * 3
    batches = read(mixed, 7, workers=2)
    assert codes(batches) == {"none.png": "missing"}
    assert [p for b in batches for p in b.paths] == [n for n in mixed if "none" not in n]
    local = [photos[names.index(p)] if p in names else p for p in batches[0].paths]
    np.testing.assert_array_equal(batches[0].pixels, expected(local))
    assert batches[0].photos[0] == Photo(names[0], None, blake2b(photos[0]))
    assert batches[0].failures[0][3:] == (None, None, None)
    files.pipe("/reader/cut.png", big.tobytes()[:99])
    files.pipe("/reader/empty.png", b"")
    (batch,) = read(["memory://reader/cut.png", "memory://reader/empty.png"])
    assert codes([batch]) == {"cut.png": "not_an_image", "empty.png": "empty"}
    digests = [digest_of(big.tobytes()[:99]), digest_of(b"")]
    assert [failure[3:] for failure in batch.failures] == [(None, x, None) for x in digests]
    monkeypatch.setattr(type(files), "_open", lambda *a, **k: (_ for _ in ()).throw(OSError("!")))
    assert codes(read(names[:1])) == {"0.png": "unreadable"}
    with pytest.raises(UsageError, match="nosuch"):
        read(["nosuch://a/b.png"])


@pytest.fixture
def silent():
    """URL of a server that takes connections and never answers."""
    pytest.importorskip("aiohttp")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.jpg"


@pytest.fixture
def slow(photos, monkeypatch):
    """URLs of photos, and of one that is not read before the test ends."""
    files, go_on, begin = fsspec.filesystem("memory"), threading.Event(), MemoryFileSystem._open
    for path in photos:
        files.pipe(f"/slow/{os.path.basename(path)}", Path(path).read_bytes())

    def _open(self, path, *arguments, **options):
        if path.endswith("never.png"):
            go_on.wait(60)
        return begin(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", _open)
    yield [f"memory://slow/{os.path.basename(path)}" for path in photos], "memory://slow/never.png"
    go_on.set()


def test_a_url_that_never_answers_costs_itself(slow, photos, monkeypatch):
    names, never = slow
    monkeypatch.setattr(remote, "FETCH_SECONDS", 1.0)
    start = time.monotonic()
    batches = read([never, *names, *[never] * 20, *photos], 4, workers=1)
    assert time.monotonic() - start < SOON
    assert [path for batch in batches for path in batch.paths] == [*names, *photos]
    details = [failure[1:3] for batch in batches for failure in batch.failures]
    assert details == [("timed_out", "no answer within 1 seconds")] * 21


def test_closing_waits_for_no_server(slow, silent):
    for url in (slow[1], silent):
        with PhotoReader("caffe", workers=1) as reader:
            reading = reader.batches([url] * 20, 20)
            time.sleep(0.3)
            start = time.monotonic()
        assert time.monotonic() - start < 5
        with pytest.raises(UsageError, match="it is closed"):
            next(reading)


def test_a_reading_of_urls_that_is_given_up_harms_no_other(slow):
    names, _ = slow
    with PhotoReader("caffe", workers=1) as reader:
        for size in (1, 4, 20):
            early = reader.batches(names * 9, size)
            next(early)
            early.close()
            reader.batches(names * 9, size)  # begun, never asked for
        kept = reader.batches(names * 9, 4)
        next(kept)
        assert [path for batch in reader.batches(names, 4) for path in batch.paths] == names


INTERRUPTED = """
import sys
from tf_alexnet.extraction.reader import PhotoReader
try:
    with PhotoReader("caffe", workers=1) as photos:
        batches = photos.batches(sys.argv[1:] * 20, 4)
        print("begun", flush=True)
        list(batches)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupt_waits_for_no_server(silent):
    command = [sys.executable, "-c", INTERRUPTED, silent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "begun\n"
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n"
        assert child.wait(SOON) == 0


def test_urls_that_can_not_be_read(photos, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("p.zip", "w") as archive:
        for path in photos[:3]:
            archive.write(path, f"in/{os.path.basename(path)}")
    Path("bad.zip").write_bytes(b"PK" + bytes(99))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    names = find_images("zip://in/*.png::p.zip")
    assert names == [f"zip://in/{number:02}.png::p.zip" for number in range(3)]
    assert find_images("zip://::p.zip") == find_images("zip://in::p.zip") == names
    wanted = {
        "zip://in/none.png::p.zip": ("missing", "there is no such file"),
        "zip://in/a.png::none.zip": ("missing", "there is no such file"),
        "zip://in/a.png::bad.zip": ("unreadable", "it can't be read (File is not a zip file)"),
        f"http://127.0.0.1:{port}/a.png": ("unreadable", "it can't be read (Connect call failed"),
        f"ftp://127.0.0.1:{port}/a.png": ("unreadable", "it can't be read (Connection refused)"),
    }
    with PhotoReader("caffe", workers=2) as reader:
        (batch,) = reader.batches([*names, *wanted], 99)
    assert batch.paths == names
    np.testing.assert_array_equal(batch.pixels, expected(photos[:3]))
    for failure in batch.failures:
        code, text = wanted[failure.path]
        assert failure.code == code
        assert failure.detail.startswith(text)
    for url in (
        "zip://*.png::bad.zip",
        f"http://127.0.0.1:{port}/*.png",
        f"ftp://127.0.0.1:{port}/",
    ):
        with pytest.raises(ImageError, match=r"it can't be listed \(.*(?i:zip|refused|connect)"):
            find_images(url)


def test_only_a_few_urls_are_in_memory(photos, monkeypatch):
    data, held, most = Path(photos[0]).read_bytes(), [], []

    def fetch(url):
        held.append(url)
        most.append(len(held))
        return data

    decode = reader_module._Decoder.decode

    def decoded(self, path, *arguments):
        found = decode(self, path, *arguments)
        held.remove(path)
        return found

    monkeypatch.setattr(reader_module, "read_url", fetch)
    monkeypatch.setattr(reader_module._Decoder, "decode", decoded)
    names = [f"memory://{number}.png" for number in range(200)]
    (batch,) = read(names, 200, workers=1)
    assert batch.paths == names
    assert max(most) <= 17
    with PhotoReader("caffe", workers=1) as reader:
        reader.batches(names, 200)  # closed while it is fetched


def test_calls_that_can_not_work(photos):
    with pytest.raises(PresetError, match="vgg"):
        PhotoReader("vgg")
    with pytest.raises(PresetError, match="mean image"):
        PhotoReader("caffe-mean-image")
    with pytest.raises(InputError, match="shape"):
        PhotoReader("caffe-mean-image", mean_image=np.zeros((256, 255, 3)))
    with pytest.raises(PresetError, match="crops"):
        PhotoReader("squash", crops="ten")
    with pytest.raises(UsageError, match="0 workers"):
        PhotoReader("caffe", workers=0)
    with pytest.raises(UsageError, match="timeout 0"):
        PhotoReader("caffe", timeout=0)
    with PhotoReader("caffe") as reader, pytest.raises(UsageError, match="batch of 0"):
        reader.batches(photos, 0)


def test_decoders_that_do_not_start(photos, monkeypatch):
    monkeypatch.setattr(reader_module, "PROGRAM", "no_such_program")
    with pytest.raises(AlexNetError, match=r"decoder process: it did not start \(ModuleNotFound"):
        read(photos)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(AlexNetError, match=r"decoder process: it did not start \(.*No such file"):
        read(photos)


def test_a_decoder_without_a_file_does_not_start(photos, monkeypatch):
    def full(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with PhotoReader("caffe") as reader:
        monkeypatch.setattr(reader_module.os, "memfd_create", full)
        with pytest.raises(AlexNetError, match=r"it did not start \(.*Too many open files\)"):
            list(reader.batches(photos, 4))


READ_FOR_EVER = """
import itertools, sys
sys.path[:0] = [{tests!r}]
from tf_alexnet.extraction import reader
from tf_alexnet.extraction.reader import PhotoReader
reader.PROGRAM = "faulty_decoder"
photos = PhotoReader("caffe", workers=2, timeout=0.3)
for batch in photos.batches(itertools.cycle(sys.argv[1:]), 4):
    print(*(d._process.pid for d in photos._decoders if d._process), flush=True)
"""


@pytest.mark.parametrize("fault", ["good", pytest.param("hangs", marks=pytest.mark.slow)])
def test_decoders_do_not_outlive_their_parent(tmp_path, photos, fault):
    Image.new("RGB", (9, 9)).save(tmp_path / f"{fault}.png")
    code = READ_FOR_EVER.format(tests=str(Path(__file__).parent))
    parent = subprocess.Popen(
        [sys.executable, "-c", code, photos[0], str(tmp_path / f"{fault}.png")],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        started = []
        while not started:  # between two photos there may be none
            started = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.2)
        parent.kill()
    assert started
    deadline = time.monotonic() + SOON
    while not all(map(gone, started)):
        assert time.monotonic() < deadline, "the decoders go on"
        time.sleep(0.05)


def test_a_script_needs_no_guard_and_no_module_of_the_photos_folder_is_run(tmp_path, photos):
    """The working folder may be a folder of anybody's files."""
    for name in ("numpy", "cv2", "PIL", "json", "struct"):
        (tmp_path / f"{name}.py").write_text(f"open('ran-{name}', 'w'); raise SystemExit\n")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "script.py"
    script.write_text(
        "import sys\n"
        "from tf_alexnet.extraction.reader import PhotoReader\n"
        "reader = PhotoReader('caffe')\n"  # never closed
        "print([len(batch.paths) for batch in reader.batches(sys.argv[1:], 8)])\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", script, *photos],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[8, 3]\n", "")
    assert not list(tmp_path.glob("ran-*"))


def test_the_program_of_a_decoder_is_light():
    code = (
        "import sys, tf_alexnet.extraction.decoder as d\n"
        "assert not {'tensorflow', 'keras', 'h5py', 'multiprocessing'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_deep_grey_is_read_as_told_and_noted_once(tmp_path, caplog):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    deep = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for path in paths:
        Image.fromarray(deep).save(path)
    with caplog.at_level("WARNING", "tf_alexnet"):
        (dark,) = read(paths, 5)
    (record,) = caplog.records
    assert "max value 4095: looks like 12 bits; depth=12 (--depth 12)" in record.getMessage()
    caplog.clear()
    (bright,) = read(paths, 5, depth="12")
    assert not caplog.records
    for batch, shift in ((dark, 8), (bright, 4)):
        rgb = np.repeat((deep >> shift).astype(np.uint8)[..., None], 3, axis=2)
        np.testing.assert_array_equal(batch.pixels[0], preprocess_input([rgb])[0])
