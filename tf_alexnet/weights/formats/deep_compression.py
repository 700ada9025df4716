"""Deep Compression's .net files: BVLC's AlexNet, pruned and quantised to about 8.9 MB.

The layout is that of ``decode.py`` in songhan/Deep-Compression-AlexNet, little-endian:

- uint32 x 8: the number of codes of each layer, conv1 to fc8;
- for each layer: float32 codebook with 256 entries (8-bit codes, convolutions) or 16 entries (4-bit
  codes, dense); float32 biases; the codes; a 4-bit gap for each code.

A gap is the number of weights skipped before a code, in Caffe's flattened order. Skipped weights
have code 0, that is the value ``codebook[0]``, which is usually 0; longer gaps than 15 are filled
with codes 0. The low half of each byte comes first. See Han, Mao and Dally 2016, "Deep
Compression".
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from tf_alexnet.architectures import BVLC_ALEXNET
from tf_alexnet.weights.arrays import LayerArrays, WeightArrays
from tf_alexnet.weights.catalog import file_checksum, known_weights
from tf_alexnet.weights.formats.common import assemble, channels_first, damaged, flattened_channels

ARCHITECTURE = BVLC_ALEXNET
HEAD = 32
_CHUNK = 1 << 20  # codes at a time; fc6 has several million


def recognised(head: bytes) -> bool:
    """Whether a file starts with a plausible number of codes for each layer."""
    counts = np.frombuffer(head[:HEAD], "<u4", len(head[:HEAD]) // 4).tolist()
    sizes = [math.prod(kernel) for kernel, _ in ARCHITECTURE.parameter_shapes().values()]
    return len(counts) == len(sizes) and all(
        0 < n <= size for n, size in zip(counts, sizes, strict=True)
    )


def _sizes(count: int, kernel: tuple[int, ...], bias: tuple[int, ...]) -> list[int]:
    """Bytes of the codebook, the biases, the codes and the gaps of a layer."""
    bits = 8 if len(kernel) == 4 else 4
    return [4 * 2**bits, 4 * bias[0], (count - 1) // (8 // bits) + 1, (count - 1) // 2 + 1]


def read(path: str | os.PathLike) -> WeightArrays:
    """Read a .net file of BVLC's AlexNet.

    Raises
    ------
    WeightsError
        If the file is damaged.
    """
    data = memoryview(Path(path).read_bytes())
    counts = np.frombuffer(data, "<u4", HEAD // 4).tolist()
    shapes = ARCHITECTURE.parameter_shapes()
    sizes = [_sizes(count, *pair) for count, pair in zip(counts, shapes.values(), strict=True)]
    _check_length(path, len(data) - HEAD - sum(map(sum, sizes)))
    # np.zeros takes no memory until it is written to.
    layers = {k: LayerArrays(*(np.zeros(x, np.float32) for x in v)) for k, v in shapes.items()}
    flattened = flattened_channels(layers)
    at = HEAD
    for count, parts, (name, (kernel, bias)) in zip(counts, sizes, layers.items(), strict=True):
        fields = []
        for size in parts:
            fields.append(np.frombuffer(data, "u1", size, at))
            at += size
        codebook = fields[0].view("<f4")
        bias[...] = fields[1].view("<f4")
        if codebook[0] != 0:
            kernel[...] = codebook[0]
        codes = fields[2] if kernel.ndim == 4 else _nibbles(fields[2], count)
        caffe = channels_first(kernel, flattened.get(name))
        if not _scatter(codebook[codes], _nibbles(fields[3], count), caffe):
            raise damaged(path, f"a Deep Compression file with codes beyond the end of {name}")
    return assemble(path, layers, ARCHITECTURE.name)


def _check_length(path: str | os.PathLike, beyond: int) -> None:
    """Raise an error for `beyond` extra bytes, except in the published file, which has some."""
    if beyond < 0:
        raise damaged(path, f"a Deep Compression file without its last {-beyond} bytes")
    source = known_weights("deep-compression").sources[0]
    if beyond and Path(path).name != source.file_name:
        algorithm, expected = source.checksum.split(":")
        if file_checksum(path, algorithm) != expected:
            raise damaged(
                path, f"a Deep Compression file with {beyond} bytes after its last stream"
            )


def _nibbles(packed: np.ndarray, count: int) -> np.ndarray:
    """`count` 4-bit numbers, low halves first."""
    return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]


def _scatter(values: np.ndarray, gaps: np.ndarray, kernel: np.ndarray) -> bool:
    """Write values into a kernel in Caffe's order; return False if they run past its end."""
    before = -1
    for start in range(0, len(values), _CHUNK):
        piece = slice(start, start + _CHUNK)
        positions = before + np.cumsum(gaps[piece].astype(np.int64) + 1)
        before = int(positions[-1])
        if before >= kernel.size:
            return False
        kernel[np.unravel_index(positions, kernel.shape)] = values[piece]
    return True
