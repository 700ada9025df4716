"""Small trainings: generated photos of a few classes, and the command as a process."""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

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


def main():
    """Train as the arguments say: `python training.py DATA RUN key=value ...`."""
    import tensorflow as tf

    from tf_alexnet.errors import AlexNetError
    from tf_alexnet.training.finetune import train_network

    data, run, *pairs = sys.argv[1:]
    settings = {key: eval(value) for key, value in (pair.split("=", 1) for pair in pairs)}
    if settings.pop("two_devices", False):
        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        settings["devices"] = ["/CPU:0", "/CPU:1"]
    try:
        train_network(data, run, progress=lambda *x: print(*x, flush=True), **settings)
    except AlexNetError as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
