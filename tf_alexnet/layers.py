"""The two layers AlexNet needs that Keras has no equal of."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_alexnet.errors import UsageError


@keras.saving.register_keras_serializable(package="tf_alexnet")
class GroupedConv2D(keras.layers.Conv2D):
    """Convolution in groups, as the two-GPU network of 2012 was trained.

    Input channels and filters are cut into `groups` equal parts; each part of the filters sees only
    its part of the input. Takes the arguments of `keras.layers.Conv2D`; the data format is
    channels-last. Kernel: (height, width, channels in / groups, filters); bias: (filters,).
    """

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("data_format", "channels_last")
        super().__init__(*args, **kwargs)
        if self.data_format != "channels_last":
            raise UsageError(
                f"GroupedConv2D {self.name}",
                f"data_format is {self.data_format!r}",
                "Use 'channels_last'.",
            )

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The convolution itself, without bias and activation."""
        if self.groups == 1:
            return self._convolve(inputs, kernel)
        parts = zip(
            tf.split(inputs, self.groups, axis=-1),
            tf.split(kernel, self.groups, axis=-1),
            strict=True,
        )
        return tf.concat([self._convolve(x, k) for x, k in parts], axis=-1)

    def _convolve(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding.upper(),
            dilations=self.dilation_rate,
        )


@keras.saving.register_keras_serializable(package="tf_alexnet")
class LocalResponseNormalization(keras.layers.Layer):
    """Local response normalisation across channels, with Caffe's parameters.

    y[c] = x[c] / (k + alpha / local_size * sum of x[c']^2 over the local_size nearest c')^beta
    (Caffe's ``lrn_layer.cpp``). The defaults are those of bvlc_alexnet and CaffeNet.

    Parameters
    ----------
    local_size : int
        Width of the window over channels, odd.
    alpha : float
        As in the prototxt; Caffe divides it by `local_size`.
    beta : float
        Exponent.
    k : float
        Constant; 1 in Caffe, 2 in the paper of 2012.
    """

    def __init__(self, local_size=5, alpha=1e-4, beta=0.75, k=1.0, **kwargs):
        super().__init__(**kwargs)
        if local_size < 1 or local_size % 2 == 0:
            raise UsageError(
                f"LocalResponseNormalization {self.name}",
                f"local_size is {local_size}",
                "Give an odd number, as Caffe asks for.",
            )
        self.local_size, self.alpha, self.beta, self.k = local_size, alpha, beta, k

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalise (N, H, W, C); same shape and dtype."""
        # float32 whatever the policy: bfloat16 has no CPU kernel, and squares overflow float16.
        normalized = tf.nn.local_response_normalization(
            tf.cast(inputs, tf.float32),
            depth_radius=self.local_size // 2,
            bias=self.k,
            alpha=self.alpha / self.local_size,  # TensorFlow sums where Caffe takes the mean
            beta=self.beta,
        )
        return tf.cast(normalized, inputs.dtype)

    def compute_output_shape(self, input_shape):
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict:
        """Constructor arguments, for saving."""
        own = {name: getattr(self, name) for name in ("local_size", "alpha", "beta", "k")}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="tf_alexnet")
class Preactivation(keras.layers.Layer):
    """What another layer computes before its activation, from the same variables.

    Parameters
    ----------
    layer : GroupedConv2D or keras.layers.Dense
        A built layer, shared: nothing is copied.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Kernel times `inputs` plus bias."""
        kernel = tf.convert_to_tensor(self.layer.kernel)
        if isinstance(self.layer, keras.layers.Conv2D):
            product = self.layer.convolution_op(inputs, kernel)
        else:
            product = tf.matmul(inputs, kernel)
        return tf.nn.bias_add(product, tf.convert_to_tensor(self.layer.bias))

    def get_config(self) -> dict:
        """Constructor arguments, for saving."""
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict) -> Preactivation:
        """Rebuild from `get_config`."""
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)
