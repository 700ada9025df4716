"""Other engines on the same weights, for comparison."""

import numpy as np


def openvino_network(table, arrays, last="fc7"):
    """OpenVINO called directly: a function (N, S, S, 3) -> blob `last`."""
    from tf_alexnet.engines.openvino import network

    run = network(table, arrays.layers, [last])
    return lambda x: run(x)[last]


def opencv_openvino_script(paths, output, arrays, table, batch=64, threads=2):
    """A well-written script: OpenCV decodes in threads ahead of OpenVINO, into an .h5 file."""
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
