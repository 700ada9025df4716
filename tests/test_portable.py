"""What Windows and macOS lack is taken away; photos are predicted, extracted and trained on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from conftest import weights_of
from planted import CLASSES, plant

import tf_alexnet as ta

# Python runs a module of this name at the start of every process, decoders too.
SITE = """
import os, select, signal, socket, sys
import platformdirs  # it asks the system for its name, not for what it has

for name in ("fcntl", "grp", "posix_ipc", "pwd", "resource", "syslog", "termios", "_posixshmem"):
    sys.modules[name] = None
lacking = {
    os: "fork forkpty getegid geteuid getgid getloadavg getpgid getpriority getuid killpg lchown "
    "memfd_create mkfifo nice posix_fadvise posix_fallocate pread preadv pwrite pwritev "
    "sched_getaffinity sched_setaffinity sendfile setpgid setsid statvfs sysconf wait4",
    select: "epoll kqueue poll",
    signal: "SIGALRM SIGHUP SIGPROF SIGQUIT SIGUSR1 SIGUSR2 SIGVTALRM SIG_BLOCK "
    "SIG_UNBLOCK alarm getitimer pthread_kill pthread_sigmask setitimer sigpending sigwait",
    socket: "AF_UNIX send_fds recv_fds",
}
for module, names in lacking.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
open(os.path.join(os.environ["STARTED"], str(os.getpid())), "w").close()
"""

COMMANDS = """
import json, sys

for words in json.loads(sys.argv[1]):
    from tf_alexnet.cli.main import main

    sys.argv = ["tf-alexnet", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture
def portable(tmp_path, monkeypatch):
    """Run a Python program that has what every platform has; returns what it prints."""
    place = tmp_path / "site"
    (place / "started").mkdir(parents=True)
    (place / "sitecustomize.py").write_text(SITE)
    root = str(Path(ta.__file__).parents[1])
    tests = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), root, tests]))
    monkeypatch.setenv("STARTED", str(place / "started"))
    monkeypatch.chdir(tmp_path)

    def run(code, *arguments):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert len(os.listdir(place / "started")) > 1, "decoders as well"
        return done.stdout

    return run


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_commands(train, portable, tmp_path):
    """Training needs TensorFlow, the others OpenVINO."""
    data = plant(tmp_path / "data", 4, 2)
    ta.write_weights(weights_of("compact"), "w.h5")
    photos = sorted(map(str, (data / "val" / CLASSES[0]).iterdir()))
    convolutions = ["-w", "torchvision-convs"]
    words = [
        ["predict", *photos, "-w", "w.h5", "--json"],
        ["extract", "data/val", "-o", "f.h5", *convolutions, "-l", "pool5"],
    ]
    if train:
        words.append(["train", "data", "-o", "run", *convolutions, "--layer", "pool5"])
    out = portable(COMMANDS, json.dumps(words))
    assert [found["path"] for found in json.JSONDecoder().raw_decode(out)[0]] == photos
    with h5py.File("f.h5") as file:
        assert file["pool5"].shape == (6, 6, 6, 256)
    if train:
        assert (tmp_path / "run" / "model.keras").stat().st_size > 1000


LIMITS = """
import sys
from tf_alexnet.extraction import reader

reader.PROGRAM, reader._MIN_STALL = "faulty_decoder", 1.0
with reader.PhotoReader("caffe", workers=2, timeout=0.15) as photos:
    (batch,) = photos.batches(sys.argv[1:], 9)
print(batch.paths, [failure[:2] for failure in batch.failures])
"""


def test_limits(portable, tmp_path):
    """Time is limited by a clock alone, and memory not at all."""
    (good,) = [str(x) for x in (plant(tmp_path / "data", 1, 0) / "train" / CLASSES[0]).iterdir()]
    bad = [str(tmp_path / f"{fault}.png") for fault in ("exits", "sleeps", "hangs")]
    for path in bad:
        Path(path).write_bytes(Path(good).read_bytes())
    reasons = zip(bad, ("worker_died", "timed_out", "timed_out"), strict=True)
    assert portable(LIMITS, *bad, good) == f"{[good]} {[*reasons]}\n"
