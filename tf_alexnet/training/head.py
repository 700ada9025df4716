"""`train_head`: every photo through the network once, then a linear classifier on what came out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tf_alexnet.architectures import Architecture, Dense
from tf_alexnet.errors import ImageError, UsageError, WeightsError
from tf_alexnet.extraction import extract_features
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.extraction.storage import place_of
from tf_alexnet.images import recorded_name
from tf_alexnet.model import AlexNet
from tf_alexnet.progress import progress_callback
from tf_alexnet.training.begin import begin_run, working_in
from tf_alexnet.training.folders import Example, PhotoSet, read_photos
from tf_alexnet.training.rows import Rows
from tf_alexnet.training.run import RunRecord, TrainingReport, split_record, write_run
from tf_alexnet.training.softmax import (
    GRID,
    Linear,
    Step,
    choose_softmax,
    confusion_of,
    folded,
    judge,
    standard_of,
)
from tf_alexnet.version import VERSION
from tf_alexnet.weights import LayerArrays, WeightArrays
from tf_alexnet.weights.resolve import resolve_weights, trained_preset

FEATURES = "features.h5"
_SHARD = 512  # photos that are kept together when the extraction is interrupted

Progress = Callable[[str, int, int | None, Mapping[str, Any]], None]


def train_head(
    data: str | os.PathLike,
    run: str | os.PathLike,
    *,
    weights: str | os.PathLike | WeightArrays = "imagenet",
    architecture: str | None = None,
    preset: str | None = None,
    layer: str | None = None,
    pool: str | None = None,
    l2: float | None = None,
    val_split: float = 0.2,
    seed: int = 0,
    multi_label: bool = False,
    features: str | os.PathLike | None = None,
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | bool | None = None,
    note: Callable[[str], None] | None = None,
) -> TrainingReport:
    """Train a linear softmax classifier on features of a pretrained network.

    Every photo goes through the network once; its features are kept in a file. Then the classifier
    is fitted by L-BFGS, with the penalty that does best on the validation photos, and put on the
    network as `fc8`. The same call again goes on where an interrupted one ended.

    Parameters
    ----------
    data, val_split, seed, multi_label
        As in `read_photos`.
    run : path
        Folder for the result: see `tf_alexnet.training.run`.
    weights, architecture, preset
        As in `FeatureExtractor`.
    layer : {"pool5", "fc6", "fc7"}, optional
        What the classifier stands on; by default `fc7`, or `pool5` where the weights have no dense
        layers.
    pool : {"avg", "none"}, optional
        For `pool5`: one weight a channel, the same at all 6x6 positions (the default), or one a
        channel and position.
    l2 : float, optional
        Strength of the penalty (`fit_softmax`); by default chosen on the validation photos.
    features : path, optional
        The ``.h5`` for the features, by default ``features.h5`` in the RUN. Trainings on the same
        layer and weights may share it.
    workers : int, optional
        Decoding processes, as in `extract_features`.
    resume : bool
        Fail unless `run` holds a training.
    force : bool
        Begin anew whatever is there; features that fit are kept.
    progress : callable or bool, optional
        True shows a progress bar. A callable is called with (stage, done, total, figures): stage
        "photos" with ``errors``, stage "fits" with the fields of a `Step`.
    note : callable, optional
        Called with sentences for the user as soon as they are known.

    Returns
    -------
    TrainingReport

    Raises
    ------
    UsageError
        For data or settings that can't work, and settings other than the training was begun with.
    WeightsError, ImageError, OutputError
        If weights, photos or the RUN can't be read or written.
    """
    photos = read_photos(data, val_split, seed, multi_label=multi_label)
    if multi_label:
        raise UsageError("multi_label", "mode head has no such classifier", "Leave it out.")
    base, table = resolve_weights(weights, architecture)
    layer, pool = _place(base, table, layer, pool)
    if l2 is not None and not 0 < l2 < float("inf"):
        raise UsageError(f"l2 {l2}", "no such penalty", "Use a number above 0, as 0.001.")
    settings = {
        "mode": "head",
        "architecture": table.name,
        "weights": base.digest,
        "preset": recorded_name(preset or trained_preset(base, table)),
        "layer": layer,
        "pool": pool,
        "l2": l2,
        "classes": len(photos.classes),
        "photos": len(photos.train) + len(photos.val),
        "data": photos.digest,
        "val_split": val_split if photos.split else None,
        "seed": seed if photos.split else None,
        "tf_alexnet_version": VERSION,
    }
    with (
        working_in(run, resume=resume) as folder,
        progress_callback(progress, "training") as progress,
    ):
        done = begin_run(folder, settings, force=force)
        if done is not None:
            return TrainingReport(done, photos.notes, finished_before=True)
        for text in photos.notes if note else ():
            note(text)
        file = Path(features or folder / FEATURES)
        keys = _Keys(photos)
        skipped = _extract(keys, file, base, settings, workers, force and not features, progress)
        with Rows(file, layer, keys.parts()) as rows:
            _check_classes(photos, rows)
            return _fit(photos, settings, base, table, rows, folder, skipped, progress)


def _place(
    base: WeightArrays, table: Architecture, layer: str | None, pool: str | None
) -> tuple[str, str]:
    """Where the classifier stands, and what becomes of the places of `pool5`."""
    if layer is None:
        inner = [x.name for x in table.weighted if isinstance(x, Dense) and x.name != "fc8"]
        dense = [name for name in inner if name in base.layers]
        layer = dense[-1] if dense else "pool5"
    absent = [x.name for x in table.with_head(layer, 2).weighted[:-1] if x.name not in base.layers]
    if absent:
        raise WeightsError(
            base.source,
            f"it has no {', '.join(absent)} for a classifier on {layer}",
            "Use --layer pool5 (layer='pool5'), or other weights.",
        )
    if pool not in (None, "avg", "none"):
        raise UsageError(f"pool {pool!r}", "no such pooling", "Use avg or none.")
    if pool == "avg" and layer != "pool5":
        raise UsageError(f"pool avg of {layer}", "it has no positions", "Leave --pool out.")
    return layer, pool or ("avg" if layer == "pool5" else "none")


class _Keys:
    """What tells photos apart in a file of features: their places, wherever one stands."""

    def __init__(self, photos: PhotoSet):
        self._real = functools.cache(os.path.realpath)
        self._photos = photos

    def of(self, example: Example) -> str:
        return place_of(example.path, self._real)

    def all(self) -> list[str]:
        return list(dict.fromkeys(self.of(x) for x in (*self._photos.train, *self._photos.val)))

    def parts(self) -> dict[str, list[tuple[str, int]]]:
        """Part -> (place, label) of each photo."""
        parts = {"train": self._photos.train, "val": self._photos.val}
        return {name: [(self.of(x), x.label) for x in part] for name, part in parts.items()}


def _extract(
    keys: _Keys,
    file: Path,
    base: WeightArrays,
    settings: Mapping[str, Any],
    workers: int | None,
    replace: bool,
    progress: Progress | None,
) -> tuple[Failure, ...]:
    """Features of all photos into `file`, where they are not in it yet; those that failed."""
    paths = keys.all()

    def watch(done: int, total: int, errors: int, *_) -> None:
        if progress:
            progress("photos", done, total, {"errors": errors})

    def extract(force: bool):
        return extract_features(
            paths,
            file,
            weights=base,
            layers=[settings["layer"]],
            architecture=settings["architecture"],
            preset=settings["preset"],
            pool=settings["pool"],
            shard_size=_SHARD,
            workers=workers,
            force=force,
            add=True,
            progress=watch,
        )

    try:
        report = extract(False)
    except UsageError:
        if not replace:
            raise
        report = extract(True)
    wanted = set(paths)
    return tuple(failure for failure in report.errors if failure.place in wanted)


def _check_classes(photos: PhotoSet, rows: Rows) -> None:
    """Refuse to train where the photos of a class, or all of a part, could not be read."""
    counts = np.bincount(rows.labels["train"], minlength=len(photos.classes))
    lost = [name for name, count in zip(photos.classes, counts, strict=True) if not count]
    if lost:
        raise ImageError(
            f"training photos of {', '.join(lost[:10])}",
            "none of them could be read",
            "Replace them, or leave the class out.",
        )
    if not len(rows.labels["val"]):
        raise ImageError("validation photos", "none of them could be read", "Replace them.")


def _fit(
    photos: PhotoSet,
    settings: dict[str, Any],
    base: WeightArrays,
    table: Architecture,
    rows: Rows,
    folder: Path,
    skipped: tuple[Failure, ...],
    progress: Progress | None,
) -> TrainingReport:
    """The classifier, and the RUN with it."""
    strengths = GRID if settings["l2"] is None else (settings["l2"],)

    def watch(step: Step) -> None:
        nonlocal fits
        fits += 1
        if progress:
            progress("fits", fits, len(strengths), step._asdict())

    fits = 0
    classes = len(photos.classes)
    standard = standard_of(lambda: rows.blocks("train"))
    rows.standardize(standard)
    parts = {part: _again(rows, part) for part in ("train", "val")}
    head, l2, steps = choose_softmax(parts["train"], parts["val"], classes, strengths, watch)
    confusion = confusion_of(head, parts["val"])
    metrics = {"l2": l2}
    for part in parts:
        metrics[f"{part}_loss"], metrics[f"{part}_accuracy"] = judge(head, parts[part])
    layer = settings["layer"]
    arrays = _network(base, table.with_head(layer, classes), folded(head, standard), settings)
    record = RunRecord(
        classes=photos.classes,
        architecture=table.name,
        preset=settings["preset"],
        layer=layer,
        mode="head",
        base={"digest": base.digest, "source": os.path.basename(base.source)},
        settings=settings,
        split=split_record(photos, skipped),
        metrics=metrics,
    )
    run = write_run(
        folder,
        record,
        arrays,
        AlexNet(arrays, architecture=table.name),
        history=[step._asdict() for step in steps],
        confusion=confusion,
        test=photos.test,
        notes=photos.notes,
        skipped=skipped,
        explanation=_explanation(settings, l2, len(steps), standard.mean.size),
    )
    return TrainingReport(run, photos.notes, skipped)


def _again(rows: Rows, part: str):
    return lambda: rows.blocks(part)


def _network(
    base: WeightArrays, cut: Architecture, head: Linear, settings: Mapping[str, Any]
) -> WeightArrays:
    """The pretrained layers below the classifier, and the classifier as `fc8`."""
    kernel, inputs = head.kernel, cut.parameter_shapes()["fc8"][0][0]
    if settings["pool"] == "avg":
        # A mean over positions, then one weight a channel: the same weight at every position.
        positions = inputs // len(kernel)
        kernel = np.tile(kernel / positions, (positions, 1))
    layers = {x.name: base.layers[x.name] for x in cut.weighted[:-1]}
    layers["fc8"] = LayerArrays(kernel.astype(np.float32), head.bias.astype(np.float32))
    kept = {k: v for k, v in base.metadata.items() if k in ("licence", "origin")}
    metadata = {"origin": os.path.basename(base.source), **kept, "preset": settings["preset"]}
    return WeightArrays(layers, cut.name, "the trained network", metadata)


def _explanation(settings: Mapping[str, Any], l2: float, tried: int, width: int) -> str:
    layer = settings["layer"]
    what = "averaged over its positions, " if settings["pool"] == "avg" else ""
    text = (
        f"The network below the classifier stayed as it was: every photo went through it once, up "
        f"to {layer} ({what}{width} numbers a photo). A linear softmax classifier on them was "
        f"fitted by L-BFGS, with the penalty `l2 / 2` times the sum of squares of its weights "
        "(for features centred on the training photos and of mean squared length 1). "
    )
    if settings["l2"] is not None:
        return text + f"`l2` = {l2:g} was given."
    return text + (
        f"Of {tried} strengths tried, `l2` = {l2:.3g} has the least loss on the validation photos. "
        "It was chosen on them, so their figures are a little better than those of photos that had "
        "no say in it would be."
    )
