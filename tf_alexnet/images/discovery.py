"""Which photos a person means by files, folders and lists: an ordered list of paths."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from os import PathLike

from tf_alexnet.errors import ImageError, UsageError
from tf_alexnet.images.decode import SUFFIXES

LISTS = (".txt", ".csv")

Path = str | bytes | PathLike


def find_images(inputs: Path | Iterable[Path]) -> list[str]:
    """Paths of all photos that `inputs` name.

    Parameters
    ----------
    inputs : path, or iterable of paths
        A file: taken whatever its suffix. A folder: all below it that have an image's suffix in
        any case, hidden names left out, links followed. A ``.txt`` list: a path a line. A ``.csv``
        list: its column `path`, or without such a column the first one, whose first row counts as
        the header unless it has an image's suffix. Paths in a list are relative to the list's
        folder, and taken as they stand: whether they exist shows when they are read.

    Returns
    -------
    list of str
        In the order of `inputs`; the contents of a folder sorted by name, byte by byte, level by
        level. A file that is named twice is there once, where it came first. Bytes of a name that
        are not UTF-8 are kept as surrogates (`os.fsencode` gives them back).

    Raises
    ------
    ImageError
        If an input is missing, or a folder or list can't be read.
    UsageError
        If there is no image at all.
    """
    named = [inputs] if isinstance(inputs, str | bytes | PathLike) else list(inputs)
    places: dict[tuple[str, str], str] = {}
    real_folders: dict[str, str] = {}
    for path in (os.fsdecode(name) for name in named):
        for image in _expanded(path):
            folder, name = os.path.split(image)
            if folder not in real_folders:
                real_folders[folder] = os.path.realpath(folder)
            places.setdefault((real_folders[folder], name), image)
    if not places:
        asked = ", ".join(os.fsdecode(name) for name in named) or "no input at all"
        raise UsageError(
            asked, "no image found", f"Looked for files ending in {' '.join(sorted(SUFFIXES))}."
        )
    return list(places.values())


def has_image_suffix(name: str) -> bool:
    """Whether a name ends like a kind of image that `load_image` reads."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _expanded(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        return _in_folder(path)
    if not os.path.lexists(path):
        raise ImageError(
            path, "there is no such file or folder", "Check the name and the current folder."
        )
    suffix = os.path.splitext(path)[1].lower()
    return _in_list(path, suffix) if suffix in LISTS else iter([path])


def _in_folder(top: str) -> Iterator[str]:
    """Images below a folder, depth first; a folder that links lead to again is entered once."""
    seen = set()
    stack = [top]
    while stack:
        path = stack.pop()
        if not os.path.isdir(path):
            yield path
            continue
        try:
            status = os.stat(path)
            names = sorted(os.listdir(path), key=os.fsencode, reverse=True)
        except OSError as error:
            raise ImageError(
                path,
                f"the folder can't be read ({error.strerror})",
                "Make it readable, or move it.",
            ) from None
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            below = os.path.join(path, name)
            if not name.startswith(".") and (has_image_suffix(name) or os.path.isdir(below)):
                stack.append(below)


def _in_list(path: str, suffix: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            cells = _csv_cells(file) if suffix == ".csv" else _lines(file.read())
            entries = [cell for cell in cells if cell.strip()]
        if any("\0" in entry for entry in entries):
            raise ValueError("it holds NUL characters")
    except (OSError, ValueError, csv.Error) as error:
        fault = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            path, f"the list can't be read ({fault})", "Give a text file with a path a line."
        ) from None
    folder = os.path.dirname(path)
    return (os.path.join(folder, entry) for entry in entries)


def _lines(text: str) -> Iterator[str]:
    # str.splitlines would also split at characters that a file's name may hold.
    return (line.removesuffix("\r") for line in text.split("\n"))


def _csv_cells(file: Iterable[str]) -> Iterator[str]:
    rows = (row for row in csv.reader(file) if row)
    first = next(rows, [""])
    titles = [cell.strip().lower() for cell in first]
    column = titles.index("path") if "path" in titles else 0
    if "path" not in titles and has_image_suffix(first[0]):
        yield first[0]
    for row in rows:
        if column < len(row):
            yield row[column]
