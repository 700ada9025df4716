"""Speed of feature extraction: the network alone, and photos to a file, against other engines.

    pip install '.[bench]'
    python benchmarks/extraction.py network [--batches 1 8 32 64 128 256] [--rounds 5]
    python benchmarks/extraction.py photos FOLDER [--count 2000] [--rounds 5] [--fast-decode]

Engines take turns. Printed are median images per second, and median ratios round by round: to
OpenVINO called directly and the plain Keras graph, or to the script. The limit is the speed of the
network's multiply-adds in a large matrix product, measured in the same round. Full-size synthetic
weights. With --isa avx2 no engine uses AVX-512 or AMX.
"""

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from tf_alexnet.architectures import BVLC_ALEXNET
from tf_alexnet.engines import processor_features
from tf_alexnet.testing import synthetic_weights

BARE, PLAIN, SCRIPT_NAME = "OpenVINO called directly", "plain Keras graph", "script"
OURS = ("tensorflow", "openvino")


def add_isa(parser):
    """Add the option --isa."""
    parser.add_argument("--isa", choices=["avx2"], help="use no newer instructions")


def prepare(isa):
    """Limit the instruction sets, before any engine is imported, and print those available."""
    found = [x for x in sorted(processor_features()) if re.match("avx|amx|fma|sse4", x)]
    print(f"{os.cpu_count()} processors with {' '.join(found) or 'unknown instruction sets'}")
    if isa:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa={isa.upper()}"
        os.environ.update(ONEDNN_MAX_CPU_ISA=isa.upper(), XLA_FLAGS=flags.strip())
        print(f"limited to {isa.upper()}")


def jpegs(folder):
    """Paths of the JPEG files in a folder."""
    kinds = (".jpg", ".jpeg")
    files = [x for x in Path(folder).rglob("*") if x.suffix.lower() in kinds and x.is_file()]
    return sorted(map(str, files)) or sys.exit(f"{folder}: no JPEG files")


def product_limit(size=2048):
    """Multiply-adds per second of a large matrix product."""
    import tensorflow as tf

    a = tf.random.normal((size, size))
    tf.matmul(a, a).numpy()
    start = time.perf_counter()
    tf.matmul(a, a).numpy()
    return size**3 / (time.perf_counter() - start)


def engines(weights):
    """Name -> function of a batch."""
    import tensorflow as tf
    from peers import openvino_network

    import tf_alexnet as ta

    def ours(engine):
        extractor = ta.FeatureExtractor(weights, ["fc7"], engine=engine)
        return lambda x: extractor(x)["fc7"]

    plain = tf.function(ta.AlexNet(weights, feature_extract=True))
    return {
        **{f'FeatureExtractor(engine="{engine}")': ours(engine) for engine in OURS},
        BARE: openvino_network(BVLC_ALEXNET, weights),
        PLAIN: lambda x: plain(x).numpy(),
    }


def network(batches, rounds):
    """Print images per second of each engine at each batch size."""
    found = engines(synthetic_weights("bvlc_alexnet"))
    macs = sum(r.multiply_adds for r in BVLC_ALEXNET.rows() if r.name not in ("fc8", "prob"))
    rng = np.random.default_rng(0)
    for batch in batches:
        x = rng.uniform(-120, 130, (batch, 227, 227, 3)).astype(np.float32)
        for engine in found.values():
            engine(x), engine(x)
        seconds = {name: [] for name in found}
        limits = []
        for _ in range(rounds):
            limits.append(product_limit() / macs)
            # Shuffled: OpenVINO's threads keep spinning for a while, which slows the next engine.
            for name, engine in random.sample(sorted(found.items()), len(found)):
                start = time.perf_counter()
                engine(x)
                seconds[name].append(time.perf_counter() - start)
        limit = statistics.median(limits)
        print(f"batch {batch}: limit {limit:.0f} images/s")
        for name, taken in seconds.items():
            speed = batch / statistics.median(taken)
            print(f"  {name:38} {speed:6.1f} images/s, {speed / limit:.2f} of the limit", end="")
            for peer in (BARE, PLAIN):
                print(f", {ratio(seconds[peer], taken):.2f} x {peer}", end="")
            print()


def ratio(theirs, ours):
    """Median speedup of `ours`, round by round."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


SCRIPT = """
import sys, time
sys.path.insert(0, {here!r})
from pathlib import Path
import tf_alexnet as ta
from tf_alexnet.architectures import BVLC_ALEXNET
from peers import opencv_openvino_script
paths = Path(sys.argv[1]).read_text().split("\\n")
opencv_openvino_script(paths, sys.argv[3], ta.read_weights(sys.argv[2]), BVLC_ALEXNET)
"""


def photos(folder, count, rounds, fast_decode):
    """Print photos per second of the command and the script, whole process and steady state."""
    import tf_alexnet as ta

    files = jpegs(folder)
    extra = ["--fast-decode"] if fast_decode else []
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place, "bvlc_alexnet.npy")
        ta.write_weights(synthetic_weights("bvlc_alexnet"), weights)
        code = SCRIPT.format(here=str(Path(__file__).parent))
        extract = [sys.executable, "-m", "tf_alexnet", "extract", "-w", weights, *extra]
        seconds = {(name, n): [] for name in (*OURS, SCRIPT_NAME) for n in (64, count)}
        for _ in range(rounds):
            for name, n in seconds:
                paths = Path(place, f"{n}.txt")
                paths.write_text("\n".join(linked(files, n, place)))
                output = Path(place, f"{time.time_ns()}.h5")
                command = [*extract, "--engine", name, paths, "-o", output]
                if name == SCRIPT_NAME:
                    command = [sys.executable, "-c", code, paths, weights, output]
                start = time.perf_counter()
                subprocess.run(list(map(str, command)), check=True, capture_output=True)
                seconds[name, n].append(time.perf_counter() - start)
                output.unlink()
    steady = {}
    for name in (*OURS, SCRIPT_NAME):
        steady[name] = [b - a for a, b in zip(seconds[name, 64], seconds[name, count], strict=True)]
        whole, short = (statistics.median(seconds[name, n]) for n in (count, 64))
        speed = (count - 64) / (whole - short)
        print(f"{name:10} {count / whole:6.1f} photos/s whole, {speed:6.1f} steady", end="")
        print(f", {short:.1f} s for the first 64")
    for name in OURS:
        whole = ratio(seconds[SCRIPT_NAME, count], seconds[name, count])
        print(f"{name}: whole {whole:.2f} x, steady", end=" ")
        print(f"{ratio(steady[SCRIPT_NAME], steady[name]):.2f} x the script, {count} photos")


def linked(files, count, place):
    """`count` distinct names for the photos, by hard link."""
    folder = Path(place, f"photos{count}")
    folder.mkdir(exist_ok=True)
    names = [folder / f"{i:06}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        if not name.exists():
            try:
                os.link(files[i % len(files)], name)
            except OSError:
                name.write_bytes(Path(files[i % len(files)]).read_bytes())
    return map(str, names)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    alone = commands.add_parser("network")
    alone.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    alone.add_argument("--rounds", type=int, default=5)
    whole = commands.add_parser("photos")
    whole.add_argument("folder")
    whole.add_argument("--count", type=int, default=2000)
    whole.add_argument("--rounds", type=int, default=5)
    whole.add_argument("--fast-decode", action="store_true")
    add_isa(alone), add_isa(whole)
    arguments = vars(parser.parse_args())
    prepare(arguments.pop("isa"))
    {"network": network, "photos": photos}[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    main()
