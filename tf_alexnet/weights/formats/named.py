"""Files of named arrays: the layer that each belongs to, and its layout."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from tf_alexnet.weights.arrays import LAYER_ORDER, LayerArrays, network_order
from tf_alexnet.weights.formats.common import NotAlexNetError, from_channels_first, modern

TORCH_LAYERS = {
    **{"features.0": "conv1", "features.3": "conv2", "features.6": "conv3"},
    **{"features.8": "conv4", "features.10": "conv5"},
    **{"classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8"},
}
# Names for kernel and bias in Keras, TensorFlow, torch, Caffe's converters and ONNX.
_PARTS = {
    **dict.fromkeys(("kernel", "weights", "weight", "W", "w", "filters", "filter"), "kernel"),
    **dict.fromkeys(("bias", "biases", "b"), "bias"),
}
_KEY = re.compile(rf"(.+)(?:[./_]({'|'.join(_PARTS)})|[./]([^./:]*))(?:_0)?(?::0)?", re.DOTALL)
# Prefixes from DataParallel, torch.compile, and attributes of enclosing modules.
_AROUND = {"module", "_orig_mod", "model", "net", "network", "backbone", "alexnet"}
_STATISTICS = {"running_mean", "running_var", "moving_mean", "moving_variance"}
_NUMBERED = re.compile(r"(features|classifier)\.([0-9]{1,4})")


def split_key(key: str) -> tuple[str, str]:
    """Split an array's name into layer and part; known layers get our name.

    ``conv1/kernel``, ``conv1_W``, ``conv1/weights:0``, ``conv1_w_0``, ``conv1/conv1_W`` and
    ``module.features.0.weight`` are all ``("conv1", "kernel")``. The part is "kernel", "bias", the
    name of another array of a layer ("running_mean"), or "" for a name without parts.
    """
    found = _KEY.fullmatch(key)
    if found is None:
        return key, ""
    layer, part, other = found.groups()
    name = layer.rpartition("/")[2]
    if name not in LAYER_ORDER:  # else it may be conv1/conv1 or alexnet_v2/conv1
        name = ".".join(piece for piece in re.split("[./]", layer) if piece not in _AROUND)
    name = TORCH_LAYERS.get(name, name)
    dotted = key[len(layer)] == "."  # names with slashes, like ours, are kept
    return name if name in LAYER_ORDER or (dotted and name) else layer, _PARTS.get(part, other)


def named_layers(keys: Iterable[str], load: Callable[[str], np.ndarray]) -> dict[str, LayerArrays]:
    """The layers of a file of named arrays, in TensorFlow's layout.

    The output axis of a kernel is the one as long as the bias. If both first and last axis are, it
    is the first with torch's names, and the last with others.

    Parameters
    ----------
    keys : iterable of str
        Names of all arrays, in the order of the file; see `split_key`.
    load : callable
        Returns the array with a given name.

    Returns
    -------
    dict of str to LayerArrays
        In network order. Arrays other than kernels and biases are left out with a warning.

    Raises
    ------
    NotAlexNetError
        If a layer of AlexNet is incomplete or duplicated, or the file is of another kind of
        network.
    """
    keys = list(keys)
    parts: dict[str, dict[str, str]] = {}
    for key in keys:
        layer, part = split_key(key)
        if part in LayerArrays._fields and part in parts.get(layer, {}):
            raise NotAlexNetError(f"two arrays for the {part} of layer {layer[:80]!r}")
        parts.setdefault(layer, {})[part] = key
    arrays = {
        layer: {part: load(key) for part, key in found.items() if part in LayerArrays._fields}
        for layer, found in parts.items()
    }
    _check_trunk(parts, arrays, is_sorted=keys == sorted(keys))
    layers, left_out = {}, []
    for name in network_order(parts):
        pair = arrays[name]
        if len(pair) == 1 and name in LAYER_ORDER:
            raise NotAlexNetError(f"layer {name} with only a {next(iter(pair))}")
        if len(pair) == 2:
            layer = LayerArrays(*modern(pair["kernel"], pair["bias"]))
            shape = layer.kernel.shape
            fits = len(shape) in (2, 4) and layer.bias.shape in (shape[:1], shape[-1:])
            if fits or name in LAYER_ORDER:
                layers[name] = layer
        taken = pair if name in layers else {}
        left_out += [key for part, key in parts[name].items() if part not in taken]
    if not layers:
        others = f", but {left_out[0][:80]!r}" if left_out else ""
        raise NotAlexNetError(f"no layer with weights in it{others}")
    if left_out:
        words = ", ".join(key[:80] for key in left_out)
        warnings.warn(f"left out: {words[:200]}", stacklevel=4)
    torch = any(key.endswith(".weight") for key in keys)
    return from_channels_first(layers) if _is_channels_first(layers, torch) else layers


def _is_channels_first(layers: Mapping[str, LayerArrays], torch: bool) -> bool:
    pairs = [pair for name, pair in layers.items() if name in LAYER_ORDER] or layers.values()
    first = all(kernel.shape[:1] == bias.shape for kernel, bias in pairs)
    last = all(kernel.shape[-1:] == bias.shape for kernel, bias in pairs)
    return first and (torch or not last)


def _check_trunk(
    parts: Mapping[str, Mapping[str, str]],
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    is_sorted: bool,
) -> None:
    """Raise an error for layers that change what AlexNet computes, unless they are in a head.

    A head starts with a new layer after AlexNet's last one. If the names are sorted, their order
    does not show this.
    """
    kinds = {name: _kind(parts[name].keys(), arrays[name].get("kernel")) for name in parts}
    head = len(parts)
    if not is_sorted:
        for place, name in reversed([*enumerate(parts)]):
            if name in LAYER_ORDER:
                break
            if len(arrays[name]) == 2 and not kinds[name]:
                head = place
    for place, (name, kind) in enumerate(kinds.items()):
        inside = place < head
        if numbered := _NUMBERED.fullmatch(name):
            inside = int(numbered[2]) < {"features": 10, "classifier": 6}[numbered[1]]
            if "kernel" in arrays[name]:
                kind = kind or f"a kernel of shape {arrays[name]['kernel'].shape}"
        if kind and inside:
            raise NotAlexNetError(f"a network with {kind} (layer {name[:80]!r}), not AlexNet")


def _kind(parts: Collection[str], kernel: np.ndarray | None) -> str | None:
    """Kind of a layer that is neither a convolution nor dense, by its arrays; else None."""
    is_vector = kernel is not None and kernel.ndim == 1
    if not _STATISTICS.isdisjoint(parts):
        return "batch normalisation"
    if "gamma" in parts or (is_vector and "bias" in parts):
        return "normalisation layers"
    return "PReLU" if "alpha" in parts or is_vector else None
