"""Photos in, rows of features out: the fast path as an object, and files with names and rows.

Names are imported when they are first used: the decoder processes live in this package too, and
must start without TensorFlow.
"""

from importlib import import_module

_HOMES = {
    "REASONS": "tf_alexnet.extraction.reader",
    "ExtractionReport": "tf_alexnet.extraction.job",
    "FeatureExtractor": "tf_alexnet.extraction.extractor",
    "PhotoReader": "tf_alexnet.extraction.reader",
    "check_output": "tf_alexnet.extraction.target",
    "extract_features": "tf_alexnet.extraction.job",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """PEP 562: find a public name in the module it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
