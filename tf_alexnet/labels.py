"""The 1000 classes of ILSVRC-2012, and the most probable classes of a photo.

Caffe, torchvision and Keras number the classes in the ASCII order of their WordNet 3.0 synset ids:
0 is n01440764 (tench), 999 is n15075141 (toilet tissue). This is neither the order of the
development kit (1..1000) nor that of networks with a background class (1001 classes). Two classes
are called "crane", 134 (the bird) and 517 (the machine), so show the synset id with the name.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tf_alexnet.errors import InputError

_LABELS = Path(__file__).parent / "data" / "imagenet_labels.csv"

_MAX_BYTES = 2**24  # of a file of labels
_INDEX = re.compile("[0-9]{1,9}")
_SYNSET = re.compile(r"(n\d{8})(?:[\s,:]+(.+))?")

Labels = Sequence[Any] | Mapping[Any, Any] | str | PathLike

# Float16 probabilities of 1000 classes sum to 1 within about 1e-3; logits are far off.
_SUM_TOLERANCE = 1e-2


class Label(NamedTuple):
    """One class.

    Attributes
    ----------
    synset : str
        WordNet id, e.g. ``"n02123045"``; empty if there is none.
    label : str
        Names of the class, e.g. ``"tabby, tabby cat"``.
    """

    synset: str
    label: str


class Prediction(tuple[str, str, float]):
    """A predicted class: Keras's triple ``(synset, label, probability)``, with an index.

    Attributes
    ----------
    synset : str
        WordNet id, e.g. ``"n02123045"``; empty for classes outside ILSVRC-2012.
    label : str
        Names of the class, e.g. ``"tabby, tabby cat"``.
    probability : float
        0 to 1.
    index : int
        Position of the class in the network's output, from 0. Not an item of the triple.
    """

    index: int  # type: ignore[assignment]  # hides the method tuple.index

    @property
    def synset(self) -> str:
        return self[0]

    @property
    def label(self) -> str:
        return self[1]

    @property
    def probability(self) -> float:
        return self[2]

    def __new__(cls, synset: str, label: str, probability: float, index: int) -> Prediction:
        """Create the triple."""
        self = super().__new__(cls, (synset, label, probability))
        self.index = index
        return self

    def __getnewargs__(self) -> tuple:
        """Arguments for copying and pickling."""
        return (*self, self.index)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Prediction) and other.index != self.index:
            return False
        return tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__

    def __repr__(self) -> str:
        items = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items())
        return f"Prediction({items})"

    def as_dict(self) -> dict[str, str | int | float]:
        """The attributes as a dict."""
        names = ("synset", "label", "index", "probability")
        return {name: getattr(self, name) for name in names}


@cache
def imagenet_labels() -> tuple[Label, ...]:
    """The 1000 classes of ILSVRC-2012 in the order of the network's output."""
    with _LABELS.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines)
        next(rows)
        return tuple(Label(*row) for row in rows)


def decode_predictions(
    predictions: ArrayLike,
    top: int = 5,
    labels: Labels | None = None,
    *,
    multi_label: bool = False,
) -> list[list[Prediction]]:
    """The most probable classes of each photo.

    Parameters
    ----------
    predictions : array_like
        Probabilities of any float type, (N, classes), or (classes,) for one photo: the output
        `prob`, 0 to 1, where each row sums to 1.
    top : int
        Number of classes to return per photo; all classes if there are fewer.
    labels : sequence of str, mapping or path, optional
        Names of the classes in the order of the network's output, or a file of them; see
        `read_labels`. By default the 1000 classes of ILSVRC-2012.
    multi_label : bool
        If True, probabilities are independent (sigmoid), and rows need not sum to 1.

    Returns
    -------
    list of list of Prediction
        One list per photo, most probable class first; ties are in the order of the index.

    Raises
    ------
    InputError
        If `predictions` is not such an array, `top` is below 1, or `labels` don't match the
        columns.
    """
    known = imagenet_labels() if labels is None else read_labels(labels)
    rows = _checked(predictions, len(known), labels is not None, multi_label)
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
        raise InputError(f"top={top!r}", "not a number of classes", "Ask for 1 or more.")
    # A stable sort of the negated row keeps equal values in the order of their index.
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top]
    return [
        [Prediction(*known[i], probability=float(row[i]), index=int(i)) for i in best]
        for row, best in zip(rows, order, strict=True)
    ]


def read_labels(labels: Labels) -> tuple[Label, ...]:
    """Class names from a list, a mapping or a file.

    Parameters
    ----------
    labels : sequence, mapping or path
        Names, or pairs (synset id, name), in the order of the network's output; or a mapping from
        name to index, or from index to name or pair, as Keras's ``class_indices`` and
        ``imagenet_class_index.json``. A file holds one of these as JSON, or one name per line,
        which may begin with a synset id (``synset_words.txt``) or be one (``synsets.txt``). The
        first two columns of a ``.csv`` or ``.tsv`` are indices and names, in either order; or it is
        a table of photos to train on, whose classes are returned.

    Returns
    -------
    tuple of Label

    Raises
    ------
    InputError
        If they can't be read, or their indices are not 0, 1, 2, ...
    """
    asked = "labels"
    if isinstance(labels, str | PathLike):
        asked = f"labels {os.fspath(labels)}"
        text = _text(labels, asked)
        is_table = os.fspath(labels).lower().endswith((".csv", ".tsv"))
        labels = (is_table and _in_table(os.fspath(labels), text)) or _parsed(text, asked)
    if isinstance(labels, Mapping):
        labels = _in_order(labels, asked)
    if isinstance(labels, bytes | set | frozenset) or not isinstance(labels, Iterable):
        raise InputError(asked, f"got {type(labels).__name__}", "Give a list of names.")
    return tuple(_label(item, number, asked) for number, item in enumerate(labels))


def labels_of_network(labels: Labels, outputs: int | None) -> tuple[Label, ...]:
    """`read_labels`, with a check that there is one name for each output of the network.

    Raises
    ------
    InputError
        As `read_labels`, or if the number of names is not `outputs`.
    """
    known = read_labels(labels)
    if outputs is not None and len(known) != outputs:
        is_path = isinstance(labels, str | PathLike)
        raise InputError(
            f"labels {os.fspath(labels)}" if is_path else "labels",
            f"{len(known)} names, but the network has {outputs} outputs",
            "Give one name per output, in the same order.",
        )
    return known


def find_class(name: str | int, labels: Sequence[Label]) -> int:
    """The index of a class.

    Parameters
    ----------
    name : str or int
        Index, synset id, label, or one of the names in a label; case is ignored.
    labels : sequence of Label
        All classes.

    Returns
    -------
    int

    Raises
    ------
    InputError
        If there is no such class, or more than one.
    """
    text = str(name).strip()
    asked = f"class {text!r}"
    if _INDEX.fullmatch(text) and not any(x.label == text for x in labels):
        if int(text) < len(labels):
            return int(text)
        advice = f"Give an index from 0 to {len(labels) - 1}, or a name."
        raise InputError(asked, f"there are {len(labels)} classes", advice)
    wanted = text.casefold()
    exact = [i for i, x in enumerate(labels) if wanted in (x.label.casefold(), x.synset)]
    found = exact or [
        i for i, x in enumerate(labels) if wanted in map(str.strip, x.label.casefold().split(","))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{i} ({labels[i].synset or labels[i].label})" for i in found)
        raise InputError(asked, f"several classes have that name: {several}", "Give the index.")
    names = {part.strip().casefold(): x.label for x in labels for part in x.label.split(",")}
    close = difflib.get_close_matches(wanted, names, n=3)
    hint = f"Did you mean: {'; '.join(dict.fromkeys(names[x] for x in close))}?" if close else ""
    raise InputError(asked, "there is no such class", hint or "Give an index or another name.")


def _text(path: str | PathLike, asked: str) -> str:
    """The content of a text file, unless it is too large."""
    try:
        size = os.stat(path).st_size
        if size > _MAX_BYTES:
            fault = f"it has {size:,} bytes, too many for class names"
        elif not os.path.isfile(path):
            fault = "it is not a regular file"
        else:
            return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        fault = "it is not a UTF-8 text file"
    except (OSError, ValueError) as error:
        fault = f"it can't be read ({getattr(error, 'strerror', None) or error})"
    raise InputError(asked, fault, "Give a text or JSON file of class names, or a list.")


def _parsed(text: str, asked: str) -> Any:
    """The list or mapping in the text of a file."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            fault = f"it begins like JSON, but is not valid ({error})"
            raise InputError(asked, fault, "Give JSON, or one name per line.") from None
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        fault = f"line {lines.index('') + 1} is empty"
        raise InputError(asked, fault, "Give one name per line, for all classes.")
    names = dict(imagenet_labels())
    return [
        (found[1], found[2] or names.get(found[1], found[1]))
        if (found := _SYNSET.fullmatch(line))
        else line
        for line in lines
    ]


def _in_table(path: str, text: str) -> dict[str, str] | list[str] | None:
    """Index -> name, or the classes of a table of photos; None if it is a plain list."""
    from tf_alexnet.images.labelled import class_names  # imports OpenCV
    from tf_alexnet.images.lists import path_column, text_rows

    rows = [*text_rows(text.splitlines(keepends=True), os.path.splitext(path)[1].lower())]
    if not rows or min(map(len, rows)) < 2:
        return None
    for some in (rows, rows[1:]):  # without a header or with one
        for column in (0, 1):
            if {row[column].strip() for row in some} == set(map(str, range(len(some)))):
                return {row[column].strip(): row[1 - column].strip() for row in some}
    return None if path_column(rows) is None else class_names(path)


def _in_order(labels: Mapping[Any, Any], asked: str) -> list:
    """The names in a mapping to or from indices, in the order of the indices."""
    if all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in labels.values()):
        pairs = [(int(index), name) for name, index in labels.items()]
    elif all(_INDEX.fullmatch(str(key)) for key in labels):
        pairs = [(int(key), name) for key, name in labels.items()]
    else:
        raise InputError(
            asked,
            "neither its keys nor its values are all indices",
            'Give {"tench": 0, ...} or {"0": "tench", ...}.',
        )
    by_index = dict(pairs)
    for index in range(len(pairs)):
        if index not in by_index:
            raise InputError(
                asked,
                f"{len(pairs)} names, but none with index {index}",
                "Number the classes 0, 1, 2, ... in the order of the network's output.",
            )
    return [by_index[index] for index in range(len(pairs))]


def _label(item: Any, number: int, asked: str) -> Label:
    if isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(x, str) for x in item):
        return Label(*item)
    if isinstance(item, str | int | np.integer):
        return Label("", str(item))
    raise InputError(
        asked, f"name {number} is {item!r:.60}", 'Give names, or pairs ["n01440764", "tench"].'
    )


def _checked(
    predictions: ArrayLike, classes: int, named: bool, multi_label: bool = False
) -> np.ndarray:
    """`predictions` as (N, classes) float64 probabilities, or an InputError."""
    array = np.asarray(predictions)
    if array.ndim == 1:
        array = array[np.newaxis]
    asked = f"predictions of shape {array.shape}"
    if array.dtype.kind not in "fiu":
        raise InputError(asked, f"they hold {array.dtype}, not numbers", _TAKE_PROB)
    if array.ndim != 2:
        raise InputError(asked, f"expected (N, classes), found {array.ndim} axes", _TAKE_PROB)
    if array.shape[1] != classes:
        raise InputError(asked, *_wrong_width(array.shape[1], classes, named))
    rows = array.astype(np.float64)
    if bad := int((~np.isfinite(rows).all(axis=1)).sum()):
        raise InputError(
            asked,
            f"{bad} of {len(rows)} rows hold NaN or infinite values",
            "Check the weights and the input; a float16 network may have overflowed.",
        )
    sums = rows.sum(axis=1)
    excess = rows.max(axis=1, initial=0) - 1 if multi_label else np.abs(sums - 1)
    if (rows < 0).any() or (excess > _SUM_TOLERANCE).any():
        worst = int(excess.argmax())
        raise InputError(
            asked,
            f"these are not probabilities: row {worst} sums to {sums[worst]:.4g}, its smallest "
            f"value is {rows[worst].min():.4g}",
            _TAKE_PROB,
        )
    return rows


_TAKE_PROB = "Give the output `prob`, (N, classes) probabilities after the softmax."


def _wrong_width(width: int, classes: int, named: bool) -> tuple[str, str]:
    """Fault and advice for `predictions` with the wrong number of columns."""
    if named:
        advice = "Give one label for each column, in the order of the network's output."
        return f"{width} columns but {classes} labels", advice
    if width in (2048, 4096, 9216):
        return f"{width} columns are features of a hidden layer, not probabilities", _TAKE_PROB
    if width == 1001:
        advice = "Drop the background column, or name all columns with labels=."
        return "1001 columns, so there is a background class", advice
    advice = "Pass the class names of this network as labels=."
    return f"{width} columns, but ILSVRC-2012 has {classes} classes", advice
