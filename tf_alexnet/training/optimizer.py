"""Optimizers: Caffe's SGD and Adam, updated by XLA, and schedules of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

BODY = 0.1  # learning rate of pretrained layers, as a fraction of the classifier's
DECAY, MOMENTUM = 5e-4, 0.9
SCHEDULES = ("constant", "step", "cosine")


class _UpdatedByXla:
    """Update all variables in one XLA function.

    One pass over memory per variable instead of one for each operation. Not on several devices,
    whose variables XLA can't compile.
    """

    def apply(self, grads: Sequence[tf.Tensor], trainable_variables=None) -> None:
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            super().apply(grads, trainable_variables)
            return
        # The variables are part of the graph, not arguments: XLA updates them in place.
        update = super().apply
        variables = None if trainable_variables is None else list(trainable_variables)
        compiled = tf.function(
            lambda some: update(some, variables), jit_compile=True, autograph=False
        )
        compiled(list(grads))


@keras.saving.register_keras_serializable(package="tf_alexnet")
class CaffeSGD(_UpdatedByXla, keras.optimizers.SGD):
    """Stochastic gradient descent with momentum as Caffe does it.

    Per variable, with its multipliers r and d::

        V = momentum * V - learning_rate * r * (gradient + decay * d * W)
        W = W + V

    (``SGDSolver::Regularize`` and ``ComputeUpdateValue`` in Caffe's ``sgd_solver.cpp``.) The decay
    is part of what momentum gathers; Keras's own `weight_decay` is not.

    Parameters
    ----------
    learning_rate : float or keras.optimizers.schedules.LearningRateSchedule
        Caffe's ``base_lr``.
    momentum : float
        0 < momentum < 1.
    decay : float
        Caffe's ``weight_decay``.
    multipliers : mapping of str to (float, float), optional
        A variable's path, such as ``"fc8/bias"`` -> Caffe's ``lr_mult`` and ``decay_mult``
        (default: 1 and 1).
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.01,
        momentum: float = 0.9,
        decay: float = 5e-4,
        multipliers: Mapping[str, Sequence[float]] | None = None,
        name: str = "caffe_sgd",
        **kwargs,
    ):
        super().__init__(learning_rate, momentum, name=name, **kwargs)
        self.decay = decay
        self.multipliers = {path: tuple(pair) for path, pair in (multipliers or {}).items()}

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the momenta."""
        super().build(variables)
        self._pairs = [self.multipliers.get(v.path, (1.0, 1.0)) for v in variables]

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate) -> None:
        """One step of one variable."""
        place = self._get_variable_index(variable)
        rate, decay = self._pairs[place]
        velocity = self.momentums[place]
        rate = tf.cast(learning_rate, variable.dtype) * rate
        if decay:
            gradient += self.decay * decay * variable
        step = self.momentum * tf.convert_to_tensor(velocity) - rate * gradient
        self.assign(velocity, step)
        self.assign_add(variable, step)

    def get_config(self) -> dict:
        """Constructor arguments, for saving."""
        config = {**super().get_config(), "decay": self.decay, "multipliers": self.multipliers}
        config.pop("nesterov")
        return config


class Adam(_UpdatedByXla, keras.optimizers.Adam):
    """Keras's Adam."""


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
    trained: Sequence[str],
    rate: float | keras.optimizers.schedules.LearningRateSchedule,
    settings: Mapping[str, Any],
) -> keras.optimizers.Optimizer:
    """Adam with torch's epsilon, for which the recipe of `compact` was made; or Caffe's SGD."""
    if settings["optimizer"] == "Adam":
        return Adam(rate, epsilon=1e-8)
    # Only layers that have been trained before have a rate of their own.
    body = BODY if settings["mode"] == "finetune" else 1.0
    return CaffeSGD(rate, MOMENTUM, DECAY, multipliers(trained, body))


def scheduled(
    settings: Mapping[str, Any], steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate as a function of the number of steps done; an epoch has `steps`.

    Schedule ``step``: rate * gamma^floor(step / step_size), Caffe's policy of that name
    (`GetLearningRate` in ``sgd_solver.cpp``). ``cosine``: rate * (1 + cos(pi * step / all)) / 2
    (Loshchilov and Hutter 2017, without restarts).
    """
    rate, schedules = float(settings["learning_rate"]), keras.optimizers.schedules
    if settings["schedule"] == "step":
        size = settings["step_size"] * steps
        return schedules.ExponentialDecay(rate, size, settings["gamma"], staircase=True)
    if settings["schedule"] == "cosine":
        return schedules.CosineDecay(rate, settings["epochs"] * steps)
    return rate
