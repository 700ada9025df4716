"""How the commands speak: results on stdout, notes and errors on stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tf_alexnet.errors import ImageError, OutputError, UsageError, one_line

if TYPE_CHECKING:
    from tf_alexnet.training import Run

_quiet = False


def be_quiet(wanted: bool) -> bool:
    """Print neither notes nor progress, if that is wanted: what `--quiet` does."""
    global _quiet
    _quiet = _quiet or wanted
    return wanted


def note(text: str) -> None:
    """Print a line that is neither a result nor an error."""
    if not _quiet:
        print(f"note: {one_line(text)}", file=sys.stderr, flush=True)


class _Notes(logging.Handler):
    """Prints what the library logs, each text once."""

    def __init__(self):
        super().__init__(logging.INFO)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._seen:
            self._seen.add(text)
            note(text)


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Print warnings and the library's log as notes, until the end of the block."""
    global _quiet
    _quiet = False
    log, handler = logging.getLogger("tf_alexnet"), _Notes()
    log.addHandler(handler)
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False  # absl, which TensorFlow imports, prints what reaches the root
    warnings.showwarning = lambda message, *_, **__: note(str(message))
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def error(text: str) -> None:
    """A line about what went wrong."""
    print(f"error: {one_line(text)}", file=sys.stderr)


def report_failures(failures: Sequence[tuple[str, str]]) -> int:
    """Name the photos that could not be read; the exit code that follows."""
    for path, reason in failures:
        error(f"{path}: {reason}. Skipped.")
    return ImageError.exit_code if failures else 0


def choose_engine(engine: str, photos: int | None = None, precision: str = "float32") -> str:
    """The engine to use; where the choice was left to us a note says which."""
    from tf_alexnet import engines

    chosen = engines.choose_engine(engine, photos, precision)
    if engine == "auto":
        note(f"engine {chosen}")
    return chosen


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


def progress(unit: str, every: int | None = None) -> contextlib.AbstractContextManager:
    """`progress_callback` of a command: nothing with `--quiet`."""
    from tf_alexnet.progress import progress_callback

    return progress_callback(not _quiet, unit, every)


def find_weights(name: str) -> str:
    """The path of a weight file, downloaded with a progress bar if need be."""
    from tf_alexnet import weights

    if weights.random_seed(name) is not None:
        return name
    with progress("bytes") as told:
        return str(weights.find_weights(name, told))


def check_names(
    weights: str | None = None,
    architecture: str | None = None,
    preset: str | None = None,
    mean_image: str | None = None,
    layers: Sequence[str] = (),
) -> None:
    """Find misspelt names before TensorFlow and weights are loaded, which takes long."""
    from tf_alexnet.images import read_mean_image, resolve
    from tf_alexnet.weights import check_layers, random_seed, resolve_architecture

    resolve_architecture(architecture)
    if preset is not None:
        resolve(preset, mean_image)
    elif mean_image is not None:
        read_mean_image(mean_image)
    if weights is not None:
        random_seed(weights)
    if layers:
        check_layers(layers, weights, architecture)


def check_model(model: str | None, weights: str | None, architecture: str | None) -> None:
    """Refuse a RUN and something else that says which network to take."""
    for name, value in (("--weights", weights), ("--architecture", architecture)):
        if model is not None and value is not None:
            raise UsageError(
                f"--model with {name}", "a RUN has its own", "Leave one of the two out."
            )


def open_run(model: str | None, weights: str | None = None) -> Run | None:
    """The RUN that `--model` names, or `--weights` as a file of it; None if neither does."""
    from tf_alexnet.training.run import Run, run_folder

    named = model if model is not None else weights and run_folder(weights) and weights
    return Run.open(named) if named else None


def unknown_weights_note(extractor) -> None:
    """Say so where the numbers may mean nothing."""
    if extractor.untrained:
        note(f"{extractor.weights_source}: a control, its classes mean nothing")
    elif extractor.trained_as is None:
        note(
            f"{extractor.weights_source} are not the weights of a known trained network: "
            "these numbers are only as good as the weights"
        )
