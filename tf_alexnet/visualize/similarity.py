"""Similarity of photos by their features, and of layers by their photos, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tf_alexnet.errors import InputError, UsageError

DISTANCES = ("correlation", "euclidean", "cosine")
_BLOCK = 2**27  # bytes of similarities computed at a time


def nearest(
    queries: np.ndarray, rows: np.ndarray, count: int, itself: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest rows of each query by cosine similarity, by brute force.

    Parameters
    ----------
    queries : ndarray of float, (Q, D)
    rows : ndarray of float, (N, D)
    count : int
        Neighbours per query; fewer if there are fewer rows.
    itself : bool
        Whether the queries are the rows; a row is then not its own neighbour.

    Returns
    -------
    places : ndarray of int, (Q, count)
        Row indices, nearest first; ties in row order.
    similarities : ndarray of float32, (Q, count)
        -1 to 1; 0 for a row of zeros.
    """
    count = min(count, len(rows) - itself)
    unit, asked = _unit(rows), _unit(queries)
    places, similarities = [], []
    step = max(1, _BLOCK // max(1, 4 * len(rows)))
    for start in range(0, len(queries), step):
        found = asked[start : start + step] @ unit.T
        if itself:
            own = np.arange(len(found))
            found[own, start + own] = -np.inf
        order = np.argsort(-found, axis=1, kind="stable")[:, :count]
        places.append(order)
        similarities.append(np.take_along_axis(found, order, axis=1))
    return np.concatenate(places), np.concatenate(similarities)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def dissimilarity(rows: np.ndarray, distance: str = "correlation") -> np.ndarray:
    """The representational dissimilarity matrix of stimuli (Kriegeskorte et al. 2008).

    Parameters
    ----------
    rows : ndarray of float, (N, D)
        One row per stimulus.
    distance : {"correlation", "euclidean", "cosine"}
        1 - Pearson's r, the Euclidean distance, or 1 - cosine similarity.

    Returns
    -------
    ndarray of float64, (N, N)
        Symmetric with a zero diagonal, in row order. NaN for rows with NaN and, except for
        "euclidean", for rows that are 0 (or constant, for "correlation").

    Raises
    ------
    UsageError
        If the distance is unknown.
    """
    if distance not in DISTANCES:
        known = ", ".join(DISTANCES)
        raise UsageError(f"distance {distance!r}", "unknown", f"Use one of {known}.")
    rows = np.asarray(rows, np.float64)
    if distance == "correlation":
        rows = rows - rows.mean(axis=1, keepdims=True)
    products = rows @ rows.T
    squares = products.diagonal()
    if distance == "euclidean":
        found = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))
    else:
        lengths = np.sqrt(squares)
        lengths = np.where(lengths > 0, lengths, np.nan)
        found = 1 - np.clip(products / (lengths[:, None] * lengths), -1, 1)
    found = (found + found.T) / 2
    known = np.isfinite(found.diagonal())
    found[known, known] = 0
    return found


def rsa(matrices: Mapping[str, np.ndarray]) -> np.ndarray:
    """Spearman's rank correlation between dissimilarity matrices.

    Parameters
    ----------
    matrices : mapping of str to ndarray (N, N)

    Returns
    -------
    ndarray of float64, (layers, layers)
        Over the pairs of stimuli that are finite in all matrices; NaN with fewer than 2 such pairs.
    """
    from scipy.stats import spearmanr  # takes half a second to import

    pairs = np.stack([x[np.triu_indices(len(x), 1)] for x in matrices.values()])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    found = np.full((len(pairs), len(pairs)), np.nan)
    varied = [i for i, x in enumerate(pairs) if x.size > 1 and x.min() < x.max()]
    for i in varied:
        for j in varied:
            found[i, j] = 1.0 if i == j else spearmanr(pairs[i], pairs[j]).statistic
    return found


def linear_cka(layers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Linear centred kernel alignment between layers (Kornblith et al. 2019).

    For centred rows X and Y of the same stimuli it is ||Y'X||^2 / (||X'X|| ||Y'Y||), in Frobenius
    norms; computed from the (N, N) Gram matrices XX' and YY'.

    Parameters
    ----------
    layers : mapping of str to ndarray of float (N, D)
        Stimuli with a NaN in any layer are left out.

    Returns
    -------
    ndarray of float64, (layers, layers)
        0 to 1; NaN for a layer that is the same for all stimuli.
    """
    rows = {name: np.asarray(x, np.float64) for name, x in layers.items()}
    known = np.all([np.isfinite(x).all(axis=1) for x in rows.values()], axis=0)
    grams = []
    for x in rows.values():
        centred = x[known] - x[known].mean(axis=0)
        grams.append((centred @ centred.T).ravel())
    lengths = np.array([np.linalg.norm(x) for x in grams])
    lengths = np.where(lengths > 0, lengths, np.nan)
    return np.stack(grams) @ np.stack(grams).T / (lengths[:, None] * lengths)


def pca(rows: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal components, from the eigenvectors of the smaller Gram matrix.

    Parameters
    ----------
    rows : ndarray of float, (N, D)
    count : int
        Number of components, at most min(N, D).

    Returns
    -------
    coordinates : ndarray of float64, (N, count)
        Rows projected on the components, largest variance first. The largest absolute coordinate
        of each component is positive.
    shares : ndarray of float64, (count,)
        Fraction of the variance that each component explains.

    Raises
    ------
    InputError
        If there are fewer than 3 rows.
    """
    if len(rows) < 3:
        raise InputError(f"{len(rows)} photos", "a map needs 3 or more", "Extract more photos.")
    centred = np.asarray(rows, np.float64) - np.mean(rows, axis=0, dtype=np.float64)
    if centred.shape[1] < len(centred):
        values, vectors = np.linalg.eigh(centred.T @ centred)
        vectors = centred @ vectors
    else:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        vectors = vectors * np.sqrt(np.maximum(values, 0))
    values, found = values[::-1][:count], vectors[:, ::-1][:, :count]
    found = found * np.sign(found[np.abs(found).argmax(axis=0), np.arange(found.shape[1])])
    if found.shape[1] < count:  # one feature only
        found = np.pad(found, [(0, 0), (0, count - found.shape[1])])
        values = np.pad(values, (0, count - len(values)))
    total = np.square(centred).sum()
    return found, np.maximum(values, 0) / (total or 1)
