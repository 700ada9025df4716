"""`tf-alexnet weights`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tf_alexnet.cli import console
from tf_alexnet.cli.commands import Commands
from tf_alexnet.errors import WeightsError, one_line

if TYPE_CHECKING:
    from tf_alexnet.weights import Inspection, KnownWeights, Source

app = Commands(help="List, download, inspect, convert and verify weight files.")
WeightFile = Annotated[
    str, typer.Argument(help="Weight file of any format, or name in the catalogue.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the catalogue, and which of its weights are on this machine."""
    from tf_alexnet.weights import catalog, local_file

    places = {record.name: str(local_file(record) or "") for record in catalog()}
    if as_json:
        found = [{**asdict(x), "path": places[x.name] or None} for x in catalog()]
        print(json.dumps(found, indent=1))
        return
    titles = ("name", "network", "bytes", "checksum", "licence", "top-1", "top-5")
    rows = [(*titles, "on this machine")]
    for x in catalog():
        best = x.published[0] if x.published else None
        accuracy = (f"{best.top1:.1f}", f"{best.top5:.1f}") if best else ("-", "-")
        size = f"{x.sources[0].size:,}" if x.sources[0].size else "-"
        place = one_line(places[x.name] or "-")
        checksum = (x.sources[0].checksum or "unverified").partition(":")[0]
        rows.append((x.name, x.architecture, size, checksum, x.licence, *accuracy, place))
    print(_table(rows, right=(2, 5, 6)))
    console.note("published accuracies in percent, ILSVRC-2012 validation, centre crop")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name in the catalogue, such as bvlc_alexnet.")],
    to: Annotated[str | None, typer.Option(help="Folder (default: the cache).")] = None,
) -> None:
    """Download weights and verify their checksum."""
    from tf_alexnet.weights import fetch_weights, known_weights

    record = known_weights(name)
    with console.progress("bytes") as progress:
        path = fetch_weights(name, to, progress)
    source = next(x for x in record.sources if x.file_name == path.name)
    print(one_line(path))
    use = name if to is None else path
    print(_table(list(_about(record, source, path.stat().st_size, str(use))), indent="  "))


def _about(record: KnownWeights, source: Source, size: int, use: str):
    """Facts about a fetched file, and what to run next."""
    yield "size", f"{size:,} bytes"
    unverified = "unverified: none is published"
    yield "checksum", f"{source.checksum} (verified)" if source.checksum else unverified
    classes = f"{record.classes} classes" if record.classes else "no dense layers"
    yield "network", f"{record.architecture}, preset {record.preset}, {classes}"
    yield "licence", record.licence
    yield "origin", source.urls[0] if source.urls else "part of this package"
    for x in record.published:
        said = f"top-1 {x.top1} %, top-5 {x.top5} %, published ({x.pipeline}; {x.source})"
        yield "accuracy", said
    if record.note:
        yield "note", record.note
    photos = f"PHOTOS --weights {one_line(use)}"
    if record.classes:
        yield "next", f"tf-alexnet predict {photos}"
    else:
        yield "next", f"tf-alexnet extract {photos} --layer pool5 --output features.h5"


@app.command()
def inspect(file: WeightFile, as_json: Json = False) -> None:
    """Show the layers of a weight file, the network it belongs to, and warnings."""
    from tf_alexnet.weights import inspect_weights

    found = inspect_weights(file)
    if as_json:
        plain = {**asdict(found), "checks": [check._asdict() for check in found.checks]}
        print(json.dumps(plain, indent=1))
        return
    print(one_line(found.path))
    print(_table(list(_identity(found)), indent="  "))
    rows = [("layer", "kernel", "bias", "parameters")]
    for x in found.layers:
        kernel = "x".join(map(str, x.kernel))
        rows.append((x.name, kernel, "x".join(map(str, x.bias)), f"{x.parameters:,}"))
    rows.append(("total", "", "", f"{found.parameters:,}"))
    print(_table([tuple(map(one_line, row)) for row in rows], indent="  ", right=(3,)))
    for warning in found.warnings:
        console.note(warning)


def _identity(found: Inspection):
    """The rows above the table of layers."""
    known = found.identity
    yield "format", f"{found.format}, {found.size:,} bytes, read as {found.dtype}"
    yield "sha256", found.sha256
    yield "arrays", found.digest
    how = f"by {known.how}: {known.compared}" if known.compared else f"by {known.how}"
    limits = ", convolutions only" if known.convolutions_only else ""
    yield "is", f"{known.name or 'no known training'}{limits} ({how})"
    if known.distance is not None:
        yield "biases", f"at most {known.distance:.2g} from those of {known.nearest}"
    fitting = " or ".join(known.candidates) or "not AlexNet"
    yield "architecture", known.architecture or f"unknown: {fitting}"
    yield "preset", known.preset or "unknown"
    if found.classes:
        yield "classes", str(found.classes)
    for key, value in sorted(found.metadata.items()):
        yield f"recorded {one_line(key)}", one_line(value)


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Weight file, or name in the catalogue.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="File to write; its suffix selects the format.")
    ],
    form: Annotated[
        str | None, typer.Option(help="list or dict (.npy); keras or caffe (.h5).")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Name or prototxt of the network, if IN does not tell.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Layer to use as fc8, if there are several candidates.")
    ] = None,
    lrn: Annotated[
        str | None,
        typer.Option(help="Response normalisation in .onnx: operator, or ops (faster)."),
    ] = None,
) -> None:
    """Write the same weights in another format, bit for bit."""
    from tf_alexnet.weights import convert_weights
    from tf_alexnet.weights.identify import FOUND_ANEW

    source = console.find_weights(source)
    written = convert_weights(source, target, form, architecture, classifier, lrn=lrn)
    print(f"{one_line(target)}: {len(written.layers)} layers, read back equal, {written.digest}")
    recorded = {"architecture": written.architecture, **written.metadata}
    rows = [(k, v) for k, v in recorded.items() if v and k not in FOUND_ANEW]
    print(_table([tuple(map(one_line, row)) for row in rows], indent="  "))
    if written.set_aside:
        console.note(f"not written, as AlexNet has no such layers: {', '.join(written.set_aside)}")


@app.command()
def verify(
    file: WeightFile,
    photos: Annotated[
        str | None, typer.Option(help="Folder with the photos whose outputs are published.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a weight file: checksum, shapes, values, fingerprint, and published outputs."""
    from tf_alexnet.weights import verify_weights

    if photos is not None:
        console.load_tensorflow()
    found = verify_weights(file, photos)
    if as_json:
        print(json.dumps([check._asdict() for check in found.checks], indent=1))
    else:
        words = {True: "ok", False: "WRONG", None: "-"}
        print(_table([(words[x.passed], x.name, one_line(x.found)) for x in found.checks]))
    if found.wrong:
        raise WeightsError(
            file, f"wrong: {', '.join(found.wrong)}", "Get the file again from its publisher."
        )


def _table(rows: list[tuple[str, ...]], indent: str = "", right: tuple[int, ...] = ()) -> str:
    """Format rows as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
