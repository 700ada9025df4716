"""Convert a network to LiteRT: a separate program, because it takes gigabytes of memory.

``python litert_conversion.py JOB.json``; all files that the job names are next to it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main(path: str) -> None:
    """Run a job."""
    import tensorflow as tf

    from tf_alexnet.export.keras_model import cut_model
    from tf_alexnet.model import features
    from tf_alexnet.weights import read_weights

    job, folder = json.loads(Path(path).read_text()), Path(path).parent
    model = features(cut_model(read_weights(folder / job["weights"]), job["last"]), job["blobs"])
    options: dict = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    if job["variant"] != "float32":
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if job["variant"] == "float16":
        options["target_spec"]["supported_types"] = [tf.float16]
    if job["variant"] == "int8":
        photos = np.load(folder / "photos.npy", mmap_mode="r")
        options["representative_dataset"] = lambda: ([photo[None]] for photo in photos)
        # Response normalisation has no 8-bit kernel, and stays in float32.
        options["target_spec"]["supported_ops"].append(tf.lite.OpsSet.TFLITE_BUILTINS_INT8)
    model.export(str(folder / job["file"]), format="litert", verbose=False, **options)


if __name__ == "__main__":
    main(sys.argv[1])
