"""Files of features: how each format is written, exported and read.

A job's data files hold paths and rows, and grow batch by batch (`data_writer`). A finished file
(`export`) also holds the state in which every photo was read, the failures and attributes.
`open_output` reads both.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5f, h5fd, h5g, h5p

from tf_alexnet.extraction.decoder import Failure, Photo
from tf_alexnet.extraction.storage import OutputFile

BLOCK_BYTES = 8 * 2**20  # rows that are in memory together
_CHUNK_BYTES = 2**20  # of an HDF5 dataset: few enough to index, small enough to read one row
_OK = "ok"

Layers = dict[str, tuple[tuple[int, ...], np.dtype]]  # layer -> (shape of a row, dtype)
Rows = Mapping[str, np.ndarray]
Take = Callable[[int, int], np.ndarray]  # (start, stop) -> rows


class Output:
    """What a file of features holds.

    Attributes
    ----------
    paths : list of str
        Written name of each row's photo.
    failures : list of Failure
        Photos that could not be read.
    layers : dict of str to (tuple of int, dtype)
        Shape and type of a row.
    attributes : dict of str to str
        Settings and versions.
    """

    def __init__(
        self, paths: list[str], layers: Layers, failures: list[Failure], attributes: dict[str, str]
    ):
        if not all(isinstance(path, str) for path in paths):
            raise ValueError("a path is not text")
        for name, (shape, dtype) in layers.items():
            if dtype.kind != "f" or shape[0] != len(paths):
                raise ValueError(f"{name} is not one row of numbers per path")
        self.paths, self.failures, self.attributes = paths, failures, attributes
        self.layers = {name: (shape[1:], dtype) for name, (shape, dtype) in layers.items()}

    @functools.cached_property
    def photos(self) -> list[Photo]:
        """One per row. A job's data files and files of version 0.1 know nothing but their paths."""
        with _value_errors():
            return _records(Photo, lambda x: self.paths if x == "paths" else self._texts(x))

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.paths)

    def blocks(self, layers: Sequence[str], rows: Sequence[int] | None = None) -> Iterator[Rows]:
        """Rows of some layers, in order, about `BLOCK_BYTES` at a time.

        Parameters
        ----------
        layers : sequence of str
            Layers to read.
        rows : sequence of int, optional
            Ascending indices of the rows to read (default: all).

        Yields
        ------
        dict of str to ndarray
            Layer -> rows.
        """
        wanted = np.arange(self.count) if rows is None else np.asarray(rows, np.int64)
        if len(wanted) and not (0 <= wanted.min() and wanted.max() < self.count):
            raise ValueError(f"row {wanted.max()} of {self.count}")
        with _value_errors(), contextlib.ExitStack() as stack:
            takes = {name: self._open_layer(name, stack) for name in layers}
            for start, stop in self._spans(layers):
                some = wanted[slice(*np.searchsorted(wanted, (start, stop)))]
                if not len(some):
                    continue
                first = int(some[0])
                block = {name: take(first, int(some[-1]) + 1) for name, take in takes.items()}
                if rows is not None:
                    block = {name: values[some - first] for name, values in block.items()}
                yield block

    def _spans(self, layers: Sequence[str]) -> Iterator[tuple[int, int]]:
        """First and last row (exclusive) of each block."""
        step = _fitting(BLOCK_BYTES, {name: self.layers[name] for name in layers})
        for start in range(0, self.count, step):
            yield start, min(start + step, self.count)

    def _texts(self, name: str) -> list[str] | None:
        """``stats``, ``digests`` or ``places`` of the photos; None if they are not recorded."""
        raise NotImplementedError

    def _open_layer(self, layer: str, stack: contextlib.ExitStack) -> Take:
        """A function that returns rows of a layer; it is asked for them in ascending order."""
        raise NotImplementedError


def data_writer(suffix: str) -> type[Hdf5Writer] | type[ParquetWriter]:
    """The class that writes data files with this suffix."""
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
        The file.
    content : Output
        Or anything else with its attributes, and its `blocks`.
    names_file : OutputFile, optional
        The JSON file that belongs to an ``.npy``.
    """
    if suffix == ".npz":
        _export_npz(file, content)
    elif suffix == ".npy":
        _export_npy(file, content, names_file)
    else:
        with data_writer(suffix)(file, finished=True) as writer:
            done, layers = 0, content.layers.items()
            writer.put([], {name: np.empty((0, *shape), dtype) for name, (shape, dtype) in layers})
            for rows in content.blocks(list(content.layers)):
                count = len(next(iter(rows.values())))
                writer.put(content.photos[done : done + count], rows)
                done += count
            writer.finish(content.attributes, content.failures)
    file.check()


@contextlib.contextmanager
def open_output(
    path: str | os.PathLike, names: str | os.PathLike | None = None
) -> Iterator[Output]:
    """Open a file of features of any format, also a data file of a job.

    Parameters
    ----------
    path : path
        ``.h5``, ``.hdf5``, ``.npz``, ``.npy`` or ``.parquet``.
    names : path, optional
        The JSON file that belongs to an ``.npy`` (default: `path` + ``.json``).

    Yields
    ------
    Output
        Valid until the block ends.

    Raises
    ------
    ValueError, KeyError, OSError
        If the file is damaged, or was not written by this package.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        with _value_errors():
            if path.suffix.lower() == ".npy":
                output = _Npy(path, Path(names or f"{path}.json"))
            else:
                kinds = {".npz": _Npz, ".parquet": _Parquet}
                output = kinds.get(path.suffix.lower(), _Hdf5)(path, stack)
        yield output


def printable(text: str) -> str:
    """`text` with bytes that are not UTF-8 shown as ``\\xff``."""
    return _encoded(text).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    """Raise ValueError for all that a damaged file makes the libraries raise."""
    try:
        yield
    except (ValueError, KeyError, OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"not a file of features ({type(error).__name__}: {error})") from error


def _encoded(text: str) -> bytes:
    """The bytes of a name on disk, free of NUL; text that is no such name is escaped."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "backslashreplace")
    return raw.replace(b"\0", b"\\0")


def _records(kind: type, texts: Callable[[str], Sequence | None]) -> list:
    """Photos or failures from columns; an empty stat, digest or place is None."""
    count, columns = len(texts("paths")), []
    for field in kind._fields:
        values = texts(f"{field}s")
        if field in kind._field_defaults:
            values = [None] * count if values is None else [value or None for value in values]
        columns.append(values)
    return [kind(*row) for row in zip(*columns, strict=True)]


def _fitting(size: int, layers: Layers) -> int:
    """The power of two of rows that fit into `size` bytes; 1 if none does."""
    row = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layers.values())
    return 1 << max(0, (size // max(row, 2048)).bit_length() - 1)


def _with_layers(attributes: Mapping[str, str], layers: Layers) -> dict[str, str]:
    """Attributes by which `open_output` finds the layers."""
    return {**attributes, "layers": " ".join(layers)}


class _Writer:
    """Writes rows in steps that depend on their size alone: equal content gives equal bytes.

    Parameters
    ----------
    file : OutputFile
        An empty file.
    finished : bool
        Whether the photos' states and failures are written too.
    """

    def __init__(self, file: OutputFile, finished: bool = False):
        self._raw, self._finished = file, finished
        self._layers: Layers | None = None
        self._waiting: list[tuple[Sequence[Photo], Rows]] = []
        self._count = self._step = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, paths: Sequence[str], rows: Rows) -> None:
        """Append one row per path to every layer."""
        self.put([Photo(path) for path in paths], rows)

    def put(self, photos: Sequence[Photo], rows: Rows) -> None:
        """Append one row per photo to every layer."""
        if self._layers is None:
            self._layers = {name: (x.shape[1:], x.dtype) for name, x in rows.items()}
            self._step = _fitting(BLOCK_BYTES, self._layers)
            self._begin(self._layers)
        self._waiting.append((photos, rows))
        self._count += len(photos)
        if self._count >= self._step:
            self._flush(self._count // self._step * self._step)
        self._raw.check()

    def finish(self, attributes: Mapping[str, str], failures: Sequence[Failure] = ()) -> None:
        """Write what waits, the failures and the attributes."""
        self.put([], {} if self._layers is None else self._waiting[-1][1])
        self._flush(self._count)
        for start in range(0, len(failures), 4096):
            self._write_failures(failures[start : start + 4096])
            self._raw.check()
        self._write_attributes(_with_layers(attributes, self._layers))
        self._raw.check()

    def _flush(self, count: int) -> None:
        """Write the first `count` of the rows that wait."""
        photos = list(itertools.chain.from_iterable(some for some, _ in self._waiting))
        rows = {x: np.concatenate([some[x] for _, some in self._waiting]) for x in self._layers}
        for start in range(0, count, self._step):
            part = slice(start, min(start + self._step, count))
            self._write(photos[part], {name: values[part] for name, values in rows.items()})
            self._raw.check()
        self._waiting = [(photos[count:], {name: values[count:] for name, values in rows.items()})]
        self._count -= count


# HDF5


class Hdf5Writer(_Writer):
    """An HDF5 file: a dataset per layer, ``paths`` and attributes.

    A finished file has ``stats``, ``digests``, ``places`` and a group ``errors`` too. The library
    checks rows and its own structures (the latter since its format 1.10) by checksums; it can't
    check text, of which an attribute has the digest.
    """

    def __init__(self, file: OutputFile, finished: bool = False):
        super().__init__(file, finished)
        creation, access = h5p.create(h5p.FILE_CREATE), h5p.create(h5p.FILE_ACCESS)
        creation.set_obj_track_times(False)
        access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        access.set_fileobj_driver(h5fd.fileobj_driver, file)
        self._file = h5py.File(h5f.create(b"features", h5f.ACC_TRUNC, creation, access))
        self._digests: dict[str, Any] = {}

    def _begin(self, layers: Layers) -> None:
        for name, (shape, dtype) in layers.items():
            chunk = (_fitting(_CHUNK_BYTES, {name: (shape, dtype)}), *shape)
            data = self._file.create_dataset(
                name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunk, fletcher32=True
            )
            data.attrs["layer"] = name
        names = [f"{field}s" for field in (Photo._fields if self._finished else ["path"])]
        if self._finished:
            settings = h5p.create(h5p.GROUP_CREATE)
            settings.set_obj_track_times(False)
            h5g.create(self._file.id, b"errors", gcpl=settings)
            names += [f"errors/{field}s" for field in Failure._fields]
        for name in names:
            text = h5py.string_dtype()
            self._file.create_dataset(name, (0,), text, maxshape=(None,), chunks=(1024,))
            self._digests[name] = hashlib.blake2b(digest_size=16)

    def _write(self, photos: Sequence[Photo], rows: Rows) -> None:
        for name, values in rows.items():
            self._append(name, values)
        self._write_texts("", photos)

    def _write_failures(self, failures: Sequence[Failure]) -> None:
        self._write_texts("errors/", failures)

    def _write_texts(self, group: str, records: Sequence[Photo | Failure]) -> None:
        """Append photos or failures to the columns of a group."""
        for field in records[0]._fields if records else ():
            name = f"{group}{field}s"
            if name in self._digests:
                texts = [_encoded(getattr(record, field) or "") for record in records]
                self._digests[name].update(b"".join(text + b"\0" for text in texts))
                self._append(name, np.array(texts, object))

    def _append(self, name: str, values: np.ndarray) -> None:
        """Make a dataset longer."""
        data = self._file[name]
        start = len(data)
        data.resize(start + len(values), axis=0)
        data[start:] = values

    def _write_attributes(self, attributes: Mapping[str, str]) -> None:
        for name, digest in self._digests.items():
            self._file[name].attrs["blake2b"] = digest.hexdigest()
        self._file.attrs.update(attributes)

    def _close(self) -> None:
        self._file.close()


class _Hdf5(Output):
    """Reads an HDF5 file."""

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._file = file = stack.enter_context(h5py.File(path, "r"))
        attributes = {name: x for name, x in file.attrs.items() if isinstance(x, str)}
        datasets = {name: self._dataset(name) for name in attributes["layers"].split()}
        failures = []
        if "errors" in file:
            failures = _records(Failure, lambda name: self._texts(f"errors/{name}"))
        layers = {name: (data.shape, data.dtype) for name, data in datasets.items()}
        super().__init__(self._texts("paths"), layers, failures, attributes)

    def _dataset(self, name: str) -> h5py.Dataset:
        """A dataset whose values are all in the file itself."""
        found = self._file
        for part in name.split("/"):
            if not isinstance(found.get(part, getlink=True), h5py.HardLink):
                raise KeyError(f"there is no dataset {name}")
            found = found[part]
        if found.is_virtual or found.external or found.chunks is None:
            raise ValueError(f"{name} was not written by this package")
        shape = zip(found.shape, found.chunks, strict=True)
        if found.id.get_num_chunks() < math.prod(-(-size // chunk) for size, chunk in shape):
            raise ValueError(f"{name} lacks some of its values")
        return found

    def _texts(self, name: str) -> list[str] | None:
        if name not in self._file and name != "paths":
            return None
        data = self._dataset(name)
        texts = data[:].tolist()
        if "blake2b" in data.attrs:
            joined = b"".join(text + b"\0" for text in texts)
            if hashlib.blake2b(joined, digest_size=16).hexdigest() != data.attrs["blake2b"]:
                raise ValueError(f"{name} is damaged")
        return [text.decode("utf-8", "surrogateescape") for text in texts]

    def _open_layer(self, layer: str, stack: contextlib.ExitStack) -> Take:
        data = self._dataset(layer)
        return lambda start, stop: data[start:stop]


# Parquet


class ParquetWriter(_Writer):
    """A Parquet file: one row per photo, a list of fixed size per layer.

    ``path`` has to be UTF-8: bytes that are not are shown as ``\\xff``, and ``path_bytes`` (null
    for all other paths) has them as they are. The shape of a blob stands in its field's metadata.
    The photos of a finished file have ``place``, ``stat``, ``digest``, ``status`` (``ok`` or a
    code) and ``detail``; those that could not be read come last, with null layers.
    """

    _writer: Any = None

    def _begin(self, layers: Layers) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [("path", pa.string()), ("path_bytes", pa.binary())]
        if self._finished:
            texts = ("stat", "digest", "status", "detail")
            fields += [("place", pa.binary()), *((name, pa.string()) for name in texts)]
        for name, (shape, dtype) in layers.items():
            kind = pa.list_(pa.from_numpy_dtype(dtype), math.prod(shape))
            fields.append(pa.field(name, kind, metadata={"shape": " ".join(map(str, shape))}))
        self._schema = pa.schema(fields)
        # Numbers hardly repeat: a dictionary of them, or packing them, costs time for nothing.
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._raw, "w"),
            self._schema,
            compression="none",
            use_dictionary=["status"],
            write_statistics=["path", "status"],
            write_page_checksum=True,
        )

    def _write(self, photos: Sequence[Photo | Failure], rows: Rows) -> None:
        """Write a row group."""
        import pyarrow as pa

        if not photos:
            return
        shown, raw = [printable(x.path) for x in photos], [_encoded(x.path) for x in photos]
        columns = {
            "path": shown,
            "path_bytes": [None if x == y.encode() else x for x, y in zip(raw, shown, strict=True)],
            "place": [x.place and _encoded(x.place) for x in photos],
            "stat": [x.stat for x in photos],
            "digest": [x.digest for x in photos],
            "status": [getattr(x, "code", _OK) for x in photos],
            "detail": [printable(x.detail) if isinstance(x, Failure) else None for x in photos],
        }
        arrays = []
        for field in self._schema:
            if field.name in rows:
                flat = pa.array(np.ascontiguousarray(rows[field.name]).ravel())
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
            else:
                arrays.append(pa.array(columns.get(field.name, [None] * len(photos)), field.type))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def _write_failures(self, failures: Sequence[Failure]) -> None:
        self._write(failures, {})

    def _write_attributes(self, attributes: Mapping[str, str]) -> None:
        self._writer.add_key_value_metadata(attributes)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Parquet(Output):
    """Reads a Parquet file."""

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        import pyarrow as pa
        import pyarrow.parquet as pq

        # As bytes: Arrow takes a path for text, and knows none that is not UTF-8.
        raw = stack.enter_context(pa.OSFile(os.fsencode(path)))
        self._file = file = stack.enter_context(
            pq.ParquetFile(raw, page_checksum_verification=True)
        )
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = [0, *itertools.accumulate(sizes)]
        total = self._starts[-1]
        codes = self._column("codes", slice(0, total))
        rows = total if codes is None else codes.count(_OK)
        self._rows, failed = slice(0, rows), slice(rows, total)
        if codes is not None and _OK in codes[failed]:
            raise ValueError("rows stand behind failures")
        layers = {}
        for field in file.schema_arrow:
            if field.metadata and b"shape" in field.metadata:
                shape = tuple(map(int, field.metadata[b"shape"].split()))
                dtype = np.dtype(field.type.value_type.to_pandas_dtype())
                layers[field.name] = (rows, *shape), dtype
        failures = _records(Failure, lambda x: self._column(x, failed)) if rows < total else []
        known = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
        known.pop("ARROW:schema", None)
        super().__init__(self._texts("paths"), layers, failures, known)

    def _texts(self, name: str) -> list[str] | None:
        return self._column(name, self._rows)

    def _column(self, name: str, rows: slice) -> list[str] | None:
        """Some values of a column of text; None if there is no such column."""
        name = {"codes": "status"}.get(name, name[:-1])
        if name not in self._file.schema_arrow.names:
            return None
        columns = ["path", "path_bytes"] if name == "path" else [name]
        table = self._file.read(columns=columns)[rows.start : rows.stop]
        found = zip(*(table[column].to_pylist() for column in columns), strict=True)
        texts = [values[0] if values[-1] is None else values[-1] for values in found]
        return [x.decode("utf-8", "surrogateescape") if isinstance(x, bytes) else x for x in texts]

    def _spans(self, layers: Sequence[str]) -> Iterator[tuple[int, int]]:
        """The row groups."""
        for start, stop in itertools.pairwise(self._starts):
            yield start, min(stop, self.count)

    def _open_layer(self, layer: str, stack: contextlib.ExitStack) -> Take:
        def take(start: int, stop: int) -> np.ndarray:
            group = bisect.bisect_right(self._starts, start) - 1
            lists = self._file.read_row_group(group, columns=[layer])[layer].combine_chunks()
            flat = lists.slice(start - self._starts[group], stop - start).flatten()
            return flat.to_numpy().reshape(stop - start, *self.layers[layer][0])

        return take


# NumPy


def _export_npz(file: OutputFile, content: Any) -> None:
    """Write an archive, uncompressed: an array per layer and column, ``attributes`` as JSON."""
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for prefix, kind, records in (
            ("", Photo, content.photos),
            ("errors_", Failure, content.failures),
        ):
            for field in kind._fields:
                with _member(archive, f"{prefix}{field}s") as member:
                    _write_texts(member, records, field)
                file.check()
        attributes = json.dumps(_with_layers(content.attributes, content.layers))
        with _member(archive, "attributes") as member:
            np.lib.format.write_array(member, np.array(attributes))
        for name in content.layers:
            with _member(archive, name) as member:
                _write_layer(member, content, name, file)


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    """A new array of an archive."""
    # Without a date of its own a member gets the time of day, and no two files would be equal.
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def _write_header(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Write what stands before an array."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write_texts(file: Any, records: Sequence[Photo | Failure], field: str) -> None:
    """Write a field of photos or failures; NumPy makes all texts as wide as the widest."""
    width = max((len(getattr(record, field) or "") for record in records), default=0)
    dtype = np.dtype(f"<U{max(1, width)}")
    _write_header(file, (len(records),), dtype)
    for start in range(0, len(records), 1024):
        texts = [getattr(record, field) or "" for record in records[start : start + 1024]]
        file.write(np.array(texts, dtype).tobytes())


def _write_layer(file: Any, content: Any, layer: str, raw: OutputFile) -> None:
    """Write a layer as an array."""
    shape, dtype = content.layers[layer]
    _write_header(file, (content.count, *shape), dtype)
    for rows in content.blocks([layer]):
        file.write(np.ascontiguousarray(rows[layer]).data)
        raw.check()


class _Npz(Output):
    """Reads an archive of NumPy arrays."""

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._archive = stack.enter_context(zipfile.ZipFile(path))
        with self._archive.open("attributes.npy") as member:
            attributes = json.loads(str(np.lib.format.read_array(member)))
        layers = {}
        for name in attributes["layers"].split():
            with self._archive.open(f"{name}.npy") as member:
                layers[name] = self._header(member)
        failures = _records(Failure, lambda name: self._texts(f"errors_{name}"))
        super().__init__(self._texts("paths"), layers, failures, attributes)

    @staticmethod
    def _header(member: Any) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of an array."""
        version = np.lib.format.read_magic(member)
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(member)
        if version != (1, 0) or in_columns:
            raise ValueError("an array was not written by this package")
        return shape, dtype

    def _texts(self, name: str) -> list[str] | None:
        if f"{name}.npy" not in self._archive.namelist():
            return None
        with self._archive.open(f"{name}.npy") as member:
            return np.lib.format.read_array(member).tolist()

    def _open_layer(self, layer: str, stack: contextlib.ExitStack) -> Take:
        member = stack.enter_context(self._archive.open(f"{layer}.npy"))
        self._header(member)
        first, (shape, dtype) = member.tell(), self.layers[layer]
        size = math.prod(shape) * dtype.itemsize

        def take(start: int, stop: int) -> np.ndarray:
            if skipped := first + start * size - member.tell():
                member.seek(skipped, os.SEEK_CUR)  # only then: no checksum is compared after it
            data = member.read(size * (stop - start))
            return np.frombuffer(data, dtype).reshape(stop - start, *shape)

        return take


def _export_npy(file: OutputFile, content: Any, names_file: OutputFile) -> None:
    """Write the rows of the only layer, and beside them everything else."""
    (layer,) = content.layers
    _write_layer(file, content, layer, file)
    separator = b'{"'
    for field in Photo._fields:
        names_file.write(separator + f'{field}s": ['.encode())
        _write_json(names_file, content.photos, lambda photo, field=field: getattr(photo, field))
        separator = b'],\n"'
    names_file.write(b'],\n"errors": [')
    _write_json(names_file, content.failures, Failure._asdict)
    attributes = json.dumps(_with_layers(content.attributes, content.layers), indent=1)
    names_file.write(f'],\n"attributes": {attributes}}}\n'.encode())
    names_file.check()


def _write_json(file: OutputFile, records: Sequence, value: Callable[[Any], Any]) -> None:
    """Write a value per record, a line each."""
    for start in range(0, len(records), 1024):
        lines = [json.dumps(value(record)) for record in records[start : start + 1024]]
        file.write(((",\n" if start else "\n") + ",\n".join(lines)).encode())
        file.check()


class _Npy(Output):
    """Reads a NumPy array, and the JSON file beside it."""

    def __init__(self, path: Path, names: Path):
        self._known = known = json.loads(names.read_text(encoding="utf-8"))
        self._array = array = np.lib.format.open_memmap(path, mode="r")
        layers = {known["attributes"]["layers"]: (array.shape, array.dtype)}
        failures = [Failure(**failure) for failure in known["errors"]]
        super().__init__(known["paths"], layers, failures, known["attributes"])

    def _texts(self, name: str) -> list[str] | None:
        return self._known.get(name)

    def _open_layer(self, layer: str, stack: contextlib.ExitStack) -> Take:
        return lambda start, stop: self._array[start:stop]
