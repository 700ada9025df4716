"""A whole extraction: photos in, one file of names and features out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import h5py
import numpy as np
import PIL
import tensorflow as tf

from tf_alexnet.errors import ImageError, InputError, UsageError
from tf_alexnet.extraction.extractor import FeatureExtractor
from tf_alexnet.extraction.sinks import check_output, open_sink
from tf_alexnet.extraction.worker import read_batches
from tf_alexnet.images import find_images
from tf_alexnet.version import VERSION
from tf_alexnet.weights import WeightArrays


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction did; `rows` + `len(errors)` = `inputs`.

    Attributes
    ----------
    output : str
        The file written.
    inputs, rows : int
        Photos found, and photos whose features are in the file.
    errors : tuple of (str, str)
        Path and reason of each photo that could not be read.
    shapes : dict of str to tuple of int
        Layer -> shape of its array in the file.
    attributes : dict of str to str
        What the file records about its making.
    """

    output: str
    inputs: int
    rows: int
    errors: tuple[tuple[str, str], ...]
    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, str]


def extract_features(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    weights: str | os.PathLike | WeightArrays = "imagenet",
    layers: Sequence[str] = ("fc7",),
    architecture: str | None = None,
    preset: str | None = None,
    mean_image: np.ndarray | str | os.PathLike | None = None,
    batch_size: int = 64,
    dtype: str = "float32",
    progress: Callable[[int, int, int], None] | None = None,
) -> ExtractionReport:
    """Extract features of photos into one file that holds paths and rows together.

    Memory does not grow with the number of photos. The file is written under a temporary name and
    renamed when it is whole.

    Parameters
    ----------
    images : path, or sequence of paths
        Photos, folders (searched recursively), lists (``.txt``, ``.csv``).
    output : path
        ``.h5`` or ``.npz``: ``paths`` (N,), one (N, ...) array a layer, the errors, and attributes
        (weights digest, architecture, preset, layers, dtype, versions).
    weights, layers, architecture, preset, mean_image
        As in `FeatureExtractor`.
    batch_size : int
        Photos that go through the network together.
    dtype : {"float32", "float16"}
        Of the rows in the file; the network always computes in float32.
    progress : callable, optional
        Called with (photos done, photos in all, errors so far) after every batch.

    Returns
    -------
    ExtractionReport

    Raises
    ------
    UsageError, OutputError, WeightsError
        For a call that can't work; found out before the first photo is read.
    ImageError
        If no photo at all can be read.
    """
    if dtype not in ("float32", "float16"):
        raise UsageError(f"dtype {dtype!r}", "no such row type", "Use float32 or float16.")
    if batch_size < 1:
        raise UsageError(f"batch of {batch_size}", "nothing would be done", "Use 1 or more.")
    check_output(output)
    paths = find_images(images if isinstance(images, list | tuple) else [images])
    extractor = FeatureExtractor(
        weights, layers, architecture=architecture, preset=preset, mean_image=mean_image
    )
    attributes = _attributes(extractor, dtype)
    done, errors, shapes = 0, [], {}
    with open_sink(output) as sink:
        for batch in read_batches(paths, extractor.preprocess, batch_size):
            errors += batch.failures
            if batch.paths:
                rows = extractor(batch.pixels)
                sink.add(batch.paths, {k: _converted(k, v, dtype) for k, v in rows.items()})
                shapes = {name: blob.shape[1:] for name, blob in rows.items()}
            done += len(batch.paths) + len(batch.failures)
            if progress:
                progress(done, len(paths), len(errors))
        if len(errors) == done:
            raise ImageError(
                f"{done} photo{'s' * (done > 1)}",
                f"none could be read; the first: {errors[0][0]}: {errors[0][1]}",
                "Check the files.",
            )
        sink.close(errors, attributes)
    rows = done - len(errors)
    return ExtractionReport(
        os.fspath(output),
        done,
        rows,
        tuple(errors),
        {name: (rows, *shape) for name, shape in shapes.items()},
        attributes,
    )


def _converted(layer: str, values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float16" and np.abs(values).max() > np.finfo(np.float16).max:
        raise InputError(
            f"{layer} as float16",
            f"a value of {np.abs(values).max():.0f} is beyond 65504",
            "Extract this layer as float32.",
        )
    return values.astype(dtype, copy=False)


def _attributes(extractor: FeatureExtractor, dtype: str) -> dict[str, str]:
    """What a file of features records about its making."""
    return {
        "weights_digest": extractor.weights_digest,
        "weights_source": os.path.basename(extractor.weights_source),
        "architecture": extractor.architecture,
        "preset": extractor.preset,
        "layers": " ".join(extractor.layers),
        "dtype": dtype,
        "tf_alexnet_version": VERSION,
        "tensorflow_version": tf.__version__,
        "numpy_version": np.__version__,
        "pillow_version": PIL.__version__,
        "opencv_version": cv2.__version__,
        "h5py_version": h5py.__version__,
    }
