"""Custom Keras layers, and `forward`, a faster forward pass for extraction and exports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from tf_alexnet.architectures import LRN, PREACT, Conv, Dense, Dropout, Layer, MaxPool
from tf_alexnet.errors import InputError, UsageError
from tf_alexnet.lazy import other_backend

if keras.backend.backend() != "tensorflow":
    raise other_backend(keras.backend.backend())


@keras.saving.register_keras_serializable(package="tf_alexnet")
class GroupedConv2D(keras.layers.Conv2D):
    """Grouped convolution, as in the two-GPU network of 2012.

    Input channels and filters are split into `groups` equal groups; each group of filters sees only
    its group of channels. Takes the arguments of `keras.layers.Conv2D`; the data format is always
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
        """The convolution without bias and activation."""
        if kernel.shape[-1] % self.groups:
            raise InputError(
                f"GroupedConv2D {self.name}",
                f"{kernel.shape[-1]} filters can't be split into {self.groups} groups",
                "Use a number of filters that is divisible by groups.",
            )
        channels = kernel.shape[-2] * self.groups
        if inputs.shape[-1] is None:  # TensorFlow would accept any multiple of the channels
            inputs = tf.ensure_shape(inputs, [*inputs.shape[:-1], channels])
        elif inputs.shape[-1] != channels:
            raise InputError(
                f"GroupedConv2D {self.name}",
                f"the input has {inputs.shape[-1]} channels, the kernel takes {channels}",
                "Pass as many channels as the layer was built for.",
            )
        parts = zip(
            tf.split(inputs, self.groups, axis=-1),
            tf.split(kernel, self.groups, axis=-1),
            strict=True,
        )
        convolve = {"strides": self.strides, "padding": self.padding.upper()}
        convolve["dilations"] = self.dilation_rate
        products = [tf.nn.conv2d(x, part, **convolve) for x, part in parts]
        return products[0] if self.groups == 1 else tf.concat(products, axis=-1)


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
                "Give an odd number, as in Caffe.",
            )
        self.local_size, self.alpha, self.beta, self.k = local_size, alpha, beta, k

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalise (N, H, W, C); same shape and dtype."""
        # float32 under any dtype policy: bfloat16 has no CPU kernel, and squares overflow float16.
        x = tf.cast(inputs, tf.float32)
        normalized = _normalize_stock(x, self.local_size, self.alpha, self.beta, self.k)
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
    """The output of another layer before its activation, computed from the same variables.

    Parameters
    ----------
    layer : keras.layers.Conv2D or keras.layers.Dense
        A built layer. It is shared, not copied.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Kernel times `inputs` plus bias."""
        if getattr(self.layer, "quantization_mode", None):
            # Quantized arithmetic is implemented only in the layer's own call.
            activation, self.layer.activation = self.layer.activation, None
            try:
                return self.layer(inputs)
            finally:
                self.layer.activation = activation
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


def _normalize_stock(
    x: tf.Tensor, local_size: int, alpha: float, beta: float, k: float
) -> tf.Tensor:
    """`LocalResponseNormalization` by TensorFlow's own op."""
    # TensorFlow sums where Caffe takes the mean.
    return tf.nn.local_response_normalization(x, local_size // 2, k, alpha / local_size, beta)


@functools.cache
def groups_are_native() -> bool:
    """Whether convolution, bias and ReLU run with groups on this machine; it takes oneDNN."""

    @tf.function(autograph=False)
    def convolve(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))

    try:
        with tf.init_scope():  # run eagerly, even while another graph is being traced
            convolve(tf.zeros((1, 5, 5, 4)), tf.zeros((3, 3, 2, 4)), tf.zeros(4))
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError):
        return False
    return True


@tf.function(jit_compile=True, autograph=False)
def normalize(x: tf.Tensor, local_size: int, alpha: float, beta: float, k: float) -> tf.Tensor:
    """`LocalResponseNormalization` for XLA, which fuses it into one loop."""
    half = local_size // 2
    squares = tf.pad(x * x, [[0, 0], [0, 0], [0, 0], [half, half]])
    channels = x.shape[-1]
    total = tf.add_n([squares[..., i : i + channels] for i in range(local_size)])
    scale = k + alpha / local_size * total
    if beta == 0.75:  # scale^-3/4 from square roots, which are cheaper than a power
        root = tf.math.rsqrt(scale)
        return x * root * tf.sqrt(root)
    return x * tf.pow(scale, -beta)


def forward(
    steps: Sequence[Layer],
    variables: Mapping[str, tuple],
    x: tf.Tensor,
    wanted: Sequence[str],
    *,
    relu: Callable[[tf.Tensor], tf.Tensor] = tf.nn.relu,
    portable: bool = False,
) -> dict[str, tf.Tensor]:
    """Compute blobs of a network from its table. Same as the Keras model, but faster.

    Parameters
    ----------
    steps : sequence of Layer
        Consecutive layers of an `Architecture`. Layers after the last of `wanted` are skipped.
    variables : mapping of str to (kernel, bias)
        Layer name -> float32 variables, tensors or arrays.
    x : tensor of float32
        Input of the first step: (N, H, W, C), or (N, units) for dense layers.
    wanted : sequence of str
        Names of blobs, or ``<name>_preact`` for values before the ReLU; ``data`` is `x`.
    relu : callable
        Replaces the ReLU, for example with another gradient for guided backpropagation.
    portable : bool
        Use only ops that every TensorFlow has: neither XLA nor oneDNN's grouped kernels, which
        the machine that serves an exported graph may lack.

    Returns
    -------
    dict of str to tensor of float32
    """
    blobs = {"data": x}
    for layer in steps:
        if set(wanted) <= blobs.keys():
            break
        if isinstance(layer, Conv | Dense):
            kernel, bias = map(tf.convert_to_tensor, variables[layer.name])
            if isinstance(layer, Conv):
                x = _convolved(layer, x, kernel, portable)
            else:
                x = tf.matmul(tf.reshape(x, (-1, kernel.shape[0])), kernel)
            x = blobs[layer.name + PREACT] = tf.nn.bias_add(x, bias)
            x = relu(x) if getattr(layer, "relu", True) else x
        elif isinstance(layer, LRN):
            kind = _normalize_stock if portable else normalize
            x = kind(x, layer.local_size, layer.alpha, layer.beta, layer.k)
        elif isinstance(layer, MaxPool):
            x = tf.nn.max_pool2d(x, layer.kernel, layer.stride, "VALID")
        elif not isinstance(layer, Dropout):
            x = tf.nn.softmax(x)
        blobs[layer.name] = x
    return {name: blobs[name] for name in wanted}


def _convolved(layer: Conv, x: tf.Tensor, kernel: tf.Tensor, portable: bool) -> tf.Tensor:
    padding = "VALID"
    # Explicit padding in tf.nn.conv2d has slow gradients: oneDNN does not support it.
    if layer.pad and layer.stride == 1 and 2 * layer.pad == layer.kernel - 1:
        padding = "SAME"
    elif layer.pad:
        x = tf.pad(x, [[0, 0], [layer.pad, layer.pad], [layer.pad, layer.pad], [0, 0]])
    if layer.groups == 1 or (not portable and groups_are_native()):
        return tf.nn.conv2d(x, kernel, layer.stride, padding)
    pairs = zip(tf.split(x, layer.groups, -1), tf.split(kernel, layer.groups, -1), strict=True)
    return tf.concat([tf.nn.conv2d(a, b, layer.stride, padding) for a, b in pairs], -1)
