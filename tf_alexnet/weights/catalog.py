"""The catalogue of published weights: network, licence, accuracy, and files with their checksums.

The records are in ``catalog.json``. Sizes and checksums are those of the publishers (BVLC/caffe
``models/*/readme.md``, OpenVINO's Open Model Zoo ``model.yml``, ONNX's model zoo, torchvision's
file name, git's object id) unless a record's `note` says otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import WeightsError

ALIASES = {"imagenet": "bvlc_alexnet", "bvlc_alexnet-npy": "bvlc_alexnet"}
ALGORITHMS = ("sha256", "sha1", "git_blob")
# Checksums of smaller files are not cached: they take milliseconds.
_REMEMBERED_BYTES = 1 << 24


@dataclass(frozen=True)
class Accuracy:
    """A published accuracy on the ILSVRC-2012 validation set, centre crop.

    Attributes
    ----------
    top1, top5 : float
        Top-1 and top-5 accuracy in percent.
    pipeline, preset : str
        The preprocessing it was measured with, and our preset for it.
    source : str
        Where it was published.
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
        Mirrors, in the order in which they are tried. Empty for files that are only looked up
        locally, such as a conversion with a widely used name.
    size : int or None
        Bytes, if published.
    checksum : str or None
        ``algorithm:hex``, if published. The algorithm is sha256, sha1 or git_blob (git's object id:
        the SHA-1 of ``blob <size>``, a NUL and the content).
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
        Units of `fc8`; None if there is no `fc8`.
    licence : str
        Licence given by the publisher.
    sources : tuple of Source
        Files with the same arrays, in the order in which they are tried.
    published : tuple of Accuracy
        Published accuracies.
    note : str
        Further remarks.
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

    def __repr__(self) -> str:
        outputs = f"{self.classes} classes" if self.classes else "no classes"
        return f"<KnownWeights {self.name}: {self.architecture}, {outputs}, {self.licence}>"

    @property
    def preset(self) -> str:
        """The preprocessing it was trained with."""
        return ARCHITECTURES[self.architecture].preset

    @property
    def file_names(self) -> tuple[str, ...]:
        """File names to look up: the published ones, then conversions of the first."""
        stem = self.sources[0].file_name.rpartition(".")[0]
        published = [source.file_name for source in self.sources]
        return tuple(dict.fromkeys([*published, f"{stem}.safetensors", f"{stem}.npy"]))


def _read(path: Path) -> tuple[KnownWeights, ...]:
    """The records in a JSON file, whose keys are the attributes of the classes above."""
    records = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        published = tuple(Accuracy(**x) for x in entry.pop("published", ()))
        sources = tuple(
            Source(**{**x, "urls": tuple(x.get("urls", ()))}) for x in entry.pop("sources")
        )
        records.append(KnownWeights(**entry, sources=sources, published=published))
    return tuple(records)


_CATALOG = _read(Path(__file__).with_name("catalog.json"))


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
        A catalogue name. For copies without a published accuracy of their own, that of the original
        weights is used.
    preset : str
        Name of a preset.
    """
    record = known_weights(name)
    for known in (record, known_weights(record.fingerprint or name)):
        for accuracy in known.published:
            if accuracy.preset == preset and record.classes == known.classes:
                return accuracy
    return None


def names() -> tuple[str, ...]:
    """All names that `known_weights` accepts."""
    return (*ALIASES, *(record.name for record in _CATALOG))


def file_checksum(path: str | os.PathLike, algorithm: str) -> str:
    """Hex checksum of a file. Those of large files are cached until the file changes."""
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
    """How size or checksum differ from the published ones; None if they don't."""
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
    """The catalogue's record for a published file, or None if the file is missing or not published.

    The file is hashed only if its size or its name is that of a published file.

    Raises
    ------
    WeightsError
        If the file has the name and size of a published one (if `strict`, only the name) but
        another checksum, or if it can't be read.
    """
    damage = None
    try:
        name, size = Path(path).name, os.stat(path).st_size
        for record, source in ((x, y) for x in _CATALOG for y in x.sources):
            named = name == source.file_name
            if not source.checksum or not (named or source.size == size):
                continue
            found = mismatch(path, source)
            if found is None:
                return record
            if named and (strict or source.size == size):
                damage = found, record.name
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        found = f"it can't be read ({error.strerror or error})"
        raise WeightsError(str(path), found, "Check the file and its permissions.") from error
    if damage:
        raise WeightsError(
            str(path),
            damage[0],
            f"Delete it and run `tf-alexnet weights fetch {damage[1]}` again, or rename it if it "
            "is your own.",
        )
    return None
