"""Progress: a bar in terminals and notebooks, otherwise a log line once a minute."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_LOG = logging.getLogger(__name__)
_PACE_SECONDS = 60
LINE_SECONDS = 60

# (done, total or None, title, figures, whether to keep the line on the screen)
_Show = Callable[..., None]


@contextlib.contextmanager
def progress_callback(
    progress: Callable | bool | None, unit: str = "photos", every: int | None = None
) -> Iterator[Callable | None]:
    """Context manager: the callback for a function's `progress` argument.

    Parameters
    ----------
    progress : callable, bool or None
        A callable is used as it is. True shows a bar on stderr or in the notebook; if stderr is not
        a terminal, it logs a line per minute to `tf_alexnet.progress`.
    unit : {"bytes", "photos", "training"}
        Signature of the callback. ``"bytes"``: (done, total). ``"photos"``: (done, total, errors,
        bytes written). ``"training"``: (stage, done, total, figures), see `train_head` and
        `train_network`.
    every : int, optional
        Also log a line each time this many are done.

    Yields
    ------
    callable or None
        None if no progress is to be reported.
    """
    if progress is not True:
        yield progress or None
        return
    from rich.console import Console

    screen = Console(stderr=True)
    if not (screen.is_jupyter or sys.stderr.isatty()):
        yield _CALLBACKS[unit](_lines(every))
        return
    with _bar(screen) as show:
        yield _CALLBACKS[unit](show)


def _lines(every: int | None) -> _Show:
    """Log a line once a minute, after each `every` photos, and at the end of each epoch."""
    last, before = time.monotonic(), 0

    def show(done: int, total: int | None, title: str, figures: str, end: bool = False) -> None:
        nonlocal last, before
        crossed = every and done != total and done // every > before // every
        before = done
        if end or crossed or time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            _LOG.info("%s%s", f"{title}: " if title else "", figures)

    return show


@contextlib.contextmanager
def _bar(screen: Any) -> Iterator[_Show]:
    from rich import progress as rich
    from rich.table import Column

    if not screen.is_jupyter:
        screen.width -= 3  # leaves room for the terminal's ^C
    bar = rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(None, table_column=Column(ratio=1)),
        rich.TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
        console=screen,
        transient=True,
        expand=True,
    )

    def show(done: int, total: int | None, title: str, figures: str, end: bool = False) -> None:
        bar.update(
            task, completed=done, total=total, description=title, figures=figures, visible=True
        )
        if end:
            bar.console.print(f"{title}: {figures}", markup=False, highlight=False)

    with bar:
        task = bar.add_task("", total=None, figures="", visible=False)
        yield show


def _bytes(show: _Show) -> Callable:
    pace = _Pace()

    def update(done: int, total: int | None) -> None:
        of = f" of {_size(total)}" if total else ""
        show(done, total, "", f"{_size(done)}{of}, {_size(pace(done))}/s, {pace.left(total)}")

    return update


def _photos(show: _Show) -> Callable:
    pace = _Pace()

    def update(done: int, total: int, errors: int = 0, written: int = 0) -> None:
        rate = f"{pace(done):,.0f}/s" + (f", {_size(written)}" if written else "")
        failed = f"{errors:,} error{'s' * (errors != 1)}"
        show(done, total, "", f"{done:,}/{total:,} photos, {rate}, {failed}, {pace.left(total)}")

    return update


def _training(show: _Show) -> Callable:
    pace, stage_now = _Pace(), ""

    def update(stage: str, done: int, total: int | None, figures: Mapping[str, Any]) -> None:
        nonlocal pace, stage_now
        if stage != stage_now:
            pace, stage_now = _Pace(), stage
        pace(done)
        parts = [_figure(name, value) for name, value in figures.items() if name not in _UNSHOWN]
        # The last report of an epoch stays on the screen
        if end := stage.startswith("epoch") and "val_loss" in figures:
            show(done, total, stage, ", ".join(parts), end)
        else:
            counted = f"{done:,}/{total:,}" if total else f"{done:,}"
            show(done, total, stage, ", ".join((counted, *parts, pace.left(total))))

    return update


_UNSHOWN = ("train_loss", "train_accuracy", "iterations")
_CALLBACKS = {"bytes": _bytes, "photos": _photos, "training": _training}


def _figure(name: str, value: float) -> str:
    share = "accuracy" in name or name.endswith("map")  # mean average precision
    number = f"{value:,}" if isinstance(value, int) else f"{value:#.3g}"
    text = f"{value:.1%}" if share else number
    return f"{name.replace('_', ' ')} {text}"


def _size(number: float) -> str:
    from rich import filesize

    return filesize.decimal(round(number))


class _Pace:
    """Items per second over the last minute, or since the report before last."""

    def __init__(self):
        self._reports: deque[tuple[float, int]] = deque()

    def __call__(self, done: int) -> float:
        now = time.monotonic()
        self._reports.append((now, done))
        while len(self._reports) > 2 and now - self._reports[1][0] > _PACE_SECONDS:
            self._reports.popleft()
        return self._rate()

    def _rate(self) -> float:
        (then, before), (now, done) = self._reports[0], self._reports[-1]
        return (done - before) / (now - then) if now > then else 0.0

    def left(self, total: int | None) -> str:
        """Estimated time left."""
        if not total or not (rate := self._rate()):
            return "- left"
        minutes, seconds = divmod(round((total - self._reports[-1][1]) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{seconds:02} left"
