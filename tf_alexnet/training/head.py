"""`train_head`: a linear classifier on features of a pretrained network."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_alexnet.architectures import Architecture, Conv, Dense
from tf_alexnet.errors import ImageError, UsageError, WeightsError
from tf_alexnet.extraction import FeatureExtractor, extract_features
from tf_alexnet.extraction.formats import open_output
from tf_alexnet.extraction.job import failures_among
from tf_alexnet.extraction.reader import Failure
from tf_alexnet.extraction.storage import place_of
from tf_alexnet.images import recorded_name
from tf_alexnet.progress import progress_callback
from tf_alexnet.training.arrays import is_features, read_arrays
from tf_alexnet.training.folders import PhotoSet, read_photos
from tf_alexnet.training.linear import (
    Classifier,
    Linear,
    Rows,
    Step,
    balanced,
    choose_penalty,
    confusion_of,
    edge_note,
    folded,
    label_array,
    precisions_of,
    standard_of,
)
from tf_alexnet.training.report import chance_note
from tf_alexnet.training.run import (
    Run,
    RunRecord,
    TrainingReport,
    base_record,
    begin_run,
    check_run,
    model_of,
    split_record,
    working_in,
    write_run,
)
from tf_alexnet.version import VERSION
from tf_alexnet.weights import LayerArrays, WeightArrays
from tf_alexnet.weights.resolve import last_features, resolve_weights, trained_preset

FEATURES = "features.h5"
_SHARD = 512  # photos whose features are saved together

Progress = Callable[[str, int, int | None, Mapping[str, Any]], None]


def train_head(
    data: Any,
    labels: Any = None,
    run: str | os.PathLike | None = None,
    *,
    weights: str | os.PathLike | WeightArrays = "imagenet",
    architecture: str | None = None,
    preset: str | None = None,
    layer: str | None = None,
    pool: str | None = None,
    l2: float | None = None,
    class_weight: str | None = None,
    multi_label: bool = False,
    classes: Sequence[str] | None = None,
    validation_data: Any = None,
    val_split: float = 0.2,
    seed: int = 0,
    features: str | os.PathLike | None = None,
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | bool | None = None,
    note: Callable[[str], None] | None = None,
) -> TrainingReport:
    """Train a linear classifier on features of a pretrained network.

    Every photo goes through the network once. The classifier is then fitted by L-BFGS, with the L2
    penalty that does best on the validation photos, and becomes the network's `fc8`.

    - ``train_head("flowers", "RUN")``: class folders or a table. Features are kept in a file, and
      the same call resumes an interrupted one.
    - ``train_head(x, y)``: images and labels in memory.
    - ``train_head(dataset)``: (image, label) pairs, as TensorFlow Datasets gives them with
      ``as_supervised=True``. Only their features are kept in memory.
    - ``train_head(features, y)``: any features.

    Parameters
    ----------
    data : path, array, sequence or iterable
        A path as in `read_photos`; uint8 RGB images (N, H, W, 3), or a sequence of images of any
        sizes, or of paths; an iterable of (image, label) pairs, or of batches of them; features,
        float (N, D).
    labels : array, optional
        With images or features: int or str (N,), or 0 and 1 (N, classes). With a path, `run` may
        be passed here.
    run : path, optional
        Folder for the result, see `tf_alexnet.training.run`; required if `data` is a path.
        Without it nothing is written.
    weights, architecture, preset
        As in `FeatureExtractor`.
    layer : {"pool5", "fc6", "fc7"}, optional
        Layer to train the classifier on (default: the last one the weights have). For others, see
        `linear_readout`.
    pool : {"avg", "none"}, optional
        For `pool5`: its mean over positions (default), or all values.
    l2 : float, optional
        L2 penalty, see `fit_linear` (default: the best on the validation photos).
    class_weight : {"balanced"}, optional
        Weight classes inversely to their frequency, as scikit-learn does.
    multi_label : bool
        Photos have any number of labels: one sigmoid per class, validated by mean average
        precision.
    classes : sequence of str, optional
        Names of the labels 0, 1, 2, ... of arrays and iterables.
    validation_data : (images, labels) or iterable of pairs, optional
        For arrays and iterables, instead of `val_split`.
    val_split, seed
        As in `read_photos`, also for arrays and iterables.
    features : path, optional
        With a path: the ``.h5`` for the features (default: ``features.h5`` in the RUN). Trainings
        on the same layer and weights may share it.
    workers : int, optional
        With a path: decoder processes, as in `extract_features`.
    resume : bool
        Fail unless `run` holds a training.
    force : bool
        Start over, whatever is there; features that fit are kept.
    progress : callable or bool, optional
        True shows a progress bar. A callable is called with (stage, done, total, figures): stage
        "photos" with ``errors``, stage "fits" with the columns of ``history.csv``.
    note : callable, optional
        Called with sentences for the user as soon as they are known.

    Returns
    -------
    TrainingReport
        `run` is None for features (N, D): `classifier` is the result.

    Raises
    ------
    UsageError, InputError
        For data or settings that can't work, and settings other than the training was started with.
    WeightsError, ImageError, OutputError
        If weights, photos or the RUN can't be read or written.
    """
    if isinstance(labels, str | os.PathLike) and run is None:
        labels, run = None, labels
    named, plain = isinstance(data, str | os.PathLike), is_features(data)
    if named and (run is None or labels is not None or validation_data is not None):
        found = "a path needs a RUN, and takes neither labels nor validation_data"
        raise UsageError(f"train_head({os.fspath(data)!r})", found, 'Pass (DATA, "RUN").')
    if plain and run is not None:
        found = "features, without the network that belongs to them"
        raise UsageError(f"RUN {os.fspath(run)}", found, "Leave run out, or pass images.")
    setup = Setup.of(None if plain else (weights, architecture, preset), l2, class_weight)
    layer, pool = ("features", "none") if plain else _place(setup, layer, pool)
    with progress_callback(progress, "training") as progress:
        if named:
            photos, found = read_photos(data, val_split, seed, multi_label=multi_label), None
        else:
            if run is not None:
                check_run(run, resume=resume)
            found = read_arrays(
                data, labels, validation_data, None if plain else setup.extractor(layer), pool,
                classes=classes, multi_label=multi_label, val_split=val_split, seed=seed,
                progress=progress,
            )  # fmt: skip
            photos = found.photos
        settings = {} if plain else setup.settings("head", layer, pool, photos, val_split, seed)
        held = contextlib.nullcontext() if run is None else working_in(run, resume=resume)
        with held as folder:
            done = None if folder is None else begin_run(folder, settings, force=force)
            if done is not None:
                return TrainingReport(done, photos.notes, finished_before=True)
            for text in photos.notes if note else ():
                note(text)
            if found is None:
                file = Path(features or folder / FEATURES)
                anew = force and not features
                found = extract_photos(photos, file, setup, settings, workers, anew, progress)
            fitted = fit_rows(*found.rows(layer), len(photos.classes), setup, progress)
            for text in fitted.notes if note else ():
                note(text)
            result = None
            if not plain:
                result = _written(photos, settings, setup, fitted, folder, found.skipped)
    head = (x.astype(np.float32) for x in fitted.head)
    classifier = Classifier(photos.classes, *head, photos.multi_label, fitted.metrics)
    notes = (*photos.notes, *fitted.notes)
    return TrainingReport(result, notes, found.skipped, classifier=classifier)


class Setup(NamedTuple):
    """Checked settings that trainings on features share; no network for given features."""

    base: WeightArrays | None
    table: Architecture | None
    preset: str
    l2: float | None
    class_weight: str | None

    @classmethod
    def of(
        cls, network: tuple[Any, str | None, str | None] | None, l2: Any, class_weight: Any
    ) -> Setup:
        """From `weights`, `architecture` and `preset`, and the settings of the fit."""
        if l2 is not None and not 0 < l2 < float("inf"):
            advice = "Use a number above 0, such as 0.001."
            raise UsageError(f"l2 {l2}", "not an L2 penalty", advice)
        if class_weight not in (None, "balanced"):
            found = "not a class weight"
            raise UsageError(f"class_weight {class_weight!r}", found, "Use balanced, or none.")
        base, table, name = None, None, ""
        if network is not None:
            weights, architecture, preset = network
            base, table = resolve_weights(weights, architecture)
            if base is None:
                raise UsageError("weights=None", "features need weights", "Pass a weight file.")
            name = recorded_name(preset or trained_preset(base, table))
        return cls(base, table, name, l2, class_weight)

    def extractor(self, layer: str) -> FeatureExtractor:
        """The network up to a layer."""
        return FeatureExtractor(
            self.base, (layer,), architecture=self.table.name, preset=self.preset
        )

    def settings(
        self, mode: str, layer: str, pool: str, photos: PhotoSet, val_split: float, seed: int
    ) -> dict[str, Any]:
        """All that the result depends on, as recorded in a RUN."""
        return {
            "mode": mode,
            "architecture": self.table.name,
            "weights": self.base.digest,
            "preset": self.preset,
            "layer": layer,
            "pool": pool,
            "l2": self.l2,
            "class_weight": self.class_weight,
            "multi_label": photos.multi_label,
            "classes": len(photos.classes),
            "photos": len(photos.train) + len(photos.val),
            "data": photos.digest,
            "val_split": val_split if photos.split else None,
            "seed": seed if photos.split else None,
            "tf_alexnet_version": VERSION,
        }


def _place(setup: Setup, layer: str | None, pool: str | None) -> tuple[str, str]:
    """The layer to train the classifier on, and the pooling of `pool5`."""
    base, table = setup.base, setup.table
    layer = layer or last_features(base, table)
    check_weights(base, table.with_head(layer, 2).weighted[:-1], layer)
    if pool not in (None, "avg", "none"):
        raise UsageError(f"pool {pool!r}", "no such pooling", "Use avg or none.")
    if pool == "avg" and layer != "pool5":
        raise UsageError(f"pool avg of {layer}", "it has no positions", "Leave --pool out.")
    return layer, pool or ("avg" if layer == "pool5" else "none")


def check_weights(base: WeightArrays, needed: Iterable[Conv | Dense], layer: str) -> None:
    """Refuse weights that lack a layer below the classifier."""
    if absent := [x.name for x in needed if x.name not in base.layers]:
        raise WeightsError(
            base.source,
            f"it has no {', '.join(absent)} for a classifier on {layer}",
            "Use --layer pool5 (layer='pool5'), or other weights.",
        )


@dataclass(frozen=True)
class PhotoFeatures:
    """Features of photos in a file.

    Attributes
    ----------
    skipped : tuple of Failure
        Photos that could not be read.
    """

    file: Path
    parts: tuple[tuple[np.ndarray, np.ndarray], ...]  # indices of rows, labels; train and val
    skipped: tuple[Failure, ...]

    def rows(self, layer: str) -> tuple[Rows, Rows]:
        """Training and validation rows of a layer."""
        train, val = (Rows.of_file(self.file, layer, *part) for part in self.parts)
        return train, val


def extract_photos(
    photos: PhotoSet,
    file: Path,
    setup: Setup,
    settings: Mapping[str, Any],
    workers: int | None,
    replace: bool,
    progress: Progress | None,
) -> PhotoFeatures:
    """Extract features of all photos into `file`, unless they are there already.

    Parameters
    ----------
    settings : dict
        With `layer`, several separated by blanks, and `pool`.
    replace : bool
        Whether to replace a file made with other settings.
    """
    real = functools.cache(os.path.realpath)  # a photo may be named differently
    splits = photos.train, photos.val
    parts = [[(place_of(x.path, real), x.label) for x in part] for part in splits]
    named = {place_of(x.path, real): x.path for x in (*photos.val, *photos.train)}
    paths = list(dict.fromkeys(path for part in parts for path, _ in part))

    def on_photos(done: int, total: int, errors: int, *_) -> None:
        if progress:
            progress("photos", done, total, {"errors": errors})

    def extract(force: bool):
        return extract_features(
            paths,
            file,
            weights=setup.base,
            layers=settings["layer"].split(),
            architecture=setup.table.name,
            preset=setup.preset,
            pool=settings["pool"],
            shard_size=_SHARD,
            workers=workers,
            force=force,
            add=True,
            progress=on_photos,
        )

    try:
        report = extract(False)
    except UsageError:
        if not replace:
            raise
        report = extract(True)
    skipped = failures_among(report, named)
    gone = {failure.place for failure in skipped}
    with open_output(file) as output:
        rows = enumerate(output.photos)
        index = {photo.place: i for i, photo in rows if photo.place not in gone}
    found = []
    for part in parts:
        known = sorted((index[path], label) for path, label in part if path in index)
        labels = label_array([x for _, x in known], len(photos.classes), photos.multi_label)
        found.append((np.array([x for x, _ in known], np.int64), labels))
    _check_classes(photos, *(labels for _, labels in found))
    return PhotoFeatures(file, tuple(found), skipped)


def _check_classes(photos: PhotoSet, train: np.ndarray, val: np.ndarray) -> None:
    """Refuse to train if no photo of a class or split could be read."""
    flags = train if photos.multi_label else train[:, None] == np.arange(len(photos.classes))
    present = flags.any(axis=0)
    lost = [name for name, there in zip(photos.classes, present, strict=True) if not there]
    if lost:
        raise ImageError(
            f"training photos of {', '.join(lost[:10])}",
            "none of them could be read",
            "Replace them, or leave the class out.",
        )
    if not len(val):
        raise ImageError("validation photos", "none of them could be read", "Replace them.")


class Fitted(NamedTuple):
    """A fitted classifier of raw rows, with its history."""

    head: Linear
    steps: list[Step]
    metrics: dict[str, float]
    by_class: dict[str, np.ndarray]  # on the validation rows: confusion, or precisions
    notes: tuple[str, ...]


def fit_rows(
    train: Rows,
    val: Rows,
    classes: int,
    setup: Setup,
    progress: Progress | None,
    stage: str = "fits",
) -> Fitted:
    """Fit a classifier; the rows are standardised in place."""
    metric = "accuracy" if train.labels.ndim == 1 else "map"  # mean average precision
    fits = 0

    def on_step(step: Step) -> None:
        nonlocal fits
        fits += 1
        if progress:
            progress(stage, fits, setup.l2 and 1, step.row(metric))

    standard = standard_of(train)
    for rows in (train, val):
        rows.standardize(standard)
    weights = balanced(train.labels, classes) if setup.class_weight else None
    head, best, steps = choose_penalty(train, val, classes, setup.l2, weights, on_step)
    notes = [edge_note(best)] if setup.l2 is None else []
    if metric == "accuracy":
        notes.append(chance_note(val.labels, best.val_metric))
    metrics = {k: v for k, v in best.row(metric).items() if k != "iterations"}
    if metric == "accuracy":
        by_class = {"confusion": confusion_of(head, val)}
    else:
        by_class = {"precisions": precisions_of(head, val)}
    return Fitted(folded(head, standard), steps, metrics, by_class, tuple(filter(None, notes)))


def _written(
    photos: PhotoSet,
    settings: dict[str, Any],
    setup: Setup,
    fitted: Fitted,
    folder: Path | None,
    skipped: tuple[Failure, ...],
) -> Run:
    """The network with its classifier, written as a RUN if there is a folder."""
    table = setup.table.with_head(settings["layer"], len(photos.classes))
    arrays = _network(setup.base, table, fitted.head, settings)
    record = RunRecord(
        classes=photos.classes,
        architecture=table.name,
        preset=setup.preset,
        layer=settings["layer"],
        mode="head",
        base=base_record(setup.base),
        settings=settings,
        split=split_record(photos, skipped),
        metrics=fitted.metrics,
        multi_label=photos.multi_label,
    )
    if folder is None:
        return Run(None, replace(record, weights_digest=arrays.digest), arrays)
    return write_run(
        folder,
        record,
        arrays,
        model_of(record, arrays),
        history=[step.row("map" if record.multi_label else "accuracy") for step in fitted.steps],
        **fitted.by_class,
        test=photos.test,
        notes=(*photos.notes, *fitted.notes),
        skipped=skipped,
        explanation=_explanation(settings, fitted),
    )


def _network(
    base: WeightArrays, cut: Architecture, head: Linear, settings: Mapping[str, Any]
) -> WeightArrays:
    """The pretrained layers below the classifier, and the classifier as `fc8`."""
    kernel, inputs = head.kernel, cut.parameter_shapes()["fc8"][0][0]
    if settings["pool"] == "avg":
        # Averaging, then one weight per channel: the same weight at every position.
        positions = inputs // len(kernel)
        kernel = np.tile(kernel / positions, (positions, 1))
    layers = {x.name: base.layers[x.name] for x in cut.weighted[:-1]}
    layers["fc8"] = LayerArrays(kernel.astype(np.float32), head.bias.astype(np.float32))
    kept = {k: v for k, v in base.metadata.items() if k in ("licence", "origin")}
    metadata = {"origin": os.path.basename(base.source), **kept, "preset": settings["preset"]}
    return WeightArrays(layers, cut.name, "the trained network", metadata)


def _explanation(settings: Mapping[str, Any], fitted: Fitted) -> str:
    pooled = "averaged over its positions, " if settings["pool"] == "avg" else ""
    kind = "one sigmoid per class" if settings["multi_label"] else "softmax"
    weighted = ", classes weighted by inverse frequency," if settings["class_weight"] else ""
    text = (
        "The network below the classifier was not trained: every photo went through it once, up to "
        f"{settings['layer']} ({pooled}{len(fitted.head.kernel)} features). A linear classifier on "
        f"them ({kind}) was fitted by L-BFGS{weighted} with the penalty `l2 / 2` times the sum of "
        "squares of its weights (features centred, and scaled to a mean squared length of 1). "
    )
    l2 = f"`l2` = {fitted.metrics['l2']:.3g}"
    if settings["l2"] is not None:
        return text + f"{l2} was given."
    return text + (
        f"Of {len(fitted.steps)} penalties, {l2} has the least loss on the validation photos. "
        "Because it was chosen on them, the validation figures are slightly optimistic."
    )
