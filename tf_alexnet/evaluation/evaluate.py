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
from typing import Any

import numpy as np

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import ImageError, UsageError, WeightsError, counted
from tf_alexnet.evaluation.ground_truth import (
    ILSVRC_PHOTOS,
    GroundTruth,
    read_ilsvrc_validation,
    read_labelled,
)
from tf_alexnet.evaluation.metrics import TOP, Evaluation, MultiLabelEvaluation
from tf_alexnet.evaluation.scores import score_photos
from tf_alexnet.extraction import ExtractionReport, extract_features
from tf_alexnet.extraction.extractor import resolve_preset
from tf_alexnet.extraction.formats import open_output
from tf_alexnet.extraction.job import failures_among
from tf_alexnet.extraction.spec import ExtractionSpec
from tf_alexnet.extraction.storage import place_of
from tf_alexnet.files import check_folder
from tf_alexnet.images import recorded_name
from tf_alexnet.images.labelled import listed
from tf_alexnet.labels import Label, Labels, imagenet_labels, labels_of_network
from tf_alexnet.remote import is_url
from tf_alexnet.training.folders import read_digests
from tf_alexnet.training.run import Run, find_run, place_digest, short_digest
from tf_alexnet.weights import WeightArrays, identify_weights, published_accuracy
from tf_alexnet.weights.catalog import ALGORITHMS
from tf_alexnet.weights.download import cache_folder
from tf_alexnet.weights.resolve import resolve_weights

_SHARD = 512  # photos per shard, the most that an interrupted call repeats


def evaluate_photos(
    data: str | os.PathLike,
    weights: str | os.PathLike | WeightArrays = "imagenet",
    *,
    model: str | os.PathLike | Run | None = None,
    ground_truth: str | os.PathLike | None = None,
    labels: Labels | None = None,
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
) -> Evaluation | MultiLabelEvaluation:
    """Compare predictions with the true classes of photos.

    The same call resumes an interrupted one: until it ends, results are kept in the cache folder.

    Parameters
    ----------
    data : path
        Class folders or a table, as in `read_labelled`. With `ground_truth`: a flat folder of
        ILSVRC's validation photos.
    weights : str, path or WeightArrays
        As in `AlexNet`, or a RUN. If there are 1000 classes, they are taken to be ImageNet's; other
        classes without names are called ``0``, ``1``, ...
    model : path or Run, optional
        A RUN of ``tf-alexnet train``, instead of `weights`. Photos that it was trained on are left
        out; of the folder that it was trained on, only its validation photos are used.
    ground_truth : path, optional
        As in `read_ilsvrc_validation`.
    labels : sequence, mapping or path, optional
        Names of the network's classes, as in `read_labels`.
    architecture, preset, mean_image
        As in `FeatureExtractor`.
    crops : {"center", "ten"}
        The centre crop, or the mean of the probabilities of ten crops.
    engine, precision : str
        As in `extract_features`.
    keep : path, optional
        An ``.h5`` file to keep the probabilities in, as from ``extract_features(layers=["prob"])``.
        Photos that are already in it are not computed again.
    batch_size, workers, progress
        As in `extract_features`.

    Returns
    -------
    Evaluation or MultiLabelEvaluation

    Raises
    ------
    WeightsError
        If the weights can't be read or have no classifier.
    UsageError
        If arguments contradict each other, or the folders or list don't match the network.
    ImageError, OutputError
        As in `extract_features`.
    """
    run = find_run(weights) if model is None else find_run(model) or Run.open(model)
    arrays, table = resolve_weights(run.arrays if run else weights, architecture)
    classes = _classes(arrays, run, labels)
    truth = _truth(data, ground_truth, classes, run)
    record, mean_image = resolve_preset(arrays, table, preset, mean_image)
    settings = {
        "architecture": table.name,
        "preset": recorded_name(record),
        "mean_image": mean_image,
        "crops": crops,
        "precision": precision,
    }
    how = {"engine": engine, "batch_size": batch_size, "workers": workers, "progress": progress}
    # Weights are identified by their convolutions; a classifier on pool5 or fc6 is another one.
    whole = table.parameter_shapes().keys() == ARCHITECTURES[table.name].parameter_shapes().keys()
    known = identify_weights(arrays).name if whole else None
    facts = {
        "architecture": table.name,
        "preset": settings["preset"],
        "crops": crops,
        "weights_source": str(run.folder) if run else arrays.source,
        "trained_as": known,
        "untrained": arrays.untrained,
    }
    if run and run.record.multi_label:
        photos = zip(truth.paths, truth.labels, strict=True)
        scores = score_photos(arrays, [*photos], multi_label=True, **settings, **how)
        return MultiLabelEvaluation(
            classes, scores.precisions, scores.photos, scores.failures, truth.notes, **facts
        )
    confusion, among_top, report = _compared(truth, arrays, len(classes), keep, settings, how)
    if not confusion.any():
        raise ImageError(
            os.fspath(data), f"none of {len(truth.paths)} photos could be read", "Check the files."
        )
    comparable = ground_truth is not None and known and crops == "center"
    found = Evaluation(
        classes,
        confusion,
        among_top,
        failures=report.errors,
        notes=truth.notes,
        published=published_accuracy(known, settings["preset"]) if comparable else None,
        kept=report.kept,
        **facts,
    )
    notes = _notes(found, arrays, len(truth.paths), ground_truth is not None)
    return replace(found, notes=(*truth.notes, *notes))


def _classes(
    weights: WeightArrays | None, run: Run | None, labels: Labels | None
) -> tuple[Label, ...]:
    """The network's classes: as given, or else as recorded, or else numbered."""
    if weights is None:
        raise UsageError("evaluate", "it needs weights", "Pass a weight file.")
    if weights.classes is None:
        raise WeightsError(
            weights.source,
            "it has no fc8, so it predicts no classes",
            "Train a classifier on it (tf-alexnet train), or evaluate weights of a whole network.",
        )
    if labels is not None:
        return labels_of_network(labels, weights.classes)
    if run:
        return tuple(Label("", name) for name in run.record.classes)
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
        multi_label = run is not None and run.record.multi_label
        truth = read_labelled(data, classes, multi_label=multi_label)
        return _unseen(truth, data, run) if run else truth
    if classes != imagenet_labels():
        raise UsageError(
            os.fspath(ground_truth),
            f"it lists ILSVRC's classes, but the network's {len(classes)} classes are different",
            "Give folders of the network's classes instead.",
        )
    return read_ilsvrc_validation(data, ground_truth)


def _unseen(truth: GroundTruth, data: str | os.PathLike, run: Run) -> GroundTruth:
    """Leave out the photos that a RUN was trained on.

    They are recognized by content, and in the folder or table that the RUN split also by name,
    since photos may have been edited there.
    """
    split, folder = run.record.split, os.fspath(data)
    folder = folder if os.path.isdir(folder) else os.path.dirname(folder) or "."
    names = dict(zip(truth.paths, (os.path.relpath(x, folder) for x in truth.paths), strict=True))
    aside, trained = split.get("val_photos", ()), set(split.get("trained_on", "").split())
    here = set(aside) & set(names.values())
    if "place" in split:
        own = split["place"] == place_digest(data)
        learned = set(split["train_photos"]) if own else set()
    else:  # runs of version 0.1.0 record only their validation photos
        own = bool(here)
        learned = set(names.values()) - here if own else set()
    seen = {path for path, name in names.items() if name in learned}
    if trained:
        others = [path for path, name in names.items() if not own or name not in here]
        digests = read_digests(others)
        seen |= {path for path, x in digests.items() if x and short_digest(x) in trained}
    chosen = [i for i, path in enumerate(truth.paths) if path not in seen]
    left_out = len(names) - len(chosen)
    missing = []
    if own or (here and left_out):
        local = [name for name in aside if not is_url(name)]
        missing = [name for name in local if not os.path.lexists(os.path.join(folder, name))]
    if not chosen:
        raise UsageError(
            os.fspath(data),
            f"none of the {len(aside)} validation photos of {run.folder} is left here"
            if own
            else f"{run.folder} was trained on all of its {len(names)} photos",
            "Use photos that it has not seen; its accuracy on training photos is in report.md.",
        )
    if not left_out and not missing:
        unknown = f"{run.folder} does not record what it was trained on: perhaps these photos"
        return truth if trained else replace(truth, notes=(*truth.notes, unknown))
    notes = [
        f"{run.folder} was trained on photos of {os.fspath(data)}: {left_out} left out, "
        f"{len(chosen)} evaluated"
    ]
    if missing:
        of_all = f"of its {len(aside)} validation photos"
        notes.append(
            f"{counted(len(missing), f'{of_all} is', f'{of_all} are')} missing: {listed(missing)}"
        )
    labels = [truth.labels[i] for i in chosen]
    if isinstance(truth.labels, np.ndarray):
        labels = np.array(labels, np.int64)
    paths = tuple(truth.paths[i] for i in chosen)
    return GroundTruth(paths, labels, (*truth.notes, *notes))


@contextlib.contextmanager
def _kept(
    keep: str | os.PathLike | None, job: Mapping[str, str], truth: GroundTruth
) -> Iterator[str]:
    """File for the probabilities: `keep`, or one in the cache folder for the time of the call.

    The name of the latter depends on everything that rows depend on except the photos' contents,
    so only the same call finds it again; it is removed when that call succeeds.
    """
    if keep is not None:
        check_folder(keep, ".h5")
        yield os.fspath(keep)
        return
    sha = hashlib.sha256(json.dumps([os.getcwd(), job, truth.paths]).encode())
    folder = cache_folder() / "evaluations"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # without a cache, an interrupted call can't be resumed
        with tempfile.TemporaryDirectory(prefix="tf-alexnet-") as place:
            yield os.path.join(place, "prob.h5")
        return
    place = folder / f"{sha.hexdigest()[:32]}.h5"
    yield str(place)
    place.unlink(missing_ok=True)
    shutil.rmtree(f"{place}.job", ignore_errors=True)


def _compared(
    truth: GroundTruth,
    weights: WeightArrays,
    classes: int,
    keep: str | os.PathLike | None,
    settings: Mapping[str, Any],
    how: Mapping[str, Any],
) -> tuple[np.ndarray, int, ExtractionReport]:
    """Confusion matrix, number of photos with their class in the top five, and a report.

    The report's failures are of these photos only, even if `keep` has others.
    """
    settings = {"layers": ["prob"], **settings}
    job = ExtractionSpec(weights, **settings).fingerprint(weights.digest)
    real = functools.cache(os.path.realpath)
    photos, labels = {}, {}
    for path, label in zip(truth.paths, truth.labels.tolist(), strict=True):
        place = place_of(path, real)
        photos.setdefault(place, path)
        labels.setdefault(place, label)
    with _kept(keep, job, truth) as file:
        report = extract_features(
            list(truth.paths),
            file,
            weights=weights,
            **settings,
            **how,
            shard_size=_SHARD,
            retry_errors=True,
            add=True,
        )
        failures = failures_among(report, photos)
        for failure in failures:
            labels.pop(failure.place, None)
        confusion, among_top = _counted(file, labels, classes)
    return confusion, among_top, replace(report, errors=failures)


def _counted(file: str, labels: Mapping[str, int], classes: int) -> tuple[np.ndarray, int]:
    """Confusion matrix, and number of photos with their class in the top five."""
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
    """Rank of the true class: number of classes with a higher score, or equal and a lower index.

    Parameters
    ----------
    probabilities : ndarray of float, (N, classes)
    actual : ndarray of int, (N,)

    Returns
    -------
    ndarray of int64, (N,)
        0 if the true class is the most probable.
    """
    own = np.take_along_axis(probabilities, actual[:, None], axis=1)
    lower = np.arange(probabilities.shape[1]) < actual[:, None]
    return ((probabilities > own) | ((probabilities == own) & lower)).sum(axis=1)


def _notes(found: Evaluation, weights: WeightArrays, photos: int, ilsvrc: bool) -> Iterator[str]:
    """Caveats about the results."""
    if found.published and weights.metadata.get("identified_by") not in ALGORITHMS:
        yield (
            f"{weights.source} was identified as {found.trained_as} by the biases of its "
            "convolutions, not by a checksum: a different classifier would go unnoticed"
        )
    again = photos - found.photos - len(found.failures)
    if again:
        yield f"{counted(again, 'photo is a link', 'photos are links')} to others, counted once"
    if ilsvrc and found.photos != ILSVRC_PHOTOS:
        yield (
            f"{found.photos:,} of the {ILSVRC_PHOTOS:,} validation photos were evaluated: expect "
            "results that differ from the published ones"
        )
    present = int((found.confusion.sum(axis=1) > 0).sum())
    if present < len(found.classes) and not ilsvrc:
        yield f"{present} of the network's {len(found.classes)} classes have photos here"
