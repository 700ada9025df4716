"""Imports that wait until a name is used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from tf_alexnet.errors import UsageError

_OTHER_BACKENDS = ("jax", "torch", "openvino")


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package.

    Parameters
    ----------
    package : str
        Its name, for messages.
    homes : mapping of str to str
        Public name -> the module it lives in.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(homes[name]), name)
        except ImportError as error:
            if error.name in _OTHER_BACKENDS:
                raise other_backend(error.name) from None
            raise

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, names


def other_backend(name: str) -> UsageError:
    """The error for a Keras that does not run on TensorFlow."""
    return UsageError(
        f"Keras with the backend {name!r}",
        "the networks of tf_alexnet run on TensorFlow",
        "Set KERAS_BACKEND=tensorflow before Keras is imported.",
    )
