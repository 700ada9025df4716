"""`tf-alexnet extract`."""

from __future__ import annotations

import contextlib
import io
import sys
from enum import Enum
from typing import Annotated

import typer

from tf_alexnet.cli import console
from tf_alexnet.cli.options import (
    Architecture,
    Crops,
    Depth,
    DepthName,
    Engine,
    EngineName,
    MeanImage,
    Model,
    OwnWeights,
    Precision,
    PrecisionName,
    Preset,
    Quiet,
)
from tf_alexnet.errors import UsageError, counted, one_line

_SHOWN = 20  # unreadable photos that are listed; all are in the output


class RowType(str, Enum):
    """Type of the numbers in the file."""

    float32 = "float32"
    float16 = "float16"


class Pool(str, Enum):
    """Pooling of convolutional blobs."""

    none = "none"
    avg = "avg"
    max = "max"


class Repeats(str, Enum):
    """Treatment of lines that repeat a photo."""

    drop = "drop"
    keep = "keep"


class Missing(str, Enum):
    """Treatment of photos that can't be read."""

    drop = "drop"
    nan = "nan"


def extract(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS",
            help="Photos, folders, patterns, lists (.txt, .csv), - for a list on stdin, URLs.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "--out",
            "-o",
            help="A .h5, .npz, .npy, .mat or .parquet file; or a folder/ of .h5 shards "
            "(folder.parquet/: .parquet shards). Missing folders are created.",
        ),
    ],
    layer: Annotated[
        list[str],
        typer.Option(
            "--layer",
            "--layers",
            "-l",
            help="Blobs, such as fc7,pool5; <name>_preact for values before the ReLU; or all. "
            "May be repeated.",
        ),
    ] = ["fc7"],  # noqa: B006 (typer copies it)
    weights: OwnWeights = None,
    model: Model = None,
    architecture: Architecture = None,
    preset: Preset = None,
    mean_image: MeanImage = None,
    batch: Annotated[
        str, typer.Option("--batch", "--batch-size", metavar="N|auto", help="Photos per batch.")
    ] = "auto",
    dtype: Annotated[RowType, typer.Option(help="Type of the stored features.")] = RowType.float32,
    pool: Annotated[
        Pool, typer.Option(help="Pool convolutional blobs to one number per channel.")
    ] = Pool.none,
    shard_size: Annotated[
        int,
        typer.Option(min=1, help="Photos per shard; an interrupted shard is repeated."),
    ] = 4096,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoder processes (default: one per processor).")
    ] = None,
    fast_decode: Annotated[
        bool, typer.Option("--fast-decode", help="Decode large JPEGs at a fraction of their size.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Processor time allowed per photo, in seconds.")
    ] = 10.0,
    depth: Depth = DepthName.auto,
    crops: Annotated[
        Crops, typer.Option(help="Centre crop, or the mean of the rows of ten crops.")
    ] = Crops.center,
    repeats: Annotated[
        Repeats,
        typer.Option(help="drop: one row per photo; keep: one per line of a list, in its order."),
    ] = Repeats.drop,
    missing: Annotated[
        Missing,
        typer.Option(help="drop: no row for unreadable photos; nan: a row of NaN in their place."),
    ] = Missing.drop,
    max_errors: Annotated[
        str | None,
        typer.Option(metavar="N|P%", help="Stop when more photos than this can't be read."),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Retry photos that could not be read.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start over, and replace the output.")
    ] = False,
    add: Annotated[
        bool, typer.Option("--add", help="Add INPUTS to an output that has none of them.")
    ] = False,
    discard_damaged: Annotated[
        bool,
        typer.Option(
            "--discard-damaged",
            help="Drop lost rows of photos that are not in INPUTS.",
        ),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ray|auto|ADDRESS",
            help="Run shards on Ray: a new cluster on this machine, the one running here, or the "
            "one at HOST:PORT.",
        ),
    ] = None,
    cluster_workers: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of workers.")
    ] = None,
    cluster_min_workers: Annotated[
        int, typer.Option(min=1, help="Workers that must be ready before the first photo.")
    ] = 1,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="GPUs per worker; may be a fraction.")
    ] = None,
    engine: Engine = EngineName.auto,
    precision: Precision = PrecisionName.float32,
    quiet: Quiet = False,
) -> None:
    """Extract features of photos to a file; the same command resumes an interrupted one."""
    from tf_alexnet.extraction import check_job
    from tf_alexnet.images import find_images

    job = {
        "layers": layer,
        "batch_size": _batch_size(batch),
        "shard_size": shard_size,
        "repeats": repeats.value,
        "missing": missing.value,
        "max_errors": max_errors,
        "cluster": cluster,
        "cluster_workers": cluster_workers,
        "cluster_min_workers": cluster_min_workers,
        "gpus_per_worker": gpus_per_worker,
    }
    check_job(output, **job)
    console.check_model(model, weights, architecture)
    run = console.open_run(model)
    weights = str(run.weights) if run else weights or "imagenet"
    console.check_names(weights, architecture, preset, mean_image, layer)
    paths = find_images(photos, repeats=True)
    chosen = console.choose_engine(engine.value, len(paths), precision.value)
    # Other machines have other caches: each looks up names itself.
    file = console.find_weights(weights) if cluster in (None, "ray") else weights
    if chosen == "tensorflow":
        console.load_tensorflow()
    from tf_alexnet.extraction import extract_features

    # Ray prints pages about dead workers to stdout; notes have what matters.
    silent = contextlib.redirect_stdout(io.StringIO() if cluster else sys.stdout)
    with console.progress("photos", shard_size) as progress, silent:
        report = extract_features(
            paths,
            output,
            weights=file,
            architecture=architecture,
            preset=preset,
            mean_image=mean_image,
            dtype=dtype.value,
            pool=pool.value,
            workers=workers,
            timeout=timeout,
            depth=depth.value,
            fast_decode=fast_decode,
            crops=crops.value,
            engine=chosen,
            precision=precision.value,
            retry_errors=retry_errors,
            force=force,
            add=add,
            discard_damaged=discard_damaged,
            progress=progress,
            **job,
        )
    if report.absent:
        console.note(
            f"{report.output} keeps {counted(report.absent, 'photo', 'photos')} of earlier runs, "
            "not among these inputs"
        )
    shapes = ", ".join(f"{name} {shape}" for name, shape in report.shapes.items())
    code = console.report_failures([(x.path, x.detail) for x in report.errors[:_SHOWN]])
    if len(report.errors) > _SHOWN:
        console.note(f"{len(report.errors) - _SHOWN} more could not be read; the output names them")
    happened = f"; {report.kept} of them done before" if report.kept else ""
    if report.repeats:
        happened += f"; {counted(report.repeats, 'line repeats', 'lines repeat')} a photo"
    if report.changed:
        one, many = "photo changed and was", "photos changed and were"
        happened += f"; {counted(report.changed, one, many)} done again"
    if report.unreadable:
        happened += f"; {report.unreadable} unreadable now, their rows kept"
    totals = f"{report.rows} rows + {len(report.errors)} errors = {report.inputs} photos"
    if repeats is Repeats.keep or missing is Missing.nan:
        totals = f"{report.rows} rows"
        totals += f", {report.nan} of them NaN," if missing is Missing.nan else ""
        totals += f" in the order of the inputs; {report.inputs} photos, {len(report.errors)} of "
        totals += "them unreadable"
    print(f"{one_line(report.output)}: {totals}; {shapes} {dtype.value}{happened}")
    # With --max-errors, failures up to the limit are not an error.
    raise typer.Exit(0 if max_errors is not None else code)


def _batch_size(given: str) -> int | str:
    if given == "auto" or (given.isascii() and given.isdigit() and int(given) > 0):
        return given if given == "auto" else int(given)
    raise UsageError(f"--batch {given}", "not a batch size", "Use a number of photos, or auto.")
