"""ONNX model, written by `weights.formats.onnx_graph`."""

from __future__ import annotations

from pathlib import Path

from tf_alexnet.export.source import Source
from tf_alexnet.weights.formats import onnx_graph

USAGE = """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("alexnet.onnx")
{names} = session.run({blobs}, {{"data": x}})
```

Response normalisation is written as elementary operators, which ONNX Runtime runs 1.6 times as
fast; `tf-alexnet weights convert WEIGHTS x.onnx` writes ONNX's own LRN.
"""


def write(source: Source, path: Path) -> None:
    """Write the model; its outputs are the source's blobs."""
    onnx_graph.write(source.arrays, path, "ops", also=source.blobs[:-1])
