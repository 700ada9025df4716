"""Weight files for callers: read one and say which network it is, or write one."""

from __future__ import annotations

import os
from dataclasses import replace

from tf_alexnet.weights.arrays import WeightArrays
from tf_alexnet.weights.identify import identified, identify_arrays, published_file, with_fc8


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
    # The formats bring h5py and safetensors along, which nobody needs for `import tf_alexnet`.
    from tf_alexnet.weights.formats import read_file

    record = published_file(path)
    arrays = with_fc8(read_file(path))
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
