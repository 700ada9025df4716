"""From a folder of photos to a classifier: data, heads, fine-tuning, and the RUN that is left.

Names are imported when they are first used: reading a folder or a RUN needs no TensorFlow.
"""

from typing import TYPE_CHECKING

from tf_alexnet.lazy import lazy_names

if TYPE_CHECKING:
    from tf_alexnet.training.finetune import train_network as train_network
    from tf_alexnet.training.folders import Example as Example
    from tf_alexnet.training.folders import PhotoSet as PhotoSet
    from tf_alexnet.training.folders import read_photos as read_photos
    from tf_alexnet.training.head import train_head as train_head
    from tf_alexnet.training.run import Run as Run
    from tf_alexnet.training.run import RunRecord as RunRecord
    from tf_alexnet.training.run import load_run as load_run
    from tf_alexnet.training.run import write_run as write_run

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

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
