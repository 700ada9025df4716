"""The catalogue of published weights: where to get them, what they weigh, which network they are.

Sizes and checksums are the publishers' own (BVLC/caffe ``models/*/readme.md``, OpenVINO's Open
Model Zoo ``model.yml``, ONNX's model zoo, torchvision's file name, git's object id) unless a
record's `note` says otherwise.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import WeightsError

ALIASES = {"imagenet": "bvlc_alexnet", "bvlc_alexnet-npy": "bvlc_alexnet"}
ALGORITHMS = ("sha256", "sha1", "git_blob")
# Smaller files are hashed again each time: it takes milliseconds.
_REMEMBERED_BYTES = 1 << 24


@dataclass(frozen=True)
class Accuracy:
    """A published accuracy on the ILSVRC-2012 validation set, centre crop.

    Attributes
    ----------
    top1, top5 : float
        Percent of photos whose class is the first, or among the first five.
    pipeline, preset : str
        The preprocessing it was measured with, and our preset for it.
    source : str
        Who published it.
    """

    top1: float
    top5: float
    pipeline: str
    preset: str
    source: str


@dataclass(frozen=True)
class Source:
    """A published file.

    Attributes
    ----------
    file_name : str
        Its published name.
    urls : tuple of str
        Mirrors, in the order they are tried. Empty for a file that is only looked for locally.
    size : int or None
        Bytes, where published.
    checksum : str or None
        ``algorithm:hex``, where published. The algorithm is sha256, sha1 or git_blob: git's object
        id, the SHA-1 of ``blob <size>`` and a NUL before the content.
    """

    file_name: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    checksum: str | None = None


@dataclass(frozen=True)
class KnownWeights:
    """One published set of weights.

    Attributes
    ----------
    name : str
        Name to pass as ``weights=``.
    architecture : str
        Name of its table in `tf_alexnet.architectures`.
    classes : int or None
        Units of `fc8`; None where there is no `fc8`.
    licence : str
        What the publisher allows.
    sources : tuple of Source
        Files with these same arrays, in the order they are tried.
    published : tuple of Accuracy
        Published accuracies.
    note : str
        What else a user should know.
    fingerprint : str or None
        The trained network in ``fingerprints.json`` that has the same convolutions.
    """

    name: str
    architecture: str
    classes: int | None
    licence: str
    sources: tuple[Source, ...]
    published: tuple[Accuracy, ...] = ()
    note: str = ""
    fingerprint: str | None = None

    @property
    def preset(self) -> str:
        """The preprocessing it was trained with."""
        return ARCHITECTURES[self.architecture].preset

    @property
    def spellings(self) -> tuple[str, ...]:
        """File names to look for: the published ones, then conversions of the first."""
        stem = self.sources[0].file_name.rpartition(".")[0]
        published = [source.file_name for source in self.sources]
        return tuple(dict.fromkeys([*published, f"{stem}.safetensors", f"{stem}.npy"]))


_BVLC = "http://dl.caffe.berkeleyvision.org"
_INTEL = "https://storage.openvinotoolkit.org/repositories/open_model_zoo/public/2022.1"
_ONNX = "https://huggingface.co/onnxmodelzoo"
_TORONTO = "https://www.cs.toronto.edu/~guerzhoy/tf_alexnet"
_UDACITY = "https://d17h27t6h515a5.cloudfront.net/topher/2016/October/580d880c_bvlc-alexnet"
_SONGHAN = "https://raw.githubusercontent.com/songhan/Deep-Compression-AlexNet/master"
_MIT = "http://places2.csail.mit.edu/models_places365"
_FREE = "unrestricted use"
_MEAN = ("mean image", "caffe-mean-image")
_CHANNEL_MEAN = ("resize 256, crop 227, BGR mean 104/117/123", "caffe")


def _source(file_name, folders=(), size=None, checksum=None):
    return Source(file_name, tuple(f"{x}/{file_name}" for x in folders), size, checksum)


# fmt: off
_CATALOG = (
    KnownWeights("bvlc_alexnet", "bvlc_alexnet", 1000, _FREE, (
        _source("bvlc_alexnet.caffemodel", (_BVLC, f"{_INTEL}/alexnet"), 243_862_414,
                "sha256:4bff209a9837298157915ef50a4831a59636a6ca1a6b8ebacd990c3a5f3053e0"),
        _source("bvlcalexnet-12.onnx", (f"{_ONNX}/bvlcalexnet-12/resolve/main",), 243_863_787,
                "sha256:6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945"),
        _source("bvlc_alexnet.npy", (_TORONTO,), None,
                "sha256:1294ef51496c52f2e4879ee3b5e1da22c35d61f3240937491b4469403d5428cc"),
        _source("bvlc-alexnet.npy"),  # what many scripts call the conversion
    ), (
        Accuracy(57.1, 80.2, *_MEAN, "BVLC/caffe models/bvlc_alexnet/readme.md"),
        Accuracy(56.598, 79.812, *_CHANNEL_MEAN, "OpenVINO Open Model Zoo"),
    ), "the checksum of bvlc_alexnet.npy comes from a single third-party report", "bvlc_alexnet"),

    KnownWeights("udacity-npy", "bvlc_alexnet", 1000, _FREE, (
        _source("bvlc-alexnet.npy", (_UDACITY,)),
    ), (), "bvlc_alexnet as handed out by Udacity's course; no checksum is published",
    "bvlc_alexnet"),

    KnownWeights("caffenet", "caffenet", 1000, _FREE, (
        _source("bvlc_reference_caffenet.caffemodel", (_BVLC, f"{_INTEL}/caffenet"), 243_862_418,
                "sha256:472d4a06035497b180636d8a82667129960371375bd10fcb6df5c6c7631f25e0"),
        _source("caffenet-12.onnx", (f"{_ONNX}/caffenet-12/resolve/main",), 243_863_798,
                "sha256:ea563e5c47d1f58e1717cf1a2d8bf288b8adc07af0ad228b622096cd243aeecb"),
    ), (
        Accuracy(57.4, 80.4, *_MEAN, "BVLC/caffe models/bvlc_reference_caffenet/readme.md"),
        Accuracy(56.714, 79.916, *_CHANNEL_MEAN, "OpenVINO Open Model Zoo"),
    ), "", "caffenet"),

    KnownWeights("deep-compression", "bvlc_alexnet", 1000, "BSD-2-Clause", (
        _source("AlexNet_compressed.net", (_SONGHAN,), None,
                "git_blob:ea0d14e98edfbcbfba995003c94d7259fa23b6cc"),
    ), (
        Accuracy(57.074, 80.254, *_MEAN, "songhan/Deep-Compression-AlexNet README.md"),
    ), "bvlc_alexnet pruned and quantised to about 8.9 MB: the smallest whole network"),

    KnownWeights("torchvision", "torchvision", 1000, "BSD-3-Clause", (
        _source("alexnet-owt-7be5be79.pth", ("https://download.pytorch.org/models",), None,
                "sha256:7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"),
    ), (
        Accuracy(56.522, 79.066, "resize 256, crop 224", "torchvision",
                 "torchvision AlexNet_Weights.IMAGENET1K_V1"),
    ), "", "torchvision"),

    KnownWeights("torchvision-convs", "torchvision", None, "BSD-3-Clause", (
        _source("torchvision_convs.safetensors", (), 9_879_792,
                "sha256:23faf1a3026a0ec090418223845ccb70de77c2d6ff30e9c990fb473358a80325"),
    ), (), "conv1 to conv5 of torchvision's weights, part of this package; no dense layers",
    "torchvision"),

    KnownWeights("places365", "caffenet", 365, "CC BY", (
        _source("alexnet_places365.caffemodel", (_MIT,)),
    ), (), "365 scene categories; CaffeNet's order of layers in spite of its name "
    "(deploy_alexnet_places365.prototxt); no checksum is published"),

    KnownWeights("flickr-style", "caffenet", 20, "non-commercial", (
        _source("finetune_flickr_style.caffemodel", (_BVLC,), None,
                "sha1:b61b5cef7d771b53b0c488e78d35ccadc073e9cf"),
    ), (), "CaffeNet fine-tuned to 20 photographic styles; its classifier is fc8_flickr"),
)
# fmt: on


def catalog() -> tuple[KnownWeights, ...]:
    """All known sets of weights."""
    return _CATALOG


def known_weights(name: str) -> KnownWeights:
    """The record called `name`; ``"imagenet"`` is an alias of ``"bvlc_alexnet"``.

    Raises
    ------
    WeightsError
        If there is none; the message lists the known names.
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
    """The published accuracy of a trained network with a preprocessing, or None.

    Parameters
    ----------
    name : str
        A catalogue name. Weights without figures of their own have those of the training that they
        are a copy of.
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
    """Checksum of a file, as hex. A large file is read once per process, unless it changes.

    Parameters
    ----------
    path : str or path
        The file.
    algorithm : {"sha256", "sha1", "git_blob"}
        `git_blob` is git's object id of the content.
    """
    path = os.path.realpath(path)
    x = os.stat(path)
    stamp = (x.st_dev, x.st_ino, x.st_size, x.st_mtime_ns, x.st_ctime_ns)
    compute = _checksum if x.st_size >= _REMEMBERED_BYTES else _checksum.__wrapped__
    return compute(path, algorithm, stamp)


@lru_cache(maxsize=32)
def _checksum(path: str, algorithm: str, stamp: tuple[int, ...]) -> str:
    with open(path, "rb") as file:
        digest = hashlib.new("sha1" if algorithm == "git_blob" else algorithm)
        if algorithm == "git_blob":
            digest.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def mismatch(path: str | os.PathLike, source: Source) -> str | None:
    """How the file differs from the published one, in a phrase; None if it is that file.

    A source without size and checksum can't tell.
    """
    size = os.stat(path).st_size
    if source.size not in (None, size):
        return f"{size} bytes, but {source.file_name} has {source.size}"
    if source.checksum:
        algorithm, expected = source.checksum.split(":")
        found = file_checksum(path, algorithm)
        if found != expected:
            return f"its {algorithm} is {found}, but that of {source.file_name} is {expected}"
    return None


def published_file(path: str | os.PathLike, strict: bool = False) -> KnownWeights | None:
    """The weights of which this is a published file, byte for byte, or None.

    The file is hashed only if its size is a published one, or its name where no size is published.

    Parameters
    ----------
    path : str or path
        The file; None is returned if there is none.
    strict : bool
        Whether a published name suffices to expect the published file.

    Raises
    ------
    WeightsError
        If the file has the name and size of a published one, but another checksum, or if it can't
        be read.
    """
    damage = None
    try:
        name, size = Path(path).name, os.stat(path).st_size
        for record in catalog():
            for source in record.sources:
                named = name == source.file_name
                if not source.checksum or not (named or source.size == size):
                    continue
                found = mismatch(path, source)
                if found is None:
                    return record
                if named and (strict or source.size == size):
                    damage = WeightsError(
                        str(path),
                        found,
                        f"Delete it and run `tf-alexnet weights fetch {record.name}` again, or "
                        "rename it if it is your own.",
                    )
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise WeightsError(
            str(path),
            f"it can't be read ({error.strerror or error})",
            "Check the file and its permissions.",
        ) from error
    if damage:
        raise damage
    return None
