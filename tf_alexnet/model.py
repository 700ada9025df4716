"""Table + arrays -> `keras.Model`, and the outputs one may take from it."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from tf_alexnet.architectures import (
    ARCHITECTURES,
    LRN,
    PREACT,
    Architecture,
    Conv,
    Dense,
    Dropout,
    Filler,
    Gaussian,
    KaimingNormal,
    Layer,
    MaxPool,
    Softmax,
)
from tf_alexnet.errors import InputError, LayerError, UsageError, WeightsError
from tf_alexnet.layers import GroupedConv2D, LocalResponseNormalization, Preactivation
from tf_alexnet.weights import (
    WeightArrays,
    check_arrays,
    find_weights,
    read_weights,
    table_for,
)


def AlexNet(
    weights: str | os.PathLike | WeightArrays | None = "imagenet",
    *,
    architecture: str | None = None,
    feature_extract: bool = False,
    include_top: bool = True,
    input_tensor: keras.KerasTensor | None = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: str | None = "softmax",
    name: str | None = None,
) -> keras.Model:
    """AlexNet with pretrained weights, as a functional Keras model.

    Parameters
    ----------
    weights : str, path, WeightArrays or None
        A weight file, a name of the catalogue (``"imagenet"`` is ``"bvlc_alexnet"``), arrays that
        were read before, or None for fresh random weights.
    architecture : str, optional
        ``bvlc_alexnet``, ``caffenet``, ``torchvision`` or ``compact``. Needed only where the
        weights do not tell: bvlc_alexnet and caffenet have the same shapes.
    feature_extract : bool
        End at `fc7`: (N, 4096), after the ReLU.
    include_top : bool
        With False, end at `pool5` (before the dense layers); any input size will do.
    input_tensor : KerasTensor, optional
        Build on this tensor instead of a new input.
    input_shape : tuple of int, optional
        (height, width, 3); only with ``include_top=False``.
    pooling : {None, "avg", "max"}
        With ``include_top=False``: pool `pool5` over space to (N, channels).
    classes : int, optional
        Units of `fc8`; by default those of the weights, 1000 without weights. Where it differs from
        the weights' number, `fc8` starts untrained and a warning says so.
    classifier_activation : str or None
        Activation after `fc8`, in the layer `prob`; None ends at `fc8`.
    name : str, optional
        The model's name; by default the architecture's.

    Returns
    -------
    keras.Model
        Layers bear Caffe's blob names; `conv1` .. `fc7` give values after the ReLU. Input:
        (N, 227, 227, 3) float32, BGR minus mean (`preprocess_input` with `preset_of(model)`);
        torchvision and compact take 224 and RGB. Output: (N, classes) probabilities, or as above.

    Raises
    ------
    WeightsError
        If the weights can't be found, read or fitted, or don't tell which network they are.
    UsageError
        If the arguments contradict each other.
    """
    _check_arguments(feature_extract, include_top, pooling, input_shape, classes)
    if isinstance(weights, str | os.PathLike):
        weights = read_weights(find_weights(weights))
    own = table_for(weights, architecture)
    table = own.with_classes(classes or own.classes)
    if not include_top:
        table = table.until("pool5")
    elif feature_extract:
        table = table.until("fc7")
    elif classifier_activation is None:
        table = table.until("fc8")
    arrays = {} if weights is None else _fitted(weights, table, own)
    if input_tensor is None:
        inputs = keras.Input(_checked_shape(table, input_shape, include_top), name="data")
    else:
        _checked_shape(table, tuple(input_tensor.shape[1:]), include_top)
        inputs = input_tensor
    x = inputs
    for layer in table.layers:
        x = _apply(layer, x, table, arrays, classifier_activation)
    if pooling:
        x = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}[
            pooling
        ](name=f"{pooling}_pool")(x)
    return keras.Model(inputs, x, name=name or table.name)


def features(model: keras.Model, layers: Sequence[str]) -> keras.Model:
    """A model with the same weights whose outputs are the named blobs, in one pass.

    Parameters
    ----------
    model : keras.Model
        From `AlexNet`, also after fine-tuning or loading.
    layers : sequence of str
        Blob names (``"pool5"``, ``"fc7"``, ...; values after the ReLU), or ``"<name>_preact"`` for
        the values before it.

    Returns
    -------
    keras.Model
        Gives a dict, blob name -> tensor. Convolutional blobs are (N, height, width, channels).

    Raises
    ------
    LayerError
        For a name the model does not have; the message lists those it has.
    """
    if isinstance(layers, str) or not layers:
        raise LayerError(f"layers {layers!r}", "not a list of names", 'Pass a list: ["fc7"].')
    return keras.Model(
        model.input, {name: _output(model, name) for name in layers}, name=f"{model.name}_features"
    )


def architecture_of(model: keras.Model) -> Architecture:
    """The table that a model from `AlexNet` was built from, told by its layers.

    Raises
    ------
    UsageError
        If the model holds no AlexNet.
    """
    order = [layer.name for layer in _all_layers(model)]
    filters = {x.name: x.filters for x in _all_layers(model) if isinstance(x, GroupedConv2D)}
    for table in ARCHITECTURES.values():
        if filters == {conv.name: conv.filters for conv in table.convolutions}:
            norms = [x.name for x in table.layers if isinstance(x, LRN | MaxPool)]
            if norms == [x for x in order if x in norms]:
                return table
    raise UsageError(f"model {model.name!r}", "it holds no AlexNet", "Build it with AlexNet().")


def preset_of(model: keras.Model) -> str:
    """The name of the preprocessing preset that a model from `AlexNet` was trained with."""
    return architecture_of(model).preset


def _all_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _all_layers(layer)
        else:
            yield layer


def _check_arguments(feature_extract, include_top, pooling, input_shape, classes) -> None:
    if pooling not in (None, "avg", "max"):
        raise UsageError(f"pooling={pooling!r}", "unknown", "Use None, 'avg' or 'max'.")
    if include_top and pooling:
        raise UsageError("pooling", "it is for pool5", "Pass include_top=False with it.")
    if feature_extract and not include_top:
        raise UsageError("feature_extract", "fc7 is part of the top", "Leave include_top=True.")
    if input_shape is not None and (len(input_shape) != 3 or input_shape[2] != 3):
        raise InputError(
            f"input_shape={input_shape}", "not (height, width, 3)", "Channels come last."
        )
    if classes is not None and classes < 1:
        raise UsageError(f"classes={classes}", "not a number of classes", "Give 1 or more.")


def _fitted(weights: WeightArrays, table: Architecture, own: Architecture) -> dict:
    """The layers of `weights`, whose own table is `own`, that `table` takes, all checked."""
    needed = [layer.name for layer in table.weighted]
    dense = {layer.name for layer in table.weighted if isinstance(layer, Dense)}
    absent = set(needed) - set(weights.layers)
    if absent and absent == dense:
        raise WeightsError(
            weights.source,
            "it holds the convolutions only, no dense layers",
            "Pass include_top=False and take pool5 or any layer before it.",
        )
    last = own.weighted[-1].name
    if last in needed and weights.classes not in (None, table.classes):
        warnings.warn(
            f"{weights.source}: {last} is for {weights.classes} classes, {table.classes} were "
            f"asked for: {last} starts untrained.",
            stacklevel=3,
        )
        needed.remove(last)
    check_arrays(weights, own, needed)
    return {name: weights.layers[name] for name in needed}


def _checked_shape(table: Architecture, shape: tuple | None, include_top: bool) -> tuple:
    size = table.input_size
    if shape is None or tuple(shape) == (size, size, 3):
        return (size, size, 3)
    if include_top:
        raise InputError(
            f"input {shape}",
            f"the dense layers of {table.name} take {size}x{size}x3 only: the rows of fc6 belong "
            "to the 6x6 places that pool5 has at that size and training",
            f"Resize to {size} (preprocess_input does), or pass include_top=False.",
        )
    if None in shape:
        raise InputError(
            f"input {shape}", "height and width are open", "Give the size, as in (300, 400, 3)."
        )
    for side in shape[:2]:
        list(table.rows(side))  # raises where nothing would be left
    return tuple(shape)


def _apply(
    layer: Layer, x: keras.KerasTensor, table: Architecture, arrays: dict, activation: str | None
) -> keras.KerasTensor:
    """`x` through one row of the table."""
    if isinstance(layer, Conv | Dense):
        return _apply_weighted(layer, x, arrays.get(layer.name))
    if isinstance(layer, LRN):
        return LocalResponseNormalization(
            layer.local_size, layer.alpha, layer.beta, layer.k, name=layer.name
        )(x)
    if isinstance(layer, MaxPool):
        ends = [
            (table.pooled(side, layer) - 1) * layer.stride + layer.kernel - side
            for side in x.shape[1:3]
        ]
        if max(ends) > 0:
            # Caffe rounds up: the last window hangs over the edge. Zeros serve as its outside,
            # since what is pooled is never negative. At 227 nothing hangs over.
            pad = [(0, max(end, 0)) for end in ends]
            x = keras.layers.ZeroPadding2D(pad, name=f"{layer.name}_pad")(x)
        return keras.layers.MaxPooling2D(layer.kernel, layer.stride, name=layer.name)(x)
    if isinstance(layer, Dropout):
        return keras.layers.Dropout(layer.rate, name=layer.name)(x)
    assert isinstance(layer, Softmax), layer
    # float32 whatever the policy: probabilities in half precision do not add up to 1.
    return keras.layers.Activation(activation, dtype="float32", name=layer.name)(x)


def _apply_weighted(layer: Conv | Dense, x: keras.KerasTensor, arrays) -> keras.KerasTensor:
    if isinstance(layer, Conv):
        padding = "valid"
        if layer.pad and layer.stride == 1 and 2 * layer.pad == layer.kernel - 1:
            padding = "same"
        elif layer.pad:  # TensorFlow's SAME pads unevenly under a stride
            x = keras.layers.ZeroPadding2D(layer.pad, name=f"{layer.name}_pad")(x)
        fan_in = layer.kernel**2 * x.shape[-1] // layer.groups
        built = GroupedConv2D(
            layer.filters,
            layer.kernel,
            strides=layer.stride,
            padding=padding,
            groups=layer.groups,
            activation="relu",
            name=layer.name,
        )
    else:
        if len(x.shape) > 2:
            x = keras.layers.Flatten(name="flatten")(x)
        fan_in = x.shape[-1]
        built = keras.layers.Dense(
            layer.units, activation="relu" if layer.relu else None, name=layer.name
        )
    fresh = _initializers(layer.filler, layer.bias, fan_in)
    # The arrays reach the variables as their first value; random numbers are never drawn.
    built.kernel_initializer, built.bias_initializer = map(_given, arrays) if arrays else fresh
    y = built(x)
    built.kernel_initializer, built.bias_initializer = fresh  # what a saved config shall hold
    return y


def _given(array):
    return lambda shape, dtype=None: tf.cast(tf.convert_to_tensor(array), dtype)


def _initializers(filler: Filler, bias: float, fan_in: int):
    """Keras initializers of kernel and bias."""
    if isinstance(filler, Gaussian):
        return keras.initializers.RandomNormal(stddev=filler.std), keras.initializers.Constant(bias)
    if isinstance(filler, KaimingNormal):
        kernel = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        return kernel, keras.initializers.Zeros()
    bound = 1 / math.sqrt(fan_in)
    return (
        keras.initializers.RandomUniform(-bound, bound),
        keras.initializers.RandomUniform(-bound, bound),
    )


def _output(model: keras.Model, name: str) -> keras.KerasTensor:
    layers = {layer.name: layer for layer in model.layers}
    if name in layers:
        return layers[name].output
    base = layers.get(name.removesuffix(PREACT))
    if name.endswith(PREACT) and getattr(base, "activation", None) is keras.activations.relu:
        return Preactivation(base, name=name)(base.input)
    inner = (Dropout.__name__, "Flatten", "ZeroPadding2D")
    known = [x.name for x in model.layers if type(x).__name__ not in inner]
    known += [
        x.name + PREACT
        for x in model.layers
        if getattr(x, "activation", None) is keras.activations.relu
    ]
    raise LayerError(
        f"layer {name!r}", f"{model.name} has no such blob", f"Known are: {', '.join(known)}."
    )
