"""The networks, as tables that read like their prototxt.

Shapes, parameter counts, multiply-adds and receptive fields are derived from the tables. Names are
Caffe's blob names: `conv1` .. `fc7` are the blobs *after* their ReLU (Caffe's ReLU and Dropout work
in place), and `<name>_preact` the values before it.

Sources: ``models/bvlc_alexnet`` and ``models/bvlc_reference_caffenet`` of BVLC/caffe (deploy and
train_val prototxt); torchvision's ``models/alexnet.py``; Krizhevsky 2014, "One weird trick for
parallelizing convolutional neural networks".
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tf_alexnet.errors import InputError, LayerError, UsageError

PREACT = "_preact"
HEAD_LAYERS = ("pool5", "fc6", "fc7")  # layers a new classifier can be trained on
_PRESET_LAYER = "preset_"
_PRESET_NODE = re.compile(rf"(?:^|/){_PRESET_LAYER}([a-z0-9.-]+)")  # TensorFlow may append _1
_PRESET_SIZE = re.compile(r"\.(?:size\d+|anysize)\b")
ALL = "all"  # every blob except the input


@dataclass(frozen=True)
class Gaussian:
    """Initial weights from N(0, std^2), Caffe's `gaussian` filler."""

    std: float


@dataclass(frozen=True)
class KaimingNormal:
    """Initial weights from N(0, 2 / fan_out) (He et al. 2015)."""


@dataclass(frozen=True)
class TorchUniform:
    """Initial weights and biases from U(-a, a), a = 1 / sqrt(fan_in): torch's default."""


Filler = Gaussian | KaimingNormal | TorchUniform


@dataclass(frozen=True)
class Conv:
    """A convolution and its ReLU. `pad` is the number of zeros on each side, as in Caffe."""

    name: str
    filters: int
    kernel: int
    stride: int = 1
    pad: int = 0
    groups: int = 1
    filler: Filler = Gaussian(0.01)
    bias: float = 0.0


@dataclass(frozen=True)
class LRN:
    """Local response normalisation: the parameters of `layers.LocalResponseNormalization`."""

    name: str
    local_size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0


@dataclass(frozen=True)
class MaxPool:
    """Max pooling without padding."""

    name: str
    kernel: int = 3
    stride: int = 2
    pad = 0  # not a field


@dataclass(frozen=True)
class Dense:
    """A fully connected layer (Caffe's InnerProduct) and, if `relu`, its ReLU."""

    name: str
    units: int
    relu: bool = True
    filler: Filler = Gaussian(0.005)
    bias: float = 0.0


@dataclass(frozen=True)
class Dropout:
    """Dropout, in place: it has no blob of its own."""

    name: str
    rate: float = 0.5


@dataclass(frozen=True)
class Softmax:
    """Softmax over the classes."""

    name: str


Layer = Conv | LRN | MaxPool | Dense | Dropout | Softmax


@dataclass(frozen=True)
class LayerRow:
    """One row of a network's summary.

    Attributes
    ----------
    name, kind : str
        Caffe's blob name, and the layer's type.
    kernel, stride, pad, groups : int or None
        As in the prototxt; None if the layer has no such parameter.
    output_shape : tuple of int
        (height, width, channels) or (units,), without the batch axis.
    kernel_shape : tuple of int
        Shape of the kernel in TensorFlow's layout; empty for layers without weights.
    receptive_field : int
        Side, in input pixels, of the square that one output depends on (at most the input's side).
    centre : float
        Row and column, in the input, of the centre of output (0, 0)'s receptive field.
    step : int
        Distance in input pixels between the receptive fields of neighbouring outputs; 0 for layers
        without height and width.
    """

    name: str
    kind: str
    kernel: int | None
    stride: int | None
    pad: int | None
    groups: int | None
    output_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    receptive_field: int
    centre: float
    step: int

    @property
    def parameters(self) -> int:
        """Number of parameters in kernel and bias."""
        return math.prod(self.kernel_shape) + self.kernel_shape[-1] if self.kernel_shape else 0

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one image, without biases and activations."""
        if not self.kernel_shape:
            return 0
        return math.prod(self.kernel_shape) * math.prod(self.output_shape[:-1])


@dataclass(frozen=True)
class Architecture:
    """A network as a table.

    Attributes
    ----------
    name, title : str
        Name used in calls and files, and a one-line description.
    input_size : int
        Height and width of the input that the dense layers need.
    channels : {"BGR", "RGB"}
        Channel order of the input.
    preset : str
        Name of the preprocessing it was trained with.
    pool_rounds_up : bool
        Whether pooling rounds output sizes up, as in Caffe, or down, as in torch. At `input_size`
        the sizes are exact.
    layers : tuple of Layer
        From the input to the probabilities.
    """

    name: str
    title: str
    input_size: int
    channels: Literal["BGR", "RGB"]
    preset: str
    pool_rounds_up: bool
    layers: tuple[Layer, ...]

    def __repr__(self) -> str:
        size = self.input_size
        return (
            f"<Architecture {self.name}: input {size}x{size} {self.channels}, "
            f"{self.layers[0].name} to {self.layers[-1].name}, {self.parameters:,} parameters>"
        )

    @property
    def weighted(self) -> tuple[Conv | Dense, ...]:
        """The layers with a kernel and a bias, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Conv | Dense))

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """The convolutions, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Conv))

    @property
    def classes(self) -> int:
        """Units of the last dense layer."""
        return self.weighted[-1].units

    @property
    def blobs(self) -> tuple[str, ...]:
        """All blob names from input to output: `data`, `conv1`, ..., `prob`."""
        return ("data", *(x.name for x in self.layers if not isinstance(x, Dropout)))

    @property
    def preacts(self) -> tuple[str, ...]:
        """`<name>_preact` of every layer with a ReLU."""
        return tuple(x.name + PREACT for x in self.weighted if getattr(x, "relu", True))

    def with_classes(self, classes: int) -> Architecture:
        """The same network with another number of classes."""
        last = self.weighted[-1]
        layers = (replace(x, units=classes) if x is last else x for x in self.layers)
        return replace(self, layers=tuple(layers))

    def with_head(self, layer: str, classes: int) -> Architecture:
        """The network up to `layer`, with a new linear classifier on it.

        Parameters
        ----------
        layer : {"pool5", "fc6", "fc7"}
            Last layer to keep, with the dropout after it.
        classes : int
            Units of the classifier, which is called `fc8` as in the whole network; `prob` is its
            softmax.

        Raises
        ------
        LayerError
            If `layer` is not one of `HEAD_LAYERS`.
        """
        if layer not in HEAD_LAYERS:
            raise LayerError(
                f"a classifier on {layer!r}",
                "a classifier needs pool5 or a dense layer",
                f"Use one of {', '.join(HEAD_LAYERS)}.",
            )
        body = self.until(layer).layers
        after = self.layers[len(body)]
        dropout = (after,) if isinstance(after, Dropout) else ()
        head = (Dense("fc8", classes, relu=False, filler=Gaussian(0.01)), Softmax("prob"))
        return replace(self, layers=(*body, *dropout, *head))

    def until(self, name: str) -> Architecture:
        """The network up to the layer `name`.

        Raises
        ------
        LayerError
            If it has no such layer; a classifier on `pool5`, for example, has no `fc7`.
        """
        names = [layer.name for layer in self.layers]
        if name not in names:
            raise LayerError(
                f"layer {name!r}",
                f"this {self.name} has no such layer",
                f"Its layers are: {', '.join(names)}.",
            )
        return replace(self, layers=self.layers[: names.index(name) + 1])

    def check_blob(self, name: str) -> str:
        """Return `name` if it is a blob or `<name>_preact` of this network.

        Raises
        ------
        LayerError
            If it is neither; the message lists the valid names.
        """
        known = (*self.blobs, *self.preacts)
        if name not in known:
            raise LayerError(
                f"layer {name!r}",
                f"{self.name} has no such blob{_hint(name, known)}",
                f"Use one of: {', '.join(known)}.",
            )
        return name

    def pooled(self, size: int, layer: MaxPool) -> int:
        """Output size of `layer` for an input of size `size`."""
        steps = (size - layer.kernel) / layer.stride
        return (math.ceil(steps) if self.pool_rounds_up else math.floor(steps)) + 1

    def rows(self, input_size: int | None = None) -> Iterator[LayerRow]:
        """The summary, one row per blob, for a square input.

        Raises
        ------
        InputError
            If the input is too small for a layer.
        """
        size = input_size or self.input_size
        shape, field, centre, step = (size, size, 3), 1, 0.0, 1
        yield LayerRow("data", "Input", None, None, None, None, shape, (), 1, centre, step)
        for layer in self.layers:
            kernel = ()
            if isinstance(layer, Conv):
                side = (shape[0] - layer.kernel + 2 * layer.pad) // layer.stride + 1
                kernel = (layer.kernel, layer.kernel, shape[2] // layer.groups, layer.filters)
                shape = (side, side, layer.filters)
            elif isinstance(layer, MaxPool):
                side = self.pooled(shape[0], layer)
                shape = (side, side, shape[2])
            elif isinstance(layer, Dense):
                kernel = (math.prod(shape), layer.units)
                shape, field, centre, step = (layer.units,), size, (size - 1) / 2, 0
            elif isinstance(layer, Dropout):
                continue
            if shape[0] < 1:
                raise InputError(
                    f"input of {size}x{size}",
                    f"it is too small for layer {layer.name}",
                    "Use a larger input.",
                )
            if isinstance(layer, Conv | MaxPool):
                field = min(size, field + (layer.kernel - 1) * step)
                centre += ((layer.kernel - 1) / 2 - layer.pad) * step
                step *= layer.stride
            numbers = (getattr(layer, x, None) for x in ("kernel", "stride", "pad", "groups"))
            about = layer.name, type(layer).__name__, *numbers, shape, kernel
            yield LayerRow(*about, field, centre, step)

    def parameter_shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Layer name -> (kernel shape, bias shape), in TensorFlow's layout.

        Kernels of convolutions are (height, width, channels in / groups, channels out), those of
        dense layers (in, out); the first dense layer's rows are in the order (height, width,
        channels), flattened.
        """
        kernels = {row.name: row.kernel_shape for row in self.rows() if row.kernel_shape}
        return {name: (kernel, kernel[-1:]) for name, kernel in kernels.items()}

    @property
    def parameters(self) -> int:
        """Number of parameters in all kernels and biases."""
        return sum(row.parameters for row in self.rows())


BVLC_ALEXNET = Architecture(
    name="bvlc_alexnet",
    title="Caffe's replication of Krizhevsky et al. 2012: norm1 before pool1, two groups",
    input_size=227,
    channels="BGR",
    preset="caffe",
    pool_rounds_up=True,
    layers=(
        Conv("conv1", 96, kernel=11, stride=4),
        LRN("norm1"),
        MaxPool("pool1"),
        Conv("conv2", 256, kernel=5, pad=2, groups=2, bias=0.1),
        LRN("norm2"),
        MaxPool("pool2"),
        Conv("conv3", 384, kernel=3, pad=1),
        Conv("conv4", 384, kernel=3, pad=1, groups=2, bias=0.1),
        Conv("conv5", 256, kernel=3, pad=1, groups=2, bias=0.1),
        MaxPool("pool5"),
        Dense("fc6", 4096, bias=0.1),
        Dropout("drop6"),
        Dense("fc7", 4096, bias=0.1),
        Dropout("drop7"),
        Dense("fc8", 1000, relu=False, filler=Gaussian(0.01)),
        Softmax("prob"),
    ),
)

CAFFENET = Architecture(
    name="caffenet",
    title="Caffe's reference CaffeNet: bvlc_alexnet's shapes, but pool1 before norm1",
    input_size=227,
    channels="BGR",
    preset="caffe",
    pool_rounds_up=True,
    layers=(
        Conv("conv1", 96, kernel=11, stride=4),
        MaxPool("pool1"),
        LRN("norm1"),
        Conv("conv2", 256, kernel=5, pad=2, groups=2, bias=1.0),
        MaxPool("pool2"),
        LRN("norm2"),
        Conv("conv3", 384, kernel=3, pad=1),
        Conv("conv4", 384, kernel=3, pad=1, groups=2, bias=1.0),
        Conv("conv5", 256, kernel=3, pad=1, groups=2, bias=1.0),
        MaxPool("pool5"),
        Dense("fc6", 4096, bias=1.0),
        Dropout("drop6"),
        Dense("fc7", 4096, bias=1.0),
        Dropout("drop7"),
        Dense("fc8", 1000, relu=False, filler=Gaussian(0.01)),
        Softmax("prob"),
    ),
)

# torch's adaptive average pooling to 6x6 before fc6 is the identity at 224, so it is left out.
TORCHVISION = Architecture(
    name="torchvision",
    title="torchvision's AlexNet (Krizhevsky 2014): one tower, no normalisation, RGB",
    input_size=224,
    channels="RGB",
    preset="torchvision",
    pool_rounds_up=False,
    layers=(
        Conv("conv1", 64, kernel=11, stride=4, pad=2, filler=TorchUniform()),
        MaxPool("pool1"),
        Conv("conv2", 192, kernel=5, pad=2, filler=TorchUniform()),
        MaxPool("pool2"),
        Conv("conv3", 384, kernel=3, pad=1, filler=TorchUniform()),
        Conv("conv4", 256, kernel=3, pad=1, filler=TorchUniform()),
        Conv("conv5", 256, kernel=3, pad=1, filler=TorchUniform()),
        MaxPool("pool5"),
        Dropout("drop5"),
        Dense("fc6", 4096, filler=TorchUniform()),
        Dropout("drop6"),
        Dense("fc7", 4096, filler=TorchUniform()),
        Dense("fc8", 1000, relu=False, filler=TorchUniform()),
        Softmax("prob"),
    ),
)

COMPACT = Architecture(
    name="compact",
    title="A half-width network to train from scratch: one tower, no normalisation, RGB",
    input_size=224,
    channels="RGB",
    preset="compact",
    pool_rounds_up=False,
    layers=(
        Conv("conv1", 48, kernel=11, stride=4, pad=2, filler=KaimingNormal()),
        MaxPool("pool1"),
        Conv("conv2", 128, kernel=5, pad=2, filler=KaimingNormal()),
        MaxPool("pool2"),
        Conv("conv3", 192, kernel=3, pad=1, filler=KaimingNormal()),
        Conv("conv4", 192, kernel=3, pad=1, filler=KaimingNormal()),
        Conv("conv5", 128, kernel=3, pad=1, filler=KaimingNormal()),
        MaxPool("pool5"),
        Dropout("drop5"),
        Dense("fc6", 2048, filler=Gaussian(0.01)),
        Dropout("drop6"),
        Dense("fc7", 2048, filler=Gaussian(0.01)),
        Dense("fc8", 1000, relu=False, filler=Gaussian(0.01)),
        Softmax("prob"),
    ),
)

ARCHITECTURES = {a.name: a for a in (BVLC_ALEXNET, CAFFENET, TORCHVISION, COMPACT)}


def blob_names(
    layers: str | Iterable[str],
    table: Architecture | None = None,
    weights: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Parse layer names given by a user; duplicates are removed.

    Parameters
    ----------
    layers : str or iterable of str
        Names; each may be several, separated by commas (``"fc7,pool5"``), or ``"all"``.
    table : Architecture, optional
        Network whose blobs, except `data`, replace ``"all"``. Without it ``"all"`` is kept.
    weights : collection of str, optional
        Layers whose weights are available: ``"all"`` ends before the first that is not.

    Raises
    ------
    LayerError
        If there is no name, or a name is not a string.
    """
    given = [layers] if isinstance(layers, str) else list(layers)
    if strange := [x for x in given if not isinstance(x, str)]:
        raise LayerError(f"layer {strange[0]!r}", "not a name", 'Pass names: ["fc7", "pool5"].')
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    if not names:
        raise LayerError(f"layers {layers!r}", "no layer is named", 'Pass a name: "fc7".')
    if table is not None and ALL in names:
        weighted = {x.name for x in table.weighted}
        absent = weighted.difference(weighted if weights is None else weights)
        every = [*itertools.takewhile(lambda blob: blob not in absent, table.blobs[1:])]
        names = [x for name in names for x in (every if name == ALL else [name])]
    return tuple(dict.fromkeys(names))


# Names in other programs, in lower case without punctuation -> our blob, and the program. Only a
# hint: the same name may mean values before the ReLU there, and after it here.
_FEATURES = (
    *("conv1_preact", "conv1", "pool1", "conv2_preact", "conv2", "pool2", "conv3_preact"),
    *("conv3", "conv4_preact", "conv4", "conv5_preact", "conv5", "pool5"),
)
_CLASSIFIER = ("pool5", "fc6_preact", "fc6", "fc6", "fc7_preact", "fc7", "fc8")
_RELUS = {f"relu{x[-1]}": x for x in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")}
_FOREIGN = {
    **{f"features.{i}": (x, "torch's ") for i, x in enumerate(_FEATURES)},
    **{f"classifier.{i}": (x, "torch's ") for i, x in enumerate(_CLASSIFIER)},
    **{name: (x, "Caffe's ") for name, x in (_RELUS | {"drop6": "fc6", "drop7": "fc7"}).items()},
    **{f"{x}relu": (x, "") for x in _RELUS.values()},
    **dict.fromkeys(("features", "avgpool", "flatten"), ("pool5", "")),
    **{"fc1": ("fc6", ""), "fc2": ("fc7", ""), "fc3": ("fc8", "")},
    **dict.fromkeys(("ip", "dense", "linear", "fc"), ("fc6, fc7 or fc8", "")),
    **dict.fromkeys(("classifier", "logits", "presoftmax", "fc8presoftmax"), ("fc8", "")),
    **dict.fromkeys(("softmax", "predictions", "probs", "output"), ("prob", "")),
    "penultimate": ("fc7", ""),
    "fc8preact": ("fc8", ""),
}


def _hint(name: str, known: tuple[str, ...]) -> str:
    """Our name for a layer of another program, if it is in `known`, as the end of a message."""
    plain = re.sub(r"[^a-z0-9.]", "", name.lower().rpartition("/")[2])
    plain = re.sub(r"^.*\.(?=(features|classifier)\.)", "", plain)
    blob, whose = _FOREIGN.get(plain, ("", ""))
    blob = next((x for x in known if x.replace("_", "") == plain), blob)
    if blob.partition(",")[0] in known:
        place = ", before the ReLU" if blob.endswith(PREACT) else ""
        return f"; {whose}{name} is {blob} here{place}"
    others = [a.name for a in ARCHITECTURES.values() if name in (*a.blobs, *a.preacts)]
    return f", but {' and '.join(others)} have" if others else ""


def preset_layer(preset: str) -> str:
    """Name of the Keras layer that records the preset `preset` in a model."""
    return _PRESET_LAYER + preset


def sized_preset(preset: str, size: int | None, usual: int) -> str:
    """The name of `preset` for a model with another input size.

    Parameters
    ----------
    preset : str
        Name of a preset, with or without a size (``caffe.size224``).
    size : int or None
        Side of the input; None if it is variable or not square.
    usual : int
        Side of the preset's output without a size in its name.
    """
    base, dot, others = _PRESET_SIZE.sub("", preset).partition(".")
    variation = "" if size == usual or base == "raw" else f".size{size}" if size else ".anysize"
    return base + variation + dot + others


def carried_preset(model: object) -> str | None:
    """The name of the preset recorded in a model, or None.

    Parameters
    ----------
    model : keras.Model or SavedModel
        A model with ``layers`` (nested models are searched too), or the result of
        `tf.saved_model.load`.
    """
    for layer in getattr(model, "layers", ()):
        if layer.name.startswith(_PRESET_LAYER):
            return layer.name.removeprefix(_PRESET_LAYER)
        if (nested := carried_preset(layer)) is not None:
            return nested
    for signature in getattr(model, "signatures", {}).values():
        graph = signature.graph.as_graph_def()
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            for node in nodes:
                if found := _PRESET_NODE.search(node.name):
                    return found[1]
    return None


def architecture_named(name: str) -> Architecture:
    """The table called `name`.

    Raises
    ------
    UsageError
        If there is none; the message lists the known names.
    """
    if name not in ARCHITECTURES:
        raise UsageError(
            f"architecture {name!r}",
            "there is no such network",
            f"Use one of: {', '.join(ARCHITECTURES)}.",
        )
    return ARCHITECTURES[name]
