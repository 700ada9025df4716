"""How the commands speak: results on stdout, notes and errors on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from tf_alexnet.errors import ImageError, OutputError, one_line


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
    with _captured_stderr():
        import tensorflow  # noqa: F401


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


def unknown_weights_note(extractor) -> None:
    """Say so where the numbers may mean nothing."""
    if extractor.trained_as is None:
        note(
            f"{extractor.weights_source} are not the weights of a known trained network: "
            "these numbers are only as good as the weights"
        )


@contextlib.contextmanager
def progress_bar(unit: str) -> Iterator:
    """A bar on a terminal's stderr: yields a function (done, total, errors); elsewhere None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich
    from rich.console import Console

    if unit == "bytes":
        figures = (rich.DownloadColumn(), rich.TransferSpeedColumn())
    else:
        figures = (rich.MofNCompleteColumn(), rich.TextColumn("{task.fields[rate]}"))
    bar = rich.Progress(
        rich.BarColumn(),
        *figures,
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=None, rate="", visible=False)
        start = time.monotonic()

        def update(done: int, total: int | None, errors: int = 0) -> None:
            rate = f"{done / (time.monotonic() - start):,.0f} {unit}/s"
            rate += f", {errors} errors" if errors else ""
            bar.update(task, completed=done, total=total, rate=rate, visible=True)

        yield update
