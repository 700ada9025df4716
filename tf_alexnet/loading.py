"""`load_model`: saved Keras models. The configuration is checked before Keras builds anything."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import keras

from tf_alexnet.errors import AlexNetError, UsageError, WeightsError

_MAX_CONFIG = 16 << 20
# Values that Keras serializes like objects, with a class name
_VALUES = {"__tuple__", "__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__"}
_MODULES = tuple(
    "keras" + module
    for module in (
        *("", ".layers", ".models", ".initializers", ".regularizers", ".constraints"),
        *(".optimizers", ".optimizers.schedules", ".losses", ".metrics"),
        *(".dtype_policies", ".quantizers", ".src.models.functional"),
    )
)
# Layers that run code, or read files named in their configuration
_UNSAFE = {
    *("Lambda", "FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    *("IntegerLookup", "StringLookup", "TextVectorization"),
}


def load_model(path: str | os.PathLike) -> keras.Model:
    """Load a saved model, without running code from the file.

    Parameters
    ----------
    path : path-like
        ``.keras`` or ``.h5`` from ``model.save``, ``.json`` from ``model.to_json`` (random
        weights), or the RUN folder of a training.

    Returns
    -------
    keras.Model
        As it was saved; compiled if it was.

    Raises
    ------
    UsageError
        If `path` is not a saved Keras model.
    WeightsError
        If the file is damaged, or uses a layer or function from outside Keras and tf_alexnet.
    """
    place = Path(path)
    if place.is_dir():
        return _from_folder(place)
    if not place.is_file():
        raise UsageError(str(path), "there is no such file", "Check the path.")
    if place.suffix not in (".keras", ".h5", ".hdf5", ".json"):
        raise UsageError(
            str(path),
            "its suffix is not that of a saved Keras model (.keras, .h5, .json)",
            "If it is a weight file, pass it to AlexNet().",
        )
    try:
        texts = [*_CONFIGS[place.suffix](place)]
        for text in texts:
            _check(path, json.loads(text))
        if place.suffix == ".json":
            return keras.models.model_from_json(texts[0])
        return keras.models.load_model(path, safe_mode=True)
    except AlexNetError:
        raise
    except Exception as error:  # a damaged file makes Keras raise nearly anything
        reason = str(error).strip().partition("\n")[0][:300].rstrip(".")
        raise WeightsError(
            str(path), f"Keras can't load it: {reason}", "Get the file again, or save it again."
        ) from None


def _from_folder(folder: Path) -> keras.Model:
    from tf_alexnet.training.run import RECORD, Run

    if (folder / RECORD).is_file():
        return Run.open(folder).model
    if (folder / "saved_model.pb").is_file():
        raise UsageError(
            str(folder),
            "a SavedModel holds a graph, not a Keras model",
            "Use tf.saved_model.load, or keras.layers.TFSMLayer.",
        )
    raise UsageError(
        str(folder), f"a folder without {RECORD}", "Name a RUN of `tf-alexnet train`, or a file."
    )


def _of_keras(path: Path) -> Iterator[bytes]:
    with zipfile.ZipFile(path) as archive:
        _check_size(archive.getinfo("config.json").file_size)
        yield archive.read("config.json")


def _of_hdf5(path: Path) -> Iterator[str]:
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise UsageError(
                str(path), "it holds weights but no model", "Pass it to AlexNet() as weights."
            )
        for name in {"model_config", "training_config"} & file.attrs.keys():
            yield file.attrs[name]


def _of_json(path: Path) -> Iterator[str]:
    _check_size(path.stat().st_size)
    yield path.read_text(encoding="utf-8")


def _check_size(size: int) -> None:
    if size > _MAX_CONFIG:
        raise ValueError(f"its configuration is larger than {_MAX_CONFIG >> 20} MiB")


_CONFIGS = {".keras": _of_keras, ".h5": _of_hdf5, ".hdf5": _of_hdf5, ".json": _of_json}


def _check(path, config: Any) -> None:
    """Raise an error if a configuration refers to anything but classes of Keras and ours."""
    waiting = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "class_name" in node and not _is_known(node):
                name = node["config"] if node["class_name"] == "function" else node["class_name"]
                where = f" of {node['module']}" if node.get("module") else ""
                raise WeightsError(
                    str(path),
                    f"it refers to {name!r}{where}, not a safe part of Keras or tf_alexnet",
                    "If you trust the file, register your class and use keras.models.load_model.",
                )
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _is_known(node: dict) -> bool:
    """Whether `node`, a serialized object, is a plain value or of a class that is safe."""
    name, module = node["class_name"], node.get("module")
    if not isinstance(name, str) or not isinstance(module, str | None):
        return False
    if name in _VALUES:
        return True
    registered = node.get("registered_name") or name
    if str(registered).startswith("tf_alexnet>"):
        own = keras.saving.get_registered_object(registered)
        return own is not None and own.__module__.startswith("tf_alexnet.")
    if registered != name or name in _UNSAFE:
        return False
    if name == "function":
        found = node.get("config")
        homes = (keras.activations, keras.losses, keras.metrics)
        known = isinstance(found, str) and any(hasattr(home, found) for home in homes)
        return known and module == "builtins"
    if module is None:  # files of Keras 2
        homes = _MODULES
    else:
        homes = (module,) if module in _MODULES or module.startswith("keras.src.ops.") else ()
    return any(isinstance(getattr(import_module(home), name, None), type) for home in homes)
