"""Time and memory of reading a weight file, and of building a model from it, as ratios.

    python benchmarks/weights.py [--rounds 5]

Writes full-size synthetic weights in several formats to a temporary folder and reads them back, the
readers in turn, each in a separate process. Medians of time relative to reading the file's bytes,
and of peak memory, above that before reading, relative to the file's size.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

READ = (
    "import tf_alexnet as ta; import tf_alexnet.weights as w; {warm}; {mark}; w.read_weights(path)"
)
MODEL = (
    "import tensorflow as tf, keras, tf_alexnet as ta, tf_alexnet.model; "
    "keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])(tf.zeros((1, 8))); {mark}; "
    "ta.AlexNet(path)"
)
# Each runs in a fresh process; the code after {mark} is timed.
PEERS = {
    "bytes": ("*", "{mark}; open(path, 'rb').read()"),
    "read_weights": ("*", READ.replace("{warm}", "import h5py, safetensors")),
    "numpy.load(allow_pickle=True)": (
        ".npy",
        "import numpy as np; {mark}; np.load(path, allow_pickle=True, encoding='latin1').item()",
    ),
    "OpenCV readNetFromCaffe": (
        ".caffemodel",
        "import cv2; text = path.replace('caffemodel', 'prototxt'); {mark}; "
        "cv2.dnn.readNetFromCaffe(text, path)",
    ),
    "AlexNet(path)": ("*", MODEL),
}
PROCESS = """
import json, sys, time
path = sys.argv[1]
def memory(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024
{body}
print(json.dumps([time.perf_counter() - start, memory("VmHWM") - before]))
"""
MARK = "before = memory('VmRSS'); start = time.perf_counter()"


def measure(code, path):
    """(seconds, bytes) of one process."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESS.format(body=code.format(mark=MARK)), str(path)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def write_files(folder):
    """Write full-size synthetic weights in every format; returns the paths."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from prototxt import prototxt

    import tf_alexnet as ta
    from tf_alexnet.architectures import BVLC_ALEXNET
    from tf_alexnet.testing import synthetic_weights

    (folder / "net.prototxt").write_text(prototxt(BVLC_ALEXNET))
    weights = synthetic_weights("bvlc_alexnet")
    paths = [folder / f"net{suffix}" for suffix in (".npy", ".caffemodel", ".safetensors")]
    for path in paths:
        ta.write_weights(weights, path)
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{'file':16} {'reader':30} {'seconds':>8} {'x bytes':>8} {'peak MB':>8} {'x file':>7}"
        )
        for path in write_files(Path(folder)):
            peers = [name for name, (suffix, _) in PEERS.items() if suffix in ("*", path.suffix)]
            samples = {name: [] for name in peers}
            for _ in range(rounds):
                for name in peers:
                    samples[name].append(measure(PEERS[name][1], path))
            size, base = path.stat().st_size, None
            for name in peers:
                seconds, peak = (
                    statistics.median(column) for column in zip(*samples[name], strict=True)
                )
                base = base or seconds
                print(
                    f"{path.name:16} {name:30} {seconds:8.3f} {seconds / base:8.2f} "
                    f"{peak / 1e6:8.0f} {peak / size:7.2f}"
                )


if __name__ == "__main__":
    main()
