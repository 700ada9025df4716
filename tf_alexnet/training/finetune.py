"""`train_network`: `keras.Model.fit` on labelled photos, fine-tuning or from scratch."""

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

from tf_alexnet.architectures import Architecture
from tf_alexnet.errors import ImageError, UsageError
from tf_alexnet.evaluation.metrics import average_precisions
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.images.presets import Preset
from tf_alexnet.model import AlexNet
from tf_alexnet.progress import progress_callback
from tf_alexnet.training.augment import check_augmentation
from tf_alexnet.training.callbacks import CHECKPOINT, Checkpoint, Epochs, State, read_checkpoint
from tf_alexnet.training.data import Photos, examine_photos
from tf_alexnet.training.folders import Example, PhotoSet, read_photos
from tf_alexnet.training.linear import balanced, label_array
from tf_alexnet.training.optimizer import SCHEDULES, optimizer_for, scheduled
from tf_alexnet.training.report import chance_note
from tf_alexnet.training.run import (
    RunRecord,
    TrainingReport,
    base_record,
    begin_run,
    model_of,
    split_record,
    working_in,
    write_run,
)
from tf_alexnet.version import VERSION
from tf_alexnet.weights import LayerArrays, WeightArrays, check_arrays, fresh_layers
from tf_alexnet.weights.resolve import last_features, resolve_weights, trained_preset

_CHOICES = {
    "mode": ("finetune", "scratch"),
    "schedule": (None, *SCHEDULES),
    "class_weight": (None, "balanced"),
}
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
    """Fine-tune a pretrained network on labelled photos, or train one from scratch.

    The state is saved after every epoch. The same call resumes an interrupted training and ends in
    the same weights as an uninterrupted one, bit for bit; so does a call with more epochs on a
    finished RUN. The result is the epoch with the best validation accuracy.

    Parameters
    ----------
    data, val_split, seed
        As in `read_photos`; `seed` also determines initial weights, order, augmentation, dropout.
    run : path
        Folder for the result: see `tf_alexnet.training.run`.
    mode : {"finetune", "scratch"}
        ``finetune``: a new classifier `fc8` and the layers from `unfreeze_from` are trained by
        SGD with momentum 0.9 and weight decay 5e-4; those layers at a tenth of the classifier's
        learning rate, biases at twice that of their kernels and without decay (Caffe's
        ``lr_mult`` and ``decay_mult``). ``scratch``: all layers, from fresh weights, at one
        learning rate; by SGD as above, but by Adam for `compact`.
    weights, preset
        As in `FeatureExtractor`; `weights` are unused from scratch.
    architecture : str, optional
        As in `AlexNet` (default from scratch: ``compact``).
    layer : {"pool5", "fc6", "fc7"}, optional
        Layer to train the classifier on (default: the last one the weights have).
    unfreeze_from : str
        ``finetune``: first layer to train; those before it stay bit-identical. ``"fc8"`` trains
        the classifier alone.
    epochs : int, optional
        Passes over the training photos (default: 10, from scratch 30).
    batch_size : int
        Photos per step, at most; steps of an epoch have nearly equal numbers.
    learning_rate : float, optional
        Of the classifier (default: 1e-3), or of all layers from scratch (default: 2e-4 for
        `compact`, 0.01 for the others).
    schedule : {"constant", "step", "cosine"}, optional
        Of the learning rate: see `tf_alexnet.training.optimizer.scheduled`. Default: ``step`` from
        scratch with SGD, as Caffe's networks were trained, otherwise ``constant``. ``cosine`` falls
        to 0 at the last epoch, so such a training can't be continued with more epochs.
    gamma, step_size : float, int, optional
        ``step``: multiply the learning rate by `gamma` (default: 0.1) every `step_size` epochs
        (default: 5, from scratch 10).
    class_weight : {"balanced"}, optional
        Weight photos in the loss by n / (classes * n_c), where n_c of n training photos have
        their class. Reported losses are not weighted.
    multi_label : bool
        Photos have any number of labels: train one sigmoid per class, and choose the best epoch
        by mean average precision (``map``).
    augment : {"none", "light", "paper"}
        See `tf_alexnet.training.augment`.
    patience : int, optional
        Stop after this many epochs without a new best on the validation photos.
    mixed_precision : bool
        Compute in bfloat16 with float32 variables. Faster on GPUs since compute capability 8.0
        and on processors with bfloat16 units; slower on others.
    workers : int, optional
        Decoder processes in the first pass, threads in the others.
    devices : sequence of str, optional
        TensorFlow's names (default: all GPUs). Several share every batch.
    tensorboard : path, optional
        Folder for TensorBoard's event files.
    resume : bool
        Fail unless `run` holds a training.
    force : bool
        Start over and replace what is in `run`.
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
        For unusable data or settings, for other settings than the training was started with, and
        if training diverges.
    WeightsError, ImageError, OutputError
        If weights, photos or the RUN can't be read or written.
    """
    settings = {
        "mode": mode, "layer": layer, "unfreeze_from": unfreeze_from, "epochs": epochs,
        "batch_size": batch_size, "learning_rate": learning_rate, "schedule": schedule,
        "gamma": gamma, "step_size": step_size, "class_weight": class_weight,
        "multi_label": multi_label, "augment": augment, "patience": patience,
        "mixed_precision": mixed_precision, "seed": seed, "val_split": val_split,
    }  # fmt: skip
    photos = read_photos(data, val_split, seed, multi_label=multi_label)
    plan = planned(photos, weights, architecture, preset, settings)
    first_weights(plan)  # raises before a RUN is started
    with (
        working_in(run, resume=resume) as folder,
        progress_callback(progress, "training") as progress,
    ):
        if force:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        done = begin_run(folder, plan.settings, force=force)
        if done is not None:
            return TrainingReport(done, photos.notes, finished_before=True)
        training = _Training(plan, photos, folder, devices, progress, note)
        return training.run(workers, tensorboard)


@dataclass(frozen=True)
class Plan:
    """The arguments of `train_network`, checked and completed.

    Attributes
    ----------
    table : Architecture
        The network, with the classifier to train.
    preset : Preset
        Its preprocessing.
    base : WeightArrays or None
        Initial weights; None from scratch.
    settings : dict of str to str, int, float, bool or None
        All that the result depends on.
    """

    table: Architecture
    preset: Preset
    base: WeightArrays | None
    settings: dict[str, Any]

    @property
    def trained(self) -> tuple[str, ...]:
        """Layers that change."""
        names = [x.name for x in self.table.weighted]
        return tuple(names[names.index(self.settings["unfreeze_from"]) :])

    @property
    def frozen(self) -> tuple[str, ...]:
        """Layers that don't change."""
        return tuple(x.name for x in self.table.weighted)[: -len(self.trained)]

    @property
    def metric(self) -> str:
        """Metric that epochs are compared by: ``accuracy``, or ``map``, mean average precision."""
        return "map" if self.settings["multi_label"] else "accuracy"


def planned(
    photos: PhotoSet,
    weights: Any,
    architecture: str | None,
    preset: str | None,
    settings: Mapping[str, Any],
) -> Plan:
    """Check and complete arguments of `train_network`.

    Raises
    ------
    UsageError
        If they can't work.
    """
    settings = {**settings, "val_split": settings["val_split"] if photos.split else None}
    for name, known in _CHOICES.items():
        if settings[name] not in known:
            known = " or ".join(x for x in known if x)
            asked = f"{name.replace('_', ' ')} {settings[name]!r}"
            raise UsageError(asked, "there is no such one", f"Use {known}.")
    scratch = settings["mode"] == "scratch"
    if scratch:
        weights, architecture = None, architecture or "compact"
    base, table = resolve_weights(weights, architecture)
    name = preset or trained_preset(base, table)
    record = check_augmentation(settings["augment"], name)
    if record.size != table.input_size:
        raise UsageError(
            f"preset {record.name!r} with {table.name}",
            f"it makes {record.size}x{record.size} pixels, the network takes {table.input_size}",
            f"Use its own preset, {table.preset}.",
        )
    if scratch:
        table = table.with_classes(len(photos.classes))
        settings |= {"layer": "fc7", "unfreeze_from": table.weighted[0].name}
    else:
        settings["layer"] = settings["layer"] or last_features(base, table)
        table = table.with_head(settings["layer"], len(photos.classes))
    _complete(settings, adam=scratch and table.name in _ADAM)
    _check(settings, [x.name for x in table.weighted])
    return Plan(
        table,
        record,
        base,
        {
            **settings,
            "architecture": table.name,
            "weights": base.digest if base else None,
            "preset": record.name,
            "classes": len(photos.classes),
            "photos": len(photos.train) + len(photos.val),
            "data": photos.digest,
            "tf_alexnet_version": VERSION,
        },
    )


def _complete(settings: dict[str, Any], adam: bool) -> None:
    """Put defaults in place of None."""
    scratch = settings["mode"] == "scratch"
    rate = (2e-4 if adam else 0.01) if scratch else 1e-3
    usual = {"epochs": 30 if scratch else 10, "learning_rate": rate}
    usual["schedule"] = "step" if scratch and not adam else "constant"
    if (settings["schedule"] or usual["schedule"]) == "step":
        usual |= {"gamma": 0.1, "step_size": 10 if scratch else 5}
    elif settings["gamma"] is not None or settings["step_size"] is not None:
        raise UsageError(
            "gamma or step size", "only the schedule step has them", "Use --schedule step."
        )
    settings |= {name: value for name, value in usual.items() if settings[name] is None}
    settings |= {"learning_rate": float(settings["learning_rate"])}
    settings["optimizer"] = "Adam" if adam else "CaffeSGD"
    # The only schedule whose first epochs depend on the total number.
    settings["cosine_epochs"] = settings["epochs"] if settings["schedule"] == "cosine" else None


def _check(settings: Mapping[str, Any], layers: Sequence[str]) -> None:
    if settings["unfreeze_from"] not in layers:
        raise UsageError(
            f"unfreeze from {settings['unfreeze_from']!r}",
            "the network has no such layer with weights",
            f"Use one of {', '.join(layers)}.",
        )
    for name in ("epochs", "batch_size", "patience", "step_size"):
        if settings[name] is not None and settings[name] < 1:
            asked = f"{name.replace('_', ' ')} {settings[name]}"
            raise UsageError(asked, "nothing would be done", "Use 1 or more.")
    for name in ("learning_rate", "gamma"):
        if settings[name] is not None and not 0 < settings[name] < math.inf:
            asked = f"{name.replace('_', ' ')} {settings[name]}"
            raise UsageError(asked, "out of range", "Use a number above 0, such as 0.001.")
    if settings["multi_label"] and settings["class_weight"]:
        raise UsageError(
            "class weight with several labels per photo",
            "only --mode head has that",
            "Leave one of the two out.",
        )


def first_weights(plan: Plan) -> WeightArrays:
    """Initial weights: the given ones with a new `fc8`, or all layers new.

    Raises
    ------
    WeightsError
        If the given weights don't fit the network.
    """
    table, base, seed = plan.table, plan.base, plan.settings["seed"]
    metadata = {"preset": plan.preset.name, "head": plan.settings["layer"]}
    if base is None:
        return WeightArrays(fresh_layers(table, seed), table.name, "fresh weights", metadata)
    needed = [x.name for x in table.weighted if x.name != "fc8"]
    layers = {name: base.layers[name] for name in needed if name in base.layers}
    check_arrays(WeightArrays(layers, table.name, base.source), table, needed)
    layers |= fresh_layers(table, seed, ["fc8"])
    return WeightArrays(layers, table.name, base.source, metadata)


class Dropout(keras.layers.Dropout):
    """Dropout whose mask depends on a photo's place in the batch, not on its device.

    Keras's own gives all devices the same mask. Scaled to keep the mean, as in Caffe's
    ``dropout_layer.cpp``.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Any shape and dtype."""
        if not training:
            return inputs
        shape, first = tf.shape(inputs), 0
        devices = tf.distribute.get_replica_context()
        if devices is not None and devices.num_replicas_in_sync > 1:
            counts = devices.all_gather(shape[:1], axis=0)
            first = tf.reduce_sum(counts[: devices.replica_id_in_sync_group])
        # Includes the rows before, which are on other devices.
        draws = tf.random.stateless_uniform(
            tf.concat([[first + shape[0]], shape[1:]], 0), self.seed_generator.next()
        )
        kept = inputs / tf.cast(1 - self.rate, inputs.dtype)
        return tf.where(draws[first:] >= self.rate, kept, tf.zeros_like(inputs))


class Network(keras.Model):
    """A model whose devices may have batches of unequal sizes."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        # Keras would add up the devices' first batches to learn their shapes. `test_on_batch` does
        # that instead.
        if iterator is None:
            super()._maybe_symbolic_build(data_batch=data_batch)


def training_model(plan: Plan, steps: int) -> keras.Model:
    """The compiled network, from preprocessed photos to `fc8`, without the softmax.

    Layers before the first trained one get no gradient. An epoch has `steps` batches from `Photos`,
    whose weights turn the sum of losses into a mean, also on several devices and for unequal
    batches.
    """
    network, settings = AlexNet(first_weights(plan), classifier_activation=None), plan.settings
    x = network.inputs[0]
    for layer in network.layers[1:]:
        layer.trainable = layer.name not in plan.frozen
        if plan.frozen and layer.name == plan.trained[0]:
            x = keras.ops.stop_gradient(x)
        if isinstance(layer, keras.layers.Dropout):
            layer = Dropout(layer.rate, name=layer.name)
        x = layer(x)
    model = Network(network.inputs[0], x)
    rate = scheduled(settings, steps)
    losses, metrics, logits = keras.losses, keras.metrics, {"from_logits": True}
    if settings["multi_label"]:
        loss = losses.BinaryCrossentropy(**logits, reduction="sum")
        kept = [metrics.BinaryCrossentropy(**logits, name="cross_entropy")]
        labels = {"multi_label": True, "num_labels": plan.table.classes}
        kept.append(metrics.AUC(curve="PR", **labels, **logits, name="map"))
    else:
        loss = losses.SparseCategoricalCrossentropy(**logits, reduction="sum")
        kept = [metrics.SparseCategoricalCrossentropy(**logits, name="cross_entropy")]
        kept.append(metrics.SparseCategoricalAccuracy(name="accuracy"))
    # On CPUs, XLA takes twice as long.
    optimizer = optimizer_for(plan.trained, rate, settings)
    model.compile(optimizer, loss, metrics=kept, jit_compile=False)
    optimizer.build(model.trainable_variables)
    return model


class _Training:
    """Runs a training from its last completed epoch to its end."""

    def __init__(
        self,
        plan: Plan,
        photos: PhotoSet,
        folder: Path,
        devices: Sequence[str] | None,
        progress: Progress | None,
        note: Callable[[str], None] | None,
    ):
        self._plan, self._photos, self._folder = plan, photos, folder
        self._devices = _devices(devices, plan.settings["mixed_precision"])
        self._progress, self._note = progress or (lambda *_: None), note or (lambda text: None)
        self._notes = list(photos.notes)

    def run(self, workers: int | None, tensorboard: str | os.PathLike | None) -> TrainingReport:
        """Train to the end and write the RUN."""
        plan, settings, path = self._plan, self._plan.settings, self._folder / CHECKPOINT
        for text in (*self._photos.notes, self._where(), self._what_trains()):
            self._note(text)
        state, tensors = read_checkpoint(path, _digest(settings))
        if state.epoch:
            self._note(f"continuing after epoch {state.epoch}")
        else:
            self._examine(state, workers)
        parts = self._readable(state)
        train, val = self._data(parts, state, workers)
        with train, val, _events(tensorboard) as log, _own_errors(train, val):
            dtype = "bfloat16" if settings["mixed_precision"] else None
            strategy = _strategy(self._devices, train, val)
            with strategy.scope(), _products_in(dtype):
                model = training_model(plan, len(train))
            checkpoint = Checkpoint(path, state, plan.metric, settings["patience"], log)
            checkpoint.restore(model, tensors)
            if strategy.num_replicas_in_sync > 1:
                model.test_on_batch(*val[0])
            epochs = Epochs(train, plan.metric, settings["seed"], self._progress)
            model.fit(
                train,
                validation_data=val,
                shuffle=False,
                initial_epoch=state.epoch,
                epochs=state.epoch if checkpoint.is_over else settings["epochs"],
                callbacks=[epochs, checkpoint],
                verbose=0,
            )
            for variable in model.trainable_variables:
                variable.assign(checkpoint.best[variable.path])
            logits = model.predict(val, verbose=0)
        return self._written(model, state, logits, parts["val"])

    def _where(self) -> str:
        train, val = (f"{len(part):,}" for part in (self._photos.train, self._photos.val))
        return (
            f"on {', '.join(self._devices) or 'CPU'}: {train} photos for training, {val} for "
            f"validation, {len(self._photos.classes):,} classes"
        )

    def _what_trains(self) -> str:
        plan = self._plan
        rows = {row.name: row.parameters for row in plan.table.rows()}
        count = sum(rows[name] for name in plan.trained)
        stay = f"; {_span(plan.frozen)} stay as they are" if plan.frozen else ""
        return f"{_span(plan.trained)} are trained, {count:,} parameters{stay}"

    def _examine(self, state: State, workers: int | None) -> None:
        """The first pass over the photos; its results are part of the state."""
        train, val = ([x.path for x in part] for part in (self._photos.train, self._photos.val))
        state.failures, state.covariance = examine_photos(
            train,
            val,
            self._plan.preset,
            covariance=self._plan.settings["augment"] == "paper",
            workers=workers,
            progress=lambda *counts: self._progress("photos", *counts[:2], {"errors": counts[2]}),
        )

    def _readable(self, state: State) -> dict[str, list[Example]]:
        """Readable photos of each split."""
        bad = {path for path, *_ in state.failures}
        parts = {"train": self._photos.train, "val": self._photos.val}
        good = {name: [x for x in part if x.path not in bad] for name, part in parts.items()}
        found = {y for x in good["train"] for y in _labels(x)}
        missing = set(range(len(self._photos.classes))) - found
        if missing or not good["val"]:
            what = self._photos.classes[min(missing)] if missing else "validation"
            path, _, detail = state.failures[0]
            raise ImageError(
                f"photos of {what}",
                f"none can be read; {path}: {detail}",
                "Replace them by intact ones.",
            )
        return good

    def _data(
        self, parts: Mapping[str, Sequence[Example]], state: State, workers: int | None
    ) -> tuple[Photos, Photos]:
        settings, count = self._plan.settings, len(self._photos.classes)
        shared = {"classes": count if settings["multi_label"] else None, "workers": workers}
        shared |= {"preset": self._plan.preset, "batch_size": settings["batch_size"]}
        weights = None
        if settings["class_weight"]:
            labels = np.array([x.label for x in parts["train"]])
            weights = balanced(labels, count).astype(np.float32)
        train = Photos(
            parts["train"],
            shuffle=True,
            augment=settings["augment"],
            seed=settings["seed"],
            covariance=state.covariance,
            class_weights=weights,
            **shared,
        )
        return train, Photos(parts["val"], **shared)

    def _written(
        self, model: keras.Model, state: State, logits: np.ndarray, val: Sequence[Example]
    ) -> TrainingReport:
        photos = self._photos
        row, count = state.history[state.best_epoch - 1], len(photos.classes)
        skipped = tuple(Failure(*values) for values in state.failures)
        metrics = {name: row[name] for name in row if name.startswith(("train_", "val_"))}
        metrics |= {"epoch": row["epoch"], "epochs": state.epoch}
        labels = label_array([x.label for x in val], count, photos.multi_label)
        if photos.multi_label:
            found = {"precisions": average_precisions(labels, logits)}
            metrics["val_map"] = float(np.nanmean(found["precisions"]))
            chance = None
        else:
            found = {"confusion": np.zeros((count, count), np.int64)}
            np.add.at(found["confusion"], (labels, logits.argmax(axis=1)), 1)
            metrics["val_accuracy"] = float(found["confusion"].trace() / len(val))
            chance = chance_note(labels, metrics["val_accuracy"])
        if chance:
            self._note(chance)
            self._notes.append(chance)
        arrays = self._arrays(model)
        record = self._record(metrics, skipped)
        run = write_run(
            self._folder,
            record,
            arrays,
            model_of(record, arrays),
            history=state.history,
            **found,
            test=photos.test,
            notes=self._notes,
            skipped=skipped,
            explanation=self._explanation(state),
        )
        return TrainingReport(run, (*self._notes, self._what_trains()), skipped)

    def _record(self, metrics: dict[str, float], skipped: Sequence[Failure]) -> RunRecord:
        plan, settings, base = self._plan, self._plan.settings, base_record(self._plan.base)
        return RunRecord(
            self._photos.classes, plan.table.name, plan.preset.name, settings["layer"],
            settings["mode"], base, settings, split_record(self._photos, skipped), metrics,
            multi_label=settings["multi_label"],
        )  # fmt: skip

    def _arrays(self, model: keras.Model) -> WeightArrays:
        layers = {}
        for name in (*self._plan.frozen, *self._plan.trained):
            layer = model.get_layer(name)
            layers[name] = LayerArrays(*(np.array(x) for x in (layer.kernel, layer.bias)))
        metadata = self._plan.base.metadata if self._plan.base is not None else {}
        metadata = {**metadata, "preset": self._plan.preset.name}
        return WeightArrays(layers, self._plan.table.name, str(self._folder), metadata)

    def _explanation(self, state: State) -> str:
        settings, rows = self._plan.settings, state.history
        seconds = sum(row["seconds"] for row in rows)
        speed, wait = (
            sum(row[name] for row in rows) / len(rows)
            for name in ("photos_per_second", "data_wait")
        )
        return (
            f"{self._what_trains()}. {settings['optimizer']}, learning rate "
            f"{settings['learning_rate']:g} ({settings['schedule']}), {settings['batch_size']} "
            f"photos per step, augmentation `{settings['augment']}`, seed {settings['seed']}. "
            f"This is epoch {state.best_epoch} of {state.epoch}, the best on the validation "
            f"photos. Training figures are means over an epoch, during which weights change and "
            f"dropout and augmentation are on. {seconds:,.0f} s in all, {speed:.0f} "
            f"photos/s; {wait:.1%} of the time was spent waiting for photos."
        )


def _labels(example: Example) -> tuple[int, ...]:
    return example.label if isinstance(example.label, tuple) else (example.label,)


def _span(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}"


def _digest(settings: Mapping[str, Any]) -> str:
    """Digest of all settings but the number of epochs, which may grow."""
    fixed = {name: value for name, value in settings.items() if name != "epochs"}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _devices(devices: Sequence[str] | None, mixed_precision: bool) -> list[str]:
    """The devices to use: those given, or all GPUs; empty for TensorFlow's own choice."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus if mixed_precision else ():
        details = tf.config.experimental.get_device_details(gpu)
        if details.get("compute_capability", (8, 0)) < (8, 0):
            raise UsageError(
                "--mixed-precision",
                f"{details.get('device_name', gpu.name)} has no bfloat16",
                "Leave it out; GPUs since compute capability 8.0 have it.",
            )
    return list(devices or [f"/GPU:{number}" for number in range(len(gpus))])


def _strategy(devices: Sequence[str], *data: Photos) -> tf.distribute.Strategy:
    """At most as many devices as the smallest batch has photos: some layers fail without any."""
    devices = devices[: min(photos.size(-1) for photos in data)]
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.get_strategy()


@contextlib.contextmanager
def _products_in(dtype: str | None) -> Iterator[None]:
    """Build layers that compute in this dtype, with float32 variables."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(f"mixed_{dtype}" if dtype else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _own_errors(*data: Photos) -> Iterator[None]:
    """Raise the original error of a photo in place of TensorFlow's, which has only its text."""
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
    # As `tf.summary.scalar`, which needs the package tensorboard.
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
