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
    "SanityCheck": "tf_alexnet.visualize.sanity",
    "activations_figure": "tf_alexnet.visualize.activations",
    "architecture_svg": "tf_alexnet.visualize.architecture",
    "check_picture": "tf_alexnet.visualize.sheets",
    "contact_sheet": "tf_alexnet.visualize.sheets",
    "dissimilarity": "tf_alexnet.visualize.similarity",
    "embedding_figure": "tf_alexnet.visualize.maps",
    "filters_figure": "tf_alexnet.visualize.filters",
    "linear_cka": "tf_alexnet.visualize.similarity",
    "mosaic": "tf_alexnet.visualize.activations",
    "nearest": "tf_alexnet.visualize.similarity",
    "overlay": "tf_alexnet.visualize.saliency",
    "pca": "tf_alexnet.visualize.similarity",
    "predictions_sheet": "tf_alexnet.visualize.sheets",
    "read_features": "tf_alexnet.visualize.features_file",
    "rsa": "tf_alexnet.visualize.similarity",
    "rsm_figure": "tf_alexnet.visualize.maps",
    "saliency_figure": "tf_alexnet.visualize.saliency",
    "saliency_map": "tf_alexnet.visualize.saliency",
    "sanity_check": "tf_alexnet.visualize.sanity",
    "sanity_figure": "tf_alexnet.visualize.sanity",
    "save_figure": "tf_alexnet.visualize.figures",
    "save_picture": "tf_alexnet.visualize.sheets",
}

__all__ = sorted(_HOMES)


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
