"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Crops(str, Enum):
    """What is looked at."""

    center = "center"
    ten = "ten"


Photos = Annotated[
    list[str], typer.Argument(help="Photos, folders, or lists (.txt, .csv) of photos.")
]
Weights = Annotated[
    str, typer.Option("--weights", "-w", help="A weight file or a name of the catalogue.")
]
OwnWeights = Annotated[
    str | None,
    typer.Option("--weights", "-w", help="A weight file or a name; by default BVLC's weights."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="RUN", help="What `tf-alexnet train` made, instead."),
]
Architecture = Annotated[
    str | None,
    typer.Option(help="bvlc_alexnet, caffenet, torchvision or compact, if the file can't tell."),
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
