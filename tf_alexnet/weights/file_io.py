"""Weight files in and out, with what is known about them."""

from __future__ import annotations

import os
from dataclasses import replace

from tf_alexnet.weights.arrays import WeightArrays
from tf_alexnet.weights.identify import identified, identify_arrays, published_file


def read_weights(path: str | os.PathLike) -> WeightArrays:
    """Read a weight file of any supported format and find out which network it holds.

    Parameters
    ----------
    path : str or path
        A .npy, .caffemodel, .h5, .safetensors, .pth or Deep Compression file; what counts is the
        content, not the name.

    Returns
    -------
    WeightArrays
        float32 arrays in TensorFlow's layout. `architecture` is None where it can't be known.
        `metadata` holds what the file recorded, and from here ``preset`` (unless recorded),
        ``identified`` (the trained network's name) and ``identified_by``.

    Raises
    ------
    WeightsError
        If the file is missing, damaged or foreign.
    """
    # The formats bring h5py and safetensors along, which nobody needs for `import tf_alexnet`.
    from tf_alexnet.weights.formats import read_file

    record = published_file(path)
    arrays = read_file(path)
    known = identify_arrays(arrays) if record is None else identified(record)
    metadata = {k: v for k, v in arrays.metadata.items() if k != "identified"}
    metadata["identified_by"] = known.how
    if known.name is not None:
        metadata["identified"] = known.name
    if known.preset is not None and (
        known.architecture != arrays.architecture or "preset" not in metadata
    ):
        metadata["preset"] = known.preset
    return replace(arrays, architecture=known.architecture, metadata=metadata)


def write_weights(arrays: WeightArrays, path: str | os.PathLike, **options) -> None:
    """Write a weight file, in the format that the name's ending stands for.

    Parameters
    ----------
    arrays : WeightArrays
        What to write.
    path : str or path
        Where to; the ending names the format.
    **options
        Passed on to the format.

    Raises
    ------
    WeightsError
        If there is no such format.
    OutputError
        If the file can't be written.

    See Also
    --------
    tf_alexnet.weights.formats.write_file : the formats and their options.
    """
    from tf_alexnet.weights.formats import write_file

    write_file(arrays, path, **options)
