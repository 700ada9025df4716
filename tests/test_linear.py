"""The linear classifiers against scikit-learn's: the same minima, found by other code."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, recall_score
from sklearn.multiclass import OneVsRestClassifier

from tf_alexnet.training.linear import (
    GRID,
    Linear,
    Rows,
    balanced,
    choose_penalty,
    confusion_of,
    edge_note,
    fit_linear,
    folded,
    judge,
    label_array,
    log_softmax,
    precisions_of,
    standard_of,
)


def made(count, width, classes, seed=0, noise=2.0, shares=None):
    """Rows around a centre per class, far from standardised, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.choice(classes, size=count, p=shares)
    rows = (centres[labels] + noise * rng.normal(size=(count, width))) * 30 + 500
    return rows * np.linspace(0.1, 3, width), labels


def made_of_several(count, width, classes, seed=0, noise=1.5):
    """Rows with any number of classes, as float32; their labels (count, classes) bool."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.random((count, classes)) < np.linspace(0.15, 0.6, classes)
    rows = labels @ directions + noise * rng.normal(size=(count, width))
    return (rows * 4 + 20).astype(np.float32), labels


def blocks_of(rows, labels, size=None):
    size = size or len(rows)
    return lambda: ((rows[i : i + size], labels[i : i + size]) for i in range(0, len(rows), size))


def standardised(rows, labels):
    standard = standard_of(blocks_of(rows, labels))
    return ((rows - standard.mean) * standard.scale).astype(np.float32), standard


def loss_of(head, blocks, l2, weights=None):
    """The objective, in float64 and without our code."""
    total = count = 0.0
    for rows, labels in blocks():
        scores = rows.astype(np.float64) @ head[0] + head[1]
        if labels.ndim == 2:
            losses = np.logaddexp(0, scores) - labels * scores
        else:
            losses = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(rows)), labels]
            losses = losses * (1 if weights is None else weights[labels])
        total, count = total + losses.sum(), count + len(rows)
    return total / count + l2 / 2 * (np.asarray(head[0], np.float64) ** 2).sum()


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("l2", [1.0, pytest.param(1e-2, marks=pytest.mark.slow), 1e-4])
def test_the_minimum_is_scikit_learns(l2, weight):
    rows, labels = made(240, 40, 4, shares=(0.6, 0.2, 0.15, 0.05) if weight else None)
    x, _ = standardised(rows, labels)
    weights = balanced(labels, 4) if weight else None
    head, _ = fit_linear(blocks_of(x, labels, 64), 4, l2, weights, tolerance=1e-7)
    quick, _ = fit_linear(blocks_of(x, labels, 64), 4, l2, weights)
    # Its objective: C * sum of cross-entropies + 1/2 * sum of squares.
    peer = LogisticRegression(
        C=1 / (l2 * len(x)), tol=1e-9, max_iter=10_000, class_weight=weight
    ).fit(x.astype(np.float64), labels)
    theirs = loss_of((peer.coef_.T, peer.intercept_), blocks_of(x, labels), l2, weights)
    ours, usual = (loss_of(h, blocks_of(x, labels), l2, weights) for h in (head, quick))
    assert abs(ours - theirs) < 1e-6 * theirs
    assert 0 < usual - theirs < 2e-3 * theirs  # observed: 6e-4
    for found, largest in ((head, 1e-3), (quick, 5e-2)):
        probabilities = np.exp(log_softmax(found.scores(x)))
        assert np.abs(probabilities - peer.predict_proba(x)).max() < largest


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("l2", [pytest.param(1e-1, marks=pytest.mark.slow), 1e-3])
def test_sigmoids_are_scikit_learns_one_versus_rest(l2, weight):
    rows, labels = made_of_several(300, 30, 5)
    x, _ = standardised(rows, labels)
    weights = balanced(labels, 5) if weight else None
    head, _ = fit_linear(blocks_of(x, labels, 64), 5, l2, weights, tolerance=1e-7)
    peer = OneVsRestClassifier(
        LogisticRegression(C=1 / (l2 * len(x)), tol=1e-9, max_iter=10_000, class_weight=weight)
    ).fit(x.astype(np.float64), labels)
    coefficients = np.concatenate([x.coef_ for x in peer.estimators_]).T
    assert np.abs(head.kernel - coefficients).max() < 1e-2 * np.abs(coefficients).max()
    probabilities = 1 / (1 + np.exp(-head.scores(x)))
    assert np.abs(probabilities - peer.predict_proba(x)).max() < 5e-3
    if weight is None:
        theirs = (coefficients, np.concatenate([x.intercept_ for x in peer.estimators_]))
        theirs = loss_of(theirs, blocks_of(x, labels), l2)
        assert abs(loss_of(head, blocks_of(x, labels), l2) - theirs) < 1e-5 * theirs


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced(labels, 3), theirs)
    flags = np.stack([labels == 0, labels == 1], axis=1)
    for i, (without, having) in enumerate(balanced(flags, 2).T):
        theirs = compute_class_weight("balanced", classes=np.array([False, True]), y=flags[:, i])
        np.testing.assert_allclose([without, having], theirs)


def test_balanced_weights_find_a_rare_class():
    shares = (0.49, 0.48, 0.03)
    rows, labels = made(800, 20, 3, noise=4.0, shares=shares)
    seen, actual = made(2000, 20, 3, seed=1, noise=4.0, shares=shares)
    x, standard = standardised(rows, labels)
    seen = ((seen - standard.mean) * standard.scale).astype(np.float32)
    recalls = []
    for weights in (None, balanced(labels, 3)):
        head, *_ = choose_penalty(blocks_of(x, labels), blocks_of(seen, actual), 3, 0.01, weights)
        found = head.scores(seen).argmax(axis=1)
        recalls.append(recall_score(actual, found, labels=[2], average=None)[0])
        confusion = confusion_of(head, blocks_of(seen, actual, 300))
        assert confusion[2, 2] / confusion[2].sum() == pytest.approx(recalls[-1])
    assert recalls[0] < 0.2
    assert recalls[1] > recalls[0] + 0.3


def test_mean_average_precision_is_scikit_learns():
    rows, labels = made_of_several(300, 30, 5)
    head = Linear(np.random.default_rng(0).normal(size=(30, 5)).round(1), np.zeros(5))
    rows = rows.round()  # equal scores are one threshold
    blocks = blocks_of(rows, labels, 70)
    theirs = average_precision_score(labels, head.scores(rows), average=None)
    np.testing.assert_allclose(precisions_of(head, blocks), theirs, rtol=1e-9)
    loss, metric = judge(head, blocks)
    assert metric == pytest.approx(theirs.mean())
    scores = head.scores(rows).astype(np.float64)
    assert loss == pytest.approx(np.logaddexp(0, np.where(labels, -scores, scores)).mean())


def test_the_slope_at_the_minimum_is_flat_by_differences():
    rows, labels = made(90, 6, 3)
    x, _ = standardised(rows, labels)
    blocks = blocks_of(x, labels)
    kernel, bias = fit_linear(blocks, 3, 0.01, tolerance=1e-7)[0]
    least = loss_of((kernel, bias), blocks, 0.01)
    rng = np.random.default_rng(1)
    for _ in range(20):
        away = 1e-2 * rng.normal(size=kernel.shape), 1e-2 * rng.normal(size=bias.shape)
        assert loss_of((kernel + away[0], bias + away[1]), blocks, 0.01) > least


def test_standardised_rows_have_mean_0_and_mean_squared_length_1():
    rows, labels = made(100, 7, 3)
    for size in (None, 13):
        standard = standard_of(blocks_of(rows, labels, size))
        x = (rows - standard.mean) * standard.scale
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-12)
        assert (x**2).sum(axis=1).mean() == pytest.approx(1)
    alike = np.full((5, 3), 7.0)
    assert standard_of(blocks_of(alike, labels)).scale == 1.0


def test_rows_in_memory_and_rows_read_again_are_standardised_alike():
    rows, labels = made(100, 7, 3)
    rows = rows.astype(np.float32)
    standard = standard_of(blocks_of(rows, labels))
    split = [rows[:30], rows[30:37], rows[37:]]
    held = Rows(labels, [x.copy() for x in split])
    read = Rows(labels, lambda: (x.copy() for x in split))
    for some in (held, read):
        some.standardize(standard)
        for _ in range(2):
            x, y = map(np.concatenate, zip(*some(), strict=True))
            np.testing.assert_allclose(x, (rows - standard.mean) * standard.scale, atol=1e-5)
            np.testing.assert_array_equal(y, labels)


def test_a_folded_head_gives_the_same_scores_of_raw_rows():
    rows, labels = made(50, 9, 3)
    x, standard = standardised(rows, labels)
    head, _ = fit_linear(blocks_of(x, labels), 3, 0.1)
    kernel, bias = folded(head, standard)
    scores = x.astype(np.float64) @ head.kernel + head.bias
    np.testing.assert_allclose(rows @ kernel + bias, scores, atol=1e-5)


def test_blocks_and_warm_starts_lead_to_the_same_minimum():
    rows, labels = made(200, 20, 3)
    x, _ = standardised(rows, labels)
    tight = {"tolerance": 1e-7}
    cold, _ = fit_linear(blocks_of(x, labels), 3, 1e-3, **tight)
    strong, _ = fit_linear(blocks_of(x, labels, 17), 3, 1e-1)
    warm, _ = fit_linear(blocks_of(x, labels, 17), 3, 1e-3, start=strong, **tight)
    assert np.abs(warm.kernel - cold.kernel).max() < 2e-3 * np.abs(cold.kernel).max()


def test_the_penalty_is_the_one_with_the_least_validation_loss():
    rows, labels = made(120, 60, 3, noise=4.0)
    seen = made(300, 60, 3, seed=5, noise=4.0)
    x, standard = standardised(rows, labels)
    val = blocks_of(((seen[0] - standard.mean) * standard.scale).astype(np.float32), seen[1])
    shown = []
    head, step, steps = choose_penalty(blocks_of(x, labels), val, 3, on_step=shown.append)
    assert shown == steps
    assert [x.l2 for x in steps] == list(GRID[: len(steps)])
    best = int(np.argmin([x.val_loss for x in steps]))
    assert step == steps[best]
    assert 0 < best < len(GRID) - 4, "no end of the grid, or this test shows little"
    assert len(steps) == best + 4, "three weaker ones were tried"
    assert judge(head, val) == (step.val_loss, step.val_metric)
    assert edge_note(step) is None


def test_a_best_penalty_at_the_edge_is_noted_and_the_grid_widened():
    rows, labels = made(300, 4, 3, noise=0.8)
    x, _ = standardised(rows, labels)
    train = blocks_of(x, labels)
    _, weak, steps = choose_penalty(train, train, 3)
    assert weak.l2 <= GRID[-1], "what is validated on training rows wants no penalty"
    assert 0.99e-10 < steps[-1].l2 < GRID[-1], "weaker ones were tried"
    assert "at the edge of the usual range (1 to 1e-06), which was widened" in edge_note(weak)

    wrong = blocks_of(x, np.random.default_rng(0).permutation(labels))
    _, strong, steps = choose_penalty(train, wrong, 3)
    assert strong.l2 > GRID[0], "a classifier that is wrong does best if it says nothing"
    assert [x.l2 for x in steps] == sorted((x.l2 for x in steps), reverse=True)
    assert "was widened" in edge_note(strong)
    if strong.l2 > 0.99e4:
        assert "the last one tried" in edge_note(strong)
    _, given, steps = choose_penalty(train, wrong, 3, l2=0.5)
    assert (given.l2, len(steps)) == (0.5, 1)


def test_the_confusion_matrix_has_true_classes_as_rows():
    head = Linear(np.eye(3), np.zeros(3))
    rows = np.eye(3)[[0, 0, 1, 2, 2, 2]]
    labels = np.array([0, 1, 1, 2, 2, 0])
    counts = confusion_of(head, blocks_of(rows, labels, 4))
    np.testing.assert_array_equal(counts, [[1, 0, 1], [1, 1, 0], [0, 0, 2]])
    assert judge(head, blocks_of(rows, labels))[1] == pytest.approx(4 / 6)


def test_labels_as_arrays():
    np.testing.assert_array_equal(label_array([2, 0], 3, False), [2, 0])
    flags = label_array([(0, 2), (), (1,)], 3, True)
    np.testing.assert_array_equal(flags, np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], bool))
