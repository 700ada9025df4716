"""Photos in, rows of features out: the fast path as an object, and files with names and rows."""

from tf_alexnet.extraction.extractor import FeatureExtractor
from tf_alexnet.extraction.job import ExtractionReport, extract_features
from tf_alexnet.extraction.sinks import check_output

__all__ = ["ExtractionReport", "FeatureExtractor", "check_output", "extract_features"]
