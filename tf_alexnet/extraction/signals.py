"""`signals_held`: no signal ends a C library's work in the middle; it waits for a good moment."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

Item = TypeVar("Item")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SignalGate:
    """A handler of signals that passes them on while it is open, and keeps them while it is not.

    Parameters
    ----------
    handlers : mapping of int to callable
        What handles each signal when it is passed on. It may raise, as Python's own does.
    """

    def __init__(self, handlers: Mapping[int, Any]):
        self.handlers = handlers
        self.removed = False
        self._open = False
        self._waiting: list[int] = []

    def __call__(self, number: int, frame: Any) -> None:
        if self.removed:
            self.handlers[number](number, frame)
        elif self._open:
            self._open = False  # should it raise, files are closed on the way out, undisturbed
            self.handlers[number](number, frame)
            self._open = True
        else:
            self._waiting.append(number)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Pass signals on for the time of the block, beginning with those that wait."""
        self._open = True
        try:
            self.deliver()
            yield
        finally:
            self._open = False

    def taking(self, items: Iterable[Item]) -> Iterator[Item]:
        """Items as they come, the gate open while they are waited for."""
        source = iter(items)
        while True:
            with self.opened():
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item
            del item  # here, where no signal raises: its memory may be given back by Python code

    def deliver(self) -> None:
        """Pass on those that wait."""
        while self._waiting:
            self(self._waiting.pop(0), None)


@contextlib.contextmanager
def signals_held() -> Iterator[SignalGate]:
    """Keep SIGINT and SIGTERM until the end of the block, or until its gate is opened.

    A handler that raises while HDF5 or Arrow write through a Python file raises in the middle of
    their code: the exception is lost or turned into another, and files are left half closed, of
    which Python complains when it clears up.

    Signals that have no handler of Python's do what they always do. So do all in threads other
    than the first: Python runs handlers in that one only.
    """
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    gate = SignalGate({number: x for number, x in handlers.items() if callable(x)})
    try:
        for number in gate.handlers:
            signal.signal(number, gate)
        yield gate
    finally:
        gate.removed = True  # a signal that comes between the next lines must not be kept for ever
        for number, handler in gate.handlers.items():
            signal.signal(number, handler)
        gate.deliver()
