"""Caffe's AlexNet in TensorFlow: the original weights, verified, and their features.

Public names are imported on first use, so that `import tf_alexnet` and the command line's help
don't wait for TensorFlow. Our layers are registered with Keras as soon as it is imported.
"""

import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from tf_alexnet.lazy import after_import, lazy_names
from tf_alexnet.version import VERSION as __version__  # noqa: F401

if TYPE_CHECKING:  # editors and type checkers see the names without importing anything
    from tf_alexnet import visualize as visualize
    from tf_alexnet.evaluation.evaluate import evaluate_photos as evaluate_photos
    from tf_alexnet.export.exporter import export_model as export_model
    from tf_alexnet.extraction import FeatureExtractor as FeatureExtractor
    from tf_alexnet.extraction import extract_features as extract_features
    from tf_alexnet.extraction import predict_photos as predict_photos
    from tf_alexnet.images import Preset as Preset
    from tf_alexnet.images import load_image as load_image
    from tf_alexnet.images import preprocess_input as preprocess_input
    from tf_alexnet.images.preprocessing import Preprocessing as Preprocessing
    from tf_alexnet.labels import decode_predictions as decode_predictions
    from tf_alexnet.loading import load_model as load_model
    from tf_alexnet.model import AlexNet as AlexNet
    from tf_alexnet.model import features as features
    from tf_alexnet.model import preset_of as preset_of
    from tf_alexnet.sklearn_features import AlexNetFeatures as AlexNetFeatures
    from tf_alexnet.training.finetune import train_network as train_network
    from tf_alexnet.training.head import train_head as train_head
    from tf_alexnet.training.run import load_run as load_run
    from tf_alexnet.weights import catalog as catalog
    from tf_alexnet.weights import fetch_weights as fetch_weights
    from tf_alexnet.weights import identify_weights as identify_weights
    from tf_alexnet.weights import read_weights as read_weights
    from tf_alexnet.weights import write_weights as write_weights

# Without a handler, Python prints a library's warnings to stderr.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# oneDNN's kernels are a fifth faster for this network. TensorFlow enables them by default only on
# some processors, and reads this variable on import. A value set by the user is kept.
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
    "export_model": "tf_alexnet.export.exporter",
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
        for name in ("tf_alexnet.layers", "tf_alexnet.images.preprocessing"):
            # Another thread may be importing it and waiting for Keras: don't wait for that thread.
            if name not in sys.modules:
                import_module(name)


after_import("keras", _register_layers)
if not TYPE_CHECKING:  # with __getattr__, type checkers would accept any name
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
