"""Caffe's deploy prototxt, generated from a table, for engines that read Caffe's files."""

from tf_alexnet.architectures import LRN, Conv, Dense, Dropout, MaxPool, Softmax


def prototxt(table, batch=1):
    """The text of a deploy prototxt; ReLU layers are in place and called relu1, relu2, ..."""
    side = table.input_size
    dims = " ".join(f"dim: {d}" for d in (batch, 3, side, side))
    parts = [
        f'name: "{table.name}"',
        _layer("data", "Input", None, f"input_param {{ shape {{ {dims} }} }}"),
    ]
    bottom = "data"
    for layer in table.layers:
        if isinstance(layer, Dropout):
            continue  # in place, and nothing at inference
        parts.append(_layer(layer.name, _type(layer), bottom, _parameters(layer)))
        bottom = layer.name
        if isinstance(layer, Conv) or getattr(layer, "relu", False):
            parts.append(_layer(f"relu{bottom[-1]}", "ReLU", bottom, top=bottom))
    return "\n".join(parts)


def _type(layer):
    names = {MaxPool: "Pooling", Conv: "Convolution", Dense: "InnerProduct", Softmax: "Softmax"}
    return names.get(type(layer), "LRN")


def _layer(name, kind, bottom, parameters="", top=None):
    bottom = f'bottom: "{bottom}" ' if bottom else ""
    return f'layer {{ name: "{name}" type: "{kind}" {bottom}top: "{top or name}" {parameters} }}'


def _parameters(layer):
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
