"""Work in a separate process: another runtime, or a conversion that takes gigabytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tf_alexnet.errors import OutputError

# The process gets our sys.path: `python -m` would search the working folder first.
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
        The job file.
    doing : str
        Description for the error message.

    Raises
    ------
    OutputError
        If the program fails.
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
        advice = "Nothing was written. It probably ran out of memory: free some."
    raise OutputError(doing, found, advice)


def check_memory(needed: int, doing: str) -> None:
    """Refuse work that needs more memory than is free, if that is known.

    Parameters
    ----------
    needed : int
        Bytes.
    doing : str
        Description for the error message.

    Raises
    ------
    OutputError
        If less is free.
    """
    free = _available()
    if free is not None and free < needed:
        raise OutputError(
            doing,
            f"it takes about {needed / _GIB:.1f} GiB of memory, and {free / _GIB:.1f} are free",
            "Free some memory, or export on a larger machine.",
        )


def _available() -> int | None:
    """Bytes of memory left to this process (Linux, cgroups included); None if unknown."""
    limits = []
    if found := re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo")):
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
