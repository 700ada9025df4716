"""Engines that are not ours, on the same weights: what the benchmarks hold us against."""

import numpy as np

from tf_alexnet.architectures import LRN, Conv, Dense, MaxPool


def openvino_network(table, arrays, last="fc7"):
    """OpenVINO's network: a function (N, S, S, 3) -> blob `last`; float32, latency hint."""
    import openvino as ov

    compiled = ov.Core().compile_model(
        _openvino_model(table, arrays, last),
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    )
    return lambda x: compiled(x)[0]


def _openvino_model(table, arrays, last):
    import openvino as ov
    from openvino import opset13 as op

    size = table.input_size
    data = op.parameter([-1, size, size, 3], np.float32, name="data")
    x, flat = op.transpose(data, op.constant([0, 3, 1, 2])), False
    for layer in table.layers:
        if isinstance(layer, Conv):
            x = _openvino_convolution(op, layer, arrays.layers[layer.name], x)
        elif isinstance(layer, LRN):
            x = op.lrn(x, op.constant([1]), layer.alpha, layer.beta, layer.k, layer.local_size)
        elif isinstance(layer, MaxPool):
            sides = [layer.stride] * 2, [1, 1], [0, 0], [0, 0], [layer.kernel] * 2
            x = op.max_pool(x, *sides, "ceil" if table.pool_rounds_up else "floor").output(0)
        elif isinstance(layer, Dense):
            kernel, bias = arrays.layers[layer.name]
            if not flat:
                x = op.transpose(x, op.constant([0, 2, 3, 1]))
                x, flat = op.reshape(x, op.constant([0, kernel.shape[0]]), True), True
            x = op.matmul(x, op.constant(np.ascontiguousarray(kernel)), False, False)
            x = op.add(x, op.constant(np.ascontiguousarray(bias)[None]))
            x = op.relu(x) if layer.relu else x
        if layer.name == last:
            break
    return ov.Model([x], [data])


def _openvino_convolution(op, layer, arrays, x):
    kernel = np.ascontiguousarray(arrays.kernel.transpose(3, 2, 0, 1))
    sides = [layer.stride] * 2, [layer.pad] * 2, [layer.pad] * 2, [1, 1]
    if layer.groups == 1:
        x = op.convolution(x, op.constant(kernel), *sides)
    else:
        kernel = kernel.reshape(layer.groups, -1, *kernel.shape[1:])
        x = op.group_convolution(x, op.constant(kernel), *sides)
    return op.relu(op.add(x, op.constant(arrays.bias.reshape(1, -1, 1, 1))))


def opencv_openvino_script(paths, output, arrays, table, batch=64, threads=2):
    """What a careful engineer would write: OpenCV decoding in threads ahead of OpenVINO, to .h5."""
    from collections import deque
    from concurrent.futures import ThreadPoolExecutor

    import cv2
    import h5py

    cv2.setNumThreads(1)
    mean = np.array([104.00698793, 116.66876762, 122.67891434], np.float32)
    network = openvino_network(table, arrays)

    def read(path):
        image = cv2.resize(cv2.imread(path, cv2.IMREAD_COLOR), (256, 256))[14:241, 14:241]
        return image - mean

    with h5py.File(output, "w") as file, ThreadPoolExecutor(threads) as pool:
        rows = file.create_dataset("fc7", (len(paths), 4096), np.float32)
        file["paths"] = paths
        waiting, done = deque(), 0
        starts = iter(range(0, len(paths), batch))
        for start in starts:
            waiting.append([pool.submit(read, path) for path in paths[start : start + batch]])
            if len(waiting) > 2:
                done = _write(rows, done, network, waiting.popleft())
        while waiting:
            done = _write(rows, done, network, waiting.popleft())


def _write(rows, done, network, jobs):
    values = network(np.stack([job.result() for job in jobs]))
    rows[done : done + len(values)] = values
    return done + len(values)
