"""`tf-alexnet train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tf_alexnet.cli import console
from tf_alexnet.cli.options import Architecture, OwnWeights, Preset, Quiet
from tf_alexnet.errors import UsageError, one_line

if TYPE_CHECKING:
    from tf_alexnet.evaluation.readout import ReadoutReport
    from tf_alexnet.training.run import TrainingReport

_SHOWN = 20  # unreadable photos that are listed; all are counted


class Mode(str, Enum):
    """Layers to train."""

    head = "head"
    finetune = "finetune"
    scratch = "scratch"


class Pool(str, Enum):
    """Pooling of convolutional layers."""

    avg = "avg"
    max = "max"
    none = "none"


class Augment(str, Enum):
    """Augmentation of training photos."""

    none = "none"
    light = "light"
    paper = "paper"


class Schedule(str, Enum):
    """Schedule of the learning rate."""

    constant = "constant"
    step = "step"
    cosine = "cosine"


class ClassWeight(str, Enum):
    """Weights of the classes in the loss."""

    balanced = "balanced"


# Modes of options that not all modes have; other such options are for finetune and scratch.
_MODES = {
    **dict.fromkeys(("weights", "layer"), (Mode.head, Mode.finetune)),
    **dict.fromkeys(("pool", "l2", "features"), (Mode.head,)),
    "unfreeze_from": (Mode.finetune,),
    **dict.fromkeys(("multi_label", "class_weight"), tuple(Mode)),
}


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder per class, directly or in train/, val/ and test/; or a "
            "table (.csv, .tsv, .parquet) with columns path, label and, optionally, split.",
        ),
    ],
    run: Annotated[
        str, typer.Option("--output", "--out", "-o", metavar="RUN", help="Folder for the result.")
    ],
    mode: Annotated[
        Mode,
        typer.Option(help="Train a classifier, a classifier and layers below it, or all layers."),
    ] = Mode.head,
    weights: OwnWeights = None,
    architecture: Architecture = None,
    preset: Preset = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            "--layers",
            "-l",
            help="Layer to train the classifier on: pool5, fc6 or fc7 (default: the last one the "
            "weights have). head: several layers, other layers, or all give a read-out, a table "
            "and plot of the accuracy on each.",
        ),
    ] = None,
    val_split: Annotated[
        float,
        typer.Option(
            metavar="FRACTION",
            help="Fraction of photos used for validation when DATA has no val/.",
        ),
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    pool: Annotated[
        Pool | None,
        typer.Option(help="head: pooling of pool5 over positions (default: avg)."),
    ] = None,
    l2: Annotated[
        float | None,
        typer.Option(help="head: L2 penalty (default: the best on the validation photos)."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(metavar="FILE.h5", help="head: file of features to share between RUNs."),
    ] = None,
    unfreeze_from: Annotated[
        str | None,
        typer.Option(metavar="LAYER", help="finetune: first layer to train (default: conv5)."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs (default: 10; scratch: 30).")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", "--batch-size", min=1, help="Photos per step (default: 32)."),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the classifier; scratch: of all layers.")
    ] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            help="Schedule of the learning rate (default: constant; scratch, except compact: step)."
        ),
    ] = None,
    gamma: Annotated[
        float | None, typer.Option(help="step: factor of the learning rate (default: 0.1).")
    ] = None,
    step_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="EPOCHS", help="step: epochs per step (default: 5; scratch: 10)."
        ),
    ] = None,
    class_weight: Annotated[
        ClassWeight | None,
        typer.Option(help="Give rare classes as much weight as frequent ones."),
    ] = None,
    augment: Annotated[
        Augment | None, typer.Option(help="Augmentation for finetune and scratch (default: light).")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many epochs without improvement.")
    ] = None,
    tensorboard: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write event files for TensorBoard.")
    ] = None,
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="Multiply in bfloat16.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoder processes (default: one per processor).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Fail unless RUN holds an unfinished training.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start over, and replace the content of RUN.")
    ] = False,
    multi_label: Annotated[
        bool,
        typer.Option("--multi-label", help="Photos of the table have any number of labels."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier on a folder of photos; the same command resumes an interrupted one."""
    options = _options_of(
        mode,
        weights=weights,
        layer=layer,
        pool=pool,
        l2=l2,
        features=features,
        unfreeze_from=unfreeze_from,
        epochs=epochs,
        batch=batch,
        lr=lr,
        schedule=schedule,
        gamma=gamma,
        step_size=step_size,
        class_weight=class_weight,
        augment=augment,
        patience=patience,
        tensorboard=tensorboard,
        mixed_precision=mixed_precision or None,
        multi_label=multi_label or None,
    )
    _check(data, run, options, architecture, preset, val_split, seed, resume)
    if mode is not Mode.scratch:
        options["weights"] = console.find_weights(weights or "imagenet")
    console.load_tensorflow()
    from tf_alexnet.evaluation.readout import linear_readout
    from tf_alexnet.training import train_head, train_network

    function = train_head if mode is Mode.head else train_network
    if mode is not Mode.head:
        options["mode"] = mode.value
    elif _is_readout(options):
        function, options["layers"] = linear_readout, options.pop("layer")
    with console.progress("training") as progress:
        report = function(
            data,
            run,
            architecture=architecture,
            preset=preset,
            val_split=val_split,
            seed=seed,
            workers=workers,
            resume=resume,
            force=force,
            progress=progress,
            note=console.note,
            **options,
        )
    code = console.report_failures([(x.path, x.detail) for x in report.skipped[:_SHOWN]])
    if len(report.skipped) > _SHOWN:
        console.note(f"{len(report.skipped) - _SHOWN} more could not be read; report.md lists 50")
    if "layers" in options:
        _show_readout(report, run)
    else:
        _show(report, run)
    raise typer.Exit(code)


def _is_readout(options: Mapping[str, Any]) -> bool:
    """Whether `--layer` asks for a read-out: anything but one layer a classifier can be on."""
    from tf_alexnet.architectures import HEAD_LAYERS, blob_names

    names = blob_names(options["layer"]) if "layer" in options else ()
    if len(names) < 2 and set(names) <= {*HEAD_LAYERS}:
        return False
    if "features" in options:
        found = f"a read-out of {options['layer']} has a file of its own"
        raise UsageError("--features", found, "Leave it out, or name one of pool5, fc6 and fc7.")
    return True


def _options_of(mode: Mode, **options: Any) -> dict[str, Any]:
    """The options given; UsageError for options of other modes."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        modes = _MODES.get(name, (Mode.finetune, Mode.scratch))
        if mode not in modes:
            raise UsageError(
                f"--{name.replace('_', '-')} with --mode {mode.value}",
                "that mode has no such option",
                f"Leave it out, or choose --mode {' or '.join(x.value for x in modes)}.",
            )
    names = {"batch": "batch_size", "lr": "learning_rate"}
    return {names.get(k, k): v.value if isinstance(v, Enum) else v for k, v in given.items()}


def _check(
    data: str,
    run: str,
    options: Mapping[str, Any],
    architecture: str | None,
    preset: str | None,
    val_split: float,
    seed: int,
    resume: bool,
) -> None:
    """Check the arguments, before weights are downloaded and TensorFlow is loaded."""
    from tf_alexnet.extraction import check_output
    from tf_alexnet.training import read_photos
    from tf_alexnet.training.run import check_run

    layers = [options[name] for name in ("unfreeze_from", "layer") if name in options]
    console.check_names(options.get("weights"), architecture, preset, layers=layers)
    check_run(run, resume=resume)
    if "features" in options:
        check_output(options["features"])
    multi_label = options.get("multi_label", False)
    read_photos(data, val_split, seed, duplicates=False, multi_label=multi_label)


def _show(report: TrainingReport, folder: str) -> None:
    record = report.run.record
    split, metrics = record.split, record.metrics
    classes = ", ".join(record.classes[:8]) + (", ..." if len(record.classes) > 8 else "")
    skipped = f", {split['skipped']} skipped" if split["skipped"] else ""
    test = f", {split['test']} test" if "test" in split else ""
    start = f", starting from {record.base['source']}" if "untrained" in record.base else ""
    rows = [
        ("classes", f"{len(record.classes)}: {classes}"),
        ("photos", f"{split['train']} training, {split['val']} validation{test}{skipped}"),
        (
            "network",
            f"{record.architecture}, classifier on {record.layer}, mode {record.mode}{start}",
        ),
    ]
    if "l2" in metrics:
        how = "chosen on the validation photos" if record.settings.get("l2") is None else "given"
        rows.append(("l2", f"{metrics['l2']:.3g}, {how}"))
    if "epoch" in metrics:
        rows.append(("best epoch", f"{metrics['epoch']:g}"))
    merit, form = ("map", ".3f") if record.multi_label else ("accuracy", ".1%")
    parts = (("train", "training"), ("val", "validation"), ("test", "test"))
    figures = [
        f"{title} {metrics[f'{part}_{merit}']:{form}}"
        for part, title in parts
        if f"{part}_{merit}" in metrics
    ]
    rows.append(("mAP" if record.multi_label else "accuracy", ", ".join(figures)))
    before = " (finished before, nothing was done)" if report.finished_before else ""
    files = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    rows.append(("written", f"{folder}: {', '.join(files)}{before}"))
    rows.append(("next", f"tf-alexnet predict PHOTOS --model {folder}"))
    for name, value in rows:
        print(f"{name:10}  {one_line(value)}")


def _show_readout(report: ReadoutReport, folder: str) -> None:
    title = "mAP" if report.metric == "map" else "accuracy"
    print(f"{'layer':14}  {'features':>8}  {'l2':>8}  {'training':>8}  validation {title}")
    for x in report.layers:
        print(f"{x.layer:14}  {x.features:8}  {x.l2:8.3g}  {x.train:8.1%}  {x.val:.1%}")
    before = " (finished before, nothing was done)" if report.finished_before else ""
    print(f"written     {one_line(folder)}: readout.csv, readout.png, report.md{before}")
