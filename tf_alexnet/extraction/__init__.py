"""Photos in, rows of features out: the fast path as an object, and files with names and rows."""

from tf_alexnet.extraction.extractor import FeatureExtractor
from tf_alexnet.extraction.job import ExtractionReport, extract_features

__all__ = ["ExtractionReport", "FeatureExtractor", "extract_features"]
