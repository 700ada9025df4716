"""Photos: find them, decode them to uint8 RGB, and preprocess them for a network.

`tf_alexnet.images.tf_ops` implements the same pipeline as TensorFlow ops, and
`tf_alexnet.images.preprocessing` as a Keras layer; neither is imported here.
"""

from tf_alexnet.images.decode import MAX_PIXELS, load_image
from tf_alexnet.images.discovery import find_images
from tf_alexnet.images.mean_image import read_mean_image, resolve
from tf_alexnet.images.pipeline import preprocess_input
from tf_alexnet.images.presets import (
    PRESETS,
    Preset,
    as_preset,
    preset_mismatch,
    preset_named,
    recorded_name,
    vary,
)

__all__ = [
    "MAX_PIXELS",
    "PRESETS",
    "Preset",
    "as_preset",
    "find_images",
    "load_image",
    "preprocess_input",
    "preset_mismatch",
    "preset_named",
    "read_mean_image",
    "recorded_name",
    "resolve",
    "vary",
]
