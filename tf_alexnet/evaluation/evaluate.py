"""`evaluate_photos`: compare predictions with the true classes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import ImageError, UsageError, WeightsError
from tf_alexnet.evaluation.ground_truth import (
    ILSVRC_PHOTOS,
    GroundTruth,
    read_class_folders,
    read_ilsvrc_validation,
)
from tf_alexnet.evaluation.metrics import TOP, Evaluation
from tf_alexnet.extraction import extract_features
from tf_alexnet.extraction.formats import open_output
from tf_alexnet.extraction.spec import ExtractionSpec
from tf_alexnet.extraction.storage import place_of
from tf_alexnet.files import check_folder
from tf_alexnet.images import recorded_name, resolve
from tf_alexnet.labels import Label, imagenet_labels
from tf_alexnet.training import Run
from tf_alexnet.weights import WeightArrays, identify_weights, published_accuracy
from tf_alexnet.weights.catalog import ALGORITHMS
from tf_alexnet.weights.download import cache_folder
from tf_alexnet.weights.resolve import resolve_weights

_SHARD = 512  # photos that are computed again after an interruption at most


def evaluate_photos(
    data: str | os.PathLike,
    weights: str | os.PathLike | WeightArrays = "imagenet",
    *,
    model: str | os.PathLike | Run | None = None,
    ground_truth: str | os.PathLike | None = None,
    architecture: str | None = None,
    preset: str | None = None,
    mean_image: np.ndarray | str | os.PathLike | None = None,
    crops: str = "center",
    engine: str = "auto",
    precision: str = "float32",
    keep: str | os.PathLike | None = None,
    batch_size: int | str = "auto",
    workers: int | None = None,
    progress: Callable[[int, int, int, int], None] | bool | None = None,
) -> Evaluation:
    """Compare predictions with the true classes of photos.

    The same call resumes an interrupted one: until the end, its results lie in the cache folder.

    Parameters
    ----------
    data : path
        A folder with one folder per class, as for `read_class_folders`. With `ground_truth`: a flat
        folder of ILSVRC's validation photos.
    weights : str, path or WeightArrays
        As in `AlexNet`. If they have 1000 classes, these are ImageNet's; otherwise classes without
        names are called ``0``, ``1``, ...
    model : path or Run, optional
        A RUN of ``tf-alexnet train``, instead of `weights`. Of the photos that it split into
        training and validation itself, only the latter are evaluated.
    ground_truth : path, optional
        As in `read_ilsvrc_validation`.
    architecture, preset, mean_image
        As in `FeatureExtractor`.
    crops : {"center", "ten"}
        One crop per photo, or the mean of the probabilities of ten.
    engine, precision : str
        As in `extract_features`.
    keep : path, optional
        An ``.h5`` file to keep every photo's probabilities in, as from
        ``extract_features(layers=["prob"])``. Photos that it already has are not computed again.
    batch_size, workers, progress
        As in `extract_features`.

    Returns
    -------
    Evaluation

    Raises
    ------
    WeightsError
        If the weights can't be read or have no classifier.
    UsageError
        If the arguments contradict each other, or folders or list don't fit the network.
    ImageError, OutputError
        As `extract_features` raises them.
    """
    if model is None:
        run = None
        arrays, table = resolve_weights(weights, architecture)
        classes = _classes(arrays)
    else:
        run = model if isinstance(model, Run) else Run.open(model)
        arrays, table = resolve_weights(run.arrays, architecture)
        classes = tuple(Label("", name) for name in run.record.classes)
    truth = _truth(data, ground_truth, classes, run)
    record, mean_image = resolve(
        preset or arrays.metadata.get("preset") or table.preset, mean_image
    )
    settings = {
        "layers": ["prob"],
        "architecture": table.name,
        "preset": recorded_name(record),
        "mean_image": mean_image,
        "crops": crops,
        "precision": precision,
    }
    job = ExtractionSpec(arrays, **settings).fingerprint(arrays.digest)
    real = functools.cache(os.path.realpath)
    labels: dict[str, int] = {}
    for path, label in zip(truth.paths, truth.labels.tolist(), strict=True):
        labels.setdefault(place_of(path, real), label)
    with _kept(keep, job, truth) as file:
        report = extract_features(
            list(truth.paths),
            file,
            weights=arrays,
            **settings,
            engine=engine,
            batch_size=batch_size,
            workers=workers,
            shard_size=_SHARD,
            retry_errors=True,
            add=True,
            progress=progress,
        )
        confusion, among_top = _compared(file, labels, len(classes))
    if not confusion.any():
        raise ImageError(
            os.fspath(data), f"none of {len(truth.paths)} photos could be read", "Check the files."
        )
    # The convolutions tell the training; a classifier on pool5 or fc6 is another one.
    whole = table.parameter_shapes().keys() == ARCHITECTURES[table.name].parameter_shapes().keys()
    known = identify_weights(arrays).name if whole else None
    comparable = ground_truth is not None and known and crops == "center"
    found = Evaluation(
        classes,
        confusion,
        among_top,
        failures=tuple(x for x in report.errors if x.place in labels),
        notes=truth.notes,
        architecture=table.name,
        preset=settings["preset"],
        crops=crops,
        weights_source=str(run.folder) if run else arrays.source,
        trained_as=known,
        published=published_accuracy(known, settings["preset"]) if comparable else None,
        kept=report.kept,
    )
    notes = _notes(found, arrays, len(truth.paths), ground_truth is not None)
    return replace(found, notes=(*truth.notes, *notes))


def _classes(weights: WeightArrays | None) -> tuple[Label, ...]:
    """The classes of weights that record no names."""
    if weights is None:
        raise UsageError("evaluate", "it needs weights", "Pass a weight file.")
    if weights.classes is None:
        raise WeightsError(
            weights.source,
            "it has no fc8, so it names no classes that could be right or wrong",
            "Train one on it (tf-alexnet train), or evaluate weights of a whole network.",
        )
    if weights.classes == len(imagenet_labels()):
        return imagenet_labels()
    return tuple(Label("", str(index)) for index in range(weights.classes))


def _truth(
    data: str | os.PathLike,
    ground_truth: str | os.PathLike | None,
    classes: tuple[Label, ...],
    run: Run | None,
) -> GroundTruth:
    """The photos to evaluate, and their classes."""
    if ground_truth is None:
        truth = read_class_folders(data, classes)
        return _held_out(truth, data, run) if run else truth
    if classes != imagenet_labels():
        raise UsageError(
            os.fspath(ground_truth),
            f"ILSVRC's classes, but the network's {len(classes)} classes are others",
            "Give folders of the network's classes instead.",
        )
    return read_ilsvrc_validation(data, ground_truth)


def _held_out(truth: GroundTruth, data: str | os.PathLike, run: Run) -> GroundTruth:
    """Without the photos that a RUN was trained on, if it split these photos itself."""
    validation = set(run.record.split.get("val_photos", ()))
    names = [os.path.relpath(path, data) for path in truth.paths]
    if not validation or not validation <= set(names):
        return truth
    chosen = [index for index, name in enumerate(names) if name in validation]
    note = (
        f"{run.folder} was trained on {os.fspath(data)}: only the {len(chosen)} photos that it set "
        f"aside for validation are evaluated, {len(names) - len(chosen)} are left out"
    )
    paths = tuple(truth.paths[index] for index in chosen)
    return GroundTruth(paths, truth.labels[chosen], (*truth.notes, note))


@contextlib.contextmanager
def _kept(
    keep: str | os.PathLike | None, job: Mapping[str, str], truth: GroundTruth
) -> Iterator[str]:
    """Where probabilities are kept: until the end, unless the caller names a file.

    The name in the cache folder stands for everything that rows depend on except the photos'
    contents, so only the same call finds it again; it is removed when that call succeeds.
    """
    if keep is not None:
        check_folder(keep, ".h5")
        yield os.fspath(keep)
        return
    sha = hashlib.sha256(json.dumps([os.getcwd(), job, truth.paths]).encode())
    folder = cache_folder() / "evaluations"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # without a cache, nothing outlives an interruption
        with tempfile.TemporaryDirectory(prefix="tf-alexnet-") as place:
            yield os.path.join(place, "prob.h5")
        return
    place = folder / f"{sha.hexdigest()[:32]}.h5"
    yield str(place)
    place.unlink(missing_ok=True)
    shutil.rmtree(f"{place}.job", ignore_errors=True)


def _compared(file: str, labels: Mapping[str, int], classes: int) -> tuple[np.ndarray, int]:
    """(confusion matrix, photos with their class among the five most probable)."""
    confusion, among_top, broken = np.zeros((classes, classes), np.int64), 0, 0
    with open_output(file) as output:
        wanted = [i for i, photo in enumerate(output.photos) if photo.place in labels]
        actuals = np.array([labels[output.photos[i].place] for i in wanted], np.int64)
        for rows in output.blocks(["prob"], wanted):
            probabilities = rows["prob"]
            actual, actuals = np.split(actuals, [len(probabilities)])
            finite = np.isfinite(probabilities).all(axis=1)
            broken += int((~finite).sum())
            np.add.at(confusion, (actual, probabilities.argmax(axis=1)), 1)
            among_top += int((ranks(probabilities, actual) < TOP).sum())
    if broken:
        raise WeightsError(
            f"probabilities of {broken} photos",
            "they are NaN or infinite",
            "Check the weights with `tf-alexnet weights verify`.",
        )
    return confusion, among_top


def ranks(probabilities: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """How many classes come before the true one: more probable, or equally and of lower index.

    Parameters
    ----------
    probabilities : ndarray of float, (N, classes)
    actual : ndarray of int, (N,)

    Returns
    -------
    ndarray of int64, (N,)
        0 where the true class is the most probable.
    """
    own = np.take_along_axis(probabilities, actual[:, None], axis=1)
    lower = np.arange(probabilities.shape[1]) < actual[:, None]
    return ((probabilities > own) | ((probabilities == own) & lower)).sum(axis=1)


def _notes(found: Evaluation, weights: WeightArrays, photos: int, ilsvrc: bool) -> Iterator[str]:
    """What a reader of the figures should know."""
    if found.published and weights.metadata.get("identified_by") not in ALGORITHMS:
        yield (
            f"{weights.source} is known as {found.trained_as} by the biases of its convolutions, "
            "not by a checksum: another classifier on top of them would not be noticed"
        )
    again = photos - found.photos - len(found.failures)
    if again:
        yield f"{again} photos are links to others of them and count once"
    if ilsvrc and found.photos != ILSVRC_PHOTOS:
        yield (
            f"{found.photos:,} of the {ILSVRC_PHOTOS:,} validation photos were evaluated: other "
            "figures than the published ones are to be expected"
        )
    present = int((found.confusion.sum(axis=1) > 0).sum())
    if present < len(found.classes) and not ilsvrc:
        yield f"{present} of the network's {len(found.classes)} classes have photos here"
