"""Graphs of layers in files, and their comparison with our tables.

Caffe models, prototxt and ONNX files contain a graph. It shows what arrays don't: whether
normalisation comes before pooling, strides and padding, the input of each dense layer, and which
one is the classifier.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tf_alexnet.architectures import ARCHITECTURES, LRN, Architecture, Conv, Dense, MaxPool
from tf_alexnet.wire import last

MAX_LAYERS = 1000
_TABLES = ARCHITECTURES.values()
# Layer types, by Caffe's names, that can be ignored when graphs are compared.
PASSING = frozenset(
    (
        *("ReLU", "Dropout", "Flatten", "Split", "Reshape", "Identity", "ChannelsLast"),
        *("Softmax", "SoftmaxWithLoss", "Accuracy", "Silence"),
    )
)
# Layer types that no AlexNet here has, and that change all values after them.
FOREIGN = {
    "BatchNorm": "batch normalisation",
    "BN": "batch normalisation",
    "Scale": "batch normalisation or scaling",
    "Bias": "bias layers",
    "PReLU": "PReLU",
    "LeakyReLU": "leaky ReLU",
    "ELU": "ELU",
    "Sigmoid": "sigmoid units",
    "TanH": "tanh units",
    "BNLL": "BNLL units",
    "Power": "power layers",
    "Eltwise": "residual connections",
}
# Our layers, Caffe's name for each, and the settings that are the same in all tables.
_KINDS = (
    (Conv, "Convolution", {"dilation": 1}),
    (LRN, "LRN", {"norm_region": "ACROSS_CHANNELS"}),
    (MaxPool, "Pooling", {"pool": "MAX", "pad": 0}),
    (Dense, "InnerProduct", {}),
)


@dataclass(frozen=True)
class Node:
    """One layer of a file's graph.

    Attributes
    ----------
    name : str
        Name of the layer.
    kind : str
        Its type, by Caffe's name: ``Convolution``, ``InnerProduct``, ...
    bottoms, tops : tuple of str
        The blobs it reads and writes; the same if it works in place.
    numbers : mapping
        Its settings as far as known, by the attribute names of `tf_alexnet.architectures`.
    """

    name: str
    kind: str
    bottoms: tuple[str, ...] = ()
    tops: tuple[str, ...] = ()
    numbers: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Step:
    """A layer not in `PASSING`, the one before it, and its number of output channels.

    `channels` is 0 for a vector, None if unknown.
    """

    node: Node
    before: _Step | None
    channels: int | None

    def chain(self) -> list[Node]:
        """The layers from the input to this one."""
        nodes, step = [], self
        while step is not None:
            nodes.append(step.node)
            step = step.before
        return nodes[::-1]


@dataclass(frozen=True)
class GraphMatch:
    """Result of comparing a graph with our tables.

    Attributes
    ----------
    architecture : str or None
        The table with the same layers up to the last convolution.
    difference : str or None
        The first difference from that table, or from the nearest one.
    classifiers : tuple of str
        The last layer of each chain that matches the whole table.
    flattened : dict of str to int
        Dense layer -> channels of the feature map that its inputs flatten; 0 if its input is a
        vector.
    names : dict of str to str
        Layer with weights -> its name in the table, if exactly one chain matches the table.
    """

    architecture: str | None = None
    difference: str | None = None
    classifiers: tuple[str, ...] = ()
    flattened: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def match_graph(nodes: Iterable[Node], tables: Collection[Architecture] = _TABLES) -> GraphMatch:
    """Compare a graph with each of `tables`."""
    steps = list(_steps(nodes))
    dense = [step for step in steps if step.node.kind == "InnerProduct"]
    channels = {x.node.name: x.before.channels for x in dense if x.before}
    flattened = {name: value for name, value in channels.items() if value is not None}
    read = {step.before for step in dense}
    ends = [x for x in dense if x not in read]
    ends = ends or [x for x in steps if x.node.kind == "Convolution"][-1:]
    chains = [step.chain() for step in ends]
    found = [(*_difference(chain, x), x, chain) for chain in chains for x in tables]
    whole = [(table, chain) for _, text, table, chain in found if text is None]
    if whole:
        table, chain = whole[0]
        weighted = [x.name for x in chain if x.kind in ("Convolution", "InnerProduct")]
        ours = [layer.name for layer in table.weighted]
        names = dict(zip(weighted, ours, strict=True)) if len(whole) == 1 else {}
        return GraphMatch(table.name, None, tuple(x[-1].name for _, x in whole), flattened, names)
    if not found:
        return GraphMatch(flattened=flattened)
    _, text, nearest, chain = max(found, key=lambda x: x[0])
    same = _trunk([node.kind for node in chain]) == _trunk([k for k, _ in _expected(nearest)])
    return GraphMatch(nearest.name if same else None, text, (), flattened)


def foreign_layer(nodes: Iterable[Node]) -> str | None:
    """Describe the first layer that rules out AlexNet (see `FOREIGN`), or return None."""
    nodes = list(nodes)
    if len(nodes) > MAX_LAYERS:
        return f"a network of {len(nodes)} layers, not AlexNet"
    chains = [x.chain() for x in _steps(nodes) if x.node.kind in ("InnerProduct", "Convolution")]
    if not any(node.bottoms for node in nodes):
        chains = [nodes]
    for node in itertools.chain(*chains):
        if node.kind in FOREIGN:
            return f"a network with {FOREIGN[node.kind]} (layer {node.name!r}), not AlexNet"
    return None


def _steps(nodes: Iterable[Node]) -> Iterator[_Step]:
    """The layers not in `PASSING`, in the order of the file."""
    latest: dict[str, _Step | None] = {}
    for node in nodes:
        sources = [latest.get(blob) for blob in node.bottoms]
        before = sources[0] if sources else None
        if node.kind == "ChannelsLast" and before is not None:
            before = replace(before, channels=0)  # flattened in our order from here on
        if node.kind in PASSING or not node.bottoms:
            latest.update(dict.fromkeys(node.tops, before))
            continue
        channels = before.channels if before else None
        if node.kind == "Convolution":
            channels = node.numbers.get("filters")
        elif node.kind == "InnerProduct":
            channels = 0
        elif node.kind == "Concat":
            parts = [x.channels if x else None for x in sources]
            mixed = None in parts or (0 in parts and any(parts))
            channels = None if mixed else sum(parts)
        step = _Step(node, before, channels)
        latest.update(dict.fromkeys(node.tops, step))
        yield step


def _trunk(kinds: Sequence[str]) -> list[str]:
    """The kinds up to the last convolution."""
    last = max((i for i, kind in enumerate(kinds) if kind == "Convolution"), default=-1)
    return list(kinds[: last + 1])


def _expected(table: Architecture) -> list[tuple[str, dict]]:
    """Kind and settings of the layers of a table, without Dropout and Softmax."""
    rows = [
        (kind, {**vars(layer), **implied})
        for layer in table.layers
        for known, kind, implied in _KINDS
        if isinstance(layer, known)
    ]
    rows[-1][1].pop("units", None)  # any number of classes
    return rows


def _difference(chain: list[Node], table: Architecture) -> tuple[int, str | None]:
    """Index and description of a chain's first difference from a table, or (length, None)."""
    expected = _expected(table)
    for index, (kind, numbers) in enumerate(expected):
        wanted = f"{table.name} has {kind} ({numbers['name']})"
        if index == len(chain):
            return index, f"it ends after {chain[-1].name!r} where {wanted}"
        node = chain[index]
        if node.kind != kind:
            return index, f"layer {node.name!r} is {node.kind} where {wanted}"
        for name, value in node.numbers.items():
            if name in numbers and not _same(value, numbers[name]):
                return index, (
                    f"layer {node.name!r} has {name} {value}, {numbers['name']} of {table.name} "
                    f"has {numbers[name]}"
                )
    text = None
    if len(chain) > len(expected):
        extra = chain[len(expected)]
        text = f"layer {extra.name!r} ({extra.kind}) follows the last of {table.name}"
    return len(expected), text


def _same(value: object, wanted: object) -> bool:
    if isinstance(value, str) or isinstance(wanted, str):
        return value == wanted
    return math.isclose(value, wanted, rel_tol=1e-5)  # files hold float32


# V1LayerParameter.LayerType in BVLC/caffe src/caffe/proto/caffe.proto.
_V1_KINDS = {
    **{1: "Accuracy", 2: "BNLL", 3: "Concat", 4: "Convolution", 6: "Dropout", 8: "Flatten"},
    **{14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 19: "Sigmoid", 20: "Softmax"},
    **{21: "SoftmaxWithLoss", 22: "Split", 23: "TanH", 25: "Eltwise", 26: "Power"},
    **{36: "Silence", 39: "Deconvolution"},
}
# Prototxt files of 2014 have INNER_PRODUCT and SOFTMAX_LOSS.
_SPELLINGS = {kind.upper(): kind for kind in _V1_KINDS.values()} | {"SOFTMAXLOSS": _V1_KINDS[21]}
# Kind -> (message of its settings, our name for each setting -> Caffe's default).
_SETTINGS = {
    "Convolution": (
        "convolution_param",
        {"filters": None, "kernel": None, "stride": 1, "pad": 0, "groups": 1, "dilation": 1},
    ),
    "InnerProduct": ("inner_product_param", {"units": None, "transpose": 0}),
    "LRN": ("lrn_param", {"local_size": 5, "alpha": 1.0, "beta": 0.75, "k": 1.0, "norm_region": 0}),
    "Pooling": ("pooling_param", {"pool": 0, "kernel": None, "stride": 1, "pad": 0}),
}
_FIELDS = {
    "filters": "num_output",
    "units": "num_output",
    "kernel": "kernel_size",
    "groups": "group",
}
_VALUES = {
    "pool": {0: "MAX", 1: "AVE", 2: "STOCHASTIC"},
    "norm_region": {0: "ACROSS_CHANNELS", 1: "WITHIN_CHANNEL"},
}


def caffe_node(layer: Mapping[str, Sequence]) -> Node:
    """A Caffe layer as a `Node`, with Caffe's defaults.

    `layer` maps the field names of a LayerParameter or V1LayerParameter to lists of values, which
    are text if they come from a prototxt.
    """
    kind = (scalars(layer, "type") or [""])[-1]
    kind = _V1_KINDS.get(kind, str(kind))
    kind = _SPELLINGS.get(kind.replace("_", ""), kind)
    message, defaults = _SETTINGS.get(kind, ("", {}))
    given = last(layer, message)
    numbers = {}
    if isinstance(given, dict):
        numbers = {name: _setting(given, name, value) for name, value in defaults.items()}
    return Node(
        (scalars(layer, "name") or [""])[-1],
        kind,
        tuple(scalars(layer, "bottom")),
        tuple(scalars(layer, "top")),
        {name: value for name, value in numbers.items() if value is not None},
    )


def scalars(message: Mapping[str, Sequence], name: str) -> list:
    """The values of a field that are not messages."""
    return [value for value in message.get(name, ()) if not isinstance(value, dict)]


def _setting(given: Mapping[str, Sequence], name: str, default: float | None) -> Any:
    """A setting, which may be given for height and width (see `one_or_both`)."""
    found = scalars(given, _FIELDS.get(name, name)) or [
        (scalars(given, f"{name}_{axis}") or [default])[-1] for axis in "hw"
    ]
    value = one_or_both([_number(x) for x in found])
    return _VALUES.get(name, {}).get(value, value)


def one_or_both(values: Sequence) -> Any:
    """The value of a setting for height and width, or text such as "3x5" if they differ."""
    return values[0] if len(set(values)) == 1 else "x".join(map(str, values))


def _number(value: Any) -> Any:
    """`value` as a number, if possible."""
    try:
        number = float(value) if isinstance(value, str) else value
        return int(number) if number == int(number) else number
    except (TypeError, ValueError, OverflowError):
        return value
