"""How fast training goes: steps on photos in memory, beside the same networks in PyTorch.

    python3 -m venv torchenv && torchenv/bin/pip install torch
    python benchmarks/training.py [--torch-python torchenv/bin/python] [--rounds 7] [--only NAME]

`scratch --architecture compact` (Adam) and `finetune` of bvlc_alexnet from conv5 (SGD). Engines
take turns, each in a process of its own that sleeps while others work; PyTorch runs in both of its
memory formats. Printed are medians, and the ratio to the faster PyTorch, round by round.
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
    """A function of a number of steps: the seconds they took."""
    import tf_alexnet  # noqa: F401 (asks for oneDNN before TensorFlow is there)
    from tf_alexnet.architectures import ARCHITECTURES
    from tf_alexnet.training.batches import Batch
    from tf_alexnet.training.loop import Trainer
    from tf_alexnet.training.plan import first_weights, optimizer_for

    table = ARCHITECTURES[name].with_classes(5)
    first, rate = ("conv1", 2e-4) if name == "compact" else ("conv5", 1e-3)
    trainer = Trainer(
        first_weights(table, 0),
        table,
        first,
        lambda trained: optimizer_for(trained, rate, adam=name == "compact"),
    )
    generator = np.random.default_rng(0)
    shape = (batch, table.input_size, table.input_size, 3)
    pictures = generator.standard_normal(shape, np.float32)
    data = Batch(pictures, generator.integers(5, size=batch).astype(np.int32))
    count = iter(range(10**9))

    def run(steps):
        start = time.perf_counter()
        for _ in range(steps):
            trainer.step(data, 1, next(count))
        return time.perf_counter() - start

    return run


def compare(title, python, rounds, steps=2):
    """Print one case."""
    name, batch = CASES[title]
    peers = {
        f"PyTorch, {x}": Torch(python, name, batch, x) for x in ("contiguous", "channels_last")
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
