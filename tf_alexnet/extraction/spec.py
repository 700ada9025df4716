"""`ExtractionSpec`: everything that decides what a row of features holds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tf_alexnet.architectures import blob_names
from tf_alexnet.engines import PRECISIONS
from tf_alexnet.errors import InputError, UsageError
from tf_alexnet.images import read_mean_image, recorded_name, resolve
from tf_alexnet.images.decode import DEPTHS

if TYPE_CHECKING:
    from tf_alexnet.images.mean_image import Mean
    from tf_alexnet.images.presets import Preset
    from tf_alexnet.weights import WeightArrays

# Raised by hand whenever pixels or rows change with settings that stay the same. Releases of this
# package, Pillow or OpenCV that change none don't make finished jobs refuse new photos.
PIPELINE_VERSION = 2

CROPS = {"center": 1, "ten": 10}  # pictures per photo
POOLS = {"none": None, "avg": np.mean, "max": np.max}


@dataclass(frozen=True, eq=False)
class ExtractionSpec:
    """What is computed of every photo. It can be pickled, and checks itself.

    Parameters
    ----------
    weights, layers, architecture, preset, mean_image
        As in `FeatureExtractor`. A mean image named by its path is read at once.
    dtype : {"float32", "float16"}
        Type of the rows; the network always computes in float32.
    pool : {"none", "avg", "max"}
        Convolutional blobs (height, width, channels) pooled to (channels,).
    crops : {"center", "ten"}
        The centre crop; or the mean of the rows of corners, centre and their mirror images.
    fast_decode : bool
        As in `PhotoReader`.
    precision : {"float32", "bfloat16"}
        As in `FeatureExtractor`.
    depth : {"auto", "16", "12", "8"}
        As in `load_image`.

    Raises
    ------
    UsageError
        For a setting that does not exist.
    """

    weights: str | os.PathLike | WeightArrays = "imagenet"
    layers: str | Sequence[str] = ("fc7",)
    architecture: str | None = None
    preset: str | Preset | None = None
    mean_image: Mean = None
    dtype: str = "float32"
    pool: str = "none"
    crops: str = "center"
    fast_decode: bool = False
    precision: str = "float32"
    depth: str = "auto"

    def __post_init__(self):
        object.__setattr__(self, "layers", blob_names(self.layers))
        if isinstance(self.mean_image, str | os.PathLike):
            object.__setattr__(self, "mean_image", read_mean_image(self.mean_image))
        for name, choices in (
            ("dtype", ("float32", "float16")),
            ("pool", tuple(POOLS)),
            ("crops", tuple(CROPS)),
            ("precision", PRECISIONS),
            ("depth", DEPTHS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"{name} {value!r}", f"not a {name}", f"Use {_any_of(choices)}.")

    def fingerprint(self, weights_digest: str) -> dict[str, str]:
        """Everything rows depend on, by name; jobs may share rows if theirs are equal.

        Sizes of batches and shards and the number of workers are not part of it: they change a
        row by no more than the order of additions does.

        Parameters
        ----------
        weights_digest : str
            Digest of the weights; `architecture` and `preset` must have been resolved.
        """
        record, mean = resolve(self.preset, self.mean_image)
        return {
            "weights_digest": weights_digest,
            "architecture": self.architecture,
            "layers": " ".join(self.layers),
            "preset": recorded_name(record),
            "mean_image": "none" if mean is None else _digest(mean),
            "dtype": self.dtype,
            "pool": self.pool,
            "crops": self.crops,
            "fast_decode": "yes" if self.fast_decode else "no",
            "precision": self.precision,
            "depth": self.depth,
            "pipeline_version": str(PIPELINE_VERSION),
        }

    def rows(self, blobs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows of what the network computed: pooled, averaged over crops, of the wanted type.

        Raises
        ------
        InputError
            If a value does not fit float16.
        """
        pool, crops = POOLS[self.pool], CROPS[self.crops]
        rows = {}
        for name, values in blobs.items():
            if pool and values.ndim == 4:
                values = pool(values, axis=(1, 2))
            if crops > 1:
                values = values.reshape(-1, crops, *values.shape[1:]).mean(axis=1)
            if self.dtype == "float16" and (largest := np.abs(values).max(initial=0)) > 65504:
                raise InputError(
                    f"{name} as float16",
                    f"a value of {largest:.0f} is beyond 65504",
                    "Extract this layer as float32.",
                )
            rows[name] = values.astype(self.dtype, copy=False)
        return rows


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, each as ``name old -> new``."""
    return [
        f"{name} {old.get(name, 'unknown')} -> {value}"
        for name, value in new.items()
        if old.get(name) != value
    ]


def digest_of_settings(fingerprint: Mapping[str, str]) -> str:
    """A fingerprint in 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def _digest(values: np.ndarray) -> str:
    return "sha256:" + hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _any_of(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"
