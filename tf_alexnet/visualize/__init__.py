"""Pictures of the network: its filters, its activations, and why it answered what it did.

Functions that end in ``_figure`` return a `matplotlib.figure.Figure` (extra ``plot``); all others
return arrays or Pillow's images and need neither matplotlib nor a display. Names are imported when
they are first used.
"""

from tf_alexnet.lazy import lazy_names

_HOMES = {
    "Explainer": "tf_alexnet.visualize.explainer",
    "METHODS": "tf_alexnet.visualize.saliency",
    "SaliencyMap": "tf_alexnet.visualize.saliency",
    "check_picture": "tf_alexnet.visualize.sheets",
    "contact_sheet": "tf_alexnet.visualize.sheets",
    "mosaic": "tf_alexnet.visualize.activations",
    "overlay": "tf_alexnet.visualize.saliency",
    "predictions_sheet": "tf_alexnet.visualize.sheets",
    "saliency_map": "tf_alexnet.visualize.saliency",
    "save_picture": "tf_alexnet.visualize.sheets",
}

__all__ = sorted(_HOMES)


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
