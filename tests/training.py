"""Small trainings: generated photos of a few classes, and the command as a process."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from tf_alexnet.architectures import COMPACT, Dense

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


def class_folders(folder, count=6, classes=3, size=(48, 40)):
    """`count` noisy photos of each of some colours."""
    generator = np.random.default_rng(0)
    for name in list(COLOURS)[:classes]:
        place = Path(folder, name)
        place.mkdir(parents=True)
        for number in range(count):
            noise = generator.normal(0, 40, (*size, 3))
            pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return str(folder)


def narrow(table):
    """A network with 64 units in fc6 and fc7, which take little time and memory."""
    layers = (
        replace(x, units=64) if isinstance(x, Dense) and x.name != "fc8" else x
        for x in table.layers
    )
    return replace(table, layers=tuple(layers))


def main():
    """Train as the arguments say: `python training.py DATA RUN SETTINGS`.

    Settings are those of `train_network`, as Python writes a dict. `devices` are made first, and
    `compact` is narrow.
    """
    import tensorflow as tf

    from tf_alexnet.architectures import ARCHITECTURES
    from tf_alexnet.errors import AlexNetError
    from tf_alexnet.training.finetune import train_network

    ARCHITECTURES["compact"] = narrow(COMPACT)
    data, run, settings = sys.argv[1], sys.argv[2], eval(sys.argv[3])
    if devices := settings.get("devices"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        several = [tf.config.LogicalDeviceConfiguration()] * len(devices)
        tf.config.set_logical_device_configuration(cpu, several)
    try:
        train_network(data, run, progress=lambda *x: print(*x, flush=True), **settings)
    except AlexNetError as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
