"""`tf-alexnet train`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tf_alexnet.cli import console
from tf_alexnet.cli.options import Architecture, OwnWeights, Preset
from tf_alexnet.errors import UsageError, one_line

if TYPE_CHECKING:
    from tf_alexnet.training.run import TrainingReport

_SHOWN = 20  # bad photos that are named on the screen; all are counted
_FILES = "run.json, weights.safetensors, model.keras, class_indices.json, history.csv, report.md"


class Mode(str, Enum):
    """What is trained."""

    head = "head"
    finetune = "finetune"
    scratch = "scratch"


class Layer(str, Enum):
    """What the classifier stands on."""

    pool5 = "pool5"
    fc6 = "fc6"
    fc7 = "fc7"


class Pool(str, Enum):
    """What becomes of the positions of pool5."""

    avg = "avg"
    none = "none"


class Augment(str, Enum):
    """How training photos are varied."""

    none = "none"
    light = "light"
    paper = "paper"


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A folder with a folder a class; or with train/ and val/ of such."
        ),
    ],
    run: Annotated[
        str, typer.Option("--output", "-o", metavar="RUN", help="Folder for the result.")
    ],
    mode: Annotated[
        Mode, typer.Option(help="Train a classifier, it and layers below, or everything.")
    ] = Mode.head,
    weights: OwnWeights = None,
    architecture: Architecture = None,
    preset: Preset = None,
    layer: Annotated[
        Layer | None,
        typer.Option(help="What the classifier stands on; by default the last that there is."),
    ] = None,
    val_split: Annotated[
        float, typer.Option(metavar="PART", help="Set aside to judge by, if DATA has no val/.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    pool: Annotated[
        Pool | None, typer.Option(help="head: pool5 averaged over positions (default), or whole.")
    ] = None,
    l2: Annotated[
        float | None, typer.Option(help="head: the penalty; by default chosen on the val photos.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="FILE.h5", help="head: features, shared between RUNs.")
    ] = None,
    unfreeze_from: Annotated[
        str | None,
        typer.Option(metavar="LAYER", help="finetune: the first layer trained; conv5 by default."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="finetune 10, scratch 30 by default.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Photos a step; 32 by default.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the classifier; scratch: of all.")
    ] = None,
    augment: Annotated[
        Augment | None, typer.Option(help="finetune and scratch; light by default.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a new best.")
    ] = None,
    tensorboard: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write event files for TensorBoard.")
    ] = None,
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="Multiply in bfloat16.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding processes; by default one a processor.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Insist on a training that was begun in RUN.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew, and replace what is in RUN.")
    ] = False,
) -> None:
    """Make a classifier of a folder of photos; the same command goes on where it was stopped."""
    own = {
        "head": {"pool": pool, "l2": l2, "features": features},
        "finetune": {"unfreeze_from": unfreeze_from},
        "scratch": {},
    }
    steps = {
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "augment": augment,
        "patience": patience,
        "tensorboard": tensorboard,
        "mixed_precision": mixed_precision or None,
    }
    options = _options_of(mode.value, own, steps)
    if mode is Mode.scratch and weights is not None:
        raise UsageError("--weights", "--mode scratch has none", "Leave it out, or use finetune.")
    console.load_tensorflow()
    from tf_alexnet.training import read_folders, train_head, train_network

    if mode is not Mode.scratch:
        read_folders(data, val_split, seed, duplicates=False)  # before a download that takes long
        options["weights"] = console.find_weights(weights or "imagenet")
    if mode is not Mode.head:
        options["mode"] = mode.value
    with _progress() as progress:
        report = (train_head if mode is Mode.head else train_network)(
            data,
            run,
            architecture=architecture,
            preset=preset,
            layer=layer and layer.value,
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
        console.note(f"{len(report.skipped) - _SHOWN} more could not be read; report.md has 50")
    _show(report, run)
    raise typer.Exit(code)


def _options_of(mode: str, own: Mapping[str, Mapping], steps: Mapping[str, Any]) -> dict[str, Any]:
    """The options given that this mode has; those of other modes are refused."""
    known = {**own[mode], **(steps if mode != "head" else {})}
    given = {k: v for x in (*own.values(), steps) for k, v in x.items() if v is not None}
    foreign = [f"--{name.replace('_', '-')}" for name in given if name not in known]
    if foreign:
        raise UsageError(
            f"{' '.join(foreign)} with --mode {mode}",
            "that mode has no such option",
            "Leave it out, or choose another --mode.",
        )
    names = {"batch": "batch_size", "lr": "learning_rate"}
    return {names.get(k, k): v.value if isinstance(v, Enum) else v for k, v in given.items()}


def _show(report: TrainingReport, folder: str) -> None:
    record = report.run.record
    split, metrics = record.split, record.metrics
    classes = ", ".join(record.classes[:8]) + (", ..." if len(record.classes) > 8 else "")
    skipped = f", {split['skipped']} skipped" if split["skipped"] else ""
    rows = [
        ("classes", f"{len(record.classes)}: {classes}"),
        ("photos", f"{split['train']} training, {split['val']} validation{skipped}"),
        ("network", f"{record.architecture}, classifier on {record.layer}, mode {record.mode}"),
    ]
    if "l2" in metrics:
        how = "chosen on the validation photos" if record.settings.get("l2") is None else "given"
        rows.append(("l2", f"{metrics['l2']:.3g}, {how}"))
    if "epoch" in metrics:
        rows.append(("best epoch", f"{metrics['epoch']:g}"))
    parts = (("train_accuracy", "training"), ("val_accuracy", "validation"))
    figures = [f"{title} {metrics[name]:.1%}" for name, title in parts if name in metrics]
    rows.append(("accuracy", ", ".join(figures)))
    before = " (finished before, nothing was done)" if report.finished_before else ""
    rows.append(("written", f"{folder}: {_FILES}{before}"))
    rows.append(("next", f"tf-alexnet predict PHOTOS --model {folder}"))
    for name, value in rows:
        print(f"{name:10}  {one_line(value)}")


@contextlib.contextmanager
def _progress() -> Iterator:
    """What draws a training's progress: a bar on a terminal, elsewhere a line an epoch."""
    if not sys.stderr.isatty():
        yield _line
        return
    from rich import progress as rich
    from rich.console import Console
    from rich.table import Column

    bar = rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(None, table_column=Column(ratio=1)),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        expand=True,
    )
    with bar:
        task = bar.add_task("", total=None, figures="", visible=False)
        stage_now = ""

        def update(stage: str, done: int, total: int | None, figures: Mapping[str, Any]) -> None:
            nonlocal stage_now
            if stage != stage_now:
                bar.reset(task)
                stage_now = stage
            bar.update(
                task, description=stage, completed=done, total=total,
                figures=_figures(figures), visible=True,
            )  # fmt: skip
            if _is_over(stage, figures):
                bar.console.print(f"{stage}: {_figures(figures)}", markup=False, highlight=False)

        yield update


def _line(stage: str, done: int, total: int | None, figures: Mapping[str, Any]) -> None:
    if _is_over(stage, figures):
        print(f"{stage}: {_figures(figures)}", file=sys.stderr, flush=True)


def _is_over(stage: str, figures: Mapping[str, Any]) -> bool:
    """Whether that was the last word of an epoch."""
    return stage.startswith("epoch") and "val_loss" in figures


def _figures(figures: Mapping[str, Any]) -> str:
    shown = []
    for name, value in figures.items():
        if name in ("train_loss", "train_accuracy", "iterations"):
            continue
        text = f"{value:.1%}" if "accuracy" in name else f"{value:.3g}"
        shown.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(shown)
