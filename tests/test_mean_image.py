"""Mean images and channel means: every layout and file, and what is refused in one line."""

import io
import os
import struct

import h5py
import numpy as np
import pytest
import scipy.io

from tf_alexnet.errors import InputError, PresetError
from tf_alexnet.images import PRESETS, preprocess_input, read_mean_image, resolve

RNG = np.random.default_rng(1)
PHOTO = RNG.integers(0, 256, (301, 202, 3), dtype=np.uint8)
MEAN = RNG.uniform(90, 130, (3, 256, 256)).astype(np.float32)
CROPPED = MEAN[:, 14:241, 14:241]
EXPECTED = preprocess_input(PHOTO, "caffe-mean-image", mean_image=MEAN)


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def binaryproto(array, double=False):
    """A BlobProto with the old four dimensions, as Caffe's compute_image_mean writes it."""
    shape = (1,) * (4 - array.ndim) + array.shape
    dims = b"".join(bytes([(i + 1) << 3]) + varint(n) for i, n in enumerate(shape))
    data = array.astype("<f8" if double else "<f4").tobytes()
    return dims + (b"\x42" if double else b"\x2a") + varint(len(data)) + data


def write(path, content):
    path.write_bytes(content)
    return path


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def test_the_whole_image_is_cropped_like_the_photo():
    pixels = preprocess_input(PHOTO) + PRESETS["caffe"].mean
    wanted = pixels - CROPPED.transpose(1, 2, 0)
    np.testing.assert_allclose(EXPECTED, wanted, atol=1e-4)


@pytest.mark.parametrize(
    "mean",
    [
        *(MEAN, MEAN[None], MEAN.transpose(1, 2, 0), MEAN.transpose(1, 2, 0)[None]),
        *(CROPPED, CROPPED[None], CROPPED.transpose(1, 2, 0)),
        MEAN.astype(np.float64).tolist(),
    ],
    ids=lambda mean: str(np.shape(mean)),
)
@pytest.mark.parametrize("preset", ["caffe-mean-image", "caffe"])
def test_every_layout_of_an_array(mean, preset):
    np.testing.assert_array_equal(preprocess_input(PHOTO, preset, mean_image=mean), EXPECTED)


def test_files(tmp_path):
    files = [
        write(tmp_path / "mean.binaryproto", binaryproto(MEAN)),
        write(tmp_path / "double.binaryproto", binaryproto(MEAN, double=True)),
        write(tmp_path / "mean.npy", npy(MEAN)),
        write(tmp_path / "last.npy", npy(MEAN.transpose(1, 2, 0))),
        write(tmp_path / "fortran.npy", npy(np.asfortranarray(MEAN))),
        write(tmp_path / "1,2,3", binaryproto(MEAN)).parent / "1,2,3",
    ]
    for path in files:
        for given in (path, str(path)):
            got = preprocess_input(PHOTO, "caffe", mean_image=given)
            np.testing.assert_array_equal(got, EXPECTED, err_msg=str(path))
    assert read_mean_image(files[0]).shape == (1, 3, 256, 256)


@pytest.mark.parametrize(
    "mean",
    [
        *("104,117,123", " (104.0, 117, 123)", [104, 117, 123], np.array([104.0, 117, 123])),
        np.float32([104, 117, 123]).reshape(1, 3, 1, 1),
    ],
    ids=str,
)
def test_channel_means(mean, tmp_path):
    wanted = preprocess_input(PHOTO, "caffe.mean104-117-123")
    np.testing.assert_array_equal(preprocess_input(PHOTO, "caffe", mean_image=mean), wanted)
    for preset in ("caffe-mean-image", "squash.size224", "kratzert"):
        record, image = resolve(preset, mean)
        assert record.mean == (104, 117, 123)
        assert image is None
    path = write(tmp_path / "one.binaryproto", binaryproto(np.float32([[[104]], [[117]], [[123]]])))
    assert resolve("caffe", path)[0].name == "caffe.mean104-117-123"


def test_sizes_of_variations():
    got = preprocess_input(PHOTO, "caffe.size224", mean_image=MEAN)
    np.testing.assert_array_equal(
        got, preprocess_input(PHOTO, "caffe-mean-image.size224", mean_image=MEAN[:, 16:240, 16:240])
    )
    means = MEAN.mean(axis=(1, 2))
    got = preprocess_input(PHOTO, "caffe.anysize", mean_image=MEAN)
    np.testing.assert_allclose(got, PHOTO[..., ::-1] - means, atol=1.6e-5)
    with pytest.raises(InputError, match=r"Give numbers of shape \(3, 300, 300\) or \(300, 300, 3"):
        preprocess_input(PHOTO, "caffe-mean-image.size300", mean_image=MEAN)


def test_ten_crops_need_the_whole_image():
    got = preprocess_input(PHOTO, "caffe", mean_image=MEAN, crops="ten")
    np.testing.assert_array_equal(got[4], EXPECTED)
    with pytest.raises(PresetError, match="mean image of 227x227: it covers only the centre crop"):
        preprocess_input(PHOTO, "caffe", mean_image=CROPPED, crops="ten")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_refused_files(tmp_path):
    trap = np.array([Trap(str(tmp_path / "sprung"))], dtype=object)
    with h5py.File(tmp_path / "mean.h5", "w") as file:
        file["mean"] = MEAN
    scipy.io.savemat(tmp_path / "mean.mat", {"mean_data": MEAN})
    np.savez(tmp_path / "mean.npz", MEAN)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 27)
    good, proto = npy(MEAN), binaryproto(MEAN)
    lie = npy(np.zeros(3)).replace(b"(3,)", b"(9" + b"9" * 9 + b",)")
    contents = {
        "objects.npy": (npy(trap, allow_pickle=True), "it holds Python objects"),
        "pickle": (trap.dumps(), "it is a pickle, which could run code"),
        "text": (b"104 117 123\n", "it is a text file"),
        "empty": (b"", "it is empty"),
        "cut.npy": (good[:-9], "it is too short for"),
        "header.npy": (good[:40], "it is a damaged .npy file"),
        "lie.npy": (lie, "it is too short for"),
        "cut.binaryproto": (proto[:-9], r"neither a .npy array nor a .binaryproto \("),
        "noise": (bytes(range(1, 200)) * 9, "neither a .npy array nor a .binaryproto"),
        "shape.npy": (npy(MEAN[:, :, :-1]), r"got float32 of shape \(3, 256, 255\)"),
        "shape.binaryproto": (binaryproto(MEAN[:1]), r"got float32 of shape \(1, 1, 256, 256\)"),
        "photo.png": (b"\x89PNG\r\n\x1a\n", "it is a PNG picture"),
    }
    for name, (content, _) in contents.items():
        write(tmp_path / name, content)
    reasons = {name: match for name, (_, match) in contents.items()}
    reasons |= {
        "mean.h5": "it is an HDF5 file",
        "mean.mat": "it is a .mat file",
        "mean.npz": "it is an .npz archive",
        "none.npy": r"can't be read \(No such file or directory\)",
        "folder": "it is a folder",
        "pipe": "it is not a regular file",
        "huge": "it has 134,217,728 bytes",
        "104,117": r"can't be read \(No such file or directory\)",
    }
    for name, match in reasons.items():
        with pytest.raises(InputError, match=f"^mean image .*{name}: .*({match})") as caught:
            preprocess_input(PHOTO, "caffe", mean_image=tmp_path / name)
        assert "allow_pickle" not in str(caught.value)
        assert "load" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "mean",
    [7, (1, 2), "", b"mean", [[1], [2, 3]], MEAN[0], MEAN[:2], MEAN.astype(complex), np.zeros(0)],
    ids=lambda mean: str(np.shape(mean)) if isinstance(mean, np.ndarray) else repr(mean),
)
def test_refused_arrays(mean):
    with pytest.raises(InputError, match=r"^mean.image.*Give ") as caught:
        preprocess_input(PHOTO, "caffe", mean_image=mean)
    assert "\n" not in str(caught.value)


def test_refused_combinations():
    with pytest.raises(PresetError, match="needs a mean image"):
        preprocess_input(PHOTO, "caffe-mean-image")
    for preset in ("squash", "kratzert", "torchvision", "udacity", "caffe.mean1-2-3"):
        with pytest.raises(PresetError, match="takes no mean image, but one was given"):
            preprocess_input(PHOTO, preset, mean_image=MEAN)
    with pytest.raises(InputError, match="NaN or infinite"):
        preprocess_input(PHOTO, "caffe", mean_image=np.where(MEAN > 129.9, np.nan, MEAN))
    with pytest.raises(InputError, match="NaN or infinite"):
        preprocess_input(PHOTO, "caffe", mean_image=(1, 2, np.inf))


def test_every_cut_of_a_binaryproto_is_one_error(tmp_path):
    small = binaryproto(np.zeros((3, 2, 2), np.float32))
    for cut in range(len(small)):
        path = write(tmp_path / "cut", small[:cut] + struct.pack("<Q", cut))
        with pytest.raises(InputError):
            resolve("caffe", path)
