"""Model files for other programs, each checked in its own runtime before it gets its name.

One module a target writes it; `runtime` runs it, as a program of its own that imports nothing of
this package; `verification` compares what came out with what the library computes.
"""

from tf_alexnet.lazy import lazy_names

_HOMES = {
    "Export": "tf_alexnet.export.exporter",
    "TARGETS": "tf_alexnet.export.targets",
    "VARIANTS": "tf_alexnet.export.targets",
    "check_call": "tf_alexnet.export.exporter",
    "export_model": "tf_alexnet.export.exporter",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
