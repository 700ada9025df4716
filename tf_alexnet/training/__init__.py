"""From a folder of photos to a classifier: data, heads, fine-tuning, and the RUN that is left.

Names are imported when they are first used: reading a folder or a RUN needs no TensorFlow.
"""

from importlib import import_module

_HOMES = {
    "Example": "tf_alexnet.training.folders",
    "PhotoSet": "tf_alexnet.training.folders",
    "Run": "tf_alexnet.training.run",
    "RunRecord": "tf_alexnet.training.record",
    "read_folders": "tf_alexnet.training.folders",
    "train_head": "tf_alexnet.training.head",
    "train_network": "tf_alexnet.training.finetune",
    "write_run": "tf_alexnet.training.run",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """PEP 562: find a public name in the module it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
