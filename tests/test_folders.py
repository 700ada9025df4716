"""Folders of class folders: what is found, how it is split, and what is refused in one line."""

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


def test_duplicates_across_the_parts_are_noted_by_content(tmp_path):
    fill(tmp_path / "train", {"a": 6, "b": 2})
    fill(tmp_path / "val", {"a": 1, "b": 1}, tint=1)
    shutil.rmtree(tmp_path / "val" / "a")
    shutil.copytree(tmp_path / "train" / "a", tmp_path / "val" / "a")
    os.rename(tmp_path / "val/a/00.png", tmp_path / "val/a/other name.png")
    (note,) = read_photos(tmp_path).notes
    assert note.startswith("6 of 7 validation photos are among the training photos too")
    assert "val/a/01.png = train/a/01.png" in note
    assert note.endswith("and 3 more")


def test_no_duplicates_no_note(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5})
    assert read_photos(tmp_path).notes == ()


def test_a_class_that_val_lacks_is_noted(tmp_path):
    fill(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    fill(tmp_path / "val", {"a": 1, "c": 1})
    photos = read_photos(tmp_path, duplicates=False)
    assert photos.classes == ("a", "b", "c")
    assert photos.notes == (f"{tmp_path}/val has no photo of b",)


REFUSED = {
    "empty class": (
        {"a": 3, "b": 0},
        UsageError,
        r"/b: a class folder without a photo\. Put photos of the class there, or remove",
    ),
    "one class": ({"a": 3}, UsageError, r"one class only \(a\)\. Make a folder for each"),
    "no class": ({}, UsageError, "no class folder in it"),
    "single photo": ({"a": 3, "b": 1}, UsageError, r"/b: a single photo, which can't be trained"),
    "class in val only": (
        {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1, "val/c": 1, "val/d": 1},
        UsageError,
        r"/val: classes that train/ lacks: c, d\.",
    ),
    "no val": (
        {"train/a": 2, "train/b": 2},
        UsageError,
        "it has train/ but no val/.*name .*train ",
    ),
    "no train": ({"val/a": 2, "val/b": 2}, UsageError, "it has val/ but no train/"),
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
        with pytest.raises(UsageError, match="Use a part between 0 and 1"):
            read_photos(tmp_path, part)
    for seed in (-1, 1 << 32):
        with pytest.raises(UsageError, match="out of range"):
            read_photos(tmp_path, seed=seed)


def test_names_of_any_bytes(tmp_path):
    strange = os.fsdecode(b"caf\xe9\nx")
    fill(tmp_path, {"a": 2})
    os.mkdir(tmp_path / strange)
    for i in (1, 2):
        Image.new("RGB", (2, 2), (i, 9, 9)).save(tmp_path / strange / f"{i}.png")
    photos = read_photos(tmp_path)
    assert photos.classes == ("a", strange)
    assert photos.digest.startswith("sha256:")
