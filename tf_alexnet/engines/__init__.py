"""Inference engines: TensorFlow, and OpenVINO if it is installed.

Each module has a function ``network(table, arrays, blobs, precision)``, which returns a function
from a preprocessed batch, float32 (N, S, S, 3), to a dict of blobs: float32, channels last. The
blobs of both agree within 1e-5 of their maximum. Modules are imported only when they are used:
OpenVINO starts in a second, while importing TensorFlow takes three.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from tf_alexnet.architectures import Architecture
from tf_alexnet.errors import UsageError

ENGINES = ("auto", "tensorflow", "openvino")
PRECISIONS = ("float32", "bfloat16")
# Without AVX-512, TensorFlow is 1.1 times as fast, but takes about 5 s longer to start.
_LONG = 5000
_FPMATH = "ONEDNN_DEFAULT_FPMATH_MODE"

_log = logging.getLogger(__name__)


def choose_engine(
    engine: str = "auto", photos: int | None = None, precision: str = "float32"
) -> str:
    """The engine to use.

    Parameters
    ----------
    engine : {"auto", "tensorflow", "openvino"}
        "auto" chooses TensorFlow on machines with a GPU or without OpenVINO, and for 5,000 photos
        or more on a processor without AVX-512; otherwise OpenVINO.
    photos : int, optional
        Number of photos to compute.
    precision : {"float32", "bfloat16"}
        Only OpenVINO supports bfloat16.

    Returns
    -------
    {"tensorflow", "openvino"}

    Raises
    ------
    UsageError
        If there is no such engine or precision, the engine does not support the precision, or
        OpenVINO is required but not installed.
    """
    for name, value, choices in (
        ("engine", engine, ENGINES),
        ("precision", precision, PRECISIONS),
    ):
        if value not in choices:
            raise UsageError(f"{name} {value!r}", "unknown", f"Use one of {', '.join(choices)}.")
    if precision != "float32" and engine == "tensorflow":
        raise UsageError(
            f"precision {precision!r} with engine 'tensorflow'",
            "it computes in float32",
            "Use --engine openvino (engine='openvino'), or leave one of the two out.",
        )
    installed = importlib.util.find_spec("openvino") is not None
    if precision != "float32" and engine == "auto":
        engine = "openvino"
    if engine == "openvino" and not installed:
        raise UsageError(
            f"engine 'openvino', precision {precision!r}",
            "OpenVINO is not installed",
            "Install it: pip install 'tf-alexnet[openvino]'.",
        )
    if engine != "auto":
        return engine
    quick = photos is None or photos < _LONG or "avx512f" in processor_features()
    return "openvino" if installed and quick and not _has_gpu() else "tensorflow"


def load_network(
    engine: str,
    table: Architecture,
    arrays: Mapping[str, Any],
    blobs: Sequence[str],
    precision: str = "float32",
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function that computes `blobs`; `engine` is a result of `choose_engine`."""
    mode = os.environ.get(_FPMATH, "STRICT")
    if mode != "STRICT":  # both engines would silently compute in bfloat16
        _log.warning("%s=%s is ignored: the argument precision takes its place", _FPMATH, mode)
        os.environ[_FPMATH] = "STRICT"
    return import_engine(engine).network(table, arrays, blobs, precision)


def import_engine(engine: str) -> ModuleType:
    """The module of an engine."""
    return import_module(f"tf_alexnet.engines.{engine}")


def processor_features() -> frozenset[str]:
    """Instruction sets of the processor, by their names in Linux; empty on other systems.

    AVX-512 and later ones are left out if ``ONEDNN_MAX_CPU_ISA``, which both engines respect,
    excludes them.
    """
    found: frozenset[str] = frozenset()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii") as file:
        lines = (line.partition(":") for line in file)
        found = next((frozenset(x[2].split()) for x in lines if x[0].strip() == "flags"), found)
    if re.match("(?i)SSE|AVX(?!512|10)", os.environ.get("ONEDNN_MAX_CPU_ISA", "")):
        found = frozenset(x for x in found if not x.startswith(("avx512", "avx10", "amx")))
    return found


def _has_gpu() -> bool:
    """Whether TensorFlow might find a GPU, without importing it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return bool(glob.glob("/dev/nvidia[0-9]*") and not hidden) or os.path.exists("/dev/kfd")
