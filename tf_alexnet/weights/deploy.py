"""Writing a table as Caffe's deploy.prototxt. `prototxt` reads such files."""

from __future__ import annotations

from tf_alexnet.architectures import (
    LRN,
    Architecture,
    Conv,
    Dense,
    Dropout,
    Layer,
    MaxPool,
    Softmax,
)

_KINDS = {
    Conv: "Convolution",
    LRN: "LRN",
    MaxPool: "Pooling",
    Dense: "InnerProduct",
    Softmax: "Softmax",
}


def deploy_prototxt(table: Architecture, batch: int = 1) -> str:
    """The text of a deploy.prototxt.

    The input is the blob ``data``, (batch, 3, S, S). ReLUs work in place, as in Caffe's own models,
    in layers called ``relu1``, ``relu2``, ...
    """
    side = table.input_size
    dims = " ".join(f"dim: {d}" for d in (batch, 3, side, side))
    parts = [
        f'name: "{table.name}"',
        _layer_text("data", "Input", None, f"input_param {{ shape {{ {dims} }} }}"),
    ]
    bottom = "data"
    for layer in table.layers:
        if isinstance(layer, Dropout):
            continue  # no effect at inference
        parts.append(_layer_text(layer.name, _KINDS[type(layer)], bottom, _parameters(layer)))
        bottom = layer.name
        if isinstance(layer, Conv) or getattr(layer, "relu", False):
            parts.append(_layer_text(relu_layer(bottom), "ReLU", bottom, top=bottom))
    return "\n".join(parts) + "\n"


def relu_layer(name: str) -> str:
    """Name of the ReLU layer after the blob `name` in `deploy_prototxt`."""
    return f"relu{name[-1]}"


def _layer_text(
    name: str, kind: str, bottom: str | None, parameters: str = "", top: str | None = None
) -> str:
    bottom = f'bottom: "{bottom}" ' if bottom else ""
    return f'layer {{ name: "{name}" type: "{kind}" {bottom}top: "{top or name}" {parameters} }}'


def _parameters(layer: Layer) -> str:
    if isinstance(layer, Conv):
        return (
            f"convolution_param {{ num_output: {layer.filters} kernel_size: {layer.kernel} "
            f"stride: {layer.stride} pad: {layer.pad} group: {layer.groups} }}"
        )
    if isinstance(layer, LRN):
        return (
            f"lrn_param {{ local_size: {layer.local_size} alpha: {layer.alpha} "
            f"beta: {layer.beta} k: {layer.k} }}"
        )
    if isinstance(layer, MaxPool):
        return f"pooling_param {{ pool: MAX kernel_size: {layer.kernel} stride: {layer.stride} }}"
    if isinstance(layer, Dense):
        return f"inner_product_param {{ num_output: {layer.units} }}"
    return ""
