"""Which photos a person means by files, folders, patterns, lists and URLs: an ordered list."""

from __future__ import annotations

import csv
import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import TextIO

from tf_alexnet.errors import AlexNetError, ImageError, UsageError
from tf_alexnet.images.decode import SUFFIXES
from tf_alexnet.remote import filesystem, is_url

LISTS = (".txt", ".csv")

Path = str | bytes | PathLike


def find_images(inputs: Path | Iterable[Path], *, repeats: bool = False) -> list[str]:
    """Paths of all photos that `inputs` name.

    Parameters
    ----------
    inputs : path, or iterable of paths
        A file: taken whatever its suffix. A folder: all below it that have an image's suffix in
        any case, hidden names left out, links followed; also an empty folder with such a name,
        which whoever reads it reports. A ``.txt`` list: a path a line. A ``.csv`` list: its column
        `path`, or without such a column the first one, whose first row counts as
        the header unless it has an image's suffix. Paths in a list are relative to the list's
        folder, and taken as they stand: whether they exist shows when they are read. ``-`` is a
        list on standard input, relative to the current folder. A pattern (``*``, ``?``, ``[...]``,
        ``**``) that is no file's name: what it matches, as if all that were named. A URL
        (``s3://...``): the same by fsspec; entries of a list may be URLs too.

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
    places: dict[str, str] = {}
    mentions: list[str] = []
    real_folders: dict[str, str] = {}
    first_names: dict[str, str] = {}  # of real folders
    for path in (os.fsdecode(name) for name in named):
        for image in _expanded(path):
            folder, name = os.path.split(image)
            if folder not in real_folders:
                real = folder if is_url(folder) else os.path.realpath(folder)
                real_folders[folder] = first_names.setdefault(real, folder)
            # By far the most often that is `image` itself, and no second string is kept.
            first = real_folders[folder]
            place = image if first == folder else os.path.join(first, name)
            name = places.setdefault(place, image)
            if repeats:
                mentions.append(name)
    if not places:
        asked = ", ".join(os.fsdecode(name) for name in named) or "no input at all"
        raise UsageError(
            asked, "no image found", f"Looked for files ending in {' '.join(sorted(SUFFIXES))}."
        )
    return mentions if repeats else list(places.values())


def subfolders(folder: str) -> dict[str, str]:
    """Name -> path of the folders in a folder, by the order of their names' bytes.

    Hidden ones are left out.

    Raises
    ------
    ImageError
        If the folder is missing or can't be read.
    """
    if not os.path.isdir(folder):
        raise ImageError(folder, "there is no such folder", "Name a folder with a folder a class.")
    try:
        names = sorted(os.listdir(folder), key=os.fsencode)
    except OSError as error:
        raise ImageError(
            folder, f"the folder can't be read ({error.strerror})", "Make it readable."
        ) from None
    paths = {name: os.path.join(folder, name) for name in names if not name.startswith(".")}
    return {name: path for name, path in paths.items() if os.path.isdir(path)}


def has_image_suffix(name: str) -> bool:
    """Whether a name ends like a kind of image that `load_image` reads."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _expanded(path: str) -> Iterator[str]:
    if is_url(path):
        return _at_url(path)
    if path == "-":
        return _in_list(path, ".txt")
    if os.path.isdir(path):
        return _in_folder(path)
    if not os.path.lexists(path):
        return _matching(path)
    suffix = os.path.splitext(path)[1].lower()
    return _in_list(path, suffix) if suffix in LISTS else iter([path])


def _matching(pattern: str) -> Iterator[str]:
    """What a shell would have put in the place of a pattern."""
    found = []
    if glob.has_magic(pattern) and "\0" not in pattern:
        found = sorted(glob.glob(pattern, recursive=True), key=os.fsencode)
    if not found:
        raise ImageError(
            pattern, "there is no such file or folder", "Check the name and the current folder."
        )
    for path in found:
        yield from _expanded(path)


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
        below = [
            place
            for name in names
            if not name.startswith(".")
            and (os.path.isdir(place := os.path.join(path, name)) or has_image_suffix(name))
        ]
        if not below and path != top and has_image_suffix(path):
            yield path  # a folder in a photo's place: whoever decodes it says so
        stack += below


def _at_url(url: str) -> Iterator[str]:
    """Images that a URL names, sorted as those of a folder are."""
    files, path = filesystem(url)
    try:
        if glob.has_magic(path) and not files.exists(path):
            found = files.glob(path)
        elif files.isdir(path):
            found = [x for x in files.find(path) if _is_wanted(x[len(path.rstrip("/")) :])]
        elif os.path.splitext(path)[1].lower() in LISTS:
            return _in_list(url, os.path.splitext(path)[1].lower())
        else:
            return iter([url])
    except AlexNetError:
        raise
    except Exception as error:  # every service has errors of its own kind
        raise ImageError(
            url,
            f"it can't be listed ({error or type(error).__name__})",
            "Check the address and your rights there.",
        ) from error
    found.sort(key=lambda x: [part.encode("utf-8", "surrogateescape") for part in x.split("/")])
    return iter([files.unstrip_protocol(x) for x in found])


def _is_wanted(below: str) -> bool:
    return has_image_suffix(below) and not any(x.startswith(".") for x in below.split("/"))


def _in_list(path: str, suffix: str) -> Iterator[str]:
    folder = "" if path == "-" else os.path.dirname(path)
    try:
        with _opened(path, suffix) as file:
            # One by one: a list of a million photos need not be in memory three times.
            for entry in _csv_cells(file) if suffix == ".csv" else _lines(file):
                if "\0" in entry:
                    raise ValueError("it holds NUL characters")
                if entry.strip():
                    yield entry if is_url(entry) else os.path.join(folder, entry)
    except AlexNetError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        fault = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            path, f"the list can't be read ({fault})", "Give a text file with a path a line."
        ) from None


def _opened(path: str, suffix: str) -> TextIO:
    """A list as text; bytes that are not UTF-8 become surrogates, as in the names of files."""
    # A name may hold any other character that Python or the csv module would end a line at.
    kind = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": "\n"}
    if suffix == ".csv":
        kind["newline"] = ""
    if path == "-":
        return io.TextIOWrapper(io.BytesIO(sys.stdin.buffer.read()), **kind)
    if is_url(path):
        files, place = filesystem(path)
        return io.TextIOWrapper(io.BytesIO(files.cat_file(place)), **kind)
    return open(path, **kind)


def _lines(file: Iterable[str]) -> Iterator[str]:
    return (line.removesuffix("\n").removesuffix("\r") for line in file)


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
