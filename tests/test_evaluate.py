"""Evaluating: figures against scikit-learn's, folders and lists of truth, refusals, resuming."""

import csv
import glob
import json
import os
import shutil

import h5py
import jobs
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

import tf_alexnet as ta
from tf_alexnet.errors import ImageError, UsageError, WeightsError
from tf_alexnet.evaluation import evaluate as evaluating
from tf_alexnet.evaluation import ground_truth
from tf_alexnet.evaluation.metrics import Evaluation, average_precisions
from tf_alexnet.extraction import worker
from tf_alexnet.labels import Label, imagenet_labels, read_labels
from tf_alexnet.training import RunRecord, read_photos, report, write_run
from tf_alexnet.training.run import split_record
from tf_alexnet.weights import LayerArrays, WeightArrays, find_weights, published_accuracy

NAMES = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """A working folder; RUNs that are written in it have no pictures."""
    monkeypatch.setattr(report, "draw", lambda *arguments: [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_ALEXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TF_ALEXNET_OFFLINE", "1")


@pytest.fixture(scope="module")
def convs():
    return ta.read_weights(find_weights("torchvision-convs"))


def head_of(convs, classes, seed=0, scale=1e-3):
    """The embedded convolutions with a classifier of random weights on pool5."""
    random = np.random.default_rng(seed)
    kernel = random.normal(0, scale, (9216, classes)).astype(np.float32)
    fc8 = LayerArrays(kernel, random.normal(0, scale, classes).astype(np.float32))
    return WeightArrays({**convs.layers, "fc8": fc8}, "torchvision", "head.npz", {"head": "pool5"})


@pytest.fixture(scope="module")
def weights(convs):
    return head_of(convs, 1000)


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((80, 60)).save(path)
    return str(path)


@pytest.fixture
def folders(tmp_path):
    """Class folders of three of ImageNet's classes, five photos each, one of them broken."""
    for i, name in enumerate(("n01440764", "goldfish", "n02085620-Chihuahua")):
        for j in range(5):
            draw(tmp_path / "data" / name / f"{j}.png", 10 * i + j)
    (tmp_path / "data" / "goldfish" / "broken.png").write_bytes(b"no picture")
    return "data"


def test_figures_are_those_of_scikit_learn(weights, folders):
    found = ta.evaluate_photos(folders, weights, keep="prob.h5")
    with h5py.File("prob.h5") as file:
        paths, probabilities = list(file["paths"].asstr()), file["prob"][:]
    folder_class = {"n01440764": 0, "goldfish": 1, "n02085620-Chihuahua": 151}
    actual = np.array([folder_class[path.split("/")[1]] for path in paths])
    predicted = probabilities.argmax(axis=1)
    every = np.arange(1000)
    np.testing.assert_array_equal(
        found.confusion, metrics.confusion_matrix(actual, predicted, labels=every)
    )
    assert found.photos == 15
    assert found.top1 == metrics.accuracy_score(actual, predicted)
    assert found.top5 == metrics.top_k_accuracy_score(actual, probabilities, k=5, labels=every)
    assert [failure.path for failure in found.failures] == ["data/goldfish/broken.png"]
    assert "3 of the network's 1000 classes have photos here" in found.notes
    assert found.published is None
    x = ta.preprocess_input([ta.load_image(paths[3])], "torchvision")
    alone = ta.AlexNet(weights).predict(x, verbose=0)[0]
    np.testing.assert_allclose(probabilities[3], alone, rtol=1e-4)


def test_the_table_of_classes(weights):
    random = np.random.default_rng(0)
    actual, predicted = random.integers(0, 7, (2, 400))
    predicted[random.random(400) < 0.5] = actual[random.random(400) < 0.5][0]
    actual[actual == 3], predicted[predicted == 5] = 2, 4  # no photo of 3, no prediction of 5
    confusion = metrics.confusion_matrix(actual, predicted, labels=np.arange(8))
    classes = tuple(Label("", f"c{i}") for i in range(8))
    found = Evaluation(classes, confusion, 399, (), (), "t", "t", "center", "w", None)
    kwargs = {"labels": np.arange(8), "zero_division": np.nan}
    recalls = metrics.recall_score(actual, predicted, average=None, **kwargs)
    precisions = metrics.precision_score(actual, predicted, average=None, **kwargs)
    found.write_csv("classes.csv")
    with open("classes.csv", newline="") as file:
        header, *table = csv.reader(file)
    assert header == ["class", "photos", "correct", "recall", "precision", "most confused with"]
    for i, row in enumerate(table):
        photos = int((actual == i).sum())
        correct = int(((actual == i) & (predicted == i)).sum())
        shares = [f"{x[i]:.6f}" if np.isfinite(x[i]) else "" for x in (recalls, precisions)]
        wrong = predicted[(actual == i) & (predicted != i)]
        counts = np.bincount(wrong, minlength=8)
        other = f"c{counts.argmax()}" if len(wrong) else ""
        assert row == [f"c{i}", str(photos), str(correct), *shares, other]
    assert table[3][3] == table[5][4] == ""
    assert found.top1 == metrics.accuracy_score(actual, predicted)
    assert found.top5 == 399 / 400


def test_equal_probabilities_rank_by_index():
    tied = np.full((3, 10), 0.1, np.float32)
    np.testing.assert_array_equal(evaluating.ranks(tied, np.array([0, 4, 9])), [0, 4, 9])
    random = np.random.default_rng(0).integers(0, 4, (50, 10)).astype(np.float32)
    actual = np.random.default_rng(1).integers(0, 10, 50)
    order = np.argsort(-random, axis=1, kind="stable")  # as decode_predictions sorts
    expected = [list(row).index(label) for row, label in zip(order, actual, strict=True)]
    np.testing.assert_array_equal(evaluating.ranks(random, actual), expected)


@pytest.mark.slow
def test_ten_crops_are_averaged(weights, folders):
    ta.evaluate_photos(folders, weights, crops="ten", keep="ten.h5")
    with h5py.File("ten.h5") as file:
        path, row = file["paths"].asstr()[0], file["prob"][0]
    x = ta.preprocess_input([ta.load_image(path)], "torchvision", crops="ten")
    expected = ta.AlexNet(weights).predict(x, verbose=0).mean(axis=0)
    np.testing.assert_allclose(row, expected, rtol=1e-4)


# What follows needs no network: class folders and lists of truth.


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("n02123045", 281),
        ("n02123045_tabby", 281),
        ("Tabby", 281),
        ("tabby_cat", 281),
        ("tabby, tabby cat", 281),
        ("Tench", 0),
        ("n02012849", 134),
    ],
)
def test_names_of_class_folders(name, index, tmp_path):
    path = draw(tmp_path / "data" / name / "a.png", 0)
    truth = ground_truth.read_labelled("data", imagenet_labels())
    assert (truth.paths, truth.labels.tolist()) == ((os.path.relpath(path),), [index])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["crane"], r"data/crane: 2 classes have this name: n02012849, n03126707\. Name the fold"),
        (["n01440764", "tulips", "pansy"], "no class of this network is called pansy, tulips"),
        (["n01440764", "tench"], "n01440764, tench are the same class"),
        ([], "no class folder in it"),
    ],
)
def test_folders_of_no_class_are_refused(names, message, tmp_path):
    (tmp_path / "data").mkdir()
    for name in names:
        draw(tmp_path / "data" / name / "a.png", 0)
    with pytest.raises(UsageError, match=message):
        ground_truth.read_labelled("data", imagenet_labels())


def test_val_is_taken_and_empty_folders_are_named(tmp_path):
    for part in ("train", "val"):
        for name in NAMES[:2]:
            draw(tmp_path / "data" / part / name / "a.png", 0)
    (tmp_path / "data" / "val" / "red").mkdir()
    classes = [Label("", name) for name in NAMES]
    truth = ground_truth.read_labelled("data", classes)
    assert truth.paths == ("data/val/blue/a.png", "data/val/green/a.png")
    assert truth.notes == ("data has train and val: val is evaluated", "no photos in red")
    draw(tmp_path / "data" / "val" / "Red" / "a.png", 0)
    with pytest.raises(UsageError, match=r"called Red\. Name folders like .* blue, green, red,"):
        ground_truth.read_labelled("data", classes)
    with pytest.raises(ImageError, match="there is no such folder"):
        ground_truth.read_labelled("nowhere", classes)


INDICES = [65, 970, 0, 809, 516]
LISTS = {
    "val.txt": "".join(f"ILSVRC2012_val_{i:08d}.JPEG {x}\n" for i, x in enumerate(INDICES, 1)),
    "indices": "\n".join(map(str, INDICES)) + "\n\n",
    "synsets": "\r\n".join(imagenet_labels()[x].synset for x in INDICES),
    "kaggle": "ImageId,PredictionString\n"
    + "".join(
        f"ILSVRC2012_val_{i:08d},{imagenet_labels()[x].synset} 85 1 499 272 \n"
        for i, x in reversed(list(enumerate(INDICES, 1)))
    ),
}


@pytest.mark.parametrize("form", LISTS)
def test_lists_of_ground_truth(form, tmp_path):
    for i in (1, 2, 3, 5):
        draw(tmp_path / "val" / f"ILSVRC2012_val_{i:08d}.png", i)
    draw(tmp_path / "val" / "other.png", 9)
    (tmp_path / "truth").write_text(LISTS[form], newline="")
    truth = ground_truth.read_ilsvrc_validation("val", "truth")
    assert truth.paths == tuple(f"val/ILSVRC2012_val_{i:08d}.png" for i in (1, 2, 3, 5))
    assert truth.labels.tolist() == [65, 970, 0, 516]
    assert truth.notes == (
        "truth names 5 photos, the validation set has 50,000",
        "1 photo of truth is not in val: ILSVRC2012_val_00000004",
        "1 photo is left out, not being in truth: other.png",
    )


def devkit():
    return "\n".join(map(str, np.random.default_rng(0).permutation(np.arange(1, 1001))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (devkit(), "truth: classes 1..1000: these are the development kit's numbers, in another"),
        ("0\n1000\n", r"class 1000 is not in 0\.\.999"),
        ("a.JPEG 5\na.JPEG 6\n", "truth, line 2: a second class for a"),
        ("5\n\n6\n", "truth, line 2: it differs in form from the first"),
        ("5\na.JPEG 6\n", "truth, line 2: it differs in form from the first"),
        ("5\n-1\n", "truth, line 2: '-1' is not a class of ILSVRC-2012"),
        ("n00000001\n", "truth, line 1: 'n00000001' is not a class"),
        ("\n", "truth: it is empty"),
        (
            "x.JPEG 5\n",
            "the list names none of these photos, such as ILSVRC2012_val_00000001.png; it",
        ),
    ],
)
def test_wrong_lists_are_refused(text, message, tmp_path):
    draw(tmp_path / "val" / "ILSVRC2012_val_00000001.png", 0)
    (tmp_path / "truth").write_text(text)
    with pytest.raises(UsageError, match=message):
        ground_truth.read_ilsvrc_validation("val", "truth")


def test_a_list_that_may_count_from_one_is_told(tmp_path):
    (tmp_path / "truth").write_text("5\n7\n")
    _, notes = ground_truth.read_truth_list("truth")
    assert "neither index 0 nor 1000" in notes[0]
    with pytest.raises(ImageError, match="nowhere: the list can't be read"):
        ground_truth.read_truth_list("nowhere")


@pytest.mark.parametrize(
    ("name", "preset", "top1"),
    [
        ("bvlc_alexnet", "caffe", 56.598),
        ("bvlc_alexnet", "caffe-mean-image", 57.1),
        ("bvlc_alexnet-npy", "caffe", 56.598),
        ("caffenet", "caffe", 56.714),
        ("torchvision", "torchvision", 56.522),
        ("deep-compression", "caffe-mean-image", 57.074),
        ("deep-compression", "caffe", None),
        ("bvlc_alexnet", "squash", None),
        ("places365", "caffe", None),
        ("torchvision-convs", "torchvision", None),
    ],
)
def test_published_figures(name, preset, top1):
    found = published_accuracy(name, preset)
    assert (found and found.top1) == top1


# The whole way, with a stand-in for the network: a photo's colour is its class.


class Network(jobs.Network):
    """Gives the class that a photo's red value names; with every third wrong by one."""

    def __init__(self, weights, layers, **_):
        super().__init__(weights, layers)
        self.layers, self.classes = tuple(layers), weights.classes

    def __call__(self, batch):
        red = batch[:, 100, 100, 0] * 0.229 + 0.485
        index = np.round(red * 255).astype(int)
        index = np.where(index % 3 == 2, index + 1, index) % self.classes
        return {"prob": np.eye(self.classes, dtype=np.float32)[index] * 0.9 + 0.1 / self.classes}


@pytest.fixture
def reader(monkeypatch):
    jobs.simplify(monkeypatch)


@pytest.fixture
def network(monkeypatch, reader):
    monkeypatch.setattr(worker, "FeatureExtractor", Network)


@pytest.fixture
def validation(tmp_path):
    """Twelve photos of a colour each and a list of their classes."""
    (tmp_path / "val").mkdir()
    for i in range(12):
        name = f"ILSVRC2012_val_{i + 1:08d}.png"
        Image.new("RGB", (40, 40), (i, 9, 9)).save(tmp_path / "val" / name)
    (tmp_path / "truth").write_text("".join(f"{i}\n" for i in range(12)))
    return {"data": "val", "ground_truth": "truth"}


def test_ilsvrc_beside_what_was_published(network, validation, weights):
    dense = {"fc6": (9216, 4096), "fc7": (4096, 4096), "fc8": (4096, 1000)}
    zeros = {
        n: LayerArrays(*(np.zeros(x, np.float32) for x in (s, s[1:]))) for n, s in dense.items()
    }
    whole = WeightArrays({**weights.layers, **zeros}, "torchvision", "alexnet.npz")
    found = ta.evaluate_photos(**validation, weights=whole)
    # Wrong are 2, 5, 8 and 11; of the equal rest, class 2 comes third after the one given.
    assert (found.photos, found.correct, found.among_top) == (12, 8, 9)
    assert found.trained_as == "torchvision"
    assert found.published.top1 == 56.522
    assert any(note.startswith("12 of the 50,000 validation photos") for note in found.notes)
    assert any("identified as torchvision by the biases" in note for note in found.notes)
    ten = ta.evaluate_photos(**validation, weights=whole, crops="ten", keep="ten.h5")
    assert ten.published is None, "those are of one crop"
    other = ta.evaluate_photos(**validation, weights=weights)  # fc8 on pool5: nobody's network
    assert (other.trained_as, other.published) == (None, None)
    with pytest.raises(UsageError, match="the network's 3 classes are different"):
        ta.evaluate_photos(**validation, weights=head_of(weights, 3))


def test_it_goes_on_where_it_was_stopped(network, validation, weights, monkeypatch):
    monkeypatch.setattr(evaluating, "_SHARD", 5)
    whole = ta.evaluate_photos(**validation, weights=weights, batch_size=1)
    assert not os.listdir("cache/evaluations"), "nothing stays of a finished one"

    def stop(done, *_):
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ta.evaluate_photos(**validation, weights=weights, batch_size=1, progress=stop)
    other = ta.evaluate_photos(**validation, weights=head_of(weights, 1000, seed=1))
    assert other.kept == 0, "rows of other weights are not taken for these"
    again = ta.evaluate_photos(**validation, weights=weights)
    assert again.kept == 10
    np.testing.assert_array_equal(again.confusion, whole.confusion)
    assert not os.listdir("cache/evaluations")
    kept = [ta.evaluate_photos(**validation, weights=weights, keep="p.h5").kept for _ in range(2)]
    assert kept == [0, 12]


def test_probabilities_that_are_kept_belong_to_photos_as_they_are_now(
    network, validation, weights, monkeypatch
):
    """Not to those that had their names, and under whatever name the folder is given."""
    settings = {"weights": weights, "ground_truth": "truth", "keep": "p.h5"}
    first = ta.evaluate_photos("val", **settings)
    names = sorted(os.listdir("val"))
    os.rename(f"val/{names[0]}", "val/x")  # right before, and wrong where they are now
    os.rename(f"val/{names[2]}", f"val/{names[0]}")
    os.rename("val/x", f"val/{names[2]}")
    second = ta.evaluate_photos(os.path.abspath("val"), **settings)
    assert (second.photos, second.kept) == (12, 10)
    assert second.confusion[0].argmax() == 3
    assert second.confusion[2].argmax() == 0
    np.testing.assert_array_equal(second.confusion[3:], first.confusion[3:])
    with h5py.File("p.h5") as file:
        assert len(file["prob"]) == 12

    def stop(done, *_):
        if done == 11:
            raise KeyboardInterrupt

    del settings["keep"]
    monkeypatch.setattr(evaluating, "_SHARD", 5)
    with pytest.raises(KeyboardInterrupt):
        ta.evaluate_photos("val", **settings, batch_size=1, progress=stop)
    Image.new("RGB", (40, 40), (7, 9, 9)).save(f"val/{names[1]}")
    third = ta.evaluate_photos("val", **settings)
    assert (third.photos, third.kept) == (12, 9)
    assert third.confusion[1].argmax() == 7


def test_photos_that_are_there_twice_count_once(network, validation, weights):
    os.makedirs("data/n01440764")
    os.symlink(os.path.abspath("val"), "data/n01443537")
    os.rename("val/ILSVRC2012_val_00000001.png", "data/n01440764/a.png")
    os.symlink(os.path.abspath("val"), "data/n01484850")
    found = ta.evaluate_photos("data", weights)
    assert found.photos == 12
    assert "11 photos are links to others, counted once" in found.notes


def write(folder, record, arrays, **more):
    os.mkdir(folder)
    merit = "val_map" if record.multi_label else "val_accuracy"
    rows = [{"epoch": 1, merit: 0.5}]
    model = ta.AlexNet(arrays)
    return write_run(folder, record, arrays, model, history=rows, **more)


@pytest.fixture(scope="module")
def written(convs, tmp_path_factory):
    """A folder with what `trained` copies."""
    folder = tmp_path_factory.mktemp("trained")
    photos = [f"{name}/{i}.png" for name in NAMES for i in range(4)]
    for i, path in enumerate(photos):
        draw(folder / "data" / path, i)
    arrays = head_of(convs, 3)
    record = RunRecord(
        NAMES, "torchvision", "torchvision", "pool5", "head", {}, {},
        {"drawn": True, "train": 9, "val": 3, "skipped": 0, "val_photos": photos[::4]},
        {"val_accuracy": 0.5},
    )  # fmt: skip
    write(folder / "RUN", record, arrays)
    return folder, arrays


@pytest.fixture
def trained(written, tmp_path):
    """A RUN of three classes, as version 0.1.0 recorded it, that set validation photos aside."""
    shutil.copytree(written[0], tmp_path, dirs_exist_ok=True)
    return written[1]


def test_command_with_a_run(run, reader, trained):
    code, out, err = run(
        *("evaluate", "data", "--model", "RUN", "--csv", "t.csv", "--plot", "c.png", "--json")
    )
    assert code == 0
    found = json.loads(out)
    assert (found["photos"], found["top5"]) == (3, None)
    assert {row["name"] for row in found["classes"]} == set(NAMES)
    assert sum(sum(row.values()) for row in found["confusion"].values()) == 3
    assert "RUN was trained on photos of data: 9 left out, 3 evaluated" in err
    assert "not the weights of a known trained network" not in err
    with Image.open("c.png") as picture:
        assert picture.size[0] > 300
    with open("t.csv", newline="") as file:
        assert [row[:2] for row in csv.reader(file)][1:] == [[name, "1"] for name in NAMES]
    os.rename("data", "elsewhere")
    code, out, _ = run("evaluate", "elsewhere/", "--model", "RUN")
    assert "3 photos\n" in out, "the same photos under another name"
    os.remove("elsewhere/blue/0.png")
    code, out, err = run("evaluate", "elsewhere", "--model", "RUN")
    assert "2 photos\n" in out, "those that are left"
    assert "1 of its 3 validation photos is missing: blue/0.png" in err
    for name in ("green", "red"):
        os.remove(f"elsewhere/{name}/0.png")


def recorded(data, **settings):
    """A record of a training on these photos."""
    photos = read_photos(data, 0.25, **settings)
    merit = "val_map" if photos.multi_label else "val_accuracy"
    return RunRecord(
        photos.classes, "torchvision", "torchvision", "pool5", "head", {}, {},
        split_record(photos), {merit: 0.5}, multi_label=photos.multi_label,
    )  # fmt: skip


@pytest.fixture
def aside(convs, tmp_path):
    """A RUN that set one of four photos of each class of ``data`` aside."""
    for i in range(12):
        draw(tmp_path / "data" / NAMES[i // 4] / f"{i % 4}.png", i)
    return write("RUN", recorded("data"), head_of(convs, 3))


def judged(data, **settings):
    found = ta.evaluate_photos(data, model="RUN", **settings)
    return found.photos, " ".join(found.notes)


def test_training_photos_are_never_scored(network, aside):
    assert judged("data") == (
        3, "RUN was trained on photos of data: 9 left out, 3 evaluated",
    )  # fmt: skip
    shutil.copytree("data", "copy")
    os.rename("copy/blue/0.png", "copy/blue/renamed.png")
    assert judged("copy")[0] == 3, "they are told by content, wherever they are"
    for path in glob.glob("data/*/*.png"):
        with Image.open(path) as photo:
            photo.resize((50, 50)).save(path)
    assert judged("data")[0] == 3, "in that folder also by name"
    first, *others = aside.record.split["val_photos"]
    os.remove(f"data/{first}")
    photos, notes = judged("data")
    assert photos == 2
    assert f"1 of its 3 validation photos is missing: {first}" in notes
    for name in others:
        os.remove(f"data/{name}")
    with pytest.raises(UsageError, match="data: none of the 3 validation photos of RUN is left"):
        judged("data")


def test_other_photos_are_scored_whatever_their_names(network, aside, tmp_path):
    for i in range(12):
        draw(tmp_path / "new" / NAMES[i // 4] / f"{i % 4}.png", 100 + i)
    assert judged("new") == (12, "")


def test_given_splits_are_told_by_content(network, convs, tmp_path):
    for i in range(24):
        split = ("train", "val")[i % 2]
        draw(tmp_path / "D" / split / NAMES[i // 8] / f"{i}.png", i)
    write("RUN", recorded("D"), head_of(convs, 3))
    assert judged("D") == (12, "D has train and val: val is evaluated")
    with pytest.raises(UsageError, match="D/train: RUN was trained on all of its 12 photos"):
        judged("D/train")
    shutil.copy("D/train/red/16.png", "D/val/red/copy.png")
    photos, notes = judged("D/val")
    assert photos == 12
    assert "RUN was trained on photos of D/val: 1 left out, 12 evaluated" in notes


def test_a_test_split_beside_photos_that_were_set_aside(network, convs, tmp_path):
    for i in range(24):
        draw(tmp_path / "D" / ("train", "test")[i % 2] / NAMES[i // 8] / f"{i}.png", i)
    made = write("RUN", recorded("D"), head_of(convs, 3))
    assert made.record.split["train"] == 9
    assert judged("D") == (12, "D has train and test: test is evaluated")
    assert judged("D/train")[0] == 3


def test_a_photo_that_can_no_longer_be_read_is_not_scored(network, aside, monkeypatch):
    """Its kept probabilities are those of what it held before."""
    place = aside.record.split["val_photos"][0]
    assert judged("data", keep="p.h5")[0] == 3
    os.rename(f"data/{place}", "away.png")
    os.symlink("nowhere", f"data/{place}")
    found = ta.evaluate_photos("data", model="RUN", keep="p.h5")
    assert (found.photos, [x.path for x in found.failures]) == (2, [f"data/{place}"])


def test_a_table_instead_of_folders(network, convs, aside, tmp_path):
    lines = [f"new/{i}.png,{NAMES[i % 3]}" for i in range(6)]
    for i in range(6):
        draw(tmp_path / "new" / f"{i}.png", 50 + i)
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(lines))
    found = ta.evaluate_photos("labels.csv", model="RUN")
    assert found.photos == 6
    np.testing.assert_array_equal(found.confusion.sum(axis=1), [2, 2, 2])
    (tmp_path / "names.json").write_text('{"red": 0, "blue": 1, "green": 2}')
    other = ta.evaluate_photos("labels.csv", head_of(convs, 3), labels="names.json")
    assert [x.label for x in other.classes] == ["red", "blue", "green"]
    (tmp_path / "names.txt").write_text("red\nblue\n")
    with pytest.raises(UsageError, match=r"names.txt: 2 names, but the network has 3 outputs\. Gi"):
        ta.evaluate_photos("labels.csv", head_of(convs, 3), labels="names.txt")


def test_average_precision_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    truth = random.random((300, 7)) < random.random(7) * 0.5
    truth[:, 3] = False
    scores = np.round(truth * 0.3 + random.normal(0, 1, truth.shape), 1)  # with ties
    found = average_precisions(truth, scores)
    assert np.isnan(found[3])
    rest = np.arange(7) != 3
    expected = metrics.average_precision_score(truth[:, rest], scores[:, rest], average=None)
    np.testing.assert_allclose(found[rest], expected, rtol=1e-12)


def test_a_multi_label_run(run, reader, convs, tmp_path):
    random = np.random.default_rng(0)
    labels = [[name for name in NAMES if random.random() < 0.5] for _ in range(16)]
    for i in range(16):
        draw(tmp_path / "photos" / f"{i}.png", i)
    rows = [f"photos/{i}.png,{'|'.join(x)}" for i, x in enumerate(labels)]
    (tmp_path / "train.csv").write_text("path,label\n" + "\n".join(rows[:8]))
    (tmp_path / "test.csv").write_text("path,label\n" + "\n".join(rows[8:]))
    arrays = head_of(convs, 3)
    write("RUN", recorded("train.csv", multi_label=True), arrays)
    pictures = [ta.load_image(f"photos/{i}.png") for i in range(8, 16)]
    logits = ta.features(ta.AlexNet(arrays), ["fc8"]).predict(
        ta.preprocess_input(pictures, "torchvision"), verbose=0
    )["fc8"]
    truth = np.array([[name in x for name in NAMES] for x in labels[8:]])
    expected = metrics.average_precision_score(truth, logits)
    code, out, err = run("evaluate", "test.csv", "--model", "RUN", "--json", "--csv", "t.csv")
    assert code == 0, err
    found = json.loads(out)
    assert found["mean_average_precision"] == pytest.approx(expected, abs=1e-9)
    assert [x["name"] for x in found["classes"]] == list(NAMES)
    code, out, _ = run("evaluate", "test.csv", "--model", "RUN")
    assert f"mean average precision  {expected:.4f}" in out
    with open("t.csv") as file:
        assert len(file.readlines()) == 4


def test_a_test_split_is_evaluated_at_the_end(reader, convs, tmp_path):
    """With a `RunRecord` and photos as both modes of training have them."""
    for i in range(36):
        split = ("Training", "valid", "test_set")[i % 3]
        draw(tmp_path / "D" / split / NAMES[i // 12] / f"{i}.png", i)
    (tmp_path / "D/test_set/red/bad.png").write_text("no photo")
    photos = read_photos("D")
    arrays = head_of(convs, 3)
    made = write("RUN", recorded("D"), arrays, test=photos.test, confusion=np.eye(3, dtype=int))
    good = [x for x in photos.test if not x.path.endswith("bad.png")]
    assert len(good) == 12
    x = ta.preprocess_input([ta.load_image(x.path) for x in good], "torchvision")
    probabilities = ta.AlexNet(arrays).predict(x, verbose=0)
    truth = [x.label for x in good]
    figures = made.record.metrics
    assert figures["test_accuracy"] == metrics.accuracy_score(truth, probabilities.argmax(1))
    assert figures["test_loss"] == pytest.approx(metrics.log_loss(truth, probabilities), rel=1e-5)
    assert made.record.split["test"] == 12
    text = (tmp_path / "RUN" / "report.md").read_text()
    assert f"| test | 12 | {figures['test_accuracy']:.1%} |" in text
    assert "bad.png" in text
    json_ = json.loads((tmp_path / "RUN" / "class_indices.json").read_text())
    assert json_ == {"0": "blue", "1": "green", "2": "red"}
    assert [x.label for x in read_labels("RUN/class_indices.json")] == list(NAMES)
    for path in (tmp_path / "D" / "test_set").rglob("*.png"):
        path.write_text("no photo")
    lost = write("LOST", recorded("D"), arrays, test=photos.test)
    assert "test_accuracy" not in lost.record.metrics
    assert "no test photo was evaluated" in (tmp_path / "LOST" / "report.md").read_text()


@pytest.mark.parametrize(
    ("command", "named"),
    [("predict", ["--model", "RUN/model.keras"]), ("evaluate", ["-w", "RUN/weights.safetensors"])],
)
def test_a_run_is_found_by_its_files(command, named, run, reader, trained):
    for path in glob.glob("data/*/[1-9].png"):
        os.remove(path)
    code, out, err = run(command, "data", *named, "--json")
    assert code == 0, err
    found = json.loads(out)
    rows = found["classes"] if command == "evaluate" else found[0]["predictions"]
    assert {x.get("name", x.get("label")) for x in rows} == set(NAMES)
    assert "known trained network" not in err


def test_features_of_a_run(run, reader, trained):
    code, _, err = run("extract", "data", "-o", "f.h5", "--model", "RUN", "-l", "prob")
    assert code == 0, err
    with h5py.File("f.h5") as file:
        path, row = file["paths"].asstr()[0], file["prob"][0]
        assert file.attrs["weights_digest"] == trained.digest
    x = ta.preprocess_input([ta.load_image(path)], "torchvision")
    np.testing.assert_allclose(row, ta.AlexNet(trained).predict(x, verbose=0)[0], rtol=1e-4)
    code, _, err = run("extract", "data", "-o", "g.h5", "--model", "RUN", "-w", "x.npy")
    assert (code, "--model with --weights: a RUN has its own" in err) == (2, True)


def test_a_model_that_is_no_longer_that_of_its_run(run, trained, convs):
    ta.AlexNet(head_of(convs, 3, seed=1)).save("RUN/model.keras")
    code, _, err = run("predict", "data/red/1.png", "--model", "RUN/model.keras")
    assert (code, "model.keras: not the weights that run.json describes" in err) == (
        3,
        True,
    )


def test_predict_with_labels(run, reader, trained, tmp_path):
    ta.write_weights(trained, "plain.safetensors")
    (tmp_path / "signs.csv").write_text("ClassId,SignName\n0,rot\n2,blau\n1,gelb\n")
    code, out, _ = run(
        *("predict", "data/red/1.png", "-w", "plain.safetensors", "--labels", "signs.csv", "--json")
    )
    (photo,) = json.loads(out)
    named = {x["index"]: x["label"] for x in photo["predictions"]}
    assert (code, named) == (0, {0: "rot", 1: "gelb", 2: "blau"})
    (tmp_path / "two.txt").write_text("rot\ngelb\n")
    code, out, err = run("predict", "data/red/1.png", "--model", "RUN", "--labels", "two.txt")
    assert (code, out) == (2, "")
    assert "error: labels two.txt: 2 names, but the network has 3 outputs. Give one name" in err


def test_predict_with_a_run(run, reader, trained):
    code, out, err = run("predict", "data/red/1.png", "--model", "RUN", "--plot", "p.png")
    assert code == 0
    lines = [line.split() for line in out.splitlines()[1:]]
    x = ta.preprocess_input([ta.load_image("data/red/1.png")], "torchvision")
    expected = ta.AlexNet(trained).predict(x, verbose=0)[0]
    assert {name: float(p) for p, name in lines} == pytest.approx(
        dict(zip(NAMES, expected, strict=True)), abs=1e-4
    )
    assert "known trained network" not in err
    with Image.open("p.png") as picture:
        assert picture.size[1] > 200
    code, out, _ = run("predict", "data", "--model", "RUN", "--top", "1", "--csv")
    assert len(out.splitlines()) == 13


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate"], 2, "it got no photos"),
        (["evaluate", "data", "--ground-truth", "x"], 2, "it got DATA --ground-truth"),
        (["evaluate", "data", "--model", "RUN", "-w", "w.npy"], 2, "--model with --weights"),
        (["predict", "data", "--model", "RUN", "-w", "w.npy"], 2, "--model with --weights"),
        (["predict", "data", "--model", "data"], 2, "it holds no finished training"),
        (["evaluate", "data", "--model", "nowhere"], 2, "there is no such folder"),
        (["evaluate", "data", "-w", "torchvision-convs"], 3, "it has no fc8"),
        (["evaluate", "data", "--model", "RUN", "--plot", "c.doc"], 2, "unknown file type"),
        (
            ["evaluate", "data", "--model", "RUN", "--csv", "data/red/1.png/c.csv"],
            4,
            "not a folder",
        ),
        (["evaluate", "data", "--model", "RUN", "--keep", "p.npz"], 2, "not the name of an .h5"),
        (["evaluate", "data/red", "--model", "RUN"], 2, "no class folder in it"),
    ],
)
def test_commands_that_can_not_work(arguments, code, message, run, trained):
    status, out, err = run(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (status, out, len(lines)) == (code, "", 1)
    assert message in lines[0]


def test_unknown_weights_and_unreadable_photos_are_told(run, reader, convs, tmp_path):
    layers = {name: x._replace(bias=x.bias + 1) for name, x in head_of(convs, 3).layers.items()}
    ta.write_weights(
        WeightArrays(layers, "torchvision", metadata={"head": "pool5"}), "own.safetensors"
    )
    for i in range(3):
        draw(tmp_path / "data" / str(i) / "a.png", i)
    (tmp_path / "data" / "2" / "b.png").touch()
    code, out, err = run("evaluate", "data", "--weights", "own.safetensors")
    assert code == 5
    assert "error: data/2/b.png: " in err
    assert "are not the weights of a known trained network" in err
    assert "3 photos; 1 could not be read\n" in out
    assert "top-5" not in out, "all of three classes are among five"


def test_weights_that_give_no_numbers_are_refused(reader, convs, folders):
    broken = head_of(convs, 1000, scale=1e37)
    with pytest.raises(WeightsError, match="NaN or infinite"):
        ta.evaluate_photos(folders, broken)
