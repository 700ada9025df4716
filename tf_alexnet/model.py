"""`AlexNet`: an architecture's table and weight arrays as a Keras model."""

from __future__ import annotations

import math
import os
import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_alexnet.architectures import (
    LRN,
    Architecture,
    Conv,
    Dense,
    Dropout,
    Filler,
    Gaussian,
    Layer,
    MaxPool,
    Softmax,
    TorchUniform,
    preset_layer,
    sized_preset,
)
from tf_alexnet.blobs import architecture_of, arrays_of, features, preset_of
from tf_alexnet.errors import InputError, UsageError, WeightsError
from tf_alexnet.layers import GroupedConv2D, LocalResponseNormalization
from tf_alexnet.weights import WeightArrays, check_softmax, resolve

__all__ = ["AlexNet", "architecture_of", "arrays_of", "features", "preset_of"]

_LAST = {"data_format": "channels_last"}  # regardless of keras.json
_POOLINGS = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}


def AlexNet(
    weights: str | os.PathLike | WeightArrays | keras.Model | None = "imagenet",
    *,
    architecture: str | None = None,
    classifier: str | None = None,
    feature_extract: bool = False,
    include_top: bool = True,
    input_tensor: keras.KerasTensor | None = None,
    input_shape: tuple[int | None, int | None, int] | None = None,
    allow_resize: bool = False,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: str | None = "softmax",
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """AlexNet with pretrained weights, as a functional Keras model.

    Parameters
    ----------
    weights : str, path, WeightArrays, keras.Model or None
        A weight file, a catalogue name (``"imagenet"`` is ``"bvlc_alexnet"``), arrays from
        `read_weights`, a model to copy the weights from, or ``"random:SEED"`` for an untrained
        control that is identical on every machine (``"random"`` is ``"random:0"``). None is random
        initialization by Keras, for training from scratch.
    architecture : str or path, optional
        ``bvlc_alexnet``, ``caffenet``, ``torchvision`` or ``compact``, or a ``.prototxt`` file that
        describes one of them. Only needed if the weights don't identify it: bvlc_alexnet and
        caffenet have the same shapes.
    classifier : str, optional
        Name in the weight file of the layer to use as `fc8`, if the file has several classifiers.
    feature_extract : bool
        If True, end at `fc7`: (N, 4096), after the ReLU.
    include_top : bool
        If False, end at `pool5`, before the dense layers, and accept any input size.
    input_tensor : KerasTensor, optional
        Image input of the network, such as the output of a `Rescaling` or augmentation layer. The
        model starts at the `keras.Input` that the tensor comes from.
    input_shape : tuple of int or None, optional
        (height, width, 3). Any size with ``include_top=False`` or ``weights=None``; height and
        width may be None with ``include_top=False``.
    allow_resize : bool
        With weights and the dense layers, accept any `input_shape` for which `pool5` is 6x6.
    pooling : {None, "avg", "max"}
        Global pooling of `pool5` to (N, channels), with ``include_top=False``.
    classes : int, optional
        Units of `fc8` (default: as in the weights; 1000 without weights). If the weights have
        another number or no `fc8`, it is initialized at random, with a warning.
    classifier_activation : str or None
        Activation after `fc8`, in the layer `prob`. None ends the model at `fc8`. Weights of a
        multi-label training need ``"sigmoid"``.
    seed : int, optional
        Random seed of layers that are not loaded; with ``weights="random"``, of all layers.
    name : str, optional
        Name of the model (default: that of the architecture).

    Returns
    -------
    keras.Model
        Layers have Caffe's blob names; `conv1` .. `fc7` are after the ReLU. Input: float32
        (N, 227, 227, 3), BGR minus the mean (`preprocess_input` with the model as preset); 224
        and RGB for torchvision and compact. Output: (N, classes) probabilities, or as above. The
        layer after the input carries the preset's name, and fails for images of another size.

    Raises
    ------
    WeightsError
        If the weights can't be found or read, don't fit, or don't identify their network.
    UsageError
        If the arguments contradict each other.
    """
    _check_arguments(feature_extract, include_top, pooling, classes, seed)
    if isinstance(weights, str) and weights == "random" and seed is not None:
        weights = f"random:{seed}"
    arrays, own = resolve_weights(weights, architecture, classifier)
    table = own.with_classes(classes or own.classes)
    if not include_top:
        table = table.until("pool5")
    elif feature_extract:
        table = table.until("fc7")
    elif classifier_activation is None:
        table = table.until("fc8")
    fitted = {} if arrays is None else resolve.fitted_layers(arrays, table, own, classes)
    if "fc8" in fitted and classifier_activation == "softmax":
        check_softmax(arrays)
    if input_tensor is not None:
        input_shape = _tensor_shape(input_tensor, input_shape)
    shape = _checked_shape(table, input_shape, arrays is not None, allow_resize)
    x = keras.Input(shape, name="data") if input_tensor is None else input_tensor
    inputs = keras.utils.get_source_inputs(x)
    inputs = inputs[0] if len(inputs) == 1 else inputs
    side = shape[0] if shape[0] == shape[1] else None
    preset = sized_preset(_recorded_preset(arrays, table), side, table.input_size)
    x = _carrier(shape, preset_layer(preset))(x)
    seeds = np.random.SeedSequence(seed).spawn(len(table.layers))
    for layer, own_seed in zip(table.layers, seeds, strict=True):
        numbers = (None, None) if seed is None else own_seed.generate_state(2).tolist()
        x = _apply(layer, x, table, fitted.get(layer.name), classifier_activation, numbers)
    if pooling:
        x = _POOLINGS[pooling](name=f"{pooling}_pool", **_LAST)(x)
    return keras.Model(inputs, x, name=name or table.name)


def _check_arguments(feature_extract, include_top, pooling, classes, seed) -> None:
    if pooling not in (None, *_POOLINGS):
        raise UsageError(f"pooling={pooling!r}", "unknown", "Use None, 'avg' or 'max'.")
    if include_top and pooling:
        raise UsageError("pooling", "it needs include_top=False", "Pass include_top=False.")
    if feature_extract and not include_top:
        raise UsageError("feature_extract", "fc7 is part of the top", "Leave include_top=True.")
    if classes is not None and classes < 1:
        raise UsageError(f"classes={classes}", "not a number of classes", "Give 1 or more.")
    if seed is not None and not (isinstance(seed, int | np.integer) and seed >= 0):
        raise UsageError(f"seed={seed!r}", "not a whole number >= 0", "Give 0 or more.")


def resolve_weights(
    weights: str | os.PathLike | WeightArrays | keras.Model | None,
    architecture: str | None = None,
    classifier: str | None = None,
) -> tuple[WeightArrays | None, Architecture]:
    """`tf_alexnet.weights.resolve.resolve_weights` that also takes a Keras model."""
    if isinstance(weights, bool):
        raise UsageError(
            f"AlexNet({weights})",
            "weights come first, not include_top",
            f"Pass include_top={weights}.",
        )
    if keras.backend.is_keras_tensor(weights) or tf.is_tensor(weights):
        raise UsageError(
            "AlexNet(tensor)",
            "weights come first, not a tensor",
            "Pass input_tensor=tensor, or call the model: AlexNet()(tensor).",
        )
    if isinstance(weights, keras.Model):
        weights = arrays_of(weights)
    return resolve.resolve_weights(weights, architecture, classifier)


def _tensor_shape(tensor: Any, input_shape: tuple | None) -> tuple:
    """(height, width, channels) of `input_tensor`."""
    if not keras.backend.is_keras_tensor(tensor):
        raise UsageError(
            "input_tensor",
            f"{type(tensor).__name__} is not a Keras tensor",
            "Pass a keras.Input or the output of a layer.",
        )
    if len(tensor.shape) != 4 or not keras.backend.is_float_dtype(tensor.dtype):
        raise InputError(
            "input_tensor",
            f"{tensor.dtype} of shape {tensor.shape}",
            "Pass floats of shape (N, height, width, 3), such as a Rescaling layer returns.",
        )
    if input_shape is not None and tuple(input_shape) != tuple(tensor.shape[1:]):
        raise UsageError(
            f"input_shape={input_shape}", f"input_tensor is {tensor.shape}", "Pass one of them."
        )
    return tuple(tensor.shape[1:])


def _checked_shape(
    table: Architecture, shape: tuple | None, trained: bool, allow_resize: bool
) -> tuple:
    """(height, width, 3) of the input, or an error if the layers can't take it."""
    size = table.input_size
    shape = (size, size, 3) if shape is None else shape
    asked = f"input {shape}"
    if not isinstance(shape, tuple | list) or len(shape) != 3 or shape[2] != 3:
        raise InputError(asked, "not (height, width, 3)", "Images have 3 channels.")
    if tuple(shape) == (size, size, 3):
        return tuple(shape)
    ends = [None if side is None else _pool5_side(table, side) for side in shape[:2]]
    if not any(isinstance(layer, Dense) for layer in table.layers):
        return tuple(shape)
    if None in shape:
        raise InputError(
            asked,
            "dense layers need a fixed height and width",
            "Give the size, or pass include_top=False.",
        )
    usual = _pool5_side(table, size)
    if trained and ends != [usual, usual]:
        sides = [x for x in range(size - 64, size + 64) if _pool5_side(table, x) == usual]
        raise InputError(
            asked,
            f"pool5 would be {ends[0]}x{ends[1]}, and the dense layers of {table.name} take "
            f"{usual}x{usual}, that is inputs of {sides[0]} to {sides[-1]} pixels a side",
            f"Resize to {size} (preprocess_input does), or pass include_top=False.",
        )
    if trained and not allow_resize:
        raise InputError(
            asked,
            f"the dense layers of {table.name} were trained on {size}x{size}",
            f"Resize to {size} (preprocess_input does), or pass allow_resize=True.",
        )
    return tuple(shape)


def _pool5_side(table: Architecture, side: int) -> int:
    return [*table.until("pool5").rows(side)][-1].output_shape[0]


def _recorded_preset(arrays: WeightArrays | None, table: Architecture) -> str:
    preset = resolve.trained_preset(arrays, table)
    if not re.fullmatch(r"[a-z0-9.-]+", preset):
        raise WeightsError(
            arrays.source, f"it records the preset {preset!r}", "Set metadata['preset'] to a name."
        )
    return preset


def _carrier(shape: tuple, name: str) -> keras.layers.Layer:
    """The layer after the input: an identity whose name is the preset, and which checks the size.

    Keras checks shapes only in Python, and no longer once a model has seen two of them: 227x227 BGR
    would run through a network for 224x224 RGB. Here the graph itself fails. The image is returned
    as the minimum of itself and its columns' maxima. Computing these takes a reshape, which fails
    for another number of values; their shape (1, width, 3) does not broadcast to another width or
    number of channels. (TensorFlow would optimize away a reshape to the same shape.) Only stock
    layers are used, so that any process can load them.
    """
    height, width, _ = shape
    columns = width or 1  # without a width, only the channels are checked
    image = keras.Input(shape, name="image")
    rows = (height if width and height else -1, 3 * columns)
    x = keras.layers.Reshape(rows, name="rows")(image)
    x = keras.layers.GlobalMaxPooling1D(name="maxima", **_LAST)(x)
    x = keras.layers.Reshape((1, columns, 3), name="columns")(x)
    return keras.Model(image, keras.layers.Minimum(name="same")([image, x]), name=name)


def _apply(
    layer: Layer, x: keras.KerasTensor, table: Architecture, arrays, activation: str | None, seeds
) -> keras.KerasTensor:
    """Apply one layer of the table to `x`."""
    if isinstance(layer, Conv | Dense):
        return _apply_weighted(layer, x, arrays, seeds)
    if isinstance(layer, LRN):
        return LocalResponseNormalization(**vars(layer))(x)
    if isinstance(layer, MaxPool):
        pad = [(0, _overhang(table, layer, side)) for side in x.shape[1:3]]
        if any(end for _, end in pad):
            # Caffe rounds up: the last window reaches beyond the edge. Padding with zeros is the
            # same, since the values are never negative. At 227 no window does.
            x = keras.layers.ZeroPadding2D(pad, name=f"{layer.name}_pad", **_LAST)(x)
        return keras.layers.MaxPooling2D(layer.kernel, layer.stride, name=layer.name, **_LAST)(x)
    if isinstance(layer, Dropout):
        return keras.layers.Dropout(layer.rate, name=layer.name)(x)
    assert isinstance(layer, Softmax), layer
    # float32 under any dtype policy: probabilities in half precision don't sum to 1.
    return keras.layers.Activation(activation, dtype="float32", name=layer.name)(x)


def _overhang(table: Architecture, layer: MaxPool, side: int | None) -> int:
    """Zeros to append to an axis so that pooling, which rounds down, gives Caffe's size."""
    if side is None:  # floor((n + s - 1 - k) / s) = ceil((n - k) / s)
        return layer.stride - 1 if table.pool_rounds_up else 0
    return max(0, (table.pooled(side, layer) - 1) * layer.stride + layer.kernel - side)


def _apply_weighted(layer: Conv | Dense, x: keras.KerasTensor, arrays, seeds) -> keras.KerasTensor:
    if isinstance(layer, Conv):
        padding = "valid"
        if layer.pad and layer.stride == 1 and 2 * layer.pad == layer.kernel - 1:
            padding = "same"
        elif layer.pad:  # TensorFlow's SAME pads unevenly under a stride
            x = keras.layers.ZeroPadding2D(layer.pad, name=f"{layer.name}_pad", **_LAST)(x)
        fan_in = layer.kernel**2 * x.shape[-1] // layer.groups
        # Stock layers where possible: models without groups and LRN load without tf_alexnet.
        kind = keras.layers.Conv2D if layer.groups == 1 else GroupedConv2D
        settings = {"strides": layer.stride, "padding": padding, "groups": layer.groups, **_LAST}
        built = kind(layer.filters, layer.kernel, activation="relu", name=layer.name, **settings)
    else:
        if len(x.shape) > 2:
            x = keras.layers.Flatten(name="flatten", **_LAST)(x)
        fan_in = x.shape[-1]
        activation = "relu" if layer.relu else None
        built = keras.layers.Dense(layer.units, activation, name=layer.name)
    fresh = _initializers(layer.filler, layer.bias, fan_in, seeds)
    # Initialize with the arrays directly, rather than with random numbers first.
    built.kernel_initializer, built.bias_initializer = map(_given, arrays) if arrays else fresh
    y = built(x)
    built.kernel_initializer, built.bias_initializer = fresh  # for the saved configuration
    return y


def _given(array):
    return lambda shape, dtype=None: tf.cast(tf.convert_to_tensor(array), dtype)


def _initializers(filler: Filler, bias: float, fan_in: int, seeds: tuple):
    """Keras initializers of kernel and bias."""
    of = keras.initializers
    if isinstance(filler, TorchUniform):
        bound = 1 / math.sqrt(fan_in)
        return tuple(of.RandomUniform(-bound, bound, seed=number) for number in seeds)
    if isinstance(filler, Gaussian):
        kernel = of.RandomNormal(stddev=filler.std, seed=seeds[0])
    else:
        kernel = of.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=seeds[0])
    return kernel, of.Constant(bias)
