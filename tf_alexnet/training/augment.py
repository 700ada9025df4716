"""Augmentation of training photos.

- ``none``: the preset's own pipeline.
- ``light``: a random crop of the network's size from 256x256 pixels, randomly mirrored, as in
  Caffe's ``train_val.prototxt``. For the preset ``compact``, as in its recipe: a random rectangle
  of 0.08 to 1 of the photo's area, resized, randomly mirrored.
- ``paper``: crop and mirror as in ``light`` of Caffe, then colour noise along the principal
  components of the training photos (Krizhevsky et al. 2012, section 4.1).

Every random number is a function of seed, epoch and photo, so a resumed training sees the same
pictures as an uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tf_alexnet.errors import PresetError, UsageError
from tf_alexnet.images.pipeline import centre_offset, normalised, preprocess_input, resize_by
from tf_alexnet.images.presets import (
    MEAN_IMAGE,
    OWN_MEAN,
    PRESETS,
    Preset,
    preset_named,
    recorded_name,
)

AUGMENTATIONS = ("none", "light", "paper")
SIDE = 256  # crops are taken from
SIGMA = 0.1  # of the paper's colour noise


def check_augmentation(augment: str, preset: str | Preset) -> Preset:
    """Check an augmentation and a preset for training; return the preset.

    Raises
    ------
    UsageError
        If there is no such augmentation.
    PresetError
        If there is no such preset, or it has no fixed size or mean.
    """
    if augment not in AUGMENTATIONS:
        raise UsageError(
            f"augmentation {augment!r}", "unknown", f"Use one of {', '.join(AUGMENTATIONS)}."
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
    """Whether it has one size, and a mean that is the same for all photos."""
    return preset.size is not None and preset.mean not in (MEAN_IMAGE, OWN_MEAN)


def components(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (3,), largest first, and eigenvectors (3, 3), in columns, of a covariance.

    The largest entry of an eigenvector is made positive, so that all machines agree on its sign.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(axis=0), range(3)]
    return values, vectors * np.sign(largest)


def augmented(
    rgb: np.ndarray,
    augment: str,
    preset: Preset,
    generator: np.random.Generator,
    covariance: np.ndarray | None = None,
) -> np.ndarray:
    """Augment and preprocess a photo.

    Parameters
    ----------
    rgb : ndarray of uint8, (H, W, 3)
        A photo.
    augment : {"none", "light", "paper"}
        See the module.
    preset : Preset
        The network's.
    generator : numpy.random.Generator
        Random numbers for this photo in this epoch.
    covariance : ndarray of float64, (3, 3)
        ``paper``: covariance of the training pixels, RGB in 0..1.

    Returns
    -------
    ndarray of float32, (size, size, 3)
        In the preset's channel order and range.
    """
    if augment == "none":
        return preprocess_input([rgb], preset)[0]
    if augment == "light" and preset.name == "compact":
        top, left, height, width = part_of(*rgb.shape[:2], generator)
        crop = resize_by(rgb[top : top + height, left : left + width], preset)
    else:
        resized = resize_by(rgb, replace(preset, resized=SIDE))
        places = generator.integers(SIDE - preset.size + 1, size=2)
        top, left = (
            centre_offset(side, SIDE) + int(place)
            for side, place in zip(resized.shape[:2], places, strict=True)
        )
        crop = resized[top : top + preset.size, left : left + preset.size]
    if generator.random() < 0.5:
        crop = crop[:, ::-1]
    if augment == "paper":
        crop = crop + _colour(covariance, generator)
    return normalised(np.ascontiguousarray(crop), None, preset)


def _colour(covariance: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Random RGB offset, float32 (3,), for all pixels of a picture in 0..255.

    [p1, p2, p3] [a1 l1, a2 l2, a3 l3]^T, where p and l are eigenvectors and eigenvalues of the
    RGB covariance of the training pixels, and a are from N(0, 0.1), drawn once per picture
    (Krizhevsky et al. 2012, section 4.1). The paper does not give the range of its pixels. With
    0..255 the noise would be many times the picture, so l are those of pixels in 0..1, and the sum
    is scaled to 0..255.
    """
    values, vectors = components(covariance)
    factors = generator.normal(0, SIGMA, 3)
    return (255 * vectors @ (factors * values)).astype(np.float32)


def part_of(height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random rectangle: 0.08 to 1 of the area, 3:4 to 4:3.

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
