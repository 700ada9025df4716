"""Photos with a planted signal: the direction of their stripes is their class."""

import numpy as np
from PIL import Image

CLASSES = ("level", "rising", "upright")


def photo(kind, seed, size=(96, 80)):
    """Stripes in one of three directions, of random width, phase and colours, with noise."""
    rng = np.random.default_rng([kind, seed])
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    angle = (np.pi / 2, np.pi / 4, 0)[kind] + rng.normal(0, 0.06)
    wave = np.sin(
        (x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(0.25, 0.5) + 6 * rng.random()
    )
    ends = rng.uniform(30, 225, (2, 3))
    mix = (wave[..., None] + 1) / 2
    pixels = ends[0] * mix + ends[1] * (1 - mix) + rng.normal(0, 12, (*wave.shape, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def plant(folder, train=12, val=4, sizes=((96, 80),), classes=CLASSES):
    """``train/`` and ``val/`` with so many photos a class."""
    for part, count, first in (("train", train, 0), ("val", val, 1000)):
        for kind, name in enumerate(classes):
            place = folder / part / name
            place.mkdir(parents=True)
            for i in range(count):
                size = sizes[i % len(sizes)]
                photo(kind, first + i, size).save(place / f"{i:03d}.png")
    return folder
