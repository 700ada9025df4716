"""Lazy imports: on first use of a name (PEP 562), or after another module's import."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any

from tf_alexnet.errors import UsageError

_OTHER_BACKENDS = ("jax", "torch", "openvino")


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a package that imports its names lazily.

    Parameters
    ----------
    package : str
        Name of the package.
    homes : mapping of str to str
        Public name -> module that defines it. A submodule may itself be a public name.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            home = import_module(homes[name])
            return home if homes[name] == f"{package}.{name}" else getattr(home, name)
        except ImportError as error:
            if error.name in _OTHER_BACKENDS:
                raise other_backend(error.name) from None
            raise

    def names() -> list[str]:
        special = (name for name in vars(import_module(package)) if name.startswith("__"))
        return sorted({*special, *homes})

    return find, names


def other_backend(name: str) -> UsageError:
    """The error for a Keras backend other than TensorFlow."""
    return UsageError(
        f"Keras with the backend {name!r}",
        "the networks of tf_alexnet run on TensorFlow",
        "Set KERAS_BACKEND=tensorflow before Keras is imported.",
    )


def after_import(module: str, action: Callable[[], None]) -> None:
    """Call `action` once `module` is imported: now, if it already is."""
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _AfterImport(module, action))


class _AfterImport(MetaPathFinder):
    """Import hook that finds nothing itself, but calls `action` after `module` is executed."""

    def __init__(self, module: str, action: Callable[[], None]):
        self._module, self._action, self._asking = module, action, False

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self._module or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)  # if it fails, the hook stays for the next attempt
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self._action()

            spec.loader.exec_module = exec_module
        return spec
