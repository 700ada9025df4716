"""Plots of filters, activations, saliency maps and feature spaces.

Functions that end in ``_figure`` return a `matplotlib.figure.Figure` (extra ``plot``); all others
return arrays or Pillow images and need neither matplotlib nor a display. Names are imported on
first use.
"""

from typing import TYPE_CHECKING

from tf_alexnet.lazy import lazy_names

if TYPE_CHECKING:
    from tf_alexnet.visualize.activations import activations_figure as activations_figure
    from tf_alexnet.visualize.activations import mosaic as mosaic
    from tf_alexnet.visualize.architecture import architecture_svg as architecture_svg
    from tf_alexnet.visualize.explainer import Explainer as Explainer
    from tf_alexnet.visualize.features_file import read_features as read_features
    from tf_alexnet.visualize.figures import save_figure as save_figure
    from tf_alexnet.visualize.filters import filters_figure as filters_figure
    from tf_alexnet.visualize.maps import embedding_figure as embedding_figure
    from tf_alexnet.visualize.maps import rsm_figure as rsm_figure
    from tf_alexnet.visualize.saliency import METHODS as METHODS
    from tf_alexnet.visualize.saliency import SaliencyMap as SaliencyMap
    from tf_alexnet.visualize.saliency import overlay as overlay
    from tf_alexnet.visualize.saliency import saliency_figure as saliency_figure
    from tf_alexnet.visualize.saliency import saliency_map as saliency_map
    from tf_alexnet.visualize.sanity import SanityCheck as SanityCheck
    from tf_alexnet.visualize.sanity import sanity_check as sanity_check
    from tf_alexnet.visualize.sanity import sanity_figure as sanity_figure
    from tf_alexnet.visualize.sheets import check_picture as check_picture
    from tf_alexnet.visualize.sheets import contact_sheet as contact_sheet
    from tf_alexnet.visualize.sheets import predictions_sheet as predictions_sheet
    from tf_alexnet.visualize.sheets import save_picture as save_picture
    from tf_alexnet.visualize.similarity import dissimilarity as dissimilarity
    from tf_alexnet.visualize.similarity import linear_cka as linear_cka
    from tf_alexnet.visualize.similarity import nearest as nearest
    from tf_alexnet.visualize.similarity import pca as pca
    from tf_alexnet.visualize.similarity import rsa as rsa

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

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
