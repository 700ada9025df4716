"""`tf-alexnet predict`."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from tf_alexnet.cli import console
from tf_alexnet.cli.options import (
    Architecture,
    Crops,
    Depth,
    DepthName,
    Engine,
    EngineName,
    LabelFile,
    MeanImage,
    Model,
    OwnWeights,
    Photos,
    Precision,
    PrecisionName,
    Preset,
    Quiet,
)
from tf_alexnet.errors import ImageError, UsageError, one_line

_TOP = 5
_DRAWN = 10  # classes per photo in the picture

if TYPE_CHECKING:
    from tf_alexnet.extraction import PhotoPrediction


def predict(
    photos: Photos,
    weights: OwnWeights = None,
    model: Model = None,
    architecture: Architecture = None,
    preset: Preset = None,
    mean_image: MeanImage = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Number of classes to show (default: 5; with --model all)."),
    ] = None,
    labels: LabelFile = None,
    crops: Annotated[
        Crops, typer.Option(help="Centre crop, or the mean of ten crops.")
    ] = Crops.center,
    depth: Depth = DepthName.auto,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Save photos with their classes as PNG.")
    ] = None,
    engine: Engine = EngineName.auto,
    precision: Precision = PrecisionName.float32,
    quiet: Quiet = False,
) -> None:
    """Predict the classes of photos: probability, synset id, name."""
    if as_json and as_csv:
        raise UsageError("--json --csv", "two formats at once", "Choose one.")
    console.check_model(model, weights, architecture)
    from tf_alexnet.images import find_images
    from tf_alexnet.labels import read_labels
    from tf_alexnet.visualize.sheets import check_picture, predictions_sheet, save_picture

    if plot:
        check_picture(plot)
    if labels:
        read_labels(labels)
    console.check_names(weights, architecture, preset, mean_image)
    paths = find_images(photos)
    chosen = console.choose_engine(engine.value, len(paths), precision.value)
    run = console.open_run(model, weights)
    file = run.arrays if run else console.find_weights(weights or "imagenet")
    if chosen == "tensorflow":
        console.load_tensorflow()
    from tf_alexnet.extraction import FeatureExtractor, predict_photos

    extractor = FeatureExtractor(
        file,
        run.outputs if run else ("prob",),
        architecture=architecture,
        preset=preset,
        mean_image=mean_image,
        engine=chosen,
        precision=precision.value,
    )
    if run is None:
        console.unknown_weights_note(extractor)
    untrained = extractor.weights_source if extractor.untrained else ""
    show = _show_json if as_json else _show_csv if as_csv else _show_table
    names = labels or (run.record.classes if run else None)
    top = top or (None if run else _TOP)
    # On a terminal, the table itself shows progress.
    silent = sys.stdout.isatty() and not as_json
    with contextlib.nullcontext() if silent else console.progress("photos") as progress:
        results = predict_photos(
            paths,
            extractor,
            top=top,
            crops=crops.value,
            depth=depth.value,
            classes=names,
            progress=progress,
        )
        results = show(results, untrained)
    seen = [
        (
            x.path,
            [(f"{p.label} {untrained}".rstrip(), p.probability) for p in x.predictions[:_DRAWN]],
        )
        for x in results
    ]
    drawn = [(path, classes) for path, classes in seen if classes]
    if plot and drawn:
        save_picture(predictions_sheet(drawn, titled=run is not None), plot)
        console.note(f"wrote {plot}")
    if len(drawn) < len(seen):
        raise typer.Exit(ImageError.exit_code)


def _noted(results: Iterable[PhotoPrediction], seen: list) -> Iterable[PhotoPrediction]:
    """Yield the results of readable photos; report the others."""
    for result in results:
        seen.append(result)
        if result.error:
            console.report_failures([(result.path, result.error)])
        else:
            yield result


def _show_table(results: Iterable[PhotoPrediction], untrained: str) -> list[PhotoPrediction]:
    seen: list[PhotoPrediction] = []
    for result in _noted(results, seen):
        print(one_line(result.path) + (f"  {untrained}" if untrained else ""))
        for p in result.predictions:
            synset = f"{p.synset}  " if p.synset else ""
            print(f"  {p.probability:.4f}  {synset}{one_line(p.label)}")
    return seen


def _show_csv(results: Iterable[PhotoPrediction], untrained: str) -> list[PhotoPrediction]:
    seen: list[PhotoPrediction] = []
    table = csv.writer(sys.stdout)
    title, mark = (["weights"], [untrained]) if untrained else ([], [])
    table.writerow(["path", "rank", "probability", "synset", "label", "index", *title])
    for result in _noted(results, seen):
        for rank, p in enumerate(result.predictions, 1):
            row = [result.path, rank, p.probability, p.synset, p.label, p.index]
            table.writerow(row + mark)
    return seen


def _show_json(results: Iterable[PhotoPrediction], untrained: str) -> list[PhotoPrediction]:
    seen: list[PhotoPrediction] = []
    list(_noted(results, seen))
    mark = {"weights": untrained} if untrained else {}
    rows = [
        {"path": x.path, "error": x.error}
        if x.error
        else {"path": x.path, **mark, "predictions": [p.as_dict() for p in x.predictions]}
        for x in seen
    ]
    json.dump(rows, sys.stdout, indent=1)
    print()
    return seen
