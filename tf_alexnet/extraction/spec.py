"""`ExtractionSpec`: everything that determines a row of features."""

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

# Increment whenever pixels or rows change while the settings stay the same. Other releases of this
# package, Pillow or OpenCV can still add photos to finished jobs.
PIPELINE_VERSION = 2

CROPS = {"center": 1, "ten": 10}  # pictures per photo
POOLS = {"none": None, "avg": np.mean, "max": np.max}


@dataclass(frozen=True, eq=False)
class ExtractionSpec:
    """What is computed from every photo: settings that are validated and can be pickled.

    Parameters
    ----------
    weights, layers, architecture, preset, mean_image
        As in `FeatureExtractor`. A mean image given as a path is read at once.
    dtype : {"float32", "float16"}
        Type of the stored rows.
    pool : {"none", "avg", "max"}
        Pool convolutional blobs from (height, width, channels) to (channels,).
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
        If a setting is not one of its choices.
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
        """Everything rows depend on, by name; jobs with equal fingerprints can share rows.

        Batch size, shard size and number of workers are not included: they only change the order
        of additions.

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
        """Turn the network's output into rows: pool, average over crops, cast to `dtype`.

        Raises
        ------
        InputError
            If a value is too large for float16.
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
    """Differences between two fingerprints, each as ``name old -> new``."""
    return [
        f"{name} {old.get(name, 'unknown')} -> {value}"
        for name, value in new.items()
        if old.get(name) != value
    ]


def digest_of_settings(fingerprint: Mapping[str, str]) -> str:
    """Digest of a fingerprint: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def _digest(values: np.ndarray) -> str:
    return "sha256:" + hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _any_of(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"
