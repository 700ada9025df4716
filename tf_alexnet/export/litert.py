"""A LiteRT (TensorFlow Lite) model, converted by Keras in a process of its own.

Frozen functions would leave a transpose of the dense kernels for run time (103 ms a photo instead
of 25), and TensorFlow's converter, given a model of Keras 3 directly, writes a file without its
weights. Keras goes by way of a SavedModel. A full-size conversion takes 2.5 GB of memory, int8 3.7.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from tf_alexnet.errors import UsageError
from tf_alexnet.export.children import check_memory, run_program
from tf_alexnet.export.photos import read_photos
from tf_alexnet.export.source import Source
from tf_alexnet.weights import write_weights

# Photos at most. A value beyond the range that they show is cut: 100 flowers let pool5 of others be
# 27 % of its maximum off.
CALIBRATED = 512
# Memory, with a margin: as a multiple of the weights' size, and for TensorFlow itself.
_PEAK, _PEAK_INT8, _BASE = 10, 15, 600 << 20

USAGE = """\
```python
from ai_edge_litert.interpreter import Interpreter

run = Interpreter("alexnet.tflite").get_signature_runner()
found = run(data=x)  # a dict
```

Builtin operators only.
"""

_log = logging.getLogger(__name__)


def write(
    source: Source, path: Path, variant: str = "float32", calibrate: str | None = None
) -> None:
    """Convert and write.

    Parameters
    ----------
    source : Source
        The network.
    path : Path
        The file; temporary ones are written beside it.
    variant : {"float32", "float16", "dynamic", "int8"}
        float16: weights of half precision. dynamic: kernels of 8 bits, computed in float32 where
        there is no integer kernel. int8: values of 8 bits too, whose ranges photos tell; inputs and
        outputs stay float32.
    calibrate : path, optional
        Folder or list of photos such as those the network will see, for int8.

    Raises
    ------
    UsageError
        If int8 has no photos to go by.
    OutputError
        If memory does not suffice, or the conversion fails.
    """
    what = f"converting {source.table.name} to LiteRT ({variant})"
    size = sum(x.nbytes for layer in source.arrays.layers.values() for x in layer)
    check_memory((_PEAK_INT8 if variant == "int8" else _PEAK) * size + _BASE, what)
    job = {"weights": "weights.safetensors", "blobs": source.blobs, "variant": variant}
    job |= {"file": path.name, "last": source.table.layers[-1].name}
    scraps = [path.with_name("job.json"), path.with_name(job["weights"])]
    if variant == "int8":
        scraps.append(path.with_name("photos.npy"))
        np.save(scraps[-1], _photos(source, calibrate))
    write_weights(source.arrays, scraps[1])
    scraps[0].write_text(json.dumps(job))
    _log.info("%s: this takes a while", what)
    run_program(Path(__file__).with_name("litert_conversion.py"), scraps[0], what)
    for file in scraps:
        file.unlink()


def _photos(source: Source, calibrate: str | None) -> np.ndarray:
    """Preprocessed photos to tell the ranges by, float32 (N, S, S, 3)."""
    if calibrate is None:
        raise UsageError(
            "variant 'int8'",
            "the ranges of values are told by photos, and none are given",
            "Name a folder of photos such as the network will see: --calibrate DIR.",
        )
    return read_photos(source, calibrate, CALIBRATED)[1]
