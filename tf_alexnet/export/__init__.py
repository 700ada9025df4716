"""Model files for other programs, each checked in its own runtime before it gets its name.

One module a target writes it; `runtime` runs it, as a program of its own that imports nothing of
this package; `verification` compares what came out with what the library computes.
"""

from typing import TYPE_CHECKING

from tf_alexnet.lazy import lazy_names

if TYPE_CHECKING:
    from tf_alexnet.export.exporter import Export as Export
    from tf_alexnet.export.exporter import check_call as check_call
    from tf_alexnet.export.exporter import export_model as export_model
    from tf_alexnet.export.targets import TARGETS as TARGETS
    from tf_alexnet.export.targets import VARIANTS as VARIANTS

_HOMES = {
    "Export": "tf_alexnet.export.exporter",
    "TARGETS": "tf_alexnet.export.targets",
    "VARIANTS": "tf_alexnet.export.targets",
    "check_call": "tf_alexnet.export.exporter",
    "export_model": "tf_alexnet.export.exporter",
}

__all__ = sorted(_HOMES)

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
