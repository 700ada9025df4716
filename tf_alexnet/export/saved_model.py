"""SavedModel: a `tf.Module` of stock operations, ready for TensorFlow Serving.

Keras's own export writes every weight twice, and would need our layers.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from tf_alexnet.architectures import preset_layer
from tf_alexnet.export.decoding import OK, decode_batch
from tf_alexnet.export.source import LABELS, Source
from tf_alexnet.images.tf_ops import apply_preset
from tf_alexnet.layers import forward
from tf_alexnet.wire import field_bytes

TOP = 5
MODEL = "alexnet"

USAGE = """\
In Python, with TensorFlow alone:

```python
import tensorflow as tf

served = tf.saved_model.load("1").signatures["serving_default"]
found = served(image_bytes=tf.constant([open("photo.jpg", "rb").read()]))
```

With TensorFlow Serving, which warms up with the request in `1/assets.extra`:

```console
$ docker run -p 8501:8501 -v "$PWD:/models/alexnet" -e MODEL_NAME=alexnet tensorflow/serving
$ curl -d '{{"instances": [{{"image_bytes": {{"b64": "'$(base64 -w0 photo.jpg)'"}}}}]}}' \\
    localhost:8501/v1/models/alexnet:predict
```

`b64` is standard base64 (`+` and `/`, no line breaks).

| signature | takes | returns |
|---|---|---|
| `serving_default` | `image_bytes`: strings (N,), contents of JPEG, PNG, GIF, BMP or WebP files | \
{served}`{features}` {shape}, `status` (N,) |
| `tensor` | `data`: float32 (N, {side}, {side}, 3), preprocessed | {returned} |

A photo that can't be decoded affects its own row only: its `status` is `empty`, `not_an_image`
(unknown format) or `damaged` instead of `ok`, its numbers are 0 and its names empty.
"""


def write(source: Source, path: Path) -> None:
    """Write the graph, its variables, the labels, and a warm-up request."""
    labels = path.parents[1] / LABELS
    module = _Network(source, labels if source.labels else None)
    signatures = {"serving_default": module.serve, "tensor": module.tensor}
    tf.saved_model.save(module, str(path.parent), signatures)
    extra = path.with_name("assets.extra")
    extra.mkdir()
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as file:
        file.write(_warm_up())


class _Network(tf.Module):
    """The weights and the two signatures."""

    def __init__(self, source: Source, labels: Path | None):
        super().__init__(name=source.table.name)
        self._source = source
        self.arrays = {
            name: [tf.Variable(x, trainable=False, name=name) for x in layer]
            for name, layer in source.arrays.layers.items()
        }
        self.labels = tf.saved_model.Asset(str(labels)) if labels else None
        side = source.table.input_size
        data = tf.TensorSpec((None, side, side, 3), tf.float32, "data")
        photos = tf.TensorSpec((None,), tf.string, "image_bytes")
        self.tensor = tf.function(self._tensor, [data], autograph=False)
        self.serve = tf.function(self._serve, [photos], autograph=False)

    def _tensor(self, data: tf.Tensor) -> dict[str, tf.Tensor]:
        source = self._source
        # `preset_of` finds the preset in this name.
        x = tf.identity(data, name=preset_layer(source.arrays.metadata["preset"]))
        return forward(source.table.layers, self.arrays, x, source.blobs, portable=True)

    def _serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        source, side = self._source, self._source.table.input_size

        def prepare(pixels: tf.Tensor) -> tf.Tensor:
            return apply_preset(pixels, source.preset, source.mean_image)

        batch, status = decode_batch(image_bytes, prepare, (side, side, 3))
        blobs, good = self._tensor(batch), status == OK
        features = blobs[source.features]
        shape = (-1, *[1] * (features.shape.rank - 1))
        found = {
            source.features: tf.where(tf.reshape(good, shape), features, 0.0),
            "status": status,
        }
        if source.labels:
            values, places = tf.math.top_k(blobs["prob"], min(TOP, len(source.labels)))
            found["probabilities"] = tf.where(good[:, None], values, 0.0)
            for name, field in (("classes", "label"), ("synsets", "synset")):
                texts = [getattr(x, field).encode(errors="surrogateescape") for x in source.labels]
                found[name] = tf.where(good[:, None], tf.gather(tf.constant(texts), places), b"")
        return found


def _warm_up() -> bytes:
    """A PredictionLog for TensorFlow Serving: one small photo to ``serving_default``.

    Field numbers are those of ``prediction_log.proto``, ``predict.proto`` and ``model.proto`` in
    tensorflow_serving/apis.
    """
    grey = tf.io.encode_jpeg(tf.fill((64, 64, 3), tf.constant(128, tf.uint8))).numpy()
    photos = tf.make_tensor_proto([grey], shape=(1,)).SerializeToString()
    name = field_bytes(1, MODEL) + field_bytes(3, "serving_default")
    inputs = field_bytes(1, "image_bytes") + field_bytes(2, photos)
    request = field_bytes(1, name) + field_bytes(2, inputs)
    return field_bytes(6, field_bytes(1, request))
