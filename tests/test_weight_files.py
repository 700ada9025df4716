"""Weight files told apart by content, written whole or not at all, and the same in every format."""

import errno
import gzip
import json
import os
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from weight_seeds import (
    message,
    npy_header,
    python2_pickle,
    small_arrays,
    small_network,
    torch_parts,
    torch_pickle,
    torch_zip,
)

from tf_alexnet import files
from tf_alexnet.errors import OutputError, UsageError, WeightsError
from tf_alexnet.weights import WeightArrays
from tf_alexnet.weights.formats import format_of, read_file, safetensors_file, write_file

ARRAYS = small_arrays(architecture="bvlc_alexnet", metadata={"licence": "unrestricted"})
SUFFIXES = [".npy", ".npz", ".caffemodel", ".h5", ".safetensors"]


def refusal(path):
    """The one-line message that `path` is refused with."""
    with pytest.raises(WeightsError) as caught:
        read_file(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.endswith(".")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_content_decides_not_the_name(tmp_path, suffix):
    write_file(ARRAYS, tmp_path / f"net{suffix}")
    os.rename(tmp_path / f"net{suffix}", tmp_path / "weights.jpg")
    found = read_file(str(tmp_path / "weights.jpg"))
    assert found.digest == ARRAYS.digest
    assert found.source == str(tmp_path / "weights.jpg")
    if suffix != ".caffemodel":  # where only the name of a net that fits is believed
        assert found.architecture == "bvlc_alexnet"
        assert found.metadata == {"licence": "unrestricted"}


def test_a_round_through_all_formats_keeps_every_bit(tmp_path):
    kernel = ARRAYS.layers["conv1"].kernel.copy()
    kernel.flat[:4] = [-0.0, 1e-45, np.float32(3.4028235e38), 0.1]
    layers = {**ARRAYS.layers, "conv1": ARRAYS.layers["conv1"]._replace(kernel=kernel)}
    arrays = WeightArrays(layers)
    for step, suffix in enumerate([*SUFFIXES, ".npy", ".safetensors", ".caffemodel", ".npz"]):
        write_file(arrays, tmp_path / f"{step}{suffix}")
        arrays = read_file(tmp_path / f"{step}{suffix}")
    assert arrays.digest == WeightArrays(layers).digest


def test_safetensors_is_the_librarys(tmp_path):
    path = tmp_path / "net.safetensors"
    write_file(ARRAYS, path)
    tensors = safetensors.numpy.load_file(path)
    assert set(tensors) == {f"{n}/{p}" for n in ARRAYS.layers for p in ("kernel", "bias")}
    np.testing.assert_array_equal(tensors["fc6/kernel"], ARRAYS.layers["fc6"].kernel, strict=True)
    for dtype in ("f8", "f2"):
        tensors = {k: np.clip(v, -6e4, 6e4) for k, v in tensors.items()}
        safetensors.numpy.save_file({k: v.astype(dtype) for k, v in tensors.items()}, path)
        found = read_file(path)
        assert found.layers["fc7"].bias.dtype == np.float32
        expected = tensors["fc7/bias"].astype(dtype).astype("f4")
        np.testing.assert_array_equal(found.layers["fc7"].bias, expected, strict=True)


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"features.0.weight": np.ones((2, 2), "f4")}, "layer conv1 with only a kernel"),
        ({"fc8/kernel": np.ones((2, 2), "i4")}, "I32 numbers in the tensor 'fc8/kernel'"),
        ({"fc8/kernel": np.ones((2, 2), "f4")}, "layer fc8 with only a kernel"),
        ({"fc8/bias": np.ones(2, "f4")}, "layer fc8 with only a bias"),
        ({}, "no layer with weights in it"),
    ],
)
def test_other_safetensors_are_named(tmp_path, tensors, found):
    safetensors.numpy.save_file(tensors, tmp_path / "x")
    assert found in refusal(tmp_path / "x")


def _zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "b")


GRAPH = message(1, message(1, b"conv1") + message(2, b"VariableV2"))
META_GRAPH = message(1, message(2, b"")) + message(2, GRAPH)
STRANGERS = {
    "a damaged HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(600),
    "a gzip archive": gzip.compress(b"weights"),
    "an HTML or XML page": b"\n <!DOCTYPE html><html>Not found</html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "a network definition (prototxt)": b'name: "AlexNet"\nlayer { name: "conv1" }\n',
    "a text file": b"conv1 0.1 0.2\n",
    "the graph of a SavedModel": b"\x08\x01" + message(2, META_GRAPH),
    "the graph of a TensorFlow checkpoint": META_GRAPH,
    "a TensorFlow graph (.pb)": GRAPH * 2,
    "the index of a TensorFlow checkpoint": bytes(99) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
    "a TensorFlow Lite model": b"\x1c\0\0\0TFL3" + bytes(30),
    "a MATLAB file (.mat)": b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(200),
    "an OpenVINO network": b'<?xml version="1.0"?>\n<net name="alexnet" version="11">',
    "a list of TensorFlow checkpoints": b'model_checkpoint_path: "model.ckpt-1000"\n',
    "a Core ML model": b"\x08\x01" + message(2, b"\x0a\x01x") + message(500, bytes(9)),
    "an MXNet file": b"\x12\x01" + bytes(30),
    "a Caffe solver's state": b"\x08\x05\x12\x0enet.caffemodel\x1a\x03\x2a\x01\x00",
    "the file is empty": b"",
    "a torch file": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
    "a tar archive": bytes(257) + b"ustar" + bytes(300),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(30),
    "not a weight file of a known kind": b"\x30\x01" * 9,
    "wire type": bytes(range(255, 0, -1)),
}


@pytest.mark.parametrize("found", STRANGERS)
def test_strangers_are_named(tmp_path, found):
    (tmp_path / "weights.npy").write_bytes(STRANGERS[found])
    if found == "wire type":  # noise: any sentence will do
        refusal(tmp_path / "weights.npy")
    else:
        assert found in refusal(tmp_path / "weights.npy")


def test_files_without_a_beginning_of_their_own_are_named_last(tmp_path):
    noise = bytes(range(255, 0, -1))
    (tmp_path / "net.ckpt-9.data-00000-of-00001").write_bytes(noise)
    assert "the arrays of a TensorFlow checkpoint" in refusal(
        tmp_path / "net.ckpt-9.data-00000-of-00001"
    )
    (tmp_path / "net.bin").write_bytes(noise)
    assert "not a weight file of a known kind" in refusal(tmp_path / "net.bin")
    (tmp_path / "net.xml").write_text('<?xml version="1.0"?>\n<net name="alexnet" version="11">')
    assert "the weights of an OpenVINO network" in refusal(tmp_path / "net.bin")
    # Lightning calls torch's files .ckpt, and Hugging Face calls them .bin.
    entries, storages = torch_parts(small_network())
    for name in ("epoch=9.ckpt", "net.bin", "model.ckpt-1000.meta", "a.data-00000-of-00001"):
        (tmp_path / name).write_bytes(torch_zip(torch_pickle(entries), storages))
        assert read_file(tmp_path / name).digest == small_network().digest


@pytest.mark.parametrize(
    ("name", "found"),
    [("saved_model.pb", "a SavedModel"), ("checkpoint", "TensorFlow"), ("Manifest.json", "ML")],
)
def test_folders_of_other_tools_are_named(tmp_path, name, found):
    (tmp_path / name).write_bytes(b"x")
    assert found in refusal(tmp_path)


def test_caffe_s_first_networks_are_no_tensorflow_graphs(tmp_path):
    """They nest a name and a type alike."""
    layer = message(1, message(1, b"conv1") + message(2, b"conv")) + message(2, b"data")
    (tmp_path / "x").write_bytes(message(1, b"CaffeNet") + message(2, layer))
    assert "no layer with weights" in refusal(tmp_path / "x")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_formats_have_titles(tmp_path, suffix):
    write_file(ARRAYS, tmp_path / f"net{suffix}")
    assert suffix in format_of(tmp_path / f"net{suffix}").suffixes
    for form in ("nonsense", ""):
        with pytest.raises(UsageError, match=f"form='{form}'"):
            write_file(ARRAYS, tmp_path / f"net{suffix}", form)


def test_paths_that_are_no_files_are_named(tmp_path):
    assert "there is no such file" in refusal(tmp_path / "missing.npy")
    assert "a folder, not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")  # and does not wait for a writer
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "it can't be read" in refusal(tmp_path / "loop")
    _zip(tmp_path / "a.npz")
    assert "a zip archive" in refusal(tmp_path / "a.npz")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate((1 << 31) + 1)
    assert "more than 2 GiB" in refusal(tmp_path / "huge")
    (tmp_path / "new\nline").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"new\\nline: the file is empty\. "):
        read_file(tmp_path / "new\nline")
    with pytest.raises(WeightsError, match="not a path"):
        read_file("a\0b")


def test_a_file_without_reading_rights(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    write_file(ARRAYS, tmp_path / "net.npy")
    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    assert "it can't be read (Permission denied)" in refusal(tmp_path / "net.npy")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writing_is_all_or_nothing(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"net{suffix}"
    write_file(ARRAYS, path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match=r"it can't be written \(No space left on device\)\. "):
        write_file(small_arrays(9), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    broken = WeightArrays({**ARRAYS.layers, "fc8": ("kernel", "bias")})
    with pytest.raises((ValueError, AttributeError)):
        write_file(broken, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".caffemodel"])
def test_a_full_disk(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(files.uuid, "uuid4", lambda: type("U", (), {"hex": "x"}))
    (tmp_path / ".tf-alexnet-x.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="it can't be written"):
        write_file(ARRAYS, tmp_path / f"net{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_under_the_safetensors_library(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors_file, "save_file", full)
    with pytest.raises(OutputError, match=r"net\.safetensors: it can't be written \(I/O error"):
        write_file(ARRAYS, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_places_that_cannot_be_written(tmp_path, suffix):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_file(ARRAYS, tmp_path / "file" / f"net{suffix}")
    (tmp_path / "file").unlink()
    (tmp_path / f"net{suffix}").mkdir()
    with pytest.raises(OutputError, match="it can't be written"):
        write_file(ARRAYS, tmp_path / f"net{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [f"net{suffix}"]


def test_suffixes_and_metadata_that_do_not_fit(tmp_path):
    with pytest.raises(UsageError, match=r"suffix '\.ckpt'\. Use one of \.safetensors, \.npy"):
        write_file(ARRAYS, tmp_path / "net.ckpt")
    for suffix in (".pth", ".pt", ".net"):
        with pytest.raises(
            UsageError, match=r"can be read but not written\. Use one of \.safetensors, "
        ):
            write_file(ARRAYS, tmp_path / f"net{suffix}")
    chatty = WeightArrays(ARRAYS.layers, metadata={"note": "x" * 70_000})
    for suffix in (".npy", ".npz", ".h5", ".safetensors"):
        with pytest.raises(UsageError, match="metadata"):
            write_file(chatty, tmp_path / f"net{suffix}")
    assert not list(tmp_path.iterdir())


def test_written_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        for suffix in SUFFIXES:
            write_file(ARRAYS, tmp_path / f"net{suffix}")
            assert (tmp_path / f"net{suffix}").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


def test_values_that_are_not_finite_are_read_as_they_are(tmp_path):
    """They are refused where the arrays meet a network, with all other faults in one message."""
    raw = npy_header() + python2_pickle(ARRAYS)
    bias = ARRAYS.layers["fc8"].bias
    raw = raw.replace(bias.tobytes(), np.full(bias.shape, np.nan, "f4").tobytes())
    (tmp_path / "nan.npy").write_bytes(raw)
    assert np.isnan(read_file(tmp_path / "nan.npy").layers["fc8"].bias).all()


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def two_tensors(start, end, size):
    return safetensors_bytes(
        {"a/kernel": entry([1, 2], 0, 8), "a/bias": entry([2], start, end)}, bytes(size)
    )


@pytest.mark.parametrize(
    "raw",
    [
        two_tensors(4, 12, 12),
        two_tensors(0, 8, 8),
        two_tensors(12, 20, 20),
        two_tensors(8, 16, 12),
        safetensors_bytes({"a/kernel": entry([1, 2], 8, 0)}, bytes(8)),
        safetensors_bytes({"a/kernel": entry([2**62, 4], 0, 0)}),
        safetensors_bytes({"a/kernel": entry([2**32, 2**32], 0, 0)}),
        safetensors_bytes({"a/kernel": entry([-1, -2], 0, 8)}, bytes(8)),
        safetensors_bytes({"a/kernel": entry([10**6, 10**6], 0, 4 * 10**12)}, bytes(8)),
        safetensors_bytes({"a/kernel": entry([1, 2], 0, 8, "O")}, bytes(8)),
        safetensors_bytes(b"{" + b'"a":{' * 10_000 + b"}" * 10_001),
        struct.pack("<Q", 2**31 - 1) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        safetensors_bytes(b"{nonsense}"),
        safetensors_bytes(b'{"__metadata__": {"a": 1}}'),
    ],
    ids=["overlap", "same", "hole", "short", "backwards", "overflow", "overflow to 0", "negative",
         "4 TB", "dtype", "nested", "2 GB header", "2^63 header", "no JSON",
         "odd metadata"],
)  # fmt: skip
def test_hostile_safetensors(tmp_path, raw):
    (tmp_path / "x").write_bytes(raw)
    refusal(tmp_path / "x")


def test_a_header_of_100_mb_is_not_parsed(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.write(struct.pack("<Q", 99_999_999) + b"{")
        file.truncate(100_000_100)
    assert "that is too large" in refusal(tmp_path / "x")
