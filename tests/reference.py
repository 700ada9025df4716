"""An independent forward pass: NumPy, float64, Caffe's formulas in Caffe's layout (N, C, H, W).

Written from Caffe's layer definitions and independent of TensorFlow and of `tf_alexnet.layers`; it
reads only the network's table and its arrays.
"""

import numpy as np

from tf_alexnet.architectures import LRN, Conv, Dense, Dropout, MaxPool, Softmax


def forward(table, arrays, x):
    """Every blob of `table` for `x` (N, C, H, W); blobs before a ReLU as `<name>_preact`."""
    x = np.asarray(x, np.float64)
    blobs = {"data": x}
    for layer in table.layers:
        if isinstance(layer, Conv):
            kernel, bias = caffe_layout(arrays.layers[layer.name], layer, x)
            x = convolve(x, kernel, bias, layer.stride, layer.pad, layer.groups)
        elif isinstance(layer, Dense):
            x = inner_product(x, arrays.layers[layer.name], layer)
        elif isinstance(layer, LRN):
            x = normalize(x, layer)
        elif isinstance(layer, MaxPool):
            x = max_pool(x, layer.kernel, layer.stride, table.pool_rounds_up)
        elif isinstance(layer, Softmax):
            x = softmax(x)
        elif isinstance(layer, Dropout):
            continue  # inference
        if isinstance(layer, Conv) or getattr(layer, "relu", False):
            blobs[layer.name + "_preact"] = x
            x = np.maximum(x, 0)
        blobs[layer.name] = x
    return blobs


def caffe_layout(arrays, layer, x):
    """Kernel as Caffe stores it: (out, in / group, kh, kw), or (out, C * H * W)."""
    kernel, bias = (np.asarray(array, np.float64) for array in arrays)
    if isinstance(layer, Conv):
        return kernel.transpose(3, 2, 0, 1), bias
    if x.ndim == 4:
        _, c, h, w = x.shape
        kernel = kernel.reshape(h, w, c, -1).transpose(2, 0, 1, 3).reshape(c * h * w, -1)
    return kernel.T, bias


def inner_product(x, arrays, layer):
    """inner_product_layer.cpp, 512 units at a time: all of fc6 would be 300 MB, twice."""
    parts = []
    for start in range(0, len(arrays[1]), 512):
        some = [array[..., start : start + 512] for array in arrays]
        kernel, bias = caffe_layout(some, layer, x)
        parts.append(x.reshape(len(x), -1) @ kernel.T + bias)
    return np.concatenate(parts, axis=1)


def convolve(x, kernel, bias, stride, pad, groups):
    """conv_layer.cpp: for each group, patches times filters."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out, _, kh, kw = kernel.shape
    windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    n, c, h, w = windows.shape[:4]
    parts = []
    for g in range(groups):
        patches = windows[:, g * c // groups : (g + 1) * c // groups]
        patches = patches.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, -1)
        filters = kernel[g * out // groups : (g + 1) * out // groups]
        parts.append((patches @ filters.reshape(len(filters), -1).T).reshape(n, h, w, -1))
    return np.concatenate(parts, axis=-1).transpose(0, 3, 1, 2) + bias[:, None, None]


def normalize(x, layer):
    """lrn_layer.cpp: scale = k + alpha / size * (sum of squares); y = x * scale ^ -beta."""
    half = layer.local_size // 2
    squares = np.pad(x**2, ((0, 0), (half, half), (0, 0), (0, 0)))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(layer.local_size))
    return x * (layer.k + layer.alpha / layer.local_size * total) ** -layer.beta


def max_pool(x, kernel, stride, rounds_up):
    """pooling_layer.cpp: with `rounds_up`, the last window may hang over the edge."""
    sides = []
    for n in x.shape[2:]:
        steps = -(-(n - kernel) // stride) if rounds_up else (n - kernel) // stride
        sides.append(steps + 1)
    out = np.empty(x.shape[:2] + tuple(sides))
    for i in range(sides[0]):
        for j in range(sides[1]):
            window = x[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            out[:, :, i, j] = window.max(axis=(2, 3))
    return out


def softmax(x):
    """softmax_layer.cpp."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def relative_error(ours, theirs):
    """Largest deviation, as a fraction of the largest magnitude of `theirs`."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
