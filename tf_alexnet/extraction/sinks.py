"""Where rows go: files that hold names and rows together.

Shards are written row by row as they come (`Hdf5Writer`, `ParquetWriter`); a whole file is put
together from what was written before (`write_output`), streaming.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import h5py
import numpy as np

from tf_alexnet.extraction.reader import Failure
from tf_alexnet.extraction.signals import SignalGate, signals_held
from tf_alexnet.extraction.storage import OutputFile

BLOCK_BYTES = 8 * 2**20  # rows that are in memory together while files are put together
ERROR_COLUMNS = ("paths", "codes", "details")
_OK = "ok"


class Rows(Protocol):
    """Rows that were written before, read block by block."""

    layers: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    count: int
    failures: Sequence[Failure]
    attributes: Mapping[str, str]

    def blocks(self, layers: Sequence[str]) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
        """Paths and some layers' rows, in order."""


def writer_for(suffix: str) -> type[Hdf5Writer] | type[ParquetWriter]:
    """The class that writes shards with this suffix."""
    return ParquetWriter if suffix == ".parquet" else Hdf5Writer


def write_output(suffix: str, file: OutputFile, rows: Rows) -> None:
    """Write all of `rows` into one file."""
    if suffix == ".npz":
        _write_npz(file, rows)
    elif suffix == ".npy":
        _write_npy(file, rows)
    else:
        with signals_held() as gate, writer_for(suffix)(file) as writer:
            for paths, blobs in gate.taking(rows.blocks(list(rows.layers))):
                writer.add(paths, blobs)
            writer.finish(rows.failures, rows.attributes)


class Hdf5Writer:
    """An HDF5 file: a dataset a layer, ``paths``, a group ``errors``, attributes on the root."""

    def __init__(self, file: OutputFile):
        self._raw = file
        self._file = h5py.File(file, "w")
        self._paths = self._strings(self._file, "paths")

    def __enter__(self) -> Hdf5Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @staticmethod
    def _strings(group: h5py.Group, name: str) -> h5py.Dataset:
        return group.create_dataset(name, (0,), h5py.string_dtype(), maxshape=(None,), chunks=True)

    def add(self, paths: Sequence[str], rows: Mapping[str, np.ndarray]) -> None:
        """Append one row a path to every layer."""
        for name, values in rows.items():
            if name not in self._file:
                # About a megabyte a chunk: few enough to index, small enough to read one row.
                chunk = max(1, 2**20 // (values.dtype.itemsize * int(np.prod(values.shape[1:]))))
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
        self._raw.check()

    def finish(self, failures: Sequence[Failure], attributes: Mapping[str, str]) -> None:
        """Write the errors and the attributes."""
        group = self._file.create_group("errors")
        for i, name in enumerate(ERROR_COLUMNS):
            _append(self._strings(group, name), _utf8([failure[i] for failure in failures]))
        self._file.attrs.update(attributes)


def _append(dataset: h5py.Dataset, values: np.ndarray) -> None:
    start = len(dataset)
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def _utf8(names: Sequence[str]) -> np.ndarray:
    """Names as bytes; those that are not UTF-8 on disk keep their bytes."""
    return np.array([name.encode("utf-8", "surrogateescape") for name in names], dtype=object)


class ParquetWriter:
    """A Parquet file: one row a photo, with ``path``, ``status``, ``detail`` and the layers.

    ``status`` is ``ok`` or the reason's code; the layers of a photo that could not be read are
    null. A layer is a list of fixed size; the shape of a blob that is more than a vector stands in
    its field's metadata. ``path`` has to be UTF-8 here: bytes that are not are shown as ``\\xff``,
    and ``path_bytes`` has the name as it is, null for all others.
    """

    def __init__(self, file: OutputFile):
        self._raw = file
        self._writer: Any = None
        self._waiting: list[tuple[Sequence[str], Mapping[str, np.ndarray]]] = []
        self._bytes = 0

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, paths: Sequence[str], rows: Mapping[str, np.ndarray]) -> None:
        """Append one row a path to every layer."""
        self._waiting.append((paths, rows))
        self._bytes += sum(values.nbytes for values in rows.values())
        if self._bytes >= BLOCK_BYTES:  # a row group
            self._flush()

    def finish(self, failures: Sequence[Failure], attributes: Mapping[str, str]) -> None:
        """Write what waits, the errors and the attributes."""
        self._flush()
        if failures:
            paths, codes, details = (
                list(column) for column in list(zip(*failures, strict=True))[:3]
            )
            self._write(paths, codes, details, {})
        if self._writer is None:
            self._write([], [], [], {})
        self._writer.add_key_value_metadata(dict(attributes))

    def _flush(self) -> None:
        if not self._waiting:
            return
        paths = [path for some, _ in self._waiting for path in some]
        layers = self._waiting[0][1]
        rows = {name: np.concatenate([rows[name] for _, rows in self._waiting]) for name in layers}
        self._waiting, self._bytes = [], 0
        self._write(paths, [_OK] * len(paths), [None] * len(paths), rows)
        self._raw.check()

    def _write(self, paths: list, status: list, details: list, rows: Mapping) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._schema = _schema({name: (a.shape[1:], a.dtype) for name, a in rows.items()})
            # Numbers hardly repeat: a dictionary of them, or packing them, costs time for nothing.
            self._writer = pq.ParquetWriter(
                pa.PythonFile(self._raw, "w"),
                self._schema,
                compression="none",
                use_dictionary=["status"],
                write_statistics=["path", "status"],
            )
        odd = [
            None if _is_utf8(path) else path.encode("utf-8", "surrogateescape") for path in paths
        ]
        columns = [
            pa.array([printable(path) for path in paths], pa.string()),
            pa.array(odd, pa.binary()),
            pa.array(status, pa.string()),
            pa.array([x and printable(x) for x in details], pa.string()),
        ]
        for field in list(self._schema)[len(columns) :]:
            values = rows.get(field.name)
            if values is None:
                columns.append(pa.nulls(len(paths), field.type))
            else:
                flat = pa.array(np.ascontiguousarray(values).ravel())
                columns.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
        if paths:
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))


def _schema(layers: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> Any:
    import pyarrow as pa

    fields = [
        pa.field("path", pa.string()),
        pa.field("path_bytes", pa.binary()),
        pa.field("status", pa.string()),
        pa.field("detail", pa.string()),
    ]
    for name, (shape, dtype) in layers.items():
        kind = pa.list_(pa.from_numpy_dtype(dtype), int(np.prod(shape)))
        fields.append(pa.field(name, kind, metadata={"shape": " ".join(map(str, shape))}))
    return pa.schema(fields)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """`text` with bytes that are not UTF-8 shown as ``\\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _write_npz(file: OutputFile, rows: Rows) -> None:
    """A NumPy archive, uncompressed: an array a layer, ``paths``, errors, ``attributes`` (JSON)."""
    failures = rows.failures
    small = {
        "errors_paths": np.array([failure.path for failure in failures], dtype=str),
        "errors_codes": np.array([failure.code for failure in failures], dtype=str),
        "errors_details": np.array([failure.detail for failure in failures], dtype=str),
        "attributes": np.array(json.dumps(dict(rows.attributes))),
    }
    with signals_held() as gate, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        _write_paths(archive, rows, gate)
        for name, array in small.items():
            with _member(archive, name) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        for name, (shape, dtype) in rows.layers.items():
            with _member(archive, name) as member:
                _write_header(member, (rows.count, *shape), dtype)
                for _, blobs in gate.taking(rows.blocks([name])):
                    member.write(np.ascontiguousarray(blobs[name]).data)
                    file.check()


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    # Without a date of its own a member gets the time of day, and no two files would be equal.
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def _write_paths(archive: zipfile.ZipFile, rows: Rows, gate: SignalGate) -> None:
    """The array ``paths``, in two passes: NumPy's strings are all as wide as the widest."""
    blocks = gate.taking(rows.blocks([]))
    width = max((len(path) for paths, _ in blocks for path in paths), default=1)
    dtype = np.dtype(f"<U{max(1, width)}")
    with _member(archive, "paths") as member:
        _write_header(member, (rows.count,), dtype)
        for paths, _ in gate.taking(rows.blocks([])):
            for start in range(0, len(paths), 1024):
                member.write(np.array(paths[start : start + 1024], dtype).tobytes())


def _write_header(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)


def _write_npy(file: OutputFile, rows: Rows) -> None:
    """A NumPy array of the only layer; its names go to a file beside it (`write_names`)."""
    ((name, (shape, dtype)),) = rows.layers.items()
    _write_header(file, (rows.count, *shape), dtype)
    for _, blobs in rows.blocks([name]):
        file.write(np.ascontiguousarray(blobs[name]).data)
        file.check()


def write_names(file: OutputFile, rows: Rows) -> None:
    """What belongs to an ``.npy``: JSON with ``paths``, ``errors`` and ``attributes``."""
    file.write(b'{"paths": [')
    separator = "\n"
    for paths, _ in rows.blocks([]):
        if not paths:
            continue
        file.write((separator + ",\n".join(map(json.dumps, paths))).encode())
        separator = ",\n"
        file.check()
    errors = ",\n".join(
        json.dumps({"path": x.path, "code": x.code, "detail": x.detail}) for x in rows.failures
    )
    attributes = json.dumps(dict(rows.attributes), indent=1)
    file.write(f'],\n"errors": [\n{errors}],\n"attributes": {attributes}}}\n'.encode())
