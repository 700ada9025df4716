"""Augmentation: what a training picture goes through before the network sees it.

- ``none``: the preset's own pipeline, the same picture in every epoch.
- ``light``: a random crop of the network's size out of the picture at 256x256, and a mirror, as
  Caffe's ``train_val.prototxt`` has it. For the preset ``compact``, as in the recipe it is
  known by: a random part of the photo (0.08 to all of its area), resized, and a mirror.
- ``paper``: crop and mirror as in ``light`` of Caffe, then colour noise along the principal
  components of the training photos (Krizhevsky et al. 2012, section 4.1).

Every random number is a function of seed, epoch and photo: a training that is resumed sees the
pictures that an unbroken one would have seen, in whatever order and by whatever thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from tf_alexnet.errors import PresetError, UsageError
from tf_alexnet.images.pipeline import centre_offset, resize_by
from tf_alexnet.images.presets import (
    MEAN_IMAGE,
    OWN_MEAN,
    PRESETS,
    Preset,
    preset_named,
    recorded_name,
)
from tf_alexnet.images.tf_ops import normalised

AUGMENTATIONS = ("none", "light", "paper")
SIDE = 256  # what crops are taken from
SIGMA = 0.1
DRAWS = 6  # numbers a photo: top, left, mirror; three of colour


@keras.saving.register_keras_serializable(package="tf_alexnet")
class CropAndMirror(keras.layers.Layer):
    """A crop of each picture, half of them mirrored.

    Parameters
    ----------
    size : int
        Side of the crop.
    seed : int, optional
        For calls that bring no draws.
    """

    def __init__(self, size: int, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.size, self.seed = size, seed
        self._generator = keras.random.SeedGenerator(seed)

    def call(
        self, pictures: tf.Tensor, draws: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        """Crop (N, H, W, C), any dtype, to (N, size, size, C).

        Parameters
        ----------
        pictures : tensor
            H and W at least `size`.
        draws : tensor of float32, (N, 3), optional
            In [0, 1): the top edge is floor(draw * (H - size + 1)), the left one alike; below 0.5
            the third mirrors. Without them they are drawn in training, and otherwise the centre is
            taken as it is.
        training : bool
            See `draws`.
        """
        shape = tf.shape(pictures)
        height, width = shape[1] - self.size, shape[2] - self.size
        if draws is None and not training:
            count = tf.ones(shape[0], tf.int32)
            top, left = count * tf.cast(tf.round(height / 2), tf.int32), count
            left, mirror = left * tf.cast(tf.round(width / 2), tf.int32), count < 0
        else:
            if draws is None:
                draws = keras.random.uniform((shape[0], 3), seed=self._generator)
            top, left = _places(draws[:, 0], height), _places(draws[:, 1], width)
            mirror = draws[:, 2] < 0.5
        steps = tf.range(self.size)
        rows = top[:, None] + steps
        columns = left[:, None] + tf.where(mirror[:, None], self.size - 1 - steps, steps)
        lines = tf.gather(pictures, rows, axis=1, batch_dims=1)
        crops = tf.gather(lines, columns[:, None, :] + tf.zeros_like(rows)[..., None], batch_dims=2)
        return tf.ensure_shape(crops, (None, self.size, self.size, pictures.shape[3]))

    def compute_output_shape(self, input_shape):
        """(N, size, size, C)."""
        return (input_shape[0], self.size, self.size, input_shape[3])

    def get_config(self) -> dict:
        """Constructor arguments, for saving."""
        return {**super().get_config(), "size": self.size, "seed": self.seed}


def _places(draw: tf.Tensor, margin: tf.Tensor) -> tf.Tensor:
    """0 .. margin, each as likely; rounding of the product must not reach beyond."""
    place = tf.cast(draw * tf.cast(margin + 1, draw.dtype), tf.int32)
    return tf.minimum(place, margin)


@keras.saving.register_keras_serializable(package="tf_alexnet")
class ColourNoise(keras.layers.Layer):
    """The same amount of colour added to every pixel of a picture, another to each picture.

    What is added is p1 a1 l1 + p2 a2 l2 + p3 a3 l3, where p and l are eigenvectors and eigenvalues
    of the RGB covariance of the training pixels, and a are drawn from N(0, sigma) once a picture
    (Krizhevsky et al. 2012, section 4.1). The paper does not say what range its pixels have; with
    0..255 the noise would be many times the picture, so l are those of pixels in 0..1, and
    the sum is brought to the range of the pictures.

    Parameters
    ----------
    eigenvalues : sequence of 3 floats
        Of the covariance of RGB pixels in 0..1.
    eigenvectors : sequence of 3 sequences of 3 floats
        ``eigenvectors[c][k]``: channel c of component k.
    sigma : float
        Standard deviation of the factors.
    scale : float
        Range of the pictures: 255, or 1.
    seed : int, optional
        For calls that bring no draws.
    """

    def __init__(
        self, eigenvalues, eigenvectors, sigma: float = SIGMA, scale=255.0, seed=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.eigenvalues = [float(x) for x in eigenvalues]
        self.eigenvectors = [[float(x) for x in row] for row in eigenvectors]
        self.sigma, self.scale, self.seed = sigma, scale, seed
        self._generator = keras.random.SeedGenerator(seed)

    def call(
        self, pictures: tf.Tensor, draws: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        """Add colour to (N, H, W, 3) RGB; float32, not clipped.

        Parameters
        ----------
        pictures : tensor
            RGB in 0..scale.
        draws : tensor of float32, (N, 3), optional
            From N(0, 1), a component each. Without them they are drawn in training, and otherwise
            nothing is added.
        training : bool
            See `draws`.
        """
        pictures = tf.cast(pictures, tf.float32)
        if draws is None and not training:
            return pictures
        if draws is None:
            draws = keras.random.normal((tf.shape(pictures)[0], 3), seed=self._generator)
        factors = self.sigma * draws * tf.constant(self.eigenvalues, tf.float32)
        shift = tf.matmul(factors, tf.constant(self.eigenvectors, tf.float32), transpose_b=True)
        return pictures + self.scale * shift[:, None, None, :]

    def compute_output_shape(self, input_shape):
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict:
        """Constructor arguments, for saving."""
        names = ("eigenvalues", "eigenvectors", "sigma", "scale", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def components(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (3,), largest first, and eigenvectors (3, 3), in columns, of a covariance.

    The sign of a vector is open; here its largest entry is positive, so that all machines agree.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(axis=0), range(3)]
    return values, vectors * np.sign(largest)


def generator_of(seed: int, epoch: int, photo: int) -> np.random.Generator:
    """The source of all random numbers for one photo in one epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, (epoch << 40) | photo]))


def check_augmentation(augment: str, preset: str | Preset) -> Preset:
    """The preset's record, if it can be trained with and there is such an augmentation.

    Raises
    ------
    UsageError
        If there is no such augmentation.
    PresetError
        If there is no such preset, or its pictures depend on more than the photo.
    """
    if augment not in AUGMENTATIONS:
        raise UsageError(
            f"augmentation {augment!r}",
            "there is no such augmentation",
            f"Known are: {', '.join(AUGMENTATIONS)}.",
        )
    record = preset_named(recorded_name(preset))
    if not _fixed(record):
        fit = ", ".join(name for name, p in PRESETS.items() if _fixed(p))
        raise PresetError(
            f"training with preset {record.name!r}",
            "it has no size, or a mean that is not the same for all photos",
            f"Presets to train with are: {fit}.",
        )
    return record


def _fixed(preset: Preset) -> bool:
    """Whether its pictures have one size, and depend on nothing but the photo's pixels."""
    return preset.size is not None and preset.mean not in (MEAN_IMAGE, OWN_MEAN)


def _has_recipe(augment: str, preset: Preset) -> bool:
    return augment == "light" and preset.name == "compact"


def training_picture(
    rgb: np.ndarray, augment: str, preset: Preset, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The part of ``light`` and ``paper`` that depends on a photo's own size.

    Parameters
    ----------
    rgb : ndarray of uint8, (H, W, 3)
        A photo.
    augment : {"light", "paper"}
        See the module.
    preset : Preset
        Whose size and way to resize are used.
    generator : numpy.random.Generator
        From `generator_of`.

    Returns
    -------
    picture : ndarray of uint8, (S, S, 3)
        256x256, or of the network's size where the crop was already taken.
    draws : ndarray of float32, (6,)
        For `augmentation`.
    """
    draws = np.concatenate([generator.random(3), generator.standard_normal(DRAWS - 3)])
    # float32 may round up to 1, which the draws must stay below.
    draws[:3] = np.minimum(draws[:3].astype(np.float32), np.nextafter(np.float32(1), 0))
    if _has_recipe(augment, preset):
        top, left, height, width = part_of(*rgb.shape[:2], generator)
        part = rgb[top : top + height, left : left + width]
        return resize_by(part, preset), draws.astype(np.float32)
    resized = resize_by(rgb, replace(preset, resized=SIDE))
    top, left = (centre_offset(side, SIDE) for side in resized.shape[:2])
    return resized[top : top + SIDE, left : left + SIDE], draws.astype(np.float32)


def part_of(height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part: 0.08 to 1 of the area, 3:4 to 4:3.

    torchvision's ``RandomResizedCrop.get_params``: ten tries, then the largest centre that has a
    permitted shape.
    """
    for _ in range(10):
        area = height * width * generator.uniform(0.08, 1)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(generator.integers(height - h + 1))
            return top, int(generator.integers(width - w + 1)), h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def augmentation(
    augment: str, preset: Preset, covariance: np.ndarray | None = None
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The rest of ``light`` and ``paper``, for batches, as TensorFlow ops.

    Parameters
    ----------
    augment : {"light", "paper"}
        See the module.
    preset : Preset
        The network's.
    covariance : ndarray (3, 3), optional
        Of RGB pixels in 0..1; needed by ``paper``.

    Returns
    -------
    callable
        From pictures and draws of `training_picture` to (N, size, size, 3) float32 as the preset
        has it.
    """
    crop = CropAndMirror(preset.size, name="crop")
    noise = ColourNoise(*components(covariance), name="noise") if augment == "paper" else None

    def apply(pictures: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        crops = crop(pictures, draws[:, :3])
        if noise is not None:
            crops = noise(crops, draws[:, 3:])
        return normalised(crops, None, preset)

    return apply
