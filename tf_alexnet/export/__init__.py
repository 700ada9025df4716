"""Model files for other runtimes, each verified in its own before it is put in place.

One module per target writes it; `runtime` runs it, as a separate program that does not import this
package; `verification` compares its outputs with the library's.
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
