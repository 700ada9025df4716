"""The layers of a network as a file describes them, compared with our tables.

Caffe models, prototxt and ONNX files hold a graph beside or instead of arrays. It tells what no
array does: whether normalisation comes before pooling, strides and padding, which layer each dense
layer reads, and which one is the classifier.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tf_alexnet.architectures import ARCHITECTURES, LRN, Architecture, Conv, Dense, MaxPool

MAX_LAYERS = 1000
# Layer types, by Caffe's names, that hand on the values of their input, or only rectify them.
PASSING = frozenset(
    (
        *("ReLU", "Dropout", "Flatten", "Split", "Reshape", "Identity", "ChannelsLast"),
        *("Softmax", "SoftmaxWithLoss", "Accuracy", "Silence"),
    )
)
# Those that no AlexNet here has and that change every number behind them.
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
_KINDS = {Conv: "Convolution", LRN: "LRN", MaxPool: "Pooling", Dense: "InnerProduct"}


@dataclass(frozen=True)
class Node:
    """One layer of a file's graph.

    Attributes
    ----------
    name, kind : str
        Its name, and its type by Caffe's name for it (``Convolution``, ``InnerProduct``, ...).
    bottoms, tops : tuple of str
        The blobs it reads and writes; the same one where it works in place.
    numbers : mapping
        What is known of its settings, by the attribute names of `tf_alexnet.architectures`.
    """

    name: str
    kind: str
    bottoms: tuple[str, ...] = ()
    tops: tuple[str, ...] = ()
    numbers: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Step:
    """A layer that computes something, the one before it, and the channels of its result.

    `channels` is 0 for a vector, None where it can't be told.
    """

    node: Node
    before: Step | None
    channels: int | None

    def chain(self) -> list[Node]:
        """The layers from the input to this one."""
        nodes, step = [], self
        while step is not None:
            nodes.append(step.node)
            step = step.before
        return nodes[::-1]


@dataclass(frozen=True)
class Told:
    """What a graph tells.

    Attributes
    ----------
    architecture : str or None
        The table with the same layers as far as the last convolution.
    difference : str or None
        The first layer that differs from that table, or from the nearest one.
    classifiers : tuple of str
        The last layer of each chain that agrees with the table to its end.
    flattened : dict of str to int
        Dense layer -> channels of the map its inputs flatten, 0 if it reads a vector.
    names : dict of str to str
        Layer with weights -> its name in the table, if exactly one chain agrees with the table.
    """

    architecture: str | None = None
    difference: str | None = None
    classifiers: tuple[str, ...] = ()
    flattened: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def told_by(nodes: Iterable[Node]) -> Told:
    """Compare a graph with every table."""
    steps = list(_steps(nodes))
    dense = [step for step in steps if step.node.kind == "InnerProduct"]
    flattened = {
        x.node.name: x.before.channels
        for x in dense
        if x.before is not None and x.before.channels is not None
    }
    read = {step.before for step in dense}
    ends = [step.chain() for step in dense if step not in read] or [
        step.chain() for step in steps if step.node.kind == "Convolution"
    ][-1:]
    found = [(*_difference(chain, x), x, chain) for chain in ends for x in ARCHITECTURES.values()]
    whole = [(table, chain) for _, text, table, chain in found if text is None]
    if whole:
        table, chain = whole[0]
        weighted = [x.name for x in chain if x.kind in ("Convolution", "InnerProduct")]
        ours = [layer.name for layer in table.weighted]
        names = dict(zip(weighted, ours, strict=True)) if len(whole) == 1 else {}
        return Told(table.name, None, tuple(x[-1].name for _, x in whole), flattened, names)
    if not found:
        return Told(flattened=flattened)
    _, text, nearest, chain = max(found, key=lambda x: x[0])
    same = _trunk([node.kind for node in chain]) == _trunk([k for k, _ in _expected(nearest)])
    return Told(nearest.name if same else None, text, (), flattened)


def foreign_layer(nodes: Iterable[Node]) -> str | None:
    """Words for the first layer of a type that no network here has, on the way to a dense layer."""
    nodes = list(nodes)
    if len(nodes) > MAX_LAYERS:
        return f"a network of {len(nodes)} layers, not AlexNet"
    chains = [x.chain() for x in _steps(nodes) if x.node.kind in ("InnerProduct", "Convolution")]
    if not any(node.bottoms for node in nodes):
        chains = [nodes]
    for chain in chains:
        for node in chain:
            if node.kind in FOREIGN:
                return f"a network with {FOREIGN[node.kind]} (layer {node.name!r}), not AlexNet"
    return None


def _steps(nodes: Iterable[Node]) -> Iterator[Step]:
    """The layers that compute something, in the order of the file."""
    latest: dict[str, Step | None] = {}
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
        step = Step(node, before, channels)
        latest.update(dict.fromkeys(node.tops, step))
        yield step


def _trunk(kinds: Sequence[str]) -> list[str]:
    """The kinds as far as the last convolution."""
    last = max((i for i, kind in enumerate(kinds) if kind == "Convolution"), default=-1)
    return list(kinds[: last + 1])


def _expected(table: Architecture) -> list[tuple[str, dict]]:
    """Kind and settings of the layers of a table, Dropout and Softmax left out."""
    rows = []
    for layer in table.layers:
        if isinstance(layer, Conv):
            names = ("filters", "kernel", "stride", "pad", "groups")
        elif isinstance(layer, LRN):
            names = ("local_size", "alpha", "beta", "k")
        elif isinstance(layer, MaxPool):
            names = ("kernel", "stride")
        elif isinstance(layer, Dense):
            names = ("units",)
        else:
            continue
        numbers = {"name": layer.name, **{name: getattr(layer, name) for name in names}}
        if isinstance(layer, MaxPool):
            numbers |= {"pool": "MAX", "pad": 0}
        rows.append((_KINDS[type(layer)], numbers))
    del rows[-1][1]["units"]  # any number of classes
    return rows


def _difference(chain: list[Node], table: Architecture) -> tuple[int, str | None]:
    """Where a chain first differs from a table, and how; None if it does not."""
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
    if len(chain) > len(expected):
        extra = chain[len(expected)]
        return len(
            expected
        ), f"layer {extra.name!r} ({extra.kind}) follows the last of {table.name}"
    return len(expected), None


def _same(value: object, wanted: object) -> bool:
    if isinstance(value, str) or isinstance(wanted, str):
        return value == wanted
    return math.isclose(value, wanted, rel_tol=1e-5)  # float32 in files


# Caffe's messages. Name of the settings' message -> (field number in LayerParameter, in
# V1LayerParameter, {field number: name}); from BVLC/caffe src/caffe/proto/caffe.proto.
SETTINGS = {
    "convolution_param": (
        106,
        10,
        {
            **{1: "num_output", 3: "pad", 4: "kernel_size", 5: "group", 6: "stride"},
            **{9: "pad_h", 10: "pad_w", 11: "kernel_h", 12: "kernel_w"},
            **{13: "stride_h", 14: "stride_w", 18: "dilation"},
        },
    ),
    "inner_product_param": (117, 17, {1: "num_output", 6: "transpose"}),
    "lrn_param": (
        118,
        18,
        {1: "local_size", 2: "alpha", 3: "beta", 4: "norm_region", 5: "k"},
    ),
    "pooling_param": (
        121,
        19,
        {
            **{1: "pool", 2: "kernel_size", 3: "stride", 4: "pad", 5: "kernel_h", 6: "kernel_w"},
            **{7: "stride_h", 8: "stride_w", 9: "pad_h", 10: "pad_w"},
        },
    ),
}
# V1LayerParameter.LayerType, as numbers in models and as names in text.
V1_KINDS = {
    **{1: "ACCURACY", 2: "BNLL", 3: "CONCAT", 4: "CONVOLUTION", 6: "DROPOUT", 8: "FLATTEN"},
    **{14: "INNER_PRODUCT", 15: "LRN", 17: "POOLING", 18: "RELU", 19: "SIGMOID"},
    **{20: "SOFTMAX", 21: "SOFTMAX_LOSS", 22: "SPLIT", 23: "TANH", 25: "ELTWISE", 26: "POWER"},
    **{36: "SILENCE", 39: "DECONVOLUTION"},
}
_CAFFE_KINDS = {
    **{"ACCURACY": "Accuracy", "CONCAT": "Concat", "CONVOLUTION": "Convolution"},
    **{"DROPOUT": "Dropout", "FLATTEN": "Flatten", "INNER_PRODUCT": "InnerProduct"},
    **{"POOLING": "Pooling", "RELU": "ReLU", "SIGMOID": "Sigmoid", "SOFTMAX": "Softmax"},
    **{"SOFTMAX_LOSS": "SoftmaxWithLoss", "SPLIT": "Split", "TANH": "TanH"},
    **{"ELTWISE": "Eltwise", "POWER": "Power", "SILENCE": "Silence"},
    **{"DECONVOLUTION": "Deconvolution"},
}


def caffe_node(
    name: str,
    kind: str | int,
    bottoms: Sequence[str],
    tops: Sequence[str],
    settings: Mapping[str, Mapping[str, Sequence]],
) -> Node:
    """A layer of Caffe's as a `Node`, with Caffe's defaults.

    Parameters
    ----------
    name : str
        The layer's name.
    kind : str or int
        ``"Convolution"``, or ``"CONVOLUTION"`` or its number in files of 2014.
    bottoms, tops : sequence of str
        Blobs read and written.
    settings : mapping
        ``"convolution_param"`` and the like -> field name -> values.
    """
    kind = V1_KINDS.get(kind, str(kind))
    kind = _CAFFE_KINDS.get(kind, kind)
    numbers: dict[str, float | str] = {}
    if kind == "Convolution" and "convolution_param" in settings:
        given = settings["convolution_param"]
        numbers = {"kernel": _side(given, "kernel", None), "stride": _side(given, "stride", 1)}
        numbers |= {"pad": _side(given, "pad", 0), "groups": _one(given, "group", 1)}
        numbers["filters"] = _one(given, "num_output", None)
        if _one(given, "dilation", 1) != 1:
            numbers["stride"] = f"{numbers['stride']} and dilation"
    elif kind == "InnerProduct" and "inner_product_param" in settings:
        numbers = {"units": _one(settings["inner_product_param"], "num_output", None)}
        if _one(settings["inner_product_param"], "transpose", 0) not in (0, "false"):
            numbers["transposed"] = True
    elif kind == "LRN" and "lrn_param" in settings:
        given = settings["lrn_param"]
        numbers = {"local_size": _one(given, "local_size", 5), "alpha": _one(given, "alpha", 1.0)}
        numbers |= {"beta": _one(given, "beta", 0.75), "k": _one(given, "k", 1.0)}
        if _one(given, "norm_region", 0) not in (0, "ACROSS_CHANNELS"):
            numbers["local_size"] = f"{numbers['local_size']} within each channel"
    elif kind == "Pooling" and "pooling_param" in settings:
        given = settings["pooling_param"]
        pool = _one(given, "pool", 0)
        numbers = {"pool": {0: "MAX", 1: "AVE", 2: "STOCHASTIC"}.get(pool, str(pool))}
        numbers |= {"kernel": _side(given, "kernel", None), "stride": _side(given, "stride", 1)}
        numbers["pad"] = _side(given, "pad", 0)
    numbers = {k: v for k, v in numbers.items() if v is not None}
    return Node(name, kind, tuple(bottoms), tuple(tops), numbers)


def _one(given: Mapping[str, Sequence], name: str, default):
    """The last value of a field, as protobuf merges them."""
    return given[name][-1] if given.get(name) else default


def _side(given: Mapping[str, Sequence], name: str, default):
    """A setting that may be given for height and width; words where the two differ."""
    both = given.get("kernel_size" if name == "kernel" else name) or ()
    if not both:
        both = [_one(given, f"{name}_{axis}", default) for axis in "hw"]
    return both[0] if len(set(both)) == 1 else "x".join(map(str, both))
