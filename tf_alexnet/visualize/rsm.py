"""Compute, plot and write dissimilarity matrices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tf_alexnet.errors import OutputError
from tf_alexnet.visualize.features_file import Features
from tf_alexnet.visualize.figures import save_figure
from tf_alexnet.visualize.maps import check_stimuli, rsm_figure, write_matrix
from tf_alexnet.visualize.similarity import dissimilarity, linear_cka, rsa


class Matrices(NamedTuple):
    """Results of `save_rsm`.

    Attributes
    ----------
    layers : dict of str to ndarray of float64, (N, N)
        Layer -> dissimilarities, in row order.
    between : dict of str to ndarray of float64, (layers, layers)
        ``RSA (Spearman)``: rank correlations of the matrices; ``linear CKA``. Empty for one layer.
    files : list of str
        The picture, and for each layer a ``.npy`` and a ``.csv``.
    """

    layers: dict[str, np.ndarray]
    between: dict[str, np.ndarray]
    files: list[str]


def save_rsm(
    features: Features, distance: str, path: str | os.PathLike, name: str = ""
) -> Matrices:
    """Compute one matrix per layer, plot them, and write them as ``.npy`` and ``.csv``.

    Parameters
    ----------
    features : Features
        One row per stimulus.
    distance : str
        As in `dissimilarity`.
    path : path
        The picture; the matrices are written next to it as ``<name>-<layer>.npy`` and ``.csv``, the
        comparison of several layers as ``<name>-layers.csv``.
    name : str
        Name of the features, for the title.

    Returns
    -------
    Matrices

    Raises
    ------
    InputError
        If there are more than 10,000 stimuli.
    OutputError
        If a file can't be written, or would replace one without its picture.
    """
    check_stimuli(len(features.paths))
    whole = Path(path)
    tables = {x: whole.with_name(f"{whole.stem}-{x}.npy") for x in features.layers}
    several = whole.with_name(f"{whole.stem}-layers.csv") if len(tables) > 1 else None
    _check_tables(whole, [*tables.values(), *([several] if several else [])])
    matrices = {x: dissimilarity(rows, distance) for x, rows in features.layers.items()}
    between = {}
    if several:
        between = {"RSA (Spearman)": rsa(matrices), "linear CKA": linear_cka(features.layers)}
    save_figure(rsm_figure(matrices, features.paths, distance, between, title=name), path)
    files = [os.fspath(path)]
    for layer, place in tables.items():
        write_matrix(place, matrices[layer])
        write_matrix(place.with_suffix(".csv"), matrices[layer], features.paths, features.paths)
        files += [os.fspath(place), os.fspath(place.with_suffix(".csv"))]
    if several:
        names = [f"{title}: {layer}" for title in between for layer in matrices]
        write_matrix(several, np.concatenate([*between.values()]), names, list(matrices))
        files.append(os.fspath(several))
    return Matrices(matrices, between, files)


def _check_tables(picture: Path, tables: list[Path]) -> None:
    """Refuse to replace tables whose picture is missing: they may not be ours."""
    for table in [] if picture.exists() else tables:
        for place in (table, table.with_suffix(".csv")):
            if place.exists():
                raise OutputError(
                    os.fspath(place),
                    f"it exists, but its picture, {picture.name}, does not",
                    "Choose another name with -o, or remove the file.",
                )
