"""The pictures: what they show, and that nothing in them is clipped."""

import itertools
import xml.etree.ElementTree as ElementTree

import h5py
import numpy as np
import pytest
from conftest import EXAMPLE_PHOTOS
from PIL import Image
from scipy.stats import rankdata

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import InputError, LayerError, OutputError, UsageError
from tf_alexnet.testing import synthetic_weights
from tf_alexnet.visualize import Explainer, mosaic, sheets
from tf_alexnet.visualize.activations import activations_figure, ceiling, photo_blobs
from tf_alexnet.visualize.architecture import (
    architecture_markdown,
    architecture_svg,
    architecture_text,
)
from tf_alexnet.visualize.features_file import read_features
from tf_alexnet.visualize.figures import save_figure
from tf_alexnet.visualize.filters import filter_tiles, filters_figure, grid, strongest_pairs
from tf_alexnet.visualize.maps import embedding_figure, project, rsm_figure
from tf_alexnet.visualize.neighbours import find, save_sheets
from tf_alexnet.visualize.saliency import GUIDED_NOTE, saliency_figure, saliency_map
from tf_alexnet.visualize.sanity import sanity_check, sanity_figure

CHELSEA = EXAMPLE_PHOTOS / "chelsea.jpg"
BVLC, COMPACT = ARCHITECTURES["bvlc_alexnet"], ARCHITECTURES["compact"]


def texts(figure):
    """Every text of a figure."""
    from matplotlib.text import Text

    return [x.get_text() for x in figure.findobj(Text) if x.get_text()]


def assert_complete(figure):
    """All that is drawn lies inside the picture, and no titles of panels overlap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer())  # inches
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0) >= -0.01, box
    assert box.x1 <= width + 0.01, box
    assert box.y1 <= height + 0.01, box
    titles = [x.title.get_window_extent() for x in figure.axes if x.get_title()]
    for one, other in itertools.combinations(titles, 2):
        assert not one.overlaps(other)


@pytest.fixture(scope="module")
def photo():
    return ta.load_image(CHELSEA)


@pytest.fixture(scope="module")
def explainer():
    return Explainer(synthetic_weights(COMPACT.with_head("pool5", 4)))


def test_mosaics_have_the_strongest_channels_first():
    blob = np.zeros((2, 3, 5), np.float32)
    blob[..., 3], blob[0, 0, 1], blob[..., 0] = 8.0, 4.0, -5.0
    sheet = mosaic(blob)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (3 * 2 + 2, 2 * 3 + 1)  # three rows of two
    assert (sheet[:2, :3] == 255).all()
    assert sheet[0, 4:].tolist() == [128, 0, 0]
    assert (sheet[:, 3] == 128).all()
    assert (sheet[3:5, :3] == 0).all()
    assert (sheet[6:, 4:] == 128).all(), "no channel is there"
    assert ceiling(blob) == pytest.approx(np.percentile(blob, 99.9))
    units = np.arange(10, dtype=np.float32)
    assert mosaic(units).ravel()[:3].tolist() == [0, 28, 57]  # in their own order
    assert not mosaic(np.zeros((3, 3, 4))).reshape(-1)[:3].any()
    for wrong in (np.zeros((2, 2)), np.zeros((0, 1, 3)), np.full((1, 1, 2), np.nan)):
        with pytest.raises(InputError, match="Pass one row of what FeatureExtractor returns"):
            mosaic(wrong)


def test_activations_of_a_whole_network_on_one_page(photo):
    extractor = ta.FeatureExtractor("torchvision-convs", "all")
    blobs, crop, classes = photo_blobs(extractor, photo)
    assert list(blobs) == ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]
    assert crop.shape == (224, 224, 3)
    assert classes == []
    figure = activations_figure(blobs, crop, name="a $very$ long name of a photo, too long.jpg")
    assert_complete(figure)
    assert len(figure.axes) == 9
    shown = figure.axes[8].images[0].get_array()
    np.testing.assert_array_equal(shown, mosaic(blobs["pool5"]))
    single = activations_figure({"conv3": blobs["conv3"]}, crop)
    assert_complete(single)
    assert single.axes[-1].get_ylabel() == "activation"
    with_classes = {**blobs, "prob": np.float32([0.9, 0.1])}
    figure = activations_figure(with_classes, crop, classes=[("tabby, tabby cat", 0.9)])
    assert_complete(figure)
    assert any("tabby, tabby cat  90.0%" in text for text in texts(figure))


def test_filters_have_their_own_contrast_and_the_right_colors():
    kernel = np.zeros((2, 2, 3, 3), np.float32)
    kernel[0, 0, 0, 0] = 5  # first channel of the input: blue, if it is BGR
    kernel[1, 1, 2, 1] = -0.1
    tiles = filter_tiles(kernel, "BGR")
    assert tiles[0, 0, 0].tolist() == [128, 128, 255]
    assert tiles[1, 1, 1].tolist() == [1, 128, 128]
    assert (tiles[2] == 128).all()
    assert filter_tiles(kernel, "RGB")[0, 0, 0].tolist() == [255, 128, 128]
    sheet = grid(tiles, columns=2)
    assert sheet.shape == (5, 5, 3)
    assert (sheet[2] == 255).all()
    np.testing.assert_array_equal(sheet[3:, :2], tiles[2])


def test_filters_of_two_towers_stand_apart():
    arrays = synthetic_weights(BVLC.with_head("pool5", 2))
    figure = filters_figure(arrays.layers["conv1"].kernel, BVLC, source="somewhere")
    assert_complete(figure)
    assert [x.get_title() for x in figure.axes] == ["filters 0 to 47", "filters 48 to 95"]
    kernel = arrays.layers["conv4"].kernel
    figure = filters_figure(kernel, BVLC, "conv4")
    assert_complete(figure)
    filters, inputs, weights = strongest_pairs(kernel[..., 192:])
    right = figure.axes[1]
    assert [int(x.get_text()) for x in right.get_yticklabels()] == (192 + filters).tolist()
    assert [int(x.get_text()) for x in right.get_xticklabels()] == (192 + inputs).tolist()
    norms = np.linalg.norm(kernel[..., 192:].reshape(-1, 192), axis=0)
    assert set(filters) == set(np.argsort(-norms)[:24])
    np.testing.assert_array_equal(weights[2, 3], kernel[:, :, inputs[3], 192 + filters[2]])
    assert len(filters_figure(np.zeros((11, 11, 3, 64)), ARCHITECTURES["torchvision"]).axes) == 1
    with pytest.raises(LayerError, match=r"no such convolution\. Use one of conv1"):
        filters_figure(kernel, BVLC, "fc6")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_drawing_of_a_network_says_what_the_table_says(name):
    table = ARCHITECTURES[name]
    root = ElementTree.fromstring(architecture_svg(table))
    width, height = (float(root.get(x)) for x in ("width", "height"))
    space = "{http://www.w3.org/2000/svg}"
    shown = [x.text for x in root.iter(f"{space}text")]
    boxes = list(root.iter(f"{space}rect"))[1:]
    for row in table.rows():
        assert row.name in shown
        assert "×".join(map(str, row.output_shape)) in shown
        assert f"{row.receptive_field}×{row.receptive_field}" in shown
        assert not row.parameters or f"{row.parameters:,}" in shown
    maps = sum(len(row.output_shape) == 3 for row in table.rows()) - 1
    towers = 2 if name in ("bvlc_alexnet", "caffenet") else 1
    assert len(boxes) == len([*table.rows()]) + (towers - 1) * maps
    for box in boxes:
        x, y, w, h = (float(box.get(key)) for key in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    crossing = {row.name for row in table.rows() if row.kind == "Conv" and row.groups < towers}
    lines = len(list(root.iter(f"{space}line")))
    # conv1 takes one input, and each other layer that sees both towers has two lines more.
    expected = towers * maps + 2 * len(crossing - {"conv1"}) + towers + 3
    assert lines == expected
    text, markdown = architecture_text(table), architecture_markdown(table)
    assert f"{table.parameters:,}" in text.splitlines()[-1]
    assert markdown.count("\n|") == len([*table.rows()]) + 3


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        pytest.param(method, shape, marks=pytest.mark.slow if slow else ())
        for number, shape in enumerate([(200, 300), (300, 200), (20, 400), (400, 20), (1, 1)])
        for method, slow in (
            ("gradcam", False),
            ("occlusion", number != 0),
            ("guided", number != 2),
        )
    ],
)
def test_saliency_figures_are_complete(method, shape, explainer):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = saliency_map(explainer, image, method, patch=56, stride=56)
    figure = saliency_figure(image, found, name="photo.jpg", class_title="a class of a long name")
    assert_complete(figure)
    shown = " ".join(texts(figure))
    assert f"{method}, a class of a long name" in shown
    assert (GUIDED_NOTE in shown) == (method == "guided")


def test_a_constant_map_is_called_that(photo, explainer):
    found = saliency_map(explainer, photo)
    plain = type(found)(np.zeros_like(found.values), 1, 0.5, None, "gradcam")
    figure = saliency_figure(photo, plain)
    assert any("the map is constant (0)" in text for text in texts(figure))
    assert len(figure.axes) == 2  # no colour bar


def test_sanity_randomises_from_the_last_layer_on(photo, explainer):
    before = explainer.scores(explainer.preprocess(photo))
    told = []
    found = sanity_check(
        explainer, photo, ("gradcam", "gradient"), progress=lambda *about: told.append(about)
    )
    assert found.stages == ("trained", "fc8", "conv5", "conv4", "conv3", "conv2", "conv1")
    change = np.abs(explainer.scores(explainer.preprocess(photo)) - before).max()
    assert change < 1e-5 * np.abs(before).max()  # observed 0, and 2.5e-7 on a busy machine
    assert told[-1] == ("maps", 14, 14, {})
    for method, values in found.correlations.items():
        assert values[0] == pytest.approx(1)
        maps = [np.abs(x.cells).ravel() for x in found.maps[method]]
        for value, cells in zip(values, maps, strict=True):
            if cells.min() < cells.max():
                ranks = rankdata(maps[0]), rankdata(cells)
                assert value == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)
            else:
                assert np.isnan(value)
    # Below conv5, the gradient by conv5 is as it was; at the end nothing is left.
    assert abs(found.correlations["gradient"][-1]) < 0.5 < found.correlations["gradient"][0]
    assert_complete(sanity_figure(explainer.crop(photo), found, name="photo.jpg"))


@pytest.fixture(scope="module")
def features(tmp_path_factory, example_photos):
    """Outputs of `extract` in several formats: pool5 and conv5, pooled."""
    folder = tmp_path_factory.mktemp("features")
    for name in ("f.h5", "f.npz", "f/"):
        ta.extract_features(
            list(map(str, example_photos)),
            f"{folder}/{name}",
            weights="torchvision-convs",
            layers=["conv5", "pool5"],
            pool="avg",
        )
    return folder


def test_features_are_read_from_every_output(features, example_photos):
    first = read_features(features / "f.h5")
    assert first.paths == list(map(str, example_photos))
    assert list(first.layers) == ["conv5", "pool5"]
    with h5py.File(features / "f.h5") as file:
        np.testing.assert_array_equal(first.layers["pool5"], file["pool5"][:])
    for name in ("f.npz", "f"):
        other = read_features(features / name, "pool5")
        assert sorted(other.paths) == sorted(first.paths)
        order = [other.paths.index(path) for path in first.paths]
        np.testing.assert_array_equal(other.layers["pool5"][order], first.layers["pool5"])
        assert list(other.layers) == ["pool5"]


def test_files_that_hold_no_features_are_refused(features, tmp_path):
    (tmp_path / "bad.h5").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(3)
    for name, line in (
        ("bad.h5", "it can't be read as features"),
        ("other.h5", "it can't be read as features"),
        ("none.h5", "there is no such file"),
        ("empty", "the folder has no shards"),
    ):
        with pytest.raises(InputError, match=line):
            read_features(tmp_path / name)
    with pytest.raises(LayerError, match=r"it was not extracted\. The file has: conv5, pool5"):
        read_features(features / "f.h5", "fc7")


def test_maps_of_photos(features):
    found = read_features(features / "f.h5")
    places, titles = project(found.layers["pool5"])
    paths = [*found.paths[:-1], "gone.jpg"]
    figure = embedding_figure(places, paths, titles, title="a map")
    assert_complete(figure)
    from matplotlib.offsetbox import AnnotationBbox

    boxes = [x for x in figure.axes[0].artists if isinstance(x, AnnotationBbox)]
    assert len(boxes) == len(paths) - 1
    np.testing.assert_allclose([box.xy for box in boxes], places[:-1])
    assert "of the variance" in figure.axes[0].get_xlabel()
    with pytest.raises(UsageError, match=r"Use one of pca, tsne, umap"):
        project(found.layers["pool5"], "lle")


@pytest.mark.slow  # importing scikit-learn's manifolds takes longer than all the other maps
def test_a_map_by_tsne(features):
    rows = read_features(features / "f.h5").layers["pool5"]
    places, titles = project(rows, "tsne")
    assert places.shape == (len(rows), 2)
    assert np.isfinite(places).all()
    assert titles == ["tsne 1", "tsne 2"]


def test_folders_have_colors_and_a_legend(example_photos, tmp_path):
    for folder in ("cats", "dogs"):
        (tmp_path / folder).mkdir()
        for number in range(2):
            path = tmp_path / folder / f"{number}.jpg"
            path.write_bytes(example_photos[number].read_bytes())
    paths = [str(x) for x in sorted(tmp_path.glob("*/*.jpg"))]
    places = np.random.default_rng(0).standard_normal((4, 2))
    figure = embedding_figure(places, paths)
    assert [x.get_text() for x in figure.axes[0].get_legend().get_texts()] == ["cats", "dogs"]
    assert_complete(figure)


def test_matrices_are_drawn_with_names_and_comparisons():
    generator = np.random.default_rng(0)
    matrices = {x: np.abs(generator.standard_normal((6, 6))) for x in ("conv1", "conv5", "fc7")}
    between = {"RSA": np.eye(3), "linear CKA": np.full((3, 3), np.nan)}
    paths = [f"folder/stimulus number {i}.png" for i in range(6)]
    figure = rsm_figure(matrices, paths, "cosine", between, title="f.h5")
    assert_complete(figure)
    shown = list(texts(figure))
    assert "stimulus number 0.p…" in shown
    assert {"conv1", "conv5", "fc7", "RSA", "linear CKA", "cosine distance"} <= set(shown)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), matrices["conv1"])
    assert_complete(rsm_figure({"fc7": np.zeros((50, 50))}, ["a"] * 50, "cosine"))


def test_neighbours_of_photos_inside_and_outside(features, example_photos):
    found = read_features(features / "f.h5")
    rows, paths = found.layers["pool5"], found.paths
    every = find(paths, rows, count=2)
    assert [x.query for x in every] == paths
    assert all(x.query not in dict(x.neighbours) for x in every)
    inside = find(paths, rows, [paths[2]], count=2)[0]
    expected = [(name, pytest.approx(x, abs=1e-6)) for name, x in every[2].neighbours]
    assert inside.neighbours == expected
    outside = find(paths, rows, ["new.jpg"], {"new.jpg": rows[2]}, count=2)[0]
    assert outside.neighbours[0] == (paths[2], pytest.approx(1))
    assert outside.neighbours[1][0] == every[2].neighbours[0][0]


def test_sheets_are_paged_and_show_what_is_gone(tmp_path, example_photos, monkeypatch):
    monkeypatch.setattr("tf_alexnet.visualize.neighbours.PAGE_ROWS", 2)
    paths = [*map(str, example_photos[:2]), "gone.jpg"]
    results = find(paths, np.eye(3, dtype=np.float32), count=2)
    places = save_sheets(results, tmp_path / "sheet.png", "a title")
    assert places == [f"{tmp_path}/sheet-1.png", f"{tmp_path}/sheet-2.png"]
    sizes = []
    for place in places:
        with Image.open(place) as sheet:
            sizes.append(sheet.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] > sizes[1][1]
    (tmp_path / "sheet-1.png").write_bytes(b"not ours")
    with pytest.raises(OutputError, match="tf-alexnet did not write it"):
        save_sheets(results, tmp_path / "sheet.png", "a title")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".svg", ".pdf"])
def test_pictures_are_known_as_ours(suffix, tmp_path):
    figure = rsm_figure({"fc7": np.zeros((3, 3))}, ["a", "b", "c"], "cosine")
    path = tmp_path / f"x{suffix}"
    save_figure(figure, path)
    assert path.stat().st_size > 1000
    sheets.check_foreign(path)
    assert [x.name for x in tmp_path.iterdir()] == [path.name]
    path.write_bytes(path.read_bytes().replace(b"tf_alexnet", b"anotherone"))
    with pytest.raises(OutputError, match="it exists, and tf-alexnet did not write it"):
        sheets.check_foreign(path)
