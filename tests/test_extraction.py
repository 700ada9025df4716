"""Photos to rows: the extractor, the file, the bad photos among good ones."""

import csv
import json
import tracemalloc
from dataclasses import replace

import h5py
import jobs
import numpy as np
import pytest
import reference
from conftest import weights_of
from PIL import Image
from scipy.io import loadmat
from training import narrow

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import (
    ImageError,
    InputError,
    LayerError,
    OutputError,
    PresetError,
    UsageError,
)
from tf_alexnet.extraction import decoder, worker
from tf_alexnet.extraction.formats import data_writer, export, open_output
from tf_alexnet.extraction.storage import Folder
from tf_alexnet.testing import synthetic_weights


@pytest.fixture(scope="module")
def extractor():
    return ta.FeatureExtractor(weights_of("compact"), ["pool5", "fc7", "prob"])


@pytest.fixture(scope="module")
def convs():
    """The convolutions of bvlc_alexnet."""
    return synthetic_weights(ARCHITECTURES["bvlc_alexnet"].until("pool5"))


@pytest.fixture
def pretend(monkeypatch):
    """A network that takes no time."""
    monkeypatch.setattr(worker, "FeatureExtractor", jobs.Network)


@pytest.fixture
def example_photos(example_photos):
    """Five of them."""
    return example_photos[:5]


@pytest.fixture
def folder(tmp_path, example_photos):
    """The example photos and two bad ones."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in example_photos:
        (folder / path.name).symlink_to(path)
    (folder / "broken.jpg").write_bytes(example_photos[0].read_bytes()[:3000])
    (folder / "empty.png").touch()
    return folder


def test_a_row_is_the_same_alone_and_in_company(example_photos):
    extractor = ta.FeatureExtractor(weights_of("bvlc_alexnet"), ["conv5", "fc7", "prob"])
    x = ta.preprocess_input([ta.load_image(path) for path in example_photos])
    x = np.concatenate([x, -x[:, ::-1], x[:, :, ::-1]])  # 15
    alone = extractor(x[:1])  # before there was any batch: kernels are constants
    whole = {name: rows[:15] for name, rows in extractor(np.concatenate([x, -x, x / 2])).items()}
    for name, row in extractor(x[:1]).items():
        assert reference.relative_error(row, alone[name]) < 1e-6, name  # observed 0
    for size in (2, 7):
        parts = [extractor(x[i : i + size]) for i in range(0, len(x), size)]
        for name, expected in whole.items():
            row = np.concatenate([part[name] for part in parts])
            # Observed 0 (conv5), 1.4e-6 (fc7), 5.6e-6 (prob): dense layers add in other orders.
            bound = 1e-5 if name == "prob" else 3e-6
            assert reference.relative_error(row, expected) < bound, (name, size)


# One graph for all layers; parts, and rows to spare. Dense layers of full size are compared in
# test_extractor.py.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bvlc_alexnet", 37),
        ("compact", 5),
        pytest.param("bvlc_alexnet", 5, marks=pytest.mark.slow),
        pytest.param("compact", 37, marks=pytest.mark.slow),
    ],
)
def test_extractor_equals_the_plain_model(name, count, example_photos, monkeypatch):
    layers = ["conv1", "norm1", "pool5", "fc6_preact", "fc7", "prob"]
    layers = [layer for layer in layers if layer != "norm1" or name != "compact"]
    monkeypatch.setitem(ARCHITECTURES, name, narrow(ARCHITECTURES[name]))
    weights = synthetic_weights(name)
    extractor = ta.FeatureExtractor(weights, layers)
    x = ta.preprocess_input([ta.load_image(path) for path in example_photos], extractor.preset)
    x = np.concatenate([x * (0.9**i) for i in range(8)])[:count]
    plain = ta.features(ta.AlexNet(weights), extractor.layers).predict(x, verbose=0)
    for layer, blob in extractor(x).items():
        assert blob.dtype == np.float32
        error = reference.relative_error(blob, plain[layer])
        assert error < 1e-5, (layer, error)  # observed 1.5e-6 (prob: 4e-6)


def test_extractor_builds_no_dense_layers_for_convolutional_blobs():
    extractor = ta.FeatureExtractor("torchvision-convs", ["conv5", "pool5"])
    assert extractor.trained_as == "torchvision"
    out = extractor(np.zeros((1, 224, 224, 3), np.float32))
    assert {name: blob.shape for name, blob in out.items()} == {
        "conv5": (1, 13, 13, 256),
        "pool5": (1, 6, 6, 256),
    }


def test_unknown_weights_are_not_called_trained(extractor):
    assert extractor.trained_as is None


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((1, 227, 227, 3), np.uint8), "dtype is uint8, not float32. Pass what preprocess"),
        (np.zeros((227, 227, 3), np.float32), r"shape is \(227, 227, 3\), not \(N, 227, 227, 3\)"),
        (np.zeros((1, 224, 224, 3), np.float32), "pictures are 224x224, .* need 227x227: fc6"),
        (np.full((1, 227, 227, 3), np.nan, np.float32), "NaN or infinite"),
        (np.linspace(0, 1, 227 * 227 * 3, dtype=np.float32).reshape(1, 227, 227, 3), "lie in 0..1"),
        (np.linspace(0, 255, 227 * 227 * 3, dtype=np.float32).reshape(1, 227, 227, 3), "no mean"),
    ],
)
def test_batches_that_were_not_preprocessed_are_refused(batch, message, convs):
    extractor = ta.FeatureExtractor(convs, ["conv1"])
    with pytest.raises(InputError, match=f"batch for bvlc_alexnet: .*{message}"):
        extractor(batch)


def test_a_preset_of_another_size_is_refused(convs):
    with pytest.raises(PresetError, match="pictures of 224 pixels a side, the network takes 227"):
        ta.FeatureExtractor(convs, ["conv1"], preset="torchvision")
    with pytest.raises(PresetError, match="Use one of: caffe, "):
        ta.FeatureExtractor(convs, ["conv1"], preset="vgg")


def test_a_mean_image_is_read_once_and_subtracted(tmp_path, example_photos, convs):
    mean = np.arange(3 * 256 * 256, dtype=np.float64).reshape(3, 256, 256) % 200
    np.save(tmp_path / "mean.npy", mean)
    arguments = {"weights": convs, "layers": ["data"]}
    extractor = ta.FeatureExtractor(
        **arguments, preset="caffe-mean-image", mean_image=tmp_path / "mean.npy"
    )
    (tmp_path / "mean.npy").unlink()
    images = [ta.load_image(example_photos[0])]
    raw = ta.preprocess_input(images) + ta.images.presets.CAFFE_MEAN
    expected = raw - mean[:, 14:241, 14:241].transpose(1, 2, 0)
    np.testing.assert_allclose(extractor.preprocess(images), expected, atol=1e-4)
    with pytest.raises(PresetError, match="it needs a mean image"):
        ta.FeatureExtractor(**arguments, preset="caffe-mean-image")


def test_presets_by_name_record_and_mean(recwarn, convs):
    photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    varied = replace(ta.images.PRESETS["squash"], mean=(104, 117, 123))
    for preset, mean, name in (
        (None, "104,117,123", "caffe.mean104-117-123"),
        ("squash", (104, 117, 123), "squash.mean104-117-123"),
        (varied, None, "squash.mean104-117-123"),
        ("caffe", np.full((3, 227, 227), 99.0), "caffe-mean-image"),
        ("squash", (0, 0, 0), "squash.mean0-0-0"),
    ):
        extractor = ta.FeatureExtractor(convs, ["data"], preset=preset, mean_image=mean)
        assert extractor.preset == name
        wanted = ta.preprocess_input([photo], preset or "caffe", mean_image=mean)
        np.testing.assert_array_equal(extractor.preprocess([photo]), wanted)
        np.testing.assert_array_equal(extractor.from_images([photo])["data"], wanted)
    assert not recwarn.list
    with pytest.raises(PresetError, match="it can't be recorded by name"):
        ta.FeatureExtractor(convs, ["data"], preset=ta.Preset("own", size=227, divisor=2))


def test_extraction_subtracts_a_mean(tmp_path, example_photos, convs):
    image = np.random.default_rng(0).uniform(90, 130, (227, 227, 3))
    np.save(tmp_path / "mean.npy", image)
    arguments = {"weights": convs, "layers": ["data"], "workers": 1}
    photos = [ta.load_image(path) for path in example_photos[:2]]
    for mean in (tmp_path / "mean.npy", image, "104,117,123"):
        report = ta.extract_features(
            example_photos[:2], tmp_path / "data.npz", mean_image=mean, force=True, **arguments
        )
        expected = ta.preprocess_input(photos, "caffe", mean_image=mean)
        with np.load(tmp_path / "data.npz") as file:
            np.testing.assert_array_equal(file["data"], expected)
        name = "caffe.mean104-117-123" if isinstance(mean, str) else "caffe-mean-image"
        assert report.attributes["preset"] == name


def test_a_preset_of_other_channels_is_warned_of():
    arguments = {"weights": "torchvision-convs", "layers": ["data"]}
    with pytest.warns(UserWarning, match=r"caffe.size224' gives BGR .* trained on RGB .*torchv"):
        ta.FeatureExtractor(**arguments, preset="caffe.size224")
    with pytest.warns(UserWarning, match="over a range of 2, but"):
        ta.FeatureExtractor(**arguments, preset="compact")


def check_file(paths, rows, expected_photos, weights):
    """Names belong to rows: every row is recomputed on its own."""
    assert [p.rsplit("/", 1)[1] for p in paths] == [p.name for p in expected_photos]
    single = ta.FeatureExtractor(weights, ["fc7"])
    for path, row in zip(paths, rows, strict=True):
        x = ta.preprocess_input([ta.load_image(path)], single.preset)
        assert reference.relative_error(row, single(x)["fc7"][0]) < 5e-6  # observed 2e-6


def test_h5_holds_names_rows_errors_and_origin(folder, tmp_path, example_photos):
    weights = weights_of("compact")
    report = ta.extract_features(
        folder, tmp_path / "f.h5", weights=weights, layers=["fc7", "conv5"], batch_size=2
    )
    assert (report.inputs, report.rows) == (7, 5)
    failed = [(x.path.rsplit("/", 1)[1], x.code) for x in report.errors]
    assert failed == [("broken.jpg", "damaged"), ("empty.png", "empty")]
    with h5py.File(tmp_path / "f.h5") as file:
        paths = list(file["paths"].asstr())
        check_file(paths, file["fc7"][:], example_photos, weights)
        assert file["conv5"].shape == (5, 13, 13, 128)
        columns = [file[f"errors/{name}"].asstr() for name in ("paths", "codes", "details")]
        assert list(zip(*columns, strict=True)) == [x[:3] for x in report.errors]
        assert file["fc7"].attrs["layer"] == "fc7"
        assert file.attrs["weights_digest"] == weights.digest
        assert dict(file.attrs) == report.attributes
        assert {"architecture", "preset", "layers", "tf_alexnet_version"} <= set(file.attrs)
        assert [file.attrs[name] for name in ("inputs", "rows", "errors")] == ["7", "5", "2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.h5", "photos"], "no temporary files"


def test_rows_are_means_over_ten_crops(tmp_path, example_photos):
    photos = [*example_photos[:2], tmp_path / "none.png"]
    for pool in ("none", "max"):
        report = ta.extract_features(
            photos, tmp_path / f"{pool}.h5", weights="torchvision-convs", layers=["conv5"],
            pool=pool, crops="ten", batch_size=2, workers=1,
        )  # fmt: skip
        assert len(report.errors) == 1
        assert report.attributes["crops"] == "ten"
    model = ta.features(ta.AlexNet("torchvision-convs", include_top=False), ["conv5"])
    with h5py.File(tmp_path / "none.h5") as none, h5py.File(tmp_path / "max.h5") as largest:
        assert none["conv5"].shape == (2, 13, 13, 256)
        for number, path in enumerate(photos[:2]):
            assert none["paths"].asstr()[number] == largest["paths"].asstr()[number] == str(path)
            x = ta.preprocess_input([ta.load_image(path)], "torchvision", crops="ten")
            blobs = model.predict(x, verbose=0)["conv5"]
            for file, crops in ((none, blobs), (largest, blobs.max(axis=(1, 2)))):
                error = reference.relative_error(file["conv5"][number], crops.mean(axis=0))
                assert error < 1e-5


def test_npz_holds_the_same(folder, tmp_path, example_photos):
    weights = weights_of("compact")
    report = ta.extract_features(
        [folder], tmp_path / "f.npz", weights=weights, batch_size=3, dtype="float16"
    )
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        assert file["fc7"].dtype == np.float16
        assert file["fc7"].shape == (5, 2048) == report.shapes["fc7"]
        assert [p.rsplit("/", 1)[1] for p in file["paths"]] == [p.name for p in example_photos]
        assert json.loads(str(file["attributes"])) == report.attributes
        columns = [file[f"errors_{name}"] for name in ("paths", "codes", "details")]
        assert list(zip(*columns, strict=True)) == [x[:3] for x in report.errors]
    full = ta.FeatureExtractor(weights, ["fc7"])
    x = ta.preprocess_input([ta.load_image(example_photos[0])], full.preset)
    with np.load(tmp_path / "f.npz") as file:
        np.testing.assert_allclose(file["fc7"][0], full(x)["fc7"][0], rtol=1e-3, atol=1e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.npz", "photos"], "no temporary files"


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_odd_names_come_back_as_they_are(suffix, tmp_path, pretend):
    names = ["new\nline.png", "quote'\".png", "bytes\udcff.png", "ünïcode.png", "  spaces .png"]
    for name in names:
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    ta.extract_features(
        [tmp_path / name for name in names], tmp_path / f"f{suffix}", weights="w.npy", workers=1
    )
    if suffix == ".h5":
        with h5py.File(tmp_path / "f.h5") as file:
            found = [raw.decode("utf-8", "surrogateescape") for raw in file["paths"]]
    else:
        found = np.load(tmp_path / "f.npz")["paths"].tolist()
    assert found == [str(tmp_path / name) for name in names]


def test_lists_are_read(tmp_path, example_photos, pretend):
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *[[p, "x"] for p in example_photos[:2]]])
    report = ta.extract_features(
        tmp_path / "list.csv", tmp_path / "f.npz", weights="w.npy", workers=1
    )
    assert report.rows == 2


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".npy", ".parquet"])
def test_memory_does_not_grow_with_the_rows(suffix, tmp_path):
    attributes = {"layers": "fc7"}

    def peak(batches):
        rows = {"fc7": np.ones((64, 4096), np.float32)}
        folder = Folder(str(tmp_path))
        tracemalloc.start()
        with folder.writing("shard.h5") as file, data_writer(".h5")(file) as writer:
            for i in range(batches):
                writer.add([f"{i}-{j}" for j in range(64)], rows)
            writer.finish(attributes)
        with (
            open_output(tmp_path / "shard.h5") as shard,
            folder.writing(f"all{suffix}") as file,
            folder.writing("names") as names,
        ):
            export(suffix, file, shard, names)
        assert (tmp_path / f"all{suffix}").stat().st_size > batches * 64 * 4096 * 4
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(1)  # imports
    assert peak(48) < peak(32) + 4e6  # 16 batches more: 17 MB of rows


def test_mat_holds_the_same_and_is_done_once(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "FeatureExtractor", jobs.Network)
    monkeypatch.setattr(worker, "PhotoReader", jobs.Reader)
    photos = jobs.photos(tmp_path / "photos", 5)
    (tmp_path / "photos" / "empty.png").touch()
    monkeypatch.setattr(decoder, "_RACY", 0)  # files that were just written are believed
    for suffix in (".npz", ".mat"):
        report = ta.extract_features(
            tmp_path / "photos", tmp_path / f"f{suffix}", weights="w.npy", layers=["conv5", "fc7"]
        )
    found = loadmat(tmp_path / "f.mat")
    with np.load(tmp_path / "f.npz") as file:
        assert file["paths"].tolist() == photos
        for name in ("conv5", "fc7"):
            np.testing.assert_array_equal(found[name], file[name])
        for name in ("paths", "stats", "digests", "places", "errors_paths", "errors_codes"):
            assert ["".join(cell) for cell in found[name][:, 0]] == file[name].tolist()
    attributes = {name: found["attributes"][name][0, 0][0] for name in report.attributes}
    assert attributes == report.attributes
    before = (tmp_path / "f.mat").read_bytes()
    again = ta.extract_features(
        tmp_path / "photos", tmp_path / "f.mat", weights="w.npy", layers=["conv5", "fc7"]
    )
    assert (again.kept, again.errors) == (6, report.errors)
    assert (tmp_path / "f.mat").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.mat", "f.npz", "photos"]


def test_no_readable_photo_at_all(tmp_path, pretend):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ImageError, match=r"1 photo: none could be read; the first: .*a\.jpg: "):
        ta.extract_features(tmp_path, tmp_path / "f.h5", weights="w.npy", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_a_photo_of_a_hopeless_shape_is_one_bad_row(tmp_path, example_photos, pretend):
    Image.new("L", (40000, 2)).save(tmp_path / "line.png")  # 256 high: 5 million wide
    photos = [tmp_path / "line.png", example_photos[0]]
    report = ta.extract_features(photos, tmp_path / "f.h5", weights="w.npy", workers=1)
    assert report.rows == 1
    assert report.errors[0][0].endswith("line.png")


def test_calls_that_can_not_work(tmp_path, example_photos):
    def run(output="f.h5", **kwargs):
        arguments = {"weights": "torchvision-convs", "layers": ["pool5"], **kwargs}
        ta.extract_features(example_photos[0], tmp_path / output, **arguments)

    with pytest.raises(UsageError, match=r"no format has the suffix '\.csv'"):
        run("f.csv")
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is not a folder"):
        run("file/new/f.h5")
    with pytest.raises(OutputError, match="it is a folder"):
        run("folder.h5")
    with pytest.raises(LayerError, match=r"layer 'fc9': .* Use one of: data, conv1"):
        run(layers=["fc9"])
    with pytest.raises(UsageError, match="dtype 'int8'"):
        run(dtype="int8")
    with pytest.raises(UsageError, match="batch of 0"):
        run(batch_size=0)
    with pytest.raises(UsageError, match="shard of 0"):
        run(shard_size=0)
    with pytest.raises(UsageError, match=r"pool 'mean': not a pool\. Use none, avg or max"):
        run(pool="mean")
    with pytest.raises(UsageError, match=r"conv5 pool5 in .*f\.npy: an \.npy holds one array"):
        run("f.npy", layers=["conv5", "pool5"])
    for limit in ("-1", "101%", "x", "%"):
        with pytest.raises(UsageError, match=f"max_errors '{limit}': not a limit"):
            run(max_errors=limit)
    with pytest.raises(UsageError, match="no image found"):
        ta.extract_features(tmp_path, tmp_path / "f.h5")


def test_values_beyond_float16_are_refused(tmp_path, example_photos, monkeypatch):
    monkeypatch.setattr(
        ta.FeatureExtractor, "__call__", lambda self, batch: {"pool5": np.full((1, 2), 7e4, "f4")}
    )
    with pytest.raises(InputError, match="pool5 as float16: a value of 70000 is beyond 65504"):
        ta.extract_features(
            example_photos[0],
            tmp_path / "f.h5",
            weights="torchvision-convs",
            layers=["pool5"],
            dtype="float16",
        )
    assert not list(tmp_path.iterdir())
