"""Class names and top-k: order, ties, and what is refused."""

import copy
import pickle

import numpy as np
import pytest

from tf_alexnet.errors import InputError
from tf_alexnet.labels import (
    Label,
    Prediction,
    decode_predictions,
    imagenet_labels,
    labels_of_network,
    read_labels,
)


def one_hot(*indices, classes=1000):
    return np.eye(classes, dtype=np.float32)[list(indices)]


def test_classes_are_in_caffes_order():
    # Indices that Caffe's and the field's published outputs name.
    known = {
        0: ("n01440764", "tench, Tinca tinca"),
        134: ("n02012849", "crane"),
        150: ("n02077923", "sea lion"),
        281: ("n02123045", "tabby, tabby cat"),
        282: ("n02123159", "tiger cat"),
        340: ("n02391049", "zebra"),
        355: ("n02437616", "llama"),
        517: ("n03126707", "crane"),
        999: ("n15075141", "toilet tissue, toilet paper, bathroom tissue"),
    }
    labels = imagenet_labels()
    assert {i: tuple(labels[i]) for i in known} == known
    synsets = [label.synset for label in labels]
    assert len(set(synsets)) == 1000
    assert synsets == sorted(synsets)
    assert all(label.label.strip() == label.label != "" for label in labels)


def test_most_probable_first_and_lower_index_first_among_equals():
    row = np.full(1000, 0.5 / 996)
    row[[900, 7, 517, 134]] = [0.125, 0.125, 0.2, 0.05]
    (best,) = decode_predictions(row[np.newaxis], top=4)
    assert [p.index for p in best] == [517, 7, 900, 134]
    assert best[0] == Prediction("n03126707", "crane", 0.2, index=517)
    assert type(best[0].index) is int
    assert type(best[0].probability) is float


def test_uniform_probabilities_name_the_first_classes():
    (best,) = decode_predictions(np.full((1, 1000), 1e-3, np.float32))
    assert [p.index for p in best] == [0, 1, 2, 3, 4]


def test_a_row_a_photo_and_no_photos():
    assert [p[0].index for p in decode_predictions(one_hot(281, 0, 999), top=1)] == [281, 0, 999]
    assert decode_predictions(np.empty((0, 1000), np.float32)) == []


def test_half_precision_softmax_is_accepted():
    logits = np.random.default_rng(0).normal(0, 3, (64, 1000))
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    half = (e / e.sum(axis=1, keepdims=True)).astype(np.float16)
    best = decode_predictions(half, top=1)
    assert [p[0].index for p in best] == logits.argmax(axis=1).tolist()


def test_own_labels_have_no_synset():
    (best,) = decode_predictions([[0.25, 0.75]], top=2, labels=["daisy", "rose"])
    assert best == [Prediction("", "rose", 0.75, 1), Prediction("", "daisy", 0.25, 0)]


def test_predictions_are_keras_triples():
    (best,) = decode_predictions(one_hot(281)[0], top=2)  # one photo
    for synset, label, probability in best[:1]:
        assert (synset, label, probability) == ("n02123045", "tabby, tabby cat", 1.0)
    first = best[0]
    assert first == ("n02123045", "tabby, tabby cat", 1.0)
    assert (first.synset, first.label, first.probability, first.index) == (*first, 281)
    assert repr(first) == (
        "Prediction(synset='n02123045', label='tabby, tabby cat', index=281, probability=1.0)"
    )
    for same in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first), copy.copy(first)):
        assert same == first
        assert (type(same), same.index, hash(same)) == (Prediction, 281, hash(first))
    other = Prediction(*first, index=282)
    assert other != first
    assert first == Prediction(*first, index=281)
    assert len({first, other, tuple(first)}) == 2


def test_top_is_at_most_the_classes():
    for top in (2, 5, np.int64(1000)):
        (best,) = decode_predictions([0.25, 0.75], top=top, labels=["daisy", "rose"])
        assert [p.label for p in best] == ["rose", "daisy"]


TWO = (Label("n01440764", "tench, Tinca tinca"), Label("n02123045", "tabby, tabby cat"))
PLAIN = (Label("", "daisy"), Label("", "rose, red"))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("daisy\nrose, red\n", PLAIN),
        ("\ufeffdaisy\r\nrose, red\r\n\r\n", PLAIN),
        ("n01440764 tench, Tinca tinca\nn02123045 tabby, tabby cat\n", TWO),
        ("n01440764\nn02123045", TWO),
        ("n01440764\ttench, Tinca tinca\nn02123045\ttabby, tabby cat\n", TWO),
        ('{"rose, red": 1, "daisy": 0}', PLAIN),
        ('{"1": "rose, red", "0": "daisy"}', PLAIN),
        ('{"1": ["n02123045", "tabby, tabby cat"], "0": ["n01440764", "tench, Tinca tinca"]}', TWO),
        ('["daisy", "rose, red"]', PLAIN),
        ('[["n01440764", "tench, Tinca tinca"], ["n02123045", "tabby, tabby cat"]]', TWO),
        ('{"1": 0, "0": 1}', (Label("", "1"), Label("", "0"))),  # folders named 0 and 1
    ],
)
def test_labels_from_files(text, labels, tmp_path):
    (tmp_path / "labels").write_text(text, encoding="utf-8", newline="")
    for path in (tmp_path / "labels", str(tmp_path / "labels")):
        (best,) = decode_predictions([0.25, 0.75], labels=path)
        assert best == [(*labels[1], 0.75), (*labels[0], 0.25)]
        assert [p.index for p in best] == [1, 0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('ClassId,SignName\n0,daisy\n1,"rose, red"\n', "signnames.csv"),
        ("name;index\nrose, red;1\ndaisy;0\n", "names.csv"),
        ("1\trose, red\n0\tdaisy\n", "names.tsv"),
        ('path,label\na.jpg,"rose, red"\nb.jpg,daisy\nc.jpg,daisy\n', "labels.csv"),
        ('daisy\n"rose, red"\n', "lines.csv"),
    ],
)
def test_labels_from_tables(text, name, tmp_path):
    (tmp_path / name).write_text(text)
    found = read_labels(tmp_path / name)
    assert [x.label.strip('"') for x in found] == ["daisy", "rose, red"]


def test_labels_must_be_as_many_as_outputs(tmp_path):
    assert labels_of_network(PLAIN, 2) == labels_of_network(PLAIN, None) == PLAIN
    (tmp_path / "words").write_text("daisy\nrose\n")
    with pytest.raises(InputError, match=r"^labels .*words: 2 names, but the network has 5 out"):
        labels_of_network(tmp_path / "words", 5)
    with pytest.raises(InputError, match=r"^labels: 2 names, but the network has 5 outputs"):
        labels_of_network(PLAIN, 5)


@pytest.mark.parametrize(
    "labels",
    [
        *(["daisy", "rose, red"], np.array(["daisy", "rose, red"]), {"rose, red": 1, "daisy": 0}),
        *({0: "daisy", 1: "rose, red"}, PLAIN, (name for name in ("daisy", "rose, red"))),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_labels_in_memory(labels):
    assert read_labels(labels) == PLAIN


def test_refused_labels(tmp_path):
    texts = {
        "gap": ('{"daisy": 0, "rose": 2}', "2 names, but none with index 1"),
        "twice": ('{"daisy": 1, "rose": 1}', "2 names, but none with index 0"),
        "neither": ('{"daisy": "a", "rose": "b"}', "neither its keys nor its values"),
        "huge": ('{"' + "9" * 5000 + '": "a"}', "neither its keys nor its values"),
        "cut": ('["daisy", ', r"begins like JSON, but is not valid \("),
        "deep": ("[" * 100_000, r"begins like JSON, but is not valid \("),
        "python": ("{0: 'tench'}", "begins like JSON, but is not"),
        "inner": ('[{"a": 1}]', "name 0 is {'a': 1}"),
        "hole": ("daisy\n\nrose\n", "line 2 is empty"),
    }
    for name, (text, match) in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=f"^labels .*{name}: .*{match}") as caught:
            read_labels(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 25)
    reasons = {
        "binary": "not a UTF-8",
        "large": "too many",
        "none": "No such",
        ".": "not a regular",
    }
    for name, match in reasons.items():
        with pytest.raises(InputError, match=match):
            decode_predictions(one_hot(1), labels=str(tmp_path / name))
    for labels in (7, {"daisy", "rose"}, b"daisy", [None, "rose"], [("a", 1)]):
        with pytest.raises(InputError, match=r"^labels: (got|name 0 is) .* Give "):
            read_labels(labels)
    (tmp_path / "three").write_text("a\nb\nc\n")
    with pytest.raises(InputError, match="2 columns but 3 labels"):
        decode_predictions([0.5, 0.5], labels=tmp_path / "three")


@pytest.mark.parametrize(
    ("predictions", "arguments", "text"),
    [
        (np.zeros((1, 6, 6, 256)), {}, r"shape \(1, 6, 6, 256\): expected \(N, classes\)"),
        (one_hot(1, classes=365), {}, r"365 columns, but .*1000 classes\. .*labels="),
        (one_hot(1, classes=1001), {}, r"background class"),
        (np.zeros((2, 4096)), {}, r"4096 columns are features of a hidden layer.*`prob`"),
        (one_hot(1, classes=3), {"labels": ["a", "b"]}, r"3 columns but 2 labels"),
        (one_hot(1) * np.nan, {}, r"1 of 1 rows hold NaN"),
        (one_hot(1) * 9.5, {}, r"not probabilities: row 0 sums to 9\.5.*`prob`"),
        (one_hot(1, 2) - 1e-3 * one_hot(3, 4), {}, r"smallest value is -0\.001"),
        (one_hot(1).astype(str), {}, r"not numbers"),
        (one_hot(1), {"top": 0}, r"top=0: .*Ask for 1 or more"),
        (one_hot(1), {"top": 2.0}, r"top=2\.0"),
        (one_hot(1), {"top": True}, r"top=True"),
        (0.5, {}, r"found 0 axes"),
    ],
)
def test_refusals_say_what_is_wrong_and_what_to_do(predictions, arguments, text):
    with pytest.raises(InputError, match=text):
        decode_predictions(predictions, **arguments)
