"""Reading, writing and converting weight files."""

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
    """Read a weight file of any supported format and identify its network.

    Parameters
    ----------
    path : str or path
        A file in any format of `tf_alexnet.weights.formats`; the format is detected from the
        content.
    classifier : str, optional
        Name in the file of the layer to use as `fc8`, if there are several classifiers.

    Returns
    -------
    WeightArrays
        float32 arrays in TensorFlow's layout. `architecture` is determined from the file's
        checksum, its convolutions, its own record, its shapes or its name, in this order; None if
        unknown. `metadata` holds what the file records, and ``preset`` (unless recorded),
        ``identified`` (name of the trained network), ``identified_by``, and ``renamed`` if the
        classifier is not called `fc8` in the file.

    Raises
    ------
    WeightsError
        If the file is missing, damaged or not a weight file, or has the name and size of a
        published file but not its checksum.

    Warns
    -----
    UserWarning
        If the file has the name of other weights than it contains, or its kernels contradict its
        biases.
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
    """Check layer names before weights are downloaded or loaded.

    A file is read only for an unknown name, which may be that of its classifier. Names that start
    with ``fc8`` are accepted for the same reason.

    Raises
    ------
    LayerError
        If there is no such blob; the message lists the valid names.
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
    """A phrase for a file that was found as `expected` but contains another network, or None."""
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
    """Write a weight file in the format of the suffix.

    Parameters
    ----------
    arrays : WeightArrays or keras.Model
        Weights to write. The layers of a model must have the names that `AlexNet` gives them.
    path : str or path
        Output file: .safetensors, .npy, .npz, .h5, .onnx or .caffemodel.
    form : str, optional
        Variant of the format: "list" or "dict" (.npy), "keras" or "caffe" (.h5).
    **options
        Options of the format's `write` in `tf_alexnet.weights.formats`, e.g. ``lrn="ops"`` (.onnx).

    Raises
    ------
    UsageError
        If the suffix or an option is unknown.
    OutputError
        If the file can't be written. An existing file is then left unchanged.
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
    """Convert weights to the format of the target's suffix.

    The arrays are preserved bit for bit, which is verified by reading the new file. If the format
    can hold it, the file also records ``architecture``, ``preset``, ``classes``, ``origin`` (name
    of the first file), ``origin_digest`` (`WeightArrays.digest`) and, for a published file, its
    ``licence``.

    Parameters
    ----------
    source : str or path
        A file in any readable format, or a catalogue name.
    target : str or path
        The new file. An existing file is replaced once the new one is complete.
    form : str, optional
        As in `write_weights`.
    architecture : str or path, optional
        The network, if the file does not identify it: its name, or a prototxt that describes it,
        with its classifier and preprocessing.
    classifier : str, optional
        As in `read_weights`.
    **options
        As in `write_weights`.

    Returns
    -------
    WeightArrays
        The content of the new file.

    Raises
    ------
    WeightsError
        If `source` can't be read, or its arrays don't fit the format or `architecture`.
    UsageError
        If source and target are the same file, or the suffix or an option is unknown.
    OutputError
        If the file can't be written.
    """
    source = find_weights(source)
    if os.path.exists(target) and os.path.samefile(source, target):
        raise UsageError(
            os.fspath(target), "that is the source file", "Choose another name for the target."
        )
    declared = resolve_architecture(architecture)
    arrays = read_weights(source, classifier)
    if classifier is None and declared.classifier in arrays.layers:
        arrays = with_classifier(arrays, declared.classifier)
    arrays = _described(arrays, source, declared)
    write_weights(arrays, target, form, **options)
    written = read_weights(target)
    if written.digest != arrays.digest:
        raise WeightsError(os.fspath(target), "it differs from what was written", "Check the disk.")
    return written


def _described(arrays: WeightArrays, source: str | os.PathLike, declared: Declared) -> WeightArrays:
    """`arrays` with the metadata that a converted file should record."""
    metadata = {k: v for k, v in arrays.metadata.items() if k not in FOUND_ANEW}
    if declared.architecture is not None:
        table = find_table(arrays, declared.architecture)
        arrays = replace(arrays, architecture=table.name)
        metadata.setdefault("preset", table.preset)
    if declared.preset is not None:
        metadata["preset"] = declared.preset
    metadata.setdefault("origin", os.path.basename(source))
    metadata.setdefault("origin_digest", arrays.digest)
    if arrays.classes:
        metadata["classes"] = str(arrays.classes)
    record = published_file(source)
    if record is not None:
        metadata["licence"] = record.licence
    return replace(arrays, metadata=metadata)
