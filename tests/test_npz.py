"""NumPy archives, against NumPy itself and archives spelt by hand."""

import struct
import warnings
import zipfile

import numpy as np
import pytest
from weight_seeds import npy_header, small_arrays

from tf_alexnet.errors import WeightsError
from tf_alexnet.weights.formats import read_file, write_file

ARRAYS = small_arrays(architecture="caffenet", metadata={"licence": "CC BY", "title": "é\n𝄞"})


def named(change=lambda a: a):
    return {
        f"{name}/{part}": change(getattr(layer, part))
        for name, layer in ARRAYS.layers.items()
        for part in ("kernel", "bias")
    }


def test_numpy_reads_what_is_written(tmp_path):
    write_file(ARRAYS, tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz") as archive:
        assert set(archive.files) == {*named(), "metadata"}
        for key, array in named().items():
            np.testing.assert_array_equal(archive[key], array, strict=True)
        assert '"architecture": "caffenet"' in archive["metadata"].item()
    with zipfile.ZipFile(tmp_path / "net.npz") as archive:
        assert archive.testzip() is None
    again = tmp_path / "again.npz"
    write_file(ARRAYS, again)
    assert again.read_bytes() == (tmp_path / "net.npz").read_bytes()
    found = read_file(again)
    assert (found.architecture, found.metadata) == ("caffenet", ARRAYS.metadata)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_is_read(tmp_path, save, dtype, order):
    save(tmp_path / "net.npz", **named(lambda a: np.asarray(a, dtype, order=order)))
    found = read_file(tmp_path / "net.npz")
    assert found.digest == ARRAYS.digest
    assert (found.architecture, found.metadata) == (None, {})


def test_half_precision_becomes_float32(tmp_path):
    bias = ARRAYS.layers["fc8"].bias.astype("f2")
    np.savez(tmp_path / "net.npz", **{"fc8/kernel": np.ones((2, 5), "f2"), "fc8/bias": bias})
    found = read_file(tmp_path / "net.npz").layers["fc8"].bias
    np.testing.assert_array_equal(found, bias.astype("f4"), strict=True)


def archive_of(path, members, method=zipfile.ZIP_STORED):
    with warnings.catch_warnings():  # of names that occur twice
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, raw in members:
                archive.writestr(name, raw)


def array(shape, data, descr="<f4", version=1):
    return npy_header(descr, shape, version) + data


GOOD = [("fc8/kernel.npy", array((1, 2), bytes(8))), ("fc8/bias.npy", array("(2,)", bytes(8)))]


def replaced(raw):
    return [("fc8/kernel.npy", raw), GOOD[1]]


@pytest.mark.parametrize(
    ("members", "found"),
    [
        (replaced(array((1, 2), bytes(16), "<i8")), r"dtype <i8 and shape \(1, 2\)"),
        (replaced(array((1, 2), bytes(16), "|O")), r"dtype \|O and shape|invalid header"),
        (replaced(array((1, 2), bytes(8), "<c8")), "dtype <c8"),
        (replaced(array((), bytes(4))), r"shape \(\)"),
        (replaced(array((1, 1, 1, 1, 2), bytes(8))), "shape"),
        (replaced(array((0, 2), b"")), r"shape \(0, 2\)"),
        (replaced(array((1, 2), bytes(7))), "shape|fewer bytes"),
        (replaced(array((1, 2), bytes(9))), "shape .* in 9 bytes"),
        (replaced(array((1 << 40, 1 << 40), bytes(8))), "shape"),
        (replaced(array((-1, -2), bytes(8))), "invalid header"),
        (replaced(array("(9" + "9" * 90 + ",)", bytes(8))), "shape"),
        (
            replaced(b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"{" * 60_000),
            "invalid header",
        ),
        (replaced(b"\x93NUMPY\x09\x00\x00\x00"), "no NumPy array"),
        (replaced(b"hello"), "no NumPy array"),
        (replaced(b""), "no NumPy array"),
        ([GOOD[0]], "layer fc8 with only a kernel"),
        ([*GOOD, GOOD[0]], "a member twice"),
        ([*GOOD, ("fc8_W.npy", GOOD[0][1])], "two arrays for the kernel of layer 'fc8'"),
        ([*GOOD, ("bn1/gamma.npy", GOOD[1][1])], r"normalisation layers \(layer 'bn1'\)"),
        ([*GOOD, ("metadata.npy", array((), bytes(4)))], "dtype <f4 for metadata"),
        ([*GOOD, ("metadata.npy", array((), b"\xff" * 8, "<U2"))], "broken text"),
        ([*GOOD, ("metadata.npy", array((), bytes(4 << 20), f"<U{1 << 20}"))], "of metadata"),
    ],
)
def test_other_archives_are_named(tmp_path, members, found):
    archive_of(tmp_path / "x.npz", members)
    with pytest.raises(WeightsError, match=found) as caught:
        read_file(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)


def test_headers_of_versions_2_and_3(tmp_path):
    members = [(n, raw) for n, raw in GOOD if "bias" in n]
    for version in (2, 3):
        kernel = array((1, 2), struct.pack("<2f", 1, 2), version=version)
        archive_of(tmp_path / "x.npz", [("fc8/kernel.npy", kernel), *members])
        assert read_file(tmp_path / "x.npz").layers["fc8"].kernel.tolist() == [[1, 2]]


def test_damaged_metadata_are_left_out(tmp_path):
    text = "{nonsense".encode("utf-32-le")
    archive_of(tmp_path / "x.npz", [*GOOD, ("metadata.npy", array((), text, "<U9"))])
    assert read_file(tmp_path / "x.npz").metadata == {}
