"""Jobs that are killed, stopped, or that can't write: what they leave is gone on from."""

import contextlib
import errno
import gc
import glob
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import jobs
import pytest
from test_job import check, content, extract, files_below, kept_in, records  # noqa: F401

from tf_alexnet.errors import OutputError
from tf_alexnet.extraction import storage

JOB = [sys.executable, str(Path(jobs.__file__))]


REAL = [sys.executable, "-m", "tf_alexnet", "extract", "-w", "torchvision-convs", "-l", "pool5"]


def start(seconds, *arguments, **kwargs):
    """A job in a process group of its own, whose network takes `seconds` a batch.

    The real network, if `seconds` is None.
    """
    command = (
        [*JOB, str(seconds), "extract", "-w", "network.npy"] if seconds is not None else [*REAL]
    )
    command += [*arguments, "--quiet", "--shard-size", "4", "--batch", "2", "--workers", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes, **kwargs)


def finish(process, code=0):
    """What a job prints; it ends with `code`, and an error is one line."""
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code, err
    assert len(err.splitlines()) == (code not in (0, 130, 143)), err
    return out, err


def wait_for(condition, process):
    until = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two bad photos among 22, in a working folder."""
    monkeypatch.chdir(tmp_path)
    paths = jobs.photos(Path("photos"), 22)
    for path in (paths[5], paths[17]):
        Path(path).write_text("no picture")
    return paths


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def operations(monkeypatch, fault=full):
    """Every call that writes, in turn: a list of their names, and at which of them the fault is."""
    calls, failing = [], [None]

    def spied(name, call):
        def spy(*arguments, **keywords):
            calls.append(name)
            if len(calls) - 1 == failing[0]:
                fault()
            return call(*arguments, **keywords)

        return spy

    for name in ("fsync", "replace", "link", "mkdir"):
        monkeypatch.setattr(storage.os, name, spied(name, getattr(os, name)))
    monkeypatch.setattr(storage.OutputFile, "_put", spied("write", storage.OutputFile._put))
    opened = spied("open", storage.OutputFile.__init__)
    monkeypatch.setattr(storage.OutputFile, "__init__", opened)
    return calls, failing


OUTPUTS = [
    *(
        pytest.param(x, marks=pytest.mark.slow)
        for x in ("f.h5", "f.npz", "f.npy", "f.parquet", "f.parquet/")
    ),
    "f/",
]


@pytest.mark.parametrize(
    ("output", "every"),
    [
        *[(output, 6) for output in ("f.h5", "f/")],
        *(pytest.param(*x.values, 1, marks=pytest.mark.slow) for x in OUTPUTS if x != "f/"),
        pytest.param("f/", 1, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_at_every_write(output, every, extract, photos, monkeypatch, capfd):  # noqa: F811
    """At every sixth write of bytes, or all of them, and at all other steps."""
    for path in photos[7:]:  # two shards are enough
        os.unlink(path)
    calls, failing = operations(monkeypatch)
    extract("photos", output)
    whole, names = content(output), [*calls]
    assert len(names) > 25
    extract("photos", output, force=True)
    assert {*names, *calls} >= {"open", "write", "fsync", "replace", "link"}
    for number, name in enumerate(names):
        if name == "write" and number % every:
            continue
        calls.clear()
        failing[0], error = number, None
        remove(output)
        try:
            extract("photos", output)
        except OutputError as caught:
            error = str(caught)
        total = len(calls)
        assert error is None or re.search(
            r"^[^\n]*it can't be written \(No space left[^\n]*$", error
        )
        # Clearing away may fail in silence, once the output is whole.
        heard = error or number >= total or (os.path.isfile(output) and content(output) == whole)
        assert heard or calls[number] == "mkdir", "nobody heard of it"
        assert not temporary(output), "nothing half written stays"
        failing[0] = None
        kept = kept_in(output)
        if os.path.isfile(output):  # the fault came after it was whole
            kept = 7
        assert extract("photos", output).kept == kept
        assert content(output) == whole, number
        if not error and number + 1 >= total:
            break  # clearing away was given up
    assert capfd.readouterr().err == "", "no library complains on its own"


def temporary(output):
    return glob.glob(f"{output}.job/tmp-*")  # F.job/ and X/.job/


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_signal_in_the_middle_of_every_write(output, extract, photos, monkeypatch, capfd):  # noqa: F811
    """Where C libraries call back, an exception would be lost or turned into another."""
    for path in photos[3:]:
        os.unlink(path)
    extract("photos", output)
    whole = content(output)
    calls, when = [], [None]

    def spied(call):
        def spy(*arguments):
            calls.append(call)
            if len(calls) == when[0]:
                signal.raise_signal(signal.SIGINT)
            return call(*arguments)

        return spy

    monkeypatch.setattr(storage.os, "fsync", spied(lambda _: None))
    for name in ("write", "truncate", "seek", "flush"):
        monkeypatch.setattr(storage.OutputFile, name, spied(getattr(storage.OutputFile, name)))
    number, stopped = 1, True
    while stopped:
        calls.clear()
        when[0] = number
        remove(output)
        stopped = False
        try:
            extract("photos", output)
        except KeyboardInterrupt:
            stopped = True
        assert stopped or len(calls) < number, "a signal that was lost"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        when[0] = None
        assert extract("photos", output).rows == 3
        assert not temporary(output)
        assert content(output) == whole, number
        number += 1
    assert number > 25
    gc.collect()
    assert capfd.readouterr().err == "", "nothing is complained of later"


def remove(output):
    subprocess.run(["rm", "-rf", *glob.glob(f"{output.rstrip('/')}*")], check=True)


@pytest.mark.parametrize("limit", [100, pytest.param(3000, marks=pytest.mark.slow), 9000])
def test_a_file_that_may_not_grow(limit, extract, photos, capfd):  # noqa: F811
    """The kernel's own refusal, which cuts a write short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError, match=r"it can't be written \(File too large\)"):
            extract("photos", "f.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr().err == ""
    assert extract("photos", "f.h5").rows == 20
    check("f.h5", *parted(photos))


def test_what_a_terminal_shows(photos):
    screen, end = os.openpty()
    termios.tcsetwinsize(end, (24, 90))
    command = [*JOB, "0.2", "extract", "-w", "network.npy", "photos", "-o", "f.h5", "--batch", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=end) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while more := os.read(screen, 1000):
                shown += more
        os.close(screen)
    assert process.returncode == 5
    figures = r"(\d+)/22 photos, (\d+)/s,(?: ([\d.]+ bytes|[\d.]+ kB),)? "
    figures += r"(\d) errors?, (0:\d\d|-) left"
    steps = re.findall(figures, shown.decode())
    done, rates, sizes, errors, _ = zip(*steps, strict=True)
    assert done[0] == "0"
    assert [int(x) for x in done] == sorted(int(x) for x in done)
    assert 1 <= int(rates[-1]) <= 10
    assert {"", "256 bytes", "512 bytes"} <= set(sizes), "32 floats a photo"
    assert errors[-1] in "12"
    assert b"error: photos/0005.png" in shown.splitlines()[-2]


def test_no_folder_for_temporary_files(photos, run, monkeypatch):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    convolutions = ["-w", "torchvision-convs", "-l", "pool5", "--engine", "tensorflow"]
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(tempfile, "_get_default_tempdir", nowhere)
        code, out, err = run("-q", "extract", "photos", "-o", "f.h5", *convolutions)
    assert (code, out) == (4, "")
    assert err == (
        "error: temporary files: no folder for them is writable (No usable temporary "
        "directory found in ['/tmp']). Set TMPDIR to a writable folder.\n"
    )


def parted(photos):
    bad = [photos[5], photos[17]]
    bad = [os.path.relpath(path) for path in bad]
    return [x for x in map(os.path.relpath, photos) if x not in bad], bad


def finish_with_errors(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    # A photo that failed within two seconds of its last change is tried again, and so named later.
    assert sorted(line.split(":")[1].strip() for line in err.splitlines()) == [
        "photos/0005.png",
        "photos/0017.png",
    ]
    return out, err


def test_the_last_line_says_what_happened(photos, extract):  # noqa: F811
    good, _ = parted(photos)
    Path("list.txt").write_text("\n".join(good))
    extract("list.txt", "f/")
    os.replace(good[0], good[1])  # one changed, one gone
    out, _ = finish(start(0, "list.txt", "-o", "f/"))
    assert out == (
        "f: 20 rows + 0 errors = 20 photos; fc7 (20, 32) float32; 19 of them done before; "
        "1 photo changed and was done again; 1 unreadable now, their rows kept\n"
    )


def test_a_job_that_exceeds_its_errors_goes_on_later(photos, extract):  # noqa: F811
    _, err = finish(start(0, "photos", "-o", "f.h5", "--max-errors", "1"), 5)
    assert err.startswith("error: 2 photos: could not be read, and at most 1 may fail; the ")
    report = extract("photos", "f.h5", max_errors="10%")
    assert (report.rows, len(report.errors)) == (20, 2)
    # A photo that could not be read soon after it was written is tried again.
    assert report.kept in (15, 16)
    check("f.h5", *parted(photos))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_stops_a_job_soon(number, code, photos, extract):  # noqa: F811
    process = start(1, "photos", "-o", "f.npz")
    wait_for(lambda: kept_in("f.npz"), process)
    asked = time.monotonic()
    os.killpg(process.pid, number)
    finish(process, code)
    assert time.monotonic() - asked < 10
    assert not os.path.exists("f.npz.job/.lock")
    kept = kept_in("f.npz")
    assert kept >= 4
    assert extract("photos", "f.npz").kept == kept
    check("f.npz", *parted(photos))


def test_the_second_of_two_jobs_is_refused_and_the_first_goes_on(photos, extract):  # noqa: F811
    first = start(0.2, "photos", "-o", "f/")
    wait_for(lambda: records("f/"), first)
    message = rf"^f: another job is writing it \(process {first.pid} on "
    with pytest.raises(OutputError, match=message):
        extract("photos", "f/")
    finish_with_errors(first)
    check("f/", *parted(photos))
