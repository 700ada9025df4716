"""Class folders and tables: what is found, how it is split, and what is refused in one line."""

import os
import random
import shutil

import pytest
from PIL import Image

from tf_alexnet.errors import ImageError, UsageError
from tf_alexnet.training import read_photos


def fill(folder, photos, tint=0):
    """Class folders below `folder`: class -> number of photos, each of its own content."""
    for name, count in photos.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            code = len(os.listdir(folder)) * 50 + i
            Image.new("RGB", (3, 3), (code % 256, i, tint)).save(folder / name / f"{i:02d}.png")
    return folder


def names(photos, part):
    return [(photos.name_of(x), photos.classes[x.label]) for x in part]


def test_train_and_val_are_taken_as_they_are(tmp_path):
    fill(tmp_path / "train", {"b": 2, "a": 1})
    fill(tmp_path / "val", {"a": 1, "b": 1})
    (tmp_path / "train" / "b" / "deeper").mkdir()
    shutil.move(tmp_path / "train/b/01.png", tmp_path / "train/b/deeper/x.png")
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "readme.txt").write_text("no class")
    photos = read_photos(tmp_path, duplicates=False)
    assert photos.classes == ("a", "b")
    assert not photos.split
    expected = [("train/a/00.png", "a"), ("train/b/00.png", "b"), ("train/b/deeper/x.png", "b")]
    assert names(photos, photos.train) == expected
    assert names(photos, photos.val) == [("val/a/00.png", "a"), ("val/b/00.png", "b")]


def test_a_split_is_stratified_seeded_and_covers_all(tmp_path):
    fill(tmp_path, {"few": 2, "many": 40, "some": 11})
    photos = read_photos(tmp_path, 0.2, seed=3)
    assert photos.split
    counts = {part: [0, 0, 0] for part in ("train", "val")}
    for part in counts:
        for example in getattr(photos, part):
            counts[part][example.label] += 1
    assert counts == {"train": [1, 32, 9], "val": [1, 8, 2]}
    assert len({x.path for x in (*photos.train, *photos.val)}) == 53
    assert read_photos(tmp_path, 0.2, seed=3) == photos
    other = read_photos(tmp_path, 0.2, seed=4)
    assert other.val != photos.val
    assert other.digest != photos.digest


def test_the_order_of_the_disk_does_not_matter(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 9, "b": 9})
    photos = read_photos(tmp_path)
    listed = os.listdir

    def shuffled(path):
        return random.Random(str(path)).sample(found := listed(path), len(found))

    monkeypatch.setattr(os, "listdir", shuffled)
    assert read_photos(tmp_path) == photos


def test_the_digest_tells_photos_that_came_went_or_moved(tmp_path):
    fill(tmp_path / "train", {"a": 3, "b": 3})
    fill(tmp_path / "val", {"a": 1, "b": 1})
    seen = {read_photos(tmp_path, duplicates=False).digest}
    shutil.move(tmp_path / "train/a/00.png", tmp_path / "train/b/99.png")
    seen.add(read_photos(tmp_path, duplicates=False).digest)
    shutil.move(tmp_path / "train/b/99.png", tmp_path / "val/b/99.png")
    seen.add(read_photos(tmp_path, duplicates=False).digest)
    os.rename(tmp_path / "val/b/99.png", tmp_path / "val/b/98.png")
    seen.add(read_photos(tmp_path, duplicates=False).digest)
    os.remove(tmp_path / "val/b/98.png")
    seen.add(read_photos(tmp_path, duplicates=False).digest)
    assert len(seen) == 5
    moved = shutil.move(tmp_path, tmp_path.with_name("elsewhere"))
    assert read_photos(moved, duplicates=False).digest in seen, "wherever the folder stands"


def test_the_digest_tells_photos_that_changed_in_place(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3})
    before = read_photos(tmp_path).digest
    for name in ("a", "b"):
        os.utime(tmp_path / name / "00.png", (1, 1))
    assert read_photos(tmp_path).digest == before, "touched, and the same"
    data = bytearray((tmp_path / "a/00.png").read_bytes())
    data[-20] ^= 1
    (tmp_path / "a/00.png").write_bytes(data)
    assert read_photos(tmp_path).digest != before


def test_duplicates_across_the_parts_are_noted_by_content(tmp_path):
    fill(tmp_path / "train", {"a": 6, "b": 2})
    fill(tmp_path / "val", {"a": 1, "b": 1}, tint=1)
    shutil.rmtree(tmp_path / "val" / "a")
    shutil.copytree(tmp_path / "train" / "a", tmp_path / "val" / "a")
    os.rename(tmp_path / "val/a/00.png", tmp_path / "val/a/other name.png")
    (note,) = read_photos(tmp_path).notes
    assert note.startswith("6 of 7 validation photos are among the training photos, too, so")
    assert "val/a/01.png = train/a/01.png" in note
    assert note.endswith("and 3 more")


def test_contradicting_labels_are_noted_wherever_they_are(tmp_path):
    """Within training photos, within validation photos, and across."""
    fill(tmp_path / "train", {"a": 4, "b": 4})
    fill(tmp_path / "val", {"a": 3, "b": 3}, tint=1)
    shutil.copy(tmp_path / "train/a/00.png", tmp_path / "train/b/in train.png")
    shutil.copy(tmp_path / "train/a/01.png", tmp_path / "train/a/same class.png")
    shutil.copy(tmp_path / "val/a/00.png", tmp_path / "val/b/in val.png")
    shutil.copy(tmp_path / "train/b/01.png", tmp_path / "val/a/across.png")
    across, torn = read_photos(tmp_path).notes
    assert across.startswith("1 of 8 validation photos is among the training photos, too")
    assert torn == (
        "3 photos are copies of one with other labels: train/b/in train.png = "
        "train/a/00.png, val/a/across.png = train/b/01.png, val/b/in val.png = val/a/00.png"
    )
    fill(tmp_path / "D", {"a": 6, "b": 6})
    shutil.copy(tmp_path / "D/a/00.png", tmp_path / "D/b/00.png")
    *_, torn = read_photos(tmp_path / "D").notes
    assert torn.startswith("1 photo is a copy of one with other labels: ")


def test_no_duplicates_no_note(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5})
    assert read_photos(tmp_path).notes == ()


def test_a_class_that_val_lacks_is_noted(tmp_path):
    fill(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    fill(tmp_path / "val", {"a": 1, "c": 1})
    photos = read_photos(tmp_path, duplicates=False)
    assert photos.classes == ("a", "b", "c")
    assert photos.notes == ("there is no validation photo of b",)


REFUSED = {
    "empty class": (
        {"a": 3, "b": 0},
        UsageError,
        r"/b: a class folder without a photo\. Put photos of the class there, or remove",
    ),
    "one class": ({"a": 3}, UsageError, r"one class only \(a\)\. Give photos of two classes"),
    "no class": ({}, UsageError, "no class folder in it"),
    "single photo": ({"a": 3, "b": 1}, UsageError, "class b: it has a single photo"),
    "class in val only": (
        {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1, "val/c": 1, "val/d": 1},
        UsageError,
        r"no training photo shows c, d, as validation photos do\. Give the splits",
    ),
    "no train": ({"val/a": 2, "val/b": 2}, UsageError, "it has val, but no train"),
    "empty val": (
        {"train/a": 2, "train/b": 2, "val/a": 0},
        UsageError,
        "no photo in val. Add photos, or remove the split",
    ),
    "one split twice": (
        {"train/a": 2, "train/b": 2, "val/a": 1, "Validation/a": 1},
        UsageError,
        "Validation/ and val/ are the same split",
    ),
    "splits without classes": (
        {"Train": 4, "test_set": 2},
        UsageError,
        r"Train, test_set hold photos, not class folders\. Make a folder per class in each",
    ),
    "splits of other names": (
        {"mine/a": 2, "mine/b": 2, "yours/a": 2, "yours/b": 2, "yours/c": 2},
        UsageError,
        r"its folders mine, yours hold no photos, but the same subfolders \(a, b\)\. If these are",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_trained_on_is_refused(case, tmp_path):
    photos, error, message = REFUSED[case]
    fill(tmp_path, photos)
    with pytest.raises(error, match=message) as caught:
        read_photos(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_calls_that_can_not_work(tmp_path):
    with pytest.raises(ImageError, match="there is no such folder"):
        read_photos(tmp_path / "nosuch")
    fill(tmp_path, {"a": 2, "b": 2})
    for part in (0, 1, -0.2, 1.5, float("nan")):
        with pytest.raises(UsageError, match="Use a fraction between 0 and 1"):
            read_photos(tmp_path, part)
    for seed in (-1, 1 << 32):
        with pytest.raises(UsageError, match="out of range"):
            read_photos(tmp_path, seed=seed)
    for name in ("train", "val"):
        fill(tmp_path / "D" / name, {"a": 1, "b": 1})
    with pytest.raises(UsageError, match="seed -1: out of range"):
        read_photos(tmp_path / "D", seed=-1)


@pytest.mark.parametrize(
    "names",
    [
        {"train": "training_set", "test": "test_set"},
        {"train": "Train", "val": "Validation"},
        {"train": "train", "val": "valid", "test": "test"},
        {"train": "TRAINING", "val": "dev", "test": "Testing"},
        {"train": "train"},
    ],
    ids=lambda names: "-".join(names.values()),
)
def test_splits_under_their_usual_names(names, tmp_path):
    for tint, name in enumerate(names.values()):
        fill(tmp_path / name, {"a": 5, "b": 5}, tint=tint)
    photos = read_photos(tmp_path)
    assert photos.classes == ("a", "b"), "not the splits"
    assert photos.split == ("val" not in names)
    assert len(photos.train) == (10 if "val" in names else 8)
    for split in ("val", "test"):
        folders = {x.path.split(os.sep)[-3] for x in getattr(photos, split)}
        drawn = {names["train"]} if split == "val" else set()
        assert folders == ({names[split]} if split in names else drawn)
    assert not photos.notes


def test_test_photos_never_train(tmp_path):
    for tint, split in enumerate(("train", "val", "test")):
        fill(tmp_path / split, {"a": 3, "b": 3}, tint=tint)
    shutil.copy(tmp_path / "train/a/00.png", tmp_path / "test/a/00.png")
    photos = read_photos(tmp_path)
    assert len(photos.test) == 6
    assert not {x.path for x in photos.test} & {x.path for x in (*photos.train, *photos.val)}
    assert photos.notes == (
        "1 of 6 test photos is among the training photos, too, so accuracy is overestimated: "
        "test/a/00.png = train/a/00.png",
    )
    os.remove(tmp_path / "test/b/02.png")
    assert read_photos(tmp_path).digest != photos.digest


def test_folders_that_are_no_splits(tmp_path):
    """A class of that name, one folder in each class, and what stands beside splits."""
    fill(tmp_path / "vehicles", {"car": 3, "train": 3})
    assert read_photos(tmp_path / "vehicles").classes == ("car", "train")
    for name in ("cat", "dog"):
        fill(tmp_path / "nested" / name, {"images": 3})
    assert read_photos(tmp_path / "nested", duplicates=False).classes == ("cat", "dog")
    fill(tmp_path / "kaggle" / "train", {"a": 4, "b": 4})
    fill(tmp_path / "kaggle", {"test": 3})
    photos = read_photos(tmp_path / "kaggle", duplicates=False)
    assert (len(photos.test), photos.classes) == (0, ("a", "b"))
    assert photos.notes == (f"left out of {tmp_path}/kaggle, as it has splits: test",)


def table(folder, text, encoding="utf-8", name="labels.csv"):
    """Photos of six different contents, and a table."""
    fill(folder, {"d1": 3, "d2": 3})
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


SINGLE = [("d1/00.png", "cat"), ("d1/01.png", "dog"), ("d1/02.png", "cat")] + [
    (f"d2/0{i}.png", "dog" if i else "cat") for i in range(3)
]


@pytest.mark.parametrize(
    ("separator", "encoding", "name"),
    [(",", "utf-8", "labels.csv"), (";", "utf-8-sig", "x.CSV"), ("\t", "utf-16", "labels.tsv")],
)
@pytest.mark.parametrize("titles", [("path", "label"), ("Label", "filename"), None])
def test_tables_of_labels(separator, encoding, name, titles, tmp_path):
    rows = [row[::-1] if titles and titles[0] == "Label" else row for row in SINGLE]
    rows = [titles, *rows] if titles else rows
    path = table(tmp_path, "\r\n".join(separator.join(row) for row in rows), encoding, name)
    photos = read_photos(path, 0.3)
    assert photos.classes == ("cat", "dog")
    assert photos.split
    assert photos.folder == str(tmp_path)
    found = {photos.name_of(x): photos.classes[x.label] for x in (*photos.train, *photos.val)}
    assert found == dict(SINGLE)
    assert len(photos.val) == 2, "one of each class"
    assert not photos.notes


def test_a_column_of_splits(tmp_path):
    splits = ["Training", "train", "", "validation", "VAL", "test"]
    rows = [(*row, split) for row, split in zip(SINGLE, splits, strict=True)]
    rows += [("d1/00.png", "cat", "train")]  # the same again
    path = table(tmp_path, "\n".join(map(",".join, [("image", "class", "split"), *rows])))
    photos = read_photos(path)
    assert not photos.split
    assert sorted(names(photos, photos.train)) == SINGLE[:3]
    assert names(photos, photos.val) == SINGLE[3:5]
    assert names(photos, photos.test) == SINGLE[5:]
    assert photos.notes == ("there is no test photo of cat",)


LABELS = {
    "d1/00.png": (0, 2),
    "d1/01.png": (1,),
    "d1/02.png": (),
    "d2/00.png": (0, 1, 2),
    "d2/01.png": (2,),
    "d2/02.png": (0,),
}
ANIMALS = ("ape", "bee", "cow")


def cells(separator):
    lines = [f"{x},{separator.join(ANIMALS[i] for i in y)}" for x, y in LABELS.items()]
    return "path,tags\n" + "\n".join(lines)


def repeated():
    lines = [f"{x},{ANIMALS[i]}" for x, y in LABELS.items() for i in y]
    return "path,label\nd1/02.png,\n" + "\n".join(lines)


def one_hot():
    lines = [
        f"{n},{x}," + ",".join(str(int(i in y)) for i in (2, 0, 1))
        for n, (x, y) in enumerate(LABELS.items())
    ]
    return ",path,cow,ape,bee\n" + "\n".join(lines)


@pytest.mark.parametrize("text", [cells("|"), cells("; "), repeated(), one_hot()])
def test_several_labels_per_photo(text, tmp_path):
    path = table(tmp_path, text)
    photos = read_photos(path, 0.34, multi_label=True)
    assert photos.multi_label
    assert photos.classes == ANIMALS
    assert len(photos.val) >= 1
    found = {photos.name_of(x): x.label for x in (*photos.train, *photos.val)}
    assert found == LABELS
    assert {i for x in photos.train for i in x.label} == {0, 1, 2}, "each class has one to learn"
    with pytest.raises(
        UsageError, match=r"d1/0[02].png: it has (several labels|no label).*--multi"
    ):
        read_photos(path)


def test_parquet_tables(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    fill(tmp_path, {"d1": 3, "d2": 3})
    lists = [[ANIMALS[i] for i in y] for y in LABELS.values()]
    parquet.write_table(
        pyarrow.table({"path": list(LABELS), "labels": lists}), tmp_path / "x.parquet"
    )
    photos = read_photos(tmp_path / "x.parquet", multi_label=True)
    assert {photos.name_of(x): x.label for x in (*photos.train, *photos.val)} == LABELS
    flags = {name: [i in y for y in LABELS.values()] for i, name in enumerate(ANIMALS)}
    parquet.write_table(pyarrow.table({"file": list(LABELS), **flags}), tmp_path / "y.parquet")
    assert read_photos(tmp_path / "y.parquet", multi_label=True) == photos


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nd1/00.png,a\nd1/00.png,b\n", r"d1/00.png: it has several labels \(a, b\)"),
        ("path,label\nd1/00.png,a\n./d1/00.png,b\n", r"d1/00.png: it has several labels"),
        ("path,label\nd1/00.png,\nd1/01.png,b\n", "d1/00.png: it has no label"),
        ("path,label\nd1/00.png,a\nd1/01.png,a\n", r"one class only \(a\)"),
        ("path,label,split\nd1/00.png,a,one\n", "unknown split 'one'. Use train, val, test"),
        ("path,label,split\nd1/00.png,a,val\nd1/01.png,b,test", "it has val, test, but no train"),
        (
            "path,label,split\nd1/00.png,a,val\nd1/00.png,a,train",
            "d1/00.png: it is in two splits",
        ),
        ("path,size,weight\nd1/00.png,5,6\n", r"no column of labels \(there are size, weight\)"),
        ("path\nd1/00.png\n", r"no column of labels \(there are no others\)"),
        ("name,label\n1,a\n2,b\n", r"no column of paths \(name, label\)"),
        ("path,x,x\nd1/00.png,1,0\n", "two columns have the same title"),
        ("", "no column of paths"),
    ],
)
def test_tables_that_are_not_clear(text, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        read_photos(table(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_photos_of_a_table_that_are_not_there(tmp_path):
    with pytest.raises(ImageError, match="the list can't be read"):
        read_photos(tmp_path / "nosuch.csv")
    fill(tmp_path / "D", {"a": 2, "b": 2})
    with pytest.raises(UsageError, match=r"one label\. Use a table"):
        read_photos(tmp_path / "D", multi_label=True)
    path = table(tmp_path, "path,label\nd1/00.png,a\nd1/01.png,b\nd2/00.png,a\nno.png,b")
    photos = read_photos(path)
    (lost,) = [path for path, x in photos.contents.items() if x is None]
    assert lost == f"{tmp_path}/no.png"


def test_names_of_any_bytes(tmp_path):
    strange = os.fsdecode(b"caf\xe9\nx")
    fill(tmp_path, {"a": 2})
    os.mkdir(tmp_path / strange)
    for i in (1, 2):
        Image.new("RGB", (2, 2), (i, 9, 9)).save(tmp_path / strange / f"{i}.png")
    photos = read_photos(tmp_path)
    assert photos.classes == ("a", strange)
    assert photos.digest.startswith("sha256:")
