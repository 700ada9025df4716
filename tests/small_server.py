"""A small network to serve, with classes: the embedded convolutions and a random classifier."""

import asyncio
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

import tf_alexnet as ta
from tf_alexnet.training import Run, RunRecord
from tf_alexnet.training.run import RECORD, WEIGHTS
from tf_alexnet.weights import LayerArrays, WeightArrays
from tf_alexnet.weights.download import find_weights

CLASSES = ("ant", "bee <b>", "cat", "dög", "eel", "fox")


def small_arrays(classes=6):
    """Weights of 10 MB: `fc8` stands on `pool5`."""
    known = ta.read_weights(find_weights("torchvision-convs"))
    kernel = np.random.default_rng(0).normal(0, 0.01, (9216, classes)).astype(np.float32)
    head = LayerArrays(kernel, np.zeros(classes, np.float32))
    return WeightArrays({**known.layers, "fc8": head}, "torchvision", "small weights")


def small_run(folder):
    """The same as a RUN."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ta.write_weights(small_arrays(), folder / WEIGHTS)
    arrays = ta.read_weights(folder / WEIGHTS)
    record = RunRecord(
        classes=CLASSES,
        architecture="torchvision",
        preset="torchvision",
        layer="pool5",
        mode="head",
        base={},
        settings={},
        split={"drawn": False, "train": 1, "val": 1, "skipped": 0},
        metrics={"val_accuracy": 0.5},
        weights_digest=arrays.digest,
    )
    (folder / RECORD).write_text(record.text(), encoding="utf-8")
    return Run.open(folder)


# The server's own process never imports TensorFlow; the one that draws heat maps does.
_PROGRAM = """
import sys
sys.modules["tensorflow"] = None
from tf_alexnet.cli.main import run
sys.argv[0] = "tf-alexnet"
run()
"""


@contextlib.contextmanager
def server(*arguments, environment=None):
    """`tf-alexnet serve` as a process: yields it and its (host, port)."""
    command = [sys.executable, "-c", _PROGRAM, "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--engine", "openvino"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(60), "it never said that it is ready"
        line = process.stdout.readline()
        assert line.startswith("http://"), line + process.stderr.read()
        url = urlsplit(line.split()[0])
        yield process, (url.hostname, url.port)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine):
        """What a coroutine returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def close(self):
        """End what still runs, and the loop."""

        async def end():
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.get_running_loop().shutdown_default_executor()

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
