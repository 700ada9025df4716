"""The state of an unfinished training, in one safetensors file that is replaced as a whole.

Tensors are named by what they are (``model/fc8/kernel``, ``optimizer/...``, ``best/fc8/kernel``);
counters and history are JSON in the header. Nothing in it is executed, and everything is checked
when it is read: a training that goes on from it continues as if it had never stopped.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tf_alexnet.errors import OutputError
from tf_alexnet.files import replacing

CHECKPOINT = "checkpoint.safetensors"
_FORMAT = "1"


@dataclass
class State:
    """How far a training has come.

    Attributes
    ----------
    settings : str
        Digest of the settings it was begun with.
    epoch : int
        Epochs completed.
    best_epoch : int
        The one whose weights did best on the validation photos.
    history : list of dict of str to float
        A row an epoch.
    failures : list of [path, code, detail]
        Photos that can't be read.
    covariance : list of 3 lists of 3 floats, or None
        Of the training photos' colours.
    """

    settings: str
    epoch: int = 0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    failures: list[list[str]] = field(default_factory=list)
    covariance: list[list[float]] | None = None


def write_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], state: State) -> None:
    """Replace the checkpoint, all or nothing.

    Parameters
    ----------
    path : Path
        The file.
    tensors : mapping of str to ndarray
        By name.
    state : State
        The rest.

    Raises
    ------
    OutputError
        If it can't be written; the old one stays.
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


def read_checkpoint(
    path: Path, settings: str, shapes: Mapping[str, tuple[tuple[int, ...], str]]
) -> tuple[dict[str, np.ndarray], State] | None:
    """What `write_checkpoint` wrote; None where there is no such file.

    Parameters
    ----------
    path : Path
        The file.
    settings : str
        Digest that its state must have.
    shapes : mapping of str to (tuple, str)
        Shape and dtype of each tensor that must be there. Those called ``best/...`` may all be
        missing: then the best epoch is the last.

    Raises
    ------
    OutputError
        If it is damaged, or of another training.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("tf_alexnet_checkpoint") != _FORMAT:
                raise _unfit(path, "it is no checkpoint of this version")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
        state = State(**json.loads(metadata["state"]))
        fault = _fault(state)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unfit(path, f"it is damaged ({error})") from None
    if fault:
        raise _unfit(path, f"its state is damaged ({fault})")
    if state.settings != settings:
        raise _unfit(path, "it belongs to a training with other settings")
    needed = {x for x in shapes if not x.startswith("best/") or state.best_epoch != state.epoch}
    if set(tensors) != needed:
        odd = sorted(set(tensors) ^ needed)
        raise _unfit(path, f"it holds other tensors than this training has ({odd[0][:80]!r})")
    for name, array in tensors.items():
        shape, dtype = shapes[name]
        if array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
            raise _unfit(path, f"{name} is {array.dtype} of shape {array.shape}")
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise _unfit(path, f"{name} holds NaN or infinite values")
    return tensors, state


def _fault(state: State) -> str | None:
    """What is wrong with counters and history; None if nothing is."""
    if type(state.epoch) is not int or type(state.best_epoch) is not int:
        return "epochs are no numbers"
    if not 1 <= state.best_epoch <= state.epoch or len(state.history) != state.epoch:
        return "its epochs don't add up"
    for number, row in enumerate(state.history, 1):
        values = row.values()
        if row.get("epoch") != number or not all(type(x) in (int, float) for x in values):
            return f"epoch {number} is no row of numbers"
        if not all(map(math.isfinite, values)) or list(row) != list(state.history[0]):
            return f"epoch {number} is no row like the first"
    if not all(len(x) == 3 and all(isinstance(y, str) for y in x) for x in state.failures):
        return "photos that failed"
    if state.covariance is not None:
        covariance = np.array(state.covariance, np.float64)
        if covariance.shape != (3, 3) or not np.isfinite(covariance).all():
            return "the colours' covariance"
    return None


def _unfit(path: Path, found: str) -> OutputError:
    return OutputError(os.fspath(path), found, "Begin anew with --force (force=True).")
