"""`tf-alexnet summary`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tf_alexnet.cli import console
from tf_alexnet.cli.options import Architecture
from tf_alexnet.errors import UsageError


def summary(
    network: Annotated[
        str | None,
        typer.Argument(
            metavar="NETWORK",
            help="Network (default: bvlc_alexnet), name in the catalogue, weight file, prototxt, "
            "or RUN.",
        ),
    ] = None,
    architecture: Architecture = None,
    input_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="PIXELS", help="Input size in pixels (default: the network's own)."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also save a drawing (.svg), or the table (.md, .txt)."),
    ] = None,
) -> None:
    """Show a network's layers: output sizes, parameters, multiply-adds, receptive fields."""
    from tf_alexnet.visualize.architecture import (
        architecture_record,
        architecture_text,
        check_architecture,
        save_architecture,
    )
    from tf_alexnet.weights.resolve import resized, resolve_network

    if plot:
        check_architecture(plot)
    if network and (run := console.open_run(None, network)):
        if architecture is not None:
            found = f"the RUN records its own, {run.record.architecture}"
            raise UsageError(f"--architecture with {network}", found, "Leave it out.")
        table = resized(run.table, input_size, network)
    else:
        table = resolve_network(network, architecture, input_size)
    if plot:
        save_architecture(table, plot)
    print(json.dumps(architecture_record(table), indent=1) if as_json else architecture_text(table))
    if plot:
        console.note(f"wrote {plot}")
