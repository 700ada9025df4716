"""The AlexNet in a Keras model: its blobs, weights and preset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_alexnet.architectures import (
    ARCHITECTURES,
    LRN,
    PREACT,
    Architecture,
    Dropout,
    MaxPool,
    carried_preset,
    preset_layer,
    sized_preset,
)
from tf_alexnet.errors import LayerError, UsageError
from tf_alexnet.layers import Preactivation
from tf_alexnet.weights import LayerArrays, WeightArrays, with_classifier

# Layers whose outputs are not blobs in Caffe
_NO_BLOBS = (Dropout.__name__, "Flatten", "ZeroPadding2D", "Functional", "Sequential", "Rescaling")


def features(model: keras.Model, layers: Sequence[str]) -> keras.Model:
    """A model that shares the weights of `model` and returns the named blobs in one pass.

    Parameters
    ----------
    model : keras.Model
        From `AlexNet`, also after fine-tuning or loading, or a model that contains such models.
    layers : sequence of str
        Blob names (``"pool5"``, ``"fc7"``, ...; values after the ReLU), or ``"<name>_preact"`` for
        the values before it. For a nested model, prefix its name (``"left/fc7"``) if a blob name is
        ambiguous.

    Returns
    -------
    keras.Model
        Maps the input to a dict, blob name -> tensor. Convolutional blobs are (N, height, width,
        channels).

    Raises
    ------
    LayerError
        If a name does not exist or is ambiguous; the message lists the valid names.
    """
    if isinstance(layers, str) or not layers:
        raise LayerError(f"layers {layers!r}", "not a list of names", 'Pass a list: ["fc7"].')
    whole = _functional(model)
    known = {
        path: layer
        for path, layer in _layers(whole)
        if not any(name.startswith(preset_layer("")) for name in path[:-1])
    }
    paths = {name: _path(whole, known, name) for name in layers}
    _, tensors = _tensors(whole, paths)
    return keras.Model(whole.input, tensors, name=f"{model.name}_features")


def architecture_of(model: keras.Model) -> Architecture:
    """The table that a model from `AlexNet` was built from, found from its layers.

    Raises
    ------
    UsageError
        If the model contains no AlexNet.
    """
    for network in _networks(model):
        order = [layer.name for layer in network.layers]
        convs = {x.name: x.filters for x in network.layers if isinstance(x, keras.layers.Conv2D)}
        for table in ARCHITECTURES.values():
            norms = [x.name for x in table.layers if isinstance(x, LRN | MaxPool)]
            same = all(convs.get(x.name) == x.filters for x in table.convolutions)
            if same and norms == [x for x in order if x in norms]:
                return table
    raise UsageError(
        f"model {getattr(model, 'name', model)!r}",
        "it contains no AlexNet",
        "Build it with AlexNet().",
    )


def preset_of(model: keras.Model) -> str:
    """The name of the preprocessing preset that a model was trained with.

    Parameters
    ----------
    model : keras.Model or SavedModel
        From `AlexNet`, also cut, nested, cloned, saved and loaded; or the result of
        `tf.saved_model.load`.

    Returns
    -------
    str

    Raises
    ------
    UsageError
        If the model contains no AlexNet, or several with different presets.
    """
    found = {carried_preset(x) for x in _networks(model)} - {None}
    if len(found) > 1:
        raise UsageError(
            f"model {model.name!r}",
            f"its submodels have different presets: {', '.join(sorted(found))}",
            "Pass one of them: preset_of(model.get_layer(...)).",
        )
    return carried_preset(model) or architecture_of(model).preset


def arrays_of(model: keras.Model) -> WeightArrays:
    """Copies of a model's weights, as `read_weights` would return them.

    Parameters
    ----------
    model : keras.Model
        From `AlexNet`, also fine-tuned, cut or nested in another model.

    Raises
    ------
    UsageError
        If the model contains no AlexNet, or two of them, or a layer whose weights are not a kernel
        and a bias.
    """
    table = architecture_of(model)
    layers = {}
    for path, layer in _layers(model):
        if not layer.weights or isinstance(layer, Preactivation | keras.Model):
            continue
        if layer.name in layers:
            raise UsageError(
                f"model {model.name!r}",
                f"it has several layers called {layer.name}",
                f"Pass one of its submodels: model.get_layer({path[0]!r}).",
            )
        arrays = [np.array(keras.ops.convert_to_numpy(x)) for x in layer.weights]
        if [x.ndim for x in arrays] not in ([4, 1], [2, 1]) or arrays[0].dtype.kind != "f":
            raise UsageError(
                f"layer {layer.name!r}",
                f"a {type(layer).__name__} whose weights are not a floating-point kernel and bias",
                "Save the whole model instead: model.save('model.keras').",
            )
        layers[layer.name] = LayerArrays(*arrays)
    preset = preset_of(model)
    if not any(x.kernel.ndim == 2 for x in layers.values()):
        preset = sized_preset(preset, table.input_size, table.input_size)
    metadata = {"preset": preset}
    if "fc8" in layers and "fc7" not in layers:
        metadata["head"] = "fc6" if "fc6" in layers else "pool5"
    source = f"the model {model.name}"
    return with_classifier(WeightArrays(layers, table.name, source, metadata))


def _layers(model, path: tuple = ()) -> Iterator[tuple[tuple, keras.layers.Layer]]:
    """Yield (path, layer) for all layers, those of nested models included."""
    for layer in model.layers if isinstance(model, keras.Model) else ():
        here = (*path, layer.name)
        yield here, layer
        yield from _layers(layer, here)


def _networks(model) -> list[keras.Model]:
    """`model` and its nested models."""
    layers = (model, *(layer for _, layer in _layers(model)))
    return [layer for layer in layers if isinstance(layer, keras.Model)]


def _functional(model) -> keras.Model:
    """`model`, which may be Sequential, as a functional model."""
    try:
        if isinstance(model, keras.Sequential):
            return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        return keras.Model(model.input, model.output, name=model.name)
    except (AttributeError, ValueError, TypeError):
        raise LayerError(
            f"features of {type(model).__name__}",
            "it has no graph of layers to take blobs from",
            "Pass a functional or Sequential Keras model that has an input shape.",
        ) from None


def _has_relu(layer: keras.layers.Layer) -> bool:
    return getattr(layer, "activation", None) is keras.activations.relu


def _path(model, known: Mapping[tuple, keras.layers.Layer], name: str) -> tuple:
    """The path of the blob `name`; its last name ends in `PREACT` if `name` does."""
    wanted = [(name, "")]
    if name.endswith(PREACT):
        wanted.append((name.removesuffix(PREACT), PREACT))
    for blob, suffix in wanted:
        end = tuple(blob.split("/"))
        found = [x for x in known if x[-len(end) :] == end and (not suffix or _has_relu(known[x]))]
        found = [x for x in found if x == end] or found
        if len(found) > 1:
            names = " and ".join("/".join(x) + suffix for x in found)
            raise LayerError(f"layer {name!r}", f"{model.name} has {names}", "Use one of them.")
        if found:
            return (*found[0][:-1], found[0][-1] + suffix)
    blobs = {x[-1]: layer for x, layer in known.items() if type(layer).__name__ not in _NO_BLOBS}
    names = [*blobs, *(x + PREACT for x, layer in blobs.items() if _has_relu(layer))]
    raise LayerError(
        f"layer {name!r}", f"{model.name} has no such blob", f"Use one of: {', '.join(names)}."
    )


def _tensors(model, paths: Mapping[str, tuple]) -> tuple[Any, dict[str, keras.KerasTensor]]:
    """The output of the functional `model`, and the tensors at the given paths."""
    nested = {}
    for path in paths.values():
        if len(path) > 1:
            nested.setdefault(path[0], {})["/".join(path)] = path[1:]
    output, calls = _repeated(model, nested) if nested else (model.output, _calls(model))
    return output, {name: _tensor(model, calls, path) for name, path in paths.items()}


def _calls(model) -> dict[str, list[tuple]]:
    """Layer name -> arguments and output of each of its calls."""
    calls = {}
    for nodes in model._nodes_by_depth.values():  # a layer's own list includes other models' calls
        for node in nodes:
            call = node.arguments.args, node.outputs[0]
            calls.setdefault(node.operation.name, []).append(call)
    return calls


def _repeated(model, nested: Mapping[str, Mapping[str, tuple]]) -> tuple[Any, dict]:
    """Output and calls of `model`, rebuilt with nested models that also return the blobs."""
    parts = {}
    for name, paths in nested.items():
        part = _functional(model.get_layer(name))
        parts[name] = keras.Model(part.input, _tensors(part, paths), name=name)
    inputs = (layer for layer in model.layers if isinstance(layer, keras.layers.InputLayer))
    calls = {layer.name: [((), layer.output)] for layer in inputs}

    def call(layer, *args, **kwargs):
        y = parts.get(layer.name, layer)(*args, **kwargs)
        if layer.name in parts:
            y, blobs = y
            for name, blob in blobs.items():
                calls.setdefault(name, []).append((args, blob))
        calls.setdefault(layer.name, []).append((args, keras.tree.flatten(y)[0]))
        return y

    again = keras.models.clone_model(
        model, input_tensors=model.input, clone_function=lambda x: x, call_function=call
    )
    return again.output, calls


def _tensor(model, calls: Mapping[str, list[tuple]], path: tuple) -> keras.KerasTensor:
    """The output of the one call that computes a blob."""
    name = "/".join(path)
    base = name if name in calls else name.removesuffix(PREACT)
    if len(calls[base]) > 1:
        raise LayerError(
            f"layer {name!r}",
            f"{model.name} calls {path[0]} {len(calls[base])} times",
            "Take the features of a model that calls it once.",
        )
    args, output = calls[base][0]
    return output if base == name else Preactivation(model.get_layer(base), name=name)(args[0])
