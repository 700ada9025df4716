"""`begin_run`: is this RUN new, to be gone on with, finished, or another's?"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tf_alexnet.errors import OutputError, UsageError
from tf_alexnet.extraction.storage import Target, locked
from tf_alexnet.training.run import READOUT, RECORD, Run, read_record, write_text

SETTINGS = "settings.json"  # what a training was begun with


def check_run(folder: str | os.PathLike, *, resume: bool = False) -> None:
    """Refuse a folder that `working_in` refuses, before any work is done for it.

    Raises
    ------
    UsageError, OutputError
        As `working_in`, except that another training may hold it.
    """
    path = Path(folder)
    begun = any((path / name).is_file() for name in (SETTINGS, RECORD))
    if resume and not begun:
        raise UsageError(str(path), "no training was begun there", "Leave --resume out.")
    Target(f"{path}/").check()
    if path.is_dir() and not begun and _is_foreign(path):
        raise OutputError(
            str(path), "it holds other things, and no training", "Name a new folder for the RUN."
        )


@contextlib.contextmanager
def working_in(folder: str | os.PathLike, *, resume: bool = False) -> Iterator[Path]:
    """The RUN's folder, made if need be, and held: one training at a time.

    Raises
    ------
    UsageError
        With `resume`, where no training was begun.
    OutputError
        If the folder can't be made or written to, holds other things, or another training holds it.
    """
    check_run(folder, resume=resume)
    path = Path(folder)
    target = Target(f"{path}/")
    target.data.make()
    with locked(target.data, str(target)):
        for left in path.glob(".tf-alexnet-*"):  # what a killed training left half written
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                target.data.remove(left.name)
        yield path


def _is_foreign(path: Path) -> bool:
    """Whether there is anything but the features of a training that was killed at once."""
    return any(not name.startswith((".", "features.h5")) for name in os.listdir(path))


def begin_run(folder: Path, settings: Mapping[str, Any], *, force: bool = False) -> Run | None:
    """Compare a RUN with the settings of a training, and record them if the training is new.

    Parameters
    ----------
    folder : Path
        From `working_in`.
    settings : dict of str to str, int, float, bool or None
        All that the result depends on. The number of ``epochs`` may be larger than before.
    force : bool
        Start over whatever is there.

    Returns
    -------
    Run or None
        The finished run of these very settings; None where there is work to do.

    Raises
    ------
    UsageError
        If it was begun with other settings; the message names them.
    WeightsError
        If the finished run that is there is damaged.
    """
    settings = dict(settings)
    if force:
        for name in (RECORD, READOUT, SETTINGS):
            (folder / name).unlink(missing_ok=True)
    record = read_record(folder)
    if record is not None and dict(record.settings) == settings:
        return Run.open(folder)
    # A finished run that is being continued has other settings than its record.
    old = _begun(folder)
    old = dict(record.settings) if old is None and record is not None else old
    if old is not None:
        names = [name for name in {**old, **settings} if old.get(name) != settings.get(name)]
        if names and not (names == ["epochs"] and _grows(old["epochs"], settings["epochs"])):
            changed = ", ".join(f"{x} {old.get(x)} -> {settings.get(x)}" for x in names)
            raise UsageError(
                str(folder),
                f"it was begun with other settings: {changed}",
                "Use the same settings, name another folder, or start over with --force "
                "(force=True).",
            )
    if old != settings:
        write_text(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
    return None


def _grows(old: Any, new: Any) -> bool:
    return type(old) is type(new) is int and old < new


def _begun(folder: Path) -> dict[str, Any] | None:
    """The settings recorded by an unfinished training; None where there are none."""
    try:
        content = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(
            str(folder / SETTINGS), f"it can't be read ({error})", "Start over with --force."
        ) from None
    return content if isinstance(content, dict) else {}
