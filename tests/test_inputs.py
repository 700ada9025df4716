"""Every input people hand in: each gives the right photos, or one line that names the entry."""

import csv
import io
import logging
import os
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tf_alexnet.errors import AlexNetError
from tf_alexnet.evaluation.ground_truth import read_labelled
from tf_alexnet.images import find_images
from tf_alexnet.images.lists import as_sequence
from tf_alexnet.labels import Label
from tf_alexnet.training.folders import read_photos

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
NAMES = ["a.jpg", "b.png", "two words.jpg", "sub/c.jpg"]


def encoded(kind):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind)
    return buffer.getvalue()


JPEG = encoded("JPEG")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of photos, also in archives."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(JPEG)
    (folder / "empty").mkdir()
    with zipfile.ZipFile(folder / "p.zip", "w") as archive:
        for name in [*NAMES, "__MACOSX/._a.jpg", "__MACOSX/sub/._c.jpg"]:
            archive.writestr(name, JPEG)
        archive.writestr("list.txt", "sub/c.jpg\na.jpg\n")
    with tarfile.open(folder / "p.tar.gz", "w:gz") as archive:
        for name in NAMES:
            archive.add(folder / name, name)
    return folder


@pytest.fixture
def here(photos, monkeypatch):
    monkeypatch.chdir(photos)
    return photos


class Tensor:
    """As PyTorch's: on another device, in need of a gradient."""

    def __init__(self, values):
        self.values = np.asarray(values)
        self.ready = False

    def detach(self):
        return self

    def cpu(self):
        self.ready = True
        return self

    def __iter__(self):
        return iter(Tensor(value) for value in self.values)

    def __array__(self, dtype=None, copy=None):
        assert self.ready, "can't convert a cuda tensor to numpy"
        return self.values


class Symbolic:
    def __array__(self, dtype=None, copy=None):
        raise NotImplementedError("Cannot convert a symbolic tensor to a numpy array.")


class FloatScalar(Tensor):
    """A tensor of one number."""


CONTAINERS = {
    # what is handed in -> what is found, or the line that says why nothing is
    "a string": (lambda: "a.jpg", ["a.jpg"]),
    "a Path": (lambda: Path("a.jpg"), ["a.jpg"]),
    "bytes": (lambda: b"a.jpg", ["a.jpg"]),
    "numpy.str_": (lambda: np.str_("a.jpg"), ["a.jpg"]),
    "a list": (lambda: ["b.png", Path("a.jpg"), b"sub/c.jpg"], ["b.png", "a.jpg", "sub/c.jpg"]),
    "a tuple": (lambda: ("b.png", "a.jpg"), ["b.png", "a.jpg"]),
    "a generator": (lambda: (x for x in ["b.png", "a.jpg"]), ["b.png", "a.jpg"]),
    "map": (lambda: map(Path, ["b.png", "a.jpg"]), ["b.png", "a.jpg"]),
    "Path.glob": (lambda: sorted(Path().glob("*.jpg")), ["a.jpg", "two words.jpg"]),
    "Path.glob as it comes": (lambda: Path("sub").glob("*"), ["sub/c.jpg"]),
    "a set": (lambda: {"b.png", "sub/c.jpg", "a.jpg"}, ["a.jpg", "b.png", "sub/c.jpg"]),
    "a frozenset of Paths": (lambda: frozenset({Path("b.png"), "a.jpg"}), ["a.jpg", "b.png"]),
    "keys": (lambda: OrderedDict.fromkeys(["b.png", "a.jpg"]).keys(), ["b.png", "a.jpg"]),
    "values": (lambda: {1: "b.png", 2: "a.jpg"}.values(), ["b.png", "a.jpg"]),
    "a Series": (lambda: pd.Series(["b.png", "a.jpg"], index=[7, 3]), ["b.png", "a.jpg"]),
    "a Series of Paths": (lambda: pd.Series([Path("b.png")]), ["b.png"]),
    "a categorical": (lambda: pd.Series(["b.png"], dtype="category"), ["b.png"]),
    "an Index": (lambda: pd.Index(["b.png", "a.jpg"]), ["b.png", "a.jpg"]),
    "a table of one column": (lambda: pd.DataFrame({"x": ["b.png", "a.jpg"]}), ["b.png", "a.jpg"]),
    "an array of str": (lambda: np.array(["b.png", "a.jpg"]), ["b.png", "a.jpg"]),
    "an array of bytes": (lambda: np.array([b"b.png", b"a.jpg"]), ["b.png", "a.jpg"]),
    "an array of objects": (lambda: np.array([Path("b.png")], object), ["b.png"]),
    "a column of an array": (lambda: np.array([["b.png"], ["a.jpg"]]), ["b.png", "a.jpg"]),
    "an array without axes": (lambda: np.array("a.jpg"), ["a.jpg"]),
    "Arrow": (lambda: pa.chunked_array([["b.png"], ["a.jpg"]]), ["b.png", "a.jpg"]),
    "a tensor of strings": (lambda: Tensor([b"b.png", b"a.jpg"]), ["b.png", "a.jpg"]),
    "a list of tensors": (lambda: [*Tensor([b"b.png", b"a.jpg"])], ["b.png", "a.jpg"]),
    "folder and file": (lambda: ["sub", "a.jpg"], ["sub/c.jpg", "a.jpg"]),
    "an empty folder and a file": (lambda: ["empty", "a.jpg"], ["a.jpg"]),
    "one missing of two": (lambda: ["none.jpg", "a.jpg"], ["none.jpg", "a.jpg"]),
    "a pattern without match": (lambda: ["x*.jpg", "a.jpg"], ["x*.jpg", "a.jpg"]),
    "one missing": (lambda: ["none.jpg"], "none.jpg: there is no such file or folder. Check"),
    "all missing": (lambda: ["x.jpg", "y.jpg"], "x.jpg: there is no such file or folder. Check"),
    "None": (lambda: ["a.jpg", None], "images[1]: None is not a photo. Give paths"),
    "only None": (lambda: None, "images: None is not a photo. Give paths"),
    "NaN": (lambda: pd.Series(["a.jpg", np.nan]), "images[1]: nan is not a photo. Give paths"),
    "NaN of objects": (lambda: np.array(["a.jpg", np.nan], object), "images[1]: nan is not a"),
    "NA": (lambda: pd.array(["a.jpg", pd.NA], "string"), "images[1]: <NA> is not a photo."),
    "a number": (lambda: ["a.jpg", 7], "images[1]: 7 is not a photo. Give paths"),
    "numpy's number": (lambda: [np.float64(0.5)], "images[0]: np.float64(0.5) is not a photo."),
    "a tensor's number": (lambda: [FloatScalar(0.5)], "images[0]: a value of type FloatScalar is"),
    "a symbolic tensor": (Symbolic, "images: a value of type Symbolic is not a photo. Give paths"),
    "numbers": (lambda: np.arange(3), "images: an array of int64 of shape (3,), neither paths"),
    "a nested list": (lambda: ["a.jpg", ["b.png"]], "images[1]: ['b.png'] is not a photo. Give"),
    "pairs": (lambda: [("a.jpg", 3)], "images[0]: ('a.jpg', 3) is not a photo. Give paths"),
    "a dictionary": (lambda: {"a.jpg": 3}, "images: a dictionary, which is not a sequence. Give"),
    "a table": (
        lambda: pd.DataFrame({"x": ["a.jpg"], "y": [3]}),
        "images: an array of object of shape (1, 2), neither paths nor pixels. Give one column",
    ),
    "an empty string": (lambda: ["a.jpg", ""], "images[1]: an empty string. Give paths"),
    "nothing": (list, "no input: no image found. Looked for"),
    "an empty Series": (lambda: pd.Series([], dtype=object), "no input: no image found."),
    "pixels": (lambda: PIXELS, "images[0]: ndarray, not a path. Pass paths, or"),
    "a batch": (lambda: np.stack([PIXELS] * 2), "images[0]: ndarray, not a path."),
    "a tensor of pixels": (lambda: Tensor([PIXELS]), "images[0]: ndarray, not a path."),
    "a list of pixels": (lambda: ["a.jpg", PIXELS], "images[1]: ndarray, not a path."),
    "Pillow's": (lambda: [Image.new("L", (2, 2))], "images[0]: Image, not a path."),
    "BytesIO": (lambda: io.BytesIO(JPEG), "images[0]: BytesIO, not a path. Pass paths"),
    "an image's bytes": (lambda: ["a.jpg", JPEG], "images[1]: bytes of an image, not a path. Pass"),
    "a PNG's bytes": (lambda: encoded("PNG"), "images[0]: bytes of an image, not a path. Pass"),
}


def check(given, expected):
    if isinstance(expected, list):
        found = find_images(given)
        assert found == expected
        assert {type(path) for path in found} == {str}
        return
    with pytest.raises(AlexNetError) as caught:
        find_images(given)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers(here, kind):
    make, expected = CONTAINERS[kind]
    check(make(), expected)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (PIXELS, 1),
        (np.stack([PIXELS] * 3), 3),
        (Tensor([PIXELS] * 2), 2),
        ([*Tensor([PIXELS] * 2)], 2),
        (pd.Series([PIXELS, PIXELS]), 2),
        ((x for x in [PIXELS, PIXELS]), 2),
    ],
)
def test_pixels_in_containers(given, count):
    found = as_sequence(given)
    assert len(found) == count
    for picture in found:
        assert isinstance(picture, np.ndarray)
        np.testing.assert_array_equal(picture, PIXELS)


def test_other_photos_in_containers():
    image = Image.fromarray(PIXELS)
    assert as_sequence(image) == [image]
    assert as_sequence([image, JPEG, file := io.BytesIO(JPEG)]) == [image, JPEG, file]
    with pytest.raises(AlexNetError, match=r"^X\[1\]: None is not a photo"):
        as_sequence([image, None], "X")


def test_repeats(here):
    Path("twice.txt").write_text("a.jpg\nsub/c.jpg\n./a.jpg\na.jpg\nnone.jpg\nnone.jpg\n")
    assert find_images("twice.txt") == ["a.jpg", "sub/c.jpg", "none.jpg"]
    kept = ["a.jpg", "sub/c.jpg", "a.jpg", "a.jpg", "none.jpg", "none.jpg"]
    assert find_images("twice.txt", repeats=True) == kept
    assert find_images(["sub", "sub/c.jpg"], repeats=True) == ["sub/c.jpg"] * 2


def utf16(text, kind="utf-16"):
    return text.encode(kind)


A, B, C = "a.jpg", "two words.jpg", "sub/c.jpg"

LISTS = {
    # the file -> entries, or the line; and what is logged
    ".txt": {
        "paths": ("a.jpg\nsub/c.jpg\n", [A, C], None),
        "a byte-order mark": (utf16("a.jpg\nsub/c.jpg", "utf-8-sig"), [A, C], None),
        "UTF-16": (utf16("a.jpg\r\ntwo words.jpg\r\n"), [A, B], None),
        "UTF-16, big-endian": (b"\xfe\xff" + utf16("a.jpg\né.jpg\n", "utf-16-be"), [A, "é.jpg"], 0),
        "UTF-16 without a mark": (
            utf16("a.jpg\n", "utf-16-le"),
            "list.txt: the list can't be read (it holds NUL characters). Give text with",
            None,
        ),
        "half a UTF-16": (utf16("a.jpg")[:-1], "list.txt: the list can't be read (", None),
        "Caffe's": ("a.jpg 0\ntwo words.jpg 999\nsub/c.jpg\t3\n", [A, B, C], None),
        "several classes": ("a.jpg 0 1 -1\ntwo words.jpg 7 8\n", [A, B], None),
        "synset ids": ("a.jpg n01440764\n", [A], None),
        "commas": ("a.jpg,3\nsub/c.jpg;4\n", [A, C], None),
        "no class": ("no suffix 3\n", ["no suffix 3"], None),
        "trailing blanks": ("a.jpg  \n  sub/c.jpg\t\n", [A, C], None),
        "quotes": ('"two words.jpg"\n"a.jpg"\r\n', [B, A], None),
        "Windows": ("sub\\c.jpg\r\na.jpg\r\n", [C, A], None),
        "Windows and classes": ("sub\\c.jpg 3\r\n", [C], None),
        "empty lines": ("\n\na.jpg\n \n", [A], None),
        "nothing": ("\n \n", "list.txt: no image found. Looked for", None),
    },
    ".csv": {
        "path": ("image,PATH\nb.png,a.jpg\n", [A], "list.csv: reading column 'PATH'"),
        "pandas' index": (",stimulus,y\n0,a.jpg,1\n1,sub/c.jpg,2\n", [A, C], "column 'stimulus'"),
        "image": ("id,Image,note\n1,a.jpg,x\n", [A], "list.csv: reading column 'Image'"),
        "file_name": ("file_name,text\ntwo words.jpg,a cat\n", [B], "column 'file_name'"),
        "numbers called image": ("image,where\n17,a.jpg\n18,sub/c.jpg\n", [A, C], "'where'"),
        "no known title": ("n,what,where\n1,cat,a.jpg\n", [A], "list.csv: reading column 'where'"),
        "no suffixes": ("n,stimulus\n1,s1\n2,s2\n", ["s1", "s2"], "column 'stimulus'"),
        "no sign at all": ("x,y\ns1,1\n", ["s1"], "list.csv: reading column 'x'"),
        "no header": ("0,a.jpg\n1,sub/c.jpg\n", [A, C], "list.csv: reading column 2"),
        "semicolons": ("path;label\na.jpg;1,5\n", [A], "list.csv: reading column 'path'"),
        "tabs": ("label\tfile\n1\ttwo words.jpg\n", [B], "list.csv: reading column 'file'"),
        "Excel's": ("sep=;\nfile;label\na.jpg;1\n", [A], "list.csv: reading column 'file'"),
        "Excel's Unicode": (utf16("file\tlabel\r\na.jpg\t1\r\n"), [A], "reading column 'file'"),
        "a byte-order mark": (utf16("path,n\na.jpg,1\n", "utf-8-sig"), [A], "column 'path'"),
        "quoted": ('"path","n"\n"two words.jpg","1"\n', [B], "list.csv: reading column 'path'"),
        "blanks and slashes": ("n, path\n1, sub\\c.jpg\n", [C], "list.csv: reading column ' path'"),
        "one column": ("path\na.jpg\nsub/c.jpg\n", [A, C], None),
        "an empty line first": ("\nlabel;file\n1;a.jpg\n", [A], "list.csv: reading column 'file'"),
        "gaps": ("n,file\n1,\n2\n3,a.jpg\n", [A], "list.csv: reading column 'file'"),
        "nothing": ("", "list.csv: no image found. Looked for", None),
    },
    ".tsv": {
        "tabs": ("label\timg\n1, 2, 3\ta.jpg\n", [A], "list.tsv: reading column 'img'"),
        "upper case": ("LABEL\tIMG\n1\ta.jpg\n", [A], "list.tsv: reading column 'IMG'"),
    },
}


@pytest.mark.parametrize(
    ("suffix", "kind"), [(suffix, kind) for suffix, kinds in LISTS.items() for kind in kinds]
)
def test_lists(here, caplog, suffix, kind):
    content, expected, note = LISTS[suffix][kind]
    Path(f"list{suffix}").write_bytes(content if isinstance(content, bytes) else content.encode())
    with caplog.at_level(logging.INFO, "tf_alexnet"):
        check(f"list{suffix}", expected)
    notes = [record.getMessage() for record in caplog.records]
    assert len(notes) == bool(note)
    assert not note or notes[0].endswith(note)


def test_a_name_that_looks_like_more_is_a_name(tmp_path):
    names = [" a.jpg", "b.jpg ", "c\\d.jpg", '"e.jpg"', "f.jpg 3"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("\n".join(names))
    assert find_images(tmp_path / "list.txt") == [os.path.join(tmp_path, name) for name in names]
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path"], *([name] for name in names)])
    assert find_images(tmp_path / "list.csv") == [os.path.join(tmp_path, name) for name in names]


def images(*values):
    return pa.array(values, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


PARQUETS = {
    "path": ({"n": [1, 2], "path": ["a.jpg", "sub/c.jpg"]}, [A, C]),
    "stimulus": ({"text": ["x", "y"], "stimulus": ["a.jpg", None]}, [A]),
    "what looks like photos": ({"where": ["a.jpg"], "n": [1]}, [A]),
    "Hugging Face's, with files": (
        {"label": [1], "image": images({"bytes": None, "path": "sub/c.jpg"})},
        [C],
    ),
    "Hugging Face's": (
        {"image": images({"bytes": JPEG, "path": "a.jpg"}), "text": ["a cat"]},
        "list.parquet: column 'image' holds the photos themselves, not paths. Pass them to "
        'from_images: [x["bytes"] for x in pyarrow.parquet.read_table("list.parquet")["image"]'
        ".to_pylist()].",
    ),
    "bytes": (
        {"jpg": [JPEG], "label": [3]},
        "list.parquet: column 'jpg' holds the photos themselves, not paths. Pass them to "
        'from_images: [x for x in pyarrow.parquet.read_table("list.parquet")["jpg"].to_pylist()].',
    ),
    "numbers": ({"x": [1.5], "y": [2]}, "list.parquet: no column of paths (x, y). Call the column"),
    "no rows": ({"path": pa.array([], pa.string())}, "list.parquet: no "),
}


@pytest.mark.parametrize("kind", PARQUETS)
def test_parquet_tables(here, caplog, kind):
    columns, expected = PARQUETS[kind]
    pq.write_table(pa.table(columns), "list.parquet")
    with caplog.at_level(logging.INFO, "tf_alexnet"):
        check("list.parquet", expected)
    if isinstance(expected, list):
        assert "list.parquet: reading column '" in caplog.text


def test_parquet_tables_that_cannot_be_read(here, monkeypatch):
    Path("list.parquet").write_bytes(b"PAR1 no table at all PAR1")
    check("list.parquet", "list.parquet: the list can't be read (")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    check("list.parquet", "list.parquet: pyarrow is not installed. Install it: pip install 'tf-al")


FILES = {
    "photos.ZIP": "photos.ZIP: an archive, not a photo. Name the photos in it: zip://::photos.ZIP "
    "for all, zip://*.jpg::photos.ZIP for a pattern.",
    "x.tar": "x.tar: an archive, not a photo. Name the photos in it: tar://::x.tar for all",
    "x.tar.gz": "x.tar.gz: an archive, not a photo. Name the photos in it: tar://::x.tar.gz for",
    "x.rar": "x.rar: an archive, not a photo. Unpack it and name its folder.",
    "x.npz": "x.npz: a file of arrays, not a photo. Load the pixels and pass them to Feature"
    "Extractor.from_images: uint8 (N, H, W, 3).",
    "x.npy": "x.npy: a file of arrays, not a photo. Load the pixels and pass them to",
    "x.h5": "x.h5: a file of arrays, not a photo. Load the pixels and pass them to",
    "x.mat": "x.mat: a file of arrays, not a photo. Load the pixels and pass them to",
    "metadata.jsonl": "metadata.jsonl: a table in a format we don't read, not a photo. Save it as",
    "x.xlsx": "x.xlsx: a table in a format we don't read, not a photo. Save it as .csv with a",
    "photo": ["photo"],
    "photo.jpg_large": ["photo.jpg_large"],
    "x.heic": ["x.heic"],
}


@pytest.mark.parametrize("name", FILES)
def test_named_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    check(name, FILES[name])
    Path("a.jpg").touch()
    several = FILES[name]
    check(["a.jpg", name], ["a.jpg", *several] if isinstance(several, list) else several)
    os.remove(name)
    os.mkdir(name)
    Path(name, "b.jpg").touch()
    check(name, [f"{name}/b.jpg"])


URLS = {
    "zip://::p.zip": [f"zip://{name}::p.zip" for name in sorted(NAMES, key=lambda x: x.split("/"))],
    "zip://*.jpg::p.zip": ["zip://a.jpg::p.zip", "zip://two words.jpg::p.zip"],
    "zip://**/*.jpg::p.zip": [f"zip://{x}::p.zip" for x in ("a.jpg", "sub/c.jpg", "two words.jpg")],
    "zip://s*::p.zip": ["zip://sub/c.jpg::p.zip"],
    "zip://sub::p.zip": ["zip://sub/c.jpg::p.zip"],
    "zip://sub/c.jpg::p.zip": ["zip://sub/c.jpg::p.zip"],
    "zip://list.txt::p.zip": ["zip://sub/c.jpg::p.zip", "zip://a.jpg::p.zip"],
    "tar://::p.tar.gz": [f"tar://{n}::p.tar.gz" for n in sorted(NAMES, key=lambda x: x.split("/"))],
    "tar://s*/*.jpg::p.tar.gz": ["tar://sub/c.jpg::p.tar.gz"],
    "zip://::no.zip": "zip://::no.zip: it can't be listed (",
    "zip://::a.jpg": "zip://::a.jpg: it can't be listed (File is not a zip file). Check",
    "memory://inputs/x.zip": "memory://inputs/x.zip: an archive, not a photo. Name the photos in "
    "it: zip://::memory://inputs/x.zip for all",
    "memory://inputs/photos": ["memory:///inputs/photos/1.jpg", "memory:///inputs/photos/b/2.png"],
    "memory://inputs/t.parquet": ["memory://inputs/photos/1.jpg"],
    "zip://::memory://inputs/x.zip": ["zip://d.jpg::memory://inputs/x.zip"],
    "host://server/folder/": ["host://server/folder/1.jpg", "host://server/folder/b/2.jpg"],
    "host://server/folder/*.jpg": ["host://server/folder/1.jpg"],
    "host://server": ["host://server/folder/1.jpg", "host://server/folder/b/2.jpg"],
}


class HostFiles(MemoryFileSystem):
    """Files of a server whose paths, as FTP's, do not tell the server."""

    protocol = "host"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return f"/{path.removeprefix('host://server').strip('/')}".rstrip("/")


@pytest.mark.parametrize("url", URLS)
def test_urls(here, url):
    fsspec.register_implementation("host", HostFiles, clobber=True)
    for name in ("1.jpg", "b/2.jpg", "b/3.txt"):
        fsspec.filesystem("host").pipe_file(f"/folder/{name}", JPEG)
    files = fsspec.filesystem("memory")
    for name in ("photos/1.jpg", "photos/b/2.png", "photos/@eaDir/3.jpg", "photos/b/.x/4.jpg"):
        files.pipe_file(f"/inputs/{name}", JPEG)
    table, archive = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"path": ["photos/1.jpg"]}), table)
    files.pipe_file("/inputs/t.parquet", table.getvalue())
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("d.jpg", JPEG)
    files.pipe_file("/inputs/x.zip", archive.getvalue())
    check(url, URLS[url])


LEFT = {
    "kinds": (
        ["1.cr2", "2.cr2", "3.CR2", "x", "y", "4.jpg_large", "5.dcm"],
        "left out by suffix: 3 .cr2, 2 without, 1 .dcm, 1 .jpg_large",
    ),
    "companions": (
        ["x.txt", "y.csv", "Thumbs.db", "desktop.ini", ".DS_Store", "README"],
        None,
    ),
    "hidden ones": (["._a.jpg", ".AppleDouble/a.jpg", ".git/x"], None),
    "foreign folders": (
        ["@eaDir/a.jpg", "s/@eaDir/a.jpg", "#recycle/b.jpg", "lost+found/x", "$RECYCLE.BIN/a.jpg"],
        "skipped 2 @eaDir, 1 #recycle, 1 $RECYCLE.BIN, 1 lost+found",
    ),
    "both": (
        ["__MACOSX/a.jpg", "System Volume Information/x.jpg", "b.mov"],
        "left out by suffix: 1 .mov; skipped 1 System Volume Information, 1 __MACOSX",
    ),
    "long suffixes": (
        ["a.jpg?itok=aBcDeFgHi12", "b.2020-01-01 10"],
        "left out by suffix: 2 of o",
    ),
    "many kinds": (
        [f"{n}.k{n}" for n in range(12)],
        "left out by suffix: 1 .k0, 1 .k1, 1 .k10, 1 .k11, 1 .k2, 1 .k3, 1 .k4, 1 .k5, 4 more",
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_folders_hold_besides(tmp_path, caplog, monkeypatch, kind):
    names, note = LEFT[kind]
    classes = [tmp_path / name for name in ("cat", "dog")]
    for name in names:
        (classes[0] / name).parent.mkdir(parents=True, exist_ok=True)
        (classes[0] / name).touch()

    def notes():
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    def matches(found):
        assert len(found) == bool(note), found
        assert not note or found[0].startswith(note)

    with pytest.raises(AlexNetError, match="no image found") as caught:
        find_images(classes[0])
    assert not note or f"no image found; {note}" in str(caught.value)
    assert notes() == []
    for folder in classes:
        folder.mkdir(exist_ok=True)
        for name in ("1.jpg", "2.jpg"):
            (folder / name).touch()
    assert len(find_images([classes[0], classes[1]])) == 4
    matches(notes())
    assert len(find_images(tmp_path)) == 4
    matches(notes())
    assert len(read_photos(tmp_path, val_split=0.5, duplicates=False).train) == 2
    matches(notes())
    assert len(read_labelled(tmp_path, [Label("", "cat"), Label("", "dog")]).paths) == 4
    matches(notes())


def test_foreign_folders_are_no_classes(tmp_path, caplog):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg", "@eaDir/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert read_photos(tmp_path, val_split=0.5).classes == ("cat", "dog")
    assert [record.getMessage() for record in caplog.records] == ["skipped 1 @eaDir"]
    assert find_images(tmp_path / "@eaDir") == [f"{tmp_path}/@eaDir/1.jpg"], "if it is named"


def test_heic_in_folders_without_its_reader(tmp_path, caplog, monkeypatch):
    from tf_alexnet.images import discovery, lists

    for name in ("1.heic", "2.HEIC", "a.jpg"):
        (tmp_path / name).touch()
    few = frozenset({".jpg"})
    monkeypatch.setattr(lists, "SUFFIXES", few)
    monkeypatch.setattr(discovery, "SUFFIXES", few)
    assert find_images(tmp_path) == [f"{tmp_path}/a.jpg"]
    text = "left out by suffix: 2 .heic (pip install 'tf-alexnet[heic]' reads .heic)"
    assert [record.getMessage() for record in caplog.records] == [text]


def test_an_unreadable_subfolder_is_a_photo_that_fails(tmp_path, monkeypatch):
    from tf_alexnet.extraction.reader import PhotoReader

    for name in ("a.jpg", "shut/b.jpg", "z.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)
    listdir = os.listdir

    def deny(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", deny)
    found = find_images(tmp_path)
    assert found == [f"{tmp_path}/{name}" for name in ("a.jpg", "shut", "z.jpg")]
    assert find_images(f"{tmp_path}/*") == found
    assert find_images([tmp_path / "shut", tmp_path / "a.jpg"]) == [found[1], found[0]]
    with pytest.raises(AlexNetError, match="shut: the folder can't be read"):
        find_images(tmp_path / "shut")
    (tmp_path / "other").mkdir()
    with pytest.raises(AlexNetError, match="shut: the folder can't be read"):
        read_photos(tmp_path)
    with PhotoReader("caffe", workers=1) as reader:
        (batch,) = reader.batches(found, 3)
    assert batch.paths == [found[0], found[2]]
    assert batch.failures[0].code in ("no_permission", "is_folder")  # root may read it
