"""Labelled photos in splits, from class folders or tables."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tf_alexnet.errors import UsageError
from tf_alexnet.images.discovery import FOREIGN, find_by_class, subfolders
from tf_alexnet.images.lists import LISTS, Table, has_image_suffix, read_table
from tf_alexnet.remote import is_url

# Names of splits; case is ignored.
SPLITS = {
    "train": ("train", "training", "training_set"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "test_set"),
}
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
_LABEL_TITLES = (
    *("label", "labels", "class", "classes", "class_name", "category", "categories"),
    *("tag", "tags", "target", "species"),
)
_SPLIT_TITLES = ("split", "set", "subset", "partition")
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_SHOWN = 3  # names in a message


class Labelled(NamedTuple):
    """Photos with the names of their classes.

    Attributes
    ----------
    folder : str
        The data folder, or the folder of the table.
    splits : dict of str to list of (str, tuple of str)
        ``train``, ``val``, ``test``, or ``""`` if there are no splits -> (path, classes) of each
        photo: class by class, sorted by name, or in the order of the table.
    empty : dict of str to list of str
        Split -> class folders without a photo.
    notes : list of str
        What was left out, one sentence each.
    """

    folder: str
    splits: dict[str, list[tuple[str, tuple[str, ...]]]]
    empty: dict[str, list[str]]
    notes: list[str]


def is_table(data: str | os.PathLike) -> bool:
    """Whether a path is a table of photos rather than a folder."""
    return os.fspath(data).lower().endswith(LISTS[1:]) and not os.path.isdir(data)


def find_labelled(
    data: str | os.PathLike, *, multi_label: bool = False, first_of: Sequence[str] = ()
) -> Labelled:
    """Find photos and their classes.

    Parameters
    ----------
    data : path
        A folder with one folder per class, searched recursively, or with folders ``train/``,
        ``val/`` and ``test/`` that hold the class folders (see `SPLITS` for other names; case is
        ignored). Or a table (``.csv``, ``.tsv``, ``.parquet``) with a column of paths, relative to
        its folder, and a column ``label``, or one column of 0 and 1 per class; a column ``split``
        is used if there is one.
    multi_label : bool
        Whether a photo in a table may have any number of labels: ``cat|dog`` or ``cat;dog`` in its
        cell, several rows, or several columns with 1.
    first_of : sequence of str
        Return only one split: the first of these that exists.

    Raises
    ------
    UsageError
        If there are no class folders or labels, or they are ambiguous.
    ImageError
        If a folder or table is missing or can't be read.
    """
    path, notes = os.fspath(data), []
    if is_table(path):
        splits = _in_table(path, read_table(path), multi_label)
        some = _chosen(path, splits, first_of, notes)
        return Labelled(os.path.dirname(path) or ".", some, {}, notes)
    if multi_label:
        raise UsageError(path, "photos in class folders have one label", "Use a table: path,label.")
    folders, notes = class_folders(path)
    folders = _chosen(path, folders, first_of, notes)
    photos = {split: find_by_class(paths) for split, paths in folders.items()}
    return Labelled(
        path,
        {
            split: [(path, (name,)) for name, found in classes.items() for path in found]
            for split, classes in photos.items()
        },
        {
            split: [folders[split][name] for name, found in classes.items() if not found]
            for split, classes in photos.items()
        },
        notes,
    )


def _chosen(data: str, splits: dict, first_of: Sequence[str], notes: list[str]) -> dict:
    """Only the first split in `first_of` that exists; all splits if none does."""
    chosen = next((split for split in first_of if split in splits), None)
    if chosen is None:
        return splits
    if len(splits) > 1:
        there = " and ".join(split for split in SPLITS if split in splits)
        notes.append(f"{data} has {there}: {chosen} is evaluated")
    return {chosen: splits[chosen]}


def class_folders(data: str | os.PathLike) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Split -> class -> folder, and notes. Without splits, the only key is ``""``.

    Raises
    ------
    UsageError
        If there are no class folders.
    ImageError
        If a folder is missing or can't be read.
    """
    top = os.fspath(data)
    folders, notes = subfolders(top), []
    if not folders:
        raise UsageError(
            top,
            "no class folder in it",
            "Put the photos of each class in a folder of that name, or use a table: path,label "
            "(for ILSVRC's validation photos, use evaluate --imagenet-val).",
        )
    splits: dict[str, str] = {}
    looks = {name: _look(path) for name, path in folders.items() if name.lower() in _SPLIT_OF}
    for name, (inner, photos) in looks.items():
        split = _SPLIT_OF[name.lower()]
        if photos or not inner:
            continue
        if split in splits:
            raise UsageError(
                top,
                f"{os.path.basename(splits[split])}/ and {name}/ are the same split",
                "Merge them, or rename one of them.",
            )
        splits[split] = folders[name]
    if splits:
        others = [name for name in folders if folders[name] not in splits.values()]
        if others:
            notes.append(f"left out of {top}, as it has splits: {listed(others)}")
        return {split: subfolders(path) for split, path in splits.items()}, notes
    if len(folders) > 1 and looks.keys() == folders.keys():
        raise UsageError(
            top,
            f"{listed(folders)} hold photos, not class folders",
            "Make a folder per class in each, or use a table: path,label,split.",
        )
    _refuse_nested(top, folders)
    return {"": folders}, notes


def _look(folder: str) -> tuple[set[str], bool]:
    """Names of a folder's subfolders, and whether it holds photos, which ends the search."""
    inner = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in FOREIGN:
                    continue
                if entry.is_dir():
                    inner.add(entry.name)
                elif has_image_suffix(entry.name):
                    return inner, True
    except OSError:  # the search for photos reports it
        pass
    return inner, False


def _refuse_nested(top: str, folders: Mapping[str, str]) -> None:
    """Raise an error for splits with unknown names, which look like classes."""
    shared: set[str] | None = None
    for path in folders.values():
        inner, photos = _look(path)
        shared = inner if shared is None else shared & inner
        if photos or len(shared) < 2:  # each class may have one subfolder, such as `images`
            return
    if len(folders) > 1:
        raise UsageError(
            top,
            f"its folders {listed(folders)} hold no photos, but the same subfolders "
            f"({listed(sorted(shared))})",
            "If these are the classes, rename the folders to train/, val/ and test/, or use one of "
            "them as the data.",
        )


def _in_table(path: str, table: Table, multi_label: bool) -> dict:
    cells, labels = _columns(path, table)
    merged: dict[str, tuple[str, list[str], str]] = {}
    for entry, names, cell in zip(table.paths, labels, cells, strict=True):
        photo = entry if is_url(entry) else os.path.join(os.path.dirname(path), entry)
        asked, split = f"{path}: {entry}", _SPLIT_OF.get(cell.lower(), cell)
        if split not in ("", *SPLITS):
            raise UsageError(asked, f"unknown split {cell!r}", f"Use {listed(SPLITS)}.")
        _, known, where = merged.setdefault(os.path.normpath(photo), (photo, [], split))
        known += [name for name in names if name not in known]
        if split != where:
            raise UsageError(asked, "it is in two splits", "Keep it in one of them.")
        if not multi_label and len(known) != 1:
            raise UsageError(
                asked,
                f"it has several labels ({listed(known)})" if known else "it has no label",
                "Pass --multi-label (multi_label=True), or give each photo one label.",
            )
    found = defaultdict(list)
    for photo, names, split in merged.values():
        found[split].append((photo, tuple(names)))
    if len(found) > 1 and "" in found:  # cells left empty
        found["train"] = found.pop("") + found["train"]
    return dict(found)


def _columns(path: str, table: Table) -> tuple[list[str], list[list[str]]]:
    """The column of splits (empty strings if there is none), and the labels of each row."""
    titles = {title.lower(): title for title in table.columns}
    split = next((titles.pop(x) for x in _SPLIT_TITLES if x in titles), None)
    cells = table.columns[split] if split else [""] * len(table.paths)
    named = [titles[x] for x in _LABEL_TITLES if x in titles]
    if named or len(titles) == 1:
        label = named[0] if named else next(iter(titles.values()))
        return cells, [[x for x in re.split(r"\s*[|;]\s*", y) if x] for y in table.columns[label]]
    flags = {
        title: [_FLAGS[x.lower()] for x in table.columns[title]]
        for title in titles.values()
        if all(x.lower() in _FLAGS for x in table.columns[title])
    }
    if len(flags) < 2:
        raise UsageError(
            path,
            f"no column of labels (there are {listed(titles.values(), 9) or 'no others'})",
            "Call it `label`, or give one column of 0 and 1 per class.",
        )
    rows = zip(*flags.values(), strict=True)
    return cells, [[name for name, flag in zip(flags, row, strict=True) if flag] for row in rows]


def class_names(path: str) -> list[str]:
    """The classes of a table of photos, in the order used by training."""
    _, labels = _columns(path, read_table(path))
    return sorted({name for names in labels for name in names}, key=os.fsencode)


def listed(names: Iterable[str], most: int = _SHOWN) -> str:
    """The first names, and how many more there are, for messages."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
