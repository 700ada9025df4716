"""Neighbours, dissimilarities, RSA, CKA and principal components, against other engines."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist, squareform
from scipy.stats import rankdata

from tf_alexnet.errors import InputError, UsageError
from tf_alexnet.visualize.similarity import dissimilarity, linear_cka, nearest, pca, rsa


@pytest.fixture
def rows():
    generator = np.random.default_rng(1)
    mixed = generator.standard_normal((12, 5)) @ generator.standard_normal((5, 40))
    return (mixed + 0.3 * generator.standard_normal((12, 40)) + 2).astype(np.float32)


@pytest.mark.parametrize("distance", ["correlation", "euclidean", "cosine"])
def test_dissimilarities_are_scipys(distance, rows):
    found = dissimilarity(rows, distance)
    expected = squareform(pdist(rows.astype(np.float64), distance))
    np.testing.assert_allclose(found, expected, atol=1e-7 * expected.max())
    np.testing.assert_array_equal(found, found.T)
    assert not found.diagonal().any()


def test_dissimilarities_are_rsatoolboxes(rows):
    rsatoolbox = pytest.importorskip("rsatoolbox")
    data = rsatoolbox.data.Dataset(rows.astype(np.float64))
    expected = rsatoolbox.rdm.calc_rdm(data, method="correlation").get_matrices()[0]
    np.testing.assert_allclose(dissimilarity(rows), expected, atol=1e-9)


def test_rows_without_values_are_nan_and_touch_no_others(rows):
    rows[3], rows[5] = np.nan, 0
    found = dissimilarity(rows, "cosine")
    assert np.isnan(found[3]).all()
    assert np.isnan(found[5]).all()
    others = np.delete(np.arange(12), [3, 5])
    np.testing.assert_allclose(
        found[np.ix_(others, others)], cdist(rows[others], rows[others], "cosine"), atol=1e-6
    )
    with pytest.raises(UsageError, match="Use one of correlation, euclidean, cosine"):
        dissimilarity(rows, "manhattan")


def test_rsa_is_the_rank_correlation_of_the_upper_triangles(rows):
    matrices = {"a": dissimilarity(rows), "b": dissimilarity(rows**2), "c": np.zeros((12, 12))}
    matrices["a"][2, 7] = matrices["a"][7, 2] = np.nan  # left out everywhere
    found = rsa(matrices)
    pairs = [(i, j) for i in range(12) for j in range(i + 1, 12) if (i, j) != (2, 7)]
    first, second = (rankdata([matrices[x][pair] for pair in pairs]) for x in "ab")
    assert found[0, 1] == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-12)
    assert found[0, 0] == 1
    assert np.isnan(found[2]).all()


def test_linear_cka_is_the_closed_form(rows):
    other = np.maximum(rows[:, :17], 0).astype(np.float64)
    found = linear_cka({"a": rows, "b": other})
    x, y = (z.astype(np.float64) - z.mean(axis=0, dtype=np.float64) for z in (rows, other))
    cross = np.linalg.norm(y.T @ x) ** 2
    expected = cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert found[0, 1] == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(found.diagonal(), 1)
    turned = np.linalg.qr(np.random.default_rng(2).standard_normal((40, 40)))[0]
    assert linear_cka({"a": rows, "b": 3 * rows @ turned})[0, 1] == pytest.approx(1, abs=1e-6)
    assert np.isnan(linear_cka({"a": rows, "b": np.ones((12, 4))})[0, 1])


@pytest.mark.parametrize("shape", [(12, 40), (60, 7), (5, 1)])
def test_components_are_scikit_learns(shape):
    from sklearn.decomposition import PCA

    rows = np.random.default_rng(3).standard_normal(shape) * np.arange(1, shape[1] + 1)
    places, shares = pca(rows, 2)
    model = PCA(min(2, *shape)).fit(rows)
    count = model.n_components_
    expected = model.transform(rows)
    signs = np.sign((places[:, :count] * expected).sum(axis=0))
    np.testing.assert_allclose(places[:, :count] * signs, expected, atol=1e-9 * np.abs(rows).max())
    np.testing.assert_allclose(shares[:count], model.explained_variance_ratio_, atol=1e-12)
    assert places.shape == (shape[0], 2)
    assert (places[np.abs(places).argmax(axis=0), [0, 1]] >= 0).all()


def test_a_map_needs_three_photos():
    with pytest.raises(InputError, match="2 photos: a map needs 3"):
        pca(np.ones((2, 5)))


@pytest.mark.parametrize("itself", [False, True])
def test_neighbours_are_those_of_a_loop(itself, rows, monkeypatch):
    monkeypatch.setattr("tf_alexnet.visualize.similarity._BLOCK", 200)  # several blocks
    rows[4] = 0
    queries = rows if itself else rows[:5] + 1
    places, similarities = nearest(queries, rows, 3, itself)
    assert places.shape == similarities.shape == (len(queries), 3)
    for i, query in enumerate(queries.astype(np.float64)):
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
        expected = rows.astype(np.float64) @ query / np.maximum(lengths, 1e-12)
        if itself:
            expected[i] = -np.inf
        order = np.argsort(-expected, kind="stable")[:3]
        np.testing.assert_allclose(similarities[i], expected[order], atol=1e-6)
        assert i == 4 or places[i].tolist() == order.tolist()
    assert nearest(queries, rows, 99, itself)[0].shape[1] == 12 - itself
