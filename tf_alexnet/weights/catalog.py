"""The published weight files: where they are, what they weigh, which network they hold.

Sizes and checksums are those the publishers state (BVLC/caffe ``models/*/readme.md``, OpenVINO's
Open Model Zoo ``model.yml``, torchvision's file name, git's object id) unless a record's `note`
says otherwise. Mirrors are as published, in the order they are tried.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tf_alexnet.errors import WeightsError

ALIASES = {"imagenet": "bvlc_alexnet"}
# Kinds of checksums, the strongest first.
ALGORITHMS = ("sha256", "sha1", "git_blob")


@dataclass(frozen=True)
class Accuracy:
    """A published accuracy on the ILSVRC-2012 validation set, centre crop.

    Attributes
    ----------
    top1, top5 : float
        Percent of photos whose class is the first, or among the first five.
    pipeline : str
        The preprocessing it was measured with.
    source : str
        Who published it.
    preset : str
        The preset of ours that is this preprocessing.
    """

    top1: float
    top5: float
    pipeline: str
    source: str
    preset: str


@dataclass(frozen=True)
class KnownWeights:
    """One published weight file.

    Attributes
    ----------
    name : str
        The name used in calls.
    file_name : str
        The file's published name.
    architecture : str
        Name of its table in `tf_alexnet.architectures`.
    preset : str
        The preprocessing it was trained with.
    classes : int or None
        Units of `fc8`; None where the file has no `fc8`.
    licence : str
        What its publisher allows.
    mirrors : tuple of str
        Addresses, in the order they are tried; none for a file that is part of this package.
    size : int or None
        Bytes, where known.
    sha256, sha1, git_blob : str or None
        Checksums, where known. `git_blob` is git's object id: the SHA-1 of ``blob <size>`` and a
        NUL before the content.
    spellings : tuple of str
        File names that are looked for, the published one first; others hold the same arrays.
    published : tuple of Accuracy
        Accuracies to hold an evaluation against.
    note : str
        What else a user should know.
    fingerprint : str or None
        The trained network whose convolutions these are, in ``fingerprints.json``.
    """

    name: str
    file_name: str
    architecture: str
    preset: str
    classes: int | None
    licence: str
    mirrors: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    sha1: str | None = None
    git_blob: str | None = None
    spellings: tuple[str, ...] = ()
    published: tuple[Accuracy, ...] = ()
    note: str = ""
    fingerprint: str | None = None

    @property
    def checksum(self) -> str | None:
        """The strongest known checksum as ``algorithm:hex``, or None."""
        for algorithm in ALGORITHMS:
            if getattr(self, algorithm):
                return f"{algorithm}:{getattr(self, algorithm)}"
        return None


_RAW_GITHUB = "https://raw.githubusercontent.com"
_BVLC = "http://dl.caffe.berkeleyvision.org"
_OPEN_MODEL_ZOO = "https://storage.openvinotoolkit.org/repositories/open_model_zoo/public/2022.1"
_MEAN = "mean image"
_CHANNEL_MEAN = "resize 256, crop 227, BGR mean 104/117/123"

_CATALOG = (
    KnownWeights(
        name="bvlc_alexnet",
        file_name="bvlc_alexnet.caffemodel",
        architecture="bvlc_alexnet",
        preset="caffe",
        classes=1000,
        licence="unrestricted use",
        mirrors=(
            f"{_BVLC}/bvlc_alexnet.caffemodel",
            f"{_OPEN_MODEL_ZOO}/alexnet/bvlc_alexnet.caffemodel",
        ),
        size=243_862_414,
        sha256="4bff209a9837298157915ef50a4831a59636a6ca1a6b8ebacd990c3a5f3053e0",
        sha1="9116a64c0fbe4459d18f4bb6b56d647b63920377",
        fingerprint="bvlc_alexnet",
        spellings=(
            "bvlc_alexnet.caffemodel",
            "bvlc_alexnet.safetensors",
            "bvlc_alexnet.npy",
            "bvlc-alexnet.npy",
        ),
        published=(
            Accuracy(
                57.1, 80.2, _MEAN, "BVLC/caffe models/bvlc_alexnet/readme.md", "caffe-mean-image"
            ),
            Accuracy(56.598, 79.812, _CHANNEL_MEAN, "OpenVINO Open Model Zoo", "caffe"),
        ),
    ),
    KnownWeights(
        name="bvlc_alexnet-npy",
        file_name="bvlc_alexnet.npy",
        architecture="bvlc_alexnet",
        preset="caffe",
        classes=1000,
        licence="unrestricted use",
        mirrors=("https://www.cs.toronto.edu/~guerzhoy/tf_alexnet/bvlc_alexnet.npy",),
        sha256="1294ef51496c52f2e4879ee3b5e1da22c35d61f3240937491b4469403d5428cc",
        fingerprint="bvlc_alexnet",
        spellings=("bvlc_alexnet.npy", "bvlc-alexnet.npy"),
        note=(
            "bvlc_alexnet.caffemodel converted by Michael Guerzhoy; the checksum rests on one "
            "third-party report"
        ),
    ),
    KnownWeights(
        name="udacity-npy",
        file_name="bvlc-alexnet.npy",
        architecture="bvlc_alexnet",
        preset="caffe",
        classes=1000,
        licence="unrestricted use",
        mirrors=(
            "https://d17h27t6h515a5.cloudfront.net/topher/2016/October/"
            "580d880c_bvlc-alexnet/bvlc-alexnet.npy",
        ),
        fingerprint="bvlc_alexnet",
        spellings=("bvlc-alexnet.npy", "bvlc_alexnet.npy"),
        note="the conversion that Udacity's course hands out; no checksum is published",
    ),
    KnownWeights(
        name="caffenet",
        file_name="bvlc_reference_caffenet.caffemodel",
        architecture="caffenet",
        preset="caffe",
        classes=1000,
        licence="unrestricted use",
        mirrors=(
            f"{_BVLC}/bvlc_reference_caffenet.caffemodel",
            f"{_OPEN_MODEL_ZOO}/caffenet/bvlc_reference_caffenet.caffemodel",
        ),
        size=243_862_418,
        sha256="472d4a06035497b180636d8a82667129960371375bd10fcb6df5c6c7631f25e0",
        sha1="4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46",
        fingerprint="caffenet",
        spellings=(
            "bvlc_reference_caffenet.caffemodel",
            "bvlc_reference_caffenet.safetensors",
            "bvlc_reference_caffenet.npy",
        ),
        published=(
            Accuracy(
                57.4,
                80.4,
                _MEAN,
                "BVLC/caffe models/bvlc_reference_caffenet/readme.md",
                "caffe-mean-image",
            ),
            Accuracy(56.714, 79.916, _CHANNEL_MEAN, "OpenVINO Open Model Zoo", "caffe"),
        ),
    ),
    KnownWeights(
        name="deep-compression",
        file_name="AlexNet_compressed.net",
        architecture="bvlc_alexnet",
        preset="caffe",
        classes=1000,
        licence="BSD-2-Clause",
        mirrors=(f"{_RAW_GITHUB}/songhan/Deep-Compression-AlexNet/master/AlexNet_compressed.net",),
        git_blob="ea0d14e98edfbcbfba995003c94d7259fa23b6cc",
        spellings=("AlexNet_compressed.net", "AlexNet_compressed.safetensors"),
        published=(
            Accuracy(
                57.074,
                80.254,
                _MEAN,
                "songhan/Deep-Compression-AlexNet README.md",
                "caffe-mean-image",
            ),
        ),
        note="bvlc_alexnet pruned and quantised to about 8.9 MB: the smallest whole network",
    ),
    KnownWeights(
        name="torchvision",
        file_name="alexnet-owt-7be5be79.pth",
        architecture="torchvision",
        preset="torchvision",
        classes=1000,
        licence="BSD-3-Clause",
        mirrors=("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",),
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        fingerprint="torchvision",
        spellings=("alexnet-owt-7be5be79.pth", "alexnet-owt-7be5be79.safetensors"),
        published=(
            Accuracy(
                56.522,
                79.066,
                "resize 256, crop 224",
                "torchvision AlexNet_Weights.IMAGENET1K_V1",
                "torchvision",
            ),
        ),
    ),
    KnownWeights(
        name="torchvision-convs",
        file_name="torchvision_convs.safetensors",
        architecture="torchvision",
        preset="torchvision",
        classes=None,
        licence="BSD-3-Clause",
        size=9_879_792,
        sha256="23faf1a3026a0ec090418223845ccb70de77c2d6ff30e9c990fb473358a80325",
        fingerprint="torchvision",
        spellings=("torchvision_convs.safetensors",),
        note="conv1 to conv5 of torchvision's weights, part of this package; no dense layers",
    ),
    KnownWeights(
        name="places365",
        file_name="alexnet_places365.caffemodel",
        architecture="caffenet",
        preset="caffe",
        classes=365,
        licence="CC BY",
        mirrors=("http://places2.csail.mit.edu/models_places365/alexnet_places365.caffemodel",),
        spellings=("alexnet_places365.caffemodel", "alexnet_places365.safetensors"),
        note=(
            "365 kinds of scenes; CaffeNet's order of layers in spite of its name "
            "(deploy_alexnet_places365.prototxt); no checksum is published"
        ),
    ),
    KnownWeights(
        name="flickr-style",
        file_name="finetune_flickr_style.caffemodel",
        architecture="caffenet",
        preset="caffe",
        classes=20,
        licence="non-commercial",
        mirrors=(f"{_BVLC}/finetune_flickr_style.caffemodel",),
        sha1="b61b5cef7d771b53b0c488e78d35ccadc073e9cf",
        spellings=("finetune_flickr_style.caffemodel", "finetune_flickr_style.safetensors"),
        note="CaffeNet fine-tuned to 20 photographic styles; its last layer is fc8_flickr",
    ),
)


def catalog() -> tuple[KnownWeights, ...]:
    """All known weight files."""
    return _CATALOG


def known_weights(name: str) -> KnownWeights:
    """The record called `name`; ``"imagenet"`` is another name of ``"bvlc_alexnet"``.

    Raises
    ------
    WeightsError
        If there is none; the message lists the known ones.
    """
    wanted = ALIASES.get(name, name)
    for record in _CATALOG:
        if record.name == wanted:
            return record
    raise WeightsError(
        f"weights {name!r}",
        "neither a file nor a name in the catalogue",
        f"Give a path that exists, or one of: {', '.join(names())}.",
    )


def published_accuracy(name: str, preset: str) -> Accuracy | None:
    """What was published for a trained network with a preprocessing; None if nothing was.

    Parameters
    ----------
    name : str
        A name of the catalogue. Other files of the same training have its figures, unless they have
        their own.
    preset : str
        A preset's name.
    """
    record = known_weights(name)
    for known in (record, known_weights(record.fingerprint or name)):
        for accuracy in known.published:
            if accuracy.preset == preset and record.classes == known.classes:
                return accuracy
    return None


def names() -> tuple[str, ...]:
    """Every name `known_weights` takes."""
    return (*ALIASES, *(record.name for record in _CATALOG))


def file_checksum(path: str | os.PathLike, algorithm: str) -> str:
    """Checksum of a file, as hex.

    Parameters
    ----------
    path : str or path
        The file.
    algorithm : {"sha256", "sha1", "git_blob"}
        `git_blob` is git's object id of the content.
    """
    with Path(path).open("rb") as file:
        digest = hashlib.new("sha1" if algorithm == "git_blob" else algorithm)
        if algorithm == "git_blob":
            digest.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_file(
    path: str | os.PathLike,
    record: KnownWeights,
    checksum: Callable[[str | os.PathLike, str], str] = file_checksum,
) -> None:
    """Accept the file if it is the published one of `record`, byte for byte.

    A record without size and checksum can't refuse anything.

    Parameters
    ----------
    path : str or path
        The file.
    record : KnownWeights
        What it should be.
    checksum : callable
        Computes or remembers a file's checksum, as `file_checksum` does. What it says can accept
        the file; before a refusal the file is read.

    Raises
    ------
    WeightsError
        If the file's size or checksum is another, or the file can't be read.
    """
    advice = f"Delete it and run `tf-alexnet weights fetch {record.name}` again."
    try:
        size = os.stat(path).st_size
        if record.size is not None and size != record.size:
            raise WeightsError(
                str(path), f"{size} bytes, but {record.file_name} has {record.size}", advice
            )
        if record.checksum is None:
            return
        algorithm, expected = record.checksum.split(":")
        if checksum(path, algorithm) == expected:
            return
        found = file_checksum(path, algorithm)
    except OSError as error:
        raise WeightsError(
            str(path),
            f"it can't be read ({error.strerror or error})",
            "Check the file and its rights.",
        ) from error
    if found != expected:
        raise WeightsError(
            str(path),
            f"its {algorithm} is {found}, but that of {record.file_name} is {expected}",
            advice,
        )
