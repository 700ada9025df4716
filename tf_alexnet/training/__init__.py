"""From a folder of photos to a classifier: data, heads, fine-tuning, and the RUN that is left.

Names are imported when they are first used: reading a folder or a RUN needs no TensorFlow.
"""

from tf_alexnet.lazy import lazy_names

_HOMES = {
    "Example": "tf_alexnet.training.folders",
    "PhotoSet": "tf_alexnet.training.folders",
    "Run": "tf_alexnet.training.run",
    "RunRecord": "tf_alexnet.training.run",
    "load_run": "tf_alexnet.training.run",
    "read_photos": "tf_alexnet.training.folders",
    "train_head": "tf_alexnet.training.head",
    "train_network": "tf_alexnet.training.finetune",
    "write_run": "tf_alexnet.training.run",
}

__all__ = sorted(_HOMES)


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
