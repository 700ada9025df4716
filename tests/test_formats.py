"""Files of features: written, exported, read, damaged, and files that are none."""

import contextlib
import errno
import json
import shutil
import subprocess
import time
import tracemalloc
import zipfile
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import loadmat

from tf_alexnet.errors import UsageError
from tf_alexnet.extraction import formats
from tf_alexnet.extraction.decoder import Failure, Photo
from tf_alexnet.extraction.formats import (
    check_mat_size,
    data_writer,
    export,
    open_output,
    printable,
)
from tf_alexnet.extraction.storage import OutputFile

DAMAGED = (ValueError, KeyError, OSError)
EXPORTS = (".h5", ".hdf5", ".parquet", ".npz", ".npy", ".mat")
ODD = ("a\nb.png", "bytes\udcff.png", "ünïcode.png", "  'quo\"ted, .png", "\\udcff.png")
SHAPES = {"fc7": ((64,), "f4"), "conv5": ((3, 4, 5), "f2"), "prob": ((7,), "f4")}
FAILURES = [
    Failure("bad\udcfe\n.png", "damaged", "it ends after 3 bytes", "1 2 3", "ab" * 16, "/x/bad"),
    Failure("none.png", "missing", "there is no such file", None, None, "/x/\udcfe/none.png"),
    Failure("q\ud800\0.png", "unreadable", ""),
]


def photos_of(count):
    names = [*ODD, *(f"photo {i}" for i in range(count))][:count]
    return [
        Photo(x, None if i % 3 else f"{i} 12 {i}", f"{i:032x}" if i % 4 else None, f"/x/\udcfe/{x}")
        for i, x in enumerate(names)
    ]


def content_of(count, layers=("fc7", "conv5"), step=5, failures=FAILURES):
    """What is given to `export`, its rows in blocks of `step`."""
    rng = np.random.default_rng(0)
    data = {x: rng.normal(size=(count, *SHAPES[x][0])).astype(SHAPES[x][1]) for x in layers}

    def blocks(names):
        for start in range(0, count, step):
            yield {name: data[name][start : start + step] for name in names}

    return SimpleNamespace(
        data=data,
        photos=photos_of(count),
        failures=failures,
        layers={name: (SHAPES[name][0], np.dtype(SHAPES[name][1])) for name in layers},
        attributes={"weights_digest": "abc", "layers": " ".join(layers), "odd": "ü'\n"},
        blocks=blocks,
        count=count,
    )


def exported(path, content):
    with contextlib.ExitStack() as stack:
        names = None
        if path.suffix == ".npy":
            names = stack.enter_context(OutputFile(f"{path}.json"))
        export(path.suffix, stack.enter_context(OutputFile(path)), content, names)
    return path


def data_file(path, paths, rows, step=64, attributes=None):
    with OutputFile(path) as file, data_writer(path.suffix)(file) as writer:
        for i in range(0, len(paths), step):
            writer.add(paths[i : i + step], {x: rows[x][i : i + step] for x in rows})
        writer.finish({"id": "1"} if attributes is None else attributes)
    return path


def read_all(path):
    with open_output(path) as output:
        return output.photos, output.failures, {x: read(output, x) for x in output.layers}


def read(output, layer, rows=None):
    blocks = [block[layer] for block in output.blocks([layer], rows)]
    return np.concatenate(blocks) if blocks else np.zeros((0, *output.layers[layer][0]))


@pytest.mark.parametrize("suffix", EXPORTS)
@pytest.mark.parametrize("failures", [[], FAILURES], ids=["no failures", "failures"])
@pytest.mark.parametrize("count", [0, 1, 77])
def test_all_comes_back(count, failures, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_BYTES", 16 * 2048)  # 16 rows
    layers = ["conv5"] if suffix == ".npy" else ["prob", "conv5", "fc7"]
    content = content_of(count, layers, failures=failures)
    with open_output(exported(tmp_path / f"f\udcff{suffix}", content)) as output:
        assert output.photos == content.photos
        assert output.paths == [photo.path for photo in content.photos]
        assert output.count == count
        kinds = {x: "f4" if suffix == ".mat" else dtype for x, (_, dtype) in content.layers.items()}
        assert output.layers == {x: (content.layers[x][0], kind) for x, kind in kinds.items()}
        assert list(output.layers) == layers
        assert output.attributes == content.attributes
        assert [x[1:2] + x[3:5] for x in output.failures] == [x[1:2] + x[3:5] for x in failures]
        for found, failure in zip(output.failures[:2], failures, strict=False):
            assert found == failure
        for name, rows in content.data.items():
            found = read(output, name)
            assert np.array_equal(found, rows)
            if count:
                assert found.dtype == kinds[name]
        if count and len(layers) > 1:
            (*_, last) = output.blocks(["fc7", "prob"])
            assert list(last) == ["fc7", "prob"]
            assert np.array_equal(last["prob"][-1], content.data["prob"][-1])


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_data_files_know_paths_and_rows(suffix, tmp_path):
    content = content_of(77)
    paths = [photo.path for photo in content.photos]
    with open_output(data_file(tmp_path / f"d{suffix}", paths, content.data, step=9)) as output:
        assert output.photos == [Photo(path) for path in paths]
        assert output.failures == []
        assert output.attributes == {"id": "1", "layers": "fc7 conv5"}
        for name, rows in content.data.items():
            assert np.array_equal(read(output, name), rows)


@pytest.mark.parametrize("suffix", EXPORTS)
def test_chosen_rows(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_BYTES", 16 * 2048)
    content = content_of(100, ["fc7"])
    rng = np.random.default_rng(1)
    with open_output(exported(tmp_path / f"f{suffix}", content)) as output:
        for rows in (
            *([], [0], [99], range(100), [15, 16, 17], [3, 3, 3, 60, 60, 61], np.arange(5, 95, 31)),
            *(sorted(rng.choice(100, n, replace=False).tolist()) for n in (2, 20, 90)),
        ):
            found = read(output, "fc7", rows)
            assert np.array_equal(found, content.data["fc7"][list(rows)])
        assert len(list(output.blocks(["fc7"]))) == 7
        for rows in ([100], [-1, 3]):
            with pytest.raises(ValueError, match="of 100"):
                next(output.blocks(["fc7"], rows))


@pytest.mark.parametrize("suffix", [".h5", ".parquet", ".npz", ".npy"])
def test_memory_stays_far_below_the_file(suffix, tmp_path):
    rows = np.ones((256, 4096), np.float32)
    count = 24 * 256  # 100 MB

    def blocks(names):
        for _ in range(24):
            yield {"fc7": rows}

    content = SimpleNamespace(
        photos=[Photo(f"p{i}", "1 2 3", "ab" * 16, f"/p{i}") for i in range(count)],
        **{"failures": [], "layers": {"fc7": ((4096,), rows.dtype)}, "attributes": {}},
        **{"blocks": blocks, "count": count},
    )
    tracemalloc.start()
    before = pa.default_memory_pool().bytes_allocated()
    path = exported(tmp_path / f"f{suffix}", content)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    with open_output(path) as output:
        total, arrow = 0, 0
        for block in output.blocks(["fc7"]):
            total += float(block["fc7"].sum())
            arrow = max(arrow, pa.default_memory_pool().bytes_allocated() - before)
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 100e6
    assert total == count * 4096
    assert written < 40e6
    assert top < (130e6 if suffix == ".npz" else 40e6)  # an array of an archive is read as a whole
    assert arrow < 40e6


@pytest.mark.parametrize("suffix", EXPORTS)
def test_equal_content_gives_equal_bytes(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1e9)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 16 * 2048)
    layers = ["fc7"] if suffix == ".npy" else ["fc7", "conv5", "prob"]
    files = []
    for step in (7, 16, 100):
        path = exported(tmp_path / f"{step}{suffix}", content_of(100, layers, step))
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]


def test_an_hdf5_file_has_no_time_of_day(tmp_path):
    exported(tmp_path / "0.h5", content_of(3))
    time.sleep(1.01)
    exported(tmp_path / "1.h5", content_of(3))
    data = (tmp_path / "0.h5").read_bytes()
    assert data == (tmp_path / "1.h5").read_bytes()
    assert data[8] == 3  # the format in which HDF5's own structures have checksums


@pytest.mark.parametrize("suffix", [".h5", ".parquet", ".npz"])
def test_damaged_rows_and_names_are_never_returned(suffix, tmp_path):
    content = content_of(400, ["fc7"], 100)
    path = exported(tmp_path / f"f{suffix}", content)
    original, rng = path.read_bytes(), np.random.default_rng(0)
    rows = content.data["fc7"]
    inside = [original.index(rows[i].tobytes()) + 37 for i in range(0, 400, 100)]
    for place in inside + rng.choice(len(original), 60).tolist():
        data = bytearray(original)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            with open_output(path) as output:
                found, photos = read(output, "fc7"), output.photos
        except DAMAGED:
            continue
        assert place not in inside
        assert np.array_equal(found, rows)
        if suffix == ".h5":  # the others have no checksums for their own structures
            assert photos == content.photos


@pytest.mark.parametrize("suffix", EXPORTS)
def test_cut_files_raise(suffix, tmp_path):
    path = exported(tmp_path / f"f{suffix}", content_of(50, ["fc7"]))
    data = path.read_bytes()
    for length in (0, 1, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DAMAGED):
            read_all(path)


def strangers(folder):
    """Files that this package did not write, with valid suffixes."""
    rng = np.random.default_rng(0)
    for i, data in enumerate((b"", b"hello", rng.bytes(3000), b"PK\3\4" + rng.bytes(99), b"{}")):
        for suffix in EXPORTS:
            (folder / f"{i}{suffix}").write_bytes(data)
            yield folder / f"{i}{suffix}"
    for i, known in enumerate(
        ({}, [], {"attributes": {"layers": "a"}, "paths": [1], "errors": []})
    ):
        np.save(folder / f"s{i}.npy", np.zeros((1, 3), "f4"))
        (folder / f"s{i}.npy.json").write_text(json.dumps(known))
        yield folder / f"s{i}.npy"
    np.save(folder / "deep.npy", np.zeros((1, 3), "f4"))
    (folder / "deep.npy.json").write_text("[" * 100_000)
    yield folder / "deep.npy"
    np.savez(folder / "z0.npz", a=np.arange(3))
    np.savez(folder / "z1.npz", attributes=np.array("{}"), paths=np.array(["a"]))
    np.savez(folder / "z2.npz", attributes=np.array('{"layers": "paths"}'), paths=np.array([["a"]]))
    np.savez(folder / "z3.npz", attributes=np.array({"layers": "x"}, dtype=object))
    with zipfile.ZipFile(folder / "z4.npz", "w") as file:
        file.writestr("attributes.npy", b"\x93NUMPY\1\0\xff\xff{")
    header = {"descr": "<U9", "fortran_order": False, "shape": (2**50,)}
    with zipfile.ZipFile(folder / "z5.npz", "w") as file:
        with file.open("attributes.npy", "w") as member:
            np.lib.format.write_array(member, np.array('{"layers": ""}'))
        with file.open("errors_paths.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, header)
    yield from (folder / f"z{i}.npz" for i in range(6))
    for name, columns in {
        "p0": {"a": [1, 2]},
        "p1": {"path": [1, 2]},
        "p2": {"path": ["a", None], "status": ["ok", "ok"]},
        "p3": {
            "path": ["a", "b", "c"],
            "status": ["ok", "damaged", "ok"],
            "detail": ["", "", ""],
            "path_bytes": [b"", b"", b""],
        },
    }.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        yield folder / f"{name}.parquet"
    for name, fill in {
        "h0": lambda file: None,
        "h1": lambda file: file.attrs.update(layers="fc7"),
        "h2": lambda file: file.attrs.update(layers=np.arange(3)),
        "h3": lambda file: file.attrs.update(layers="/ . .. paths"),
        "h4": lambda file: file.create_group("paths"),
        "h5": lambda file: file.create_dataset("paths", data=np.arange(3), chunks=(3,)),
        "h7": lambda file: file.create_dataset(
            "paths", (2**45,), h5py.string_dtype(), chunks=(2**20,)
        ),
        "h6": lambda file: file.create_dataset("paths", data=h5py.Empty("f4")),
    }.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.attrs["layers"] = ""
            fill(file)
        yield folder / f"{name}.h5"


def test_files_of_strangers(tmp_path):
    for path in strangers(tmp_path):
        with pytest.raises(DAMAGED):
            read_all(path)
    with pytest.raises(FileNotFoundError), open_output(tmp_path / "none.h5"):
        pass
    with pytest.raises(TypeError, match="mine"), open_output(exported_one(tmp_path)):
        raise TypeError("mine")  # of the caller: not a stranger's file


def exported_one(folder):
    return exported(folder / "one.h5", content_of(3))


def hostile_layer(name, file, folder):
    values = np.ones((3, 64), "f4")
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = values
    (folder / "raw").write_bytes(values.tobytes())
    if name == "soft":
        file["hidden"] = values
        file["fc7"] = h5py.SoftLink("/hidden")
    elif name == "external":
        file["fc7"] = h5py.ExternalLink(folder / "other.h5", "x")
    elif name == "virtual":
        layout = h5py.VirtualLayout((3, 64), "f4")
        layout[:] = h5py.VirtualSource(folder / "other.h5", "x", (3, 64))
        file.create_virtual_dataset("fc7", layout)
    elif name == "raw":
        file.create_dataset(
            "fc7", (3, 64), "f4", external=[(str(folder / "raw"), 0, values.nbytes)]
        )
    elif name == "group":
        file.create_group("fc7")
    elif name == "holes":
        file.create_dataset("fc7", (3, 64), "f4", chunks=(1, 64))[0] = 1
    elif name == "objects":
        file.create_dataset("fc7", (3,), h5py.string_dtype(), chunks=(3,))[:] = "x"
    elif name == "numbers":
        file.create_dataset("fc7", data=np.ones((3, 64), "i4"), chunks=(3, 64))
    elif name == "fewer":
        file.create_dataset("fc7", data=values[:2], chunks=(2, 64))


@pytest.mark.parametrize(
    "name",
    ["soft", "external", "virtual", "raw", "group", "holes", "objects", "numbers", "fewer", ""],
)
def test_layers_that_lead_elsewhere(name, tmp_path):
    path = exported_one(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["fc7"]
        hostile_layer(name, file, tmp_path)
    with pytest.raises(DAMAGED):
        read_all(path)
    path = exported_one(tmp_path)
    with h5py.File(path, "r+") as file:  # a link in place of a group of names
        file["elsewhere"] = file["errors"]
        del file["errors"]
        file["errors"] = h5py.SoftLink("/elsewhere")
    with pytest.raises(KeyError), open_output(path):
        pass


class FullDisk(OutputFile):
    """A file on a disk that has space for some writes only."""

    def __init__(self, path, writes):
        super().__init__(path)
        self.left = writes

    def _put(self, data):
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= 1
        return super()._put(data)


@pytest.mark.parametrize("suffix", EXPORTS)
def test_a_full_disk_is_one_error(suffix, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_BYTES", 16 * 2048)
    content = content_of(100, ["fc7"], failures=FAILURES * 100)
    for writes in (*range(12), 20, 30, 40):
        with (
            OutputFile(tmp_path / "names") as names,
            FullDisk(tmp_path / f"f{suffix}", writes) as file,
        ):
            with contextlib.suppress(OSError):
                export(suffix, file, content, names)
                assert writes > 5
                continue
            assert file.failure.errno == errno.ENOSPC
            with pytest.raises(OSError, match="No space"):
                file.check()
    if suffix == ".npy":
        with (
            pytest.raises(OSError, match="No space"),
            FullDisk(tmp_path / "names", 0) as names,
            OutputFile(tmp_path / "f.npy") as file,
        ):
            export(suffix, file, content, names)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_a_signal_in_a_write_is_raised_afterwards(suffix, tmp_path, capfd):
    class Interrupted(OutputFile):
        def _put(self, data):
            if self.tell() > 3000:
                raise KeyboardInterrupt
            return super()._put(data)

    rows = {"fc7": np.ones((9 * 4096, 64), "f4")}
    with Interrupted(tmp_path / f"d{suffix}") as file, data_writer(suffix)(file) as writer:
        writer.add(["a"], {"fc7": rows["fc7"][:1]})
        with pytest.raises(KeyboardInterrupt):
            writer.add([f"p{i}" for i in range(9 * 4096)], rows)
    assert capfd.readouterr() == ("", "")


def test_pandas_and_pyarrow_read_parquet(tmp_path):
    content = content_of(20)
    exported(tmp_path / "f.parquet", content)
    frame = pd.read_parquet(tmp_path / "f.parquet")
    assert frame.columns.tolist() == (
        ["path", "path_bytes", "place", "stat", "digest", "status", "detail", "fc7", "conv5"]
    )
    assert frame["status"].tolist() == ["ok"] * 20 + [x.code for x in FAILURES]
    assert frame["path"].tolist()[:2] == ["a\nb.png", "bytes\\xff.png"]
    assert frame["path_bytes"][1] == b"bytes\xff.png"
    assert frame["path_bytes"][[0, 2, 3, 4]].isna().all()
    good = frame[frame["status"] == "ok"]
    assert np.array_equal(np.stack(good["fc7"]), content.data["fc7"])
    assert np.array_equal(np.stack(good["conv5"]), content.data["conv5"].reshape(20, -1))
    (tmp_path / "folder.parquet").mkdir()
    for i in range(3):
        part = {name: rows[i * 5 : i * 5 + 5] for name, rows in content.data.items()}
        paths = [photo.path for photo in content.photos[i * 5 : i * 5 + 5]]
        data_file(
            *(tmp_path / "folder.parquet" / f"{i}.parquet", paths, part),
            attributes={"id": f"{i}"},
        )
    (tmp_path / "folder.parquet" / "_errors.csv").write_text("path\n")
    frame = pd.read_parquet(tmp_path / "folder.parquet")
    assert np.array_equal(np.stack(frame["fc7"]), content.data["fc7"][:15])
    assert frame.columns.tolist() == ["path", "path_bytes", "fc7", "conv5"]
    table = pq.read_table(tmp_path / "folder.parquet", columns=["conv5"])
    assert table.num_rows == 15


def old_file(path):
    """A file as version 0.1 wrote it."""
    rows, names = np.arange(6, dtype="f4").reshape(2, 3), ["a", "b\udcff"]
    errors = ("c", "empty", "it is empty")
    known = {"weights_digest": "abc", "layers": "fc7"}
    columns = dict(zip(("paths", "codes", "details"), errors, strict=True))
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, texts in (
                ("paths", names),
                *((f"errors/{x}", [y]) for x, y in columns.items()),
            ):
                raw = [text.encode("utf-8", "surrogateescape") for text in texts]
                file.create_dataset(
                    name, data=np.array(raw, object), dtype=h5py.string_dtype(), chunks=True
                )
            file.create_dataset("fc7", data=rows, chunks=(1, 3)).attrs["layer"] = "fc7"
            file.attrs.update(known)
    elif path.suffix == ".npz":
        arrays = {f"errors_{name}": np.array([text]) for name, text in columns.items()}
        arrays |= {"paths": np.array(names), "fc7": rows, "attributes": np.array(json.dumps(known))}
        np.savez(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, rows)
        failures = [dict(zip(("path", "code", "detail"), errors, strict=True))]
        text = json.dumps({"paths": names, "errors": failures, "attributes": known})
        path.with_name(f"{path.name}.json").write_text(text)
    else:
        kind = pa.list_(pa.float32(), 3)
        fields = [("path", pa.string()), ("path_bytes", pa.binary()), ("status", pa.string())]
        fields += [("detail", pa.string()), pa.field("fc7", kind, metadata={"shape": "3"})]
        values = ["a", "b\\xff", "c"], [None, b"b\xff", None], ["ok", "ok", errors[1]]
        values += [None, None, errors[2]], [*rows.tolist(), None]
        schema = pa.schema(fields)
        with pq.ParquetWriter(path, schema) as writer:
            for part in (slice(0, 2), slice(2, 3)):
                some = [pa.array(x[part], y.type) for x, y in zip(values, schema, strict=True)]
                writer.write_table(pa.Table.from_arrays(some, schema=schema))
            writer.add_key_value_metadata(known)
    return rows, names, errors


@pytest.mark.parametrize("suffix", [".h5", ".parquet", ".npz", ".npy"])
def test_files_of_version_0_1(suffix, tmp_path):
    rows, names, errors = old_file(tmp_path / f"f{suffix}")
    with open_output(tmp_path / f"f{suffix}") as output:
        assert output.photos == [Photo(name) for name in names]
        assert output.failures == [Failure(*errors)]
        assert np.array_equal(read(output, "fc7"), rows)
        assert output.attributes == {"weights_digest": "abc", "layers": "fc7"}


def test_suffixes_in_capitals_and_names_elsewhere(tmp_path):
    exported(tmp_path / "f.npz", content_of(3)).rename(tmp_path / "F.NPZ")
    exported(tmp_path / "f.npy", content_of(3, ["fc7"])).rename(tmp_path / "F.NPY")
    for path, names in ((tmp_path / "F.NPZ", None), (tmp_path / "F.NPY", tmp_path / "f.npy.json")):
        with open_output(path, names) as output:
            assert output.count == 3


def test_matlab_files(tmp_path):
    content = content_of(7, ["fc7", "conv5"])
    exported(tmp_path / "f.mat", content)
    found = loadmat(tmp_path / "f.mat")
    for name, rows in content.data.items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], rows)  # N x height x width x channels
    for prefix, records in (("", content.photos), ("errors_", FAILURES)):
        for field in records[0]._fields:
            cells = found[f"{prefix}{field}s"]
            assert cells.shape == (len(records), 1)
            texts = ["".join(text) for text in cells[:, 0]]
            assert texts == [printable(getattr(x, field) or "") for x in records]
    (attributes,) = found["attributes"][0]
    assert [x[0] for x in attributes] == ["abc", "fc7 conv5", "ü'\n"]
    assert attributes.dtype.names == ("weights_digest", "layers", "odd")
    # MATLAB can't open a file with UTF-8 of two bytes in it.
    assert "ünïcode.png".encode("utf-16-le") in (tmp_path / "f.mat").read_bytes()


@pytest.mark.skipif(not shutil.which("octave-cli"), reason="Octave is not installed")
def test_octave_reads_matlab_files(tmp_path):
    names = ["plain.png", "ünïcode.png", "日本.png", "\U0001f600.png"]
    content = content_of(4, ["conv5"], failures=[])
    content.photos = [Photo(name) for name in names]
    exported(tmp_path / "f.mat", content)
    code = """s = load("f.mat"); printf("%s\\n", s.paths{:}); printf("%d ", size(s.conv5));
        printf("%s %.9g", class(s.conv5), s.conv5(2, 1, 3, 4))"""
    command = ["octave-cli", "--norc", "--eval", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    *found, rest = result.stdout.decode().split("\n")
    assert found == names
    assert rest == f"4 3 4 5 single {content.data['conv5'][1, 0, 2, 3]:.9g}"


def test_what_a_matlab_file_has_no_room_for_is_refused(tmp_path):
    layers = {"fc7": ((4096,), np.dtype("f2"))}  # as single
    check_mat_size(layers, 131_000)
    with pytest.raises(UsageError, match=r"fc7 of 131,072 photos: it takes 2\.1 GB.*Use \.h5, "):
        check_mat_size(layers, 131_072)
    content = SimpleNamespace(photos=range(131_072), layers=layers)
    with OutputFile(tmp_path / "f.mat") as file, pytest.raises(UsageError):
        export(".mat", file, content)
    assert not (tmp_path / "f.mat").stat().st_size


def test_printable():
    assert printable("a\udcff\n") == "a\\xff\n"
    assert printable("\ud800\0") == "\\ud800\\0"
    assert printable("ü") == "ü"
