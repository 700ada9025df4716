"""Deep Compression's files, against an encoder that shares no code with the decoder."""

import time

import numpy as np
import pytest
from weight_seeds import SMALL, deep_compression_file, nibbles

from tf_alexnet.errors import WeightsError
from tf_alexnet.weights.formats import deep_compression, read_file

SIDE = 2


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(deep_compression, "ARCHITECTURE", SMALL)


def pruned_network(seed=0, kept=0.2):
    """Codes in Caffe's flattened order (0 where pruned), codebooks and biases."""
    random = np.random.default_rng(seed)
    codes, codebooks, biases = {}, {}, {}
    for name, (kernel, bias) in SMALL.parameter_shapes().items():
        size = 256 if len(kernel) == 4 else 16
        flat = random.integers(1, size, np.prod(kernel)) * (random.random(np.prod(kernel)) < kept)
        flat[40:120] = 0  # a gap that takes five fillers
        flat[-1] = 1
        codes[name], biases[name] = flat, random.normal(size=bias).astype("f4")
        codebooks[name] = random.normal(size=size).astype("f4")
        codebooks[name][0] = 0
    return codes, codebooks, biases


@pytest.mark.parametrize("kept", [1.0, 0.2, 0.02])
def test_every_weight_of_a_small_network(tmp_path, small, kept):
    codes, codebooks, biases = pruned_network(1, kept)
    (tmp_path / "x.net").write_bytes(deep_compression_file(codes, codebooks, biases))
    found = read_file(tmp_path / "x.net")
    assert found.architecture == "small"
    for name, (kernel, _) in SMALL.parameter_shapes().items():
        flat = codebooks[name][codes[name]]
        if len(kernel) == 4:
            expected = flat.reshape(kernel[3], kernel[2], kernel[0], kernel[1])
            expected = expected.transpose(2, 3, 1, 0)
        elif name == "fc6":
            expected = flat.reshape(kernel[1], -1, SIDE, SIDE).transpose(2, 3, 1, 0)
            expected = expected.reshape(kernel)
        else:
            expected = flat.reshape(kernel[1], kernel[0]).T
        np.testing.assert_array_equal(found.layers[name].kernel, expected, strict=True)
        np.testing.assert_array_equal(found.layers[name].bias, biases[name], strict=True)


def test_low_half_comes_first():
    packed = np.frombuffer(nibbles([1, 2, 15]), "u1")
    assert packed.tolist() == [0x21, 0x0F]
    assert deep_compression._nibbles(packed, 3).tolist() == [1, 2, 15]


def test_codes_beyond_the_end_are_refused(tmp_path, small):
    codes, codebooks, biases = pruned_network()
    raw = deep_compression_file(codes, codebooks, biases)
    # the last gap of fc8, 0 or more, becomes 15
    (tmp_path / "x.net").write_bytes(raw[:-1] + b"\xff")
    with pytest.raises(WeightsError, match="codes beyond the end of fc8"):
        read_file(tmp_path / "x.net")
    for broken, found in (
        (raw[:-9], "without its last 9 bytes"),
        (raw + b"\0\0", "with 2 bytes after its last stream"),
        (b"\0\0\0\0" + raw[4:], "not a weight file of a known kind"),
    ):
        (tmp_path / "x.net").write_bytes(broken)
        with pytest.raises(WeightsError, match=found):
            read_file(tmp_path / "x.net")


def test_a_file_of_the_published_size(tmp_path):
    """As many codes as the paper keeps: 11 percent. It takes about a second."""
    random = np.random.default_rng(0)
    shapes = deep_compression.ARCHITECTURE.parameter_shapes()
    kept = dict(zip(shapes, (0.84, 0.38, 0.35, 0.37, 0.37, 0.09, 0.09, 0.25), strict=True))
    counts, body, last = [], [], {}
    for name, (kernel, bias) in shapes.items():
        bits, size = (8 if len(kernel) == 4 else 4), int(np.prod(kernel))
        count = int(size * kept[name])
        gaps = random.integers(0, min(16, max(1, int(2 / kept[name]) - 2)), count, "u1")
        gaps[0] = 0
        overshoot = int(gaps.sum(dtype="i8")) + count - size
        for index in np.flatnonzero(gaps)[: max(0, overshoot)]:
            gaps[index] -= min(gaps[index], 1)
        codes = random.integers(1, 2**bits, count, "u1")
        book = random.normal(size=2**bits).astype("<f4")
        book[0] = 0
        last[name] = (int(gaps.sum(dtype="i8")) + count - 1, book[codes[-1]], count)
        halves = np.append(gaps, np.zeros(count % 2, "u1"))
        packed = codes if bits == 8 else np.append(codes, np.zeros(count % 2, "u1"))
        packed = packed if bits == 8 else packed[::2] | packed[1::2] << 4
        counts.append(count)
        body += [book.tobytes(), np.zeros(bias, "<f4").tobytes(), packed.tobytes()]
        body.append((halves[::2] | halves[1::2] << 4).tobytes())
    raw = np.array(counts, "<u4").tobytes() + b"".join(body)
    assert 6e6 < len(raw) < 12e6
    (tmp_path / "x.net").write_bytes(raw)
    start = time.process_time()
    found = read_file(tmp_path / "x.net")
    assert time.process_time() - start < 6  # 1 s on an idle core
    assert found.architecture == "bvlc_alexnet"
    for name, (position, value, count) in last.items():
        kernel = found.layers[name].kernel
        if kernel.ndim == 4:
            assert np.count_nonzero(kernel) == count
            o, c, y, x = np.unravel_index(position, kernel.transpose(3, 2, 0, 1).shape)
            assert kernel[y, x, c, o] == value
        elif name != "fc6":
            assert kernel[position % kernel.shape[0], position // kernel.shape[0]] == value


def test_weights_without_a_code_have_code_0(tmp_path, small):
    """As in the authors' decoder: ``codebook[0]`` is usually 0, but need not be."""
    codes, codebooks, biases = pruned_network()
    codebooks = {name: np.copy(book) for name, book in codebooks.items()}
    for book in codebooks.values():
        book[0] = 0.125
    (tmp_path / "x.net").write_bytes(deep_compression_file(codes, codebooks, biases))
    found = read_file(tmp_path / "x.net")
    for name, flat in codes.items():
        expected = np.sort(codebooks[name][flat])
        np.testing.assert_array_equal(np.sort(found.layers[name].kernel, axis=None), expected)


def test_bytes_behind_the_last_stream(tmp_path, small):
    """Accepted in a file of the published name only; its content is not at hand here."""
    codes, codebooks, biases = pruned_network()
    raw = deep_compression_file(codes, codebooks, biases)
    (tmp_path / "x.net").write_bytes(raw)
    expected = read_file(tmp_path / "x.net").digest
    (tmp_path / "AlexNet_compressed.net").write_bytes(raw + b"tail")
    assert read_file(tmp_path / "AlexNet_compressed.net").digest == expected
    (tmp_path / "x.net").write_bytes(raw + b"tail")
    with pytest.raises(WeightsError):
        read_file(tmp_path / "x.net")
