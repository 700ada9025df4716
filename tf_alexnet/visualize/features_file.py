"""Read the rows of features that `extract` wrote, in their order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tf_alexnet.architectures import blob_names
from tf_alexnet.errors import AlexNetError, InputError, LayerError
from tf_alexnet.extraction.formats import open_output
from tf_alexnet.extraction.storage import SUFFIXES

_ADVICE = "Name a file or folder that `tf-alexnet extract` wrote."


@dataclass(frozen=True, eq=False)
class Features:
    """Rows of features.

    Attributes
    ----------
    paths : list of str
        The photo of each row.
    layers : dict of str to ndarray of float32, (N, D)
        Layer -> its rows; blobs with height and width are flattened.
    attributes : dict of str to str
        Metadata of the file: weights, preset and more.
    """

    paths: list[str]
    layers: dict[str, np.ndarray]
    attributes: dict[str, str]

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {rows.shape}" for name, rows in self.layers.items())
        return f"<Features {len(self.paths)} photos: {arrays}>"

    def complete(self, layer: str) -> tuple[list[str], np.ndarray, int]:
        """Paths and rows without NaN, and the number of rows left out."""
        rows = self.layers[layer]
        known = np.isfinite(rows).all(axis=1)
        paths = [path for path, good in zip(self.paths, known, strict=True) if good]
        return paths, rows[known], int((~known).sum())


def read_features(path: str | os.PathLike, layers: str | Sequence[str] | None = None) -> Features:
    """Read an output of `extract_features`.

    Parameters
    ----------
    path : path
        ``.h5``, ``.npz``, ``.npy``, ``.mat`` or ``.parquet``, or a folder of shards.
    layers : str or sequence of str, optional
        Layers to read; by default all of them.

    Returns
    -------
    Features

    Raises
    ------
    InputError
        If it is not such an output, or has no rows.
    LayerError
        If a layer was not extracted.
    """
    paths, parts, attributes = [], {}, {}
    for file in _files(Path(path)):
        with _telling(file), open_output(file) as output:
            attributes = attributes or output.attributes
            wanted = list(output.layers) if layers is None else list(blob_names(layers))
            if missing := [x for x in wanted if x not in output.layers]:
                raise LayerError(
                    f"layer {missing[0]!r} of {os.fspath(path)}",
                    "it was not extracted",
                    f"The file has: {', '.join(output.layers)}.",
                )
            for block in output.blocks(wanted):
                for name, values in block.items():
                    rows = values.reshape(len(values), -1).astype(np.float32)
                    parts.setdefault(name, []).append(rows)
            paths += output.paths
    if not paths:
        raise InputError(os.fspath(path), "it holds no rows", _ADVICE)
    return Features(paths, {name: np.concatenate(x) for name, x in parts.items()}, attributes)


def _files(path: Path) -> list[Path]:
    """The file, or the shards of a folder in order."""
    if path.is_dir():
        kinds = (".h5", ".parquet")
        files = sorted(x for x in path.iterdir() if x.suffix in kinds and x.name[0] not in "._")
        if files:
            return files
        raise InputError(os.fspath(path), "the folder has no shards of features", _ADVICE)
    if not path.is_file():
        raise InputError(os.fspath(path), "there is no such file", _ADVICE)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(os.fspath(path), "not a feature file, by its suffix", _ADVICE)
    return [path]


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except ImportError:
        advice = "Install it: pip install 'tf-alexnet[parquet]'."
        raise InputError(os.fspath(path), "pyarrow is not installed", advice) from None
    except AlexNetError:
        raise
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        found = f"it can't be read as features ({error or type(error).__name__})"
        raise InputError(os.fspath(path), found, _ADVICE) from None
