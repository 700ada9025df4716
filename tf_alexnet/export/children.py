"""Work in a process of its own: another runtime, or a conversion that takes gigabytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tf_alexnet.errors import OutputError

# The process finds modules where this one does: `python -m` would look in the working folder first.
_START = "import sys; sys.path[:] = sys.argv[3:]; import runpy; "
_PROGRAM = "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
_NOISE = re.compile(r"^(WARNING|INFO|[IWE]0000|\d{4}-\d\d-\d\d )")
_GIB = 2**30


def run_program(file: str | os.PathLike, job: str | os.PathLike, doing: str) -> None:
    """Run a Python file with a job as its argument.

    Parameters
    ----------
    file : path
        The program.
    job : path
        The file that tells it what to do.
    doing : str
        What it does, for the message of an error.

    Raises
    ------
    OutputError
        If it ends with an error.
    """
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    done = subprocess.run(
        [sys.executable, "-c", _START + _PROGRAM, file, job, *sys.path],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode == 0:
        return
    text = done.stderr.decode(errors="replace").strip()
    lines = [line for line in text.splitlines() if line.strip() and not _NOISE.match(line)]
    found = f"its process ended with {lines[-1][:300].rstrip('.') if lines else done.returncode}"
    advice = "Nothing was written. Please report it, with the versions of the packages in use."
    if done.returncode < 0:
        found = f"its process was killed by signal {-done.returncode}"
        advice = "Nothing was written. Most likely memory ran out: free some."
    raise OutputError(doing, found, advice)


def check_memory(needed: int, doing: str) -> None:
    """Refuse work for which there is not enough free memory, as far as the system tells.

    Parameters
    ----------
    needed : int
        Bytes.
    doing : str
        What it is for, for the message.

    Raises
    ------
    OutputError
        If less is available.
    """
    free = _available()
    if free is not None and free < needed:
        raise OutputError(
            doing,
            f"it takes about {needed / _GIB:.1f} GiB of memory, and {free / _GIB:.1f} are free",
            "Free some memory, or export on a larger machine.",
        )


def _available() -> int | None:
    """Bytes of memory that this process may still use (Linux, cgroups included); None: unknown."""
    limits = []
    for path, pattern in (("/proc/meminfo", r"MemAvailable:\s+(\d+) kB"),):
        if found := re.search(pattern, _text(path)):
            limits.append(int(found[1]) * 1024)
    most, used = (_text(f"/sys/fs/cgroup/memory.{x}").strip() for x in ("max", "current"))
    if most.isdigit() and used.isdigit():
        cache = re.search(r"^inactive_file (\d+)$", _text("/sys/fs/cgroup/memory.stat"), re.M)
        limits.append(int(most) - int(used) + (int(cache[1]) if cache else 0))
    return min(limits, default=None)


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""
