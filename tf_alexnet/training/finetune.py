"""`train_network`: `keras.Model.fit` on folders of photos, from given weights or from scratch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_alexnet.architectures import Architecture, Dense
from tf_alexnet.errors import ImageError, UsageError
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.images.presets import Preset
from tf_alexnet.model import AlexNet
from tf_alexnet.progress import progress_callback
from tf_alexnet.training.augment import check_augmentation
from tf_alexnet.training.begin import begin_run, working_in
from tf_alexnet.training.callbacks import (
    CHECKPOINT,
    Checkpoint,
    Dropout,
    Epochs,
    State,
    read_checkpoint,
)
from tf_alexnet.training.data import Photos, balanced_weights, examine_photos
from tf_alexnet.training.folders import Example, PhotoSet, read_photos
from tf_alexnet.training.optimizer import BODY, SCHEDULES, optimizer_for, scheduled
from tf_alexnet.training.record import RunRecord, split_record
from tf_alexnet.training.report import chance_note
from tf_alexnet.training.run import TrainingReport, write_run
from tf_alexnet.version import VERSION
from tf_alexnet.weights import LayerArrays, WeightArrays, check_arrays, fresh_layers
from tf_alexnet.weights.resolve import resolve_weights

_EPOCHS = {"finetune": 10, "scratch": 30}
_STEP_SIZES = {"finetune": 5, "scratch": 10}  # epochs
_FINETUNE_RATE, _SCRATCH_RATE, _ADAM_RATE = 1e-3, 0.01, 2e-4
_ADAM = ("compact",)  # architectures whose recipe has Adam

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
    schedule: str | None = None,
    gamma: float | None = None,
    step_size: int | None = None,
    class_weight: str | None = None,
    multi_label: bool = False,
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

    After every epoch the state is kept in the RUN. The same call again continues an interrupted
    training, and ends in the same weights as an unbroken one, bit for bit; so does a call with
    more epochs on a finished RUN. The result is the epoch that did best on the validation photos.

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
        ``lr_mult`` and ``decay_mult``). ``scratch``: all layers, from fresh weights, at one
        learning rate; by SGD as above, but by Adam for `compact`.
    weights, preset
        As in `FeatureExtractor`; `weights` are not used from scratch.
    architecture : str, optional
        As in `AlexNet` (default from scratch: ``compact``).
    layer : {"pool5", "fc6", "fc7"}, optional
        Layer to train the classifier on (default: the last one the weights have).
    unfreeze_from : str
        ``finetune``: first layer to train; those before it don't change by a bit. ``"fc8"``
        trains the classifier alone.
    epochs : int, optional
        Passes over the training photos (default: 10, from scratch 30).
    batch_size : int
        Photos per step, at most; all steps of an epoch have nearly the same number.
    learning_rate : float, optional
        Of the classifier (default: 1e-3); from scratch of all layers (default: 2e-4 for `compact`,
        0.01 for the others).
    schedule : {"constant", "step", "cosine"}, optional
        Of the learning rate: see `tf_alexnet.training.optimizer.scheduled`. Default: ``step`` from
        scratch with SGD, as Caffe's networks were trained, otherwise ``constant``. ``cosine`` falls
        to 0 at the last epoch, so such a training can't be continued with more epochs.
    gamma, step_size : float, int, optional
        ``step``: multiply the learning rate by `gamma` (default: 0.1) every `step_size` epochs
        (default: 5, from scratch 10).
    class_weight : {"balanced"}, optional
        Weigh photos in the loss by n / (classes * n_c), where n_c of n training photos are of
        their class. Reported losses are not weighted.
    multi_label : bool
        Photos have any number of labels: train a sigmoid for each class. Accuracy is then the
        fraction of right answers to whether a photo has a label.
    augment : {"none", "light", "paper"}
        See `tf_alexnet.training.augment`.
    patience : int, optional
        Stop after this many epochs without a new best validation accuracy.
    mixed_precision : bool
        Multiply in bfloat16, with float32 variables. Faster on GPUs since compute capability 8.0
        and on processors that have it; slower on others.
    workers : int, optional
        Decoder processes in the first pass, threads in the others.
    devices : sequence of str, optional
        TensorFlow's names (default: all GPUs). Several share every batch.
    tensorboard : path, optional
        Folder for TensorBoard's event files.
    resume : bool
        Fail unless `run` holds a training.
    force : bool
        Start over, and replace what is in `run`.
    progress : callable or bool, optional
        True shows a progress bar. A callable is called with (stage, done, total, figures): stage
        "photos" with ``errors``; stage "epoch N/M" with ``loss`` and ``accuracy`` so far, and at
        its end with ``val_loss`` and ``val_accuracy`` too.
    note : callable, optional
        Called with sentences for the user as soon as they are known.

    Returns
    -------
    TrainingReport

    Raises
    ------
    UsageError
        For data or settings that can't work, settings other than the training was begun with, and
        if training diverged.
    WeightsError, ImageError, OutputError
        If weights, photos or the RUN can't be read or written.
    """
    photos = read_photos(data, val_split, seed, multi_label=multi_label)
    plan = planned(
        len(photos.classes), mode, weights, architecture, preset, layer, unfreeze_from,
        epochs=epochs, batch_size=batch_size, rate=learning_rate, schedule=schedule, gamma=gamma,
        step_size=step_size, class_weight=class_weight, augment=augment, seed=seed,
        multi_label=multi_label, patience=patience, mixed_precision=mixed_precision,
    )  # fmt: skip
    settings = settings_of(plan, photos, val_split)
    first_weights(plan)  # complains before a RUN is begun
    with (
        working_in(run, resume=resume) as folder,
        progress_callback(progress, "training") as progress,
    ):
        done = begin_run(folder, settings, force=force)
        if force:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        if done is not None:
            return TrainingReport(done, photos.notes, finished_before=True)
        training = _Training(plan, photos, folder, settings, devices, progress, note)
        return training.run(workers, tensorboard)


@dataclass(frozen=True)
class Plan:
    """What is to be trained, and how: the arguments of `train_network`, checked and completed."""

    mode: str
    table: Architecture
    preset: Preset
    layer: str
    trained_from: str
    base: WeightArrays | None
    epochs: int
    batch_size: int
    rate: float
    schedule: str
    gamma: float | None
    step_size: int | None
    class_weight: str | None
    multi_label: bool
    augment: str
    seed: int
    patience: int | None
    mixed_precision: bool

    @property
    def adam(self) -> bool:
        """Whether the recipe has Adam."""
        return _has_adam(self.mode, self.table)

    @property
    def trained(self) -> tuple[str, ...]:
        """Layers that change."""
        names = [x.name for x in self.table.weighted]
        return tuple(names[names.index(self.trained_from) :])

    @property
    def frozen(self) -> tuple[str, ...]:
        """Layers that don't."""
        return tuple(x.name for x in self.table.weighted)[: -len(self.trained)]


def _has_adam(mode: str, table: Architecture) -> bool:
    return mode == "scratch" and table.name in _ADAM


def planned(
    classes: int,
    mode: str,
    weights: Any,
    architecture: str | None,
    preset: str | None,
    layer: str | None,
    unfreeze_from: str,
    *,
    epochs: int | None,
    rate: float | None,
    augment: str,
    **settings,
) -> Plan:
    """The plan that these arguments of `train_network` ask for.

    Raises
    ------
    UsageError
        If they can't work.
    """
    if mode not in _EPOCHS:
        raise UsageError(f"mode {mode!r}", "no such training", "Use finetune or scratch.")
    if mode == "scratch":
        weights, architecture = None, architecture or "compact"
    base, table = resolve_weights(weights, architecture)
    name = preset or (base and base.metadata.get("preset")) or table.preset
    record = check_augmentation(augment, name)
    if record.size != table.input_size:
        raise UsageError(
            f"preset {record.name!r} with {table.name}",
            f"it makes {record.size}x{record.size} pixels, the network takes {table.input_size}",
            f"Use its own preset, {table.preset}.",
        )
    if base is None:
        layer, table = "fc7", table.with_classes(classes)
        unfreeze_from = table.weighted[0].name
    else:
        layer = layer or _last_inner(base, table)
        table = table.with_head(layer, classes)
    names = [x.name for x in table.weighted]
    if unfreeze_from not in names:
        raise UsageError(
            f"unfreeze from {unfreeze_from!r}",
            "the network has no such layer with weights",
            f"Use one of {', '.join(names)}.",
        )
    if rate is None:
        rate = _ADAM_RATE if _has_adam(mode, table) else _SCRATCH_RATE
        rate = rate if base is None else _FINETUNE_RATE
    settings |= _scheduled(mode, _has_adam(mode, table), settings)
    settings |= {"epochs": _EPOCHS[mode] if epochs is None else epochs, "rate": float(rate)}
    _check(settings)
    return Plan(mode, table, record, layer, unfreeze_from, base, augment=augment, **settings)


def _last_inner(base: WeightArrays, table: Architecture) -> str:
    """The last layer of the weights that a classifier can be trained on."""
    dense = [x.name for x in table.weighted if isinstance(x, Dense) and x.name != "fc8"]
    return next((name for name in reversed(dense) if name in base.layers), "pool5")


def _scheduled(mode: str, adam: bool, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Schedule, gamma and step size, completed."""
    names = ("schedule", "gamma", "step_size")
    schedule, gamma, step_size = (settings[name] for name in names)
    schedule = schedule or ("step" if mode == "scratch" and not adam else "constant")
    if schedule == "step":
        gamma = 0.1 if gamma is None else gamma
        step_size = _STEP_SIZES[mode] if step_size is None else step_size
    elif gamma is not None or step_size is not None:
        raise UsageError(
            f"gamma or step size with schedule {schedule}",
            "it has neither",
            "Leave them out, or use the schedule step.",
        )
    return dict(zip(names, (schedule, gamma, step_size), strict=True))


def _check(settings: Mapping[str, Any]) -> None:
    for name, title in (
        ("epochs", "epochs"), ("batch_size", "batch"), ("patience", "patience"),
        ("step_size", "step size"),
    ):  # fmt: skip
        value = settings[name]
        if value is not None and value < 1:
            raise UsageError(f"{title} {value}", "nothing would be done", "Use 1 or more.")
    if not 0 < settings["rate"] < math.inf:
        raise UsageError(
            f"learning rate {settings['rate']}", "out of range", "Use a number above 0, as 1e-3."
        )
    if settings["gamma"] is not None and not 0 < settings["gamma"] <= 1:
        raise UsageError(
            f"gamma {settings['gamma']}", "out of range", "Use a number above 0, up to 1."
        )
    for name, known in (("schedule", SCHEDULES), ("class_weight", ("balanced",))):
        if settings[name] not in (None, *known):
            asked = f"{name.replace('_', ' ')} {settings[name]!r}"
            raise UsageError(asked, "unknown", f"Use {' or '.join(known)}.")


def settings_of(plan: Plan, photos: PhotoSet, val_split: float) -> dict[str, Any]:
    """All that the result depends on."""
    return {
        "mode": plan.mode,
        "architecture": plan.table.name,
        "weights": plan.base.digest if plan.base else None,
        "preset": plan.preset.name,
        "layer": plan.layer,
        "unfreeze_from": plan.trained_from,
        "optimizer": "Adam" if plan.adam else "CaffeSGD",
        "learning_rate": plan.rate,
        "schedule": plan.schedule,
        "gamma": plan.gamma,
        "step_size": plan.step_size,
        # The only schedule whose first epochs depend on the number of all.
        "cosine_epochs": plan.epochs if plan.schedule == "cosine" else None,
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "augment": plan.augment,
        "class_weight": plan.class_weight,
        "multi_label": plan.multi_label,
        "patience": plan.patience,
        "mixed_precision": plan.mixed_precision,
        "seed": plan.seed,
        "classes": len(photos.classes),
        "photos": len(photos.train) + len(photos.val),
        "data": photos.digest,
        "val_split": val_split if photos.split else None,
        "tf_alexnet_version": VERSION,
    }


def first_weights(plan: Plan) -> WeightArrays:
    """What training starts from: the given weights under a fresh `fc8`, or all layers fresh.

    Raises
    ------
    WeightsError
        If the given weights don't fit the network.
    """
    table, base = plan.table, plan.base
    metadata = {"preset": plan.preset.name, "head": plan.layer}
    fresh = fresh_layers(table, plan.seed, None if base is None else ["fc8"])
    if base is None:
        return WeightArrays(fresh, table.name, "fresh weights", metadata)
    needed = [x.name for x in table.weighted if x.name != "fc8"]
    layers = {name: base.layers[name] for name in needed if name in base.layers}
    check_arrays(WeightArrays(layers, table.name, base.source), table, needed)
    return WeightArrays({**layers, **fresh}, table.name, base.source, metadata)


def training_model(plan: Plan) -> keras.Model:
    """The network as it is trained: from preprocessed photos to `fc8`, without the softmax.

    Layers before the first that is trained get no gradient; dropout is `callbacks.Dropout`.
    """
    network = AlexNet(first_weights(plan), classifier_activation=None)
    x = network.inputs[0]
    for layer in network.layers[1:]:
        layer.trainable = layer.name not in plan.frozen
        if plan.frozen and layer.name == plan.trained_from:
            x = keras.ops.stop_gradient(x)
        if isinstance(layer, keras.layers.Dropout):
            layer = Dropout(layer.rate, name=layer.name)
        x = layer(x)
    return keras.Model(network.inputs[0], x)


def compile_for(model: keras.Model, plan: Plan, steps: int) -> None:
    """Compile the model of `training_model`; `steps` is the number of steps in an epoch."""
    step_size = (plan.step_size or 1) * steps
    rate = scheduled(
        plan.rate,
        plan.schedule,
        gamma=plan.gamma or 1.0,
        step_size=step_size,
        total=plan.epochs * steps,
    )
    # A body rate is for layers that have been trained before.
    body = BODY if plan.mode == "finetune" else 1.0
    optimizer = optimizer_for(plan.trained, rate, adam=plan.adam, body=body)
    logits = {"from_logits": True}
    model.compile(
        optimizer,
        # The weights of `Photos` make a mean of it, of unequal batches on several devices too.
        keras.losses.SparseCategoricalCrossentropy(**logits, reduction="sum"),
        [
            keras.metrics.SparseCategoricalCrossentropy(**logits, name="cross_entropy"),
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        ],
        jit_compile=False,  # XLA takes twice as long on processors
    )
    optimizer.build(model.trainable_variables)


class _Training:
    """One training, from where it stands to its end."""

    def __init__(
        self,
        plan: Plan,
        photos: PhotoSet,
        folder: Path,
        settings: dict[str, Any],
        devices: Sequence[str] | None,
        progress: Progress | None,
        note: Callable[[str], None] | None,
    ):
        self._plan, self._photos, self._folder = plan, photos, folder
        self._settings, self._strategy = settings, strategy_for(devices, plan.mixed_precision)
        self._progress, self._note = progress or (lambda *_: None), note or (lambda text: None)
        self._notes: list[str] = []

    def _tell(self, text: str) -> None:
        self._notes.append(text)
        self._note(text)

    def _what_trains(self) -> str:
        plan = self._plan
        rows = {row.name: row.parameters for row in plan.table.rows()}
        count = sum(rows[name] for name in plan.trained)
        stay = f"; {_span(plan.frozen)} stay as they are" if plan.frozen else ""
        return f"{_span(plan.trained)} are trained, {count:,} parameters{stay}"

    def run(self, workers: int | None, tensorboard: str | os.PathLike | None) -> TrainingReport:
        """Train to the end and write the RUN."""
        plan, photos = self._plan, self._photos
        for text in photos.notes:
            self._tell(text)
        self._note(
            f"{_where(self._strategy)}: {len(photos.train):,} photos for training, "
            f"{len(photos.val):,} for validation, {len(photos.classes):,} classes"
        )
        self._tell(self._what_trains())
        state, tensors = read_checkpoint(self._folder / CHECKPOINT, _digest(self._settings))
        if state.epoch:
            self._note(f"continuing after epoch {state.epoch}")
        else:
            self._examine(state, workers)
        skipped = tuple(Failure(*values) for values in state.failures)
        parts = self._readable(skipped)
        train, val = self._data(parts, state, workers)
        with train, val, _events(tensorboard) as log, _own_errors(train, val):
            with self._strategy.scope(), _products_in("bfloat16" if plan.mixed_precision else None):
                model = training_model(plan)
                compile_for(model, plan, len(train))
            checkpoint = Checkpoint(self._folder / CHECKPOINT, state, plan.patience, log)
            checkpoint.restore(model, tensors)
            model.fit(
                train,
                validation_data=val,
                shuffle=False,
                initial_epoch=state.epoch,
                epochs=state.epoch if checkpoint.is_over else plan.epochs,
                callbacks=[Epochs(train, plan.seed, self._progress), checkpoint],
                verbose=0,
            )
            for variable in model.trainable_variables:
                variable.assign(checkpoint.best[variable.path])
            found = model.predict(val, verbose=0).argmax(1)
        confusion = np.zeros((len(photos.classes),) * 2, np.int64)
        np.add.at(confusion, ([x.label for x in parts["val"]], found), 1)
        return self._written(model, state, confusion, skipped)

    def _examine(self, state: State, workers: int | None) -> None:
        """The first pass; what it finds is part of the state."""
        plan = self._plan
        train, val = ([x.path for x in part] for part in (self._photos.train, self._photos.val))
        state.failures, state.covariance = examine_photos(
            train,
            val,
            plan.preset,
            covariance=plan.augment == "paper",
            workers=workers,
            progress=lambda *counts: self._progress("photos", *counts[:2], {"errors": counts[2]}),
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

    def _data(
        self, parts: Mapping[str, Sequence[Example]], state: State, workers: int | None
    ) -> tuple[Photos, Photos]:
        plan = self._plan
        labels = [x.label for x in parts["train"]]
        weights = balanced_weights(labels, len(self._photos.classes)) if plan.class_weight else None
        train = Photos(
            parts["train"],
            plan.preset,
            plan.batch_size,
            shuffle=True,
            augment=plan.augment,
            seed=plan.seed,
            covariance=state.covariance,
            class_weights=weights,
            workers=workers,
        )
        return train, Photos(parts["val"], plan.preset, plan.batch_size, workers=workers)

    def _written(
        self, model: keras.Model, state: State, confusion: np.ndarray, skipped: tuple[Failure, ...]
    ) -> TrainingReport:
        plan, row = self._plan, state.history[state.best_epoch - 1]
        names = ("train_accuracy", "train_loss", "val_accuracy", "val_loss", "epoch")
        metrics = {**{name: row[name] for name in names}, "epochs": state.epoch}
        if text := chance_note(confusion.sum(1), row["val_accuracy"]):
            self._tell(text)
        base = {}
        if plan.base is not None:
            base = {"digest": plan.base.digest, "source": os.path.basename(plan.base.source)}
        record = RunRecord(
            self._photos.classes, plan.table.name, plan.preset.name, plan.layer, plan.mode, base,
            self._settings, split_record(self._photos, skipped), metrics,
        )  # fmt: skip
        layers = {}
        for name in (*plan.frozen, *plan.trained):
            layer = model.get_layer(name)
            layers[name] = LayerArrays(*(np.array(x) for x in (layer.kernel, layer.bias)))
        metadata = plan.base.metadata if plan.base is not None else {}
        metadata = {**metadata, "preset": plan.preset.name}
        arrays = WeightArrays(layers, plan.table.name, str(self._folder), metadata)
        run = write_run(
            self._folder,
            record,
            arrays,
            AlexNet(arrays),
            history=state.history,
            confusion=confusion,
            notes=self._notes,
            skipped=skipped,
            explanation=self._explanation(state),
        )
        return TrainingReport(run, tuple(self._notes), skipped)

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


def _digest(settings: Mapping[str, Any]) -> str:
    """Of all settings but the number of epochs, which may grow."""
    fixed = {name: value for name, value in settings.items() if name != "epochs"}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def strategy_for(
    devices: Sequence[str] | None = None, mixed_precision: bool = False
) -> tf.distribute.Strategy:
    """One device or several (default: all GPUs).

    Raises
    ------
    UsageError
        If a GPU can't do what mixed precision needs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus if mixed_precision else ():
        details = tf.config.experimental.get_device_details(gpu)
        if details.get("compute_capability", (8, 0)) < (8, 0):
            raise UsageError(
                "--mixed-precision",
                f"{details.get('device_name', gpu.name)} has no bfloat16",
                "Leave it out; GPUs since compute capability 8.0 have it.",
            )
    devices = devices or [f"/GPU:{number}" for number in range(len(gpus))]
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(list(devices))
    return tf.distribute.get_strategy()


def _where(strategy: tf.distribute.Strategy) -> str:
    """What a training runs on, for people."""
    gpus = tf.config.list_physical_devices("GPU")
    if strategy.num_replicas_in_sync > 1:
        return f"on {', '.join(strategy.extended.worker_devices)}"
    if not gpus:
        return f"on CPU, {os.cpu_count()} processors"
    return "on " + tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")


@contextlib.contextmanager
def _products_in(dtype: str | None) -> Iterator[None]:
    """Build layers that multiply in this type, with float32 variables."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(f"mixed_{dtype}" if dtype else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _own_errors(*data: Photos) -> Iterator[None]:
    """Raise the error of a photo where TensorFlow raises one of its own with the text of it."""
    try:
        yield
    except tf.errors.OpError:
        for photos in data:
            if photos.failure:
                raise photos.failure from None
        raise


@contextlib.contextmanager
def _events(folder: str | os.PathLike | None) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A function that logs a row for TensorBoard, if `folder` is given."""
    if folder is None:
        yield lambda row: None
        return
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
