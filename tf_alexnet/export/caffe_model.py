"""Caffe model: ``.caffemodel``, ``deploy.prototxt`` and, for presets that only subtract it, a mean.

For Caffe itself and OpenCV 2 to 4; OpenCV 5 has no Caffe importer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tf_alexnet.architectures import Dense
from tf_alexnet.export.source import Source
from tf_alexnet.images.presets import OWN_MEAN
from tf_alexnet.weights import write_weights
from tf_alexnet.weights.deploy import deploy_prototxt, relu_layer
from tf_alexnet.wire import field_bytes

MEAN = "mean.binaryproto"

USAGE = """\
With OpenCV up to version 4 (version 5 has no Caffe importer):

```python
import cv2

network = cv2.dnn.readNetFromCaffe("deploy.prototxt", "alexnet.caffemodel")
network.enableWinograd(False)  # an approximation, accurate to 1e-4
network.setInput(x.transpose(0, 3, 1, 2), "data")  # channels first
{names} = network.forward({layers})
```

`forward` takes names of layers: `forward("fc7")` would return the values before the ReLU, which
Caffe computes in place.{mean}
"""


def write(source: Source, path: Path) -> None:
    """Write the model, its definition and its mean image."""
    write_weights(source.arrays, path)
    path.with_name("deploy.prototxt").write_text(deploy_prototxt(source.table))
    mean = mean_image(source)
    if mean is not None:
        path.with_name(MEAN).write_bytes(_blob(mean))


def opencv_layers(source: Source) -> dict[str, str]:
    """Blob -> name of the last layer that computes it."""
    dense = {x.name for x in source.table.layers if isinstance(x, Dense)}
    return {name: relu_layer(name) if name in dense else name for name in source.blobs}


def mean_image(source: Source) -> np.ndarray | None:
    """The mean to subtract from the resized photo: float32 (3, S, S), channels as in the preset.

    None if the preset does anything else, which Caffe's mean files can't express.
    """
    preset = source.preset
    if preset.divisor != 1 or preset.std or preset.mean == OWN_MEAN:
        return None
    if source.mean_image is not None:
        return np.ascontiguousarray(source.mean_image.transpose(2, 0, 1))
    side = preset.resized
    return np.tile(np.float32(preset.mean)[:, None, None], (1, side, side))


def _blob(image: np.ndarray) -> bytes:
    """A BlobProto with the legacy four dimensions, as in Caffe's own mean files."""
    shape = b"".join(field_bytes(i, n) for i, n in enumerate((1, *image.shape), start=1))
    return shape + field_bytes(5, image.astype("<f4").tobytes())
