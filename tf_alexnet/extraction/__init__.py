"""Feature extraction: `FeatureExtractor` for arrays, `extract_features` for files.

Names are imported on first use, so that decoder processes start without TensorFlow.
"""

from typing import TYPE_CHECKING

from tf_alexnet.lazy import lazy_names

if TYPE_CHECKING:
    from tf_alexnet.extraction.extractor import FeatureExtractor as FeatureExtractor
    from tf_alexnet.extraction.job import ExtractionReport as ExtractionReport
    from tf_alexnet.extraction.job import check_job as check_job
    from tf_alexnet.extraction.job import extract_features as extract_features
    from tf_alexnet.extraction.predictions import PhotoPrediction as PhotoPrediction
    from tf_alexnet.extraction.predictions import predict_photos as predict_photos
    from tf_alexnet.extraction.reader import REASONS as REASONS
    from tf_alexnet.extraction.reader import PhotoReader as PhotoReader
    from tf_alexnet.extraction.storage import check_output as check_output

_HOMES = {
    "REASONS": "tf_alexnet.extraction.reader",
    "ExtractionReport": "tf_alexnet.extraction.job",
    "FeatureExtractor": "tf_alexnet.extraction.extractor",
    "PhotoReader": "tf_alexnet.extraction.reader",
    "check_job": "tf_alexnet.extraction.job",
    "check_output": "tf_alexnet.extraction.storage",
    "PhotoPrediction": "tf_alexnet.extraction.predictions",
    "extract_features": "tf_alexnet.extraction.job",
    "predict_photos": "tf_alexnet.extraction.predictions",
}

__all__ = sorted(_HOMES)

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
