"""Run an exported network in its own runtime, as a program that does not import this package.

``python runtime.py JOB.json``. The job names the target, the folder of the export, its blobs, an
.npy file of preprocessed photos, float32 (N, S, S, 3), the image files, and two files to write: an
.npz with 2 N rows of each blob, channels last, from one photo at a time and from all in one batch,
and a JSON file with versions and times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def savedmodel(folder: Path, job: dict) -> tuple[str, Run]:
    """The signature ``tensor``; ``serving_default`` is run as well, on the image files."""
    sys.modules["tf_alexnet"] = None  # makes importing it fail
    import tensorflow as tf

    signatures = tf.saved_model.load(str(folder / "1")).signatures
    files = [Path(x).read_bytes() for x in job["photos"]]
    served = signatures["serving_default"](image_bytes=tf.constant([*files, b"no photo"]))
    for name, values in served.items():
        values = values.numpy()
        job["also"][f"served_{name}"] = values.astype("S") if values.dtype.kind == "O" else values

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {k: v.numpy() for k, v in signatures["tensor"](data=tf.constant(batch)).items()}

    return f"TensorFlow {tf.__version__}", run


def keras(folder: Path, job: dict) -> tuple[str, Run]:
    """The one target that needs our package, for its custom layers."""
    import keras

    from tf_alexnet.blobs import features
    from tf_alexnet.loading import load_model

    model = features(load_model(folder / job["file"]), job["blobs"])

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        found = model(batch, training=False)
        return {name: np.asarray(found[name]) for name in job["blobs"]}

    return f"Keras {keras.__version__}", run


def litert(folder: Path, job: dict) -> tuple[str, Run]:
    """LiteRT's own package, or the interpreter in TensorFlow."""
    try:
        from importlib.metadata import version

        from ai_edge_litert.interpreter import Interpreter

        title = f"LiteRT {version('ai-edge-litert')}"
    except ImportError:
        import tensorflow as tf

        Interpreter, title = tf.lite.Interpreter, f"LiteRT of TensorFlow {tf.__version__}"
    import os

    interpreter = Interpreter(str(folder / job["file"]), num_threads=os.cpu_count())
    (signature,) = interpreter.get_signature_list()
    runner = interpreter.get_signature_runner(signature)
    (data,) = runner.get_input_details()

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        found = runner(**{data: batch})
        return {name: found[name].copy() for name in job["blobs"]}

    return title, run


def onnx(folder: Path, job: dict) -> tuple[str, Run]:
    """ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / job["file"]), providers=["CPUExecutionProvider"]
    )

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(job["blobs"], session.run(job["blobs"], {"data": batch}), strict=True))

    return f"ONNX Runtime {onnxruntime.__version__}", run


def openvino(folder: Path, job: dict) -> tuple[str, Run]:
    """OpenVINO on the CPU, in float32: with AMX, the default is bfloat16."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(str(folder / job["file"]), "CPU", hints)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        found = network({"data": batch})
        return {name: found[name] for name in job["blobs"]}

    return f"OpenVINO {openvino.__version__.partition('-')[0]}", run


def caffe(folder: Path, job: dict) -> tuple[str, Run]:
    """OpenCV's Caffe importer.

    `forward` takes names of layers, not of blobs: ``fc7`` would be the values before the ReLU.
    """
    import cv2

    files = folder / "deploy.prototxt", folder / job["file"]
    network = cv2.dnn.readNetFromCaffe(*map(str, files))
    network.enableWinograd(False)  # an approximation, accurate to 1e-4

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        network.setInput(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)), "data")
        found = network.forward([job["layers"][x] for x in job["blobs"]])
        last = (x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for x in found)
        return dict(zip(job["blobs"], last, strict=True))

    return f"OpenCV {cv2.__version__}", run


TARGETS = {f.__name__: f for f in (savedmodel, keras, litert, onnx, openvino, caffe)}


def main(path: str) -> None:
    """Run a job."""
    job = json.loads(Path(path).read_text())
    batch, job["also"] = np.load(job["batch"]), {}
    began = time.perf_counter()
    title, run = TARGETS[job["target"]](Path(job["folder"]), job)
    run(batch[:1])  # warm up
    ready = time.perf_counter() - began
    rows, times = [], []
    for place in range(len(batch)):
        began = time.perf_counter()
        rows.append(run(batch[place : place + 1]))
        times.append(time.perf_counter() - began)
    rows.append(run(batch))
    found = {name: np.concatenate([row[name] for row in rows]) for name in job["blobs"]}
    np.savez(job["rows"], **found, **job["also"])
    report = {
        "runtime": title,
        "milliseconds": 1000 * float(np.median(times)),
        "ready_seconds": ready,
        "tensorflow": "tensorflow" in sys.modules,
    }
    Path(job["report"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
