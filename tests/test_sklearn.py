"""AlexNetFeatures in scikit-learn's hands: pipelines, clones, pickles, its own checks."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils import estimator_checks

import tf_alexnet as ta
from tf_alexnet.errors import ImageError, InputError, LayerError, UsageError, WeightsError
from tf_alexnet.weights import find_weights

CONVS = "torchvision-convs"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """(paths, labels): twelve pictures of stripes, half of them upright; sizes differ."""
    folder, random = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    paths, labels = [], []
    for i in range(12):
        height, width = random.integers(60, 120, 2)
        wave = np.sin(np.arange(height)[:, None] / 3 + np.zeros(width))
        wave = wave if i % 2 else np.sin(np.arange(width)[None] / 3 + np.zeros((height, 1)))
        noise = random.integers(0, 60, (height, width, 3))
        pixels = (wave[..., None] * 80 + 90 + noise).astype(np.uint8)
        paths.append(str(folder / f"{i}.png"))
        labels.append(["upright", "level"][i % 2])
        Image.fromarray(pixels).save(paths[-1])
    return paths, labels


@pytest.fixture(scope="module")
def features():
    return ta.AlexNetFeatures("pool5", CONVS, pool="avg")


def test_rows_are_those_of_the_extractor(photos, features):
    paths, _ = photos
    blob = ta.FeatureExtractor(CONVS, ["pool5"]).from_images(paths)["pool5"]
    rows = features.fit(paths).transform(paths)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, blob.mean(axis=(1, 2)))
    assert features.n_features_out_ == 256
    flat = clone(features).set_params(pool="none", batch_size=5).fit_transform(paths)
    np.testing.assert_allclose(flat, blob.reshape(12, -1), rtol=1e-4, atol=1e-4)


def test_photos_come_in_many_forms(photos, features):
    paths = photos[0][:3]
    expected = features.transform(paths)
    arrays = [ta.load_image(path) for path in paths]
    table = pd.DataFrame({"path": paths})
    forms = (arrays, np.array(paths), np.array(paths, object)[:, None], table, table["path"])
    for given in (*forms, tuple(map(Path, paths)), table["path"].astype("string")):
        np.testing.assert_array_equal(features.transform(given), expected)
    equal = np.stack([array[:50, :50] for array in arrays])
    np.testing.assert_array_equal(features.transform(equal), features.transform(list(equal)))


def test_means_of_channels(photos, tmp_path):
    paths = photos[0][:3]
    weights, data = "torchvision-convs", {"layer": "data", "pool": "avg"}
    expected = ta.AlexNetFeatures(
        weights=weights, preset="torchvision.mean0.5-0.5-0.5", **data
    ).transform(paths)
    np.save(tmp_path / "mean.npy", [0.5, 0.5, 0.5])
    for mean in ("0.5,0.5,0.5", (0.5, 0.5, 0.5), tmp_path / "mean.npy"):
        given = ta.AlexNetFeatures(weights=weights, mean_image=mean, **data)
        np.testing.assert_array_equal(clone(given).transform(paths), expected)
    with pytest.raises(InputError, match=r"none\.npy: it can't be read"):
        ta.AlexNetFeatures(weights=weights, mean_image="none.npy", **data).fit()


@pytest.mark.parametrize(
    "classifier", [LogisticRegression(), pytest.param(LinearSVC(), marks=pytest.mark.slow)]
)
def test_pipelines_and_cross_validation(photos, features, classifier):
    paths, labels = photos
    model = make_pipeline(clone(features), classifier)
    assert model.fit(paths, labels).score(paths, labels) == 1
    assert cross_val_score(model, np.array(paths), labels, cv=3).mean() > 0.8


@pytest.mark.slow
def test_joblib_runs_it_in_processes(photos, features):
    paths, labels = photos
    steps = make_pipeline(clone(features), LogisticRegression())
    search = GridSearchCV(steps, {"alexnetfeatures__layer": ["pool1", "pool5"]}, cv=2, n_jobs=2)
    search.fit(paths, labels)
    get_reusable_executor().shutdown()  # they would wait for more, with 230 MB each
    alone = cross_val_score(clone(search.best_estimator_), paths, labels, cv=2)
    assert search.best_score_ == alone.mean() > 0.8


def test_a_pipeline_remembers_features_on_disk(photos, features, tmp_path, monkeypatch):
    paths, labels = photos
    steps = clone(features), LogisticRegression()
    make_pipeline(*steps, memory=str(tmp_path)).fit(paths, labels)
    monkeypatch.setattr(ta.AlexNetFeatures, "transform", None)  # not needed the second time
    make_pipeline(*steps, memory=str(tmp_path)).set_params(logisticregression__C=9).fit(
        paths, labels
    )


def test_the_weights_stay_out_of_clones_and_pickles(photos, features):
    paths, _ = photos
    rows = features.fit(paths).transform(paths)
    for fitted in (features, make_pipeline(features)):
        saved = pickle.dumps(fitted)
        assert len(saved) < 1000, "the network has 9,879,792 bytes"  # observed: 273 and 442
        np.testing.assert_array_equal(pickle.loads(saved).transform(paths[:3]), rows[:3])
    again = clone(features)
    assert not hasattr(again, "n_features_out_")
    assert vars(again) == {k: v for k, v in vars(features).items() if k != "n_features_out_"}


def test_a_process_loads_a_network_once(photos, features, tmp_path):
    paths, _ = photos
    networks = [features._network(), clone(features).set_params(pool="max")._network()]
    assert networks[0] is networks[1]
    assert clone(features).set_params(layer="pool1")._network() is not networks[0]
    # A file of the same name with other content is another network.
    arrays = ta.read_weights(find_weights(CONVS))
    file = tmp_path / "w.npz"
    ta.write_weights(arrays, file)
    own = clone(features).set_params(weights=file)
    rows = own.transform(paths[:2])
    layers = {name: layer._replace(bias=layer.bias + 1) for name, layer in arrays.layers.items()}
    ta.write_weights(type(arrays)(layers, arrays.architecture), file)
    assert not np.array_equal(own.transform(paths[:2]), rows)


def test_tables_get_names_of_columns(photos):
    paths, _ = photos
    features = ta.AlexNetFeatures("pool1", CONVS, pool="max").set_output(transform="pandas")
    table = features.fit_transform(paths[:2])
    assert list(table.columns[:2]) == ["pool1_0", "pool1_1"]
    assert table.shape == (2, 64)


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
        "check_estimator_repr",
        "check_get_params_invariance",
        "check_mixin_order",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_set_params",
    ],
)
def test_the_checks_of_scikit_learn_that_need_no_tables(check, features):
    """All the others feed tables of floats, which are no photos; `check_estimator` skips them."""
    getattr(estimator_checks, check)("AlexNetFeatures", clone(features))


@pytest.mark.filterwarnings("ignore:Can't test estimator:sklearn.exceptions.SkipTestWarning")
def test_check_estimator(features):
    estimator_checks.check_estimator(clone(features))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("a.jpg", ImageError, "a.jpg: there is no such file"),
        ([], InputError, "X: it is empty"),
        (np.full((2, 9, 9, 3), -1.0), InputError, r"images\[0\]: got float64"),
        ([np.full((9, 9, 3), 0.5)], InputError, "float64"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), InputError, r"shape \(1, 2\)"),
        (None, InputError, "X: None is not a photo"),
        (["missing.jpg"], ImageError, "missing.jpg: "),
    ],
)
def test_what_is_no_photo_is_refused(given, error, message, features):
    with pytest.raises(error, match=message):
        features.transform(given)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layer": "fc9"}, LayerError, "fc9"),
        ({"layer": ["fc7"]}, UsageError, "not the name of one layer"),
        ({"layer": "fc7"}, WeightsError, "no dense layers"),
        ({"pool": "mean"}, UsageError, "Use none, avg or max"),
        ({"weights": "nowhere.npy"}, WeightsError, "nowhere.npy"),
        ({"weights": {}}, UsageError, "weights of type dict: every clone and pickle"),
    ],
)
def test_arguments_that_can_not_work_show_in_fit(arguments, error, message, features):
    with pytest.raises(error, match=message):
        clone(features).set_params(**arguments).fit([])


def test_a_batch_of_nothing_is_refused(photos, features):
    with pytest.raises(UsageError, match="batch_size=0"):
        clone(features).set_params(batch_size=0).transform(photos[0])


def test_without_scikit_learn_one_line_says_so():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import tf_alexnet as ta\n"
        "try: ta.AlexNetFeatures('pool5', weights='torchvision-convs')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "AlexNetFeatures: scikit-learn is not installed. "
        "Install it: pip install 'tf-alexnet[sklearn]'.\n"
    )
