"""`tf-alexnet evaluate`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tf_alexnet.cli import console
from tf_alexnet.cli.options import (
    Architecture,
    Crops,
    Engine,
    EngineName,
    LabelFile,
    MeanImage,
    Model,
    OwnWeights,
    Precision,
    PrecisionName,
    Preset,
    Quiet,
)
from tf_alexnet.errors import UsageError, counted, one_line

if TYPE_CHECKING:
    from tf_alexnet.evaluation.metrics import ClassResult, Evaluation, MultiLabelEvaluation

_SHOWN = 20  # unreadable photos that are listed
_ALL, _WORST = 30, 10  # classes shown: all of up to 30, or the worst 10


def evaluate(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder per class, directly or in val/; or a table (.csv, .tsv, "
            ".parquet) with columns path and label.",
        ),
    ] = None,
    model: Model = None,
    weights: OwnWeights = None,
    imagenet_val: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder of ILSVRC's validation photos, instead of DATA."),
    ] = None,
    ground_truth: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Their classes: Caffe's val.txt or a list of synset ids."
        ),
    ] = None,
    crops: Annotated[
        Crops, typer.Option(help="Centre crop, or the mean of ten crops.")
    ] = Crops.center,
    labels: LabelFile = None,
    architecture: Architecture = None,
    preset: Preset = None,
    mean_image: MeanImage = None,
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Save the results per class as CSV.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Save the confusion matrix as PNG.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.h5", help="Keep all probabilities in this file, and reuse those in it."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    engine: Engine = EngineName.auto,
    precision: Precision = PrecisionName.float32,
    quiet: Quiet = False,
) -> None:
    """Measure top-1 and top-5 accuracy; the same command resumes an interrupted one."""
    folder = _folder(data, imagenet_val, ground_truth)
    console.check_model(model, weights, architecture)
    _check_outputs(csv, plot, keep)
    console.check_names(weights, architecture, preset, mean_image)
    from tf_alexnet.evaluation.ground_truth import read_ilsvrc_validation
    from tf_alexnet.images.labelled import class_folders, is_table
    from tf_alexnet.labels import read_labels

    if labels:
        read_labels(labels)
    if ground_truth:
        read_ilsvrc_validation(folder, ground_truth)
    elif not is_table(folder):
        class_folders(folder)
    chosen = console.choose_engine(engine.value, precision=precision.value)
    run = console.open_run(model, weights)
    file = "imagenet" if run else console.find_weights(weights or "imagenet")
    if chosen == "tensorflow":
        console.load_tensorflow()
    from tf_alexnet.evaluation.evaluate import evaluate_photos

    with console.progress("photos") as progress:
        found = evaluate_photos(
            folder,
            file,
            model=run,
            ground_truth=ground_truth,
            labels=labels,
            architecture=architecture,
            preset=preset,
            mean_image=mean_image,
            crops=crops.value,
            engine=chosen,
            precision=precision.value,
            keep=keep,
            progress=progress,
        )
    code = _report(found, as_json, is_run=run is not None)
    if csv:
        found.write_csv(csv)
    if plot and _is_multi_label(found):
        console.note("no confusion matrix: photos have any number of labels")
        plot = None
    if plot:
        from tf_alexnet.training.report import confusion_figure
        from tf_alexnet.visualize.figures import save_figure

        title = f"{found.photos:,} photos, top-1 {found.top1:.1%}"
        shown = confusion_figure([x.label for x in found.classes], found.confusion, title)
        save_figure(shown, plot)
    for place in filter(None, (csv, plot)):
        console.note(f"wrote {place}")
    raise typer.Exit(code)


def _check_outputs(csv: str | None, plot: str | None, keep: str | None) -> None:
    from tf_alexnet.files import check_folder

    if csv:
        check_folder(csv)
    if keep:
        check_folder(keep, ".h5")
    if plot:
        from tf_alexnet.visualize.figures import check_figure

        check_figure(plot)


def _folder(data: str | None, imagenet_val: str | None, ground_truth: str | None) -> str:
    """The folder to evaluate, given in one of two ways."""
    if data is not None and imagenet_val is None and ground_truth is None:
        return data
    if data is None and imagenet_val is not None and ground_truth is not None:
        return imagenet_val
    given = {"DATA": data, "--imagenet-val": imagenet_val, "--ground-truth": ground_truth}
    names = " ".join(name for name, value in given.items() if value is not None)
    raise UsageError(
        "evaluate",
        f"it got {names}" if names else "it got no photos",
        "Name a folder with one folder per class, or --imagenet-val DIR --ground-truth FILE.",
    )


def _report(found: Evaluation | MultiLabelEvaluation, as_json: bool, is_run: bool) -> int:
    """Print the results; return the exit code."""
    for note in found.notes:
        console.note(note)
    if kept := getattr(found, "kept", 0):
        console.note(f"{kept} of the photos were done before")
    if not is_run:
        console.unknown_weights_note(found)
    code = console.report_failures([(x.path, x.detail) for x in found.failures[:_SHOWN]])
    if len(found.failures) > _SHOWN:
        console.note(f"{len(found.failures) - _SHOWN} more could not be read")
    if as_json:
        json.dump(found.as_dict(), sys.stdout, indent=1)
        print()
    else:
        _show(found)
    return code


def _show(found: Evaluation | MultiLabelEvaluation) -> None:
    network = (
        f"{one_line(found.weights_source)}: {found.architecture}, {len(found.classes)} classes"
    )
    print(f"{network}, preset {found.preset}, {found.crops} crop{'s' * (found.crops == 'ten')}")
    errors = f"; {len(found.failures)} could not be read" if found.failures else ""
    print(f"{counted(found.photos, 'photo', 'photos')}{errors}")
    if _is_multi_label(found):
        _show_precisions(found)
        return
    published = found.published
    for name, value in (("top-1", found.top1), ("top-5", found.top5)):
        if value is None:
            continue
        line = f"{name}  {value:7.3%}"
        if published:
            other = published.top1 if name == "top-1" else published.top5
            line += f"   published {other:.3f}%   difference {100 * value - other:+.3f}"
        print(line)
    if published:
        print(f"published: {published.pipeline}; {published.source}")
    _show_classes([row for row in found.by_class() if row.photos])


def _is_multi_label(found: Evaluation | MultiLabelEvaluation) -> bool:
    """Whether photos may have any number of labels."""
    return hasattr(found, "precisions")


def _show_precisions(found: MultiLabelEvaluation) -> None:
    print(f"mean average precision  {found.mean_average_precision:.4f}\n")
    rows = [(one_line(name), value) for name, value in found.by_class() if value is not None]
    width = min(40, max(5, *(len(name) for name, _ in rows)))
    print(f"{'class':{width}}  average precision")
    for name, value in rows:
        print(f"{name[:width]:{width}}  {value:17.4f}")


def _show_classes(rows: list[ClassResult]) -> None:
    if len(rows) > _ALL:
        print(f"\nthe {_WORST} classes with the lowest recall, of {len(rows)}:")
        rows = sorted(rows, key=lambda row: row.recall)[:_WORST]
    width = min(40, max(5, *(len(one_line(row.name)) for row in rows)))
    print(f"\n{'class':{width}}  photos  correct  recall  precision  most confused with")
    for x in rows:
        name = one_line(x.name)
        name = name if len(name) <= width else name[: width - 3] + "..."
        precision = "-" if x.precision is None else f"{x.precision:.1%}"
        other = f"{one_line(x.confused_with)} ({x.confused})" if x.confused else "-"
        print(
            f"{name:{width}}  {x.photos:6}  {x.correct:7}  {x.recall:6.1%}  {precision:>9}  {other}"
        )
