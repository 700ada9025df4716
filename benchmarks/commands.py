"""Cost of whole commands: a cold prediction, peak memory, two workers on Ray.

    pip install '.[bench,ray]'
    python benchmarks/commands.py predict PHOTO [--rounds 5]
    python benchmarks/commands.py memory FOLDER [--counts 2000 20000]
    python benchmarks/commands.py ray FOLDER [--count 5000] [--rounds 3]

Commands and engines take turns; medians over whole processes. Full-size synthetic weights. With
--isa avx2 no engine uses AVX-512 or AMX.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from extraction import OURS, add_isa, jpegs, linked, prepare, ratio

COMMAND = [sys.executable, "-m", "tf_alexnet"]


def timed(command):
    """Seconds that a command took, and peak memory of its main process in MB."""
    start = time.perf_counter()
    process = os.posix_spawn(
        command[0],
        [os.fspath(word) for word in command],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)
        ],
    )
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(map(str, command))} failed: {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss / 1000


def predict(weights, photo, rounds):
    """Print time and memory of predicting one photo, and of importing TensorFlow."""
    command = [*COMMAND, "predict", photo, "-w", weights, "--engine"]
    found = {f"predict, {engine}": [*command, engine] for engine in OURS}
    found["import tensorflow"] = [sys.executable, "-c", "import tensorflow"]
    # Keras imports these if they are installed.
    bare = "import sys; sys.modules.update(sklearn=None, matplotlib=None, pandas=None)"
    found["import tensorflow, bare"] = [sys.executable, "-c", f"{bare}; import tensorflow"]
    runs = {name: [] for name in found}
    for _ in range(rounds):
        for name, command in found.items():
            runs[name].append(timed(command))
    over = [run[0] for run in runs["import tensorflow, bare"]]
    for name, taken in runs.items():
        seconds, peak = map(statistics.median, zip(*taken, strict=True))
        more = statistics.median(a - b for (a, _), b in zip(taken, over, strict=True))
        print(f"{name:24} {seconds:5.2f} s, {peak:5.0f} MB, {more:+.2f} s to the bare import")


def memory(weights, folder, counts):
    """Print the peak memory of extractions of different lengths."""
    files = jpegs(folder)
    with tempfile.TemporaryDirectory() as place:
        for count, engine in itertools.product(counts, OURS):
            photos = Path(place, f"{count}.txt")
            photos.write_text("\n".join(linked(files, count, place)))
            output = Path(place, f"{count}.h5")
            command = [*COMMAND, "extract", photos, "-o", output, "-w", weights]
            seconds, peak = timed([*command, "--engine", engine])
            print(f"{engine:10} {count} photos: peak {peak:.0f} MB", end="")
            print(f", {count / seconds:.1f} photos/s whole")
            output.unlink()


def ray(weights, folder, count, rounds):
    """Print the speed of two workers on Ray, and of a local run."""
    files = jpegs(folder)
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place, "photos.txt")
        photos.write_text("\n".join(linked(files, count, place)))
        seconds = {(name, engine): [] for engine in OURS for name in ("local", "ray")}
        for _, (name, engine) in itertools.product(range(rounds), seconds):
            output = Path(place, "features.h5")
            command = [*COMMAND, "extract", photos, "-o", output, "-w", weights]
            command += ["--engine", engine]
            if name == "ray":
                command += ["--cluster", "ray", "--cluster-workers", "2"]
            seconds[name, engine].append(timed(command)[0])
            output.unlink()
    for (name, engine), taken in seconds.items():
        print(f"{name:6} {engine:10} {count / statistics.median(taken):6.1f} photos/s", end="")
        print(f", {ratio(seconds['local', engine], taken):.2f} x local, whole process")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cold = commands.add_parser("predict")
    cold.add_argument("photo")
    cold.add_argument("--rounds", type=int, default=5)
    most = commands.add_parser("memory")
    most.add_argument("folder")
    most.add_argument("--counts", type=int, nargs="+", default=[2000, 20000])
    cluster = commands.add_parser("ray")
    cluster.add_argument("folder")
    cluster.add_argument("--count", type=int, default=5000)
    cluster.add_argument("--rounds", type=int, default=3)
    for each in (cold, most, cluster):
        add_isa(each)
    arguments = vars(parser.parse_args())
    prepare(arguments.pop("isa"))
    import tf_alexnet as ta
    from tf_alexnet.testing import synthetic_weights

    with tempfile.TemporaryDirectory() as place:
        weights = Path(place, "bvlc_alexnet.npy")
        ta.write_weights(synthetic_weights("bvlc_alexnet"), weights)
        run = {"predict": predict, "memory": memory, "ray": ray}[arguments.pop("command")]
        run(weights, **arguments)


if __name__ == "__main__":
    main()
