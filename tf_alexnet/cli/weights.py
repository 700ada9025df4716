"""`tf-alexnet weights`."""

from __future__ import annotations

from typing import Annotated

import typer

from tf_alexnet.cli import console

app = typer.Typer(help="Find and download weight files.", no_args_is_help=True)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A name of the catalogue, e.g. bvlc_alexnet.")],
    to: Annotated[str | None, typer.Option(help="Folder; by default the cache.")] = None,
) -> None:
    """Download a weight file; it gets its name only when its checksum is right."""
    from tf_alexnet.weights import fetch_weights, known_weights

    record = known_weights(name)
    with console.progress_bar("bytes") as progress:
        path = fetch_weights(name, to, progress)
    print(f"{path}: {record.name}, {record.checksum or 'no checksum published'}, {record.licence}")


@app.command("list")
def list_() -> None:
    """Show the catalogue."""
    from tf_alexnet.weights import catalog, local_file

    for record in catalog():
        place = local_file(record)
        print(
            f"{record.name:18} {record.architecture:13} {record.licence:17} "
            f"{place or 'not on this machine'}"
        )
