"""`WeightArrays`: the weights of a network, independent of the file format."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES, Architecture, Dense, architecture_named
from tf_alexnet.errors import UsageError, WeightsError, one_line

# All layer names in our tables, in network order.
LAYER_ORDER = tuple(
    dict.fromkeys(layer.name for table in ARCHITECTURES.values() for layer in table.weighted)
)
_RENAMED = " -> fc8"


class LayerArrays(NamedTuple):
    """Kernel and bias of one layer, float32, in TensorFlow's layout.

    Attributes
    ----------
    kernel : ndarray of float32
        Convolution: (height, width, channels in / groups, channels out). Dense: (in, out); after a
        convolution, the rows are in the order (height, width, channels), flattened.
    bias : ndarray of float32
        (channels out,) or (out,).
    """

    kernel: np.ndarray
    bias: np.ndarray

    def __repr__(self) -> str:
        return f"<LayerArrays kernel {np.shape(self.kernel)}, bias {np.shape(self.bias)}>"


@dataclass(frozen=True)
class WeightArrays:
    """The weights of a network.

    Attributes
    ----------
    layers : mapping of str to LayerArrays
        (kernel, bias) of each layer. AlexNet's layers have Caffe's names, ``conv1`` to ``fc8``;
        other layers keep their names from the file.
    architecture : str or None
        Name of the table they belong to, if known.
    source : str
        Where they come from, for messages.
    metadata : mapping of str to str
        Other data recorded in the file (licence, origin, preset, ...).
    flattened : mapping of str to int
        Dense layer -> channels of the feature map that its rows flatten, if the file's graph shows
        it; 0 for a layer after another dense layer.
    """

    layers: Mapping[str, LayerArrays]
    architecture: str | None = None
    source: str = "arrays in memory"
    metadata: Mapping[str, str] = field(default_factory=dict)
    flattened: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        pairs = {}
        for name, pair in self.layers.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise UsageError(
                    f"layer {name!r}", "not a pair of arrays", "Give (kernel, bias) for each layer."
                )
            pairs[name] = LayerArrays(*pair)
        object.__setattr__(self, "layers", pairs)

    def __repr__(self) -> str:
        numbers = sum(np.size(array) for pair in self.layers.values() for array in pair)
        return (
            f"<WeightArrays {self.architecture or 'of an unknown network'}: "
            f"{', '.join(network_order(self.layers)) or 'no layers'}, {numbers:,} numbers, "
            f"from {one_line(self.source)}>"
        )

    @cached_property
    def digest(self) -> str:
        """``sha256:<hex>`` of names, shapes and values, independent of the file format."""
        sha = hashlib.sha256()
        for name in network_order(self.layers):
            for part, array in zip(LayerArrays._fields, self.layers[name], strict=True):
                sha.update(f"{name}/{part}:{array.shape}\n".encode())
                sha.update(np.ascontiguousarray(array, dtype="<f4").data)
        return f"sha256:{sha.hexdigest()}"

    @property
    def classes(self) -> int | None:
        """Units of `fc8`, or None if there is no such layer."""
        layer = self.layers.get("fc8")
        return None if layer is None else int(layer.bias.shape[0])

    @property
    def untrained(self) -> bool:
        """Whether they are random weights, made as an untrained control."""
        return "untrained" in self.metadata

    @property
    def set_aside(self) -> tuple[str, ...]:
        """Names of the layers that AlexNet does not have, such as a second classifier."""
        return tuple(name for name in self.layers if name not in LAYER_ORDER)

    @property
    def classifier(self) -> str:
        """Name of `fc8` in the file."""
        return self.metadata.get("renamed", "fc8").removesuffix(_RENAMED)


def network_order(names: Collection[str]) -> list[str]:
    """Layer names in the order of our tables, followed by others in alphabetical order."""
    known = [name for name in LAYER_ORDER if name in names]
    return known + sorted(name for name in names if name not in LAYER_ORDER)


def with_classifier(arrays: WeightArrays, classifier: str | None = None) -> WeightArrays:
    """`arrays` with the classifier renamed to `fc8`.

    Fine-tuning in Caffe renames the last layer so that it starts untrained (``fc8_flickr`` in
    BVLC/caffe ``models/finetune_flickr_style``, ``fc-rcnn``). The classifier is `fc8`, else the
    only layer whose name starts with it, else the only dense layer that fits after `fc7`. The
    layers of fully convolutional networks, (6, 6, 256, 4096) and (1, 1, 4096, 4096), are reshaped
    to dense ones.

    Parameters
    ----------
    arrays : WeightArrays
        As returned by a reader.
    classifier : str, optional
        Name in the file of the layer to use instead. A layer `fc8` is then dropped.

    Returns
    -------
    WeightArrays
        ``metadata["renamed"]`` is ``"<name in the file> -> fc8"`` if the two differ.

    Raises
    ------
    WeightsError
        If there is no dense layer called `classifier`.
    """
    if classifier not in (None, arrays.classifier):
        arrays = with_own_names(arrays)
    layers = {
        name: _as_dense(layer) if name in ("fc6", "fc7", "fc8") else layer
        for name, layer in arrays.layers.items()
    }
    if "fc8" in layers and classifier in (None, arrays.classifier):
        return replace(arrays, layers=layers)
    heads = _classifiers(layers)
    if classifier is None:
        # The name that we recorded, else a name like Caffe's, else the only candidate.
        chosen = [name for name in heads if name == arrays.classifier]
        chosen = chosen or [name for name in heads if name.startswith("fc8")] or heads
        if len(chosen) != 1:
            return replace(arrays, layers=layers)
        (classifier,) = chosen
    elif classifier not in heads:
        raise WeightsError(
            f"{arrays.source}, classifier {classifier!r}",
            "it has no such dense layer after fc7",
            f"Layers that could be the classifier: {', '.join(heads) or 'none'}.",
        )
    layers.pop("fc8", None)
    layers = _renamed(layers, classifier, "fc8")
    layers["fc8"] = _as_dense(layers["fc8"])
    return replace(
        arrays,
        layers=layers,
        metadata={**arrays.metadata, "renamed": classifier + _RENAMED},
        flattened=_renamed(arrays.flattened, classifier, "fc8"),
    )


def with_own_names(arrays: WeightArrays) -> WeightArrays:
    """`arrays` with the layer names of the original file; undoes `with_classifier`."""
    return replace(
        arrays,
        layers=_renamed(arrays.layers, "fc8", arrays.classifier),
        metadata={k: v for k, v in arrays.metadata.items() if k != "renamed"},
        flattened=_renamed(arrays.flattened, "fc8", arrays.classifier),
    )


def _renamed(mapping: Mapping, old: str, new: str) -> dict:
    return {new if k == old else k: v for k, v in mapping.items()}


def _classifiers(layers: Mapping[str, LayerArrays]) -> list[str]:
    """Names of the layers that could be the classifier."""
    before = layers.get("fc7")
    own = {name: x for name, x in layers.items() if name == "fc8" or name not in LAYER_ORDER}
    # In a head of several layers, those that feed another are not the classifier.
    fed = {x.kernel.shape[0] for name, x in own.items() if name != "fc8"}
    found = []
    for name, layer in own.items():
        kernel = _as_dense(layer).kernel if layer.kernel.shape[:2] == (1, 1) else layer.kernel
        fits = name.startswith("fc8") if before is None else before.bias.size == kernel.shape[0]
        if kernel.ndim == 2 and fits and (name == "fc8" or layer.bias.size not in fed):
            found.append(name)
    return found


def _as_dense(layer: LayerArrays) -> LayerArrays:
    """A convolution over the whole feature map, (height, width, in, out), as (rows, out)."""
    return LayerArrays(layer.kernel.reshape(-1, layer.kernel.shape[-1]), layer.bias)


def adapted_table(arrays: WeightArrays, table: Architecture) -> Architecture:
    """`table` with the number of classes and the head of `arrays` (`Architecture.with_head`).

    A head on `pool5` is recognised by its number of rows. One on `fc6` has as many rows as one on
    `fc7`, and can't be told from a damaged file without `fc7`, so the file must record
    ``head: fc6``.
    """
    layers, classes = arrays.layers, arrays.classes or table.classes
    if "fc8" not in layers or "fc7" in layers:
        return table.with_classes(classes)
    cut = table.with_head("fc6" if "fc6" in layers else "pool5", classes)
    if "fc6" in layers:
        own = arrays.metadata.get("head") == "fc6"
    else:
        own = layers["fc8"].kernel.shape[:1] == cut.parameter_shapes()["fc8"][0][:1]
    return cut if own else table.with_classes(classes)


def faults(
    arrays: WeightArrays, table: Architecture, needed: Collection[str] | None = None
) -> list[str]:
    """Find the reasons why `arrays` are not valid weights for `table`.

    Parameters
    ----------
    arrays : WeightArrays
        Arrays in TensorFlow's layout.
    table : Architecture
        The network, with the expected number of classes.
    needed : collection of str, optional
        Required layers (default: all, or only the convolutions if `arrays` have no dense layer).

    Returns
    -------
    list of str
        A phrase for each layer that is missing, has another shape, or contains NaN or infinite
        values; empty if there is none. Additional layers are not faults.
    """
    return _shape_mismatches(arrays, table, needed) + [
        f"{name} {part}: {array.size - int(np.isfinite(array).sum())} of {array.size} values are "
        "NaN or infinite"
        for name, layer in arrays.layers.items()
        for part, array in zip(LayerArrays._fields, layer, strict=True)
        # min and max need no temporary array
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max()))
    ]


def _shape_mismatches(
    arrays: WeightArrays, table: Architecture, needed: Collection[str] | None = None
) -> list[str]:
    """The faults in the shapes."""
    if needed is None:
        dense = any(isinstance(x, Dense) and x.name in arrays.layers for x in table.weighted)
        needed = [x.name for x in (table.weighted if dense else table.convolutions)]
    found = [f"{name} is missing" for name in needed if name not in arrays.layers]
    for name, shapes in table.parameter_shapes().items():
        layer = arrays.layers.get(name, ())
        for part, array, shape in zip(LayerArrays._fields, layer, shapes, strict=False):
            if array.shape != shape:
                found.append(f"{name} {part} has shape {array.shape}, expected {shape}")
    return found


def check_softmax(weights: WeightArrays) -> None:
    """Refuse (UsageError) to put a softmax on weights that were trained with sigmoids."""
    if weights.metadata.get("activation") == "sigmoid":
        raise UsageError(
            f"a softmax on {weights.source}",
            "these weights are multi-label: each class has a probability of its own",
            "Use load_run (--model RUN), classifier_activation='sigmoid' (AlexNet), or fc8.",
        )


def check_arrays(
    arrays: WeightArrays, table: Architecture, needed: Collection[str] | None = None
) -> None:
    """Raise an error with all faults in one message unless `arrays` fit `table`.

    Raises
    ------
    WeightsError
        If there are `faults`.
    """
    found = faults(arrays, table, needed)
    if found:
        advice = "Use a file of this network, or pass its own network as architecture=."
        others = [name for name in arrays.set_aside if any("missing" in x for x in found)]
        if others:
            found[-1] += f"; it also has {', '.join(others)}"
        if "fc8 is missing" in found[0] and (heads := _classifiers(arrays.layers)):
            advice = f"Pass the classifier: classifier={' or '.join(map(repr, heads))}."
        raise WeightsError(f"{arrays.source} as {table.name}", "; ".join(found), advice)


def fitting_architectures(arrays: WeightArrays) -> list[str]:
    """Names of the networks that fit the shapes of the layers, with any number of classes.

    All convolutions are required. A network with its head on `pool5` or `fc6` fits the table of the
    whole network (`adapted_table`). bvlc_alexnet and caffenet have the same shapes, so that the
    result contains both or neither.
    """
    return [
        table.name
        for table in ARCHITECTURES.values()
        if not _shape_mismatches(
            arrays, adapted_table(arrays, table), [x.name for x in table.convolutions]
        )
    ]


def not_alexnet(arrays: WeightArrays) -> str:
    """Why `arrays` fit no network: their faults as weights of the most similar one."""
    tables = [adapted_table(arrays, table) for table in ARCHITECTURES.values()]
    nearest = min(tables, key=lambda table: len(_shape_mismatches(arrays, table)))
    return f"not AlexNet; as {nearest.name}: {'; '.join(faults(arrays, nearest))}"


def find_table(arrays: WeightArrays | None, architecture: str | None = None) -> Architecture:
    """The table for these weights, with their number of classes and head (`adapted_table`).

    Raises
    ------
    WeightsError
        If neither the weights nor `architecture` identify the network, or they contradict each
        other.
    """
    if arrays is None:
        return architecture_named(architecture or "bvlc_alexnet")
    known = arrays.architecture
    if architecture is None and not known:
        if fitting := fitting_architectures(arrays):
            found = (
                f"its shapes fit {' and '.join(fitting)}, and neither its checksum nor its biases "
                "are those of a known network"
            )
            advice = f"Pass architecture={' or '.join(map(repr, fitting))} (--architecture)."
        else:
            found = not_alexnet(arrays)
            advice = f"Use a file of one of: {', '.join(ARCHITECTURES)}."
        raise WeightsError(arrays.source, found, advice)
    table = architecture_named(architecture or known)
    if known and known != table.name:
        raise WeightsError(
            f"{arrays.source} as {architecture}",
            f"these are {known} weights",
            f"Omit architecture, or pass {known}.",
        )
    return adapted_table(arrays, table)
