"""Photos: find them, decode them to uint8 RGB, and make a network's input of them.

`tf_alexnet.images.tf_ops` holds the same pipeline as TensorFlow ops; it is not imported here.
"""

from tf_alexnet.images.decode import MAX_PIXELS, load_image
from tf_alexnet.images.discovery import find_images
from tf_alexnet.images.presets import (
    PRESETS,
    Preset,
    load_mean_image,
    preprocess_input,
    preset_named,
    read_mean_image,
)

__all__ = [
    "MAX_PIXELS",
    "PRESETS",
    "Preset",
    "find_images",
    "load_image",
    "load_mean_image",
    "preprocess_input",
    "preset_named",
    "read_mean_image",
]
