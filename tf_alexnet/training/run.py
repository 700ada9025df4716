"""A RUN: the folder of a training, with the trained network and a record of how it was made.

Our own commands rebuild the network from two files: ``run.json``, plain JSON that is checked field
by field, and ``weights.safetensors``, an ordinary weight file. A RUN from a stranger runs no code.
``model.keras``, the tables and the pictures are for people and other programs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES, HEAD_LAYERS, Architecture
from tf_alexnet.errors import (
    ImageError,
    OutputError,
    PresetError,
    UsageError,
    WeightsError,
    one_line,
)
from tf_alexnet.evaluation.scores import score_photos
from tf_alexnet.extraction.storage import Target, locked
from tf_alexnet.files import publish, replacing
from tf_alexnet.images import preset_named
from tf_alexnet.training.folders import Example, PhotoSet
from tf_alexnet.version import VERSION
from tf_alexnet.weights import WeightArrays, adapted_table, read_weights, write_weights

if TYPE_CHECKING:
    import keras

    from tf_alexnet.extraction import FeatureExtractor
    from tf_alexnet.extraction.predictions import PhotoPrediction
    from tf_alexnet.extraction.reader import Failure
    from tf_alexnet.training.linear import Classifier

RECORD, WEIGHTS, MODEL = "run.json", "weights.safetensors", "model.keras"
SETTINGS = "settings.json"  # to compare with those of the next call
READOUT = "readout.csv"  # of a layer-wise read-out, which has no network
FORMAT = 1  # of run.json
MODES = ("head", "finetune", "scratch")
MAX_BYTES = 1 << 27  # names and digests of a million photos take 50 MB
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
# Settings that are recorded as digests, and what it means when those differ.
_DIGESTED = {"data": "other photos, labels or splits", "weights": "other weights"}


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` holds.

    Attributes
    ----------
    classes : tuple of str
        Names of the classes, in the order of the network's outputs.
    architecture, preset : str
        The network's table and the preprocessing it was trained with.
    layer : {"pool5", "fc6", "fc7"}
        Layer that the classifier `fc8` was trained on; with ``fc7`` the network is complete.
    mode : {"head", "finetune", "scratch"}
        What was trained: the classifier, it and layers below, or everything.
    base : dict of str to str
        ``digest`` and ``source`` of the initial weights, and ``untrained`` if they were random;
        empty for ``scratch``.
    settings : dict of str to str, int, float, bool or None
        All settings that the result depends on.
    split : dict
        See `split_record`.
    metrics : dict of str to float
        ``train_accuracy``, ``val_accuracy``, ``test_accuracy`` (0..1) and others.
    weights_digest : str
        `WeightArrays.digest` of ``weights.safetensors``.
    versions : dict of str to str
        Versions of the software that made it.
    multi_label : bool
        Whether photos have any number of labels, each with an independent probability (a sigmoid).
        `metrics` then has ``val_map`` (mean average precision, 0..1) in place of ``val_accuracy``.
    """

    classes: tuple[str, ...]
    architecture: str
    preset: str
    layer: str
    mode: str
    base: Mapping[str, str]
    settings: Mapping[str, Any]
    split: Mapping[str, Any]
    metrics: Mapping[str, float]
    weights_digest: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    multi_label: bool = False

    def __repr__(self) -> str:
        name = "val_map" if self.multi_label else "val_accuracy"
        return (
            f"<RunRecord {len(self.classes)} classes, {self.architecture}, classifier on "
            f"{self.layer}, mode {self.mode}, {name} {self.metrics.get(name, math.nan):.3f}>"
        )

    def text(self) -> str:
        """The JSON of ``run.json``; bytes that are not UTF-8 are escaped surrogates."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def parsed(cls, text: str, source: str) -> RunRecord:
        """Parse the text of a ``run.json``.

        Raises
        ------
        WeightsError
            If it is of another version, or not such a record; `source` is named.
        """
        try:
            content = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise not_a_run(source, f"it is not JSON ({str(error)[:80]})") from None
        if not isinstance(content, dict) or "format" not in content:
            raise not_a_run(source, "it does not describe a training")
        if content.pop("format") != FORMAT:
            raise WeightsError(
                source,
                f"it is of another version than this tf_alexnet ({VERSION}) reads",
                "Use the version that made it: `versions` in that file names it.",
            )
        content.setdefault("multi_label", False)  # runs of version 0.1.0 lack it
        names = {x.name for x in fields(cls)}
        if content.keys() != names:
            wrong = ", ".join(sorted(str(x)[:40] for x in content.keys() ^ names)[:5])
            raise not_a_run(source, f"missing or unknown entries: {wrong}")
        for name, (holds, expected) in _CHECKS.items():
            if not holds(content[name]):
                raise not_a_run(source, f"{name} is not {expected}")
        return cls(**{**content, "classes": tuple(content["classes"])})


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} in it")


def not_a_run(source: str, found: str) -> WeightsError:
    return WeightsError(source, found, "Name a folder that `tf-alexnet train` made, unchanged.")


def _is_names(value: Any) -> bool:
    named = isinstance(value, list) and all(isinstance(x, str) and x for x in value)
    return named and len(value) > 1 and len(set(value)) == len(value)


def _is_flat(*kinds: type):
    def holds(value: Any) -> bool:
        return isinstance(value, dict) and all(type(x) in kinds for x in value.values())

    return holds


def _is_split(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("drawn")) is not bool:
        return False
    counts = [value.get(x) for x in ("train", "val", "skipped")] + [value.get("test", 0)]
    texts = [value.get("place", ""), value.get("trained_on", "")]
    names = [value.get(x, []) for x in ("train_photos", "val_photos")]
    return (
        all(type(x) is int and x >= 0 for x in counts)
        and all(isinstance(x, list) for x in names)
        and all(isinstance(x, str) for x in (*texts, *names[0], *names[1]))
        and ("place" in value) == ("train_photos" in value)
    )


def _is_metrics(value: Any) -> bool:
    if not _is_flat(int, float)(value) or not all(map(math.isfinite, value.values())):
        return False
    return 0 <= value.get("val_accuracy", value.get("val_map", -1)) <= 1


def _is_one_of(known: Sequence[str]):
    return lambda value: isinstance(value, str) and value in known


def _is_preset(value: Any) -> bool:
    try:
        return isinstance(value, str) and preset_named(value).name == value
    except PresetError:
        return False


_CHECKS = {
    "classes": (_is_names, "a list of two or more different names"),
    "architecture": (_is_one_of(tuple(ARCHITECTURES)), f"one of {', '.join(ARCHITECTURES)}"),
    "preset": (_is_preset, "a known preset"),
    "layer": (_is_one_of(HEAD_LAYERS), f"one of {', '.join(HEAD_LAYERS)}"),
    "mode": (_is_one_of(MODES), f"one of {', '.join(MODES)}"),
    "base": (_is_flat(str), "a table of texts"),
    "settings": (_is_flat(str, int, float, bool, type(None)), "a flat table"),
    "split": (_is_split, "a split of photos"),
    "metrics": (_is_metrics, "a table of finite numbers with val_accuracy in 0..1 (or val_map)"),
    "weights_digest": (
        lambda x: isinstance(x, str) and bool(_DIGEST.fullmatch(x)),
        "a SHA-256 digest",
    ),
    "versions": (_is_flat(str), "a table of texts"),
    "multi_label": (lambda x: isinstance(x, bool), "true or false"),
}


def base_record(base: WeightArrays | None) -> dict[str, str]:
    """`RunRecord.base` for these initial weights."""
    if base is None:
        return {}
    mark = {"untrained": "yes"} if base.untrained else {}
    return {"digest": base.digest, "source": os.path.basename(base.source), **mark}


def split_record(photos: PhotoSet, skipped: Sequence[Failure] = ()) -> dict[str, Any]:
    """The `RunRecord.split` of these photos.

    Parameters
    ----------
    photos : PhotoSet
    skipped : sequence of Failure
        Training and validation photos that could not be read.

    Returns
    -------
    dict
        ``drawn``, whether the validation photos were chosen at random; ``train``, ``val`` and
        ``skipped``, numbers of photos; ``trained_on``, `short_digest` of each training photo.
        If chosen at random, also ``train_photos`` and ``val_photos``, paths relative to the data
        folder, and ``place``, a digest of that folder's path.
    """
    bad = {failure.path for failure in skipped}
    train, val = ([x for x in part if x.path not in bad] for part in (photos.train, photos.val))
    digests = {photos.contents.get(x.path) for x in train} - {None}
    found = {"drawn": photos.split, "train": len(train), "val": len(val), "skipped": len(bad)}
    found["trained_on"] = " ".join(sorted(map(short_digest, digests)))
    if photos.split:
        for name, part in (("train_photos", photos.train), ("val_photos", photos.val)):
            found[name] = [photos.name_of(example) for example in part]
        found["place"] = place_digest(photos.source) if photos.source else ""
    return found


def short_digest(digest: str) -> str:
    """The first 48 bits of a digest; collisions among a million photos are rare."""
    return digest[:12]


def place_digest(path: str | os.PathLike) -> str:
    """A digest of the path of a folder or file, so that RUNs can be published."""
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """A finished training. Record and weights are checked to belong together.

    Attributes
    ----------
    folder : Path or None
        The RUN; None if it was not written (`train_head` on arrays).
    record : RunRecord
        What ``run.json`` holds.
    arrays : WeightArrays
        What ``weights.safetensors`` holds; accepted wherever weights are.
        ``metadata["preset"]`` is the record's preset.
    """

    folder: Path | None
    record: RunRecord
    arrays: WeightArrays

    def __repr__(self) -> str:
        about = repr(self.record).partition(" ")[2]
        return f"<Run {one_line(self.folder or 'in memory')}: {about}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return self.record.classes

    @cached_property
    def model(self) -> keras.Model:
        """The network, (N, S, S, 3) preprocessed images to (N, classes) probabilities."""
        return model_of(self.record, self.arrays)

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The network for `predict_photos`."""
        from tf_alexnet.extraction import FeatureExtractor

        return FeatureExtractor(self.arrays, self.outputs, architecture=self.record.architecture)

    @property
    def outputs(self) -> tuple[str]:
        """The layer that `predict_photos` needs: `fc8` for a multi-label run."""
        return ("fc8" if self.record.multi_label else "prob",)

    def predict(
        self, images: Any, *, top: int | None = None, crops: str = "center", batch_size: int = 32
    ) -> list[PhotoPrediction]:
        """Predict photos.

        Parameters
        ----------
        images : path, sequence of paths, or images
            Photos, folders and lists, as for `extract_features`; or images in memory, as for
            `FeatureExtractor.from_images`.
        top : int, optional
            How many classes (default: all).
        crops : {"center", "ten"}
            As in `predict_photos`.
        batch_size : int
            Photos that go through the network together.

        Returns
        -------
        list of PhotoPrediction
            One per photo; those that can't be read have an ``error``. Images in memory are called
            ``images[0]``, ``images[1]``, ...

        Raises
        ------
        ImageError, InputError
            If there are no such photos, or images are not images.
        """
        from tf_alexnet.extraction import predict_photos

        return list(
            predict_photos(
                images,
                self.extractor,
                top=top,
                crops=crops,
                batch_size=batch_size,
                classes=self.classes,
            )
        )

    @property
    def weights(self) -> Path:
        """The path of ``weights.safetensors``."""
        return self.folder / WEIGHTS

    @property
    def table(self) -> Architecture:
        """The network up to its classifier, with one output per class."""
        return adapted_table(self.arrays, ARCHITECTURES[self.record.architecture])

    @classmethod
    def open(cls, path: str | os.PathLike) -> Run:
        """Read a RUN. Nothing in it is executed.

        Parameters
        ----------
        path : path
            The folder, or its ``run.json``, ``weights.safetensors`` or ``model.keras``.

        Raises
        ------
        UsageError
            If there is no such folder, or no run in it.
        WeightsError
            If files are missing or damaged, of another version, or don't belong together.
        """
        folder = run_folder(path) or Path(path)
        record = read_record(folder)
        if record is None and (folder / READOUT).is_file():
            raise UsageError(
                str(folder),
                "it holds a read-out of layers, which has no network",
                "Train one: tf-alexnet train DATA -o RUN --layer pool5 (or fc6, fc7).",
            )
        if record is None:
            raise UsageError(
                str(folder),
                f"it holds no finished training (no {RECORD})",
                "Name a folder that `tf-alexnet train` made; with --resume that finishes one.",
            )
        arrays = read_weights(folder / WEIGHTS)
        read = {WEIGHTS: arrays}
        if Path(path).name == MODEL:
            read[MODEL] = read_weights(folder / MODEL)
        for name, found in read.items():
            if found.digest != record.weights_digest:
                raise WeightsError(
                    str(folder / name),
                    f"not the weights that {RECORD} describes",
                    "Copy both files from the same RUN again.",
                )
        _check_belonging(folder, record, arrays)
        metadata = {**arrays.metadata, **_usage(record)}
        return cls(folder, record, replace(arrays, metadata=metadata))


def load_run(path: str | os.PathLike) -> Run:
    """Load what `tf-alexnet train`, `train_head` or `train_network` made.

    Parameters
    ----------
    path : path
        The RUN folder, or its ``run.json``, ``weights.safetensors`` or ``model.keras``. Nothing in
        it is executed.

    Returns
    -------
    Run
        With ``predict(photos)``, ``model``, ``classes``, ``record`` and ``arrays``.

    Raises
    ------
    UsageError
        If there is no such folder, or no finished training in it.
    WeightsError
        If files are missing or damaged, of another version, or don't belong together.

    Examples
    --------
    >>> import tf_alexnet as ta
    >>> run = ta.load_run("RUN")  # doctest: +SKIP
    >>> run.predict("photos")[0].predictions[0].label  # doctest: +SKIP
    'daisy'
    """
    return Run.open(path)


def model_of(record: RunRecord, arrays: WeightArrays) -> keras.Model:
    """The network of a run, with a softmax, or one sigmoid per class if it is multi-label."""
    from tf_alexnet.model import AlexNet

    activation = "sigmoid" if record.multi_label else "softmax"
    return AlexNet(arrays, architecture=record.architecture, classifier_activation=activation)


def run_folder(path: str | os.PathLike) -> Path | None:
    """The RUN that a path or the path of one of its files names, or None."""
    path = Path(path)
    folder = path.parent if path.name in (RECORD, WEIGHTS, MODEL) else path
    return folder if (folder / RECORD).is_file() else None


def find_run(source: Any) -> Run | None:
    """The RUN that `source` is, or names by its folder or one of its files; None for others."""
    if isinstance(source, str | os.PathLike) and run_folder(source):
        return Run.open(source)
    return source if isinstance(source, Run) else None


@dataclass(frozen=True)
class TrainingReport:
    """Result of a training.

    Attributes
    ----------
    run : Run or None
        The result, read back; None after `train_head` on features.
    notes : tuple of str
        Sentences about the data and the result, for the user.
    skipped : tuple of Failure
        Photos that could not be read.
    finished_before : bool
        Whether an earlier call had finished it; `skipped` is empty then.
    classifier : Classifier or None
        Classifier of features from `train_head`, unless `finished_before`.
    """

    run: Run | None
    notes: tuple[str, ...] = ()
    skipped: tuple[Failure, ...] = ()
    finished_before: bool = False
    classifier: Classifier | None = None

    def __repr__(self) -> str:
        result = self.run or self.classifier
        return f"<TrainingReport {result}, notes {len(self.notes)}, skipped {len(self.skipped)}>"


def read_record(folder: str | os.PathLike) -> RunRecord | None:
    """Read a folder's ``run.json``; None if there is none.

    Raises
    ------
    UsageError
        If there is no such folder.
    WeightsError
        If it can't be read, or is not such a record.
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
    """Refuse weights of another network or with other classes than the record's."""
    table, classes = ARCHITECTURES[record.architecture], len(record.classes)
    whole = table.with_head(record.layer, classes)
    if arrays.architecture != record.architecture:
        fault = f"{RECORD} records {record.architecture}, these are {arrays.architecture} weights"
    elif arrays.classes != classes:
        fault = f"fc8 has {arrays.classes or 'no'} outputs, and {RECORD} names {classes} classes"
    elif adapted_table(arrays, table).parameter_shapes() != whole.parameter_shapes():
        fault = f"its classifier is not on {record.layer}, as {RECORD} says"
    else:
        return
    raise WeightsError(str(folder / WEIGHTS), fault, "Copy both files from the same RUN again.")


def write_run(
    folder: str | os.PathLike,
    record: RunRecord,
    weights: WeightArrays,
    model: keras.Model,
    *,
    history: Sequence[Mapping[str, float]],
    confusion: np.ndarray | None = None,
    precisions: np.ndarray | None = None,
    test: Sequence[Example] = (),
    notes: Sequence[str] = (),
    skipped: Sequence[Failure] = (),
    explanation: str = "",
) -> Run:
    """Write all files of a RUN, each atomically, ``run.json`` last.

    Parameters
    ----------
    folder : path
        The RUN, which exists.
    record : RunRecord
        `weights_digest` and `versions` are filled in here.
    weights : WeightArrays
        The trained network, `fc8` included.
    model : keras.Model
        The same network, for ``model.keras``.
    history : sequence of dict
        One row per step, all with the same keys: the first (``epoch``, ``l2``) is the axis of the
        plot, those with ``loss``, ``accuracy`` or ``map`` in their names are plotted.
    confusion : ndarray of int, (classes, classes), optional
        Validation photos by true class (rows) and predicted class (columns).
    precisions : ndarray of float, (classes,), optional
        Of a multi-label run: average precision of each class on the validation photos.
    test : sequence of Example
        Photos of the test split, to evaluate the finished network on.
    notes : sequence of str
        Sentences for the report.
    skipped : sequence of Failure
        Photos that could not be read.
    explanation : str
        A paragraph of the report: what was trained, and how.

    Returns
    -------
    Run
        Read back from the folder.

    Raises
    ------
    OutputError
        If a file can't be written. Without ``run.json`` the RUN is unfinished.
    """
    from tf_alexnet.training import report

    folder = Path(folder)
    # Other metadata described the initial weights: classes, digests, identification.
    kept = {name: x for name, x in weights.metadata.items() if name in ("licence", "origin")}
    metadata = {**kept, **_usage(record), "head": record.layer}
    weights = replace(weights, architecture=record.architecture, metadata=metadata)
    record = replace(record, weights_digest=weights.digest, versions=_versions())
    if test:
        record, failures, note = _tested(record, weights, test)
        notes, skipped = [*notes, *note], [*skipped, *failures]
    (folder / RECORD).unlink(missing_ok=True)  # it does not describe what is written next
    write_weights(weights, folder / WEIGHTS)
    _save_model(model, folder)
    write_text(
        folder / "class_indices.json", json.dumps(dict(enumerate(record.classes)), indent=1) + "\n"
    )
    write_text(folder / "history.csv", report.history_table(history))
    missing = report.draw(folder, record, history, confusion)
    text = report.report_text(
        record, history, confusion, precisions, [*notes, *missing], skipped, explanation,
        drawn=not missing,
    )  # fmt: skip
    write_text(folder / "report.md", text)
    write_text(folder / RECORD, record.text())
    return Run.open(folder)


def _usage(record: RunRecord) -> dict[str, str]:
    """What the metadata of a run's weights say of their use."""
    return {"preset": record.preset} | ({"activation": "sigmoid"} if record.multi_label else {})


def _tested(
    record: RunRecord, weights: WeightArrays, test: Sequence[Example]
) -> tuple[RunRecord, Sequence[Failure], list[str]]:
    """The record with test figures, photos that can't be read, and notes."""
    try:
        scores = score_photos(weights, test, multi_label=record.multi_label)
    except ImageError as problem:  # must not lose the training
        return record, (), [f"no test photo was evaluated: {problem}"]
    figures = {f"test_{name}": value for name, value in scores.figures.items()}
    skipped = record.split["skipped"] + len(scores.failures)
    split = {**record.split, "test": scores.photos, "skipped": skipped}
    record = replace(record, metrics={**record.metrics, **figures}, split=split)
    return record, scores.failures, []


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
    """Write ``model.keras``. Keras requires that suffix of temporary names, too."""
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


def check_run(folder: str | os.PathLike, *, resume: bool = False) -> None:
    """Check a folder for `working_in` before any work is done.

    Raises
    ------
    UsageError, OutputError
        As `working_in`, except for a folder that another training uses.
    """
    path = Path(folder)
    begun = any((path / name).is_file() for name in (SETTINGS, RECORD))
    if resume and not begun:
        raise UsageError(str(path), "no training was started there", "Leave --resume out.")
    Target(f"{path}/").check()
    if path.is_dir() and not begun and _is_foreign(path):
        raise OutputError(
            str(path), "it holds other files and no training", "Name a new folder for the RUN."
        )


@contextlib.contextmanager
def working_in(folder: str | os.PathLike, *, resume: bool = False) -> Iterator[Path]:
    """Create and lock a RUN's folder: one training at a time.

    Raises
    ------
    UsageError
        With `resume`, where no training was started.
    OutputError
        If the folder can't be made or written to, holds other files, or is in use.
    """
    check_run(folder, resume=resume)
    path = Path(folder)
    target = Target(f"{path}/")
    target.data.make()
    with locked(target.data, str(target)):
        for left in path.glob(".tf-alexnet-*"):  # left half written by a killed training
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                target.data.remove(left.name)
        yield path


def _is_foreign(path: Path) -> bool:
    """Whether it holds anything but the features of a training that was killed early."""
    return any(not name.startswith((".", "features.h5")) for name in os.listdir(path))


def begin_run(folder: Path, settings: Mapping[str, Any], *, force: bool = False) -> Run | None:
    """Compare the settings of a training with those of its RUN, or record them in a new one.

    Parameters
    ----------
    folder : Path
        From `working_in`.
    settings : dict of str to str, int, float, bool or None
        All that the result depends on. ``epochs`` may be larger than before.
    force : bool
        Start over.

    Returns
    -------
    Run or None
        The finished run with these settings; None if there is work to do.

    Raises
    ------
    UsageError
        If it was started with other settings; the message names them.
    WeightsError
        If the finished run is damaged.
    """
    settings = dict(settings)
    if force:
        for name in (RECORD, READOUT, SETTINGS):
            (folder / name).unlink(missing_ok=True)
    record = read_record(folder)
    if record is not None and dict(record.settings) == settings:
        return Run.open(folder)
    # While a finished run is continued, settings.json is newer than its record.
    old = _begun(folder)
    old = dict(record.settings) if old is None and record is not None else old
    if old is not None:
        names = [name for name in {**old, **settings} if old.get(name) != settings.get(name)]
        if names and not (names == ["epochs"] and _grows(old["epochs"], settings["epochs"])):
            changed = ", ".join(
                _DIGESTED.get(x, f"{x} {old.get(x)} -> {settings.get(x)}") for x in names
            )
            raise UsageError(
                str(folder),
                f"it was started with other settings: {changed}",
                "Use the same settings, name another folder, or start over with --force "
                "(force=True).",
            )
    if old != settings:
        write_text(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
    return None


def _grows(old: Any, new: Any) -> bool:
    return type(old) is type(new) is int and old < new


def _begun(folder: Path) -> dict[str, Any] | None:
    """The recorded settings of an unfinished training, or None."""
    try:
        content = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(
            str(folder / SETTINGS), f"it can't be read ({error})", "Start over with --force."
        ) from None
    return content if isinstance(content, dict) else {}
