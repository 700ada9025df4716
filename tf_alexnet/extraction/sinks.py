"""Where rows go: one file that holds names and rows together, there whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from tf_alexnet.errors import OutputError, UsageError
from tf_alexnet.files import check_folder, replacing


class Sink(Protocol):
    """Takes rows as they come."""

    def add(self, paths: Sequence[str], rows: Mapping[str, np.ndarray]) -> None:
        """Append one row a path to every layer."""

    def close(self, failures: Sequence[tuple[str, str]], attributes: Mapping[str, str]) -> None:
        """Write what is known at the end."""


def check_output(path: str | os.PathLike) -> None:
    """Refuse an output that could not be written, before any work is done for it.

    Raises
    ------
    UsageError
        If the suffix is not one of ``.h5``, ``.hdf5``, ``.npz``.
    OutputError
        If the folder is missing or not writable, or the path is a folder.
    """
    if Path(path).suffix.lower() not in _SINKS:
        raise UsageError(
            f"output {os.fspath(path)}",
            f"no format has the suffix {Path(path).suffix!r}",
            f"Use one of {', '.join(_SINKS)}.",
        )
    check_folder(path)


@contextlib.contextmanager
def open_sink(path: str | os.PathLike) -> Iterator[Sink]:
    """A sink for `path`, chosen by its suffix; the file appears when the block ends well.

    Raises
    ------
    OutputError
        If writing fails.
    """
    check_output(path)
    with replacing(path) as temporary, contextlib.ExitStack() as stack:
        sink = _SINKS[Path(path).suffix.lower()](temporary, stack)
        try:
            yield sink
        except RuntimeError as error:  # h5py's word for a failed write when it closes
            if "write" not in str(error):
                raise
            raise OutputError(
                os.fspath(path), "writing failed", "Check the space left on the disk."
            ) from error


class Hdf5Sink:
    """An HDF5 file: a dataset a layer, ``paths``, a group ``errors``, attributes on the root."""

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._file = stack.enter_context(h5py.File(path, "w"))
        self._paths = self._strings(self._file, "paths")

    @staticmethod
    def _strings(group: h5py.Group, name: str) -> h5py.Dataset:
        return group.create_dataset(name, (0,), h5py.string_dtype(), maxshape=(None,), chunks=True)

    def add(self, paths: Sequence[str], rows: Mapping[str, np.ndarray]) -> None:
        """Append one row a path to every layer."""
        for name, values in rows.items():
            if name not in self._file:
                # About a megabyte a chunk: few enough to index, small enough to read one row.
                chunk = max(1, 2**20 // values[0].nbytes)
                data = self._file.create_dataset(
                    name,
                    (0, *values.shape[1:]),
                    values.dtype,
                    maxshape=(None, *values.shape[1:]),
                    chunks=(chunk, *values.shape[1:]),
                )
                data.attrs["layer"] = name
            _append(self._file[name], values)
        _append(self._paths, _utf8(paths))

    def close(self, failures: Sequence[tuple[str, str]], attributes: Mapping[str, str]) -> None:
        """Write the errors and the attributes."""
        group = self._file.create_group("errors")
        for i, name in enumerate(("paths", "reasons")):
            _append(self._strings(group, name), _utf8([failure[i] for failure in failures]))
        self._file.attrs.update(attributes)


def _append(dataset: h5py.Dataset, values: np.ndarray) -> None:
    start = len(dataset)
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def _utf8(names: Sequence[str]) -> np.ndarray:
    """Names as bytes; those that are not UTF-8 on disk keep their bytes."""
    return np.array([name.encode("utf-8", "surrogateescape") for name in names], dtype=object)


class NpzSink:
    """A NumPy archive, uncompressed: an array a layer, ``paths``, errors, ``attributes`` (JSON).

    Rows wait in one file a layer beside the archive until their number is known.
    """

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._path, self._stack = path, stack
        self._rows: dict[str, io.BufferedRandom] = {}
        self._kinds: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        self._paths: list[str] = []

    def add(self, paths: Sequence[str], rows: Mapping[str, np.ndarray]) -> None:
        """Append one row a path to every layer."""
        for name, values in rows.items():
            if name not in self._rows:
                part = self._path.with_name(f"{self._path.name}.{name}")
                self._stack.callback(part.unlink, missing_ok=True)
                self._rows[name] = self._stack.enter_context(part.open("w+b"))
                self._kinds[name] = values.shape[1:], values.dtype
            self._rows[name].write(np.ascontiguousarray(values).data)
        self._paths.extend(paths)

    def close(self, failures: Sequence[tuple[str, str]], attributes: Mapping[str, str]) -> None:
        """Put the archive together."""
        small = {
            "paths": np.array(self._paths, dtype=str),
            "errors_paths": np.array([path for path, _ in failures], dtype=str),
            "errors_reasons": np.array([reason for _, reason in failures], dtype=str),
            "attributes": np.array(json.dumps(dict(attributes))),
        }
        with zipfile.ZipFile(self._path, "w", allowZip64=True) as archive:
            for name, array in small.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, rows in self._rows.items():
                shape, dtype = self._kinds[name]
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": (len(self._paths), *shape),
                }
                rows.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(rows, member, 1 << 20)


_SINKS = {".h5": Hdf5Sink, ".hdf5": Hdf5Sink, ".npz": NpzSink}
