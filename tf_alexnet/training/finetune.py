"""`train_network`: the network itself trained, from given weights or from scratch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tf_alexnet.errors import ImageError, UsageError
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.progress import progress_callback
from tf_alexnet.training.batches import BatchReader, Examined, examine_photos
from tf_alexnet.training.begin import begin_run, working_in
from tf_alexnet.training.checkpoint import CHECKPOINT, State, read_checkpoint, write_checkpoint
from tf_alexnet.training.folders import Example, PhotoSet, read_photos
from tf_alexnet.training.loop import Pass, Trainer
from tf_alexnet.training.plan import BODY, Plan, first_weights, optimizer_for, planned, settings_of
from tf_alexnet.training.record import RunRecord, split_record
from tf_alexnet.training.report import history_table
from tf_alexnet.training.run import TrainingReport, write_run, write_text
from tf_alexnet.weights import LayerArrays, WeightArrays

Progress = Callable[[str, int, int | None, Mapping[str, Any]], None]


def train_network(
    data: str | os.PathLike,
    run: str | os.PathLike,
    *,
    mode: str = "finetune",
    weights: str | os.PathLike | WeightArrays = "imagenet",
    architecture: str | None = None,
    preset: str | None = None,
    layer: str | None = None,
    unfreeze_from: str = "conv5",
    epochs: int | None = None,
    batch_size: int = 32,
    learning_rate: float | None = None,
    augment: str = "light",
    patience: int | None = None,
    mixed_precision: bool = False,
    val_split: float = 0.2,
    seed: int = 0,
    workers: int | None = None,
    devices: Sequence[str] | None = None,
    tensorboard: str | os.PathLike | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | bool | None = None,
    note: Callable[[str], None] | None = None,
) -> TrainingReport:
    """Train a network on folders of photos: fine-tune a pretrained one, or begin from scratch.

    After every epoch the state is kept in the RUN. The same call again goes on where an
    interrupted one ended, and comes to the same weights as an unbroken one. The result is the
    epoch that did best on the validation photos.

    Parameters
    ----------
    data, val_split, seed
        As in `read_photos`; `seed` is also that of fresh weights, order, augmentation, dropout.
    run : path
        Folder for the result: see `tf_alexnet.training.run`.
    mode : {"finetune", "scratch"}
        ``finetune``: a new classifier `fc8` and the layers from `unfreeze_from` are trained by
        SGD with momentum 0.9 and weight decay 5e-4; those layers at a tenth of the classifier's
        learning rate, biases at twice that of their kernels and without decay (Caffe's
        ``lr_mult`` and ``decay_mult``). ``scratch``: all layers, from fresh weights; SGD as
        before with one rate for all layers, but Adam for `compact`.
    weights, preset
        As in `FeatureExtractor`; `weights` are not looked at from scratch.
    architecture : str, optional
        As in `AlexNet`; by default ``compact`` from scratch.
    layer : {"pool5", "fc6", "fc7"}, optional
        What the classifier stands on; by default `fc7`, or the last dense layer that the weights
        have, or `pool5`.
    unfreeze_from : str
        With ``finetune``: the first layer that is trained; those before stay as they are, to the
        bit. ``"fc8"`` trains the classifier alone.
    epochs : int, optional
        Passes over the training photos; by default 10, from scratch 30.
    batch_size : int
        Photos a step.
    learning_rate : float, optional
        Of the classifier; by default 1e-3. From scratch: of all layers, by default 2e-4 for
        `compact` and 0.01 for the others.
    augment : {"none", "light", "paper"}
        See `tf_alexnet.training.augment`.
    patience : int, optional
        Stop after so many epochs in which validation accuracy reached no new best.
    mixed_precision : bool
        Multiply in bfloat16. Faster on GPUs since compute capability 8.0 and on processors that
        have it; slower on others.
    workers : int, optional
        Decoding processes in the first pass, threads in the others.
    devices : sequence of str, optional
        TensorFlow's names; by default all GPUs. More than one share every batch.
    tensorboard : path, optional
        Folder for TensorBoard's event files.
    resume : bool
        Fail unless `run` holds a training.
    force : bool
        Begin anew whatever is there.
    progress : callable or bool, optional
        True shows a progress bar. A callable is called with (stage, done, total, figures): stage
        "photos" with ``errors``; stage "epoch N/M" with ``loss`` and ``accuracy`` so far, and at
        its end with ``val_loss`` and ``val_accuracy``.
    note : callable, optional
        Called with sentences for the user as soon as they are known.

    Returns
    -------
    TrainingReport

    Raises
    ------
    UsageError
        For data or settings that can't work, settings other than the training was begun with, and
        a loss that is no longer a number.
    WeightsError, ImageError, OutputError
        If weights, photos or the RUN can't be read or written.
    """
    photos = read_photos(data, val_split, seed)
    tell = note or (lambda text: None)
    plan = planned(
        len(photos.classes), mode, weights, architecture, preset, layer, unfreeze_from,
        epochs, batch_size, learning_rate, augment, seed, patience, mixed_precision,
    )  # fmt: skip
    settings = settings_of(plan, photos, val_split)
    first = first_weights(plan.table, plan.seed, plan.base)  # complains before a RUN is begun
    first = replace(first, metadata={"preset": plan.preset.name, "head": plan.layer})
    with (
        working_in(run, resume=resume) as folder,
        progress_callback(progress, "training") as progress,
    ):
        if force:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        done = begin_run(folder, settings, force=force)
        if done is not None:
            return TrainingReport(done, photos.notes, finished_before=True)
        for text in photos.notes:
            tell(text)
        training = _Training(plan, first, photos, folder, settings, devices, progress)
        for text in training.notes:
            tell(text)
        return training.run(workers, tensorboard)


class _Training:
    """One training, from where it stands to its end."""

    def __init__(
        self,
        plan: Plan,
        first: WeightArrays,
        photos: PhotoSet,
        folder: Path,
        settings: dict[str, Any],
        devices: Sequence[str] | None,
        progress: Progress | None,
    ):
        self._plan, self._photos, self._folder = plan, photos, folder
        self._settings = settings
        self._progress = progress or (lambda *_: None)
        # A body rate is for layers that have been trained before.
        body = BODY if plan.mode == "finetune" else 1.0
        self._trainer = Trainer(
            first,
            plan.table,
            plan.trained_from,
            lambda trained: optimizer_for(trained, plan.rate, adam=plan.adam, body=body),
            seed=plan.seed,
            mixed_precision=plan.mixed_precision,
            devices=devices,
        )
        self.notes = (self._what_trains(),)
        self._best: dict[str, np.ndarray] = {}

    def _what_trains(self) -> str:
        rows = {row.name: row.parameters for row in self._plan.table.rows()}
        trained, frozen = self._trainer.trained, self._trainer.frozen
        count = sum(rows[name] for name in trained)
        stay = f"; {_span(frozen)} stay as they are" if frozen else ""
        return f"{_span(trained)} are trained, {count:,} parameters{stay}"

    def run(self, workers: int | None, tensorboard: str | os.PathLike | None) -> TrainingReport:
        """Train to the end and write the RUN."""
        state = self._resumed()
        if state is None:
            examined = self._examined(workers)
            state = State(_digest(self._settings), failures=[[*x[:3]] for x in examined.failures])
            if examined.covariance is not None:
                state.covariance = examined.covariance.tolist()
        skipped = tuple(Failure(*values) for values in state.failures)
        parts = self._readable(skipped)
        plan = self._plan
        covariance = None if state.covariance is None else np.array(state.covariance)
        reader = BatchReader(
            plan.preset, plan.augment, plan.batch_size, plan.seed, covariance, workers
        )
        with reader, _events(tensorboard) as log:
            while not self._is_over(state):
                row = self._epoch(state.epoch + 1, reader, parts)
                self._record(state, row)
                log(row)
            self._take_best()
            judged = self._trainer.judge(reader.validation(parts["val"]))
        return self._written(state, judged, skipped)

    def _resumed(self) -> State | None:
        """Take up what an interrupted training left; None if there is nothing."""
        shapes = self._trainer.shapes()
        models = {x: y for x, y in shapes.items() if x.startswith("model/")}
        shapes |= {x.replace("model/", "best/", 1): y for x, y in models.items()}
        path = self._folder / CHECKPOINT
        found = read_checkpoint(path, _digest(self._settings), shapes)
        if found is None:
            return None
        tensors, state = found
        self._trainer.restore(tensors)
        kept = {x: y for x, y in tensors.items() if x.startswith("best/")}
        self._best = kept or {
            x.replace("model/", "best/", 1): y for x, y in tensors.items() if x in models
        }
        return state

    def _examined(self, workers: int | None) -> Examined:
        train, val = ([x.path for x in part] for part in (self._photos.train, self._photos.val))
        return examine_photos(
            train,
            val,
            self._plan.preset,
            covariance=self._plan.augment == "paper",
            workers=workers,
            progress=lambda done, total, errors: self._progress(
                "photos", done, total, {"errors": errors}
            ),
        )

    def _readable(self, skipped: Sequence[Failure]) -> dict[str, list[Example]]:
        """The photos of each part that can be read."""
        bad = {failure.path for failure in skipped}
        parts = {"train": self._photos.train, "val": self._photos.val}
        good = {name: [x for x in part if x.path not in bad] for name, part in parts.items()}
        missing = set(range(len(self._photos.classes))) - {x.label for x in good["train"]}
        if missing or not good["val"]:
            what = self._photos.classes[min(missing)] if missing else "validation"
            first = skipped[0]
            raise ImageError(
                f"photos of {what}",
                f"none can be read; {first.path}: {first.detail}",
                "Replace them by intact ones.",
            )
        return good

    def _is_over(self, state: State) -> bool:
        plan = self._plan
        waited = state.epoch - state.best_epoch
        return state.epoch >= plan.epochs or (plan.patience is not None and waited >= plan.patience)

    def _epoch(
        self, number: int, reader: BatchReader, parts: Mapping[str, Sequence[Example]]
    ) -> dict[str, float]:
        """Train one epoch and judge it: its row of the history."""
        start, reader.waited = time.perf_counter(), 0.0
        stage, total = f"epoch {number}/{self._plan.epochs}", len(parts["train"])

        def watch(done: int, loss: float, accuracy: float) -> None:
            self._progress(stage, done, total, {"loss": loss, "accuracy": accuracy})

        trained = self._trainer.epoch(reader.training(parts["train"], number), number, watch)
        waited = reader.waited
        judged = self._trainer.judge(reader.validation(parts["val"]))
        row = {
            "epoch": number,
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "val_loss": judged.loss,
            "val_accuracy": judged.accuracy,
            "photos_per_second": round(trained.photos / trained.seconds, 2),
            "data_wait": round(waited / trained.seconds, 4),
            "seconds": round(time.perf_counter() - start, 2),
        }
        figures = {name: row[name] for name in ("val_loss", "val_accuracy")}
        self._progress(stage, total, total, {**figures, "accuracy": trained.accuracy})
        return row

    def _record(self, state: State, row: dict[str, float]) -> None:
        """Keep the state of a completed epoch."""
        _check_finite(row)
        best = state.history[state.best_epoch - 1] if state.history else None
        state.history.append(row)
        state.epoch = row["epoch"]
        tensors = self._trainer.tensors()
        if best is None or _merit(row) > _merit(best):
            state.best_epoch = state.epoch
            models = {x: y for x, y in tensors.items() if x.startswith("model/")}
            self._best = {x.replace("model/", "best/", 1): y for x, y in models.items()}
        else:
            tensors |= self._best
        write_checkpoint(self._folder / CHECKPOINT, tensors, state)
        write_text(self._folder / "history.csv", history_table(state.history))

    def _take_best(self) -> None:
        self._trainer.restore({x.replace("best/", "model/", 1): y for x, y in self._best.items()})

    def _written(self, state: State, judged: Pass, skipped: tuple[Failure, ...]) -> TrainingReport:
        plan, row = self._plan, state.history[state.best_epoch - 1]
        base = {}
        if plan.base is not None:
            base = {"digest": plan.base.digest, "source": os.path.basename(plan.base.source)}
        metrics = {
            "train_accuracy": row["train_accuracy"],
            "train_loss": row["train_loss"],
            "val_accuracy": judged.accuracy,
            "val_loss": judged.loss,
            "epoch": state.best_epoch,
            "epochs": state.epoch,
        }
        record = RunRecord(
            self._photos.classes, plan.table.name, plan.preset.name, plan.layer, plan.mode, base,
            self._settings, split_record(self._photos, skipped), metrics,
        )  # fmt: skip
        metadata = dict(plan.base.metadata) if plan.base is not None else {}
        metadata.pop("untrained", None)
        layers: dict[str, LayerArrays] = self._trainer.weights()
        run = write_run(
            self._folder,
            record,
            WeightArrays(layers, plan.table.name, str(self._folder), metadata),
            self._trainer.model,
            history=state.history,
            confusion=judged.confusion,
            notes=self._photos.notes,
            skipped=skipped,
            explanation=self._explanation(state),
        )
        (self._folder / CHECKPOINT).unlink(missing_ok=True)
        return TrainingReport(run, (*self._photos.notes, *self.notes), skipped)

    def _explanation(self, state: State) -> str:
        plan, rows = self._plan, state.history
        seconds = sum(row["seconds"] for row in rows)
        speed = sum(row["photos_per_second"] for row in rows) / len(rows)
        wait = sum(row["data_wait"] for row in rows) / len(rows)
        return (
            f"{self._what_trains()}. {self._settings['optimizer']}, learning rate {plan.rate:g}, "
            f"{plan.batch_size} photos a step, augmentation `{plan.augment}`, seed {plan.seed}. "
            f"Epoch {state.best_epoch} of {state.epoch} did best on the validation photos, and is "
            f"what this folder holds. Training figures are means over an epoch, while weights "
            f"change and dropout and augmentation are on. {seconds:,.0f} s in all, {speed:.0f} "
            f"photos/s; {wait:.1%} of the time was spent waiting for photos."
        )


def _span(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}"


def _merit(row: Mapping[str, float]) -> tuple[float, float]:
    """What makes an epoch the best: accuracy, and among equals the lower loss."""
    return row["val_accuracy"], -row["val_loss"]


def _check_finite(row: Mapping[str, float]) -> None:
    if not all(map(math.isfinite, row.values())):
        raise UsageError(
            f"epoch {row['epoch']}",
            f"the validation loss is {row['val_loss']}: training has come apart",
            "Begin anew (--force) with a lower learning rate (--lr).",
        )


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _events(folder: str | os.PathLike | None):
    """A function that logs a row for TensorBoard, if a folder for that is named."""
    if folder is None:
        yield lambda row: None
        return
    import tensorflow as tf

    # What `tf.summary.scalar` writes; that needs the package tensorboard, this does not.
    metadata = tf.compat.v1.SummaryMetadata(data_class=1)  # DATA_CLASS_SCALAR
    metadata.plugin_data.plugin_name = "scalars"
    writer = tf.summary.create_file_writer(os.fspath(folder))

    def log(row: Mapping[str, float]) -> None:
        with writer.as_default(step=int(row["epoch"])):
            for name, value in row.items():
                tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
        writer.flush()

    try:
        yield log
    finally:
        writer.close()
