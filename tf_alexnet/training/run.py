"""The RUN: a folder that says what was trained on what, and holds the network that came of it.

Our own commands rebuild the network from two files: ``run.json``, plain JSON that is checked field
by field, and ``weights.safetensors``, an ordinary weight file. A RUN from a stranger runs no code.
``model.keras``, the tables and the pictures are for people and other programs; nothing here reads
them.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES, Architecture
from tf_alexnet.errors import OutputError, UsageError, WeightsError
from tf_alexnet.files import publish, replacing
from tf_alexnet.training.record import MAX_BYTES, RunRecord, not_a_run
from tf_alexnet.version import VERSION
from tf_alexnet.weights import WeightArrays, own_table, read_weights, write_weights

if TYPE_CHECKING:
    import keras

    from tf_alexnet.extraction.reader import Failure

RECORD, WEIGHTS = "run.json", "weights.safetensors"


@dataclass(frozen=True)
class Run:
    """A finished training, checked: the record and the weights belong together.

    Attributes
    ----------
    folder : Path
        The RUN.
    record : RunRecord
        What ``run.json`` holds.
    arrays : WeightArrays
        What ``weights.safetensors`` holds; `AlexNet`, `FeatureExtractor` and all else take it.
        ``metadata["preset"]`` is the record's preset.
    """

    folder: Path
    record: RunRecord
    arrays: WeightArrays

    @property
    def weights(self) -> Path:
        """The path of ``weights.safetensors``."""
        return self.folder / WEIGHTS

    @property
    def table(self) -> Architecture:
        """The network: cut where the classifier stands, with as many outputs as classes."""
        return own_table(self.arrays, ARCHITECTURES[self.record.architecture])

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Run:
        """Read a RUN; nothing in it is executed.

        Raises
        ------
        UsageError
            If there is no such folder, or no run in it.
        WeightsError
            If files are missing or damaged, of another version, or don't belong together.
        """
        folder = Path(folder)
        record = read_record(folder)
        if record is None:
            raise UsageError(
                str(folder),
                f"no finished training is there: it has no {RECORD}",
                "Name a folder that `tf-alexnet train` made; with --resume that finishes one.",
            )
        arrays = read_weights(folder / WEIGHTS)
        if arrays.digest != record.weights_digest:
            raise WeightsError(
                str(folder / WEIGHTS),
                f"these are not the weights that {RECORD} records",
                "Get both files from the same RUN again.",
            )
        _check_belonging(folder, record, arrays)
        metadata = {**arrays.metadata, "preset": record.preset}
        return cls(folder, record, replace(arrays, metadata=metadata))


@dataclass(frozen=True)
class TrainingReport:
    """What a training ended in.

    Attributes
    ----------
    run : Run
        The result, read back.
    notes : tuple of str
        What a user should know about the data and the result, a sentence each.
    skipped : tuple of Failure
        Photos that could not be read.
    finished_before : bool
        Whether all of it had been done by an earlier call; `skipped` is empty then.
    """

    run: Run
    notes: tuple[str, ...] = ()
    skipped: tuple[Failure, ...] = ()
    finished_before: bool = False


def read_record(folder: str | os.PathLike) -> RunRecord | None:
    """What a folder's ``run.json`` holds; None where there is none.

    Raises
    ------
    UsageError
        If there is no such folder.
    WeightsError
        If it can't be read, or is no such record.
    """
    path = Path(folder, RECORD)
    if not path.parent.is_dir():
        found = "a file, not a folder" if path.parent.exists() else "there is no such folder"
        raise UsageError(os.fspath(folder), found, "Name a folder that `tf-alexnet train` made.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise not_a_run(str(path), f"more than {MAX_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise not_a_run(str(path), f"it can't be read ({error})") from None
    return RunRecord.parsed(text, str(path))


def _check_belonging(folder: Path, record: RunRecord, arrays: WeightArrays) -> None:
    """Refuse weights of another network, or of other classes, than the record speaks of."""
    path = str(folder / WEIGHTS)
    if arrays.architecture != record.architecture:
        raise WeightsError(
            path,
            f"{RECORD} records {record.architecture}, these are {arrays.architecture} weights",
            "Get both files from the same RUN again.",
        )
    table = own_table(arrays, ARCHITECTURES[record.architecture])
    if arrays.classes != len(record.classes):
        raise WeightsError(
            path,
            f"fc8 has {arrays.classes or 'no'} outputs, and {RECORD} names {len(record.classes)} "
            "classes",
            "Get both files from the same RUN again.",
        )
    whole = ARCHITECTURES[record.architecture].with_head(record.layer, len(record.classes))
    if table.parameter_shapes() != whole.parameter_shapes():
        raise WeightsError(
            path,
            f"its classifier does not stand on {record.layer}, as {RECORD} says",
            "Get both files from the same RUN again.",
        )


def write_run(
    folder: str | os.PathLike,
    record: RunRecord,
    weights: WeightArrays,
    model: keras.Model,
    *,
    history: Sequence[Mapping[str, float]],
    confusion: np.ndarray,
    notes: Sequence[str] = (),
    skipped: Sequence[Failure] = (),
    explanation: str = "",
) -> Run:
    """Write all files of a RUN, each under a temporary name and renamed, ``run.json`` last.

    Parameters
    ----------
    folder : path
        The RUN, which exists.
    record : RunRecord
        Without `weights_digest` and `versions`, which are filled in here.
    weights : WeightArrays
        The trained network, `fc8` included.
    model : keras.Model
        The same, for ``model.keras``.
    history : sequence of dict
        A row a step, all with the same keys: the first (``epoch``, ``l2``) counts the steps, those
        with ``loss`` or ``accuracy`` in their names are drawn.
    confusion : ndarray of int, (classes, classes)
        Validation photos by true class (rows) and predicted class (columns).
    notes : sequence of str
        Sentences for the report.
    skipped : sequence of Failure
        Photos that could not be read.
    explanation : str
        A paragraph of the report: what was trained, and how the figures came about.

    Returns
    -------
    Run
        As read back.

    Raises
    ------
    OutputError
        If a file can't be written; without ``run.json`` the folder is no finished RUN.
    """
    from tf_alexnet.training import report

    folder = Path(folder)
    # The rest was true of the weights it started from: classes, digests, identification.
    kept = {name: x for name, x in weights.metadata.items() if name in ("licence", "origin")}
    metadata = {**kept, "preset": record.preset, "head": record.layer}
    weights = replace(weights, architecture=record.architecture, metadata=metadata)
    record = replace(record, weights_digest=weights.digest, versions=_versions())
    (folder / RECORD).unlink(missing_ok=True)  # what follows is no longer what it speaks of
    write_weights(weights, folder / WEIGHTS)
    _save_model(model, folder)
    indices = {name: index for index, name in enumerate(record.classes)}
    write_text(folder / "class_indices.json", json.dumps(indices, indent=1) + "\n")
    write_text(folder / "history.csv", report.history_table(history))
    missing = report.draw(folder, record, history, confusion)
    text = report.report_text(
        record, history, confusion, [*notes, *missing], skipped, explanation, drawn=not missing
    )
    write_text(folder / "report.md", text)
    write_text(folder / RECORD, record.text())
    return Run.open(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file, all or nothing.

    Raises
    ------
    OutputError
        If it can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def _save_model(model: keras.Model, folder: Path) -> None:
    """``model.keras``; Keras wants that suffix also of a temporary name."""
    place = None
    try:
        place = tempfile.mkdtemp(prefix=".tf-alexnet-", suffix=".part", dir=folder)
        model.save(os.path.join(place, "model.keras"))
        publish(os.path.join(place, "model.keras"), folder / "model.keras")
    except OSError as error:
        raise OutputError(
            str(folder / "model.keras"),
            f"it can't be written ({error.strerror or error})",
            "Check that the folder may be written to and has space left.",
        ) from error
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def _versions() -> dict[str, str]:
    import keras
    import tensorflow as tf

    return {
        "tf_alexnet": VERSION,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
