"""`Source`: a network to export, with its preprocessing, classes and origin."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_alexnet.architectures import Architecture, Dense
from tf_alexnet.errors import PresetError, UsageError, one_line
from tf_alexnet.images import Preset, as_preset, recorded_name, resolve
from tf_alexnet.images.mean_image import Mean
from tf_alexnet.labels import Label, Labels, imagenet_labels, read_labels
from tf_alexnet.training.run import Run, find_run
from tf_alexnet.weights import WeightArrays, check_softmax, identify_weights, known_weights
from tf_alexnet.weights.resolve import (
    as_far_as,
    fitted_layers,
    last_features,
    resolve_weights,
)

if TYPE_CHECKING:
    import keras

LABELS = "labels.txt"
_PROBABILITIES = "prob"
_IMAGENET = 1000


@dataclass(frozen=True)
class Source:
    """A network to export.

    Attributes
    ----------
    arrays : WeightArrays
        The layers of `table` only; the classifier is called `fc8`.
    table : Architecture
        The network up to the last layer with weights.
    preset : Preset
        Preprocessing; its name is recorded in the export.
    mean_image : ndarray of float32 (S, S, 3), or None
        The mean image, if `preset` subtracts one.
    labels : tuple of Label
        The classes in the order of `prob`; empty for a network without a classifier.
    trained_as : str or None
        Catalogue name of the weights, if they are known.
    licence : str
        Licence of the weights, if known.
    origin : str
        Origin of the weights in one line: the file name, or the RUN and its training.
    """

    arrays: WeightArrays
    table: Architecture
    preset: Preset
    mean_image: np.ndarray | None
    labels: tuple[Label, ...]
    trained_as: str | None
    licence: str
    origin: str

    @property
    def features(self) -> str:
        """The blob before the classifier: `fc7`, or the layer that a classifier was trained on."""
        return last_features(self.arrays, self.table)

    @property
    def blobs(self) -> tuple[str, ...]:
        """Outputs of every export: the features and, if there is a classifier, `prob`."""
        return (self.features, _PROBABILITIES) if self.labels else (self.features,)

    @property
    def labels_text(self) -> str:
        """The classes, one per line, each after its synset id if it has one."""
        return "".join(f"{one_line(f'{x.synset} {x.label}'.strip())}\n" for x in self.labels)

    def shape(self, blob: str) -> tuple[int, ...]:
        """Shape of a blob, without the batch axis."""
        return next(row.output_shape for row in self.table.rows() if row.name == blob)


def open_source(
    model: str | os.PathLike | Run | WeightArrays | keras.Model,
    *,
    architecture: str | None = None,
    preset: str | Preset | None = None,
    mean_image: Mean = None,
    labels: Labels | None = None,
) -> Source:
    """Load a network to export; parameters and errors as in `export_model`."""
    run = find_run(model)
    if run is not None:
        if architecture is not None:
            raise UsageError(
                f"architecture {architecture!r} with a RUN",
                f"the RUN records its own, {run.record.architecture}",
                "Leave it out.",
            )
        model, architecture = run.arrays, run.record.architecture
    elif "keras" in sys.modules and isinstance(model, sys.modules["keras"].Model):
        from tf_alexnet.blobs import arrays_of

        model = arrays_of(model)
    if model is None:
        raise UsageError("export_model(None)", "it needs weights", "Pass a RUN or a weight file.")
    arrays, whole = resolve_weights(model, architecture)
    check_softmax(arrays)
    table = as_far_as(whole, arrays)
    layers = fitted_layers(arrays, table, whole, None)
    record = _preset(arrays, table, preset, mean_image)
    known = identify_weights(arrays).name
    kept = {k: v for k, v in arrays.metadata.items() if k != "renamed"}
    metadata = {**kept, "preset": recorded_name(record[0])}
    channels = table.convolutions[-1].filters
    dense = [x.name for x in table.weighted if isinstance(x, Dense)]
    arrays = replace(
        arrays,
        layers=layers,
        metadata=metadata,
        architecture=table.name,
        flattened={name: channels if name == dense[0] else 0 for name in dense},
    )
    return Source(
        arrays,
        table,
        *record,
        _labels(arrays, run, labels),
        known,
        _licence(arrays, known),
        _origin(arrays, run, known),
    )


def _preset(
    arrays: WeightArrays, table: Architecture, preset: Any, mean_image: Mean
) -> tuple[Preset, np.ndarray | None]:
    trained = as_preset(arrays.metadata.get("preset") or table.preset)
    record, mean = resolve(preset or trained, mean_image)
    if record.size != table.input_size:
        makes = f"images of {record.size}x{record.size}" if record.size else "no fixed size"
        raise PresetError(
            f"preset {record.name!r} for {table.name}",
            f"it makes {makes}, and the network takes {table.input_size}x{table.input_size}",
            f"Use {table.preset!r}.",
        )
    return record, mean


def _labels(arrays: WeightArrays, run: Run | None, labels: Labels | None) -> tuple[Label, ...]:
    """A label for each class."""
    classes = arrays.classes
    if classes is None:
        return ()
    if labels is not None:
        found = read_labels(labels)
    elif run is not None:
        found = read_labels(list(run.record.classes))
    elif classes == _IMAGENET:
        found = imagenet_labels()
    else:
        found = read_labels([f"class {i}" for i in range(classes)])
    if len(found) != classes:
        raise UsageError(
            "labels",
            f"{len(found)} names for {classes} classes",
            "Give one per class, in the order of the network's output.",
        )
    return found


def _origin(arrays: WeightArrays, run: Run | None, known: str | None) -> str:
    name = one_line(Path(arrays.source).name)
    if run is not None:
        record = run.record
        accuracy = record.metrics.get("val_accuracy")
        of = f"{record.split['train']:,} photos"
        reached = "" if accuracy is None else f", validation accuracy {accuracy:.1%}"
        name = f"RUN {one_line(run.folder.absolute().name)}: {record.mode}, {of}{reached}"
    if arrays.untrained:
        return name
    if known is None:
        return name if run else f"{name}, not a known training"
    return f"{name}; convolutions of {known}"


def _licence(arrays: WeightArrays, known: str | None) -> str:
    recorded = arrays.metadata.get("licence")
    return recorded or (known_weights(known).licence if known else "not recorded")
