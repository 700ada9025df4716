"""Callbacks with which a killed and resumed training ends in the weights of an unbroken one.

Keras's own are not enough: BackupAndRestore loses the state of dropout's random numbers and
writes two files that may not belong together; EarlyStopping and ModelCheckpoint forget the best
epoch at a restart.
"""

from __future__ import annotations

import json
import math
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tf_alexnet.errors import OutputError, UsageError
from tf_alexnet.files import replacing
from tf_alexnet.training.data import Photos
from tf_alexnet.training.report import history_table
from tf_alexnet.training.run import write_text

CHECKPOINT = "checkpoint.safetensors"
_FORMAT = "2"


class Epochs(keras.callbacks.Callback):
    """Make an epoch depend only on its number and initial weights; report progress.

    Adds ``photos_per_second``, ``data_wait`` (fraction of the time spent waiting for photos) and
    ``seconds`` to the logs of an epoch.

    Parameters
    ----------
    data : Photos
        Training photos.
    metric : str
        Shown beside the loss: "accuracy", or the name of another metric of the model.
    seed : int
        Random seed of dropout.
    progress : callable
        As in `train_network`.
    """

    def __init__(self, data: Photos, metric: str, seed: int, progress: Callable):
        super().__init__()
        self._data, self._metric, self._seed, self._progress = data, metric, seed, progress

    def on_epoch_begin(self, epoch: int, logs: Mapping | None = None) -> None:
        """Set the epoch of the data and the dropout seeds."""
        self._data.epoch = epoch + 1
        dropouts = [x for x in self.model.layers if isinstance(x, keras.layers.Dropout)]
        for place, layer in enumerate(dropouts):
            key = np.random.SeedSequence([self._seed, epoch + 1, place]).generate_state(1)
            layer.seed_generator.state.assign([int(key[0]), 0])
        self._done, self._waited = 0, 0.0
        self._start = self._last = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:
        """Stop at the first loss that is not finite."""
        # Waiting ends when the batch is ready, and begins when the step before is done.
        self._waited += max(0.0, self._data.ready[batch] - self._last)
        self._last = time.perf_counter()
        self._done += self._data.size(batch)
        figures = _figures(logs, self._metric)
        if not math.isfinite(figures["loss"]):
            raise diverged(f"epoch {self._data.epoch}, step {batch + 1}", "the loss is NaN")
        self._progress(self._stage(), self._done, self._data.photos, figures)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Add timings to the logs."""
        trained = self._last - self._start
        logs["photos_per_second"] = round(self._done / trained, 2)
        logs["data_wait"] = round(self._waited / trained, 4)
        logs["seconds"] = round(time.perf_counter() - self._start, 2)
        figures = _figures(logs, self._metric) | _figures(logs, self._metric, "val_")
        self._progress(self._stage(), self._done, self._data.photos, figures)

    def _stage(self) -> str:
        return f"epoch {self._data.epoch}/{self.params['epochs']}"


@dataclass
class State:
    """Progress of a training.

    Attributes
    ----------
    settings : str
        Digest of the settings.
    epoch : int
        Epochs completed.
    best_epoch : int
        The best one on the validation photos.
    history : list of dict of str to float
        One row per epoch.
    failures : list of [path, code, detail]
        Photos that can't be read.
    covariance : list of 3 lists of 3 floats, or None
        Covariance of the training photos' colours.
    """

    settings: str
    epoch: int = 0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    failures: list[list[str]] = field(default_factory=list)
    covariance: list[list[float]] | None = None


class Checkpoint(keras.callbacks.Callback):
    """Save all that training changes in one file, replaced atomically after every epoch.

    Tensors are named ``model/fc8/kernel``, ``optimizer/...`` and ``best/fc8/kernel``, the last only
    if the best epoch is an earlier one; `State` is JSON in the header. Nothing in the file is
    executed, and everything is checked when it is read.

    Parameters
    ----------
    path : Path
        The file. ``history.csv`` is written beside it.
    state : State
        From `read_checkpoint`. It is kept up to date.
    metric : str
        Validation metric that epochs are compared by; ties are broken by the loss.
    patience : int or None
        Stop after this many epochs without a new best.
    log : callable
        Called with every epoch's row.

    Attributes
    ----------
    best : dict of str to ndarray
        Variable path -> trained weights of the best epoch.
    """

    def __init__(self, path: Path, state: State, metric: str, patience: int | None, log: Callable):
        super().__init__()
        self._path, self.state, self._metric = path, state, metric
        self._patience, self._log = patience, log
        self.best: dict[str, np.ndarray] = {}

    @property
    def is_over(self) -> bool:
        """Whether `patience` epochs have passed without a new best."""
        waited = self.state.epoch - self.state.best_epoch
        return self._patience is not None and waited >= self._patience

    def restore(self, model: keras.Model, tensors: Mapping[str, np.ndarray]) -> None:
        """Assign the tensors that were read to a compiled model with a built optimizer.

        Raises
        ------
        OutputError
            If they belong to another training, or are not finite.
        """
        if not tensors:
            return
        known = _variables(model)
        best = {x.replace("model/", "best/", 1): y for x, y in known.items() if x[:6] == "model/"}
        known |= best if self.state.best_epoch != self.state.epoch else {}
        if odd := sorted(known.keys() ^ tensors.keys()):
            raise _unfit(self._path, f"it holds other tensors than this training ({odd[0][:80]!r})")
        for name, array in tensors.items():
            shape, dtype = tuple(known[name].shape), np.dtype(known[name].dtype)
            if array.shape != shape or array.dtype != dtype:
                raise _unfit(self._path, f"{name} is {array.dtype} of shape {array.shape}")
            if not _is_finite(array):
                raise _unfit(self._path, f"{name} holds NaN or infinite values")
            if not name.startswith("best/"):
                known[name].assign(array)
        self.best = {x.split("/", 1)[1]: tensors.get(x, _array(y)) for x, y in best.items()}

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Check and save the state after an epoch."""
        figures = _figures(logs, self._metric)
        row = {"epoch": epoch + 1, **{f"train_{name}": x for name, x in figures.items()}}
        row |= _figures(logs, self._metric, "val_")
        rate = self.model.optimizer.learning_rate
        row["learning_rate"] = _decimal(keras.ops.convert_to_numpy(rate))
        row |= {name: logs[name] for name in ("photos_per_second", "data_wait", "seconds")}
        tensors = {name: _array(variable) for name, variable in _variables(self.model).items()}
        # A NaN in the weights need not reach the loss: ReLU makes 0 of it.
        bad = [x for x, y in tensors.items() if not _is_finite(y)]
        bad += [name for name, value in row.items() if not math.isfinite(value)]
        if bad:
            raise diverged(f"epoch {epoch + 1}", f"{bad[0]} holds NaN or infinite values")
        state = self.state
        if not state.history or self.merit(row) > self.merit(state.history[state.best_epoch - 1]):
            state.best_epoch = epoch + 1
            self.best = {x[6:]: y for x, y in tensors.items() if x.startswith("model/")}
        else:
            tensors |= {f"best/{name}": array for name, array in self.best.items()}
        state.history.append(row)
        state.epoch = epoch + 1
        write_checkpoint(self._path, tensors, state)
        write_text(self._path.with_name("history.csv"), history_table(state.history))
        self._log(row)
        self.model.stop_training = self.is_over

    def merit(self, row: Mapping[str, float]) -> tuple[float, float]:
        """Sort key of epochs: the metric, then the lower loss."""
        return row[f"val_{self._metric}"], -row["val_loss"]


def _figures(logs: Mapping[str, float], metric: str, part: str = "") -> dict[str, float]:
    """Loss and metric; Keras's own ``loss`` is weighted, and averages unequal batches."""
    found = {f"{part}loss": logs[f"{part}cross_entropy"], part + metric: logs[part + metric]}
    return {name: _decimal(value) for name, value in found.items()}


def _decimal(value: float) -> float:
    """A float32 with its significant digits only."""
    return float(f"{float(value):.7g}")


def diverged(asked: str, found: str) -> UsageError:
    """The error for weights or losses that are not finite."""
    return UsageError(
        asked,
        f"{found}: training diverged",
        "Start over (--force) with a lower learning rate (--lr).",
    )


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """All that training changes, by name; not the learning rate, which is a setting."""
    optimizer = model.optimizer
    kept = [x for x in optimizer.variables if not x.path.endswith("/learning_rate")]
    found = {f"model/{x.path}": x for x in model.trainable_variables}
    found |= {"optimizer/" + x.path.split("/", 1)[-1]: x for x in kept}
    assert len(found) == len(model.trainable_variables) + len(kept)
    return found


def _array(variable: keras.Variable) -> np.ndarray:
    """A copy of a variable's value."""
    return np.array(tf.convert_to_tensor(variable.value).numpy())


def _is_finite(array: np.ndarray) -> bool:
    return not array.size or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def write_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], state: State) -> None:
    """Replace the checkpoint atomically.

    Raises
    ------
    OutputError
        If it can't be written; the old one is kept.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    metadata = {"tf_alexnet_checkpoint": _FORMAT, "state": json.dumps(asdict(state))}
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        try:
            save_file(arrays, os.fspath(temporary), metadata)
            os.chmod(temporary, mode)  # the library's files are their owner's alone
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_checkpoint(path: Path, settings: str) -> tuple[State, dict[str, np.ndarray]]:
    """Read a file from `write_checkpoint`; a new state and no tensors if there is none.

    Parameters
    ----------
    path : Path
        The file.
    settings : str
        Digest of the settings that it must have.

    Raises
    ------
    OutputError
        If it is damaged, or belongs to another training.
    """
    if not path.is_file():
        return State(settings), {}
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("tf_alexnet_checkpoint") != _FORMAT:
                raise _unfit(path, "it is not a checkpoint of this version")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
        state = State(**json.loads(metadata["state"]))
        sound = bool(tensors) and _is_sound(state)
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise _unfit(path, f"it is damaged ({error})") from None
    except RecursionError:
        sound = False
    if not sound:
        raise _unfit(path, "its state is damaged")
    if state.settings != settings:
        raise _unfit(path, "it belongs to a training with other settings")
    return state, tensors


def _is_sound(state: State) -> bool:
    """Whether counters, history and the rest have valid types and sizes."""
    rows, covariance = state.history, state.covariance
    return (
        type(state.epoch) is type(state.best_epoch) is int
        and 1 <= state.best_epoch <= state.epoch == len(rows)
        and all(row["epoch"] == number for number, row in enumerate(rows, 1))
        and all(list(row) == list(rows[0]) for row in rows)
        and all(type(x) in (int, float) and math.isfinite(x) for y in rows for x in y.values())
        and all(len(x) == 3 and all(isinstance(y, str) for y in x) for x in state.failures)
        and (covariance is None or np.isfinite(np.array(covariance, float)).sum() == 9)
    )


def _unfit(path: Path, found: str) -> OutputError:
    return OutputError(os.fspath(path), found, "Start over with --force (force=True).")
