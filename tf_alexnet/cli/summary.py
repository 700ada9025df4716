"""`tf-alexnet summary`."""

from __future__ import annotations

from typing import Annotated

import typer

from tf_alexnet.architectures import LayerRow, architecture_named


def summary(
    architecture: Annotated[
        str, typer.Option("--architecture", "-a", help="Which network.")
    ] = "bvlc_alexnet",
) -> None:
    """Show a network's layer table."""
    table = architecture_named(architecture)
    rows = list(table.rows())
    print(f"{table.name}: {table.title}\n")
    heads = ("layer", "type", "kernel", "stride", "pad", "groups", "output")
    print(_line(heads, ("parameters", "multiply-adds", "field")))
    for row in rows:
        print(_cells(row))
    totals = (f"{sum(r.parameters for r in rows):,}", f"{sum(r.multiply_adds for r in rows):,}", "")
    print(_line(("total", *[""] * 6), totals))


def _cells(row: LayerRow) -> str:
    numbers = ["" if n is None else str(n) for n in (row.kernel, row.stride, row.pad, row.groups)]
    shape = "x".join(map(str, row.output_shape))
    counts = [f"{n:,}" if n else "" for n in (row.parameters, row.multiply_adds)]
    return _line((row.name, row.kind, *numbers, shape), (*counts, str(row.receptive_field)))


def _line(left: tuple[str, ...], right: tuple[str, ...]) -> str:
    widths = (7, 8, 6, 6, 4, 6, 11)
    cells = [
        cell.rjust(w) if 2 <= i < 6 else cell.ljust(w)
        for i, (cell, w) in enumerate(zip(left, widths, strict=True))
    ]
    cells += [cell.rjust(w) for cell, w in zip(right, (11, 14, 6), strict=True)]
    return "  ".join(cells).rstrip()
