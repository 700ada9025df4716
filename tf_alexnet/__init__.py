"""Caffe's AlexNet in TensorFlow: the original weights, verified, and the features they give.

Names are imported when they are first used, so that `import tf_alexnet` and the command line's help
do not wait for TensorFlow. Once Keras is imported, our layers are registered with it.
"""
# ruff: noqa: F401

import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from tf_alexnet.lazy import after_import, lazy_names
from tf_alexnet.version import VERSION as __version__

if TYPE_CHECKING:  # editors and type checkers see the names without importing anything
    from tf_alexnet import visualize
    from tf_alexnet.evaluation.evaluate import evaluate_photos
    from tf_alexnet.extraction import FeatureExtractor, extract_features, predict_photos
    from tf_alexnet.images import Preset, load_image, preprocess_input
    from tf_alexnet.images.preprocessing import Preprocessing
    from tf_alexnet.labels import decode_predictions
    from tf_alexnet.loading import load_model
    from tf_alexnet.model import AlexNet, features, preset_of
    from tf_alexnet.sklearn_features import AlexNetFeatures
    from tf_alexnet.training.finetune import train_network
    from tf_alexnet.training.head import train_head
    from tf_alexnet.training.run import load_run
    from tf_alexnet.weights import (
        catalog,
        fetch_weights,
        identify_weights,
        read_weights,
        write_weights,
    )

# Without a handler, Python prints a library's warnings to stderr.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# oneDNN's kernels are a fifth faster for this network. TensorFlow uses them by default on some
# processors only, and reads this when it is first imported. A value that is set already stays.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

_HOMES = {
    "AlexNet": "tf_alexnet.model",
    "AlexNetFeatures": "tf_alexnet.sklearn_features",
    "FeatureExtractor": "tf_alexnet.extraction",
    "Preprocessing": "tf_alexnet.images.preprocessing",
    "Preset": "tf_alexnet.images",
    "catalog": "tf_alexnet.weights",
    "decode_predictions": "tf_alexnet.labels",
    "evaluate_photos": "tf_alexnet.evaluation.evaluate",
    "extract_features": "tf_alexnet.extraction",
    "features": "tf_alexnet.model",
    "fetch_weights": "tf_alexnet.weights",
    "identify_weights": "tf_alexnet.weights",
    "load_image": "tf_alexnet.images",
    "load_model": "tf_alexnet.loading",
    "load_run": "tf_alexnet.training.run",
    "predict_photos": "tf_alexnet.extraction",
    "preprocess_input": "tf_alexnet.images",
    "preset_of": "tf_alexnet.model",
    "read_weights": "tf_alexnet.weights",
    "train_head": "tf_alexnet.training.head",
    "train_network": "tf_alexnet.training.finetune",
    "visualize": "tf_alexnet.visualize",
    "write_weights": "tf_alexnet.weights",
}

__all__ = sorted(_HOMES)


def _register_layers() -> None:
    """Let `keras.models.load_model` find the layers of saved models."""
    if sys.modules["keras"].backend.backend() == "tensorflow":
        import_module("tf_alexnet.layers")
        import_module("tf_alexnet.images.preprocessing")


after_import("keras", _register_layers)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
