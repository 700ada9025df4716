"""`RayWorkers`: run the shards of a job on Ray, on this machine or on a cluster.

Workers write data files to storage that all machines see; the job's own process records them, so
what a worker writes late, or twice, is never part of the output. Workers are plain actors:
``ray.data.map_batches`` would repeat the work of lost actors without end. All are requested at
once, so that a cluster can scale, and idle ones are released.
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
_CPUS = 4  # per worker, by default: more hardly speed up one network
_TRIES = 3  # a shard on which this many workers die is to blame
_CONNECT_SECONDS = 15.0
_PLACE_SECONDS = 600.0  # an autoscaler may have to start a machine first
_VISIBLE_SECONDS = 30.0  # network file systems show other machines' files late
_OBJECT_STORE = 2**29  # bytes, for weights given as arrays; nothing else is large
# Turned off when this program starts Ray, unless the user has set them.
_QUIET = ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")


class RayWorkers:
    """Workers on a Ray cluster; use as a context manager.

    `settings`, `attributes`, `batch_size` and `worker_count` are as in `Worker`.

    Parameters
    ----------
    address : str
        ``ray`` for a new cluster on this machine, ``auto`` for the one that is running here or that
        ``RAY_ADDRESS`` names, or an address (``host:6379``, ``ray://host:10001``). An existing
        connection to Ray is reused.
    make : callable
        Makes a `Worker` from the keyword ``workers``, in each process.
    worker_count, min_workers : int, optional
        Maximum number of workers (default: one per GPU, or per 4 processors of a machine), and
        number of workers that must be ready before the first shard starts.
    gpus : float, optional
        GPUs per worker, also a fraction (default: 1, or less if `worker_count` requires it).
    decoders : int, optional
        Decoder processes per worker (default: one per processor).

    Raises
    ------
    UsageError
        If Ray is not installed, can't be reached, or has no room for a worker.
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
            raise UsageError(f"{gpus} GPUs per worker", "not a possible share", advice)
        self._address, self._make, self._decoders = address, make, decoders
        self._wishes, self._min_workers = (worker_count, gpus), min_workers
        self._idle: list[Any] = []
        # Result -> the worker, and the shard it works on; None while it starts.
        self._pending: dict[Any, tuple[Any, Shard | None]] = {}
        self._again: list[Shard] = []
        self._deaths: Counter[int | None] = Counter()  # by place of the shard; None: at startup
        self.settings: dict[str, str] = {}
        self.attributes: dict[str, str] = {}
        self.batch_size = self.worker_count = 0

    def __enter__(self) -> RayWorkers:
        self._ray, self._owned = _connected(self._address)
        try:
            self._plan_workers()
            self._made = self._ray.put(self._make)  # any arrays are stored once per machine
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
        """As `Worker.run`; shards are yielded in the order in which they finish."""
        planned, again = iter(shards), self._again
        try:
            while True:
                while self._idle and (shard := again.pop() if again else next(planned, None)):
                    worker = self._idle.pop()
                    self._pending[worker.run_shard.remote(shard, store)] = worker, shard
                if self._idle:  # no shards left; if one must be repeated, a worker is started
                    self._end(*self._idle, *(x for x, shard in self._pending.values() if not shard))
                if not self._pending:
                    return
                if done := self._next():
                    shard, finished = done
                    _check_visible(store, finished)
                    yield done
                    tell(len(shard.paths), finished.failures, finished.size)
        finally:
            self._end()

    def _plan_workers(self) -> None:
        """Decide on the number of workers and the resources of each."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self.worker_count, cpus, gpus = shares(machines, *self._wishes)
        if not 1 <= self._min_workers <= self.worker_count:
            raise UsageError(
                f"at least {self._min_workers} workers",
                f"there will be {self.worker_count} at most",
                "Ask for fewer, or raise the maximum (--cluster-workers).",
            )
        if self._owned and self._address == LOCAL and gpus > machines[0].get("GPU", 0):
            raise UsageError(
                f"{gpus:g} GPUs per worker",
                f"this machine has {machines[0].get('GPU', 0):g}",
                "Ask for fewer, or name a cluster that has more.",
            )
        self._needs = f"{cpus} processors and {gpus:g} GPUs"
        self._arguments = os.getcwd(), cpus, gpus, self._decoders or cpus
        self._actor = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Worker)

    def _start(self) -> None:
        worker = self._actor.remote(*self._arguments)
        self._pending[worker.load.remote(self._made)] = worker, None

    def _next(self, until: float | None = None) -> tuple[Shard, Finished] | None:
        """Wait for the next event: a finished shard; None for a worker that is ready or died."""
        left = until and max(0.0, until - time.monotonic())
        ready, _ = self._ray.wait(list(self._pending), timeout=left)
        if not ready:
            started = f"{len(self._idle)} of {self._min_workers}"
            found = f"room for {started} in {_PLACE_SECONDS:.0f} seconds"
            raise UsageError(
                f"workers of {self._needs}",
                f"the cluster had {found}",
                "Ask for more workers or fewer GPUs per worker, or see ray status.",
            )
        worker, shard = self._pending[ref := ready[0]]
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
        del self._pending[ref]
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
                f"shard {place}, from {shard.paths[0]}" if shard else "starting workers",
                f"{_TRIES} workers died, the last with: {_reason(error)}",
                "Check that workers have enough memory (2 GB each) and the same packages as this "
                "machine; the same command resumes from here.",
            )
        if shard:
            text = f"a worker died on shard {place} ({_reason(error)}); the shard is repeated"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            self._again.append(shard)

    def _agree(self, settings: dict[str, str], attributes: dict[str, str], batch: int) -> None:
        """Adopt the settings of the first worker; UsageError if another one's differ."""
        if not self.settings:
            self.settings, self.attributes, self.batch_size = settings, attributes, batch
        if differences := changes(self.settings | self.attributes, settings | attributes):
            raise UsageError(
                f"cluster {self._address}",
                f"its workers differ ({', '.join(differences)})",
                "Install the same packages and the same weights on all machines.",
            )
        self.batch_size = min(self.batch_size, batch)
        self._deaths[None] = 0

    def _end(self, *workers: Any) -> None:
        """Kill some workers (default: all)."""
        for worker in workers or (*self._idle, *(x for x, _ in self._pending.values())):
            with contextlib.suppress(Exception):
                self._ray.kill(worker)
            self._idle = [x for x in self._idle if x is not worker]
            self._pending = {ref: x for ref, x in self._pending.items() if x[0] is not worker}


class _Worker:
    """The Ray actor: a process with one `Worker`."""

    def __init__(self, folder: str, cpus: int, gpus: float, decoders: int):
        # TensorFlow reads these when it is imported, as the argument of `load` is unpickled.
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(cpus)
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elif gpus < 1:
            os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        self._decoders = decoders
        try:
            os.chdir(folder)
        except OSError:  # relative paths must not find other files
            os.chdir(tempfile.mkdtemp(prefix="tf-alexnet-"))

    def load(self, make: Callable[..., Worker]) -> tuple[dict[str, str], dict[str, str], int]:
        self._worker = worker = make(workers=self._decoders)
        return worker.settings, worker.attributes, worker.batch_size

    def run_shard(self, shard: Shard, store: Store) -> Finished:
        return self._worker.run_shard(shard, store)


def shares(
    machines: Sequence[Mapping[str, float]], worker_count: int | None, gpus: float | None
) -> tuple[int, int, float]:
    """Number of workers, and processors and GPUs of each, for machines with ``CPU`` and ``GPU``.

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
    """Connect to Ray; the module, and whether the connection is ours to close."""
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
    finally:  # Ray replaces the handler of SIGTERM
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return ray, True


def _check_address(address: str) -> None:
    """Try to connect in another process: Ray keeps trying for minutes and ignores signals."""
    code = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)"
    command = [sys.executable, "-c", code, address]
    try:
        found = subprocess.run(command, capture_output=True, timeout=_CONNECT_SECONDS, check=False)
        if not found.returncode:
            return
        said, reason = found.stderr, "Ray does not answer there"
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""
        reason = f"Ray does not answer there within {_CONNECT_SECONDS:.0f} seconds"
    # The exception, or the server's answer, for example that it needs a token.
    pattern = r"(?:^[\w.]*(?:Error|Exception)|GCS server): (.+?)(?:\. .*|\.?)$"
    reasons = re.findall(pattern, said.decode(errors="replace"), re.MULTILINE)
    raise UsageError(
        f"cluster {address}",
        reasons[-1].strip() if reasons else reason,
        "Start one (ray start --head), correct the address, set RAY_AUTH_MODE=token if it asks for "
        "a token, or use ray for a new one on this machine.",
    )


def _check_visible(store: Store, shard: Finished) -> None:
    """Raise OutputError if this process does not see the file that a worker wrote."""
    until = time.monotonic() + _VISIBLE_SECONDS
    while shard.data and store.size(shard.data) is None:
        if time.monotonic() > until:
            raise OutputError(
                f"{store.data}/{shard.data}",
                "a worker wrote it, but it is not visible here",
                "Name an output that all machines see under the same path, or a URL.",
            )
        time.sleep(0.5)


def _reason(error: Exception) -> str:
    """The relevant line of one of Ray's long messages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    last = lines[-1].strip()
    return (last if re.match(r"[\w.]+Error: ", last) else lines[0]).strip()[:300].rstrip(".")
