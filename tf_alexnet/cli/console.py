"""Output of the commands: results on stdout, notes and errors on stderr."""

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
    """Turn off notes and progress if `wanted`: the callback of `--quiet`."""
    global _quiet
    _quiet = _quiet or wanted
    return wanted


def note(text: str) -> None:
    """Print a note, unless `--quiet` was given."""
    if not _quiet:
        print(f"note: {one_line(text)}", file=sys.stderr, flush=True)


class _Notes(logging.Handler):
    """Prints the library's log messages as notes, each text once."""

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
    """Print warnings and the library's log as notes within the block."""
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
    """Print an error."""
    print(f"error: {one_line(text)}", file=sys.stderr)


def report_failures(failures: Sequence[tuple[str, str]]) -> int:
    """Print (path, reason) of photos that could not be read; return the exit code."""
    for path, reason in failures:
        error(f"{path}: {reason}. Skipped.")
    return ImageError.exit_code if failures else 0


def choose_engine(engine: str, photos: int | None = None, precision: str = "float32") -> str:
    """The engine to use; a note names it if it was chosen automatically."""
    from tf_alexnet import engines

    chosen = engines.choose_engine(engine, photos, precision)
    if engine == "auto":
        note(f"engine {chosen}")
    return chosen


def load_tensorflow() -> None:
    """Import TensorFlow without its startup messages, unless the import fails.

    Keras imports optional libraries such as scikit-learn and Matplotlib if they are installed: two
    seconds and 150 MB that no command needs. They are hidden from it here; later imports find them.

    Raises
    ------
    OutputError
        If there is no folder for temporary files, which TensorFlow needs.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        tempfile.gettempdir()
    except OSError as problem:
        raise OutputError(
            "temporary files",
            f"no folder for them is writable ({problem.strerror or problem})",
            "Set TMPDIR to a writable folder.",
        ) from None
    with _captured_stderr(), _hidden("sklearn", "matplotlib", "pandas"):
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Make imports of some libraries fail, as if they were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None makes the import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _captured_stderr() -> Iterator[None]:
    # TensorFlow's C++ code writes to the file descriptor before any of its settings apply.
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
    """`progress_callback` of a command; silent with `--quiet`."""
    from tf_alexnet.progress import progress_callback

    return progress_callback(not _quiet, unit, every)


def find_weights(name: str) -> str:
    """The path of a weight file, downloaded with a progress bar if necessary."""
    from tf_alexnet import weights

    if weights.random_seed(name) is not None:
        return name
    with progress("bytes") as callback:
        return str(weights.find_weights(name, callback))


def check_names(
    weights: str | None = None,
    architecture: str | None = None,
    preset: str | None = None,
    mean_image: str | None = None,
    layers: Sequence[str] = (),
) -> None:
    """Find misspelt names before TensorFlow and weights are loaded, which takes seconds."""
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
    """Raise UsageError if a RUN and another choice of network are given."""
    for name, value in (("--weights", weights), ("--architecture", architecture)):
        if model is not None and value is not None:
            raise UsageError(
                f"--model with {name}", "a RUN has its own", "Leave one of the two out."
            )


def open_run(model: str | None, weights: str | None = None) -> Run | None:
    """The RUN given by `--model`, or by `--weights` as a file of it; None if there is none."""
    from tf_alexnet.training.run import Run, find_run

    return find_run(weights) if model is None else Run.open(model)


def unknown_weights_note(extractor) -> None:
    """Print a note if the results may be meaningless."""
    if extractor.untrained:
        note(f"{extractor.weights_source}: a control, its classes are meaningless")
    elif extractor.trained_as is None:
        note(
            f"{extractor.weights_source} are not the weights of a known trained network: "
            "the results are only as good as the weights"
        )
