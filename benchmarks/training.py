"""Speed of training steps on photos in memory, against the same networks in PyTorch.

    python3 -m venv torchenv && torchenv/bin/pip install torch
    python benchmarks/training.py [--torch-python torchenv/bin/python] [--rounds 7] [--only NAME]

`scratch --architecture compact` (Adam) and `finetune` of bvlc_alexnet from conv5 (SGD). Engines
take turns, each in a separate process that sleeps while others work; PyTorch runs in both memory
formats, and compiled (which needs a C++ compiler). Printed are medians, and the median ratio to the
fastest PyTorch, round by round.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

HERE = Path(__file__).parent
CASES = {
    "compact, batch 32": ("compact", 32),
    "bvlc_alexnet, batch 32": ("bvlc_alexnet", 32),
    "bvlc_alexnet, batch 64": ("bvlc_alexnet", 64),
}


class Torch:
    """A PyTorch process that trains on demand."""

    def __init__(self, python, name, batch, memory):
        command = [python, str(HERE / "torch_training.py"), name, str(batch), memory]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, **pipes)
        assert self._process.stdout.readline() == "ready\n", "PyTorch did not start"

    def __call__(self, steps):
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def ours(name, batch):
    """A function: number of steps -> seconds they took, in the train function of `fit`."""
    import tensorflow as tf

    from tf_alexnet.testing import synthetic_weights
    from tf_alexnet.training.finetune import planned, training_model
    from tf_alexnet.training.folders import PhotoSet

    optional = ("layer", "epochs", "learning_rate", "schedule", "gamma", "step_size")
    settings = {
        **dict.fromkeys((*optional, "class_weight", "patience", "val_split")),
        **{"mode": "scratch" if name == "compact" else "finetune", "unfreeze_from": "conv5"},
        **{"batch_size": batch, "augment": "none", "seed": 0, "multi_label": False},
        "mixed_precision": False,
    }
    photos = PhotoSet(".", tuple("abcde"), (), (), split=False)
    weights = None if name == "compact" else synthetic_weights(name)
    plan = planned(photos, weights, name, None, settings)
    model = training_model(plan, 1)
    generator = np.random.default_rng(0)
    shape = (batch, *[plan.table.input_size] * 2, 3)
    pictures = generator.standard_normal(shape, np.float32)
    labels = generator.integers(5, size=batch).astype(np.int32)
    data = (pictures, labels, np.full(batch, 1 / batch, np.float32))
    batches = iter(tf.data.Dataset.from_tensors(data).repeat())
    model.make_train_function()

    def run(steps):
        start = time.perf_counter()
        for _ in range(steps):
            float(model.train_function(batches)["cross_entropy"])
        return time.perf_counter() - start

    return run


def compare(title, python, rounds, steps=2):
    """Run and print one case."""
    name, batch = CASES[title]
    peers = {
        f"PyTorch, {x}": Torch(python, name, batch, x)
        for x in ("contiguous", "channels_last", "compiled")
    }
    engines = {"tf_alexnet": ours(name, batch), **peers}
    for engine in engines.values():
        engine(2)
    seconds = {label: [] for label in engines}
    for _ in range(rounds):
        for label, engine in engines.items():
            seconds[label].append(engine(steps) / steps)
    for peer in peers.values():
        peer.close()
    fastest = min(peers, key=lambda x: statistics.median(seconds[x]))
    print(title)
    for label, taken in seconds.items():
        pairs = zip(seconds[fastest], taken, strict=True)
        ratio = statistics.median(theirs / this for theirs, this in pairs)
        speed = batch / statistics.median(taken)
        print(f"  {label:22} {speed:6.1f} photos/s  {ratio:5.2f} x {fastest}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=list(CASES))
    arguments = parser.parse_args()
    for title in CASES:
        if arguments.only in (None, title):
            compare(title, arguments.torch_python, arguments.rounds)


if __name__ == "__main__":
    main()
