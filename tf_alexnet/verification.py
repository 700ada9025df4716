"""Is a weight file what it seems to be? Judged by its bytes, its arrays, and what it computes.

TensorFlow is imported only where there are photos to compute on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import InputError, WeightsError
from tf_alexnet.labels import imagenet_labels
from tf_alexnet.weights import (
    Identification,
    KnownWeights,
    WeightArrays,
    catalog,
    check_file,
)
from tf_alexnet.weights.arrays import faults, own_table
from tf_alexnet.weights.catalog import file_checksum
from tf_alexnet.weights.files import read_unjudged
from tf_alexnet.weights.identify import (
    identified,
    identify_arrays,
    matching_record,
    nearest_fingerprint,
)
from tf_alexnet.weights.inspection import contradiction


@dataclass(frozen=True)
class Golden:
    """What a trained network was seen to say about a picture.

    Attributes
    ----------
    network : str
        The trained network: the name of its fingerprint.
    picture, sha256 : str
        File name and checksum of the picture.
    preset : str
        The preprocessing.
    same_padding : bool
        Whether conv1 is padded to 57x57 (TensorFlow's SAME) instead of 55x55, as in the code that
        the numbers come from. Good for a check of weights, and for nothing else.
    probabilities : tuple of (int or None, float)
        Most probable first: index of the class, None where it was not recorded, and its
        probability.
    source : str
        Who recorded it.
    bound : float
        The largest deviation of a probability that passes. The recorded numbers were computed with
        other decoders and resizing; the faults that they are to reveal move them by 0.3 and more.
    """

    network: str
    picture: str
    sha256: str
    preset: str
    same_padding: bool
    probabilities: tuple[tuple[int | None, float], ...]
    source: str
    bound: float = 0.05


_KRATZERT = "kratzert/finetune_alexnet_with_tensorflow"
_UDACITY = "the pictures beside Udacity's bvlc-alexnet.npy"

GOLDENS = (
    Golden(
        "caffenet",
        "cat.jpg",
        "59b67bce343d435cb8f79b6abefc6eecc79924abcda6e7c7e39f8173bb932bc1",
        "squash",
        False,
        (
            (281, 0.31243637),
            (282, 0.2379719),
            (285, 0.12387239),
            (277, 0.10075711),
            (287, 0.070957087),
        ),
        "BVLC/caffe examples/00-classification.ipynb",
    ),
    Golden(
        "bvlc_alexnet",
        "sealion.jpeg",
        "184fc3d5577eb79599ab177814e16551248a2271f8b7161c8e95e54fc96c9157",
        "kratzert",
        False,
        ((150, 0.9834),),
        _KRATZERT,
    ),
    Golden(
        "bvlc_alexnet",
        "llama.jpeg",
        "4eb066ee4dd9755cf44894be46369322cd928a330c52cb36f17bfc4f1770dcc2",
        "kratzert",
        False,
        ((355, 0.9984),),
        _KRATZERT,
    ),
    Golden(
        "bvlc_alexnet",
        "zebra.jpeg",
        "37c35ff4b93c6ff73fb98b426b2b0fe3f7ae09ef07a447d0a86390d28667757a",
        "kratzert",
        False,
        ((340, 1.0),),
        _KRATZERT,
    ),
    Golden(
        "bvlc_alexnet",
        "poodle.png",
        "c7c6de6cbc4d237a2e4f5cdcab78e01bf68a4a3ff653862ab05def0c7d1a3aa9",
        "udacity",
        True,
        ((266, 0.389), (265, 0.223), (None, 0.173), (None, 0.150), (None, 0.026)),
        _UDACITY,
    ),
    Golden(
        "bvlc_alexnet",
        "weasel.png",
        "04e68cc7196f3d9501b0d2d7759e392c0b26159a316a189db054f0ebb031cf4e",
        "udacity",
        True,
        ((None, 0.331), (None, 0.280), (None, 0.210), (None, 0.081), (None, 0.027)),
        _UDACITY,
    ),
)


@dataclass(frozen=True)
class Check:
    """One question to a weight file.

    Attributes
    ----------
    name : str
        What was asked.
    passed : bool or None
        The answer; None where it can't be judged.
    found : str
        What was found, in a few words.
    deviation : float or None
        How far a measured value is from the expected one, where one was measured.
    """

    name: str
    passed: bool | None
    found: str
    deviation: float | None = None


def verify_weights(
    path: str | os.PathLike,
    photos: str | os.PathLike | None = None,
    goldens: Sequence[Golden] = GOLDENS,
) -> list[Check]:
    """Hold a weight file against everything that is published about it.

    Parameters
    ----------
    path : str or path
        A weight file of any format that can be read.
    photos : str or path, optional
        A folder with the pictures of `goldens`, by their names.
    goldens : sequence of Golden
        Published outputs.

    Returns
    -------
    list of Check
        Checksum, shapes, finite values, biases, the file's own record, and one a picture. The file
        is in order where none has ``passed=False``.

    Raises
    ------
    WeightsError
        If the file is missing, damaged or foreign, so that there is nothing to judge.
    InputError
        If `photos` is no folder.
    """
    if photos is not None and not os.path.isdir(photos):
        raise InputError(os.fspath(photos), "no folder", "Name the folder of the pictures.")
    arrays = read_unjudged(path)
    record = matching_record(path)
    identity = identify_arrays(arrays, path) if record is None else identified(record)
    named = _named(path)
    nearest, distance = nearest_fingerprint(arrays)
    trained = record.fingerprint if record else identity.name
    checks = [
        _checksum(path, record, named, trained),
        _shapes(arrays, identity),
        _biases(named, trained, nearest, distance),
        _record(arrays, identity),
    ]
    if photos is not None:
        usable = not any(check.passed is False for check in checks[1:2])
        known = replace(arrays, architecture=identity.architecture)
        checks += _pictures(known, Path(photos), goldens, trained if usable else None)
    return checks


def _named(path: str | os.PathLike) -> KnownWeights | None:
    """The record whose published file bears this file's name."""
    return next((x for x in catalog() if x.file_name == Path(path).name), None)


def _checksum(path, record, named, trained) -> Check:
    if record is not None:
        return Check("checksum", True, f"{record.checksum} is that of {record.name}")
    if named is None or named.checksum is None:
        return Check("checksum", None, "no published file to compare with")
    try:
        check_file(path, named)
    except WeightsError as error:
        # Who converts BVLC's file gets the same arrays under a published name, in other bytes.
        if named.size is None and trained == named.fingerprint is not None:
            return Check("checksum", None, f"another file than the published one: {error.found}")
        return Check("checksum", False, error.found)
    return Check("checksum", True, f"{named.checksum} is that of {named.name}")


def _shapes(arrays: WeightArrays, identity: Identification) -> Check:
    if identity.architecture is None and not identity.candidates:
        return Check("shapes", False, "no network known here has them")
    name = identity.architecture or identity.candidates[0]
    found = faults(arrays, own_table(arrays, ARCHITECTURES[name]))
    fits = " and ".join(identity.candidates or (name,))
    return Check("shapes", not found, "; ".join(found) or f"{len(arrays.layers)} layers: {fits}")


def _biases(named, trained, nearest, distance) -> Check:
    if distance is None:
        return Check("biases", None, "no fingerprint to compare with")
    found = f"{distance:.2g} from those of {nearest}"
    if trained == nearest:
        return Check("biases", True, found, distance)
    claimed = named.fingerprint if named else trained
    if claimed is None:
        return Check("biases", None, f"{found}: another training", distance)
    return Check("biases", False, f"{found}, not those of {claimed}", distance)


def _record(arrays: WeightArrays, identity: Identification) -> Check:
    against = contradiction(arrays, identity)
    if arrays.architecture is None:
        return Check("record", None, "the file records no architecture")
    return Check("record", against is None, against or f"architecture {arrays.architecture}")


def _pictures(
    arrays: WeightArrays, folder: Path, goldens: Sequence[Golden], trained: str | None
) -> Iterator[Check]:
    """A check a picture; the model is built when the first one can be judged."""
    model = None
    for golden in goldens:
        name = f"{golden.picture} ({golden.preset})"
        picture = folder / golden.picture
        if golden.network != trained:
            yield Check(name, None, f"was recorded with {golden.network}'s weights")
        elif not picture.is_file():
            yield Check(name, None, f"not in {folder}")
        elif file_checksum(picture, "sha256") != golden.sha256:
            yield Check(name, None, "another picture than the published one")
        else:
            if model is None:
                from tf_alexnet.model import AlexNet

                model = AlexNet(arrays)
            yield _judge(name, golden, _probabilities(model, picture, golden))


def _probabilities(model, picture: Path, golden: Golden) -> np.ndarray:
    """(classes,) float32 that `model` computes for a picture as `golden` had it."""
    import tensorflow as tf

    from tf_alexnet.images import load_image, preprocess_input

    x = tf.constant(preprocess_input([load_image(picture)], golden.preset))
    if not golden.same_padding:
        return model(x, training=False).numpy()[0]
    conv1 = model.get_layer("conv1")
    x = tf.nn.relu(tf.nn.conv2d(x, conv1.kernel, conv1.strides, "SAME") + conv1.bias)
    for layer in model.layers[model.layers.index(conv1) + 1 :]:
        x = layer(x, training=False)
    return x.numpy()[0]


def _judge(name: str, golden: Golden, found: np.ndarray) -> Check:
    """Compare class by class; where the class is not known, rank by rank."""
    ranked = np.sort(found)[::-1]
    deviation = max(
        abs(float(ranked[rank] if index is None else found[index]) - expected)
        for rank, (index, expected) in enumerate(golden.probabilities)
    )
    best = int(found.argmax())
    said = f"{found[best]:.4f} {imagenet_labels()[best].label.split(',')[0]}"
    verdict = deviation <= golden.bound
    found = f"{said}; largest deviation {deviation:.2g}, at most {golden.bound:g} is due"
    return Check(name, verdict, f"{found} ({golden.source})", deviation)
