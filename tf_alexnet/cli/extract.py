"""`tf-alexnet extract`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from tf_alexnet.cli import console
from tf_alexnet.cli.options import Architecture, MeanImage, Photos, Preset, Weights


class RowType(str, Enum):
    """Type of the numbers in the file."""

    float32 = "float32"
    float16 = "float16"


def extract(
    photos: Photos,
    output: Annotated[str, typer.Option("--output", "-o", help="The .h5 or .npz file to write.")],
    layer: Annotated[
        list[str], typer.Option("--layer", "-l", help="A blob, or <name>_preact; may be repeated.")
    ] = ["fc7"],  # noqa: B006 (typer copies it)
    weights: Weights = "imagenet",
    architecture: Architecture = None,
    preset: Preset = None,
    mean_image: MeanImage = None,
    batch: Annotated[int, typer.Option(min=1, help="Photos in one pass.")] = 64,
    dtype: Annotated[RowType, typer.Option(help="Type of the rows.")] = RowType.float32,
) -> None:
    """Write features of photos, with their paths, into one file."""
    console.load_tensorflow()
    from tf_alexnet.extraction import check_output, extract_features

    check_output(output)  # before a download that may take minutes
    file = console.find_weights(weights)
    with console.progress_bar("photos") as progress:
        report = extract_features(
            photos,
            output,
            weights=file,
            layers=layer,
            architecture=architecture,
            preset=preset,
            mean_image=mean_image,
            batch_size=batch,
            dtype=dtype.value,
            progress=progress,
        )
    code = console.report_failures(report.errors)
    shapes = ", ".join(f"{name} {shape}" for name, shape in report.shapes.items())
    print(
        f"{report.output}: {report.rows} rows + {len(report.errors)} errors = {report.inputs} "
        f"photos; {shapes} {dtype.value}"
    )
    raise typer.Exit(code)
