"""`Rows`: features in a file, as blocks of rows with labels that one may go through many times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tf_alexnet.extraction.formats import open_output
from tf_alexnet.training.softmax import Standard

_MEMORY = 1 << 30  # bytes of rows that are held; more are read again in every pass


class Rows:
    """Rows of a file of features, with labels, by part; held in memory where they fit.

    Parameters
    ----------
    file : path
        From `extract_features`.
    layer : str
        Which rows.
    parts : dict of str to list of (str, int)
        Part -> place and label of each photo; those without a row are left out.

    Attributes
    ----------
    labels : dict of str to ndarray of int
        Part -> labels of its rows, in the order of the file.
    """

    def __init__(self, file: Path, layer: str, parts: Mapping[str, Sequence[tuple[str, int]]]):
        self._file, self._layer = file, layer
        with open_output(file) as output:
            place = {photo.place: i for i, photo in enumerate(output.photos)}
            width = int(np.prod(output.layers[layer][0]))
        self._rows: dict[str, np.ndarray] = {}
        self.labels: dict[str, np.ndarray] = {}
        for name, photos in parts.items():
            found = sorted((place[path], label) for path, label in photos if path in place)
            self._rows[name] = np.array([row for row, _ in found], np.int64)
            self.labels[name] = np.array([label for _, label in found], np.int64)
        total = sum(map(len, self._rows.values())) * width * 8
        self._held: dict[str, list] | None = {} if total <= _MEMORY else None
        self._standard: Standard | None = None

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_) -> None:
        self._held = None

    def standardize(self, standard: Standard) -> None:
        """Let `blocks` give ``(x - mean) * scale`` from now on."""
        self._standard = standard
        if self._held is not None:
            self._held = {}

    def blocks(self, part: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows (n, d) float64 and labels (n,) of a part, block by block."""
        if self._held is None:
            yield from self._read(part)
            return
        if part not in self._held:
            self._held[part] = _joined(list(self._read(part)))
        yield from self._held[part]

    def _read(self, part: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        labels, start = self.labels[part], 0
        with open_output(self._file) as output:
            for blobs in output.blocks([self._layer], self._rows[part]):
                rows = blobs[self._layer].reshape(len(blobs[self._layer]), -1).astype(np.float64)
                if self._standard is not None:
                    rows -= self._standard.mean
                    rows *= self._standard.scale
                yield rows, labels[start : start + len(rows)]
                start += len(rows)


def _joined(blocks: list) -> list:
    """One block of many; none of none."""
    if len(blocks) < 2:
        return blocks
    rows, labels = zip(*blocks, strict=True)
    return [(np.concatenate(rows), np.concatenate(labels))]
