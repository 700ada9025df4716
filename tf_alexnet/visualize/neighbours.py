"""Nearest neighbours of photos in a file of features."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_alexnet.errors import InputError, UsageError
from tf_alexnet.extraction.spec import ExtractionSpec
from tf_alexnet.files import replacing
from tf_alexnet.images import load_image
from tf_alexnet.visualize.sheets import PAGE_ROWS, check_foreign, contact_sheet, save_picture
from tf_alexnet.visualize.similarity import nearest


class Neighbours(NamedTuple):
    """A photo and its nearest neighbours: path and cosine similarity of each."""

    query: str
    neighbours: list[tuple[str, float]]


def outside(queries: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The queries that are not among `paths`, compared by real path."""
    known = _places(paths)
    return [query for query in queries if os.path.realpath(query) not in known]


def _places(paths: Sequence[str]) -> dict[str, int]:
    return {os.path.realpath(path): number for number, path in enumerate(paths)}


def rows_of(
    photos: Sequence[str],
    attributes: Mapping[str, str],
    layer: str,
    weights: Any,
    mean_image: Any = None,
) -> dict[str, np.ndarray]:
    """Compute features of other photos with the settings of a file.

    Parameters
    ----------
    photos : sequence of str
    attributes : mapping of str to str
        `Features.attributes`.
    layer : str
    weights, mean_image
        As in `FeatureExtractor`.

    Returns
    -------
    dict of str to ndarray of float32, (D,)

    Raises
    ------
    UsageError
        If the file was made with other weights or another mean image.
    ImageError
        If a photo can't be read.
    """
    from tf_alexnet.extraction.extractor import FeatureExtractor

    # Files of version 0.1 don't record these: they were constant.
    settings = {"dtype": "float32", "pool": "none", "crops": "center", "depth": "auto"}
    settings |= {name: attributes[name] for name in settings if name in attributes}
    network = {name: attributes.get(name) for name in ("architecture", "preset")}
    extractor = FeatureExtractor(weights, (layer,), **network, mean_image=mean_image)
    network |= {name: getattr(extractor, name) for name in (*network, "mean_image")}
    spec = ExtractionSpec(weights, (layer,), **network, **settings)
    made = spec.fingerprint(extractor.weights_digest)
    for name, advice in (
        ("weights_digest", "Give the weights of the file with --weights."),
        ("mean_image", "Give the mean image of the file with --mean-image."),
    ):
        if attributes.get(name, made[name]) != made[name]:
            found = f"the file was made with {_known(attributes, name)}"
            raise UsageError(f"{name.replace('_', ' ')} {made[name][:20]}", found, advice)
    rows = {}
    for photo in photos:
        image = load_image(photo, depth=settings["depth"])
        blobs = extractor(extractor.preprocess([image], settings["crops"]))
        rows[photo] = spec.rows(blobs)[layer][0].ravel().astype(np.float32)
    return rows


def _known(attributes: Mapping[str, str], name: str) -> str:
    source = attributes.get("weights_source", "") if name == "weights_digest" else ""
    return f"{source} {attributes[name][:20]}".strip()


def find(
    paths: Sequence[str],
    rows: np.ndarray,
    queries: Sequence[str] | None = None,
    others: Mapping[str, np.ndarray] | None = None,
    count: int = 8,
) -> list[Neighbours]:
    """Find the nearest neighbours of photos.

    Parameters
    ----------
    paths : sequence of str
        The photos to search.
    rows : ndarray of float32, (N, D)
        Their features.
    queries : sequence of str, optional
        By default all of `paths`. A photo is never its own neighbour.
    others : mapping of str to ndarray (D,), optional
        Features of queries that are not among `paths`.
    count : int
        Neighbours per query.

    Returns
    -------
    list of Neighbours
    """
    if not queries:
        found = zip(*nearest(rows, rows, count, itself=True), strict=True)
        return [_named(path, paths, *some) for path, some in zip(paths, found, strict=True)]
    known, others, results = _places(paths), others or {}, []
    for query in queries:
        place = known.get(os.path.realpath(query))
        row = others[query] if place is None else rows[place]
        if row.shape != rows.shape[1:]:
            raise InputError(f"query {query}", f"it has {row.size} features", "Check the layer.")
        places, similarities = nearest(row[None], rows, count + (place is not None))
        kept = places[0] != (-1 if place is None else place)
        results.append(_named(query, paths, places[0][kept][:count], similarities[0][kept]))
    return results


def _named(query: str, paths: Sequence[str], places: Any, similarities: Any) -> Neighbours:
    pairs = zip(places, similarities, strict=False)
    return Neighbours(query, [(paths[i], float(x)) for i, x in pairs])


def write_csv(results: Sequence[Neighbours], path: str | os.PathLike) -> None:
    """Write one line per neighbour: query, rank, neighbour, similarity.

    Raises
    ------
    OutputError
        If it can't be written.
    """
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["query", "rank", "neighbour", "similarity"])
        for result in results:
            for rank, (name, similarity) in enumerate(result.neighbours, 1):
                table.writerow([result.query, rank, name, f"{similarity:.6f}"])


def save_sheets(results: Sequence[Neighbours], path: str | os.PathLike, title: str) -> list[str]:
    """Draw contact sheets of at most 50 rows; several are numbered: ``name-1.png``, ...

    Returns
    -------
    list of str
        The files written.

    Raises
    ------
    OutputError
        If one can't be written, or would replace a file that this package did not write.
    """
    pages = [results[i : i + PAGE_ROWS] for i in range(0, len(results), PAGE_ROWS)]
    whole, places = Path(path), [os.fspath(path)]
    if len(pages) > 1:
        names = (f"{whole.stem}-{number}{whole.suffix}" for number in range(1, len(pages) + 1))
        places = [os.fspath(whole.with_name(name)) for name in names]
    for place in places:
        check_foreign(place)
    for place, page in zip(places, pages, strict=True):
        rows = [(x.query, os.path.basename(x.query), x.neighbours) for x in page]
        save_picture(contact_sheet(rows, title), place)
    return places
