"""`RunRecord`: what ``run.json`` holds, checked field by field when it comes from elsewhere."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tf_alexnet.architectures import ARCHITECTURES, HEAD_LAYERS
from tf_alexnet.errors import PresetError, WeightsError
from tf_alexnet.images import preset_named
from tf_alexnet.training.folders import PhotoSet
from tf_alexnet.version import VERSION

if TYPE_CHECKING:
    from tf_alexnet.extraction.reader import Failure

FORMAT = 1  # of run.json
MODES = ("head", "finetune", "scratch")
MAX_BYTES = 1 << 26  # the names of a million photos take 30 MB
_DIGEST = re.compile("sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` holds.

    Attributes
    ----------
    classes : tuple of str
        Names of the classes, in the order of the network's outputs.
    architecture, preset : str
        The network's table and the preprocessing it was trained with.
    layer : {"pool5", "fc6", "fc7"}
        What the classifier `fc8` stands on; with ``fc7`` the network is whole.
    mode : {"head", "finetune", "scratch"}
        What was trained: the classifier, it and layers below, or everything.
    base : dict of str to str
        ``digest`` and ``source`` of the weights it started from; empty for ``scratch``.
    settings : dict of str to str, int, float, bool or None
        Everything that the result depends on.
    split : dict
        ``drawn`` (bool), ``train`` and ``val`` (photos used), ``skipped`` (photos that could not be
        read), and where the parts were drawn here, ``val_photos``: paths below the data's folder.
    metrics : dict of str to float
        ``train_accuracy``, ``val_accuracy`` (0..1) and others.
    weights_digest : str
        `WeightArrays.digest` of ``weights.safetensors``.
    versions : dict of str to str
        Of the software that made it.
    multi_label : bool
        Whether a photo has any number of labels, each with a probability of its own (a sigmoid).
        `metrics` then has ``val_map`` (mean average precision, 0..1) in place of ``val_accuracy``.
    """

    classes: tuple[str, ...]
    architecture: str
    preset: str
    layer: str
    mode: str
    base: Mapping[str, str]
    settings: Mapping[str, Any]
    split: Mapping[str, Any]
    metrics: Mapping[str, float]
    weights_digest: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    multi_label: bool = False

    def text(self) -> str:
        """As the JSON of ``run.json``; names of any bytes survive as escaped surrogates."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def parsed(cls, text: str, source: str) -> RunRecord:
        """The record that such a JSON holds.

        Raises
        ------
        WeightsError
            If it is of another version or anything but that; `source` is named.
        """
        try:
            content = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise not_a_run(source, f"it is no JSON ({str(error)[:80]})") from None
        if not isinstance(content, dict) or "format" not in content:
            raise not_a_run(source, "it does not record a training")
        if content.pop("format") != FORMAT:
            raise WeightsError(
                source,
                f"it is of another version than this tf_alexnet ({VERSION}) reads",
                "Use the version that made it: `versions` in that file names it.",
            )
        content.setdefault("multi_label", False)  # runs of version 0.1.0 lack it
        names = {x.name for x in fields(cls)}
        if content.keys() != names:
            wrong = ", ".join(sorted(str(x)[:40] for x in content.keys() ^ names)[:5])
            raise not_a_run(source, f"missing or unknown entries: {wrong}")
        for name, (holds, expected) in _CHECKS.items():
            if not holds(content[name]):
                raise not_a_run(source, f"{name} is not {expected}")
        return cls(**{**content, "classes": tuple(content["classes"])})


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} in it")


def not_a_run(source: str, found: str) -> WeightsError:
    return WeightsError(source, found, "Name a folder that `tf-alexnet train` made, unchanged.")


def _is_names(value: Any) -> bool:
    named = isinstance(value, list) and all(isinstance(x, str) and x for x in value)
    return named and len(value) > 1 and len(set(value)) == len(value)


def _is_flat(*kinds: type):
    def holds(value: Any) -> bool:
        return isinstance(value, dict) and all(type(x) in kinds for x in value.values())

    return holds


def _is_split(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("drawn")) is not bool:
        return False
    counts = all(type(value.get(x)) is int and value[x] >= 0 for x in ("train", "val", "skipped"))
    names = value.get("val_photos", [])
    return counts and isinstance(names, list) and all(isinstance(x, str) for x in names)


def _is_metrics(value: Any) -> bool:
    if not _is_flat(int, float)(value) or not all(map(math.isfinite, value.values())):
        return False
    return 0 <= value.get("val_accuracy", value.get("val_map", -1)) <= 1


def _is_one_of(known: Sequence[str]):
    return lambda value: isinstance(value, str) and value in known


def _is_preset(value: Any) -> bool:
    try:
        return isinstance(value, str) and preset_named(value).name == value
    except PresetError:
        return False


_CHECKS = {
    "classes": (_is_names, "a list of two or more different names"),
    "architecture": (_is_one_of(tuple(ARCHITECTURES)), f"one of {', '.join(ARCHITECTURES)}"),
    "preset": (_is_preset, "a known preset"),
    "layer": (_is_one_of(HEAD_LAYERS), f"one of {', '.join(HEAD_LAYERS)}"),
    "mode": (_is_one_of(MODES), f"one of {', '.join(MODES)}"),
    "base": (_is_flat(str), "a table of texts"),
    "settings": (_is_flat(str, int, float, bool, type(None)), "a flat table"),
    "split": (_is_split, "a split of photos"),
    "metrics": (_is_metrics, "a table of finite numbers with val_accuracy or val_map in 0..1"),
    "weights_digest": (
        lambda x: isinstance(x, str) and bool(_DIGEST.fullmatch(x)),
        "a SHA-256 digest",
    ),
    "versions": (_is_flat(str), "a table of texts"),
    "multi_label": (lambda x: isinstance(x, bool), "true or false"),
}


def split_record(photos: PhotoSet, skipped: Sequence[Failure] = ()) -> dict[str, Any]:
    """The `RunRecord.split` of these photos; `skipped` are those that could not be read."""
    bad = {failure.path for failure in skipped}
    train, val = ([x for x in part if x.path not in bad] for part in (photos.train, photos.val))
    found = {"drawn": photos.split, "train": len(train), "val": len(val), "skipped": len(bad)}
    if photos.split:
        found["val_photos"] = [photos.name_of(example) for example in photos.val]
    return found
