"""Resolution of the arguments `weights` and `architecture`, for all engines."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

from tf_alexnet.architectures import ARCHITECTURES, BVLC_ALEXNET, Architecture, Dense
from tf_alexnet.errors import InputError, UsageError, WeightsError
from tf_alexnet.weights.arrays import (
    LayerArrays,
    WeightArrays,
    check_arrays,
    find_table,
    with_classifier,
)
from tf_alexnet.weights.catalog import known_weights, names
from tf_alexnet.weights.download import find_weights
from tf_alexnet.weights.fresh import fresh_weights, random_seed
from tf_alexnet.weights.io import read_weights
from tf_alexnet.weights.prototxt import resolve_architecture


def resolve_weights(
    weights: str | os.PathLike | WeightArrays | None,
    architecture: str | None = None,
    classifier: str | None = None,
) -> tuple[WeightArrays | None, Architecture]:
    """The arrays and the table for these arguments of `AlexNet`.

    Raises
    ------
    WeightsError
        If the weights can't be found or read, or don't identify their network.
    UsageError, InputError
        If `weights` is of an unsupported type, or contradicts `architecture`.
    """
    if not (weights is None or isinstance(weights, str | os.PathLike | WeightArrays)):
        raise UsageError(
            "weights",
            f"{type(weights).__name__} is not a kind of weights",
            "Pass a path, a catalogue name, WeightArrays, a Keras model or None.",
        )
    declared = resolve_architecture(architecture)
    if (seed := random_seed(weights)) is not None:
        table = find_table(None, declared.architecture)
        weights = fresh_weights(table.with_classes(declared.classes or table.classes), seed)
    elif weights is not None:
        if isinstance(weights, str | os.PathLike):
            weights = read_weights(find_weights(weights))
        weights = with_classifier(weights, classifier or declared.classifier)
    table = find_table(weights, declared.architecture)
    if declared.classes and weights is None:
        table = table.with_classes(declared.classes)
    elif declared.classes and weights.classes not in (None, declared.classes):
        raise WeightsError(
            f"{weights.source} as {architecture}",
            f"it has {weights.classes} classes, but the prototxt {declared.classes}",
            "Use the prototxt that belongs to these weights.",
        )
    if declared.input_size not in (None, table.input_size):
        raise InputError(
            str(architecture),
            f"its input has {declared.input_size} pixels a side, {table.name} has "
            f"{table.input_size}",
            f"Pass architecture={table.name!r}, input_shape and allow_resize=True to AlexNet.",
        )
    if declared.preset:
        table = replace(table, preset=declared.preset)
        if weights is not None:
            weights = replace(weights, metadata={**weights.metadata, "preset": declared.preset})
    return weights, table


def as_far_as(whole: Architecture, weights: WeightArrays) -> Architecture:
    """The network up to the last layer in `weights`."""
    if "fc8" in weights.layers:
        return whole
    return whole.until("fc7" if "fc7" in weights.layers else "pool5")


def last_features(weights: WeightArrays, table: Architecture) -> str:
    """The last layer in `weights` before the classifier `fc8`: `fc7`, `fc6` or `pool5`."""
    dense = [x.name for x in table.weighted if isinstance(x, Dense) and x.name != "fc8"]
    return next((name for name in reversed(dense) if name in weights.layers), "pool5")


def resolve_network(
    network: str | None, architecture: str | None = None, input_size: int | None = None
) -> Architecture:
    """The table of a network, without downloading anything.

    Parameters
    ----------
    network : str or None
        Name of a network, a catalogue name, a ``.prototxt``, a weight file, or ``"random:SEED"``;
        None is `architecture` (default: bvlc_alexnet).
    architecture : str, optional
        As in `AlexNet`, if a weight file does not identify it.
    input_size : int, optional
        Side of the input (default: that of the network).

    Returns
    -------
    Architecture
        With the number of classes of the weights, and up to their last layer.

    Raises
    ------
    UsageError
        If there is no such network.
    WeightsError
        If a file can't be read, or does not identify its network.
    """
    if network is None or network in ARCHITECTURES or network.endswith(".prototxt"):
        if network and architecture:
            found = "it names a network already"
            raise UsageError(f"architecture with {network}", found, "Omit one of the two.")
        table = resolve_weights(None, network or architecture or BVLC_ALEXNET.name)[1]
    elif network in names() and not os.path.isfile(network):
        record = known_weights(network)
        table = ARCHITECTURES[record.architecture]
        table = table.with_classes(record.classes) if record.classes else table.until("pool5")
    elif os.path.exists(network) or random_seed(network) is not None:
        weights, table = resolve_weights(network, architecture)
        return resized(as_far_as(table, weights), input_size, network)
    else:
        known = dict.fromkeys((*ARCHITECTURES, *names()))
        raise UsageError(
            f"network {network!r}",
            "neither a known name nor a file",
            f"Give a weight file, a RUN, or one of: {', '.join(known)}.",
        )
    return resized(table, input_size)


def resized(
    table: Architecture, input_size: int | None, trained: str | None = None
) -> Architecture:
    """The network with another input size.

    Raises
    ------
    InputError
        If it has trained weights (named `trained`) whose dense layers don't fit the new `pool5`.
    """
    if input_size is None:
        return table
    other = replace(table, input_size=input_size)
    if trained and other.parameter_shapes() != table.parameter_shapes():
        raise InputError(
            f"{trained} with an input of {input_size}x{input_size}",
            "its dense layers don't fit the size of pool5",
            f"Give the network instead of its weights: {table.name}.",
        )
    return other


def trained_preset(weights: WeightArrays | None, table: Architecture) -> str:
    """The preset that weights were trained with: the recorded one, or the network's default."""
    return (weights and weights.metadata.get("preset")) or table.preset


def fitted_layers(
    weights: WeightArrays, table: Architecture, own: Architecture, classes: int | None
) -> dict[str, LayerArrays]:
    """The layers of `weights` to load into `table`, checked against `own`, their own table."""
    needed, notes = [layer.name for layer in table.weighted], []
    dense = {layer.name for layer in table.weighted if isinstance(layer, Dense)}
    if dense and dense == set(needed) - set(weights.layers):
        raise WeightsError(
            weights.source,
            "it has only convolutions, no dense layers",
            "Use pool5 or an earlier layer (AlexNet: include_top=False).",
        )
    last = own.weighted[-1].name
    if last in needed and classes and weights.classes != classes:
        found = f"is for {weights.classes} classes" if weights.classes else "is missing"
        notes.append(f"{last} {found}, but classes={classes}: {last} starts untrained.")
        needed.remove(last)
    check_arrays(weights, own, needed)
    if "differs" in weights.metadata:
        notes.append(f"not quite {own.name}: {weights.metadata['differs']}.")
    if weights.set_aside:
        notes.append(f"{own.name} has no layer {', '.join(weights.set_aside)}; left out.")
    for note in notes:
        warnings.warn(f"{weights.source}: {note}", stacklevel=3)
    return {name: weights.layers[name] for name in needed}
