"""Speed of the server: photos per second, latency under hostile requests, mixed batch sizes.

    pip install '.[bench,serve,test]'
    python benchmarks/serving.py throughput FOLDER [--clients 16] [--count 1000] [--rounds 3]
    python benchmarks/serving.py hostile FOLDER [--clients 4] [--count 1000]
    python benchmarks/serving.py mix [--engine openvino] [--rounds 20]

Full-size synthetic weights. Clients run in this process, on the same machine as the server. With
--isa avx2 no engine uses AVX-512 or AMX.
"""

import argparse
import contextlib
import http.client
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import numpy as np
from extraction import add_isa, jpegs, linked, prepare
from hostile_requests import FORM, exchange, form

import tf_alexnet as ta
from tf_alexnet.testing import synthetic_weights

COMMAND = [sys.executable, "-m", "tf_alexnet"]
HEADERS = {"Content-Type": FORM}


@contextlib.contextmanager
def server(weights):
    """Run a server; yields its (host, port)."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, "-q", "serve", weights, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        url = urlsplit(process.stdout.readline().split()[0])
        print(f"ready after {time.perf_counter() - began:.1f} s")
        yield url.hostname, url.port
    finally:
        process.terminate()
        process.wait()


def ask(address, bodies, latencies):
    """Post all bodies over one connection; append the seconds of each to `latencies`."""
    connection = http.client.HTTPConnection(*address)
    for body in bodies:
        began = time.perf_counter()
        connection.request("POST", "/predict", body, HEADERS)
        response = connection.getresponse()
        content = response.read()
        latencies.append(time.perf_counter() - began)
        if response.status != 200:
            sys.exit(f"{response.status}: {content[:200]}")
    connection.close()


class Shared:
    """A thread-safe iterator."""

    def __init__(self, values):
        self._values, self._lock = iter(values), threading.Lock()

    def __iter__(self):
        return self

    def __next__(self):
        with self._lock:
            return next(self._values)


def from_clients(address, bodies, clients):
    """Total seconds, and seconds of each request, for bodies shared by all clients."""
    shared, latencies = Shared(bodies), []
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for task in [pool.submit(ask, address, shared, latencies) for _ in range(clients)]:
            task.result()
    return time.perf_counter() - began, latencies


def throughput(weights, folder, clients, count, rounds):
    """Print photos per second over HTTP and of `extract`, in turns."""
    files = jpegs(folder)
    bodies = [form(Path(path).read_bytes()) for path in files]
    over_http, extracted = [], []
    with tempfile.TemporaryDirectory() as place:
        for _ in range(rounds):
            with server(weights) as address:
                from_clients(address, itertools.islice(itertools.cycle(bodies), 100), clients)
                some = itertools.islice(itertools.cycle(bodies), count)
                over_http.append(count / from_clients(address, some, clients)[0])
            seconds = []
            for some in (count, 3 * count):  # the difference excludes startup and shutdown
                photos = Path(place, f"{some}.txt")
                photos.write_text("\n".join(linked(files, some, place)))
                output = Path(place, "f.h5")
                began = time.perf_counter()
                command = [*COMMAND, "-q", "extract", photos, "-o", output, "-w", weights]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - began)
                output.unlink()
            extracted.append(2 * count / (seconds[1] - seconds[0]))
            print(f"HTTP {over_http[-1]:.1f}, extract {extracted[-1]:.1f} photos/s")
    ratio = statistics.median(a / b for a, b in zip(over_http, extracted, strict=True))
    print(f"{clients} clients: {statistics.median(over_http):.1f} photos/s, {ratio:.2f} of extract")


def hostile(weights, folder, clients, count):
    """Print latencies of good requests alone, and during hostile ones."""
    from test_serve_process import campaign

    bodies = [form(Path(path).read_bytes()) for path in jpegs(folder)[:50]]
    tasks = Shared(campaign(1, count))
    with server(weights) as address:
        from_clients(address, bodies, clients)
        alone = from_clients(address, itertools.islice(itertools.cycle(bodies), count), clients)[1]
        ended, beside = threading.Event(), []

        def misbehave():
            for parts, patience, _ in tasks:
                exchange(address, parts, patience=patience)

        def until_ended():
            endless = itertools.cycle(bodies)
            return itertools.takewhile(lambda _: not ended.is_set(), endless)

        with ThreadPoolExecutor(2 * clients) as pool:
            well = [pool.submit(ask, address, until_ended(), beside) for _ in range(clients)]
            for task in [pool.submit(misbehave) for _ in range(clients)]:
                task.result()
            ended.set()
            for task in well:
                task.result()
    for name, found in (("alone", alone), ("with hostile ones", beside)):
        p50, p99 = np.percentile(found, [50, 99]) * 1000
        print(f"{name:20} {len(found):6} requests, median {p50:.0f} ms, p99 {p99:.0f} ms")
    print(f"p99: {np.percentile(beside, 99) / np.percentile(alone, 99):.2f} times that alone")


def mix(weights, engine, rounds):
    """Print times of batches of 1 and 32, alone and in turn."""
    extractor = ta.FeatureExtractor(weights, ("prob", "fc7"), engine=engine)
    batches = {n: np.zeros((n, 227, 227, 3), np.float32) + 1 for n in (1, 32)}
    for batch in (*batches.values(), *batches.values()):
        extractor(batch)

    def seconds(batch):
        began = time.perf_counter()
        extractor(batch)
        return time.perf_counter() - began

    alone = {n: statistics.median(seconds(x) for _ in range(rounds)) for n, x in batches.items()}
    turns = {n: [] for n in batches}
    for _ in range(rounds):
        for n, batch in batches.items():
            turns[n].append(seconds(batch))
    for n, taken in turns.items():
        mixed = statistics.median(taken)
        print(
            f"batch of {n:2}: alone {1000 * alone[n]:.1f} ms, in turn {1000 * mixed:.1f} ms, "
            f"{mixed / alone[n]:.2f} times"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, clients, count in (("throughput", 16, 1000), ("hostile", 4, 1000)):
        command = commands.add_parser(name)
        command.add_argument("folder")
        command.add_argument("--clients", type=int, default=clients)
        command.add_argument("--count", type=int, default=count)
        if name == "throughput":
            command.add_argument("--rounds", type=int, default=3)
    mixed = commands.add_parser("mix")
    mixed.add_argument("--engine", default="auto")
    mixed.add_argument("--rounds", type=int, default=20)
    add_isa(parser)
    arguments = vars(parser.parse_args())
    prepare(arguments.pop("isa"))
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place, "weights.safetensors")
        ta.write_weights(synthetic_weights("bvlc_alexnet"), weights)
        {"throughput": throughput, "hostile": hostile, "mix": mix}[arguments.pop("command")](
            weights, **arguments
        )


if __name__ == "__main__":
    main()
