"""A ``.keras`` file of the model that `AlexNet` builds."""

from __future__ import annotations

from pathlib import Path

import keras

from tf_alexnet.export.source import Source
from tf_alexnet.model import AlexNet
from tf_alexnet.weights import WeightArrays

USAGE = """\
```python
import tf_alexnet as ta  # for its custom layers

model = ta.features(ta.load_model("alexnet.keras"), {blobs})
found = model.predict(x)  # a dict
```
"""

_ENDS = {"pool5": {"include_top": False}, "fc7": {"feature_extract": True}}


def write(source: Source, path: Path) -> None:
    """Write the model."""
    cut_model(source.arrays, source.table.layers[-1].name).save(path)


def cut_model(arrays: WeightArrays, last: str) -> keras.Model:
    """The network up to `last` (prob, fc7 or pool5) as a Keras model."""
    return AlexNet(arrays, **_ENDS.get(last, {}))
