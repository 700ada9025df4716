"""What is to be trained, and how: arguments completed, first weights, optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tf_alexnet.architectures import Architecture, Dense
from tf_alexnet.errors import UsageError
from tf_alexnet.images.presets import Preset
from tf_alexnet.training.augment import check_augmentation
from tf_alexnet.training.folders import PhotoSet
from tf_alexnet.training.optimizer import CaffeSGD
from tf_alexnet.version import VERSION
from tf_alexnet.weights import WeightArrays, check_arrays, fresh_layers
from tf_alexnet.weights.resolve import resolve_weights

BODY = 0.1  # of the head's learning rate
DECAY, MOMENTUM = 5e-4, 0.9
_EPOCHS = {"finetune": 10, "scratch": 30}
_FINETUNE_RATE, _SCRATCH_RATE, _ADAM_RATE = 1e-3, 0.01, 2e-4
_ADAM = ("compact",)  # architectures whose recipe has Adam


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
    augment: str
    seed: int
    patience: int | None
    mixed_precision: bool

    @property
    def adam(self) -> bool:
        """Whether the recipe has Adam."""
        return self.mode == "scratch" and self.table.name in _ADAM


def planned(
    classes, mode, weights, architecture, preset, layer, unfreeze_from,
    epochs, batch_size, rate, augment, seed, patience, mixed_precision,
) -> Plan:  # fmt: skip
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
        rate = _FINETUNE_RATE
        if base is None:
            rate = _ADAM_RATE if table.name in _ADAM else _SCRATCH_RATE
    epochs = _EPOCHS[mode] if epochs is None else epochs
    for what, value in (("epochs", epochs), ("batch", batch_size), ("patience", patience)):
        if value is not None and value < 1:
            raise UsageError(f"{what} {value}", "nothing would be done", "Use 1 or more.")
    if not 0 < rate < math.inf:
        raise UsageError(f"learning rate {rate}", "no such rate", "Use a number above 0, as 1e-3.")
    return Plan(
        mode, table, record, layer, unfreeze_from, base, epochs, batch_size, float(rate),
        augment, seed, patience, mixed_precision,
    )  # fmt: skip


def _last_inner(base: WeightArrays, table: Architecture) -> str:
    """The last layer of the weights that a classifier can stand on."""
    dense = [x.name for x in table.weighted if isinstance(x, Dense) and x.name != "fc8"]
    return next((name for name in reversed(dense) if name in base.layers), "pool5")


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
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "augment": plan.augment,
        "patience": plan.patience,
        "mixed_precision": plan.mixed_precision,
        "seed": plan.seed,
        "classes": len(photos.classes),
        "photos": len(photos.train) + len(photos.val),
        "data": photos.digest,
        "val_split": val_split if photos.split else None,
        "tf_alexnet_version": VERSION,
    }


def first_weights(table: Architecture, seed: int, base: WeightArrays | None = None) -> WeightArrays:
    """What training begins with: `base` under a fresh `fc8`, or all layers fresh.

    Raises
    ------
    WeightsError
        If `base` does not fit the network.
    """
    fresh = fresh_layers(table, seed, None if base is None else ["fc8"])
    if base is None:
        return WeightArrays(fresh, table.name, "fresh weights")
    needed = [x.name for x in table.weighted if x.name != "fc8"]
    layers = {name: base.layers[name] for name in needed if name in base.layers}
    kept = WeightArrays(layers, table.name, base.source)
    check_arrays(kept, table, needed)
    return WeightArrays({**layers, **fresh}, table.name, base.source)


def multipliers(trained: Sequence[str], body: float = BODY) -> dict[str, tuple[float, float]]:
    """Caffe's ``lr_mult`` and ``decay_mult`` of each variable: biases 2 and 0, kernels 1 and 1.

    Those of layers below `fc8` are multiplied by `body`.
    """
    pairs = {}
    for name in trained:
        rate = 1.0 if name == "fc8" else body
        pairs[f"{name}/kernel"], pairs[f"{name}/bias"] = (rate, 1.0), (2 * rate, 0.0)
    return pairs


def optimizer_for(
    trained: Sequence[str], rate: float, *, adam: bool = False, body: float = BODY
) -> keras.optimizers.Optimizer:
    """Adam as in torch, which the recipe of `compact` is for; or Caffe's SGD."""
    if adam:
        return keras.optimizers.Adam(rate, epsilon=1e-8)
    return CaffeSGD(rate, MOMENTUM, DECAY, multipliers(trained, body))
