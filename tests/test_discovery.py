"""Files, folders and lists become one ordered list of paths."""

import io
import os
import sys
import types
from pathlib import Path

import fsspec
import pytest

from tf_alexnet.errors import ImageError, UsageError
from tf_alexnet.images import find_images


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Names chosen so that every wrong order (locale, case-blind, by suffix, files first) shows."""
    names = [
        "b/z.jpg",
        "b/a.PNG",
        "b/deep/er/1.webp",
        "B.jpeg",
        "a.gif",
        "a/x.tif",
        "notes.txt",
        "README",
        ".hidden.jpg",
        "._b.jpg",
        ".git/c.jpg",
        "é.jpg",
        "c.pdf",
        "b10.jpg",
        "b9.jpg",
    ]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


IN_ORDER = [
    "B.jpeg",
    "a/x.tif",
    "a.gif",
    "b/a.PNG",
    "b/deep/er/1.webp",
    "b/z.jpg",
    "b10.jpg",
    "b9.jpg",
    "é.jpg",
]


def below(folder, names):
    return [os.path.join(folder, name) for name in names]


def test_a_folder_is_searched_in_byte_order_of_names(tree, monkeypatch):
    assert find_images("photos") == below("photos", IN_ORDER)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    assert find_images([tree]) == below(tree, IN_ORDER)


def test_a_folder_in_a_photos_place_is_an_input(tree):
    for name in ("b/c.jpg", "d", "e.png", "f.jpg"):
        (tree / name).mkdir()
    (tree / "e.png" / "notes.txt").touch()
    (tree / "f.jpg" / "1.jpg").touch()  # a folder of photos, whatever its name
    below_b, rest = ["b/a.PNG", "b/c.jpg", "b/deep/er/1.webp", "b/z.jpg"], ["b10.jpg", "b9.jpg"]
    names = ["B.jpeg", "a/x.tif", "a.gif", *below_b, *rest, "e.png", "f.jpg/1.jpg", "é.jpg"]
    assert find_images(tree) == below(tree, names)
    with pytest.raises(UsageError, match="no image found"):
        find_images(tree / "b" / "c.jpg")


def test_named_files_are_taken_in_the_given_order_and_once(tree):
    named = ["photos/b9.jpg", "photos/README", "photos/b/deep", "./photos/b9.jpg", "photos/b"]
    assert find_images(named) == [
        "photos/b9.jpg",
        "photos/README",
        "photos/b/deep/er/1.webp",
        "photos/b/a.PNG",
        "photos/b/z.jpg",
    ]
    assert find_images(str(tree / "é.jpg")) == [str(tree / "é.jpg")]
    assert find_images(Path("photos/é.jpg")) == ["photos/é.jpg"]
    assert find_images(b"photos/a.gif") == ["photos/a.gif"]


def test_text_list(tree):
    lines = ["\ufeffphotos/b9.jpg\r", "photos/not there.jpg", "", "  ", f"{tree}/a.gif", "x\u2028y"]
    (tree.parent / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    os.chdir("/")
    assert find_images(tree.parent / "list.txt") == [
        str(tree / "b9.jpg"),
        str(tree / "not there.jpg"),
        str(tree / "a.gif"),
        str(tree.parent / "x\u2028y"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label,Path\n3,a.jpg\n4,b.jpg\n", ["a.jpg", "b.jpg"]),
        ("path\na.jpg\n", ["a.jpg"]),
        ("file,label\na.jpg,3\n\nb.jpg,4\n", ["a.jpg", "b.jpg"]),
        ("a.JPG,3\nb.jpg,4\n", ["a.JPG", "b.jpg"]),
        ('path,n\r\n"a, b.jpg",1\r\n"two\nlines.jpg",2\r\n', ["a, b.jpg", "two\nlines.jpg"]),
        ("n,path\n1\n2,b.jpg\n3,\n", ["b.jpg"]),
    ],
)
def test_csv_list(tmp_path, text, expected):
    (tmp_path / "list.csv").write_bytes(text.encode())
    assert find_images(tmp_path / "list.csv") == below(tmp_path, expected)


def test_patterns(tree, monkeypatch):
    assert find_images("photos/b*.jpg") == ["photos/b10.jpg", "photos/b9.jpg"]
    # As if a shell had written out the names: folders are searched, files taken as they are.
    everything = ["photos/b/a.PNG", "photos/b/deep/er/1.webp", "photos/b/z.jpg"]
    assert find_images("photos/b/*") == everything
    assert find_images("photos/**/[az]*") == [
        "photos/a/x.tif",
        "photos/a.gif",
        "photos/b/a.PNG",
        "photos/b/z.jpg",
    ]
    (tree / "c[1].jpg").touch()
    (tree / "c1.jpg").touch()
    assert find_images("photos/c[1].jpg") == ["photos/c[1].jpg"], "a file's name is no pattern"
    with pytest.raises(ImageError, match=r"photos/x\*: there is no such file"):
        find_images("photos/x*")


def test_standard_input(tree, monkeypatch):
    lines = b"photos/b9.jpg\r\nlatin-\xe9.jpg\n\n  \nmemory://x/y.jpg\nphotos/b9.jpg"
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(lines)))
    assert find_images(["photos/a.gif", "-"]) == [
        "photos/a.gif",
        "photos/b9.jpg",
        "latin-\udce9.jpg",
        "memory://x/y.jpg",
    ]
    (tree.parent / "-").touch()
    assert find_images("./-") == ["./-"]


def test_urls():
    files = fsspec.filesystem("memory")
    names = ["b/z.jpg", "b/a.PNG", "b.gif", "B.webp", ".h.jpg", ".git/c.jpg", "no.pdf", "é::.jpg"]
    for name in names:
        files.pipe_file(f"/found/{name}", b"")
    inside = ["B.webp", "b/a.PNG", "b/z.jpg", "b.gif", "é::.jpg"]
    assert find_images("memory://found") == [f"memory:///found/{name}" for name in inside]
    assert find_images("memory://found/b/*") == [
        f"memory:///found/b/{x}" for x in ("a.PNG", "z.jpg")
    ]
    assert find_images("memory://found/no.pdf") == ["memory://found/no.pdf"]
    files.pipe_file("/found/list.csv", b"path\nb.gif\ns3://other/c.jpg\n")
    expected = ["memory://found/b.gif", "s3://other/c.jpg"]
    assert find_images("memory://found/list.csv") == expected
    with pytest.raises(ImageError, match=r"memory://found/no\.txt: the list can't be read"):
        find_images("memory://found/no.txt")
    with pytest.raises(UsageError, match=r"nosuch://x: it can't be reached .*\. Check the scheme"):
        find_images("nosuch://x")


def test_a_name_with_colons_is_no_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a::b.jpg").touch()
    Path("c:").mkdir()
    Path("c:/d.jpg").touch()
    assert find_images(["a::b.jpg", "c:"]) == ["a::b.jpg", "c:/d.jpg"]


@pytest.mark.slow
def test_a_million_photos(tmp_path):
    """3 s and 145 MB on a quiet machine."""
    import resource
    import time

    with open(tmp_path / "list.txt", "w") as file:
        file.writelines(
            f"photos/{i % 1000:03d}/ILSVRC2012_val_{i:08d}.JPEG\n" for i in range(10**6)
        )
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert len(find_images(tmp_path / "list.txt")) == 10**6
    assert time.monotonic() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_odd_names_survive(tmp_path):
    names = [
        b"new\nline.jpg",
        b"latin-\xe9.jpg",
        b"\xff.jpg",
        "\U0001f431.jpg".encode(),
        b" .jpg",
        b"-v.jpg",
    ]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).touch()
    found = find_images(tmp_path)
    assert [os.path.basename(os.fsencode(path)) for path in found] == sorted(names)
    (tmp_path / "list.txt").write_bytes(b"latin-\xe9.jpg\n\xf0\x9f\x90\xb1.jpg\n")
    found = find_images(tmp_path / "list.txt")
    assert [os.path.exists(path) for path in found] == [True, True]


def test_links(tmp_path):
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    (real / "a.jpg").touch()
    (real / "sub" / "up").symlink_to(real)
    (real / "self.jpg").symlink_to("self.jpg")
    (real / "dangling.png").symlink_to("nowhere")
    (real / "looks_like.jpg").mkdir()
    (real / "looks_like.jpg" / "b.jpg").touch()
    inside = ["a.jpg", "dangling.png", "looks_like.jpg/b.jpg", "self.jpg"]
    assert find_images(real) == below(real, inside)
    (tmp_path / "link").symlink_to(real)
    assert find_images(tmp_path / "link") == below(tmp_path / "link", inside)
    # The same files by two ways: kept once, under the first name.
    assert find_images([tmp_path / "link", real]) == below(tmp_path / "link", inside)


def test_a_deep_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):  # deeper than Python's stack
        os.mkdir("d")
        os.chdir("d")
    Path("a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    try:
        assert find_images(".") == ["./" + "d/" * 1500 + "a.jpg"]
    finally:  # too deep for pytest to clear away
        os.remove("d/" * 1500 + "a.jpg")
        os.removedirs("d/" * 1500)


def test_refusals(tmp_path):
    with pytest.raises(ImageError, match=r"none\.jpg: there is no such file or folder\. Check"):
        find_images(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match=r"none\.jpg: there is no such file or folder\. Check"):
        find_images([tmp_path, tmp_path / "none.jpg", tmp_path / "none.jpg"])
    with pytest.raises(ImageError, match="there is no such file"):
        find_images("nul\0character.jpg")
    with pytest.raises(UsageError, match=r"no image found\. Looked for files ending in .*\.jpeg"):
        find_images(tmp_path)
    with pytest.raises(UsageError, match="no input: no image found"):
        find_images([])
    (tmp_path / "list.txt").write_text("a.jpg\n", encoding="utf-16-le")
    with pytest.raises(ImageError, match=r"list\.txt: the list can't be read \(it holds NUL"):
        find_images(tmp_path / "list.txt")
    (tmp_path / "list.csv").write_text('path\n"' + "x" * 200_000 + '"\n')
    with pytest.raises(ImageError, match=r"list\.csv: the list can't be read \(field larger"):
        find_images(tmp_path / "list.csv")


def test_an_unreadable_folder_is_a_row(tree, monkeypatch):
    listdir = os.listdir

    def deny(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", deny)
    rows = ["b/deep" if name.startswith("b/deep") else name for name in IN_ORDER]
    assert find_images(tree) == below(tree, rows)
    with pytest.raises(ImageError, match=r"deep: the folder can't be read \(Permission denied\)"):
        find_images(tree / "b" / "deep")
