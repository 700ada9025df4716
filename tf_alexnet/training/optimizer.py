"""`CaffeSGD`: Caffe's solver, with its multipliers of rate and decay, as a Keras optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tf_alexnet")
class CaffeSGD(keras.optimizers.SGD):
    """Stochastic gradient descent with momentum as Caffe does it.

    Per variable, with its multipliers r and d::

        V = momentum * V - learning_rate * r * (gradient + decay * d * W)
        W = W + V

    (``SGDSolver::Regularize`` and ``ComputeUpdateValue`` in Caffe's ``sgd_solver.cpp``.) The decay
    is part of what momentum gathers; Keras's own `weight_decay` is not.

    Parameters
    ----------
    learning_rate : float
        Caffe's ``base_lr``.
    momentum : float
        0 < momentum < 1.
    decay : float
        Caffe's ``weight_decay``.
    multipliers : mapping of str to (float, float), optional
        A variable's path, as ``"fc8/bias"`` -> Caffe's ``lr_mult`` and ``decay_mult``; (1, 1) where
        there is none.
    """

    def __init__(
        self,
        learning_rate: float = 0.01,
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
