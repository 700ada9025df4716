"""`Batcher`: run photos of many requests through the network together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

SIZE = 32
SECONDS, LONGEST = 0.005, 0.02  # to wait for more photos, and at most while some are being decoded


class Batcher:
    """Collect single photos into batches, and compute them in one thread.

    A batch of `SIZE` photos starts once the previous one is done. Smaller ones wait for more: for
    `SECONDS`, in which clients that were just answered ask again, and up to `LONGEST` while others
    are being decoded. Larger batches take less time per photo.

    Parameters
    ----------
    compute : callable
        Maps (N, S, S, 3) float32 to a sequence of N results.
    on_batch : callable, optional
        Called with the size of each batch.
    """

    def __init__(
        self,
        compute: Callable[[np.ndarray], Any],
        on_batch: Callable[[int], None] | None = None,
    ):
        self._compute, self._on_batch = compute, on_batch
        self.thread = ThreadPoolExecutor(1, "network")
        self._waiting: deque[tuple[np.ndarray, asyncio.Future]] = deque()
        self._arrived, self._task = asyncio.Event(), None
        self._coming = 0

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """Context in which a photo is being decoded for `compute`."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    async def compute(self, pixels: np.ndarray) -> Any:
        """The result for one photo, (S, S, 3) float32."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, future))
        self._arrived.set()
        return await future

    def close(self) -> None:
        """Stop the thread; waiting photos are dropped."""
        if self._task is not None:
            self._task.cancel()
        self.thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            await self._wait_for_more()
            batch = [self._waiting.popleft() for _ in range(min(SIZE, len(self._waiting)))]
            if not self._waiting:
                self._arrived.clear()
            # Skip photos whose request has ended, for example by its time limit.
            batch = [(pixels, future) for pixels, future in batch if not future.done()]
            if batch:
                await self._do(*zip(*batch, strict=True))

    async def _wait_for_more(self) -> None:
        pause, end = SECONDS, time.monotonic() + LONGEST
        while len(self._waiting) < SIZE and time.monotonic() < end:
            await asyncio.sleep(pause)
            if not self._coming:
                break
            pause = SECONDS / 5

    async def _do(
        self, pixels: tuple[np.ndarray, ...], futures: tuple[asyncio.Future, ...]
    ) -> None:
        if self._on_batch:
            self._on_batch(len(pixels))
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(
                self.thread, lambda: self._compute(np.stack(pixels))
            )
        except Exception as error:  # fails this batch only
            results = [error] * len(futures)
        for future, result in zip(futures, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
