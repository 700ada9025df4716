"""Files of features: what each format looks like, how it is written, exported and read.

Data files of a job hold paths and rows and grow batch by batch. Finished files are exports: all
rows, the photos in the state in which they were read, the photos that could not be read, and
attributes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tf_alexnet.extraction.decoder import Failure, Photo
from tf_alexnet.extraction.storage import OutputFile, unbroken

BLOCK_BYTES = 8 * 2**20  # rows that are in memory together
_OK = "ok"
_PHOTO = ("paths", "places", "stats", "digests")
_FAILURE = ("paths", "codes", "details", "places", "stats", "digests")
# Names of columns -> fields of `Photo` and `Failure`.
_FIELD = {
    "paths": "path",
    "codes": "code",
    "details": "detail",
    "places": "place",
    "stats": "stat",
    "digests": "digest",
}

Layers = dict[str, tuple[tuple[int, ...], np.dtype]]
Rows = Mapping[str, np.ndarray]


class Output:
    """What a file of features holds.

    Attributes
    ----------
    photos : list of Photo
        One per row. A job's data files and files of version 0.1 know their paths only.
    failures : list of Failure
        Photos that could not be read.
    layers : dict of str to (tuple of int, dtype)
        Shape of a row and type of its numbers.
    attributes : dict of str to str
        What the file records about its making.
    """

    def __init__(
        self,
        photos: list[Photo],
        failures: list[Failure],
        layers: Layers,
        attributes: dict[str, str],
        opened: Callable[[contextlib.ExitStack, str], Callable[[int, int], np.ndarray]],
    ):
        self.photos, self.failures = photos, failures
        self.layers, self.attributes = layers, attributes
        self._opened = opened

    @property
    def paths(self) -> list[str]:
        """Written names of the photos, one per row."""
        return [photo.path for photo in self.photos]

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.photos)

    def blocks(self, layers: Sequence[str], rows: Sequence[int] | None = None) -> Iterator[Rows]:
        """Rows of some layers, in order, about `BLOCK_BYTES` at a time.

        Parameters
        ----------
        layers : sequence of str
            Which layers.
        rows : sequence of int, optional
            Which rows, in ascending order; by default all.
        """
        sizes = [math.prod(self.layers[x][0]) * self.layers[x][1].itemsize for x in layers]
        step = max(1, BLOCK_BYTES // max(1, sum(sizes)))
        wanted = None if rows is None else np.asarray(rows, np.int64)
        with contextlib.ExitStack() as stack:
            take = {name: self._opened(stack, name) for name in layers}
            for start in range(0, self.count, step):
                stop = min(start + step, self.count)
                found = {name: read(start, stop) for name, read in take.items()}
                if wanted is not None:
                    some = wanted[slice(*np.searchsorted(wanted, [start, stop]))] - start
                    if not len(some):
                        continue
                    found = {name: values[some] for name, values in found.items()}
                yield found


def data_writer(suffix: str) -> type[Hdf5Writer] | type[ParquetWriter]:
    """The class that writes a job's data files with this suffix."""
    return ParquetWriter if suffix == ".parquet" else Hdf5Writer


def export(
    suffix: str, file: OutputFile, content: Any, names_file: OutputFile | None = None
) -> None:
    """Write a finished file.

    Parameters
    ----------
    suffix : str
        ``.h5``, ``.hdf5``, ``.parquet``, ``.npz`` or ``.npy``.
    file : OutputFile
        Where to.
    content : Output
        Or anything with its attributes and its `blocks`.
    names_file : OutputFile, optional
        Where the names that belong to an ``.npy`` go.
    """
    if suffix == ".npz":
        _export_npz(file, content)
    elif suffix == ".npy":
        _export_npy(file, content, names_file)
    else:
        with data_writer(suffix)(file) as writer:
            photos = iter(content.photos)
            for rows in content.blocks(list(content.layers)):
                count = len(next(iter(rows.values())))
                writer.add([next(photos) for _ in range(count)], rows, whole=True)
            writer.finish(content.attributes, content.failures)
    file.check()


@contextlib.contextmanager
def open_output(
    path: str | os.PathLike, names: str | os.PathLike | None = None
) -> Iterator[Output]:
    """What a file holds, its kind told by the suffix.

    Parameters
    ----------
    path : path
        ``.h5``, ``.hdf5``, ``.npz``, ``.npy`` or ``.parquet``.
    names : path, optional
        The JSON file that belongs to an ``.npy``; by default the one beside it.

    Raises
    ------
    ValueError, KeyError, OSError
        If the file is damaged, or was not written by this package.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        read = {".npz": _read_npz, ".npy": _read_npy, ".parquet": _read_parquet}
        arguments = [Path(names or f"{path}.json")] if path.suffix.lower() == ".npy" else []
        yield read.get(path.suffix.lower(), _read_hdf5)(stack, path, *arguments)


def printable(text: str) -> str:
    """`text` with bytes that are not UTF-8 shown as ``\\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _column(rows: Sequence[Any], name: str) -> list[str]:
    """A field of photos or failures; None as an empty text."""
    return [getattr(row, _FIELD[name]) or "" for row in rows]


def _zipped(kind: type, columns: Mapping[str, Sequence[str]]) -> list:
    """Photos or failures of columns; an empty stat, digest or place is None."""
    count = len(columns["paths"])
    fields = []
    for field in kind._fields:
        name = next(x for x, y in _FIELD.items() if y == field)
        values = columns.get(name, [""] * count)
        if len(values) != count:
            raise ValueError(f"{len(values)} {name} for {count} paths")
        must = field in ("path", "code", "detail")
        fields.append(values if must else [value or None for value in values])
    return list(map(kind, *fields))


# HDF5: a dataset per layer, `paths` and the photos' other columns, a group `errors`, attributes.


class Hdf5Writer:
    """Writes an HDF5 file row by row; layers have checksums."""

    def __init__(self, file: OutputFile):
        self._raw = file
        self._file: Any = None  # opened where an exception closes it
        self._lengths: dict[str, int] = {}

    def __enter__(self) -> Hdf5Writer:
        return self

    @unbroken()
    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @unbroken()
    def add(self, paths: Sequence[Any], rows: Rows, *, whole: bool = False) -> None:
        """Append one row per path to every layer; with `whole`, `paths` are `Photo` records."""
        self._open()
        for name, values in rows.items():
            if name not in self._file:
                # About a megabyte per chunk: few enough to index, small enough to read one row.
                row = values.dtype.itemsize * math.prod(values.shape[1:])
                self._create(name, values.shape[1:], values.dtype, max(1, 2**20 // max(1, row)))
                self._file[name].attrs["layer"] = name
            self._append(name, values)
        for name in _PHOTO if whole else _PHOTO[:1]:
            self._texts(name, _column(paths, name) if whole else paths)
        self._raw.check()

    @unbroken()
    def finish(self, attributes: Mapping[str, str], failures: Sequence[Failure] = ()) -> None:
        """Write the failures and the attributes."""
        self._open()
        self._texts("paths", [])
        for name in _FAILURE:
            self._texts(f"errors/{name}", _column(failures, name))
        self._file.attrs.update(attributes)

    def _open(self) -> None:
        if self._file is None:
            self._file = h5py.File(self._raw, "w")

    def _create(self, name: str, shape: tuple[int, ...], dtype: Any, chunk: int) -> None:
        self._file.create_dataset(
            name,
            (0, *shape),
            dtype,
            maxshape=(None, *shape),
            chunks=(chunk, *shape),
            fletcher32=bool(shape or dtype != h5py.string_dtype()),  # texts can't have checksums
        )

    def _texts(self, name: str, texts: Sequence[str]) -> None:
        if name not in self._file:
            self._create(name, (), h5py.string_dtype(), 1024)
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._append(name, np.array(encoded, object))

    def _append(self, name: str, values: np.ndarray) -> None:
        start = self._lengths.get(name, 0)
        self._lengths[name] = start + len(values)
        if len(values):
            dataset = self._file[name]
            dataset.resize(start + len(values), axis=0)
            dataset[start:] = values


def _read_hdf5(stack: contextlib.ExitStack, path: Path) -> Output:
    file = stack.enter_context(h5py.File(path, "r"))

    def dataset(name: str) -> h5py.Dataset:
        found = file
        for part in name.split("/"):
            if not isinstance(found.get(part, getlink=True), h5py.HardLink):
                raise KeyError(f"no dataset {name}")
            found = found[part]
        if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
            raise ValueError(f"{name} is not a dataset of this file")
        return found

    def texts(name: str) -> list[str]:
        return [raw.decode("utf-8", "surrogateescape") for raw in dataset(name)[:]]

    photos = {name: texts(name) for name in _PHOTO if name == "paths" or name in file}
    errors = dataset("errors/paths").parent
    failures = {name: texts(f"errors/{name}") for name in _FAILURE if name in errors}
    attributes = {name: str(value) for name, value in file.attrs.items()}
    layers = {x: dataset(x) for x in attributes["layers"].split()}
    return _checked(
        Output(
            _zipped(Photo, photos),
            _zipped(Failure, failures),
            {name: (data.shape[1:], data.dtype) for name, data in layers.items()},
            attributes,
            lambda _, name: lambda start, stop: layers[name][start:stop],
        ),
        {name: len(data) for name, data in layers.items()},
    )


def _checked(output: Output, lengths: Mapping[str, int]) -> Output:
    """Refuse a file in which paths and rows are not equally many."""
    for name, length in lengths.items():
        if length != output.count:
            raise ValueError(f"{length} rows of {name} for {output.count} paths")
    return output


# Parquet: one row per photo; failed ones come last, with null layers.


class ParquetWriter:
    """Writes a Parquet file row group by row group; every page has a checksum.

    A layer is a list of fixed size; the shape of a blob that is more than a vector stands in its
    field's metadata. ``path`` has to be UTF-8 here: bytes that are not are shown as ``\\xff``, and
    ``path_bytes`` has the name as it is, null for all others.
    """

    def __init__(self, file: OutputFile):
        self._raw = file
        self._writer: Any = None
        self._schema: Any = None
        self._waiting: list[tuple[Sequence[Any], Rows]] = []
        self._bytes = 0
        self._whole = False

    def __enter__(self) -> ParquetWriter:
        return self

    @unbroken()
    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    @unbroken()
    def add(self, paths: Sequence[Any], rows: Rows, *, whole: bool = False) -> None:
        """Append one row per path to every layer; with `whole`, `paths` are `Photo` records."""
        self._whole = whole
        self._waiting.append((paths, rows))
        self._bytes += sum(values.nbytes for values in rows.values())
        if self._bytes >= BLOCK_BYTES:  # a row group
            self._flush()

    @unbroken()
    def finish(self, attributes: Mapping[str, str], failures: Sequence[Failure] = ()) -> None:
        """Write what waits, the failures and the attributes."""
        self._flush()
        if failures:
            self._write(failures, {})
        self._writer.add_key_value_metadata(dict(attributes))

    def _flush(self) -> None:
        if self._waiting:
            photos = [photo for some, _ in self._waiting for photo in some]
            layers = self._waiting[0][1]
            rows = {x: np.concatenate([rows[x] for _, rows in self._waiting]) for x in layers}
            self._waiting, self._bytes = [], 0
            self._write(photos, rows)
            self._raw.check()

    def _write(self, photos: Sequence[Any], rows: Rows) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._schema = _parquet_schema(rows, self._whole)
            # Numbers hardly repeat: a dictionary of them, or packing them, costs time for nothing.
            self._writer = pq.ParquetWriter(
                pa.PythonFile(self._raw, "w"),
                self._schema,
                compression="none",
                use_dictionary=["status"] if self._whole else False,
                write_statistics=["path", "status"] if self._whole else ["path"],
                write_page_checksum=True,
            )
        columns = _parquet_columns(photos, self._whole)
        for field in list(self._schema)[len(columns) :]:
            if field.name in rows:
                flat = pa.array(np.ascontiguousarray(rows[field.name]).ravel())
                values = pa.FixedSizeListArray.from_arrays(flat, type=field.type)
            else:
                values = pa.nulls(len(photos), field.type)
            columns[field.name] = values
        arrays = [
            values if isinstance(values, pa.Array) else pa.array(values, field.type)
            for values, field in zip(columns.values(), self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))


def _parquet_columns(photos: Sequence[Any], whole: bool) -> dict[str, Any]:
    paths = _column(photos, "paths") if whole else photos
    raw = [path.encode("utf-8", "surrogateescape") for path in paths]
    shown = [printable(path) for path in paths]
    columns = {
        "path": shown,
        "path_bytes": [
            None if as_bytes == as_text.encode() else as_bytes
            for as_bytes, as_text in zip(raw, shown, strict=True)
        ],
    }
    if whole:
        columns["status"] = [getattr(photo, "code", _OK) for photo in photos]
        columns["detail"] = [
            printable(photo.detail) if isinstance(photo, Failure) else None for photo in photos
        ]
        columns["place"] = [(x.place or "").encode("utf-8", "surrogateescape") for x in photos]
        columns["stat"], columns["digest"] = _column(photos, "stats"), _column(photos, "digests")
    return columns


def _parquet_schema(rows: Rows, whole: bool) -> Any:
    import pyarrow as pa

    fields = [("path", pa.string()), ("path_bytes", pa.binary())]
    if whole:
        fields += [("status", pa.string()), ("detail", pa.string()), ("place", pa.binary())]
        fields += [("stat", pa.string()), ("digest", pa.string())]
    for name, values in rows.items():
        shape = values.shape[1:]
        kind = pa.list_(pa.from_numpy_dtype(values.dtype), math.prod(shape))
        shape = {"shape": " ".join(map(str, shape))}
        fields.append(pa.field(name, kind, metadata=shape))
    return pa.schema(fields)


def _read_parquet(stack: contextlib.ExitStack, path: Path) -> Output:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # As bytes: Arrow takes a path for text, and knows none that is not UTF-8.
    raw = stack.enter_context(pa.OSFile(os.fsencode(path)))
    file = stack.enter_context(pq.ParquetFile(raw, page_checksum_verification=True))
    names = ("path", "path_bytes", "status", "detail", "place", "stat", "digest")
    there = [name for name in names if name in file.schema_arrow.names]
    table = {name: file.read(columns=[name])[name].to_pylist() for name in there}
    for i, odd in enumerate(table["path_bytes"]):
        if odd is not None:
            table["path"][i] = odd.decode("utf-8", "surrogateescape")
    status = table.get("status", [_OK] * len(table["path"]))
    count = next((i for i, x in enumerate(status) if x != _OK), len(status))
    columns = {"paths": table["path"], "codes": status, "details": table.get("detail", status)}
    if "stat" in table:
        columns["places"] = [x.decode("utf-8", "surrogateescape") for x in table["place"]]
        columns |= {"stats": table["stat"], "digests": table["digest"]}
    layers = {}
    for field in file.schema_arrow:
        if field.metadata and b"shape" in field.metadata:
            shape = tuple(map(int, field.metadata[b"shape"].split()))
            layers[field.name] = shape, np.dtype(field.type.value_type.to_pandas_dtype())
    known = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
    known.pop("ARROW:schema", None)
    known["layers"]  # a file of ours names them

    def opened(_: contextlib.ExitStack, layer: str) -> Callable[[int, int], np.ndarray]:
        return _ParquetColumn(file, layer, *layers[layer])

    return Output(
        _zipped(Photo, {name: values[:count] for name, values in columns.items()}),
        _zipped(Failure, {name: values[count:] for name, values in columns.items()}),
        layers,
        known,
        opened,
    )


class _ParquetColumn:
    """Rows of a layer, asked for in ascending order; one row group in memory at a time."""

    def __init__(self, file: Any, layer: str, shape: tuple[int, ...], dtype: np.dtype):
        self._file, self._layer, self._shape = file, layer, shape
        self._group, self._start = -1, 0
        self._rows = np.empty((0, *shape), dtype)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        parts = []
        while start < stop:
            while start >= self._start + len(self._rows):
                self._group, self._start = self._group + 1, self._start + len(self._rows)
                group = self._file.read_row_group(self._group, columns=[self._layer])[self._layer]
                flat = group.combine_chunks().flatten().to_numpy()
                self._rows = flat.reshape(len(group), *self._shape)
            end = min(stop, self._start + len(self._rows))
            parts.append(self._rows[start - self._start : end - self._start])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


# NumPy archives: the arrays of the HDF5 file, `errors_paths` and so on, `attributes` as JSON.


def _export_npz(file: OutputFile, content: Any) -> None:
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        columns = {name: _column(content.photos, name) for name in _PHOTO}
        columns |= {f"errors_{name}": _column(content.failures, name) for name in _FAILURE}
        for name, texts in columns.items():
            # In pieces: NumPy's strings are all as wide as the widest.
            dtype = np.dtype(f"<U{max(map(len, texts), default=1) or 1}")
            with _member(archive, name) as member:
                _write_header(member, (len(texts),), dtype)
                for start in range(0, len(texts), 1024):
                    member.write(np.array(texts[start : start + 1024], dtype).tobytes())
        with _member(archive, "attributes") as member:
            known = np.array(json.dumps(dict(content.attributes)))
            np.lib.format.write_array(member, known, allow_pickle=False)
        for name, (shape, dtype) in content.layers.items():
            with _member(archive, name) as member:
                _write_header(member, (len(content.photos), *shape), dtype)
                for rows in content.blocks([name]):
                    member.write(np.ascontiguousarray(rows[name]).data)
                    file.check()


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    # Without a date of its own a member gets the time of day, and no two files would be equal.
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def _write_header(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _read_npz(stack: contextlib.ExitStack, path: Path) -> Output:
    with np.load(path, allow_pickle=False) as file:
        photos = {name: file[name].tolist() for name in _PHOTO if name in file.files}
        failures = {
            x: file[f"errors_{x}"].tolist() for x in _FAILURE if f"errors_{x}" in file.files
        }
        attributes = json.loads(str(file["attributes"]))
    archive = stack.enter_context(zipfile.ZipFile(path))

    def header(layer: str, members: contextlib.ExitStack) -> tuple[Any, tuple, np.dtype]:
        member = members.enter_context(archive.open(f"{layer}.npy"))
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        return member, shape, dtype

    with contextlib.ExitStack() as members:
        headers = {name: header(name, members)[1:] for name in attributes["layers"].split()}

    def opened(members: contextlib.ExitStack, layer: str) -> Callable[[int, int], np.ndarray]:
        member, shape, dtype = header(layer, members)
        size = math.prod(shape[1:]) * dtype.itemsize

        def take(start: int, stop: int) -> np.ndarray:
            data = member.read(size * (stop - start))
            return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])

        return take

    return _checked(
        Output(
            _zipped(Photo, photos),
            _zipped(Failure, failures),
            {name: (shape[1:], dtype) for name, (shape, dtype) in headers.items()},
            attributes,
            opened,
        ),
        {name: shape[0] for name, (shape, _) in headers.items()},
    )


# A NumPy array of one layer, and a JSON file with everything else.


def _export_npy(file: OutputFile, content: Any, names_file: OutputFile) -> None:
    ((name, (shape, dtype)),) = content.layers.items()
    _write_header(file, (len(content.photos), *shape), dtype)
    for rows in content.blocks([name]):
        file.write(np.ascontiguousarray(rows[name]).data)
        file.check()
    separator = "{"
    for key in _PHOTO:
        texts = ",\n".join(map(json.dumps, _column(content.photos, key)))
        names_file.write(f'{separator}"{key}": [\n{texts}],\n'.encode())
        separator = ""
    errors = ",\n".join(json.dumps(failure._asdict()) for failure in content.failures)
    attributes = json.dumps(dict(content.attributes), indent=1)
    names_file.write(f'"errors": [\n{errors}],\n"attributes": {attributes}}}\n'.encode())
    names_file.check()


def _read_npy(_: contextlib.ExitStack, path: Path, names: Path) -> Output:
    known = json.loads(names.read_text(encoding="utf-8"))
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    return _checked(
        Output(
            _zipped(Photo, {name: known[name] for name in _PHOTO if name in known}),
            [Failure(**failure) for failure in known["errors"]],
            {known["attributes"]["layers"]: (rows.shape[1:], rows.dtype)},
            known["attributes"],
            lambda _, __: lambda start, stop: rows[start:stop],
        ),
        {"the array": len(rows)},
    )
