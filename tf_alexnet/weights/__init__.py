"""Weight files: read safely, identified, found or downloaded. No TensorFlow in here."""

from tf_alexnet.weights.arrays import (
    LayerArrays,
    WeightArrays,
    check_arrays,
    fitting_architectures,
)
from tf_alexnet.weights.catalog import KnownWeights, check_file, known_weights
from tf_alexnet.weights.files import read_weights, write_weights
from tf_alexnet.weights.identify import Identification, identify_weights
from tf_alexnet.weights.store import fetch_weights, find_weights

__all__ = [
    "Identification",
    "KnownWeights",
    "LayerArrays",
    "WeightArrays",
    "check_arrays",
    "check_file",
    "fetch_weights",
    "find_weights",
    "fitting_architectures",
    "identify_weights",
    "known_weights",
    "read_weights",
    "write_weights",
]
