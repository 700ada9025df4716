"""Feature files: how each format is written, exported and read.

A job's data files hold paths and rows, and grow batch by batch (`data_writer`). A finished file
(`export`) also holds the state each photo was read in, failures and attributes. `open_output` reads
both. Text columns have the same names in all formats: the fields of `Photo` (``paths``, ``stats``,
...) and of `Failure` (``errors_paths``, ``errors_codes``, ...).
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
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5f, h5fd, h5g, h5p

from tf_alexnet.errors import UsageError
from tf_alexnet.extraction.decoder import Failure, Photo
from tf_alexnet.extraction.storage import OutputFile, unbroken

BLOCK_BYTES = 8 * 2**20  # of rows in memory at a time
_CHUNK_BYTES = 2**20  # per HDF5 chunk: few to index, and quick to read a single row
_MAT_BYTES = 2**31 - 2**10  # per array in a .mat, less its header
_OK = "ok"
UNFINISHED = b"{}"  # the JSON of an .npy while the array is replaced

Layers = dict[str, tuple[tuple[int, ...], np.dtype]]  # layer -> (shape of a row, dtype)
Rows = Mapping[str, np.ndarray]
_Texts = Callable[[str], "list[str] | None"]  # name of a column -> its values, if it exists


class Output:
    """Content of a feature file.

    Attributes
    ----------
    paths, count : list of str, int
        Path of each row's photo, as given, and the number of rows.
    failures : list of Failure
        Photos that could not be read.
    layers : dict of str to (tuple of int, dtype)
        Shape and dtype of a row.
    attributes : dict of str to str
        Settings and versions.
    """

    def __init__(
        self,
        texts: _Texts,
        layers: Layers,
        attributes: dict[str, str],
        take: Callable[[str, int, int], np.ndarray],  # (layer, start, stop) -> rows
    ):
        self._texts, self._take, self.attributes = texts, take, attributes
        self.paths = texts("paths")
        self.count = len(self.paths)
        self.failures = _records(Failure, lambda x: texts(f"errors_{x}"))
        self.layers = {name: (shape[1:], dtype) for name, (shape, dtype) in layers.items()}
        if not all(isinstance(path, str) for path in self.paths):
            raise ValueError("a path is not text")
        for name, (shape, dtype) in layers.items():
            if dtype.kind != "f" or shape[0] != self.count:
                raise ValueError(f"{name} is not one row of numbers per path")

    @functools.cached_property
    def photos(self) -> list[Photo]:
        """One per row; a job's data files and files of version 0.1 hold only paths."""
        with _value_errors():
            return _records(Photo, lambda x: self.paths if x == "paths" else self._texts(x))

    def blocks(self, layers: Sequence[str], rows: Sequence[int] | None = None) -> Iterator[Rows]:
        """Yield rows of some layers, about `BLOCK_BYTES` at a time: all, or ascending indices."""
        wanted = np.arange(self.count) if rows is None else np.asarray(rows, np.int64)
        if len(wanted) and (np.diff(wanted, prepend=0, append=self.count - 1) < 0).any():
            raise ValueError(f"not ascending indices of {self.count} rows")
        step = _fitting(BLOCK_BYTES, [self.layers[name] for name in layers])
        for start in range(0, self.count, step):
            some = wanted[slice(*np.searchsorted(wanted, (start, start + step)))]
            if len(some):
                first, end = int(some[0]), int(some[-1]) + 1
                with _value_errors():
                    block = {x: self._take(x, first, end) for x in layers}
                    if rows is not None:
                        block = {x: values[some - first] for x, values in block.items()}
                yield block


def data_writer(suffix: str) -> type[Hdf5Writer] | type[ParquetWriter]:
    """The class that writes data files with this suffix."""
    return ParquetWriter if suffix == ".parquet" else Hdf5Writer


def export(suffix: str, file: OutputFile, content: Any, names: OutputFile | None = None) -> None:
    """Write the content of an `Output`, or of an object like it, to a finished file.

    `names` is the JSON file that belongs to an ``.npy``.
    """
    try:
        if suffix == ".npz":
            _export_npz(file, content)
        elif suffix == ".npy":
            _export_npy(file, content, names)
        elif suffix == ".mat":
            _export_mat(file, content)
        else:
            with data_writer(suffix)(file, content.layers) as writer:
                writer.add_all(content.photos, content.blocks(list(content.layers)))
                writer.finish(content.attributes, content.failures)
    finally:
        file.check()  # raise the cause rather than a library's error


def check_mat_size(layers: Layers, rows: int) -> None:
    """Raise UsageError if a layer exceeds 2 GB, the most that a ``.mat`` can hold."""
    for name, (shape, _) in layers.items():
        size = 4 * rows * math.prod(shape)
        if size > _MAT_BYTES:
            raise UsageError(
                f"{name} of {rows:,} photos",
                f"it takes {size / 1e9:.1f} GB, but an array in a .mat at most 2",
                "Use .h5, which MATLAB reads as well (h5read), or pool the layer.",
            )


@contextlib.contextmanager
def open_output(
    path: str | os.PathLike, names: str | os.PathLike | None = None
) -> Iterator[Output]:
    """Open a feature file of any format, or a data file of a job.

    Parameters
    ----------
    path : path
        ``.h5``, ``.hdf5``, ``.npz``, ``.npy``, ``.mat`` or ``.parquet``.
    names : path, optional
        The JSON file that belongs to an ``.npy`` (default: `path` + ``.json``).

    Raises
    ------
    ValueError, KeyError, OSError
        If the file is damaged, or was not written by this package.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        with _value_errors():
            if path.suffix.lower() == ".npy":
                output = _read_npy(path, Path(names or f"{path}.json"))
            else:
                readers = {".npz": _read_npz, ".parquet": _read_parquet, ".mat": _read_mat}
                output = readers.get(path.suffix.lower(), _read_hdf5)(path, stack)
        yield output


def printable(text: str) -> str:
    """`text` with bytes that are not UTF-8 shown as ``\\xff``."""
    return encoded(text).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    """Turn any other exception that a damaged file causes in a library into a ValueError."""
    try:
        yield
    except (ValueError, KeyError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"not a file of features ({type(error).__name__}: {error})") from error


def encoded(text: str) -> bytes:
    """The bytes of a file name, without NUL; text that can't be a file name is escaped."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "backslashreplace")
    return raw.replace(b"\0", b"\\0")


def _columns(content: Any) -> dict[str, list[str]]:
    """Text columns of a finished file; None becomes an empty string."""
    columns = {f"{x}s": [getattr(y, x) or "" for y in content.photos] for x in Photo._fields}
    for x in Failure._fields:
        columns[f"errors_{x}s"] = [getattr(y, x) or "" for y in content.failures]
    return columns


def _records(kind: type, texts: _Texts) -> list:
    """Photos or failures from columns, with None for an empty stat, digest or place."""
    columns = {field: texts(f"{field}s") for field in kind._fields}
    if not columns["path"]:
        return []
    for field in kind._field_defaults:
        columns[field] = [x or None for x in columns[field] or [""] * len(columns["path"])]
    return [kind(*row) for row in zip(*columns.values(), strict=True)]


def _fitting(size: int, layers: Iterable[tuple[tuple[int, ...], np.dtype]]) -> int:
    """Largest power of two of rows that fits in `size` bytes; at least 1."""
    row = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layers)
    return 1 << max(0, (size // max(row, 2048)).bit_length() - 1)


class _Writer(contextlib.AbstractContextManager):
    """Writes rows in steps that depend only on row size, so that equal content gives equal bytes.

    With `layers` it writes a finished file, and `add` takes photos instead of paths.
    """

    def __init__(self, file: OutputFile, layers: Layers | None = None):
        self._raw, self._finished, self._layers = file, layers is not None, layers
        self._file: Any = None
        self._photos: list[Photo] = []  # pending, and the parts of their rows
        self._parts: dict[str, list[np.ndarray]] = {}

    @unbroken()
    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @unbroken()
    def add(self, paths: Sequence[str] | Sequence[Photo], rows: Rows) -> None:
        """Append one row per path to every layer."""
        if self._layers is None:
            self._layers = {name: (x.shape[1:], x.dtype) for name, x in rows.items()}
        self._photos += paths if self._finished else map(Photo, paths)
        for name in self._layers:
            self._parts.setdefault(name, []).append(rows[name])
        step = _fitting(BLOCK_BYTES, self._layers.values())
        self._flush(len(self._photos) // step * step, step)

    def add_all(self, paths: Sequence[str] | Sequence[Photo], blocks: Iterable[Rows]) -> None:
        """Append blocks of rows."""
        start = 0
        for rows in blocks:
            count = len(next(iter(rows.values())))
            self.add(paths[start : start + count], rows)
            start += count

    @unbroken()
    def finish(self, attributes: Mapping[str, str], failures: Sequence[Failure] = ()) -> None:
        """Write the pending rows, the failures and the attributes."""
        self._flush(len(self._photos), len(self._photos))
        for start in range(0, len(failures), 4096):
            self._write(failures[start : start + 4096], {})
            self._raw.check()
        self._end({**attributes, "layers": " ".join(self._layers)})
        self._raw.check()

    def _flush(self, end: int, step: int) -> None:
        """Write the first `end` pending rows, `step` at a time."""
        if self._file is None:
            self._create()
        if end:
            photos, rows = self._photos, {x: np.concatenate(y) for x, y in self._parts.items()}
            for start in range(0, end, step):
                some = slice(start, start + step)
                self._write(photos[some], {name: values[some] for name, values in rows.items()})
                self._raw.check()
            self._photos, self._parts = photos[end:], {x: [y[end:]] for x, y in rows.items()}


class Hdf5Writer(_Writer):
    """An HDF5 file: a dataset per layer and text column (failures: in ``errors``), and attributes.

    HDF5 has checksums for rows and (since format 1.10) its own structures, but not for text, so
    the digest of each text column is stored as an attribute.
    """

    def _create(self) -> None:
        kinds = h5p.FILE_CREATE, h5p.GROUP_CREATE, h5p.FILE_ACCESS
        creation, group, access = map(h5p.create, kinds)
        creation.set_obj_track_times(False)
        group.set_obj_track_times(False)
        access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        access.set_fileobj_driver(h5fd.fileobj_driver, self._raw)
        self._file = h5py.File(h5f.create(b"features", h5f.ACC_TRUNC, creation, access))
        for name, (shape, dtype) in self._layers.items():
            chunk = (_fitting(_CHUNK_BYTES, [(shape, dtype)]), *shape)
            data = self._file.create_dataset(
                name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunk, fletcher32=True
            )
            data.attrs["layer"] = name
        names = ["paths"]
        if self._finished:
            h5g.create(self._file.id, b"errors", gcpl=group)
            names = [f"{field}s" for field in Photo._fields]
            names += [f"errors/{field}s" for field in Failure._fields]
        for name in names:
            text = h5py.string_dtype()
            self._file.create_dataset(name, (0,), text, maxshape=(None,), chunks=(1024,))
        self._digests = {name: hashlib.blake2b(digest_size=16) for name in names}

    def _write(self, records: Sequence[Photo | Failure], rows: Rows) -> None:
        """Append to the datasets."""
        columns = dict(rows)
        group = "errors/" if isinstance(records[0], Failure) else ""
        for x in records[0]._fields:
            if (name := f"{group}{x}s") in self._digests:
                columns[name] = np.array([encoded(getattr(y, x) or "") for y in records], object)
                self._digests[name].update(b"".join(text + b"\0" for text in columns[name]))
        for name, values in columns.items():
            data = self._file[name]
            start = len(data)
            data.resize(start + len(values), axis=0)
            data[start:] = values

    def _end(self, attributes: Mapping[str, str]) -> None:
        for name, digest in self._digests.items():
            self._file[name].attrs["blake2b"] = digest.hexdigest()
        self._file.attrs.update(attributes)


def _read_hdf5(path: Path, stack: contextlib.ExitStack) -> Output:
    file = stack.enter_context(h5py.File(path, "r"))

    def dataset(name: str) -> h5py.Dataset:
        found = file
        for part in name.split("/"):
            if not isinstance(found.get(part, getlink=True), h5py.HardLink):
                raise KeyError(f"there is no dataset {name}")
            found = found[part]
        if found.chunks is None:  # true of virtual and external datasets too
            raise ValueError(f"{name} was not written by this package")
        chunks = math.prod(-(-x // y) for x, y in zip(found.shape, found.chunks, strict=True))
        if found.id.get_num_chunks() < chunks:
            raise ValueError(f"{name} lacks some of its values")
        return found

    def texts(name: str) -> list[str] | None:
        name = name.replace("errors_", "errors/")
        if name not in file:
            return None
        data = dataset(name)
        raw = data[:].tolist()
        digest = hashlib.blake2b(b"".join(text + b"\0" for text in raw), digest_size=16).hexdigest()
        if data.attrs.get("blake2b", digest) != digest:
            raise ValueError(f"{name} is damaged")
        return [text.decode("utf-8", "surrogateescape") for text in raw]

    attributes = {name: value for name, value in file.attrs.items() if isinstance(value, str)}
    rows = {name: dataset(name) for name in attributes["layers"].split()}
    layers = {name: (data.shape, data.dtype) for name, data in rows.items()}
    return Output(texts, layers, attributes, lambda name, x, y: rows[name][x:y])


class ParquetWriter(_Writer):
    """A Parquet file: one row per photo, a list of fixed size per layer.

    ``path`` is UTF-8, with other bytes shown as ``\\xff``; ``path_bytes`` has such paths unchanged
    and is null for all others. The shape of a blob is in its field's metadata. A finished file also
    has ``place``, ``stat``, ``digest``, ``status`` (``ok`` or a code) and ``detail``; photos that
    could not be read come last, with null layers.
    """

    def _create(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [("path", pa.string()), ("path_bytes", pa.binary())]
        if self._finished:
            fields.append(("place", pa.binary()))
            fields += [(name, pa.string()) for name in ("stat", "digest", "status", "detail")]
        for name, (shape, dtype) in self._layers.items():
            kind = pa.list_(pa.from_numpy_dtype(dtype), math.prod(shape))
            fields.append(pa.field(name, kind, metadata={"shape": " ".join(map(str, shape))}))
        self._file = pq.ParquetWriter(
            pa.PythonFile(self._raw, "w"),
            pa.schema(fields),
            compression="none",  # features hardly compress
            use_dictionary=["status"],
            write_statistics=["path", "status"],
            write_page_checksum=True,
        )

    def _write(self, records: Sequence[Photo | Failure], rows: Rows) -> None:
        """Append a row group."""
        import pyarrow as pa

        paths, failed = [x.path for x in records], isinstance(records[0], Failure)
        columns: dict[str, Any] = {name: [None] * len(records) for name in self._layers}
        columns |= {name: [getattr(x, name) for x in records] for name in ("stat", "digest")}
        columns |= {
            "path": list(map(printable, paths)),
            "path_bytes": [None if printable(x) == x else encoded(x) for x in paths],
            "place": [x.place and encoded(x.place) for x in records],
            "status": [x.code if failed else _OK for x in records],
            "detail": [printable(x.detail) if failed else None for x in records],
        }
        for name, values in rows.items():
            flat = pa.array(np.ascontiguousarray(values).ravel())
            kind = self._file.schema.field(name).type
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        self._file.write_table(pa.Table.from_pydict(columns, schema=self._file.schema))

    def _end(self, attributes: Mapping[str, str]) -> None:
        self._file.add_key_value_metadata(attributes)


def _read_parquet(path: Path, stack: contextlib.ExitStack) -> Output:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Open the path as bytes: Arrow accepts only UTF-8 as text.
    raw = stack.enter_context(pa.OSFile(os.fsencode(path)))
    file = stack.enter_context(pq.ParquetFile(raw, page_checksum_verification=True))

    def texts(name: str) -> list[str] | None:
        part = slice(rows, None) if name.startswith("errors_") else slice(rows)
        name = name.removeprefix("errors_").removesuffix("s").replace("code", "status")
        if name not in file.schema_arrow.names:
            return None
        columns = ["path", "path_bytes"] if name == "path" else [name]
        table = file.read(columns=columns)[part]
        found = zip(*(table[column].to_pylist() for column in columns), strict=True)
        found = [some[0] if some[-1] is None else some[-1] for some in found]
        return [x.decode("utf-8", "surrogateescape") if isinstance(x, bytes) else x for x in found]

    def take(layer: str, start: int, stop: int) -> np.ndarray:
        groups = range(bisect.bisect(starts, start) - 1, bisect.bisect_left(starts, stop))
        lists = file.read_row_groups(groups, columns=[layer])[layer].combine_chunks()
        flat = lists.slice(start - starts[groups[0]], stop - start).flatten().to_numpy()
        return flat.reshape(stop - start, *layers[layer][0][1:])

    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    *starts, rows = [0, *itertools.accumulate(sizes)]
    if codes := texts("codes"):
        rows = codes.count(_OK)
        if _OK in codes[rows:]:
            raise ValueError("rows come after failures")
    layers = {}
    for field in file.schema_arrow:
        if field.metadata and b"shape" in field.metadata:
            shape = tuple(map(int, field.metadata[b"shape"].split()))
            layers[field.name] = (rows, *shape), np.dtype(field.type.value_type.to_pandas_dtype())
    attributes = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
    attributes.pop("ARROW:schema", None)
    return Output(texts, layers, attributes, take)


def _export_npz(file: OutputFile, content: Any) -> None:
    """An uncompressed archive of arrays: one per layer and column, and ``attributes`` (JSON)."""
    attributes = json.dumps({**content.attributes, "layers": " ".join(content.layers)})
    columns = _columns(content)
    with zipfile.ZipFile(file, "w") as archive:
        for name, values in {**columns, "attributes": attributes, **content.layers}.items():
            # From a plain name, Python 3.14 would store the time, and no two files would be equal.
            member = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(member, "w", force_zip64=True) as target:
                if name in content.layers:
                    _write_rows(target, file, content, name)
                else:
                    np.lib.format.write_array(target, np.array(values, "U"), allow_pickle=False)


def _write_rows(target: Any, file: OutputFile, content: Any, layer: str) -> None:
    """Write a layer as a NumPy array, block by block."""
    shape, dtype = content.layers[layer]
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    header["shape"] = (len(content.photos), *shape)
    np.lib.format.write_array_header_1_0(target, header)
    for rows in content.blocks([layer]):
        target.write(rows[layer].tobytes())
        file.check()


def _read_npz(path: Path, stack: contextlib.ExitStack) -> Output:
    archive = stack.enter_context(zipfile.ZipFile(path))

    def array(name: str) -> np.ndarray:
        try:
            with archive.open(f"{name}.npy") as member:
                return np.lib.format.read_array(member, allow_pickle=False)
        except MemoryError as error:  # usually from a wrong size in the header
            raise ValueError(str(error)) from None

    def texts(name: str) -> Any:
        return array(name).tolist() if f"{name}.npy" in archive.namelist() else None

    attributes = json.loads(texts("attributes"))
    layers = {}
    for name in attributes["layers"].split():
        with archive.open(f"{name}.npy") as member:
            np.lib.format.read_magic(member)
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            layers[name] = shape, dtype
    whole = functools.cache(array)  # only reading to the end checks the checksum
    return Output(texts, layers, attributes, lambda name, x, y: whole(name)[x:y])


def _export_npy(file: OutputFile, content: Any, names: OutputFile) -> None:
    """The rows of the only layer, and everything else as JSON."""
    (layer,) = content.layers
    _write_rows(file, file, content, layer)
    names.write(_json(content))
    names.check()


def _json(content: Any) -> bytes:
    """Everything except the rows, as JSON."""
    known = {f"{x}s": [getattr(y, x) for y in content.photos] for x in Photo._fields}
    known["errors"] = [failure._asdict() for failure in content.failures]
    known["attributes"] = {**content.attributes, "layers": " ".join(content.layers)}
    return json.dumps(known, indent=0).encode()


def _of_json(known: Any, layers: Layers, take: Callable) -> Output:
    errors = {f"errors_{x}s": [y.get(x) for y in known["errors"]] for x in Failure._fields}
    return Output({**known, **errors}.get, layers, known["attributes"], take)


def _read_npy(path: Path, names: Path) -> Output:
    data = names.read_bytes()
    if data == UNFINISHED:
        raise ValueError("it is unfinished")
    known = json.loads(data.decode())
    rows = np.lib.format.open_memmap(path, mode="r")
    layers = {known["attributes"]["layers"]: (rows.shape, rows.dtype)}
    return _of_json(known, layers, lambda _, x, y: rows[x:y])


def _export_mat(file: OutputFile, content: Any) -> None:
    """A MATLAB file (version 5): an array per layer, a cell per column, a struct of attributes.

    ``record`` holds all text unchanged: the JSON of an ``.npy``, as bytes. MATLAB has no float16.
    SciPy's `savemat` can't be used: MATLAB does not open its files if they contain "ü".
    """
    check_mat_size(content.layers, len(content.photos))
    file.write(b"MATLAB 5.0 MAT-file, written by tf_alexnet".ljust(116) + bytes(8) + b"\0\1IM")
    for name, texts in _columns(content).items():
        file.write(_mat_array(1, (len(texts), 1), name, *map(_mat_text, texts)))
    record = _json(content)
    attributes = json.loads(record)["attributes"]
    names = b"".join(name.encode()[:31].ljust(32, b"\0") for name in attributes)
    fields = _mat_element(5, struct.pack("<i", 32)), _mat_element(1, names)
    values = map(_mat_text, attributes.values())
    file.write(_mat_array(2, (1, 1), "attributes", *fields, *values))
    file.write(_mat_array(9, (1, len(record)), "record", _mat_element(2, record)))
    for name, (shape, _) in content.layers.items():
        rows, start = np.empty((len(content.photos), *shape), np.float32, order="F"), 0
        for block in content.blocks([name]):
            rows[start : start + len(block[name])] = block[name]
            start += len(block[name])
        tag, padding = struct.pack("<II", 7, rows.nbytes), bytes(rows.nbytes % 8)
        file.write(_mat_array(7, rows.shape, name, tag, more=rows.nbytes + len(padding)))
        file.write(rows.ravel("K"))
        file.write(padding)
        file.check()


def _mat_array(kind: int, shape: Sequence[int], name: str, *parts: bytes, more: int = 0) -> bytes:
    """An array of class 1 cell, 2 struct, 4 char, 7 single or 9 uint8; `more` bytes follow."""
    flags, sizes = struct.pack("<II", kind, 0), struct.pack(f"<{len(shape)}i", *shape)
    head = _mat_element(6, flags) + _mat_element(5, sizes) + _mat_element(1, name.encode())
    body = b"".join((head, *parts))
    return struct.pack("<II", 14, len(body) + more) + body


def _mat_element(kind: int, data: bytes) -> bytes:
    """Tag and data of an element: 1 int8, 2 uint8, 5 int32, 6 uint32, 14 array, 16 and 17 text."""
    if 0 < len(data) <= 4:
        return struct.pack("<HH4s", kind, len(data), data)
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def _mat_text(text: str) -> bytes:
    text = printable(text)
    # MATLAB expects one unit per character: ASCII as UTF-8, other text as UTF-16.
    kind, data = (16, text.encode()) if text.isascii() else (17, text.encode("utf-16-le"))
    length = len(data) // (kind - 15)
    return _mat_array(4, (min(length, 1), length), "", _mat_element(kind, data))


def _read_mat(path: Path, stack: contextlib.ExitStack) -> Output:
    from scipy.io import loadmat, whosmat

    file = stack.enter_context(path.open("rb"))
    known = json.loads(loadmat(file, variable_names="record")["record"].tobytes())
    kinds = {"single": np.dtype(np.float32)}
    found = {name: (shape, kinds[kind]) for name, shape, kind in whosmat(file) if kind in kinds}
    layers = {name: found[name] for name in known["attributes"]["layers"].split()}
    whole = functools.cache(lambda name: loadmat(file, variable_names=name)[name])
    return _of_json(known, layers, lambda name, x, y: whole(name)[x:y])
