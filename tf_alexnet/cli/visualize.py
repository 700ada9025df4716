"""`tf-alexnet visualize`."""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from tf_alexnet.architectures import architecture_named
from tf_alexnet.cli import console
from tf_alexnet.cli.commands import Commands
from tf_alexnet.cli.options import (
    Architecture,
    LabelFile,
    MeanImage,
    Model,
    OwnWeights,
    Preset,
    Quiet,
)
from tf_alexnet.errors import counted, one_line

if TYPE_CHECKING:
    from tf_alexnet.labels import Label
    from tf_alexnet.training import Run
    from tf_alexnet.visualize import Explainer

app = Commands(help="Visualize a network: filters, activations, saliency, maps of photos.")


class Method(str, Enum):
    """Saliency methods."""

    gradcam = "gradcam"
    gradient = "gradient"
    smoothgrad = "smoothgrad"
    integrated = "integrated"
    occlusion = "occlusion"
    guided = "guided"


class Baseline(str, Enum):
    """Where integrated gradients start."""

    mean = "mean"
    black = "black"
    blur = "blur"


class On(str, Enum):
    """Picture that a map is drawn on."""

    photo = "photo"
    crop = "crop"


class Projection(str, Enum):
    """Projections to two dimensions."""

    pca = "pca"
    tsne = "tsne"
    umap = "umap"


class Distance(str, Enum):
    """Distances between rows."""

    correlation = "correlation"
    euclidean = "euclidean"
    cosine = "cosine"


Photo = Annotated[str, typer.Argument(metavar="PHOTO", help="A photo.")]
FeatureFile = Annotated[str, typer.Argument(metavar="FEATURES", help="Output of `extract`.")]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "--out", "-o", metavar="FILE", help="Picture to write: .png, .svg, .pdf, .jpg."
    ),
]
OneLayer = Annotated[str | None, typer.Option(help="Layer of the file (default: its last one).")]
ClassName = Annotated[
    str | None,
    typer.Option(
        "--class", metavar="N|NAME", help="Class to explain (default: the most probable one)."
    ),
]
Csv = Annotated[str | None, typer.Option(metavar="FILE", help="Also save the values as CSV.")]


@app.command()
def filters(
    weights: OwnWeights = None,
    model: Model = None,
    architecture: Architecture = None,
    layer: Annotated[str, typer.Option(help="Convolutional layer.")] = "conv1",
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Draw the filters of a convolutional layer."""
    output = _target(output, f"filters-{layer}.png")
    source, run = _network(weights, model, architecture)
    from tf_alexnet.visualize.figures import save_figure
    from tf_alexnet.visualize.filters import check_convolution, filters_figure
    from tf_alexnet.weights.resolve import fitted_layers, resolve_weights

    arrays, table = resolve_weights(source, architecture)
    check_convolution(table, layer)
    kernel = fitted_layers(arrays, table.until(layer), table, None)[layer].kernel
    name = model if run else os.path.basename(arrays.source)
    save_figure(filters_figure(kernel, table, layer, source=name), output)
    print(f"{one_line(output)}: {kernel.shape[-1]} filters of {layer}, {one_line(name)}")


@app.command()
def activations(
    photo: Photo,
    weights: OwnWeights = None,
    model: Model = None,
    architecture: Architecture = None,
    preset: Preset = None,
    mean_image: MeanImage = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Layer to draw; may be repeated (default: conv5).")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Draw all layers on one page.")] = False,
    labels: LabelFile = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Draw the activations of layers for a photo, the strongest channels first."""
    wanted = ["all"] if every else layer or ["conv5"]
    output = _target(output, f"{_stem(photo)}-{'-'.join(wanted)}.png")
    console.check_names(weights, architecture, preset, mean_image, wanted)
    from tf_alexnet.images import load_image

    image = load_image(photo)
    source, run = _network(weights, model, architecture)
    _load_engine()
    from tf_alexnet.extraction import FeatureExtractor
    from tf_alexnet.visualize.activations import activations_figure, photo_blobs
    from tf_alexnet.visualize.figures import save_figure

    extractor = FeatureExtractor(
        source, wanted, architecture=architecture, preset=preset, mean_image=mean_image
    )
    seen = photo_blobs(extractor, image, _names(labels, run))
    save_figure(activations_figure(*seen[:2], name=_base(photo), classes=seen[2]), output)
    for name, blob in seen[0].items():
        shape = "x".join(map(str, blob.shape))
        print(f"{name:7}  {shape:11}  {(blob > 0).mean():4.0%} above 0, largest {blob.max():.4g}")
    console.note(f"wrote {output}")


@app.command()
def architecture(
    name: Annotated[
        str, typer.Option("--architecture", "-a", help="Network to draw.")
    ] = "bvlc_alexnet",
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "--out", "-o", metavar="FILE", help="Drawing (.svg), or table (.md, .txt)."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Draw the network: towers, shapes, kernels and receptive fields."""
    from tf_alexnet.visualize.architecture import (
        architecture_text,
        check_architecture,
        save_architecture,
    )
    from tf_alexnet.visualize.sheets import check_foreign

    table = architecture_named(name)
    if output is None:
        print(architecture_text(table))
        return
    check_architecture(output)
    check_foreign(output)
    save_architecture(table, output)
    print(f"{one_line(output)}: {table.name}, {table.parameters:,} parameters")


@app.command()
def saliency(
    photo: Photo,
    weights: OwnWeights = None,
    model: Model = None,
    architecture: Architecture = None,
    preset: Preset = None,
    mean_image: MeanImage = None,
    method: Annotated[Method, typer.Option(help="Saliency method.")] = Method.gradcam,
    class_: ClassName = None,
    target: Annotated[
        On, typer.Option(help="Draw on the whole photo, or on the crop that the network sees.")
    ] = On.photo,
    layer: Annotated[str, typer.Option(help="Layer of Grad-CAM.")] = "conv5",
    baseline: Annotated[
        Baseline, typer.Option(help="Where integrated gradients start.")
    ] = Baseline.mean,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of SmoothGrad.")] = 0,
    labels: LabelFile = None,
    npy: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also save the values as .npy.")
    ] = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Show which pixels the score of a class depends on."""
    output = _target(output, f"{_stem(photo)}-{method.value}.png", npy)
    explainer, run, image = _explainer(photo, weights, model, architecture, preset, mean_image)
    from tf_alexnet.visualize.figures import save_figure
    from tf_alexnet.visualize.maps import write_matrix
    from tf_alexnet.visualize.saliency import GAP_LIMIT, saliency_figure, saliency_map

    names = explainer.labels(_names(labels, run))
    with console.progress("training") as progress:
        found = saliency_map(
            explainer,
            image,
            method.value,
            _class(class_, names),
            layer=layer,
            baseline=baseline.value,
            seed=seed,
            target=target.value,
            progress=progress,
        )
    drawn = image if target is On.photo else explainer.crop(image)
    what = explainer.title(found.class_index, names)
    save_figure(saliency_figure(drawn, found, name=_base(photo), class_title=what), output)
    if npy:
        write_matrix(npy, found.values)
    print(f"{one_line(photo)}: {method.value} of {one_line(what)}, score {found.score:.4g}")
    if found.constant:
        console.note("the map is constant")
    if found.completeness_gap is not None:
        print(f"completeness gap: {found.completeness_gap:.2%}")
        if found.completeness_gap > GAP_LIMIT:
            console.note(f"above {GAP_LIMIT:.0%}: the attributions don't add up to the score")
    for path in filter(None, (output, npy)):
        console.note(f"wrote {path}")


@app.command()
def sanity(
    photo: Photo,
    weights: OwnWeights = None,
    model: Model = None,
    architecture: Architecture = None,
    preset: Preset = None,
    mean_image: MeanImage = None,
    method: Annotated[
        list[Method] | None, typer.Option(help="Method; may be repeated (default: all).")
    ] = None,
    class_: ClassName = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the weights.")] = 0,
    labels: LabelFile = None,
    csv: Csv = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Test saliency: do the maps change when the network's layers are randomised?"""
    output = _target(output, f"{_stem(photo)}-sanity.png", csv)
    explainer, run, image = _explainer(photo, weights, model, architecture, preset, mean_image)
    from tf_alexnet.visualize.figures import save_figure
    from tf_alexnet.visualize.sanity import sanity_check, sanity_figure

    names = explainer.labels(_names(labels, run))
    wanted = [x.value for x in method or Method]
    with console.progress("training") as progress:
        found = sanity_check(
            explainer, image, wanted, _class(class_, names), seed=seed, progress=progress
        )
    save_figure(sanity_figure(explainer.crop(image), found, name=_base(photo)), output)
    if csv:
        found.write_csv(csv)
    print(f"{one_line(photo)}: {one_line(explainer.title(found.class_index, names))}")
    print("rank correlation with the map of the trained network, layers randomised down to")
    print("  ".join(["layer  ", *(f"{name:>10}" for name in wanted)]))
    columns = zip(*(found.correlations[name] for name in wanted), strict=True)
    for stage, row in zip(found.stages, columns, strict=True):
        values = (f"{x:10.3f}" if x == x else f"{'constant':>10}" for x in row)
        print("  ".join([f"{stage:7}", *values]))
    for path in filter(None, (output, csv)):
        console.note(f"wrote {path}")


@app.command()
def embedding(
    features: FeatureFile,
    layer: OneLayer = None,
    projection: Annotated[
        Projection, typer.Option(help="Projection; tsne needs scikit-learn, umap umap-learn.")
    ] = Projection.pca,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of tsne and umap.")] = 0,
    csv: Csv = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Draw a map of photos that places similar ones together."""
    from tf_alexnet.visualize import maps
    from tf_alexnet.visualize.features_file import read_features
    from tf_alexnet.visualize.figures import save_figure

    output = _target(output, f"{_stem(features)}-map.png", csv)
    maps.check_projection(projection.value)
    found = read_features(features, layer)
    chosen, paths, rows = _rows(found)
    places, titles = maps.project(rows, projection.value, seed)
    with console.progress("training") as progress:
        title = f"{chosen} of {len(paths):,} photos, {_base(features)}"
        drawn = maps.embedding_figure(places, paths, titles, title=title, progress=progress)
    save_figure(drawn, output)
    if csv:
        maps.write_matrix(csv, places, paths, ["x", "y"])
    print(f"{one_line(output)}: {len(paths):,} photos by {chosen}; {', '.join(titles)}")


@app.command()
def neighbours(
    features: FeatureFile,
    query: Annotated[
        list[str] | None,
        typer.Option(help="Photo; may be repeated (default: all photos of the file)."),
    ] = None,
    count: Annotated[int, typer.Option("-k", min=1, help="Neighbours of each photo.")] = 8,
    layer: OneLayer = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", help="Weights of the file, for queries not in it."),
    ] = None,
    mean_image: MeanImage = None,
    csv: Csv = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Find the most similar photos by their features: a table and a contact sheet."""
    from tf_alexnet.visualize import neighbours as near
    from tf_alexnet.visualize.features_file import read_features
    from tf_alexnet.visualize.sheets import check_foreign, check_picture

    output = output or f"{_stem(features)}-neighbours.png"
    check_picture(output)
    check_foreign(output)
    _check_table(csv)
    found = read_features(features, layer)
    chosen, paths, rows = _rows(found)
    rest = near.outside(query or (), paths)
    if rest:
        source = console.find_weights(weights or "imagenet")
        _load_engine()
        asked = near.rows_of(rest, found.attributes, chosen, source, mean_image)
    else:
        asked = {}
    results = near.find(paths, rows, query, asked, count)
    for result in results:
        print(one_line(result.query))
        for path, similarity in result.neighbours:
            print(f"  {similarity:6.3f}  {one_line(path)}")
    if csv:
        near.write_csv(results, csv)
    title = f"Nearest by cosine similarity of {chosen}, {_base(features)}"
    for path in [*near.save_sheets(results, output, title), *filter(None, [csv])]:
        console.note(f"wrote {path}")


@app.command()
def rsm(
    features: FeatureFile,
    layer: Annotated[
        list[str] | None, typer.Option(help="Layer; may be repeated (default: all of the file).")
    ] = None,
    distance: Annotated[
        Distance, typer.Option(help="Distance between two photos.")
    ] = Distance.correlation,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Write matrices of distances between all photos, per layer: a plot, .npy and .csv."""
    from tf_alexnet.visualize.features_file import read_features
    from tf_alexnet.visualize.rsm import save_rsm

    output = _target(output, f"{_stem(features)}-rsm.png")
    found = read_features(features, layer)
    saved = save_rsm(found, distance.value, output, _base(features))
    for title, values in saved.between.items():
        print(title)
        print("  ".join(["        ", *(f"{name:>8}" for name in found.layers)]))
        for name, row in zip(found.layers, values, strict=True):
            print("  ".join([f"{name:8}", *(f"{x:8.3f}" for x in row)]))
    for path in saved.files:
        print(one_line(path))


def _target(output: str | None, default: str, table: str | None = None) -> str:
    """The picture to write, checked before anything is loaded."""
    from tf_alexnet.visualize.figures import check_figure
    from tf_alexnet.visualize.sheets import check_foreign

    output = output or default
    check_figure(output)
    check_foreign(output)
    _check_table(table)
    return output


def _check_table(path: str | None) -> None:
    from tf_alexnet.files import check_folder

    if path:
        check_folder(path, ".npy" if path.endswith(".npy") else ".csv")


def _network(weights: str | None, model: str | None, architecture: str | None) -> tuple:
    """The weights, and the RUN if they are from one."""
    console.check_model(model, weights, architecture)
    console.check_names(weights, architecture)
    run = console.open_run(model)
    return (run.arrays if run else console.find_weights(weights or "imagenet")), run


def _load_engine() -> None:
    """Import TensorFlow, if features are computed with it."""
    from tf_alexnet.engines import choose_engine

    if choose_engine(photos=1) == "tensorflow":
        console.load_tensorflow()


def _explainer(
    photo: str,
    weights: str | None,
    model: str | None,
    architecture: str | None,
    preset: str | None,
    mean_image: str | None,
) -> tuple[Explainer, Run | None, object]:
    """An `Explainer` of the network, the RUN if there is one, and the photo."""
    console.check_names(weights, architecture, preset, mean_image)
    from tf_alexnet.images import load_image

    image = load_image(photo)
    source, run = _network(weights, model, architecture)
    console.load_tensorflow()
    from tf_alexnet.visualize import Explainer

    explainer = Explainer(source, architecture=architecture, preset=preset, mean_image=mean_image)
    if explainer.untrained:
        console.note(f"{explainer.weights_source}: a control, its maps are meaningless")
    return explainer, run, image


def _names(labels: str | None, run: Run | None) -> list[str] | tuple[Label, ...] | None:
    from tf_alexnet.labels import read_labels

    return read_labels(labels) if labels else run.record.classes if run else None


def _class(name: str | None, labels: tuple[Label, ...]) -> int | None:
    from tf_alexnet.labels import find_class

    return None if name is None else find_class(name, labels)


def _rows(found) -> tuple:
    """The last layer of a file, and its rows without NaN."""
    layer = list(found.layers)[-1]
    paths, rows, missing = found.complete(layer)
    if missing:
        console.note(f"{counted(missing, 'row holds', 'rows hold')} NaN, left out")
    return layer, paths, rows


def _base(path: str) -> str:
    return os.path.basename(path.rstrip("/"))


def _stem(path: str) -> str:
    return os.path.splitext(_base(path))[0]
