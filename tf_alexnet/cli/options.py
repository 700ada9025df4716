"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from tf_alexnet.cli import console


class Crops(str, Enum):
    """Crops of each photo."""

    center = "center"
    ten = "ten"


Photos = Annotated[
    list[str],
    typer.Argument(metavar="PHOTOS", help="Photos, folders, or lists (.txt, .csv) of photos."),
]
OwnWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        help="Weight file, name in the catalogue (default: imagenet), or random:SEED for an "
        "untrained control.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="RUN", help="Use this RUN instead of --weights."),
]


LabelFile = Annotated[
    str | None,
    typer.Option(
        "--labels", metavar="FILE", help="Class names: one per line, JSON, or .csv (index, name)."
    ),
]


class DepthName(str, Enum):
    """Bits used by 16-bit grey images."""

    auto = "auto"
    sixteen = "16"
    twelve = "12"
    eight = "8"


class EngineName(str, Enum):
    """Inference engines."""

    auto = "auto"
    tensorflow = "tensorflow"
    openvino = "openvino"


class PrecisionName(str, Enum):
    """Precision of multiplications."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Depth = Annotated[DepthName, typer.Option(help="Bits used by 16-bit grey images.")]
Engine = Annotated[
    EngineName,
    typer.Option(help="Inference engine; auto uses OpenVINO if it is installed and faster."),
]
Precision = Annotated[
    PrecisionName,
    typer.Option(help="Precision of multiplications; bfloat16 needs OpenVINO, and is fast on AMX."),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=console.be_quiet, help="Don't print notes or progress."),
]
Architecture = Annotated[
    str | None,
    typer.Option(help="bvlc_alexnet, caffenet, torchvision or compact (default: detected)."),
]
Preset = Annotated[
    str | None,
    typer.Option(help="Preprocessing (default: the one the weights were trained with)."),
]
MeanImage = Annotated[
    str | None,
    typer.Option(
        "--mean-image",
        "--mean",
        metavar="FILE|B,G,R",
        help="Mean to subtract: a mean image (.binaryproto, .npy) or the channel means, "
        "for example 104,117,123.",
    ),
]
