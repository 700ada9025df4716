"""`Explainer`: class scores of a network, and their gradients."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_alexnet.architectures import PREACT, Architecture
from tf_alexnet.errors import InputError, LayerError, UsageError
from tf_alexnet.images import Preset, preprocess_input
from tf_alexnet.images.mean_image import Mean
from tf_alexnet.labels import Label, Labels, imagenet_labels, read_labels
from tf_alexnet.visualize.geometry import cell_centres, crop_of
from tf_alexnet.weights import LayerArrays, WeightArrays
from tf_alexnet.weights.resolve import fitted_layers, resolve_weights

if TYPE_CHECKING:
    import keras

LOGITS = "fc8"
_GRADIENTS, _SCORES = 32, 64  # batch sizes


class Explainer:
    """Class scores of a network and their gradients, computed with TensorFlow.

    The score of a class is its logit, `fc8` before the softmax: gradients of a saturated softmax
    vanish. Without a classifier, the channels of `pool5` take the place of classes, and the score
    of a channel is its mean over the 6x6 positions.

    Parameters
    ----------
    weights : str, path, WeightArrays or keras.Model
        As in `AlexNet`; a model's weights are copied.
    architecture : str, optional
        As in `AlexNet`.
    preset : str or Preset, optional
        Preprocessing; by default the one the weights were trained with.
    mean_image : array, path or three numbers, optional
        As in `preprocess_input`.

    Attributes
    ----------
    table : Architecture
        The network up to `score_layer`.
    score_layer : str
        ``fc8``, or ``pool5`` for weights without a classifier.
    classes : int
        Number of scores.
    preset : Preset
    mean_image : ndarray of float32, or None
        The mean image, if `preset` subtracts one.
    weights_source : str
        Where the weights came from.
    untrained : bool
        Whether the weights are random (an untrained control).

    Raises
    ------
    WeightsError, PresetError, UsageError
        If weights or preset are missing or invalid.
    """

    def __init__(
        self,
        weights: str | os.PathLike | WeightArrays | keras.Model = "imagenet",
        *,
        architecture: str | None = None,
        preset: str | Preset | None = None,
        mean_image: Mean = None,
    ):
        import tensorflow as tf

        from tf_alexnet.extraction.extractor import resolve_preset

        if "keras" in sys.modules and isinstance(weights, sys.modules["keras"].Model):
            from tf_alexnet.blobs import arrays_of

            weights = arrays_of(weights)
        if weights is None:
            raise UsageError("Explainer(None)", "it needs weights", "Pass a weight file.")
        arrays, table = resolve_weights(weights, architecture)
        self.preset, self.mean_image = resolve_preset(arrays, table, preset, mean_image)
        self.score_layer = LOGITS if LOGITS in arrays.layers else "pool5"
        self.table = table.until(self.score_layer)
        self.classes = [*self.table.rows()][-1].output_shape[-1]
        self.weights_source, self.untrained = arrays.source, arrays.untrained
        self._variables = {
            name: tuple(tf.Variable(values, trainable=False, dtype=tf.float32) for values in pair)
            for name, pair in fitted_layers(arrays, self.table, table, None).items()
        }
        self._graphs = Graphs(self.table, self._variables, self.score_layer)

    def labels(self, names: Labels | None = None) -> tuple[Label, ...]:
        """Class names: `names`, else ImageNet's for 1000 classes, else indices.

        Raises
        ------
        InputError
            If `names` has not one name per class.
        """
        if self.score_layer != LOGITS:
            return tuple(Label("", f"channel {i} of pool5") for i in range(self.classes))
        if names is None and self.classes == len(imagenet_labels()):
            return imagenet_labels()
        known = read_labels(map(str, range(self.classes)) if names is None else names)
        if len(known) != self.classes:
            raise InputError(
                f"{len(known)} class names",
                f"the network has {self.classes} classes",
                "Give one name for each, in the order of the network's output.",
            )
        return known

    def title(self, index: int, labels: Sequence[Label]) -> str:
        """Title of a class: ``class 281 (tabby, tabby cat)``, or ``channel 53 of pool5``."""
        if self.score_layer != LOGITS:
            return labels[index].label
        name = labels[index].label
        return f"class {index}" + (f" ({name})" if name != str(index) else "")

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Crop the part of a photo that the network sees: uint8 RGB, (S, S, 3).

        Raises
        ------
        InputError
            If the preset does not resize and the photo does not have the network's input size.
        """
        size = self.table.input_size
        if self.preset.size is None and image.shape[:2] != (size, size):
            raise InputError(
                f"photo of {image.shape[0]}x{image.shape[1]} pixels",
                f"preset {self.preset.name!r} does not resize, and the network takes {size}x{size}",
                "Resize the photo, or use another preset.",
            )
        return crop_of(image, self.preset, size)

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """The network's input for a photo: float32 (1, S, S, 3)."""
        return preprocess_input([image], self.preset, mean_image=self.mean_image)

    def scores(self, batch: np.ndarray) -> np.ndarray:
        """Scores of a preprocessed batch: float32 (N, classes)."""
        return self._run(self._graphs.scores, batch, _SCORES)

    def gradient(self, batch: np.ndarray, index: int) -> np.ndarray:
        """Gradient of a class score with respect to the input: float32, shaped like `batch`."""
        return self._run(lambda x: self._graphs.gradient(x, index), batch, _GRADIENTS)

    def guided_gradient(self, batch: np.ndarray, index: int) -> np.ndarray:
        """`gradient` through ReLUs that pass positive gradients only (Springenberg et al. 2014)."""
        return self._run(lambda x: self._graphs.guided(x, index), batch, _GRADIENTS)

    def blob_and_gradient(
        self, batch: np.ndarray, index: int, layer: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """A blob and the gradient of a class score with respect to it.

        Returns
        -------
        blob, gradient : ndarray of float32, (1, h, w, channels)

        Raises
        ------
        LayerError
            If the layer has no height and width, or does not come before the scores.
        """
        from tf_alexnet.engines.tensorflow import full_precision

        cell_centres(self.table, layer)
        if layer in ("data", self.score_layer) or layer.endswith(PREACT):
            raise LayerError(
                f"layer {layer!r}",
                f"it does not lie between the input and {self.score_layer}",
                "Use conv5.",
            )
        graph = self._graphs.blob_and_gradient(layer)
        with full_precision():
            return tuple(x.numpy() for x in graph(batch, index))

    def replace(self, layer: str, arrays: LayerArrays) -> LayerArrays:
        """Replace the weights of a layer; the old ones are returned."""
        variables = self._variables[layer]
        before = LayerArrays(*(variable.numpy() for variable in variables))
        for variable, values in zip(variables, arrays, strict=True):
            variable.assign(values)
        return before

    def check_class(self, index: Any) -> int:
        """Return `index` as int if it is a class index.

        Raises
        ------
        InputError
            If it is not.
        """
        whole = isinstance(index, int | np.integer) and not isinstance(index, bool)
        if not whole or not 0 <= index < self.classes:
            kind = "classes" if self.score_layer == LOGITS else f"channels of {self.score_layer}"
            raise InputError(
                f"class {index!r}",
                f"the network has {self.classes} {kind}",
                f"Give a number from 0 to {self.classes - 1}.",
            )
        return int(index)

    @staticmethod
    def _run(graph: Callable, batch: np.ndarray, step: int) -> np.ndarray:
        from tf_alexnet.engines.tensorflow import full_precision

        parts = []
        with full_precision():
            for start in range(0, len(batch), step):
                some = batch[start : start + step]
                # Padded: every new batch size would be compiled again.
                lacking = step - len(some) if start else 0
                if lacking:
                    some = np.concatenate([some, np.zeros((lacking, *some.shape[1:]), np.float32)])
                parts.append(graph(some).numpy()[: step - lacking])
        return np.concatenate(parts)


class Graphs:
    """The graphs of an `Explainer`, each traced once.

    Parameters
    ----------
    table : Architecture
        The network up to `score_layer`.
    variables : dict of str to (kernel, bias)
        Variables or tensors, float32.
    score_layer : str
        As in `Explainer`.
    """

    def __init__(self, table: Architecture, variables: dict[str, tuple], score_layer: str):
        import tensorflow as tf

        from tf_alexnet.layers import forward, groups_are_native

        groups_are_native()  # cached here, because it must not run inside a graph
        self._tf, self._forward = tf, functools.partial(forward, variables=variables)
        self._steps, self._score_layer = table.layers, score_layer
        picture = tf.TensorSpec((None, table.input_size, table.input_size, 3), tf.float32)
        index = tf.TensorSpec((), tf.int32)

        def compiled(function: Callable, *specs: tf.TensorSpec) -> Callable:
            return tf.function(function, input_signature=specs, autograph=False)

        self.scores = compiled(self._scores, picture)
        self.gradient = compiled(self._gradient, picture, index)
        self.guided = compiled(
            functools.partial(self._gradient, relu=_guided_relu()), picture, index
        )
        self.blob_and_gradient = functools.cache(
            lambda layer: compiled(
                functools.partial(self._blob_and_gradient, layer=layer), picture, index
            )
        )

    def _scores(self, x: Any, start: int = 0, **settings: Any) -> Any:
        """Scores (N, classes), given the input of step `start`."""
        name, tf = self._score_layer, self._tf
        found = self._forward(self._steps[start:], x=x, wanted=[name], **settings)[name]
        return found if name == LOGITS else tf.reduce_mean(found, axis=(1, 2))

    def _gradient(self, x: Any, index: Any, **settings: Any) -> Any:
        with self._tf.GradientTape() as tape:
            tape.watch(x)
            score = self._tf.reduce_sum(self._scores(x, **settings)[:, index])
        return tape.gradient(score, x)

    def _blob_and_gradient(self, x: Any, index: Any, layer: str) -> tuple:
        end = 1 + [step.name for step in self._steps].index(layer)
        blob = self._forward(self._steps[:end], x=x, wanted=[layer])[layer]
        with self._tf.GradientTape() as tape:
            tape.watch(blob)
            score = self._tf.reduce_sum(self._scores(blob, end)[:, index])
        return blob, tape.gradient(score, blob)


@functools.cache
def _guided_relu() -> Callable:
    import tensorflow as tf

    @tf.custom_gradient
    def relu(x: tf.Tensor) -> tuple:
        y = tf.nn.relu(x)

        def gradient(above: tf.Tensor) -> tf.Tensor:
            return tf.where(y > 0, tf.nn.relu(above), tf.zeros_like(above))

        return y, gradient

    return relu
