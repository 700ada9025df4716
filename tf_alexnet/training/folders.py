"""`read_photos`: class folders or a table of labels -> photos in splits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tf_alexnet.errors import UsageError, counted, one_line
from tf_alexnet.extraction.job import read_state
from tf_alexnet.images.labelled import Labelled, find_labelled, listed
from tf_alexnet.remote import is_url

_BYTES = ("utf-8", "surrogateescape")  # names may hold any bytes


class Example(NamedTuple):
    """A photo and its class.

    Attributes
    ----------
    path : str
        The photo.
    label : int or tuple of int
        Index into `PhotoSet.classes`; in a multi-label set all its indices, ascending.
    """

    path: str
    label: int | tuple[int, ...]


@dataclass(frozen=True)
class PhotoSet:
    """Photos with labels, in splits.

    Attributes
    ----------
    folder : str
        The data folder, or that of the table.
    classes : tuple of str
        Names of the classes, sorted byte by byte; a label is an index into them.
    train, val : tuple of Example
        Photos for training and validation, sorted by class and name, or in the order of the
        table.
    split : bool
        Whether `val` was chosen at random here, not given.
    notes : tuple of str
        Sentences about the data, for the user.
    test : tuple of Example
        Photos of the test split, if there is one.
    multi_label : bool
        Whether photos have any number of labels.
    contents : mapping of str to str or None
        Path -> digest of the photo's bytes, None if it can't be read; empty if not computed.
    source : str
        The data folder or table; empty for images in memory.
    """

    folder: str
    classes: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    split: bool
    notes: tuple[str, ...] = ()
    test: tuple[Example, ...] = ()
    multi_label: bool = False
    contents: Mapping[str, str | None] = field(default_factory=dict, compare=False, repr=False)
    source: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return (
            f"<PhotoSet {one_line(self.source or 'in memory')}: {len(self.classes)} classes, "
            f"train {len(self.train)}, val {len(self.val)}, test {len(self.test)}>"
        )

    def name_of(self, example: Example) -> str:
        """The photo's path relative to `folder`."""
        return example.path if is_url(example.path) else os.path.relpath(example.path, self.folder)

    @property
    def digest(self) -> str:
        """``sha256:...`` of names, labels, splits and `contents`."""
        sha = hashlib.sha256("\0".join(self.classes).encode(*_BYTES))
        for part in (self.train, self.val, self.test):
            sha.update(f"\n{len(part)}\n".encode())
            for x in part:
                text = f"{x.label}\0{self.name_of(x)}\0{self.contents.get(x.path)}\0"
                sha.update(text.encode(*_BYTES))
        return f"sha256:{sha.hexdigest()}"


def read_digests(paths: Iterable[str]) -> dict[str, str | None]:
    """Path -> digest of each photo's bytes; None for URLs and if it can't be read."""
    paths = list(paths)
    local = [path for path in paths if not is_url(path)]
    with ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as pool:
        states = pool.map(read_state, local)
        found = {path: state and state[1] for path, state in zip(local, states, strict=True)}
    return dict.fromkeys(paths) | found


def read_photos(
    data: str | os.PathLike,
    val_split: float = 0.2,
    seed: int = 0,
    *,
    duplicates: bool = True,
    multi_label: bool = False,
) -> PhotoSet:
    """Find photos and their labels.

    Parameters
    ----------
    data, multi_label
        As in `find_labelled`: class folders, splits of such, or a table.
    val_split : float
        Fraction of each class used for validation if the data have no such split,
        0 < val_split < 1; each side gets at least one photo.
    seed : int
        Random seed of that split, 0 to 4294967295.
    duplicates : bool
        Read all photos, and note those in several splits or classes.

    Returns
    -------
    PhotoSet

    Raises
    ------
    UsageError
        If there are fewer than two classes, a class without training photos, with a single photo
        to split, or in other splits only.
    ImageError
        If a folder or table is missing or can't be read.
    """
    check_seed(seed)
    found = find_labelled(data, multi_label=multi_label)
    notes = found.notes
    classes, splits = _indexed(os.fspath(data), found, multi_label, notes)
    drawn = not splits["val"]
    if drawn:
        splits["train"], splits["val"] = set_aside(splits["train"], classes, val_split, seed)
    contents = {}
    if duplicates:
        contents = read_digests(x.path for part in splits.values() for x in part)
        notes += note_duplicates(splits, contents, found.folder)
    return PhotoSet(
        found.folder, classes, splits["train"], splits["val"], drawn, tuple(notes), splits["test"],
        multi_label, contents, os.fspath(data),
    )  # fmt: skip


def _indexed(
    data: str, found: Labelled, multi_label: bool, notes: list[str]
) -> tuple[tuple[str, ...], dict[str, tuple[Example, ...]]]:
    """The classes of the training photos, and split -> examples."""
    whole = "" if "" in found.splits else "train"
    if whole not in found.splits:
        raise UsageError(
            data, f"it has {listed(found.splits)}, but no train", "Add training photos."
        )
    for folder in found.empty.get(whole, ()):
        raise UsageError(
            folder, "a class folder without a photo", "Put photos of the class there, or remove it."
        )
    if hollow := [split for split, photos in found.splits.items() if split and not photos]:
        raise UsageError(data, f"no photo in {listed(hollow)}", "Add photos, or remove the split.")
    splits = {"train": found.splits[whole]}
    splits |= {split: found.splits.get(split, []) for split in ("val", "test")}
    names = {name for _, labels in splits["train"] for name in labels}
    classes = sorted(names, key=os.fsencode)
    if len(classes) < 2:
        raise UsageError(
            data,
            f"one class only ({classes[0]})" if classes else "no photo in it",
            "Give photos of two classes or more, each in a folder of its own.",
        )
    index = {name: i for i, name in enumerate(classes)}
    for split, title in (("val", "validation"), ("test", "test")):
        present = {name for _, labels in splits[split] for name in labels}
        if unknown := sorted(present - names):
            raise UsageError(
                data,
                f"no training photo shows {listed(unknown, 10)}, as {title} photos do",
                "Give the splits the same classes.",
            )
        missing = [name for name in classes if name not in present]
        if splits[split] and missing:
            notes.append(f"there is no {title} photo of {listed(missing, 10)}")
    examples = {
        split: tuple(
            Example(
                path, tuple(sorted(index[x] for x in labels)) if multi_label else index[labels[0]]
            )
            for path, labels in photos
        )
        for split, photos in splits.items()
    }
    return tuple(classes), examples


def check_seed(seed: int) -> None:
    """Refuse (UsageError) a seed that NumPy and Keras don't accept."""
    if not 0 <= seed < 1 << 32:
        raise UsageError(f"seed {seed}", "out of range", "Use 0 to 4294967295.")


def set_aside(
    photos: Sequence[Example], classes: Sequence[str], fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Choose a random fraction of each class; in a multi-label set, a fraction of all."""
    if not 0 < fraction < 1:
        raise UsageError(
            f"val_split {fraction}",
            "one split would be empty",
            "Use a fraction between 0 and 1, such as 0.2.",
        )
    labels = [x.label if isinstance(x.label, tuple) else (x.label,) for x in photos]
    groups = defaultdict(list)
    for i, example in enumerate(photos):
        groups[0 if isinstance(example.label, tuple) else example.label].append(i)
    left = Counter(label for some in labels for label in some)  # training photos
    aside: set[int] = set()
    for group, members in sorted(groups.items()):
        if len(members) < 2:
            raise UsageError(
                f"class {classes[group]}",
                "it has a single photo, too few for training and validation",
                "Add photos of that class.",
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        order = np.random.default_rng([seed, group]).permutation(len(members)).tolist()
        for i in (members[j] for j in order):
            if count and all(left[label] > 1 for label in labels[i]):
                aside.add(i)
                left.subtract(labels[i])
                count -= 1
    if not aside:
        raise UsageError(
            "validation photos", "each photo is the only one of a class", "Add more photos."
        )
    train = tuple(x for i, x in enumerate(photos) if i not in aside)
    return train, tuple(photos[i] for i in sorted(aside))


def note_duplicates(
    splits: Mapping[str, Sequence[Example]],
    contents: Mapping[str, str | None],
    folder: str,
) -> Iterator[str]:
    """Notes on images that are in two splits, or in two classes."""
    first: dict[str, dict[str, Example]] = defaultdict(dict)  # digest -> split -> photo
    copies: dict[str, list[tuple[str, str]]] = defaultdict(list)
    torn: list[tuple[str, str]] = []
    for split, photos in splits.items():
        for photo in photos:
            digest = contents[photo.path]
            if digest is None:
                continue
            there = first[digest]
            if split != "train" and "train" in there:
                copies[split].append((photo.path, there["train"].path))
            other = next((x for x in there.values() if x.label != photo.label), None)
            if other:
                torn.append((photo.path, other.path))
            there.setdefault(split, photo)

    def shown(pairs: list[tuple[str, str]]) -> str:
        pairs = sorted(pairs)
        return listed(
            f"{os.path.relpath(a, folder)} = {os.path.relpath(b, folder)}" for a, b in pairs
        )

    for split, title in (("val", "validation"), ("test", "test")):
        if pairs := copies[split]:
            of_all = f"of {len(splits[split])} {title} photos"
            yield (
                f"{counted(len(pairs), f'{of_all} is', f'{of_all} are')} among the training "
                f"photos, too, so accuracy is overestimated: {shown(pairs)}"
            )
    if torn:
        found = counted(len(torn), "photo is a copy", "photos are copies")
        yield f"{found} of one with other labels: {shown(torn)}"
