"""How the commands speak: results on stdout, notes and errors on stderr."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tf_alexnet.errors import ImageError, OutputError, UsageError, one_line

if TYPE_CHECKING:
    from tf_alexnet.training import Run

_PACE_SECONDS = 60


def note(text: str) -> None:
    """A line for the user that is no result."""
    print(f"note: {one_line(text)}", file=sys.stderr)


def error(text: str) -> None:
    """A line about what went wrong."""
    print(f"error: {one_line(text)}", file=sys.stderr)


def report_failures(failures: Sequence[tuple[str, str]]) -> int:
    """Name the photos that could not be read; the exit code that follows."""
    for path, reason in failures:
        error(f"{path}: {reason}. Skipped.")
    return ImageError.exit_code if failures else 0


def load_tensorflow() -> None:
    """Import TensorFlow without its start-up messages, unless it fails.

    Keras looks for libraries that it can show or wrap things with and imports those that are there,
    scikit-learn and Matplotlib for one: two seconds and 150 MB that no command has use for.
    It does not find them here; who imports them later does.

    Raises
    ------
    OutputError
        If there is no folder for temporary files, which TensorFlow needs too.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        tempfile.gettempdir()
    except OSError as problem:
        raise OutputError(
            "temporary files",
            f"no folder for them can be written to ({problem.strerror or problem})",
            "Set TMPDIR to one that can.",
        ) from None
    with _captured_stderr(), _hidden("sklearn", "matplotlib", "pandas"):
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Let imports of some libraries fail, as if they were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None stands for "not to be had"
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _captured_stderr() -> Iterator[None]:
    # TensorFlow's C++ side writes to the file descriptor before any of its settings apply.
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException:
            captured.seek(0)
            os.write(kept, captured.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def find_weights(name: str) -> str:
    """The path of a weight file, downloaded with a progress bar if need be."""
    from tf_alexnet import weights

    with progress_bar("bytes") as progress:
        return str(weights.find_weights(name, progress))


def check_model(model: str | None, weights: str | None, architecture: str | None) -> None:
    """Refuse a RUN and something else that says which network to take."""
    for name, value in (("--weights", weights), ("--architecture", architecture)):
        if model is not None and value is not None:
            raise UsageError(
                f"--model with {name}", "a RUN has its own", "Leave one of the two out."
            )


def open_run(folder: str | None) -> Run | None:
    """What `tf-alexnet train` made, where a folder is given."""
    if folder is None:
        return None
    from tf_alexnet.training import Run

    return Run.open(folder)


def unknown_weights_note(extractor) -> None:
    """Say so where the numbers may mean nothing."""
    if extractor.trained_as is None:
        note(
            f"{extractor.weights_source} are not the weights of a known trained network: "
            "these numbers are only as good as the weights"
        )


@contextlib.contextmanager
def progress_bar(unit: str) -> Iterator:
    """A bar on a terminal's stderr, elsewhere None.

    Yields
    ------
    callable or None
        For ``bytes`` it takes (done, total); for ``photos`` also errors, and bytes written.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich import filesize
    from rich import progress as rich
    from rich.console import Console
    from rich.table import Column

    if unit == "bytes":
        figures = (rich.DownloadColumn(), rich.TransferSpeedColumn(), rich.TimeRemainingColumn())
    else:
        figures = (rich.TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),)
    screen = Console(stderr=True)
    screen.width -= 3  # where the terminal writes ^C; in the next line it would be in the way
    bar = rich.Progress(
        rich.BarColumn(None, table_column=Column(ratio=1)),
        *figures,
        console=screen,
        transient=True,
        expand=True,
    )
    pace = _Pace()

    def update(done: int, total: int | None, errors: int = 0, written: int = 0) -> None:
        rate = pace(done)
        left = f"{datetime.timedelta(seconds=round((total - done) / rate))}" if rate else "-"
        text = (
            f"{done:,}/{total:,}, {rate:,.0f} photos/s, {filesize.decimal(written)}, "
            f"{errors:,} error{'s' * (errors != 1)}, {left} left"
        )
        bar.update(task, completed=done, total=total, figures=text, visible=True)

    def update_bytes(done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total, visible=True)

    with bar:
        task = bar.add_task("", total=None, figures="", visible=False)
        yield update_bytes if unit == "bytes" else update


class _Pace:
    """Things done a second, in the last minute or since the last two reports."""

    def __init__(self):
        self._reports: deque[tuple[float, int]] = deque()

    def __call__(self, done: int) -> float:
        now = time.monotonic()
        self._reports.append((now, done))
        while len(self._reports) > 2 and now - self._reports[1][0] > _PACE_SECONDS:
            self._reports.popleft()
        then, before = self._reports[0]
        return (done - before) / (now - then) if now > then else 0.0
