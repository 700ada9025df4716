"""`tf-alexnet export`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from tf_alexnet.cli import console
from tf_alexnet.cli.options import Architecture, LabelFile, MeanImage, Preset, Quiet


class TargetName(str, Enum):
    """Formats of model files."""

    savedmodel = "savedmodel"
    litert = "litert"
    onnx = "onnx"
    openvino = "openvino"
    keras = "keras"
    caffe = "caffe"


class VariantName(str, Enum):
    """Types of weights and activations."""

    float32 = "float32"
    float16 = "float16"
    dynamic = "dynamic"
    int8 = "int8"


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|WEIGHTS",
            help="Output of `train`, weight file, name in the catalogue, or random:SEED.",
        ),
    ],
    to: Annotated[TargetName, typer.Option("--to", help="Target format.")],
    output: Annotated[
        str, typer.Option("--output", "--out", "-o", metavar="OUT", help="Folder to create.")
    ],
    variant: Annotated[
        VariantName,
        typer.Option(help="LiteRT: type of the weights; int8 quantizes activations too."),
    ] = VariantName.float32,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="For int8: representative photos."),
    ] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option(help="Photos or folders to verify with (default: the examples)."),
    ] = None,
    architecture: Architecture = None,
    preset: Preset = None,
    mean_image: MeanImage = None,
    labels: LabelFile = None,
    verify_only: Annotated[
        bool, typer.Option("--verify-only", help="Verify the export in OUT; write nothing.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Export a model for other programs, and verify it in its own runtime."""
    from tf_alexnet.demo import example_photos
    from tf_alexnet.export import check_call
    from tf_alexnet.images import find_images
    from tf_alexnet.labels import read_labels

    check_call(to.value, output, variant.value, calibrate, verify_only)
    run = console.open_run(None, model)
    console.check_names(None if run else model, architecture, preset, mean_image)
    names = read_labels(labels) if labels else None
    chosen = find_images(photos or [example_photos()])
    if calibrate:
        find_images(calibrate)
    source = run or console.find_weights(model)
    from tf_alexnet.export import export_model
    from tf_alexnet.export.card import verification_rows
    from tf_alexnet.export.verification import reference_engine

    writes_with_it = to in (TargetName.savedmodel, TargetName.keras)
    if writes_with_it or reference_engine(to.value) == "tensorflow":
        console.load_tensorflow()

    found = export_model(
        source,
        to.value,
        output,
        photos=chosen,
        variant=variant.value,
        calibrate=calibrate,
        architecture=architecture,
        preset=preset,
        mean_image=mean_image,
        labels=names,
        verify_only=verify_only,
    )
    print(f"{found.file}: {'verified again' if verify_only else 'written and verified'}")
    rows = verification_rows(found.verification, variant.value)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name.ljust(width)}  {value}")
