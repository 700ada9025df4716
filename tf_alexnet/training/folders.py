"""`read_folders`: a folder of class folders -> photos with labels, to train on and to judge by."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tf_alexnet.errors import ImageError, UsageError
from tf_alexnet.images.discovery import find_by_class, subfolders

_SHOWN = 3  # pairs of duplicates that a note names


class Example(NamedTuple):
    """A photo and the class it shows.

    Attributes
    ----------
    path : str
        The photo.
    label : int
        Index into `PhotoSet.classes`.
    """

    path: str
    label: int


@dataclass(frozen=True)
class PhotoSet:
    """The photos of a folder, in two parts.

    Attributes
    ----------
    folder : str
        DATA, as it was given.
    classes : tuple of str
        Names of the class folders, sorted byte by byte; a label is an index into them.
    train, val : tuple of Example
        What is trained on, and what it is judged by; class by class, photos sorted by name.
    split : bool
        Whether the parts were drawn here, not found as ``train/`` and ``val/``.
    notes : tuple of str
        What a user should know about these data, a sentence each.
    """

    folder: str
    classes: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    split: bool
    notes: tuple[str, ...] = ()

    def name_of(self, example: Example) -> str:
        """The photo's path below `folder`."""
        return os.path.relpath(example.path, self.folder)

    @property
    def digest(self) -> str:
        """``sha256:...`` over names, labels and parts: another one if photos come, go or move."""
        sha = hashlib.sha256("\0".join(self.classes).encode(*_BYTES))
        for part in (self.train, self.val):
            sha.update(f"\n{len(part)}\n".encode())
            for example in part:
                sha.update(f"{example.label}\0{self.name_of(example)}\0".encode(*_BYTES))
        return f"sha256:{sha.hexdigest()}"


_BYTES = ("utf-8", "surrogateescape")  # names may hold any bytes


def read_folders(
    data: str | os.PathLike, val_split: float = 0.2, seed: int = 0, *, duplicates: bool = True
) -> PhotoSet:
    """Find the photos of each class.

    Parameters
    ----------
    data : path
        A folder with ``train/`` and ``val/``, each with a folder a class; or with the class folders
        themselves, of which a part is then set aside. Class folders are searched recursively;
        hidden names are left out.
    val_split : float
        Part of each class that is set aside, 0 < val_split < 1; at least one photo stays on either
        side. Not used where there is a ``val/``.
    seed : int
        Which photos those are: the same folder and seed give the same parts.
    duplicates : bool
        Look for photos that are in both parts, by content. Only files of equal size are read.

    Returns
    -------
    PhotoSet

    Raises
    ------
    UsageError
        If there are fewer than two classes, a class without a photo, with a single one to be
        split, or one in ``val/`` that ``train/`` lacks.
    ImageError
        If a folder is missing or can't be read.
    """
    folder = os.fspath(data)
    if not os.path.isdir(folder):
        raise ImageError(folder, "there is no such folder", "Name a folder with a folder a class.")
    parts = {part: os.path.join(folder, part) for part in ("train", "val")}
    given = [part for part, path in parts.items() if os.path.isdir(path)]
    if len(given) == 2:
        train = _photos_of_classes(parts["train"])
        val = _photos_of_classes(parts["val"])
        notes = _compare_classes(folder, train, val)
    else:
        _refuse_half(folder, given)
        train, val = _split(_photos_of_classes(folder), val_split, seed)
        notes = []
    classes = tuple(train)
    labelled = [
        tuple(Example(path, i) for i, name in enumerate(classes) for path in part.get(name, ()))
        for part in (train, val)
    ]
    if duplicates:
        notes += _note_duplicates(*labelled, folder)
    return PhotoSet(folder, classes, *labelled, split=len(given) < 2, notes=tuple(notes))


def _photos_of_classes(folder: str) -> dict[str, list[str]]:
    """Class -> photos, classes in the order of their names' bytes."""
    paths = subfolders(folder)
    if len(paths) < 2:
        raise UsageError(
            folder,
            f"one class only ({next(iter(paths))})" if paths else "no class folder in it",
            "Make a folder for each of two classes or more, and put their photos there.",
        )
    photos = find_by_class(paths)
    for name, found in photos.items():
        if not found:
            raise UsageError(
                paths[name],
                "a class folder without a photo",
                "Put photos of the class there, or remove the folder.",
            )
    return photos


def _refuse_half(folder: str, given: list[str]) -> None:
    """``train/`` without ``val/``, or the other way round: taken for a class it would mislead."""
    if given:
        other = {"train": "val", "val": "train"}[given[0]]
        raise UsageError(
            folder,
            f"it has {given[0]}/ but no {other}/",
            f"Add {other}/, or name {os.path.join(folder, given[0])} itself to have it split.",
        )


def _compare_classes(folder: str, train: dict, val: dict) -> list[str]:
    unknown = [name for name in val if name not in train]
    if unknown:
        raise UsageError(
            os.path.join(folder, "val"),
            f"classes that train/ lacks: {', '.join(unknown[:10])}",
            "Give both parts the same class folders.",
        )
    missing = [name for name in train if name not in val]
    if not missing:
        return []
    return [f"{os.path.join(folder, 'val')} has no photo of {', '.join(missing[:10])}"]


def _split(photos: dict[str, list[str]], val_split: float, seed: int) -> tuple[dict, dict]:
    """Set a part of each class aside."""
    if not 0 < val_split < 1:
        raise UsageError(
            f"val_split {val_split}",
            "nothing would be left on one side",
            "Use a part between 0 and 1, as 0.2.",
        )
    if not 0 <= seed < 1 << 32:
        raise UsageError(f"seed {seed}", "out of range", "Use 0 to 4294967295.")
    train, val = {}, {}
    for index, (name, paths) in enumerate(photos.items()):
        if len(paths) < 2:
            raise UsageError(
                os.path.dirname(paths[0]),
                "a single photo, which can't be trained on and judged by",
                "Add photos of that class.",
            )
        count = min(max(1, round(val_split * len(paths))), len(paths) - 1)
        order = np.random.default_rng([seed, index]).permutation(len(paths))
        aside = set(order[:count].tolist())
        train[name] = [path for i, path in enumerate(paths) if i not in aside]
        val[name] = [path for i, path in enumerate(paths) if i in aside]
    return train, val


def _note_duplicates(
    train: Sequence[Example], val: Sequence[Example], folder: str
) -> Iterator[str]:
    """A sentence where photos of `val` are in `train` too."""
    sizes = [_by_size(x.path for x in part) for part in (train, val)]
    pairs = []
    for size in sorted(sizes[0].keys() & sizes[1].keys()):
        seen = {}
        for path in sizes[0][size]:
            seen.setdefault(_checksum(path), path)
        seen.pop(None, None)
        for path in sizes[1][size]:
            if (twin := seen.get(_checksum(path))) is not None:
                pairs.append((path, twin))
    if pairs:
        pairs.sort()
        shown = ", ".join(
            f"{os.path.relpath(a, folder)} = {os.path.relpath(b, folder)}"
            for a, b in pairs[:_SHOWN]
        )
        more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
        yield (
            f"{len(pairs)} of {len(val)} validation photos are among the training photos too, so "
            f"the accuracy will look better than it is: {shown}{more}"
        )


def _by_size(paths: Iterable[str]) -> dict[int, list[str]]:
    sizes = defaultdict(list)
    for path in paths:
        try:
            sizes[os.stat(path).st_size].append(path)
        except OSError:  # the reader of photos has the better words for it
            continue
    return sizes


def _checksum(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None
