"""The targets: what each is called, what its verification needs, how far it may be off."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from tf_alexnet.errors import UsageError

VARIANTS = ("float32", "float16", "dynamic", "int8")

# Largest deviation, as a part of the blob's maximum: of the features, and of the probabilities.
TOLERANCES = {
    "float32": (1e-5, 1e-4),
    "float16": (5e-3, 5e-3),
    "dynamic": (5e-2, 5e-2),
    "int8": (5e-2, 5e-2),
}


@dataclass(frozen=True)
class Target:
    """A kind of model file.

    Attributes
    ----------
    title : str
        What it is called.
    module : str
        The module of this room that writes it: a function ``write(source, folder)`` and a text
        ``USAGE`` for the model card.
    file : str
        What to load, below the folder.
    runtime : str
        The library that runs it.
    runtimes : tuple of str
        Modules of which one must be installed to run it.
    install : str
        What to install where none is.
    variants : tuple of str
        Of `VARIANTS`, those that there are.
    """

    title: str
    module: str
    file: str
    runtime: str
    runtimes: tuple[str, ...]
    install: str
    variants: tuple[str, ...] = VARIANTS[:1]

    def load(self) -> ModuleType:
        """The module that writes it."""
        return import_module(f"tf_alexnet.export.{self.module}")


TARGETS = {
    "savedmodel": Target(
        title="TensorFlow SavedModel",
        module="saved_model",
        file="1/saved_model.pb",
        runtime="TensorFlow",
        runtimes=("tensorflow",),
        install="tensorflow",
    ),
    "litert": Target(
        title="LiteRT (TensorFlow Lite) model",
        module="litert",
        file="alexnet.tflite",
        runtime="LiteRT",
        runtimes=("ai_edge_litert", "tensorflow"),
        install="'tf-alexnet[litert]'",
        variants=VARIANTS,
    ),
    "onnx": Target(
        title="ONNX model",
        module="onnx_model",
        file="alexnet.onnx",
        runtime="ONNX Runtime",
        runtimes=("onnxruntime",),
        install="'tf-alexnet[onnx]'",
    ),
    "openvino": Target(
        title="OpenVINO IR",
        module="openvino_ir",
        file="alexnet.xml",
        runtime="OpenVINO",
        runtimes=("openvino",),
        install="'tf-alexnet[openvino]'",
    ),
    "keras": Target(
        title="Keras model",
        module="keras_model",
        file="alexnet.keras",
        runtime="Keras",
        runtimes=("tensorflow",),
        install="tensorflow",
    ),
    "caffe": Target(
        title="Caffe model",
        module="caffe_model",
        file="alexnet.caffemodel",
        runtime="OpenCV",
        runtimes=("cv2",),
        install="'opencv-python-headless<5'",
    ),
}


def target_named(name: str, variant: str = "float32") -> Target:
    """The target called `name`, if this machine can verify it.

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
        raise UsageError(f"variant {variant!r} of {name}", "there is none", known)
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
