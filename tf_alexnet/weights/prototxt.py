"""Reading prototxt files: the network, its classifier, and its preprocessing.

The format is protobuf's text format, the fields are those of BVLC/caffe
``src/caffe/proto/caffe.proto``. Other parts of a network definition are ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tf_alexnet.architectures import ARCHITECTURES, architecture_named
from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.weights.graph import Node, caffe_node, foreign_layer, match_graph, scalars

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
_TOKEN = re.compile(
    r"""[\s:,;]+|\#[^\n]*|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<word>[A-Za-z0-9_.+\-/]+)|(?P<mark>[{}<>\[\]])"""
)
_SCALARS = ("string", "word")

Message = dict[str, list]


class PrototxtError(ValueError):
    """The text is not in protobuf's text format."""


class Net(NamedTuple):
    """The parts of a network definition that are used.

    Attributes
    ----------
    nodes : list of Node
        Layers, without those for training only.
    input_size : int or None
        Height of the input.
    transform : dict
        The ``transform_param`` of the test phase, else the first one.
    mirror : bool or None
        Whether any ``transform_param`` mirrors photos; None if none says.
    """

    nodes: list[Node]
    input_size: int | None
    transform: Message
    mirror: bool | None


@dataclass(frozen=True)
class Declared:
    """What a name or a prototxt specifies.

    Attributes
    ----------
    architecture : str or None
        Name of the table.
    classifier : str or None
        Name of the last dense layer, if it is not ``fc8``.
    classes : int or None
        Its units.
    input_size : int or None
        Height and width of the input.
    preset : str or None
        Name of the preset, if the file specifies the preprocessing.
    mean_file : str or None
        Name of the mean image that belongs to the network.
    mirror : bool or None
        Whether photos were mirrored at random in training.
    """

    architecture: str | None = None
    classifier: str | None = None
    classes: int | None = None
    input_size: int | None = None
    preset: str | None = None
    mean_file: str | None = None
    mirror: bool | None = None


def resolve_architecture(architecture: str | os.PathLike | None) -> Declared:
    """Resolve the name of a table or the path of a prototxt.

    Parameters
    ----------
    architecture : str, path or None
        ``"bvlc_alexnet"``, ..., or the path of a ``.prototxt``.

    Returns
    -------
    Declared

    Raises
    ------
    UsageError
        If there is no such network or file.
    WeightsError
        If the file is not a prototxt, or describes an unknown network; the message names the first
        layer that differs.
    """
    if architecture is None:
        return Declared()
    if not str(architecture).endswith((".prototxt", ".pbtxt", ".pt", ".txt")):
        return Declared(architecture_named(os.fspath(architecture)).name)
    path = os.fspath(architecture)
    net = read_prototxt(path)
    match = match_graph(net.nodes)
    if match.difference or match.architecture is None:
        raise WeightsError(
            path,
            foreign_layer(net.nodes) or match.difference or "it describes no layers",
            f"Use one of: {', '.join(ARCHITECTURES)}.",
        )
    table = ARCHITECTURES[match.architecture]
    classifier = match.classifiers[0] if len(match.classifiers) == 1 else None
    units = {node.name: node.numbers.get("units") for node in net.nodes}
    return Declared(
        match.architecture,
        None if classifier == "fc8" else classifier,
        units.get(classifier),
        net.input_size,
        _preset(path, net, table.preset),
        next((os.path.basename(x) for x in scalars(net.transform, "mean_file")), None),
        net.mirror,
    )


def _preset(path: str, net: Net, base: str) -> str | None:
    """The preset that a data layer's ``transform_param`` describes, or None without one."""
    given = net.transform
    parts = [base]
    if (scalars(given, "scale") or ["1"])[-1] not in ("1", "1.0"):
        raise WeightsError(
            path,
            f"it scales photos by {given['scale'][-1]}, which no preset does",
            "Describe the preprocessing with a Preset.",
        )
    if given.get("mean_file"):
        parts = ["caffe-mean-image"]
    crops = [_number(path, x) for x in scalars(given, "crop_size")]
    size = crops[-1] if crops else net.input_size
    if base == "caffe" and size not in (None, 227):
        parts.append(f"size{size:.0f}")
    means = [_number(path, x) for x in scalars(given, "mean_value")]
    if means and len(means) not in (1, 3):
        raise WeightsError(path, f"it has {len(means)} mean values", "Give one or three.")
    if means:
        means = means * 3 if len(means) == 1 else means
        parts.append("mean" + "-".join(f"{mean:.10g}" for mean in means))
    return ".".join(parts) if given or len(parts) > 1 else None


def _number(path: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise WeightsError(path, f"{value!r} is not a number", "Correct the file.") from None


def read_prototxt(path: str | os.PathLike) -> Net:
    """Read a prototxt.

    Raises
    ------
    UsageError
        If the file can't be opened.
    WeightsError
        If it is too large, or not in protobuf's text format.
    """
    path = os.fspath(path)
    try:
        raw = Path(path).read_bytes()
        if len(raw) > MAX_BYTES:
            raise PrototxtError(f"{len(raw)} bytes are too many")
        return parse(raw.decode("utf-8"))
    except OSError as error:
        raise UsageError(
            f"architecture {path!r}",
            f"it can't be read ({error.strerror or error})",
            f"Give a prototxt that exists, or one of: {', '.join(ARCHITECTURES)}.",
        ) from None
    except ValueError as error:  # UnicodeDecodeError too
        raise WeightsError(
            path, f"not a prototxt ({error})", "Give a network definition for Caffe."
        ) from None


def parse(text: str) -> Net:
    """Parse a network definition.

    Raises
    ------
    PrototxtError
        If the text is not in protobuf's text format.
    """
    message = _message(_tokens(text), 0)
    layers = message.get("layer", []) + message.get("layers", [])
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        raise PrototxtError("no layers in it")
    nodes, transforms, size = [], [], _size(message)
    for layer in layers:
        phases = [x for rule in _messages(layer, "include") for x in scalars(rule, "phase")]
        bottoms = scalars(layer, "bottom")
        for given in _messages(layer, "input_param")[:1]:
            size = _size({"input_shape": given.get("shape", [])}) or size
        for given in [] if bottoms else _messages(layer, "transform_param")[:1]:
            transforms.insert(0 if "TEST" in phases else len(transforms), given)
        if not bottoms or "TRAIN" not in phases:
            nodes.append(caffe_node(layer))
    mirrors = [value for given in transforms for value in scalars(given, "mirror")]
    mirror = not {"true", "1"}.isdisjoint(mirrors) if mirrors else None
    return Net(nodes, size, transforms[0] if transforms else {}, mirror)


def _messages(message: Message, name: str) -> list[Message]:
    return [value for value in message.get(name, []) if isinstance(value, dict)]


def _size(message: Message) -> int | None:
    """Height of the input, from ``input_dim`` or ``input_shape``."""
    shapes = [x.get("dim", []) for x in _messages(message, "input_shape")]
    for dims in (message.get("input_dim", []), *shapes):
        if len(dims) == 4 and str(dims[2]).isdigit():
            return int(dims[2])
    return None


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token; kinds are "string", "word" and "mark"."""
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            raise PrototxtError(f"{text[at : at + 20]!r} in line {text.count(chr(10), 0, at) + 1}")
        at = found.end()
        if found.lastgroup == "string":
            yield "string", found["string"][1:-1]
        elif found.lastgroup:
            yield found.lastgroup, found[found.lastgroup]
    yield "end", ""


def _message(tokens: Iterator[tuple[str, str]], depth: int, close: str = "") -> Message:
    """Field name -> values, up to the closing bracket."""
    if depth > MAX_DEPTH:
        raise PrototxtError(f"nested more than {MAX_DEPTH} deep")
    found: Message = {}
    name = ""
    for kind, name in tokens:
        if kind in ("end", "mark") and name == close:
            return found
        if kind != "word":
            break
        values = found.setdefault(name, [])
        kind, token = next(tokens)
        if kind in _SCALARS:
            values.append(token)
        elif token in ("{", "<"):
            values.append(_message(tokens, depth + 1, "}" if token == "{" else ">"))
        elif token == "[":
            while (item := next(tokens))[0] in _SCALARS:
                values.append(item[1])
            if item[1] != "]":
                raise PrototxtError("a list without an end")
        else:
            break
    raise PrototxtError(f"it breaks off near {name or close or 'its end'!r}")
