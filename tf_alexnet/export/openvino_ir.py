"""OpenVINO IR of the graph that the engine runs."""

from __future__ import annotations

from pathlib import Path

import openvino

from tf_alexnet.engines.openvino import graph
from tf_alexnet.export.source import Source

USAGE = """\
```python
import openvino

hints = {{"INFERENCE_PRECISION_HINT": "f32"}}  # with AMX, the default is bfloat16
network = openvino.Core().compile_model("alexnet.xml", "CPU", hints)
{names} = (network({{"data": x}})[name] for name in {blobs})
```
"""


def write(source: Source, path: Path) -> None:
    """Write the graph, ``.xml``, and the weights, ``.bin``."""
    model = graph(source.table, source.arrays.layers, source.blobs)
    model.set_rt_info(source.arrays.metadata["preset"], ["tf_alexnet", "preset"])
    # By default OpenVINO would round the weights to float16.
    openvino.save_model(model, path, compress_to_fp16=False)
