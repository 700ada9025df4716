"""`Preprocessing`: a preset as a Keras layer."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_alexnet.errors import PresetError
from tf_alexnet.images.mean_image import Mean, resolve
from tf_alexnet.images.presets import Preset, recorded_name
from tf_alexnet.images.tf_ops import apply_preset, check_input


@keras.saving.register_keras_serializable(package="tf_alexnet")
class Preprocessing(keras.layers.Layer):
    """Preprocess photos for a network, in a model or a `tf.data` pipeline.

    Resizing is done in integers: for uint8 photos, the output equals that of `preprocess_input` up
    to float32 rounding.

    Parameters
    ----------
    preset, mean_image
        As in `preprocess_input`. A mean image is saved with the layer.
    **kwargs
        Arguments of `keras.layers.Layer`.

    Attributes
    ----------
    preset : Preset
        The preset in use.
    mean_image : ndarray of float32 (S, S, 3), or None
        In the preset's channel order.

    Notes
    -----
    Input: RGB photos (N, H, W, 3) or (H, W, 3) in 0..255, of uint8 or another dtype, checked and
    rounded like symbolic tensors in `preprocess_input`. Output: float32.

    Examples
    --------
    >>> base = ta.AlexNet("torchvision-convs", include_top=False, pooling="avg")
    >>> model = keras.Sequential([ta.Preprocessing(base), base, keras.layers.Dense(2)])
    >>> photos = photos.map(ta.Preprocessing("caffe"))  # a tf.data.Dataset
    """

    def __init__(self, preset: Any = "caffe", mean_image: Mean = None, **kwargs: Any):
        kwargs.setdefault("dtype", "float32")  # half precision is too coarse for 0..255
        super().__init__(**kwargs)
        self.preset, self.mean_image = resolve(preset, mean_image)
        self.supports_jit = False  # XLA needs static sizes

    def __call__(self, inputs: Any, *args, **kwargs) -> Any:
        """Check the inputs before Keras, which would wrap an error from `call` in its own."""
        if not self.preset.is_raw and hasattr(inputs, "dtype"):
            check_input(inputs.shape, inputs.dtype)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """(N, size, size, 3) or (size, size, 3) float32."""
        return apply_preset(inputs, self.preset, self.mean_image)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape, with the preset's size if it has one."""
        size = self.preset.size
        return (*input_shape[:-3], size, size, 3) if size else tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        try:
            preset = recorded_name(self.preset)
        except PresetError:  # a custom preset
            preset = dataclasses.asdict(self.preset)
        image = self.mean_image
        if image is not None:
            image = [*image.shape[:2], base64.b64encode(image.astype("<f4").tobytes()).decode()]
        return {**super().get_config(), "preset": preset, "mean_image": image}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Preprocessing:
        """Rebuild from `get_config`."""
        config = dict(config)
        if isinstance(config["preset"], dict):
            config["preset"] = Preset(**config["preset"])
        if config["mean_image"] is not None:
            height, width, text = config["mean_image"]
            values = np.frombuffer(base64.b64decode(text), "<f4")
            config["mean_image"] = values.reshape(height, width, 3)
        return cls(**config)
