"""The true class of each photo, from class folders, tables or ILSVRC's list of ground truth."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tf_alexnet.errors import ImageError, UsageError, counted
from tf_alexnet.images import find_images
from tf_alexnet.images.labelled import find_labelled, listed
from tf_alexnet.labels import Label, imagenet_labels

ILSVRC_PHOTOS = 50_000  # of the validation set
_SYNSET = re.compile(r"n\d{8}(?!\d)")
_INDEX = re.compile("[0-9]{1,8}")
_MAX_BYTES = 1 << 26  # of a list; the longest known form has 3 MB
_SHOWN = 5
_INDICES = (
    "Use Caffe's val.txt (get_ilsvrc_aux.sh fetches it), which has indices 0..999, or a list of "
    "synset ids; the development kit's meta.mat maps its numbers to synset ids."
)
_FORMS = "Give one line per photo: its name and class, or the class alone (n01440764, or 0..999)."


@dataclass(frozen=True)
class GroundTruth:
    """Photos and their classes.

    Attributes
    ----------
    paths : tuple of str
        Paths of the photos.
    labels : ndarray of int64, (N,), or list of tuple of int
        Index of each photo's class among the network's outputs; if multi-label, of all its classes.
    notes : tuple of str
        What was left out or is missing, one sentence each.
    """

    paths: tuple[str, ...]
    labels: np.ndarray | list[tuple[int, ...]]
    notes: tuple[str, ...] = ()


def read_labelled(
    data: str | os.PathLike, classes: Sequence[Label], *, multi_label: bool = False
) -> GroundTruth:
    """Read photos in class folders or in a table, and their classes among those of a network.

    Parameters
    ----------
    data : path
        As in `find_labelled`; of several splits, ``val`` is read, else ``test``.
    classes : sequence of Label
        The network's classes. Folders and labels are named like classes; for ImageNet's, by synset
        id (a suffix is allowed, as in ``n02085620-Chihuahua``) or by a name that is unique.
    multi_label : bool
        As in `find_labelled`.

    Returns
    -------
    GroundTruth

    Raises
    ------
    UsageError
        If a folder or label does not name exactly one class, or there are no photos.
    ImageError
        If the folder or table is missing or can't be read.
    """
    found = find_labelled(data, multi_label=multi_label, first_of=("val", "test", "train"))
    ((split, photos),) = found.splits.items()
    empty = list(map(os.path.basename, found.empty.get(split, ())))
    if not photos:
        raise UsageError(
            os.fspath(data),
            "its class folders hold no photos" if empty else "it holds no photos",
            "Add photos.",
        )
    names = dict.fromkeys(x for _, labels in photos for x in labels)
    indices = _matched(os.fspath(data), sorted([*names, *empty], key=os.fsencode), classes)
    notes = [*found.notes, *([f"no photos in {listed(empty, _SHOWN)}"] if empty else [])]
    labels = [tuple(sorted(indices[name] for name in some)) for _, some in photos]
    if not multi_label:
        labels = np.array([label for (label,) in labels], np.int64)
    return GroundTruth(tuple(path for path, _ in photos), labels, tuple(notes))


def _matched(folder: str, names: list[str], classes: Sequence[Label]) -> dict[str, int]:
    """Index of the class of each folder; UsageError names all folders without one."""
    known: defaultdict[str, set[int]] = defaultdict(set)
    for index, label in enumerate(classes):
        for key in _keys(label):
            known[key].add(index)
    imagenet = any(label.synset for label in classes)
    found = {name: known.get(_key(name) if imagenet else name, set()) for name in names}
    for name, which in found.items():
        if len(which) > 1:
            meant = sorted(classes[index].synset for index in which)
            raise UsageError(
                os.path.join(folder, name),
                f"{len(meant)} classes have this name: {', '.join(meant)}",
                "Name the folder by its synset id.",
            )
    unknown = [name for name, which in found.items() if not which]
    if unknown:
        few = ", ".join(label.synset or label.label for label in classes[:_SHOWN])
        many = f" ({len(classes)} in all)" if len(classes) > _SHOWN else ""
        raise UsageError(
            folder,
            f"no class of this network is called {listed(unknown, _SHOWN)}",
            f"Name folders like the network's classes, {few}{many}, or leave them out.",
        )
    indices = {name: which.pop() for name, which in found.items()}
    counts = Counter(indices.values())
    twice = [name for name in names if counts[indices[name]] > 1]
    if twice:
        raise UsageError(
            folder, f"{listed(twice, _SHOWN)} are the same class", "Use one of the names."
        )
    return indices


def _keys(label: Label) -> list[str]:
    """All `_key` of a class."""
    if not label.synset:
        return [label.label]
    return [_key(name) for name in (label.synset, label.label, *label.label.split(","))]


def _key(name: str) -> str:
    """The synset id that a name starts with, or the name in lower case with single spaces."""
    synset = _SYNSET.match(name)
    return synset[0] if synset else " ".join(name.replace("_", " ").lower().split())


def read_ilsvrc_validation(
    photos: str | os.PathLike, ground_truth: str | os.PathLike
) -> GroundTruth:
    """Read ILSVRC-2012's validation photos and a list of their classes.

    Parameters
    ----------
    photos : path
        Folder with ``ILSVRC2012_val_00000001.JPEG`` .. ``ILSVRC2012_val_00050000.JPEG``.
    ground_truth : path
        Text file with one line per photo: ``NAME CLASS`` (Caffe's ``val.txt``; commas and further
        words are ignored), or only ``CLASS``, line 1 for photo 00000001. A class is a synset id or
        its index in Caffe's order, 0..999. The development kit's 1..1000, in another order, raise
        UsageError.

    Returns
    -------
    GroundTruth

    Raises
    ------
    UsageError
        If the file is not such a list, or names none of the photos.
    ImageError
        If the folder or the list can't be read.
    """
    folder, file = os.fspath(photos), os.fspath(ground_truth)
    truth, notes = read_truth_list(file)
    found, extra = {}, []
    for path in find_images([folder]):
        name = _stem(path)
        if name not in truth:
            extra.append(path)
        elif name in found:
            raise UsageError(
                path, f"{found[name]} has the same name", "Keep one photo of each name."
            )
        else:
            found[name] = path
    if not found:
        raise UsageError(
            f"{folder} with {file}",
            "the list names none of these photos, such as "
            f"{os.path.basename(extra[0])}; it names {next(iter(truth))}",
            "Use the list that belongs to these photos.",
        )
    missing = [name for name in truth if name not in found]
    if missing:
        notes.append(
            f"{counted(len(missing), f'photo of {file} is', f'photos of {file} are')} not in "
            f"{folder}: {listed(missing, _SHOWN)}"
        )
    if extra:
        names = listed([os.path.basename(path) for path in extra], _SHOWN)
        left_out = counted(len(extra), "photo is left out", "photos are left out")
        notes.append(f"{left_out}, not being in {file}: {names}")
    labels = np.array([truth[name] for name in found], np.int64)
    return GroundTruth(tuple(found.values()), labels, tuple(notes))


def read_truth_list(file: str) -> tuple[dict[str, int], list[str]]:
    """Read a list: name of a photo without suffix -> index of its class, 0..999; and notes."""
    synsets = {label.synset: str(index) for index, label in enumerate(imagenet_labels())}
    truth: dict[str, int] = {}
    indices = set()
    for number, (name, given) in enumerate(_rows(file), 1):
        line = f"{file}, line {number}"
        digits = synsets.get(given, given)
        if not _INDEX.fullmatch(digits):
            raise UsageError(line, f"{given!r} is not a class of ILSVRC-2012", _FORMS)
        index = int(digits)
        if given not in synsets:
            indices.add(index)
        name = name or f"ILSVRC2012_val_{number:08d}"
        if truth.setdefault(name, index) != index:
            raise UsageError(line, f"a second class for {name}", _FORMS)
    highest = max(indices, default=0)
    if highest == 1000 and 0 not in indices:
        fault = "classes 1..1000: these are the development kit's numbers, in another order"
        raise UsageError(file, fault, _INDICES)
    if highest > 999:
        raise UsageError(file, f"class {highest} is not in 0..999", _INDICES)
    notes = []
    if indices and 0 not in indices:
        notes.append(
            f"{file} has neither index 0 nor 1000, so it may count from 0, as it must, or from 1, "
            "as the development kit does"
        )
    if len(truth) != ILSVRC_PHOTOS:
        notes.append(f"{file} names {len(truth):,} photos, the validation set has 50,000")
    return truth, notes


def _rows(file: str) -> Iterator[tuple[str, str]]:
    """(name of the photo without suffix or "", class as written) of each line."""
    try:
        if os.path.getsize(file) > _MAX_BYTES:
            raise UsageError(file, f"a list of more than {_MAX_BYTES >> 20} MiB", _FORMS)
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
            rows = [re.split(r"[\s,;]+", line.strip()) for line in lines.read().splitlines()]
    except OSError as error:
        raise ImageError(
            file, f"the list can't be read ({error.strerror or error})", "Name a text file."
        ) from None
    while rows and rows[-1] == [""]:
        rows.pop()
    if rows and rows[0][0].lower() in ("imageid", "path", "name", "filename"):
        rows = rows[1:]  # the header of a table
    if not rows:
        raise UsageError(file, "it is empty", _FORMS)
    named = len(rows[0]) > 1
    for number, row in enumerate(rows, 1):
        if row == [""] or (len(row) > 1) != named:
            raise UsageError(f"{file}, line {number}", "it differs in form from the first", _FORMS)
        yield (_stem(row[0]), row[1]) if named else ("", row[0])


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
