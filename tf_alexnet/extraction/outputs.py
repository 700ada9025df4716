"""Reading back, block by block, what `tf_alexnet.extraction.sinks` wrote."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tf_alexnet.extraction.reader import Failure
from tf_alexnet.extraction.sinks import BLOCK_BYTES, ERROR_COLUMNS

Block = tuple[list[str], dict[str, np.ndarray]]


class Output:
    """Rows, names, errors and attributes of one file.

    Attributes
    ----------
    paths : list of str
        A name a row.
    layers : dict of str to (tuple of int, dtype)
        Shape of a row and type of its numbers.
    failures : list of Failure
        Photos that could not be read.
    attributes : dict of str to str
        What the file records about its making.
    """

    def __init__(self, paths: list[str], layers: dict, failures: list[Failure], attributes: dict):
        self.paths, self.layers, self.failures = paths, layers, failures
        self.attributes = attributes

    @property
    def count(self) -> int:
        """How many rows."""
        return len(self.paths)

    def blocks(self, layers: Sequence[str]) -> Iterator[Block]:
        """Paths and some layers' rows, in order, about `BLOCK_BYTES` at a time."""
        nbytes = sum(int(np.prod(self.layers[x][0])) * self.layers[x][1].itemsize for x in layers)
        step = max(1, BLOCK_BYTES // max(nbytes, 2048))
        with contextlib.ExitStack() as stack:
            take = {name: self._taker(name, stack) for name in layers}
            for start in range(0, self.count, step):
                stop = min(start + step, self.count)
                rows = {name: read(start, stop) for name, read in take.items()}
                yield self.paths[start:stop], rows

    def _taker(self, layer: str, stack: contextlib.ExitStack) -> Callable[[int, int], np.ndarray]:
        """A function that reads rows of a layer; it is asked for all of them, in order."""
        raise NotImplementedError


@contextlib.contextmanager
def open_output(path: Path, names: Path | None = None) -> Iterator[Output]:
    """What a file holds, its kind told by the suffix.

    Parameters
    ----------
    path : Path
        ``.h5``, ``.hdf5``, ``.npz``, ``.npy`` or ``.parquet``.
    names : Path, optional
        The JSON file that belongs to an ``.npy``.

    Raises
    ------
    ValueError, KeyError, OSError
        If the file is damaged, or was not written by this package.
    """
    with contextlib.ExitStack() as stack:
        if path.suffix == ".npy":
            yield _Npy(path, names)
        else:
            kind = {".npz": _Npz, ".parquet": _Parquet}.get(path.suffix, _Hdf5)
            yield kind(path, stack)


class _Hdf5(Output):
    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._file = file = stack.enter_context(h5py.File(path, "r"))
        failures = zip(*(_names(file[f"errors/{x}"]) for x in ERROR_COLUMNS), strict=True)
        super().__init__(
            _names(file["paths"]),
            {x: (file[x].shape[1:], file[x].dtype) for x in file.attrs["layers"].split()},
            [Failure(*failure) for failure in failures],
            dict(file.attrs),
        )

    def _taker(self, layer: str, stack: contextlib.ExitStack) -> Callable[[int, int], np.ndarray]:
        data = self._file[layer]
        return lambda start, stop: data[start:stop]


def _names(dataset: h5py.Dataset) -> list[str]:
    return [raw.decode("utf-8", "surrogateescape") for raw in dataset[:]]


class _Npz(Output):
    def __init__(self, path: Path, stack: contextlib.ExitStack):
        with np.load(path, allow_pickle=False) as file:
            columns = [file[f"errors_{x}"].tolist() for x in ERROR_COLUMNS]
            paths, attributes = file["paths"].tolist(), json.loads(str(file["attributes"]))
        self._archive = stack.enter_context(zipfile.ZipFile(path))
        names = attributes["layers"].split()
        with contextlib.ExitStack() as members:
            headers = {name: self._header(name, members)[1] for name in names}
        failures = [Failure(*failure) for failure in zip(*columns, strict=True)]
        super().__init__(paths, headers, failures, attributes)

    def _header(self, layer: str, stack: contextlib.ExitStack) -> tuple[Any, tuple]:
        member = stack.enter_context(self._archive.open(f"{layer}.npy"))
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        return member, (shape[1:], dtype)

    def _taker(self, layer: str, stack: contextlib.ExitStack) -> Callable[[int, int], np.ndarray]:
        member, (shape, dtype) = self._header(layer, stack)
        row = int(np.prod(shape)) * dtype.itemsize

        def take(start: int, stop: int) -> np.ndarray:
            data = member.read(row * (stop - start))
            return np.frombuffer(data, dtype).reshape(stop - start, *shape)

        return take


class _Npy(Output):
    def __init__(self, path: Path, names: Path):
        known = json.loads(names.read_text(encoding="utf-8"))
        self._rows = np.load(path, mmap_mode="r", allow_pickle=False)
        # The two files are renamed one after the other. Each is the beginning of its successor, so
        # whichever is older says how far both are right.
        paths = known["paths"][: len(self._rows)]
        layers = {known["attributes"]["layers"]: (self._rows.shape[1:], self._rows.dtype)}
        failures = [Failure(**failure) for failure in known["errors"]]
        super().__init__(paths, layers, failures, known["attributes"])

    def _taker(self, layer: str, stack: contextlib.ExitStack) -> Callable[[int, int], np.ndarray]:
        return lambda start, stop: self._rows[start:stop]


class _Parquet(Output):
    def __init__(self, path: Path, stack: contextlib.ExitStack):
        import pyarrow as pa
        import pyarrow.parquet as pq

        # As bytes: Arrow takes a path for text, and knows none that is not UTF-8.
        raw = stack.enter_context(pa.OSFile(os.fsencode(path)))
        self._file = file = stack.enter_context(pq.ParquetFile(raw))
        table = file.read(columns=["path", "path_bytes", "status", "detail"])
        columns = [table[name].to_pylist() for name in table.column_names]
        paths, failures = [], []
        for shown, raw, status, detail in zip(*columns, strict=True):
            name = shown if raw is None else raw.decode("utf-8", "surrogateescape")
            if status == "ok":
                paths.append(name)
            else:
                failures.append(Failure(name, status, detail))
        layers = {}
        for field in file.schema_arrow:
            if field.metadata and b"shape" in field.metadata:
                shape = tuple(map(int, field.metadata[b"shape"].split()))
                layers[field.name] = shape, np.dtype(field.type.value_type.to_pandas_dtype())
        known = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
        known.pop("ARROW:schema", None)
        super().__init__(paths, layers, failures, known)

    def _taker(self, layer: str, stack: contextlib.ExitStack) -> Callable[[int, int], np.ndarray]:
        raise NotImplementedError

    def blocks(self, layers: Sequence[str]) -> Iterator[Block]:
        """Paths and some layers' rows, a row group at a time."""
        if not layers:
            yield from super().blocks(layers)
            return
        paths = iter(self.paths)
        for i in range(self._file.num_row_groups):
            group = self._file.read_row_group(i, columns=["status", *layers])
            # Rows of photos that could not be read come last, in row groups of their own.
            if group["status"][0].as_py() != "ok":
                return
            rows = {}
            for name in layers:
                flat = group[name].combine_chunks().flatten().to_numpy()
                rows[name] = flat.reshape(len(group), *self.layers[name][0])
            yield list(itertools.islice(paths, len(group))), rows


class Joined:
    """Several outputs as one, in order; a photo with a row in one did not fail in another.

    Parameters
    ----------
    parts : sequence of callable
        Each returns a context manager that yields an `Output`.
    attributes : dict of str to str
        Of the whole.
    """

    def __init__(self, parts: Sequence[Callable[[], Any]], attributes: dict[str, str]):
        self._parts, self.attributes = parts, attributes
        self.count = 0
        self.layers: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        failures: dict[str, Failure] = {}
        for part in parts:
            with part() as output:
                self.count += output.count
                self.layers = output.layers
                failures.update({failure.path: failure for failure in output.failures})
        if failures:  # some may have a row by now, in whichever shard that was
            for paths, _ in self.blocks([]):
                for path in paths:
                    failures.pop(path, None)
        self.failures = list(failures.values())

    def blocks(self, layers: Sequence[str]) -> Iterator[Block]:
        """Paths and some layers' rows, in order."""
        for part in self._parts:
            with part() as output:
                yield from output.blocks(layers)
