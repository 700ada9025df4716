"""Caffe's AlexNet in TensorFlow: the original weights, verified, and the features they give.

Names are imported when they are first used, so that `import tf_alexnet` and the command line's help
do not wait for TensorFlow.
"""

import os

from tf_alexnet.lazy import lazy_names
from tf_alexnet.version import VERSION as __version__  # noqa: F401

# oneDNN's kernels are a fifth faster for this network. TensorFlow takes them by itself on some
# processors only, and looks here when it is first imported; who says 0 gets 0.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

_HOMES = {
    "AlexNet": "tf_alexnet.model",
    "AlexNetFeatures": "tf_alexnet.sklearn_features",
    "FeatureExtractor": "tf_alexnet.extraction",
    "Preprocessing": "tf_alexnet.images.preprocessing",
    "Preset": "tf_alexnet.images",
    "catalog": "tf_alexnet.weights",
    "decode_predictions": "tf_alexnet.labels",
    "evaluate_photos": "tf_alexnet.evaluate",
    "extract_features": "tf_alexnet.extraction",
    "features": "tf_alexnet.model",
    "fetch_weights": "tf_alexnet.weights",
    "identify_weights": "tf_alexnet.weights",
    "load_image": "tf_alexnet.images",
    "preprocess_input": "tf_alexnet.images",
    "preset_of": "tf_alexnet.model",
    "read_weights": "tf_alexnet.weights",
    "write_weights": "tf_alexnet.weights",
}

__all__ = sorted(_HOMES)


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
