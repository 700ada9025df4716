"""Class names and top-k: order, ties, and what is refused."""

import numpy as np
import pytest

from tf_alexnet.errors import InputError
from tf_alexnet.labels import Prediction, decode_predictions, imagenet_labels


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
    assert best[0] == Prediction("n03126707", "crane", 517, 0.2)
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
    assert best == [Prediction("", "rose", 1, 0.75), Prediction("", "daisy", 0, 0.25)]


@pytest.mark.parametrize(
    ("predictions", "arguments", "text"),
    [
        (one_hot(1)[0], {}, r"found 1 axes\. For one photo give predictions\[np\.newaxis\]"),
        (np.zeros((1, 6, 6, 256)), {}, r"shape \(1, 6, 6, 256\): expected \(N, classes\)"),
        (one_hot(1, classes=365), {}, r"365 columns, but .*1000 classes\. .*labels="),
        (one_hot(1, classes=1001), {}, r"background class"),
        (np.zeros((2, 4096)), {}, r"4096 columns are features of a hidden layer.*`prob`"),
        (one_hot(1, classes=3), {"labels": ["a", "b"]}, r"3 columns but 2 labels"),
        (one_hot(1) * np.nan, {}, r"1 of 1 rows hold NaN"),
        (one_hot(1) * 9.5, {}, r"not probabilities: row 0 adds up to 9\.5.*`prob`"),
        (one_hot(1, 2) - 1e-3 * one_hot(3, 4), {}, r"least value is -0\.001"),
        (one_hot(1).astype(str), {}, r"not numbers"),
        (one_hot(1), {"top": 0}, r"top=0: .*from 1 to 1000"),
        (one_hot(1), {"top": 1001}, r"top=1001"),
        (one_hot(1), {"top": 2.0}, r"top=2\.0"),
        ([[0.5, 0.5]], {"top": 3, "labels": ["a", "b"]}, r"from 1 to 2"),
    ],
)
def test_refusals_say_what_is_wrong_and_what_to_do(predictions, arguments, text):
    with pytest.raises(InputError, match=text):
        decode_predictions(predictions, **arguments)
