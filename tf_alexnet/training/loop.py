"""`Trainer`: steps and epochs on one device or several, and all of the state that they change."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_alexnet.architectures import Architecture
from tf_alexnet.errors import UsageError
from tf_alexnet.model import AlexNet
from tf_alexnet.training.batches import Batch
from tf_alexnet.training.network import Network
from tf_alexnet.weights import LayerArrays, WeightArrays


class Pass(NamedTuple):
    """What came of one pass over some photos.

    Attributes
    ----------
    loss, accuracy : float
        Means over the photos.
    photos : int
        How many there were.
    seconds : float
        Time it took.
    confusion : ndarray of int, (classes, classes), or None
        Photos by true class (rows) and predicted class; not in training.
    """

    loss: float
    accuracy: float
    photos: int
    seconds: float
    confusion: np.ndarray | None = None


class Trainer:
    """A network, its optimizer, and the devices they live on.

    Parameters
    ----------
    arrays : WeightArrays
        First values of all layers of `table`.
    table : Architecture
        The network.
    trained_from : str
        The first layer that is trained.
    optimizer : callable
        Gives the Keras optimizer, for the trained layers' names.
    seed : int
        Of dropout.
    mixed_precision : bool
        Products in bfloat16.
    devices : sequence of str, optional
        TensorFlow's names; by default all GPUs. With more than one, each takes a part of
        every batch.

    Attributes
    ----------
    model : keras.Model
        From `AlexNet`, ending in probabilities; its variables are those that are trained.
    trained, frozen : tuple of str
        Layers that change, and those that stay.
    """

    def __init__(
        self,
        arrays: WeightArrays,
        table: Architecture,
        trained_from: str,
        optimizer: Callable[[Sequence[str]], keras.optimizers.Optimizer],
        *,
        seed: int = 0,
        mixed_precision: bool = False,
        devices: Sequence[str] | None = None,
    ):
        names = [layer.name for layer in table.weighted]
        first = names.index(trained_from)
        self.frozen, self.trained = tuple(names[:first]), tuple(names[first:])
        self._strategy = strategy_for(devices, mixed_precision)
        self._replicas = self._strategy.num_replicas_in_sync
        self._seed = seed
        with self._strategy.scope():
            self.model = AlexNet(arrays)
            for name in self.frozen:
                self.model.get_layer(name).trainable = False
            self._variables = [
                variable
                for name in self.trained
                for variable in (
                    self.model.get_layer(name).kernel,
                    self.model.get_layer(name).bias,
                )
            ]
            self.optimizer = optimizer(self.trained)
            self.optimizer.build(self._variables)
        dtype = tf.bfloat16 if mixed_precision else tf.float32
        layers = {name: self.model.get_layer(name) for name in names}
        variables = {name: (x.kernel.value, x.bias.value) for name, x in layers.items()}
        self._network = Network(table, variables, trained_from, dtype)
        self._classes = table.classes
        self._step = tf.function(self._distributed_step, autograph=False, reduce_retracing=True)
        side = table.input_size
        spec = [tf.TensorSpec((None, side, side, 3)), tf.TensorSpec((None,), tf.int32)]
        self._judge = tf.function(self._judged, input_signature=spec, autograph=False)
        # One loop a variable instead of a pass over memory for each of its operations. Variables on
        # several devices are updated by code that XLA does not compile.
        self._update = self._updated
        if self._replicas == 1:
            self._update = tf.function(self._updated, jit_compile=True, autograph=False)

    def _updated(self, gradients: Sequence[tf.Tensor]) -> None:
        self.optimizer.apply(gradients, self._variables)

    def _distributed_step(self, pixels, labels, places, seed, total):
        loss, right = self._strategy.run(self._replica_step, (pixels, labels, places, seed, total))
        add = tf.distribute.ReduceOp.SUM
        return [self._strategy.reduce(add, x, axis=None) for x in (loss, right)]

    def _replica_step(self, pixels, labels, places, seed, total):
        first = tf.reduce_min(places)
        values = [variable.value for variable in self._variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            logits = self._network.logits(pixels, seed, first)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_sum(losses)
            mean = loss / total
        self._update(tape.gradient(mean, values))
        right = tf.equal(tf.argmax(logits, 1, tf.int32), labels)
        return loss, tf.reduce_sum(tf.cast(right, tf.float32))

    def _judged(self, pixels: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self._network.logits(pixels)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.reduce_sum(losses), tf.argmax(logits, 1)

    def step(self, batch: Batch, epoch: int, number: int) -> tuple[float, float]:
        """One step: the sum of the photos' losses, and how many were told rightly.

        Parameters
        ----------
        batch : Batch
            Photos.
        epoch, number : int
            Which step this is: dropout depends on it.

        Raises
        ------
        UsageError
            If the loss is no longer a number.
        """
        seed = np.random.SeedSequence([self._seed, epoch, number]).generate_state(2)
        arguments = [batch.pixels, batch.labels, np.arange(len(batch.labels), dtype=np.int32)]
        split = self._parted if self._replicas > 1 else tf.convert_to_tensor
        arguments = [split(x) for x in arguments]
        total = tf.constant(len(batch.labels), tf.float32)
        loss, right = self._step(*arguments, tf.constant(seed.astype(np.int32)), total)
        loss = float(loss)
        if not math.isfinite(loss):
            raise UsageError(
                f"epoch {epoch}, step {number}",
                f"the loss is {loss}: training has come apart",
                "Begin anew (--force) with a lower learning rate (--lr).",
            )
        return loss, float(right)

    def _parted(self, array):
        parts = np.array_split(np.arange(len(array)), self._replicas)

        def of(context: tf.distribute.ReplicaContext):
            some = parts[context.replica_id_in_sync_group]
            return array[int(some[0]) : int(some[-1]) + 1] if len(some) else array[:0]

        return self._strategy.experimental_distribute_values_from_function(of)

    def epoch(
        self,
        batches: Iterable[Batch],
        number: int,
        watch: Callable[[int, float, float], None] | None = None,
    ) -> Pass:
        """Train on all batches; `watch` gets photos done, mean loss and accuracy so far."""
        start, done, loss, right = time.perf_counter(), 0, 0.0, 0.0
        for place, batch in enumerate(batches):
            more = self.step(batch, number, place)
            done, loss, right = done + len(batch.labels), loss + more[0], right + more[1]
            if watch:
                watch(done, loss / done, right / done)
        return Pass(loss / done, right / done, done, time.perf_counter() - start)

    def judge(self, batches: Iterable[Batch]) -> Pass:
        """Loss, accuracy and confusion on photos that are not trained on."""
        start, loss = time.perf_counter(), 0.0
        confusion = np.zeros((self._classes, self._classes), np.int64)
        for batch in batches:
            more, found = self._judge(batch.pixels, batch.labels)
            loss += float(more)
            np.add.at(confusion, (batch.labels, found.numpy()), 1)
        done, right = int(confusion.sum()), int(confusion.trace())
        return Pass(loss / done, right / done, done, time.perf_counter() - start, confusion)

    def tensors(self) -> dict[str, np.ndarray]:
        """All that training changes, by name: weights and what the optimizer keeps."""
        return {name: _array(variable) for name, variable in self._named().items()}

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take up what `tensors` gave, or a part of it."""
        for name, variable in self._named().items():
            if name in tensors:
                variable.assign(tensors[name])

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each of `tensors`."""
        found = self._named().items()
        return {name: (tuple(x.shape), np.dtype(x.dtype).name) for name, x in found}

    def _named(self) -> dict[str, keras.Variable]:
        # The learning rate is a setting, not a result.
        kept = [x for x in self.optimizer.variables if x is not self.optimizer._learning_rate]
        slots = {"optimizer/" + x.path.split("/", 1)[-1]: x for x in kept}
        assert len(slots) == len(kept)
        return {**{"model/" + x.path: x for x in self._variables}, **slots}

    def weights(self) -> dict[str, LayerArrays]:
        """Kernels and biases of all layers, as they are now."""
        layers = (self.model.get_layer(name) for name in (*self.frozen, *self.trained))
        return {x.name: LayerArrays(_array(x.kernel), _array(x.bias)) for x in layers}


def _array(variable: keras.Variable) -> np.ndarray:
    """A copy of a variable's value."""
    return np.array(tf.convert_to_tensor(variable.value).numpy())


def strategy_for(devices: Sequence[str] | None = None, mixed_precision: bool = False) -> Any:
    """One device or several: the GPUs that there are, unless `devices` are named.

    Raises
    ------
    UsageError
        If a GPU can't do what mixed precision needs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if mixed_precision:
        for gpu in gpus:
            details = tf.config.experimental.get_device_details(gpu)
            if details.get("compute_capability", (8, 0)) < (8, 0):
                raise UsageError(
                    "--mixed-precision",
                    f"{details.get('device_name', gpu.name)} has no bfloat16",
                    "Leave it out; GPUs since compute capability 8.0 have it.",
                )
    if devices is None:
        devices = [f"/GPU:{number}" for number in range(len(gpus))]
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(list(devices))
    return tf.distribute.get_strategy()
