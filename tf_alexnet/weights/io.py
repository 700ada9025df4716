"""Read a weight file and find out which network it holds; write one; convert one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tf_alexnet.architectures import ALL, ARCHITECTURES, BVLC_ALEXNET, blob_names
from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.weights.arrays import WeightArrays, find_table, with_classifier
from tf_alexnet.weights.catalog import KnownWeights, known_weights, names, published_file
from tf_alexnet.weights.download import expected_record, find_weights
from tf_alexnet.weights.identify import FOUND_ANEW, Identification, read_identified
from tf_alexnet.weights.prototxt import Declared, resolve_architecture

if TYPE_CHECKING:
    import keras


def read_weights(path: str | os.PathLike, classifier: str | None = None) -> WeightArrays:
    """Read a weight file of any supported format and find out which network it holds.

    Parameters
    ----------
    path : str or path
        A file of any format in `tf_alexnet.weights.formats`, told by its content.
    classifier : str, optional
        Layer of the file to use as `fc8`, where the file has several classifiers.

    Returns
    -------
    WeightArrays
        float32 arrays in TensorFlow's layout. `architecture` comes from the file's checksum, its
        convolutions, its own record, its shapes or its name, in this order, and is None where they
        don't tell. `metadata` holds what the file recorded, and from here ``preset`` (unless
        recorded), ``identified`` (the trained network's name), ``identified_by``, and ``renamed``
        if the classifier has another name than `fc8` in the file.

    Raises
    ------
    WeightsError
        If the file is missing, damaged or not a weight file, or has the name and size of a
        published file, but not its checksum.

    Warns
    -----
    UserWarning
        If the file was found by the name of other weights than it holds, or if its kernels
        contradict its biases.
    """
    arrays, known = read_identified(path, classifier)
    other = _other_network(known, expected_record(path))
    for problem in filter(None, (known.contradiction, other)):
        warnings.warn(f"{os.fspath(path)}: {problem}", stacklevel=2)
    metadata = {**arrays.metadata, "identified_by": known.how}
    if known.name is not None:
        metadata["identified"] = known.name
        if known.training is None:
            metadata["identified_digest"] = arrays.digest  # nothing else identifies the arrays
    if known.preset is not None and (
        known.architecture != arrays.architecture or "preset" not in metadata
    ):
        metadata["preset"] = known.preset
    return replace(
        arrays, architecture=known.architecture or arrays.architecture, metadata=metadata
    )


def check_layers(
    layers: str | Sequence[str], weights: str | None = None, architecture: str | None = None
) -> None:
    """Refuse layers that a network won't have, before its weights are downloaded or loaded.

    A file is read only where a name is unknown, since its classifier may be called so. Names that
    begin with ``fc8`` pass for the same reason.

    Raises
    ------
    LayerError
        If there is no such blob; the message lists the known ones.
    """
    file = weights is not None and os.path.isfile(weights)
    table = ARCHITECTURES.get(resolve_architecture(architecture).architecture)
    if table is None and weights in names():
        table = ARCHITECTURES[known_weights(weights).architecture]
    tables = [table] if table else ARCHITECTURES.values()
    known = {ALL, *(x for one in tables for x in (*one.blobs, *one.preacts))}
    for name in blob_names(layers):
        if name in known or name.startswith("fc8"):
            continue
        if file:
            arrays = read_weights(weights)
            table = table or find_table(arrays)
            known.add(arrays.classifier)
        if name not in known:
            (table or BVLC_ALEXNET).check_blob(name)


def _other_network(known: Identification, expected: KnownWeights | None) -> str | None:
    """A phrase if a file found by the name of `expected` holds another network."""
    if expected is None or not known.candidates:
        return None
    found = known.name or known.architecture
    if known.architecture in (None, expected.architecture):
        if expected.fingerprint in (None, known.training):
            return None
        found = known.name or "an unknown training"
    return f"found as {expected.name}, but it is {found} (by {known.how})"


def write_weights(
    arrays: WeightArrays | keras.Model,
    path: str | os.PathLike,
    form: str | None = None,
    **options: Any,
) -> None:
    """Write a weight file in the format that the suffix names.

    Parameters
    ----------
    arrays : WeightArrays or keras.Model
        What to write. The layers of a model have the names that `AlexNet` gives them.
    path : str or path
        Where to.
    form : str, optional
        For formats that have several: "list" or "dict" (.npy), "keras" or "caffe" (.h5).
    **options
        Of the format's own `write` in `tf_alexnet.weights.formats`, such as ``lrn="ops"`` (.onnx).

    Raises
    ------
    UsageError
        If the suffix, or an option's value, names nothing known.
    OutputError
        If the file can't be written. An old file is then left as it was.
    """
    from tf_alexnet.weights.formats import write_file

    if not isinstance(arrays, WeightArrays):
        from tf_alexnet.model import arrays_of

        arrays = arrays_of(arrays)
    write_file(arrays, path, form, **options)


def convert_weights(
    source: str | os.PathLike,
    target: str | os.PathLike,
    form: str | None = None,
    architecture: str | None = None,
    classifier: str | None = None,
    **options: Any,
) -> WeightArrays:
    """Write weights to another file, in the format that its suffix names.

    The arrays are kept bit for bit: the new file is read again and compared. Where the format has a
    place for it, the file also records ``architecture``, ``preset``, ``classes``, ``origin`` (the
    first file's name), ``origin_digest`` (`WeightArrays.digest`) and, for a published file, its
    ``licence``.

    Parameters
    ----------
    source : str or path
        A file of any format that can be read, or a catalogue name.
    target : str or path
        The new file. A file that exists is replaced once the new one is complete.
    form : str, optional
        As in `write_weights`.
    architecture : str or path, optional
        The network, where the file does not tell: its name, or a prototxt that describes it, with
        its classifier and preprocessing.
    classifier : str, optional
        As in `read_weights`.
    **options
        As in `write_weights`.

    Returns
    -------
    WeightArrays
        What the new file holds, as read from it.

    Raises
    ------
    WeightsError
        If `source` can't be read, or its arrays do not fit the format or `architecture`.
    UsageError
        If both names are of one file, or the suffix, or an option's value, names nothing known.
    OutputError
        If the file can't be written.
    """
    source = find_weights(source)
    if os.path.exists(target) and os.path.samefile(source, target):
        raise UsageError(
            os.fspath(target), "that is the file to be converted", "Give the new one another name."
        )
    told = resolve_architecture(architecture)
    arrays = read_weights(source, classifier)
    if classifier is None and told.classifier in arrays.layers:
        arrays = with_classifier(arrays, told.classifier)
    arrays = _described(arrays, source, told)
    write_weights(arrays, target, form, **options)
    written = read_weights(target)
    if written.digest != arrays.digest:
        raise WeightsError(
            os.fspath(target), "it does not read back as what was written", "Check the disk."
        )
    return written


def _described(arrays: WeightArrays, source: str | os.PathLike, told: Declared) -> WeightArrays:
    """The arrays of `source` with what a converted file should record."""
    metadata = {k: v for k, v in arrays.metadata.items() if k not in FOUND_ANEW}
    if told.architecture is not None:
        table = find_table(arrays, told.architecture)
        arrays = replace(arrays, architecture=table.name)
        metadata.setdefault("preset", table.preset)
    if told.preset is not None:
        metadata["preset"] = told.preset
    metadata.setdefault("origin", os.path.basename(source))
    metadata.setdefault("origin_digest", arrays.digest)
    if arrays.classes:
        metadata["classes"] = str(arrays.classes)
    record = published_file(source)
    if record is not None:
        metadata["licence"] = record.licence
    return replace(arrays, metadata=metadata)
