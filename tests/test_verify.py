"""Verification: what is right passes, and each wrong thing fails by itself."""

import hashlib
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import EXAMPLE_PHOTOS, ROOT
from reference import forward

import tf_alexnet as ta
from tf_alexnet.architectures import BVLC_ALEXNET
from tf_alexnet.errors import InputError, WeightsError
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.weights import (
    LayerArrays,
    Source,
    WeightArrays,
    find_weights,
    known_weights,
    verify_weights,
)
from tf_alexnet.weights.identify import fingerprints
from tf_alexnet.weights.verify import GOLDENS, Golden

CATALOG_MODULE = sys.modules[known_weights.__module__]
CONVS = known_weights("torchvision-convs")
FILE = CONVS.sources[0].file_name


def answers(found):
    return {check.name: check.passed for check in found.checks}


def failed(found):
    assert set(found.wrong) == {check.name for check in found.checks if check.passed is False}
    return {check.name: check.found for check in found.checks if check.passed is False}


@pytest.fixture
def convs(tmp_path):
    """The embedded file's bytes, to be spoilt, under a name of choice."""
    content = bytearray(find_weights("torchvision-convs").read_bytes())

    def write(name=FILE, spoil=lambda content: content):
        path = tmp_path / name
        path.write_bytes(spoil(bytearray(content)))
        return path

    return write


def flip_last(content):
    content[-2] ^= 1
    return content


CHECKS = ("checksum", "arrays", "fingerprint", "record")


def test_published_file_passes(convs):
    for path in (convs(), convs("another name"), "torchvision-convs"):
        found = verify_weights(path)
        assert answers(found) == dict.fromkeys(CHECKS, True)
        assert found.checks[2].deviation < 1e-6


def test_one_flipped_bit_under_another_name(convs):
    """Under the published name it is refused, as by every reader (test_catalog)."""
    found = answers(verify_weights(convs("mine.safetensors", flip_last)))
    assert found == {"checksum": None, "arrays": True, "fingerprint": True, "record": True}


def spoilt(tmp_path, name="x.safetensors", architecture="torchvision", **changes):
    """The embedded arrays with some replaced or, by None, taken away."""
    layers = dict(ta.read_weights(find_weights("torchvision-convs")).layers)
    layers.update({k: LayerArrays(*map(np.array, v)) for k, v in changes.items() if v})
    for gone in [k for k, v in changes.items() if v is None]:
        del layers[gone]
    ta.write_weights(WeightArrays(layers, architecture), tmp_path / name)
    return tmp_path / name


def test_wrong_arrays_are_found_one_by_one(tmp_path):
    kernel, bias = ta.read_weights(find_weights("torchvision-convs")).layers["conv3"]
    holed = kernel.copy()
    holed[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    path = spoilt(tmp_path, conv3=(holed, bias))
    assert failed(verify_weights(path)) == {
        "arrays": "conv3 kernel: 3 of 663552 values are NaN or infinite"
    }
    assert failed(verify_weights(spoilt(tmp_path, conv4=None))) == {"arrays": "conv4 is missing"}
    path = spoilt(tmp_path, conv3=(kernel[:, :, :, :-1], bias[:-1]), architecture=None)
    (found,) = failed(verify_weights(path)).values()
    assert found.startswith("not AlexNet; as torchvision: conv3 kernel has shape (3, 3, 192, 383)")
    kernel, bias = ta.read_weights(find_weights("torchvision-convs")).layers["conv1"]
    path = spoilt(tmp_path, conv1=(kernel[:, :, ::-1], bias))
    assert failed(verify_weights(path)) == {
        "fingerprint": "biases of torchvision, but the kernel of conv1 is not: its input channels "
        "are in reverse order, RGB for BGR"
    }
    path = spoilt(tmp_path, architecture="compact")
    assert failed(verify_weights(path)) == {
        "record": "it records compact, but by its convolutions it is torchvision"
    }


def test_other_biases_fail_only_where_the_name_promises_better(tmp_path, monkeypatch):
    kernel, bias = ta.read_weights(find_weights("torchvision-convs")).layers["conv1"]
    changed = {"conv1": (kernel, bias + 0.02)}
    found = verify_weights(spoilt(tmp_path, **changed))
    assert answers(found)["fingerprint"] is None
    assert found.checks[2].deviation == pytest.approx(0.02, abs=1e-5)
    assert set(failed(verify_weights(spoilt(tmp_path, FILE, **changed)))) == {
        "checksum",
        "fingerprint",
    }
    # A conversion has the published name of a file whose size nobody published, in other bytes.
    source = Source(FILE, (), None, "sha256:" + "0" * 64)
    monkeypatch.setattr(
        CATALOG_MODULE,
        "_CATALOG",
        (known_weights("torchvision"), replace(CONVS, sources=(source,))),
    )
    found = answers(verify_weights(spoilt(tmp_path, FILE)))
    assert (found["checksum"], found["fingerprint"]) == (None, True)
    found = answers(verify_weights(spoilt(tmp_path, FILE, **changed)))
    assert (found["checksum"], found["fingerprint"]) == (False, False)


def test_nothing_to_check_is_an_error(tmp_path):
    (tmp_path / "page.npy").write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match="an HTML"):
        verify_weights(tmp_path / "page.npy")
    with pytest.raises(InputError, match="not a folder"):
        verify_weights(find_weights("torchvision-convs"), tmp_path / "nowhere")


HEADED = BVLC_ALEXNET.with_head("pool5", 1000)


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """Synthetic weights that pass for bvlc_alexnet, classes far from equal: path, arrays.

    The classifier is on pool5: 47 MB.
    """
    layers = dict(synthetic_weights(HEADED).layers)
    kernel, bias = layers["fc8"]
    layers["fc8"] = LayerArrays(kernel * np.float32(2), bias)
    trained = fingerprints()["bvlc_alexnet"]["conv1"].astype(np.float32)
    layers["conv1"] = LayerArrays(layers["conv1"].kernel, trained)
    arrays = WeightArrays(layers, "bvlc_alexnet", metadata={"head": "pool5"})
    path = tmp_path_factory.mktemp("decided") / "mine.safetensors"
    ta.write_weights(arrays, path)
    return path, arrays


# Udacity's and Guerzhoy's code: TensorFlow's SAME pads conv1 by 4 a side, and pooling rounds down.
SAME = replace(
    HEADED,
    layers=(replace(HEADED.layers[0], pad=4), *HEADED.layers[1:]),
    pool_rounds_up=False,
)


def computed_golden(arrays, picture, preset, padded, known=5):
    """A record as others would have published it; classes from rank `known` on are left out.

    The padded network is computed by plain NumPy. The plain one is held to NumPy elsewhere.
    """
    x = ta.preprocess_input([ta.load_image(EXAMPLE_PHOTOS / picture)], preset)
    if padded:
        prob = forward(SAME, arrays, x.transpose(0, 3, 1, 2))["prob"][0]
    else:
        prob = ta.AlexNet(arrays).predict(x, verbose=0)[0]
    best = np.argsort(-prob)[:5]
    assert 0.1 < prob[best[0]] < 0.9, "the bound below would mean nothing"
    ranks = tuple((int(i) if n < known else None, float(prob[i])) for n, i in enumerate(best))
    sha256 = hashlib.sha256((EXAMPLE_PHOTOS / picture).read_bytes()).hexdigest()
    return Golden("bvlc_alexnet", picture, sha256, preset, padded, ranks, "NumPy", bound=1e-3)


def test_published_outputs_are_hit_or_missed(decided, tmp_path):
    path, arrays = decided
    plain = computed_golden(arrays, "chelsea.jpg", "kratzert", padded=False)
    padded = computed_golden(arrays, "raccoon.jpg", "udacity", padded=True, known=2)
    (index, first), *rest = plain.probabilities
    altered = {
        "hit": plain,
        "hit with conv1 padded": padded,
        "padding": replace(plain, same_padding=True),
        "no padding": replace(padded, same_padding=False),
        "preset": replace(plain, preset="squash"),
        "probability": replace(plain, probabilities=((index, first + 0.002), *rest)),
        "class": replace(plain, probabilities=((index + 1, first), *rest)),
        "rank": replace(padded, probabilities=padded.probabilities[::-1]),
        "not ours": replace(plain, network="caffenet"),
        "not there": replace(plain, picture="nothing.jpg"),
        "other picture": replace(plain, sha256="0" * 64),
    }
    checks = verify_weights(path, EXAMPLE_PHOTOS, list(altered.values())).checks[4:]
    found = dict(zip(altered, checks, strict=True))
    for name in ("hit", "hit with conv1 padded"):
        assert found[name].passed is True, found[name]
        assert found[name].deviation < 1e-5, name
    for name in ("padding", "no padding", "preset", "probability", "class", "rank"):
        assert found[name].passed is False, (name, found[name])
        assert found[name].deviation > 1.5e-3, name
    for name in ("not ours", "not there", "other picture"):
        assert (found[name].passed, found[name].deviation) == (None, None), name
    assert "(NumPy)" in found["hit"].found


def test_golden_records_are_sound():
    names = set(fingerprints())
    for golden in GOLDENS:
        assert golden.network in names
        values = [p for _, p in golden.probabilities]
        assert values == sorted(values, reverse=True)
        assert 0.9 < sum(values) <= 1 or golden.network == "caffenet"
        assert golden.bound == 0.05
    labels = ["sea lion", "llama", "zebra", "miniature poodle"]
    from tf_alexnet.labels import imagenet_labels

    said = [imagenet_labels()[g.probabilities[0][0]].label for g in GOLDENS[1:5]]
    assert said == labels


def test_published_pictures_reveal_other_weights(decided):
    """Random weights with the right biases: all else passes, every picture gives them away."""
    folder = ROOT.parent / "shared" / "data" / "photos"
    if not folder.is_dir():
        pytest.skip("no folder of published pictures beside the repository")
    checks = verify_weights(decided[0], folder).checks
    assert [check.passed for check in checks[:4]] == [None, True, True, True]
    assert [check.passed for check in checks[4:]] == [None] + [False] * 5
    assert min(check.deviation for check in checks[5:]) > 0.1
