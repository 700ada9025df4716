"""`tf-alexnet summary`."""

from __future__ import annotations

from typing import Annotated

import typer

from tf_alexnet.architectures import architecture_named
from tf_alexnet.cli import console


def summary(
    architecture: Annotated[
        str, typer.Option("--architecture", "-a", help="Which network.")
    ] = "bvlc_alexnet",
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw the network too: .svg, or the table as .md, .txt."),
    ] = None,
) -> None:
    """Show a network's layer table."""
    from tf_alexnet.visualize.architecture import architecture_text, save_architecture

    table = architecture_named(architecture)
    if plot:
        save_architecture(table, plot)
    print(architecture_text(table))
    if plot:
        console.note(f"wrote {plot}")
