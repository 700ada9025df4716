"""Weight files for callers: read one and say which network it is, or write one."""

from __future__ import annotations

import inspect
import os
from dataclasses import replace

from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.weights.arrays import WeightArrays, with_classifier
from tf_alexnet.weights.identify import identified, identify_arrays, published_file


def read_weights(path: str | os.PathLike) -> WeightArrays:
    """Read a weight file of any supported format and find out which network it holds.

    Parameters
    ----------
    path : str or path
        A file of any format in `tf_alexnet.weights.formats`; what counts is the content, not the
        name.

    Returns
    -------
    WeightArrays
        float32 arrays in TensorFlow's layout. `architecture` is what the file's hash, its biases,
        its own record, its shapes or its name tell, in this order, and None where they don't.
        `metadata` holds what the file recorded, and from here ``preset`` (unless recorded),
        ``identified`` (the trained network's name), ``identified_by``, and ``renamed`` if the last
        layer bore another name than `fc8`.

    Raises
    ------
    WeightsError
        If the file is missing, damaged or foreign.
    """
    record = published_file(path)
    arrays = read_unjudged(path)
    known = identify_arrays(arrays, path) if record is None else identified(record)
    metadata = {k: v for k, v in arrays.metadata.items() if k != "identified"}
    metadata["identified_by"] = known.how
    if known.name is not None:
        metadata["identified"] = known.name
    if known.preset is not None and (
        known.architecture != arrays.architecture or "preset" not in metadata
    ):
        metadata["preset"] = known.preset
    return replace(
        arrays, architecture=known.architecture or arrays.architecture, metadata=metadata
    )


def read_unjudged(path: str | os.PathLike) -> WeightArrays:
    """The arrays of a file under Caffe's names; `architecture` is what the file itself records.

    Raises
    ------
    WeightsError
        If the file is missing, damaged or foreign.
    """
    # The formats bring h5py and safetensors along, which nobody needs for `import tf_alexnet`.
    from tf_alexnet.weights.formats import read_file

    return with_classifier(read_file(path))


def write_weights(arrays: WeightArrays, path: str | os.PathLike, **options) -> None:
    """Write a weight file, in the format that the name's ending stands for.

    Parameters
    ----------
    arrays : WeightArrays
        What to write.
    path : str or path
        Where to; the ending names the format.
    **options
        Of the format's own `write` in `tf_alexnet.weights.formats`.

    Raises
    ------
    UsageError
        If the ending or an option names nothing known.
    OutputError
        If the file can't be written; nothing is left behind, an old file stays.

    See Also
    --------
    tf_alexnet.weights.formats.write_file : the formats and their options.
    """
    from tf_alexnet.weights.formats import write_file

    write_file(arrays, path, **options)


def convert_weights(
    source: str | os.PathLike, target: str | os.PathLike, form: str | None = None
) -> WeightArrays:
    """Write the weights of one file into another, in the format that its ending stands for.

    The arrays stay what they are, bit for bit: the new file is read again and compared. Beside
    them travel, where the format has a place for it, ``architecture``, ``preset``, ``classes``,
    ``origin`` (the first file's name), ``origin_digest`` (`WeightArrays.digest`) and, for a
    published file, its ``licence``.

    Parameters
    ----------
    source, target : str or path
        A file of any format that can be read; a name whose ending names the format. A file that is
        there already is replaced once the new one is whole.
    form : str, optional
        For formats that have several: "list" or "dict" (.npy), "keras" or "caffe" (.h5).

    Returns
    -------
    WeightArrays
        What the new file holds, as read from it.

    Raises
    ------
    WeightsError
        If `source` can't be read, or its arrays do not fit the format.
    UsageError
        If both names are of one file, or the ending or `form` names nothing known.
    OutputError
        If the file can't be written.
    """
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise UsageError(
            os.fspath(target), "that is the file to be converted", "Give the new one another name."
        )
    check_form(target, form)
    arrays = read_weights(source)
    record = published_file(source)
    found_anew = ("identified", "identified_by")
    metadata = {k: v for k, v in arrays.metadata.items() if k not in found_anew}
    metadata.setdefault("origin", os.path.basename(source))
    metadata.setdefault("origin_digest", arrays.digest)
    if arrays.classes:
        metadata["classes"] = str(arrays.classes)
    if record is not None:
        metadata["licence"] = record.licence
    write_weights(
        replace(arrays, metadata=metadata), target, **({} if form is None else {"form": form})
    )
    written = read_weights(target)
    if written.digest != arrays.digest:
        raise WeightsError(
            os.fspath(target), "it does not read back as what was written", "Check the disk."
        )
    return written


def check_form(path: str | os.PathLike, form: str | None) -> None:
    """Refuse a form where the format that the ending stands for has no choice of forms.

    Raises
    ------
    UsageError
        If so; which forms there are is the format's own business.
    """
    from tf_alexnet.weights.formats import WRITERS

    write = WRITERS.get(os.path.splitext(path)[1].lower())
    if form is not None and write and "form" not in inspect.signature(write).parameters:
        raise UsageError(
            f"form={form!r} for {os.fspath(path)}", "that format has one form only", "Leave it out."
        )
