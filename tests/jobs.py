"""Extractions without TensorFlow: everything but the network is the real thing.

`Network` stands in for `FeatureExtractor`; it takes no time and its rows tell photos apart. Run as
a program, this is `tf-alexnet` with that network: `python jobs.py SECONDS_A_BATCH extract ...`.
"""

import contextlib
import os
import sys
import time
import types
from pathlib import Path

import numpy as np
from PIL import Image

import tf_alexnet as ta
from tf_alexnet.errors import ImageError
from tf_alexnet.extraction.decoder import digest_of, stat_text
from tf_alexnet.extraction.reader import Batch, Failure, Photo
from tf_alexnet.images.decode import read_file


class Network:
    """What `extract_features` asks of a `FeatureExtractor`."""

    architecture, preset, trained_as = "torchvision", "torchvision", "torchvision"
    weights_digest, weights_source, untrained = "sha256:0", "network.npy", False
    mean_image, engine, on_gpu = None, "numpy", False
    seconds = 0.0
    log = os.environ.get("JOBS_LOG")  # a file that gets a byte a picture

    def __init__(self, weights, layers, **_):
        self.layers = tuple(layers)

    def __call__(self, batch):
        time.sleep(self.seconds)
        if self.log:
            with open(self.log, "ab") as file:
                file.write(bytes(len(batch)))
        flat = batch.reshape(len(batch), -1)[:, ::97]
        rows = np.concatenate([flat[:, :16] - flat.mean(1)[:, None], flat[:, -16:]], axis=1)
        rows = rows.astype(np.float32)
        blobs = {"fc7": rows, "conv5": rows[:, :24].reshape(-1, 2, 2, 6)}
        return {name: blobs[name] for name in self.layers}


class Reader:
    """`PhotoReader` without processes."""

    def __init__(self, preset, crops="center", **_):
        self._preset, self._crops = preset, crops

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass

    def batches(self, paths, batch_size):
        for start in range(0, len(paths), batch_size):
            good, images, failures = [], [], []
            for path in paths[start : start + batch_size]:
                state = None, None
                try:
                    data, found = read_file(path)
                    state = found and stat_text(found, time.time()), digest_of(data)
                    images.append(ta.load_image(data))
                    good.append(Photo(path, *state))
                except ImageError as error:
                    failures.append(Failure(path, error.code, error.found, *state))
            x = ta.preprocess_input(images, self._preset, crops=self._crops) if good else None
            yield Batch(good, x, failures)


def simplify(patch):
    """Photos are decoded in this process, and RUNs have no pictures: for tests of other things."""
    patch.setattr("tf_alexnet.training.report.draw", lambda *arguments: [])
    for module in ("extraction.worker", "extraction.predictions", "training.data"):
        patch.setattr(f"tf_alexnet.{module}.PhotoReader", Reader)


def photos(folder, count, start=0):
    """Small photos, each of a colour of its own."""
    folder.mkdir(exist_ok=True)
    paths = []
    for i in range(start, start + count):
        paths.append(folder / f"{i:04d}.png")
        Image.new("RGB", (4, 4), (i % 251, 7 * i % 256, 13 * i % 256)).save(paths[-1])
    return [str(path) for path in paths]


def pretend():
    """From now on this process has no TensorFlow, and `Network` for its networks."""
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.__version__ = "0"
    tensorflow.config = types.SimpleNamespace(list_physical_devices=lambda _: [])
    extractor = types.ModuleType("tf_alexnet.extraction.extractor")
    extractor.FeatureExtractor = Network
    sys.modules.update({"tensorflow": tensorflow, extractor.__name__: extractor})


def worker(seconds):
    """A `Worker` with that network, also in a process of Ray's, which knows nothing of it."""

    def make(*arguments, **settings):
        pretend()
        Network.seconds = seconds
        from tf_alexnet.extraction.worker import Worker

        return Worker(*arguments, **settings)

    return make


def processes():
    """Ids and command lines of other processes that have the `JOBS_LOG` of this one."""
    mine = f"JOBS_LOG={os.environ['JOBS_LOG']}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            if mine in environment and int(folder.name) != os.getpid():
                yield int(folder.name), (folder / "cmdline").read_bytes()


def main():
    """`tf-alexnet` whose network takes so many seconds a batch."""
    pretend()
    Network.seconds = float(sys.argv.pop(1))
    from tf_alexnet.cli import console
    from tf_alexnet.cli.main import main
    from tf_alexnet.extraction import job

    console.find_weights = str
    if "--cluster" in sys.argv:
        job.Worker = worker(Network.seconds)
    main()


if __name__ == "__main__":
    main()
