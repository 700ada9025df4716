"""LiteRT (TensorFlow Lite) model, converted by Keras in a separate process.

Frozen functions would transpose the dense kernels at run time (103 ms per photo instead of 25), and
TensorFlow's converter, given a Keras 3 model directly, writes a file without its weights. Keras
converts through a SavedModel. A full-size conversion takes 2.5 GB of memory, int8 3.7.
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

# Most photos for calibration. Values out of the calibrated range are clipped: after 100 flowers,
# pool5 of other photos was off by 27 % of its maximum.
CALIBRATED = 512
# Memory needed, with a margin: multiples of the weights' size, and bytes for TensorFlow itself.
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
        The file; temporary ones are written next to it.
    variant : {"float32", "float16", "dynamic", "int8"}
        float16: half-precision weights. dynamic: 8-bit weights, computed in float32 where there
        is no integer kernel. int8: 8-bit activations too, calibrated on photos; inputs and outputs
        stay float32.
    calibrate : path, optional
        Folder or list of representative photos, for int8.

    Raises
    ------
    UsageError
        If int8 has no photos to calibrate with.
    OutputError
        If there is not enough memory, or the conversion fails.
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
    """Preprocessed photos to calibrate with, float32 (N, S, S, 3)."""
    if calibrate is None:
        raise UsageError(
            "variant 'int8'",
            "it needs photos to calibrate with, and none are given",
            "Name a folder of representative photos: --calibrate DIR.",
        )
    return read_photos(source, calibrate, CALIBRATED)[1]
