"""`RayWorkers`: the shards of a job on workers that Ray places, on this machine or on a cluster.

Workers hand over finished data files on storage that all machines see; the job's own process
records them, so what a worker writes late, or twice, is never part of the output. These are Ray's
plain actors, not ``ray.data.map_batches``, which repeats the work of lost actors without end. All
are asked for at once, which is what an autoscaling cluster goes by, and none is kept without work.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tf_alexnet.errors import AlexNetError, OutputError, UsageError
from tf_alexnet.extraction.shards import Store
from tf_alexnet.extraction.spec import changes

if TYPE_CHECKING:
    from tf_alexnet.extraction.worker import Finished, Shard, Tell, Worker

LOCAL = "ray"
_CPUS = 4  # for a worker, where nobody says how many: more make one network little faster
_TRIES = 3  # a worker may die of many things; a shard that ends three is guilty
_CONNECT_SECONDS = 15.0
_PLACE_SECONDS = 600.0  # an autoscaler may have to start a machine first
_VISIBLE_SECONDS = 30.0  # network file systems show other machines' files with delay
_OBJECT_STORE = 2**29  # weights given as arrays, once; nothing else of size
# What Ray need not tell nor report when this program starts it; a user's own setting stays.
_QUIET = ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")


class RayWorkers:
    """Workers on a Ray cluster; use as a context manager.

    `settings`, `attributes`, `batch_size` and `worker_count` are as those of a `Worker`.

    Parameters
    ----------
    address : str
        ``ray`` for a Ray of its own on this machine, ``auto`` for the one that runs here or that
        ``RAY_ADDRESS`` names, or an address (``host:6379``, ``ray://host:10001``). A program that
        has connected to Ray already keeps its connection.
    make : callable
        Makes a `Worker` from the keyword ``workers``, in each process.
    worker_count, min_workers : int, optional
        Workers at most (default: one for each GPU, or for every 4 processors of a machine), and
        workers that must be ready before the first shard is begun.
    gpus : float, optional
        GPUs a worker, also a part of one (default: one, or as much as `worker_count` leaves).
    decoders : int, optional
        Decoding processes of each worker (default: one for each of its processors).

    Raises
    ------
    UsageError
        If Ray is not installed, can't be reached, or has no place for a worker.
    """

    def __init__(
        self,
        address: str,
        make: Callable[..., Worker],
        *,
        worker_count: int | None = None,
        min_workers: int = 1,
        gpus: float | None = None,
        decoders: int | None = None,
    ):
        if worker_count is not None and worker_count < 1:
            raise UsageError(f"{worker_count} workers", "nothing would be done", "Use 1 or more.")
        if gpus is not None and not (0 <= gpus < 1 or gpus == int(gpus)):
            advice = "Use a whole number, or less than 1."
            raise UsageError(f"{gpus} GPUs a worker", "no such part", advice)
        self._address, self._make, self._decoders = address, make, decoders
        self._wishes, self._min_workers = (worker_count, gpus), min_workers
        self._idle: list[Any] = []
        # What a worker owes -> the worker, and the shard it works on; None while it starts.
        self._owed: dict[Any, tuple[Any, Shard | None]] = {}
        self._again: list[Shard] = []
        self._deaths: Counter[int | None] = Counter()  # by place of the shard; None: at the start
        self.settings: dict[str, str] = {}
        self.attributes: dict[str, str] = {}
        self.batch_size = self.worker_count = 0

    def __enter__(self) -> RayWorkers:
        self._ray, self._owned = _connected(self._address)
        try:
            self._plan_workers()
            self._made = self._ray.put(self._make)  # arrays in it: once on each machine
            for _ in range(self.worker_count):
                self._start()
            until = time.monotonic() + _PLACE_SECONDS
            while len(self._idle) < self._min_workers:
                self._next(until)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._owned:
            self._ray.shutdown()

    def run(
        self, shards: Iterable[Shard], store: Store, tell: Tell
    ) -> Iterator[tuple[Shard, Finished]]:
        """As `Worker.run`; shards come back in the order in which they are finished."""
        planned, again = iter(shards), self._again
        try:
            while True:
                while self._idle and (shard := again.pop() if again else next(planned, None)):
                    worker = self._idle.pop()
                    self._owed[worker.run_shard.remote(shard, store)] = worker, shard
                if self._idle:  # and no shard for them; should one come back, another is started
                    self._end(*self._idle, *(x for x, shard in self._owed.values() if not shard))
                if not self._owed:
                    return
                if done := self._next():
                    shard, finished = done
                    _check_visible(store, finished)
                    yield done
                    tell(len(shard.paths), finished.failures, finished.size)
        finally:
            self._end()

    def _plan_workers(self) -> None:
        """Decide how many workers there are, and what one takes."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self.worker_count, cpus, gpus = shares(machines, *self._wishes)
        if not 1 <= self._min_workers <= self.worker_count:
            raise UsageError(
                f"at least {self._min_workers} workers",
                f"there will be {self.worker_count} at most",
                "Ask for fewer, or raise the most (--cluster-workers).",
            )
        if self._owned and self._address == LOCAL and gpus > machines[0].get("GPU", 0):
            raise UsageError(
                f"{gpus:g} GPUs a worker",
                f"this machine has {machines[0].get('GPU', 0):g}",
                "Ask for less, or name a cluster that has more.",
            )
        self._needs = f"{cpus} processors and {gpus:g} GPUs"
        self._arguments = os.getcwd(), cpus, gpus, self._decoders or cpus
        self._actor = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Worker)

    def _start(self) -> None:
        worker = self._actor.remote(*self._arguments)
        self._owed[worker.load.remote(self._made)] = worker, None

    def _next(self, until: float | None = None) -> tuple[Shard, Finished] | None:
        """Wait for what comes first: a shard; or None, for a worker that is ready, or ended."""
        left = until and max(0.0, until - time.monotonic())
        ready, _ = self._ray.wait(list(self._owed), timeout=left)
        if not ready:
            started = f"{len(self._idle)} of {self._min_workers}"
            found = f"place for {started} in {_PLACE_SECONDS:.0f} seconds"
            raise UsageError(
                f"workers of {self._needs}",
                f"the cluster had {found}",
                "Ask for more workers or fewer GPUs a worker, or see what ray status says.",
            )
        worker, shard = self._owed[ref := ready[0]]
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, AlexNetError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            self._end(worker)
            self._do_again(shard, error)
            self._start()
            return None
        del self._owed[ref]
        self._idle.append(worker)
        if shard is None:
            self._agree(*answer)
            return None
        return shard, answer

    def _do_again(self, shard: Shard | None, error: Exception) -> None:
        place = shard and shard.place
        self._deaths[place] += 1
        if self._deaths[place] == _TRIES:
            raise AlexNetError(
                f"shard {place}, from {shard.paths[0]}" if shard else "workers, at their start",
                f"{_TRIES} workers ended over it, the last with: {_reason(error)}",
                "See that a worker has the memory it needs (2 GB) and the same packages as this "
                "machine; the same command again goes on from here.",
            )
        if shard:
            text = f"a worker ended over shard {place} ({_reason(error)}); it is done again"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            self._again.append(shard)

    def _agree(self, settings: dict[str, str], attributes: dict[str, str], batch: int) -> None:
        """Take in what a worker that is ready says of itself, and refuse one of another kind."""
        if not self.settings:
            self.settings, self.attributes, self.batch_size = settings, attributes, batch
        if differences := changes(self.settings | self.attributes, settings | attributes):
            raise UsageError(
                f"cluster {self._address}",
                f"its workers don't agree ({', '.join(differences)})",
                "Install the same packages, and put the same weights, on all machines.",
            )
        self.batch_size = min(self.batch_size, batch)
        self._deaths[None] = 0

    def _end(self, *workers: Any) -> None:
        """End some workers; by default all."""
        for worker in workers or (*self._idle, *(x for x, _ in self._owed.values())):
            with contextlib.suppress(Exception):
                self._ray.kill(worker)
            self._idle = [x for x in self._idle if x is not worker]
            self._owed = {ref: owed for ref, owed in self._owed.items() if owed[0] is not worker}


class _Worker:
    """What Ray places: a process with one `Worker`."""

    def __init__(self, folder: str, cpus: int, gpus: float, decoders: int):
        # Read when TensorFlow starts, which is when `load` gets its argument.
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(cpus)
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elif gpus < 1:
            os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        self._decoders = decoders
        try:
            os.chdir(folder)
        except OSError:  # paths that are relative to it must not find other files
            os.chdir(tempfile.mkdtemp(prefix="tf-alexnet-"))

    def load(self, make: Callable[..., Worker]) -> tuple[dict[str, str], dict[str, str], int]:
        self._worker = worker = make(workers=self._decoders)
        return worker.settings, worker.attributes, worker.batch_size

    def run_shard(self, shard: Shard, store: Store) -> Finished:
        return self._worker.run_shard(shard, store)


def shares(
    machines: Sequence[Mapping[str, float]], worker_count: int | None, gpus: float | None
) -> tuple[int, int, float]:
    """Workers, processors and GPUs of each, for machines with the given ``CPU`` and ``GPU``.

    `worker_count` and `gpus` are as in `RayWorkers`. A worker has as many processors as leave room
    for all workers, at least 1.
    """
    cpus_of = [int(machine.get("CPU", 0)) for machine in machines]
    there = int(sum(machine.get("GPU", 0) for machine in machines))
    if gpus is None:
        gpus = 1 / math.ceil((worker_count or there) / there) if there else 0
    if worker_count is None:
        share = there / gpus if gpus else sum(-(-cpus // _CPUS) for cpus in cpus_of)
        worker_count = max(1, int(share))
    for cpus in range(max(cpus_of, default=1), 1, -1):
        if sum(there // cpus for there in cpus_of) >= worker_count:
            return worker_count, cpus, gpus
    return worker_count, 1, gpus


def _connected(address: str) -> tuple[Any, bool]:
    """Ray, and whether the connection is ours to close."""
    for name in _QUIET:
        os.environ.setdefault(name, "0")
    try:
        import ray
    except ImportError:
        advice = "Install it: pip install 'tf-alexnet[ray]'."
        raise UsageError(f"cluster {address}", "Ray is not installed", advice) from None
    if ray.is_initialized():
        return ray, False
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        address = "local"
        arguments |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    else:
        _check_address(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, **arguments)
    finally:  # Ray takes SIGTERM for itself; who set a handler before meant it
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return ray, True


def _check_address(address: str) -> None:
    """Connect from another process: Ray itself tries for minutes, and heeds no signal then."""
    code = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)"
    command = [sys.executable, "-c", code, address]
    try:
        found = subprocess.run(command, capture_output=True, timeout=_CONNECT_SECONDS, check=False)
        if not found.returncode:
            return
        said, reason = found.stderr, "no Ray answers there"
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""
        reason = f"no Ray answers there within {_CONNECT_SECONDS:.0f} seconds"
    # The exception, or what the server answers: that it wants a token, say.
    pattern = r"(?:^[\w.]*(?:Error|Exception)|GCS server): (.+?)(?:\. .*|\.?)$"
    reasons = re.findall(pattern, said.decode(errors="replace"), re.MULTILINE)
    raise UsageError(
        f"cluster {address}",
        reasons[-1].strip() if reasons else reason,
        "Start one (ray start --head), correct the address, set RAY_AUTH_MODE=token if it asks for "
        "a token, or use ray for one in this process.",
    )


def _check_visible(store: Store, shard: Finished) -> None:
    """Refuse a shard that its worker wrote elsewhere than where this process looks for it."""
    until = time.monotonic() + _VISIBLE_SECONDS
    while shard.data and store.size(shard.data) is None:
        if time.monotonic() > until:
            raise OutputError(
                f"{store.data}/{shard.data}",
                "a worker wrote it, and it is not here",
                "Name an output that all machines see under the same path, or a URL.",
            )
        time.sleep(0.5)


def _reason(error: Exception) -> str:
    """The line that matters of a page of Ray's."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    last = lines[-1].strip()
    return (last if re.match(r"[\w.]+Error: ", last) else lines[0]).strip()[:300].rstrip(".")
