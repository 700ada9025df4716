"""Export targets: their files, runtimes and tolerances."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from tf_alexnet.errors import UsageError

VARIANTS = ("float32", "float16", "dynamic", "int8")

# Largest deviation relative to the blob's maximum: of the features, and of the probabilities.
TOLERANCES = {
    "float32": (1e-5, 1e-4),
    "float16": (5e-3, 5e-3),
    "dynamic": (5e-2, 5e-2),
    "int8": (5e-2, 5e-2),
}


@dataclass(frozen=True)
class Target:
    """An export format.

    Attributes
    ----------
    title : str
        Name of the format.
    module : str
        Module of this package that writes it: a function ``write(source, path)``, and a template
        ``USAGE`` for the model card.
    file : str
        File to load, relative to the folder.
    runtime : str
        Name of the library that runs it.
    runtimes : tuple of str
        Modules that can run it; one must be installed.
    install : str
        Argument of ``pip install`` if none is.
    variants : tuple of str
        Supported `VARIANTS`.
    """

    title: str
    module: str
    file: str
    runtime: str
    runtimes: tuple[str, ...] = ("tensorflow",)
    install: str = "tensorflow"
    variants: tuple[str, ...] = VARIANTS[:1]

    def load(self) -> ModuleType:
        """Import the module that writes it."""
        return import_module(f"tf_alexnet.export.{self.module}")


TARGETS = {
    "savedmodel": Target("TensorFlow SavedModel", "saved_model", "1/saved_model.pb", "TensorFlow"),
    "litert": Target(
        "LiteRT (TensorFlow Lite) model", "litert", "alexnet.tflite", "LiteRT",
        ("ai_edge_litert", "tensorflow"), "'tf-alexnet[litert]'", VARIANTS,
    ),
    "onnx": Target(
        "ONNX model", "onnx_model", "alexnet.onnx", "ONNX Runtime",
        ("onnxruntime",), "'tf-alexnet[onnx]'",
    ),
    "openvino": Target(
        "OpenVINO IR", "openvino_ir", "alexnet.xml", "OpenVINO",
        ("openvino",), "'tf-alexnet[openvino]'",
    ),
    "keras": Target("Keras model", "keras_model", "alexnet.keras", "Keras"),
    "caffe": Target(
        "Caffe model", "caffe_model", "alexnet.caffemodel", "OpenCV",
        ("cv2",), "'opencv-python-headless<5'",
    ),
}  # fmt: skip


def target_named(name: str, variant: str = "float32") -> Target:
    """The target called `name`, if its runtime is installed.

    Raises
    ------
    UsageError
        If there is no such target or variant, or the runtime is not installed.
    """
    if name not in TARGETS:
        raise UsageError(f"target {name!r}", "unknown", f"Use one of {', '.join(TARGETS)}.")
    target = TARGETS[name]
    if variant not in target.variants:
        known = "Use float32." if variant in VARIANTS else f"Use one of {', '.join(VARIANTS)}."
        raise UsageError(f"variant {variant!r} of {name}", "not supported", known)
    if not any(importlib.util.find_spec(x) for x in target.runtimes):
        raise UsageError(
            f"target {name!r}",
            f"{target.runtime} is not installed, and every export is verified in its own runtime",
            f"Install it: pip install {target.install}.",
        )
    if name == "caffe":
        _check_opencv()
    return target


def _check_opencv() -> None:
    import cv2

    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise UsageError(
            "target 'caffe'",
            f"OpenCV {cv2.__version__} has no Caffe importer (version 5 dropped it), and every "
            "export is verified in its own runtime",
            "Install one that has: pip install 'opencv-python-headless<5'. Or export to onnx.",
        )
