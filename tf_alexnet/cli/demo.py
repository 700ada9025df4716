"""`tf-alexnet demo`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from tf_alexnet.cli import console

if TYPE_CHECKING:
    from tf_alexnet.demo import Demo


def demo(
    photos: Annotated[
        list[str] | None,
        typer.Argument(metavar="PHOTOS", help="Photos or folders (default: the examples)."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", help="Default: the best available weights."),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "--out", "-o", help="Contact sheet to write.")
    ] = "demo-contact-sheet.png",
) -> None:
    """Run the main job on a few photos: classes, features, neighbours, a contact sheet."""
    from tf_alexnet.engines import choose_engine
    from tf_alexnet.images import find_images
    from tf_alexnet.visualize.sheets import check_picture

    check_picture(output)
    console.check_names(weights)
    paths = find_images(photos) if photos else None
    if weights:
        console.find_weights(weights)
    if choose_engine() == "tensorflow":
        console.load_tensorflow()
    from tf_alexnet.demo import EMBEDDED, SMALL, example_photos, run_demo

    shown = run_demo(paths or [example_photos()], output, weights, console.find_weights)
    embedded = shown.layer == "pool5"
    if shown.missing:
        used = "the embedded ImageNet-trained convolutions, without classes"
        console.note(
            f"{shown.missing}; `tf-alexnet weights fetch imagenet` downloads BVLC's weights "
            f"(244 MB). Until then: {used if embedded else 'Deep Compression (8.9 MB)'}"
        )
    if shown.predictions is None and not embedded:
        console.note("these are not trained weights with classes: features only")
    print(f"weights: {os.path.basename(shown.extractor.weights_source)}", end="")
    print(f" ({shown.extractor.trained_as or 'unknown'}), preset {shown.extractor.preset}", end="")
    print(f", engine {shown.extractor.engine}\n")
    for i in range(len(shown.paths)):
        _show(shown, i)
    print(f"contact sheet: {shown.sheet}")
    chosen = weights or (EMBEDDED if embedded else SMALL if shown.missing else "imagenet")
    print(f"a page to try it on: tf-alexnet serve {chosen}")
    raise typer.Exit(console.report_failures(shown.failures))


def _show(shown: Demo, i: int) -> None:
    print(shown.paths[i])
    for p in shown.predictions[i] if shown.predictions else ():
        print(f"  {p.probability:.4f}  {p.synset}  {p.label}")
    row = shown.features[i]
    print(
        f"  {shown.layer}: {row.size} values, {(row > 0).mean():.0%} above zero, "
        f"largest {row.max():.2f}"
    )
    others = (f"{os.path.basename(path)} {score:.2f}" for path, score in shown.neighbours[i])
    print(f"  nearest: {', '.join(others) or 'no other photo'}\n")
