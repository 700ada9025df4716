"""The .npy reader and writer against NumPy and Python's own pickle."""

import pickle
import warnings
from collections import OrderedDict

import numpy as np
import pytest
from weight_seeds import (
    as_dictionary,
    npy_header,
    python2_pickle,
    python2_text_pickle,
    small_arrays,
)

from tf_alexnet.errors import UsageError, WeightsError
from tf_alexnet.weights import WeightArrays
from tf_alexnet.weights.formats import npy, write_file

ARRAYS = small_arrays()


def read_bytes(folder, raw):
    path = folder / "weights.npy"
    path.write_bytes(raw)
    return npy.read(path)


def assert_same(found: WeightArrays, expected=ARRAYS):
    assert list(found.layers) == list(expected.layers)
    for name, layer in expected.layers.items():
        for a, b in zip(found.layers[name], layer, strict=True):
            assert a.dtype == np.float32
            assert a.flags.c_contiguous
            np.testing.assert_array_equal(a, b, strict=True)


def test_python2_stream_is_what_numpy_reads_and_what_we_read(tmp_path):
    raw = npy_header() + python2_pickle(ARRAYS)
    assert_same(read_bytes(tmp_path, raw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2.4 dislikes the integers of old dtypes
        theirs = np.load(tmp_path / "weights.npy", allow_pickle=True, encoding="latin1").item()
    for name, layer in ARRAYS.layers.items():
        np.testing.assert_array_equal(theirs[name][0], layer.kernel)


def test_python2_text_stream(tmp_path):
    raw = python2_text_pickle(ARRAYS)
    assert_same(read_bytes(tmp_path, npy_header() + raw))
    assert pickle.loads(raw, encoding="latin1").keys() == ARRAYS.layers.keys()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "form",
    [
        lambda d: d,
        lambda d: OrderedDict((k, tuple(v)) for k, v in d.items()),
        lambda d: {k.encode(): v for k, v in d.items()},
        lambda d: {k: {"biases": v[1], "weights": v[0]} for k, v in d.items()},
        lambda d: OrderedDict(
            (k.encode(), {b"weights": v[0], b"biases": v[1]}) for k, v in d.items()
        ),
    ],
    ids=["lists", "ordered tuples", "bytes keys", "dicts", "bytes all over"],
)
def test_python3_streams(tmp_path, protocol, form):
    whole = np.array(None, object)
    whole[()] = form(as_dictionary(ARRAYS))
    assert_same(read_bytes(tmp_path, npy_header() + pickle.dumps(whole, protocol)))
    assert_same(read_bytes(tmp_path, pickle.dumps(whole.item(), protocol)))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("change", "exact"),
    [
        (np.asfortranarray, True),
        (lambda a: np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0), True),
        (lambda a: a.astype(">f4"), True),
        (lambda a: a.astype("f8"), True),
        (lambda a: np.asfortranarray(a.astype(">f8")), True),
        (lambda a: np.clip(a, -6e4, 6e4).astype("f2"), False),
    ],
    ids=["fortran", "axes", "big", "double", "big fortran double", "half"],
)
def test_dtypes_and_memory_orders(tmp_path, protocol, change, exact):
    found = read_bytes(tmp_path, pickle.dumps(as_dictionary(ARRAYS, change), protocol))
    if exact:
        assert_same(found)
    else:
        half = {k: type(v)(*map(change, v)) for k, v in ARRAYS.layers.items()}
        assert_same(found, WeightArrays({k: type(v)(*(a.astype("f4") for a in v))
                                         for k, v in half.items()}))  # fmt: skip


def test_numpy_save_of_every_header_version(tmp_path):
    np.save(tmp_path / "saved.npy", as_dictionary(ARRAYS), allow_pickle=True)
    assert_same(npy.read(tmp_path / "saved.npy"))
    for version in (1, 2, 3):
        assert_same(read_bytes(tmp_path, npy_header(version=version) + python2_pickle(ARRAYS)))


def test_a_text_longer_than_a_decoder_window(tmp_path):
    """Protocols 0 to 2 write bytes as text; escapes straddle the windows it is decoded in."""
    kernel = np.frombuffer(b"\n\\\xff\x00" * 300_000, "<f4").reshape(1, 1, 100_000, 3)
    layers = {"conv1": [kernel, np.zeros(3, "f4")]}
    for protocol in (0, 1, 2):
        found = read_bytes(tmp_path, pickle.dumps(layers, protocol))
        assert found.layers["conv1"].kernel.tobytes() == kernel.tobytes()


def test_arrays_are_views_of_the_file(tmp_path):
    layers = read_bytes(tmp_path, npy_header() + python2_pickle(ARRAYS)).layers.values()
    assert all(not a.flags.owndata and not a.flags.writeable for pair in layers for a in pair)


def test_layers_come_in_network_order(tmp_path):
    backwards = dict(reversed([*as_dictionary(ARRAYS).items(), ("aux", [np.eye(2), np.ones(2)])]))
    found = read_bytes(tmp_path, pickle.dumps(backwards))
    assert list(found.layers) == ["conv1", "conv2", "fc6", "fc7", "fc8", "aux"]


@pytest.mark.parametrize("form", ["list", "dict"])
def test_what_we_write_numpy_and_we_read(tmp_path, form):
    path = tmp_path / "written.npy"
    record = {"architecture": "caffenet", "metadata": {"licence": "naïve\n\U0001f600"}}
    arrays = small_arrays(**record)
    npy.write(arrays, path, form)
    found = npy.read(path)
    assert_same(found)
    assert (found.architecture, found.metadata, found.source) == (*record.values(), str(path))
    for options in ({}, {"encoding": "latin1"}, {"encoding": "bytes"}):
        theirs = np.load(path, allow_pickle=True, **options).item()
        assert list(theirs) == list(ARRAYS.layers)
        for name, layer in ARRAYS.layers.items():
            pair = theirs[name] if form == "list" else list(theirs[name].values())
            np.testing.assert_array_equal(pair[0], layer.kernel, strict=True)
            np.testing.assert_array_equal(pair[1], layer.bias, strict=True)
            assert form == "list" or list(theirs[name]) == ["weights", "biases"]


def test_a_damaged_comment_is_no_metadata(tmp_path):
    for text in (b"{", b"[" * 60_000, b"[]", b'{"architecture": 3}', b'{"architecture": "resnet"}'):
        comment = b"tf_alexnet:" + text
        raw = python2_pickle(ARRAYS)
        raw = raw[:2] + b"X" + len(comment).to_bytes(4, "little") + comment + b"0" + raw[2:]
        found = read_bytes(tmp_path, raw)
        assert found.architecture is None
        assert_same(found)


def test_unknown_form_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"form='tuple'.* Use one of list, dict\.$"):
        write_file(ARRAYS, tmp_path / "x.npy", "tuple")


EYE, ONES = np.eye(2, dtype="f4"), np.ones(2, "f4")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"fc8": [EYE]}, "layer fc8 with 1 arrays instead of kernel and bias"),
        ({"fc8": [EYE, ONES, ONES]}, "layer fc8 with 3 arrays"),
        ({"fc8": 1}, "layer fc8 as something other than kernel and bias"),
        ({"fc8": [EYE, [1, 1]]}, "something other than an array in 'fc8/biases'"),
        ({"fc8": {"weights": EYE}}, "layer fc8 with only a kernel"),
        ({"fc8": {"weights": EYE, "b": ONES, "bias": ONES}}, "two arrays for the bias"),
        ({b"fc8": [EYE, ONES], "fc8": [EYE, ONES]}, "'fc8' twice"),
        ({"fc8": [EYE.astype("i4"), ONES]}, "an array of dtype 'i4' instead of floats"),
        (
            {"fc8": [np.ones((2, 2), int).astype(object), ONES]},
            "an array of dtype 'O8' instead of floats",
        ),
        ({"fc8": [np.zeros((0, 2), "f4"), ONES]}, "an array of invalid shape in 'fc8/weights'"),
        ({"fc8": [np.zeros((1,) * 5, "f4"), ONES]}, "an array of invalid rank in 'fc8/weights'"),
        ({"fc8": [EYE, np.ones(3, "f4")]}, r"kernel of shape \(2, 2\) and a bias of \(3,\)"),
        ({3: [EYE, ONES]}, "something else where a name belongs"),
        ([EYE, ONES], "a list where its layers belong"),
        ({}, "no layer with weights in it"),
    ],
)
def test_unfit_contents_are_named(tmp_path, value, found):
    for protocol in (3, 4):
        with pytest.raises(WeightsError, match=found) as caught:
            read_bytes(tmp_path, pickle.dumps(value, protocol))
        assert "\n" not in str(caught.value)


def test_other_numpy_files_are_named(tmp_path):
    np.save(tmp_path / "mean.npy", np.zeros((3, 256, 256)))
    with pytest.raises(
        WeightsError, match=r"a plain NumPy array of dtype <f8 and shape \(3, 256, 256\)\. "
    ):
        npy.read(tmp_path / "mean.npy")
    with pytest.raises(WeightsError, match="no NumPy array of a known version"):
        read_bytes(tmp_path, npy_header(version=4) + python2_pickle(ARRAYS))
    whole = npy_header() + python2_pickle(ARRAYS)
    with pytest.raises(WeightsError, match="1 bytes follow the end"):
        read_bytes(tmp_path, whole + b"\n")


def test_every_truncation_is_refused(tmp_path):
    whole = npy_header() + python2_pickle(small_arrays(1))
    for size in [*range(7, 700), *range(701, len(whole), 97), len(whole) - 1]:
        with pytest.raises(WeightsError):
            read_bytes(tmp_path, whole[:size])
