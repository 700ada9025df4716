"""Weight files: finding, downloading, reading (safely), identifying and writing them.

Does not import TensorFlow. `catalog` is the function here; import from the module of that name
with `from tf_alexnet.weights.catalog import ...`.
"""

from tf_alexnet.weights.arrays import (
    LayerArrays,
    WeightArrays,
    adapted_table,
    check_arrays,
    check_softmax,
    faults,
    find_table,
    fitting_architectures,
    with_classifier,
)
from tf_alexnet.weights.catalog import (
    Accuracy,
    KnownWeights,
    Source,
    catalog,
    known_weights,
    published_accuracy,
)
from tf_alexnet.weights.download import cache_folder, fetch_weights, find_weights, local_file
from tf_alexnet.weights.fresh import fresh_layers, fresh_weights, random_seed
from tf_alexnet.weights.identify import Identification, identify_weights
from tf_alexnet.weights.io import check_layers, convert_weights, read_weights, write_weights
from tf_alexnet.weights.prototxt import resolve_architecture
from tf_alexnet.weights.verify import Check, Inspection, inspect_weights, verify_weights

__all__ = [
    "Accuracy",
    "Check",
    "Identification",
    "Inspection",
    "KnownWeights",
    "LayerArrays",
    "Source",
    "WeightArrays",
    "adapted_table",
    "cache_folder",
    "catalog",
    "check_arrays",
    "check_layers",
    "check_softmax",
    "convert_weights",
    "faults",
    "fetch_weights",
    "find_table",
    "find_weights",
    "fitting_architectures",
    "fresh_layers",
    "fresh_weights",
    "identify_weights",
    "inspect_weights",
    "known_weights",
    "local_file",
    "published_accuracy",
    "random_seed",
    "read_weights",
    "resolve_architecture",
    "verify_weights",
    "with_classifier",
    "write_weights",
]
