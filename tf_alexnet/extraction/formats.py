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
import io
import itertools
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5f, h5fd, h5g, h5p

from tf_alexnet.extraction.decoder import Failure, Photo
from tf_alexnet.extraction.storage import OutputFile, unbroken

BLOCK_BYTES = 8 * 2**20  # rows that are in memory together
_CHUNK_BYTES = 2**20  # of an HDF5 dataset: few enough to index, small enough to read one row
_OK = "ok"

Layers = dict[str, tuple[tuple[int, ...], np.dtype]]  # layer -> (shape of a row, dtype)
Rows = Mapping[str, np.ndarray]
_Texts = Callable[[str], "list[str] | None"]  # name of a column -> its values, if there is one
_Take = Callable[[int, int], np.ndarray]  # (start, stop) -> rows


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
        self,
        texts: _Texts,
        layers: Layers,
        failures: list[Failure],
        attributes: dict[str, str],
        opened: Callable[[str, contextlib.ExitStack], _Take],
    ):
        self._texts, self._opened = texts, opened
        self.paths, self.failures, self.attributes = texts("paths"), failures, attributes
        self.layers = {name: (shape[1:], dtype) for name, (shape, dtype) in layers.items()}
        if not all(isinstance(path, str) for path in self.paths):
            raise ValueError("a path is not text")
        for name, (shape, dtype) in layers.items():
            if dtype.kind != "f" or shape[0] != len(self.paths):
                raise ValueError(f"{name} is not one row of numbers per path")

    @functools.cached_property
    def photos(self) -> list[Photo]:
        """One per row; a job's data files and files of version 0.1 know only their paths."""
        with _value_errors():
            return _records(Photo, lambda x: self.paths if x == "paths" else self._texts(x))

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.paths)

    def blocks(self, layers: Sequence[str], rows: Sequence[int] | None = None) -> Iterator[Rows]:
        """Some layers' rows, about `BLOCK_BYTES` at a time: all, or those of ascending indices."""
        wanted = np.arange(self.count) if rows is None else np.asarray(rows, np.int64)
        if len(wanted) and (np.diff(wanted, prepend=0, append=self.count - 1) < 0).any():
            raise ValueError(f"not ascending indices of {self.count} rows")
        step = _fitting(BLOCK_BYTES, [self.layers[name] for name in layers])
        with _value_errors(), contextlib.ExitStack() as stack:
            takes = {name: self._opened(name, stack) for name in layers}
            for start in range(0, self.count, step):
                some = wanted[slice(*np.searchsorted(wanted, (start, start + step)))]
                if not len(some):
                    continue
                first, end = int(some[0]), int(some[-1]) + 1
                block = {name: take(first, end) for name, take in takes.items()}
                if rows is not None:
                    block = {name: values[some - first] for name, values in block.items()}
                yield block


def data_writer(suffix: str) -> type[Hdf5Writer] | type[ParquetWriter]:
    """The class that writes data files with this suffix."""
    return ParquetWriter if suffix == ".parquet" else Hdf5Writer


def export(
    suffix: str, file: OutputFile, content: Any, names_file: OutputFile | None = None
) -> None:
    """Write a finished file of what an `Output`, or a thing with its attributes, holds.

    `names_file` is the JSON file that belongs to an ``.npy``.
    """
    if suffix == ".npz":
        _export_npz(file, content)
    elif suffix == ".npy":
        _export_npy(file, content, names_file)
    else:
        with data_writer(suffix)(file, content.layers) as writer:
            photos = iter(content.photos)
            for rows in content.blocks(list(content.layers)):
                count = len(next(iter(rows.values())))
                writer.add(list(itertools.islice(photos, count)), rows)
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
                readers = {".npz": _read_npz, ".parquet": _read_parquet}
                output = readers.get(path.suffix.lower(), _read_hdf5)(path, stack)
        yield output


def printable(text: str) -> str:
    """`text` with bytes that are not UTF-8 shown as ``\\xff``."""
    return encoded(text).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    """Raise ValueError for everything else that a damaged file makes libraries raise."""
    try:
        yield
    except (ValueError, KeyError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"not a file of features ({type(error).__name__}: {error})") from error


def encoded(text: str) -> bytes:
    """The bytes of a name on disk, without NUL; a text that can't be such a name is escaped."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "backslashreplace")
    return raw.replace(b"\0", b"\\0")


def _records(kind: type, texts: _Texts) -> list:
    """Photos or failures from columns; an empty stat, digest or place is None."""
    columns = {field: texts(f"{field}s") for field in kind._fields}
    for field in kind._field_defaults:
        columns[field] = [x or None for x in columns[field] or [""] * len(columns["path"])]
    return [kind(*row) for row in zip(*columns.values(), strict=True)]


def _fitting(size: int, layers: Iterable[tuple[tuple[int, ...], np.dtype]]) -> int:
    """The power of two of rows that fits into `size` bytes; at least 1."""
    row = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layers)
    return 1 << max(0, (size // max(row, 2048)).bit_length() - 1)


class _Writer(contextlib.AbstractContextManager):
    """Writes rows in steps that depend on their size alone: equal content gives equal bytes.

    With `layers` it is a finished file, of which `add` takes photos instead of paths.
    """

    def __init__(self, file: OutputFile, layers: Layers | None = None):
        self._raw, self._finished, self._layers = file, layers is not None, layers
        self._file: Any = None
        self._waiting: list[tuple[Sequence[Photo], Rows]] = []

    @unbroken()
    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @unbroken()
    def add(self, paths: Sequence[str] | Sequence[Photo], rows: Rows) -> None:
        """Append one row per path to every layer."""
        if self._layers is None:
            self._layers = {name: (x.shape[1:], x.dtype) for name, x in rows.items()}
        photos = paths if self._finished else [Photo(path) for path in paths]
        self._waiting.append((photos, rows))
        self._flush(final=False)

    @unbroken()
    def finish(self, attributes: Mapping[str, str], failures: Sequence[Failure] = ()) -> None:
        """Write what waits, the failures and the attributes."""
        self._flush(final=True)
        for start in range(0, len(failures), 4096):
            self._write(failures[start : start + 4096], {})
            self._raw.check()
        self._end({**attributes, "layers": " ".join(self._layers)})
        self._raw.check()

    def _flush(self, final: bool) -> None:
        """Write the rows that wait: all, or whole steps."""
        self._raw.check()
        if self._file is None:
            self._create()
        step = _fitting(BLOCK_BYTES, self._layers.values())
        count = sum(len(photos) for photos, _ in self._waiting)
        if count < (1 if final else step):
            return
        photos = list(itertools.chain.from_iterable(some for some, _ in self._waiting))
        rows = {x: np.concatenate([some[x] for _, some in self._waiting]) for x in self._layers}
        done = 0
        while done + (0 if final else step - 1) < count:
            part = slice(done, done + step)
            self._write(photos[part], {name: values[part] for name, values in rows.items()})
            self._raw.check()
            done += step
        self._waiting = [(photos[done:], {name: values[done:] for name, values in rows.items()})]


class Hdf5Writer(_Writer):
    """An HDF5 file: a dataset per layer, ``paths`` and attributes.

    A finished file has ``stats``, ``digests``, ``places`` and a group ``errors`` too. HDF5 checks
    rows, and (since its format 1.10) its own structures, by checksums. It has none for text, whose
    digest is an attribute.
    """

    def _create(self) -> None:
        creation, access = h5p.create(h5p.FILE_CREATE), h5p.create(h5p.FILE_ACCESS)
        creation.set_obj_track_times(False)
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
            group = h5p.create(h5p.GROUP_CREATE)
            group.set_obj_track_times(False)
            h5g.create(self._file.id, b"errors", gcpl=group)
            names = [f"{field}s" for field in Photo._fields]
            names += [f"errors/{field}s" for field in Failure._fields]
        for name in names:
            text = h5py.string_dtype()
            self._file.create_dataset(name, (0,), text, maxshape=(None,), chunks=(1024,))
        self._digests = {name: hashlib.blake2b(digest_size=16) for name in names}

    def _write(self, records: Sequence[Photo | Failure], rows: Rows) -> None:
        """Make the datasets longer."""
        columns = dict(rows)
        group = "errors/" if isinstance(records[0], Failure) else ""
        for field in records[0]._fields:
            if (name := f"{group}{field}s") in self._digests:
                texts = [encoded(getattr(record, field) or "") for record in records]
                self._digests[name].update(b"".join(text + b"\0" for text in texts))
                columns[name] = np.array(texts, object)
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
        if found.chunks is None:  # virtual datasets and those in other files have none either
            raise ValueError(f"{name} was not written by this package")
        chunks = math.prod(-(-x // y) for x, y in zip(found.shape, found.chunks, strict=True))
        if found.id.get_num_chunks() < chunks:
            raise ValueError(f"{name} lacks some of its values")
        return found

    def texts(name: str) -> list[str] | None:
        if name not in file:
            return None
        data = dataset(name)
        raw = data[:].tolist()
        digest = hashlib.blake2b(b"".join(text + b"\0" for text in raw), digest_size=16)
        if data.attrs.get("blake2b", digest.hexdigest()) != digest.hexdigest():
            raise ValueError(f"{name} is damaged")
        return [text.decode("utf-8", "surrogateescape") for text in raw]

    def opened(layer: str, _: contextlib.ExitStack) -> _Take:
        data = dataset(layer)
        return lambda start, stop: data[start:stop]

    attributes = {name: value for name, value in file.attrs.items() if isinstance(value, str)}
    datasets = {name: dataset(name) for name in attributes["layers"].split()}
    layers = {name: (data.shape, data.dtype) for name, data in datasets.items()}
    failures = _records(Failure, lambda x: texts(f"errors/{x}")) if "errors" in file else []
    return Output(texts, layers, failures, attributes, opened)


class ParquetWriter(_Writer):
    """A Parquet file: one row per photo, a list of fixed size per layer.

    ``path`` has to be UTF-8: bytes that are not are shown as ``\\xff``, and ``path_bytes`` (null
    for all other paths) has them as they are. The shape of a blob stands in its field's metadata.
    The photos of a finished file have ``place``, ``stat``, ``digest``, ``status`` (``ok`` or a
    code) and ``detail``; those that could not be read come last, with null layers.
    """

    def _create(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [pa.field("path", pa.string()), pa.field("path_bytes", pa.binary())]
        if self._finished:
            fields.append(pa.field("place", pa.binary()))
            fields += [pa.field(x, pa.string()) for x in ("stat", "digest", "status", "detail")]
        for name, (shape, dtype) in self._layers.items():
            kind = pa.list_(pa.from_numpy_dtype(dtype), math.prod(shape))
            fields.append(pa.field(name, kind, metadata={"shape": " ".join(map(str, shape))}))
        self._file = pq.ParquetWriter(
            pa.PythonFile(self._raw, "w"),
            pa.schema(fields),
            compression="none",  # numbers hardly repeat: packing them costs time for nothing
            use_dictionary=["status"],
            write_statistics=["path", "status"],
            write_page_checksum=True,
        )

    def _write(self, records: Sequence[Photo | Failure], rows: Rows) -> None:
        """Append a row group."""
        import pyarrow as pa

        shown = [printable(x.path) for x in records]
        raw = [encoded(x.path) for x in records]
        columns = {
            "path": shown,
            "path_bytes": [None if x.encode() == y else y for x, y in zip(shown, raw, strict=True)],
            "place": [x.place and encoded(x.place) for x in records],
            "stat": [x.stat for x in records],
            "digest": [x.digest for x in records],
            "status": [getattr(x, "code", _OK) for x in records],
            "detail": [printable(x.detail) if isinstance(x, Failure) else None for x in records],
        }
        arrays = []
        for field in self._file.schema:
            if field.name in rows:
                flat = pa.array(np.ascontiguousarray(rows[field.name]).ravel())
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
            else:  # of a layer: photos that failed
                values = columns.get(field.name) or [None] * len(records)
                arrays.append(pa.array(values, field.type))
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._file.schema))

    def _end(self, attributes: Mapping[str, str]) -> None:
        self._file.add_key_value_metadata(attributes)


def _read_parquet(path: Path, stack: contextlib.ExitStack) -> Output:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # As bytes: Arrow takes a path for text, and knows none that is not UTF-8.
    raw = stack.enter_context(pa.OSFile(os.fsencode(path)))
    file = stack.enter_context(pq.ParquetFile(raw, page_checksum_verification=True))

    def texts(name: str, first: int = 0, end: int | None = None) -> list[str] | None:
        name = "status" if name == "codes" else name.removesuffix("s")
        if name not in file.schema_arrow.names:
            return None
        columns = ["path", "path_bytes"] if name == "path" else [name]
        table = file.read(columns=columns)[first : rows if end is None else end]
        found = zip(*(table[column].to_pylist() for column in columns), strict=True)
        found = [some[0] if some[-1] is None else some[-1] for some in found]
        return [x.decode("utf-8", "surrogateescape") if isinstance(x, bytes) else x for x in found]

    def opened(layer: str, _: contextlib.ExitStack) -> _Take:
        def take(start: int, stop: int) -> np.ndarray:
            groups = range(bisect.bisect(starts, start) - 1, bisect.bisect_left(starts, stop))
            lists = file.read_row_groups(groups, columns=[layer])[layer].combine_chunks()
            flat = lists.slice(start - starts[groups[0]], stop - start).flatten().to_numpy()
            return flat.reshape(stop - start, *layers[layer][0][1:])

        return take

    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    *starts, total = [0, *itertools.accumulate(sizes)]
    codes = texts("codes", 0, total) or [_OK] * total
    rows = codes.count(_OK)
    if _OK in codes[rows:]:
        raise ValueError("rows stand behind failures")
    layers = {}
    for field in file.schema_arrow:
        if field.metadata and b"shape" in field.metadata:
            shape = tuple(map(int, field.metadata[b"shape"].split()))
            layers[field.name] = (rows, *shape), np.dtype(field.type.value_type.to_pandas_dtype())
    failures = _records(Failure, lambda x: texts(x, rows, total)) if rows < total else []
    known = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
    known.pop("ARROW:schema", None)
    return Output(texts, layers, failures, known, opened)


def _export_npz(file: OutputFile, content: Any) -> None:
    """An archive of NumPy arrays, not compressed: a layer or column each, ``attributes`` (JSON)."""
    columns = {f"{x}s": (content.photos, x) for x in Photo._fields}
    columns |= {f"errors_{x}s": (content.failures, x) for x in Failure._fields}
    attributes = json.dumps({**content.attributes, "layers": " ".join(content.layers)})
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:

        def write(name: str, *array: Any) -> None:
            # A name would get the time of day from Python 3.14 on, and no two files would be equal.
            member = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(member, "w", force_zip64=True) as target:
                _write_array(target, file, *array)

        for name, (records, field) in columns.items():
            texts = [getattr(record, field) or "" for record in records]
            dtype = np.dtype(f"<U{max(map(len, texts), default=0) or 1}")
            parts = (np.array(texts[i : i + 1024], dtype) for i in range(0, len(texts), 1024))
            write(name, (len(texts),), dtype, parts)
        write("attributes", (), np.dtype(f"<U{len(attributes)}"), [np.array(attributes)])
        for name, (shape, dtype) in content.layers.items():
            blocks = (rows[name] for rows in content.blocks([name]))
            write(name, (len(content.photos), *shape), dtype, blocks)


def _write_array(target: Any, file: OutputFile, shape: tuple, dtype: np.dtype, parts: Any) -> None:
    """Write a NumPy array part by part."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(target, header)
    for part in parts:
        target.write(part.tobytes())
        file.check()


def _read_npz(path: Path, stack: contextlib.ExitStack) -> Output:
    archive = stack.enter_context(zipfile.ZipFile(path))

    def header(member: Any) -> tuple[tuple[int, ...], np.dtype]:
        version = np.lib.format.read_magic(member)
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(member)
        if version != (1, 0) or in_columns:
            raise ValueError("an array was not written by this package")
        return shape, dtype

    def texts(name: str) -> Any:
        if f"{name}.npy" not in archive.namelist():
            return None
        with archive.open(f"{name}.npy") as member:
            shape, dtype = header(member)
            return np.frombuffer(member.read(), dtype).reshape(shape).tolist()

    def opened(layer: str, members: contextlib.ExitStack) -> _Take:
        member = members.enter_context(archive.open(f"{layer}.npy"))
        (_, *shape), dtype = header(member)
        first, size = member.tell(), math.prod(shape) * dtype.itemsize

        def take(start: int, stop: int) -> np.ndarray:
            if skipped := first + start * size - member.tell():
                member.seek(skipped, os.SEEK_CUR)  # only then: no checksum is compared after it
            data = member.read(size * (stop - start))
            return np.frombuffer(data, dtype).reshape(stop - start, *shape)

        return take

    attributes = json.loads(texts("attributes"))
    layers = {}
    for name in attributes["layers"].split():
        with archive.open(f"{name}.npy") as member:
            layers[name] = header(member)
    failures = _records(Failure, lambda name: texts(f"errors_{name}"))
    return Output(texts, layers, failures, attributes, opened)


def _export_npy(file: OutputFile, content: Any, names_file: OutputFile) -> None:
    """The rows of the only layer, and everything else as JSON."""
    ((layer, (shape, dtype)),) = content.layers.items()
    blocks = (rows[layer] for rows in content.blocks([layer]))
    _write_array(file, file, (len(content.photos), *shape), dtype, blocks)
    known = {f"{x}s": [getattr(photo, x) for photo in content.photos] for x in Photo._fields}
    known["errors"] = [failure._asdict() for failure in content.failures]
    known["attributes"] = {**content.attributes, "layers": layer}
    text = io.TextIOWrapper(names_file, "ascii")
    json.dump(known, text, indent=0)
    text.detach()
    names_file.check()


def _read_npy(path: Path, names: Path) -> Output:
    known = json.loads(names.read_text(encoding="utf-8"))
    rows = np.lib.format.open_memmap(path, mode="r")
    attributes, failures = known["attributes"], [Failure(**x) for x in known["errors"]]
    layers = {attributes["layers"]: (rows.shape, rows.dtype)}
    return Output(known.get, layers, failures, attributes, lambda *_: lambda x, y: rows[x:y])
