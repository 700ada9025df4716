"""Lists of photos: containers in memory, text files and tables."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from tf_alexnet.errors import AlexNetError, ImageError, InputError, UsageError, one_line
from tf_alexnet.images.decode import SUFFIXES
from tf_alexnet.remote import filesystem, is_url

LISTS = (".txt", ".csv", ".tsv", ".parquet")
# Titles of a column of paths, besides `path`, if no column looks more like one.
_TITLES = (
    *("image", "img", "image_path", "img_path", "file", "filename", "file_name", "filepath"),
    *("file_path", "stimulus", "stimuli", "photo", "picture"),
)
_ROWS = 20  # rows used to find the column of paths
_LABEL = re.compile(r"(.*\S)[\s,;]+(?:-?\d+|n\d{8})", re.DOTALL)  # a path followed by a class
_LONGEST = 5000  # characters in a path

_log = logging.getLogger(__name__)


def as_sequence(images: Any, what: str = "images") -> list:
    """The photos in a container of any kind, as a list.

    Parameters
    ----------
    images : container of photos, or a single photo
        A photo is a path, the bytes of an image file, an open file, a PIL image, or pixels. A
        container is any iterable (sets are sorted); a pandas or polars column, or a table with one
        column; or an array or tensor (NumPy, TensorFlow, PyTorch) of paths, (N,) or (N, 1), or of
        pixels, (N, H, W, 3). Pixels of shape (H, W, 3) are a single photo.
    what : str
        Name of the argument in error messages.

    Returns
    -------
    list
        Paths are unchanged; pixels are ndarrays of any dtype and shape.

    Raises
    ------
    InputError
        If it is not such a container, or an entry (``images[3]``) is not a photo: None, NaN, a
        list.
    """
    if _is_photo(images):
        return [images]
    if isinstance(images, Mapping):
        raise InputError(what, "a dictionary, which is not a sequence", "Give list(x.values()).")
    array = _as_array(images, what)
    if array is not None:
        entries = _entries_of(array, what)
    elif hasattr(images, "__iter__"):
        entries = list(images)
    else:
        raise _no_photo(images, what)
    entries = [_entry(entry, f"{what}[{number}]") for number, entry in enumerate(entries)]
    if isinstance(images, set | frozenset):
        entries.sort(key=lambda x: os.fsencode(x) if isinstance(x, str | os.PathLike) else b"")
    return entries


def _is_photo(entry: Any) -> bool:
    kinds = str | bytes | bytearray | memoryview | os.PathLike | Image.Image
    return isinstance(entry, kinds) or hasattr(entry, "read")


def _as_array(given: Any, what: str) -> np.ndarray | None:
    """An array, tensor or column as ndarray; None for anything else."""
    try:
        if hasattr(given, "detach"):  # PyTorch, perhaps on a GPU
            given = given.detach().cpu()
        return np.asarray(given) if hasattr(given, "__array__") else None
    except Exception:  # symbolic, sparse, ...: each library raises its own
        raise _no_photo(given, what) from None


def _entries_of(array: np.ndarray, what: str) -> list:
    if array.ndim in (0, 3):
        return [array]
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 4 or (array.ndim == 1 and array.dtype.kind in "OUST"):
        return list(array)
    found = f"an array of {array.dtype} of shape {array.shape}, neither paths nor pixels"
    advice = "Give one column of paths, or uint8 RGB of shape (N, H, W, 3)."
    raise InputError(what, found, advice)


def _entry(entry: Any, what: str) -> Any:
    if _is_photo(entry):
        return entry
    array = _as_array(entry, what)
    if array is not None and (array.ndim or isinstance(array.item(), str | bytes)):
        return array if array.ndim else array.item()
    raise _no_photo(entry, what)


def _no_photo(entry: Any, what: str) -> InputError:
    text = repr(entry)
    found = text if len(text) < 40 else f"a value of type {type(entry).__name__}"
    advice = "Give paths, or uint8 RGB pixels of shape (H, W, 3)."
    return InputError(what, f"{found} is not a photo", advice)


def has_image_suffix(name: str) -> bool:
    """Whether a name has the suffix of an image format that `load_image` reads."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def read_list(path: str, suffix: str, base: str) -> Iterator[str]:
    """Yield the paths in a list or table one by one, to save memory.

    Parameters
    ----------
    path : str
        A file, a URL, or ``-`` for standard input.
    suffix : str
        Format of the list: one of `LISTS`.
    base : str
        Folder that the paths are relative to.

    Raises
    ------
    ImageError, UsageError
        If it can't be read, no column holds paths, or pyarrow is missing.
    """
    with _reading(path), _opened(path, suffix) as file:
        if suffix == ".parquet":
            cells = _parquet_cells(file, path)
        elif suffix == ".txt":
            cells = (line.removesuffix("\n").removesuffix("\r") for line in file)
        else:
            cells = _cells(file, path, suffix)
        for cell in cells:
            if cell.strip():
                yield _entry_in(cell, base)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except AlexNetError:
        raise
    except Exception as error:  # each kind of storage has its own
        fault = getattr(error, "strerror", None) or str(error)
        advice = "Give text with one path per line, or a table with a column `path`."
        raise ImageError(path, f"the list can't be read ({fault})", advice) from None


def _entry_in(cell: str, base: str) -> str:
    if "\0" in cell:
        raise ValueError("it holds NUL characters")
    return _as_meant(cell, base)


class Table(NamedTuple):
    """A table of photos, in memory.

    Attributes
    ----------
    paths : list of str
        Photos, relative to the table's folder, as from `read_list`.
    columns : dict of str to list of str
        The other columns by title; titles and cells are stripped. Lists in cells of a Parquet table
        are joined by ``|``.
    """

    paths: list[str]
    columns: dict[str, list[str]]


def read_table(path: str) -> Table:
    """Read a table of photos (``.csv``, ``.tsv`` or ``.parquet``) with all its columns.

    The column of paths is found as in `read_list`. A table of two columns needs no header: the
    other column is then called ``label``.

    Raises
    ------
    ImageError, UsageError
        If it can't be read, no column holds paths, or two columns have the same title.
    """
    suffix = os.path.splitext(path)[1].lower()
    with _reading(path), _opened(path, suffix) as file:
        rows = [*(_parquet_rows(file, path) if suffix == ".parquet" else text_rows(file, suffix))]
        titles = [title.strip() for title in rows[0]] if rows else []
        column = path_column(rows) if rows else None
        if column is None:
            raise _no_paths(path, [dict.fromkeys(titles)])
        if has_image_suffix(titles[column]) and len(titles) == 2:
            titles = ["label", "label"]
        else:
            del rows[0]
        others = [i for i, title in enumerate(titles) if title and i != column]  # "" is an index
        if len({titles[i] for i in others}) < len(others):
            raise UsageError(path, "two columns have the same title", "Rename one of them.")
        rows = [row + [""] * (len(titles) - len(row)) for row in rows]
        rows = [row for row in rows if row[column].strip()]
        base = os.path.dirname(path)
        return Table(
            [_entry_in(row[column], base) for row in rows],
            {titles[i]: [row[i].strip() for row in rows] for i in others},
        )


def _opened(path: str, suffix: str) -> IO:
    """A Parquet table as a binary file, others as text; invalid UTF-8 becomes surrogates."""
    if path == "-":
        raw = io.BytesIO(sys.stdin.buffer.read())
    elif is_url(path):
        files, place = filesystem(path)
        raw = io.BytesIO(files.cat_file(place))
    else:
        raw = io.FileIO(path)
    file = io.BufferedReader(raw)
    if suffix == ".parquet":
        return file
    # Names may hold any other character that Python or the csv module takes for a line's end.
    newline = "\n" if suffix == ".txt" else ""
    if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return io.TextIOWrapper(file, "utf-16", newline=newline)
    return io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline)


def _as_meant(entry: str, base: str) -> str:
    r"""An entry without surrounding blanks, quotes and class, and with ``/`` for ``\``.

    Unchanged if a file has exactly that name.
    """
    meant = entry.strip()
    if len(meant) > 1 and meant[0] == meant[-1] == '"':
        meant = meant[1:-1]
    if len(meant) < _LONGEST and not has_image_suffix(meant):
        path = meant
        while not has_image_suffix(path) and (match := _LABEL.fullmatch(path)):
            path = match[1]
        meant = path if has_image_suffix(path) else meant
    if os.sep == "/" and "/" not in meant:
        meant = meant.replace("\\", "/")
    is_name = meant == entry or os.path.lexists(os.path.join(base, entry))
    return entry if is_name else meant


def _cells(lines: Iterable[str], path: str, suffix: str) -> Iterator[str]:
    """The column of paths in a text table."""
    rows = text_rows(lines, suffix)
    head = [*islice(rows, _ROWS)]
    titles = head[0] if head else [""]
    column = _column(titles, head) or 0
    if len(titles) > 1:
        name = titles[column] if not has_image_suffix(titles[column]) else column + 1
        _log.info("%s: reading column %r", one_line(path), name)
    for number, row in enumerate(chain(head, rows)):
        if column < len(row) and (number or has_image_suffix(row[column])):
            yield row[column]


def text_rows(lines: Iterable[str], suffix: str) -> Iterator[list[str]]:
    """The rows of a text table, without empty ones."""
    lines = iter(lines)
    first = next((line for line in lines if line.strip()), "")
    separator = "\t" if suffix == ".tsv" else max(",;\t", key=first.count)
    if match := re.fullmatch(r"sep=(.)\s*", first):  # Excel's
        separator, first = match[1], ""
    return (row for row in csv.reader(chain([first], lines), delimiter=separator) if row)


def path_column(rows: list[list[str]]) -> int | None:
    """Index of the column of paths, or None. The first row may be a header."""
    return _column(rows[0], rows[:_ROWS])


def _column(titles: list[str], rows: list[list[str]]) -> int | None:
    """Index of the column of paths, found by its title or cells; None if there is none."""
    titles = [title.strip().lower() for title in titles]
    if "path" in titles:
        return titles.index("path")
    like = []
    for column in range(len(titles)):
        cells = [row[column].strip() for row in rows if column < len(row) and row[column].strip()]
        if cells and 2 * sum(map(has_image_suffix, cells)) >= len(cells):
            like.append(column)
    named = [titles.index(title) for title in _TITLES if title in titles]
    return next(iter([x for x in named if x in like] or like or named), None)


def _parquet_file(file: IO, path: str) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        advice = "Install it: pip install 'tf-alexnet[parquet]'."
        raise UsageError(path, "pyarrow is not installed", advice) from None
    return ParquetFile(file)


def _parquet_cells(file: IO, path: str) -> Iterator[str]:
    """The column of paths in a Parquet table."""
    table = _parquet_file(file, path)
    names = table.schema_arrow.names
    head = [row for batch in islice(table.iter_batches(_ROWS), 1) for row in batch.to_pylist()]
    rows = [[_path_in(row[name]) for name in names] for row in head]
    titles = [name if any(row[i] for row in rows) else "" for i, name in enumerate(names)]
    column = _column(titles, rows)
    if column is None:
        raise _no_paths(path, head)
    _log.info("%s: reading column %r", one_line(path), names[column])
    for batch in table.iter_batches(columns=[names[column]]):
        yield from map(_path_in, batch.column(0).to_pylist())


def _parquet_rows(file: IO, path: str) -> Iterator[list[str]]:
    """The titles and all rows of a Parquet table, as text."""
    table = _parquet_file(file, path)
    yield table.schema_arrow.names
    for batch in table.iter_batches():
        for row in batch.to_pylist():
            yield [_text_in(value) for value in row.values()]


def _text_in(value: Any) -> str:
    if isinstance(value, list):
        return "|".join(map(str, value))
    if isinstance(value, dict | bytes) or value is None:
        return _path_in(value)
    return str(int(value)) if isinstance(value, bool) else str(value)


def _path_in(value: Any) -> str:
    """The path in a cell: text, or a Hugging Face image that refers to a file."""
    if isinstance(value, dict) and not value.get("bytes"):
        value = value.get("path")
    return value if isinstance(value, str) else ""


def _no_paths(path: str, rows: list[dict]) -> UsageError:
    for name, value in rows[0].items() if rows else ():
        part = '["bytes"]' if isinstance(value, dict) else ""
        if isinstance(value.get("bytes") if part else value, bytes):
            found = f"column {name!r} holds the photos themselves, not paths"
            read = f'pyarrow.parquet.read_table("{os.path.basename(path)}")["{name}"].to_pylist()'
            return UsageError(path, found, f"Pass them to from_images: [x{part} for x in {read}].")
    columns = ", ".join(rows[0]) if rows else "none"
    return UsageError(path, f"no column of paths ({columns})", "Call the column of paths `path`.")
