"""The linear classifier against scikit-learn's: the same minimum, found by other code."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tf_alexnet.training.softmax import (
    GRID,
    Linear,
    choose_softmax,
    confusion_of,
    fit_softmax,
    folded,
    judge,
    log_softmax,
    standard_of,
)


def made(count, width, classes, seed=0, noise=2.0):
    """Rows around a centre a class, far from standardised, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.integers(classes, size=count)
    rows = (centres[labels] + noise * rng.normal(size=(count, width))) * 30 + 500
    return rows * np.linspace(0.1, 3, width), labels


def blocks_of(rows, labels, size=None):
    size = size or len(rows)
    return lambda: ((rows[i : i + size], labels[i : i + size]) for i in range(0, len(rows), size))


def standardised(rows, labels):
    standard = standard_of(blocks_of(rows, labels))
    return (rows - standard.mean) * standard.scale, standard


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_the_minimum_is_scikit_learns(l2):
    rows, labels = made(240, 40, 4)
    x, _ = standardised(rows, labels)
    head, _ = fit_softmax(blocks_of(x, labels, 64), 4, l2)
    # Its objective: C * sum of cross-entropies + 1/2 * sum of squares.
    peer = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-9, max_iter=10_000).fit(x, labels)

    def objective(kernel, bias):
        loss, _ = judge(Linear(kernel, bias), blocks_of(x, labels))
        return loss + l2 / 2 * (kernel**2).sum()

    ours, theirs = objective(*head), objective(peer.coef_.T, peer.intercept_)
    assert abs(ours - theirs) < 1e-6 * theirs  # observed 4.5e-8
    probabilities = np.exp(log_softmax(x @ head.kernel + head.bias))
    assert np.abs(probabilities - peer.predict_proba(x)).max() < 5e-4  # observed 6e-5


def test_the_slope_at_the_minimum_is_flat_by_differences():
    rows, labels = made(90, 6, 3)
    x, _ = standardised(rows, labels)
    kernel, bias = fit_softmax(blocks_of(x, labels), 3, 0.01)[0]

    def objective(kernel, bias):
        logs = log_softmax(x @ kernel + bias)
        return -logs[np.arange(90), labels].mean() + 0.005 * (kernel**2).sum()

    least = objective(kernel, bias)
    rng = np.random.default_rng(1)
    for _ in range(20):
        away = 1e-2 * rng.normal(size=kernel.shape), 1e-2 * rng.normal(size=bias.shape)
        assert objective(kernel + away[0], bias + away[1]) > least


def test_standardised_rows_have_mean_0_and_mean_squared_length_1():
    rows, labels = made(100, 7, 3)
    for size in (None, 13):
        standard = standard_of(blocks_of(rows, labels, size))
        x = (rows - standard.mean) * standard.scale
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-12)
        assert (x**2).sum(axis=1).mean() == pytest.approx(1)
    alike = np.full((5, 3), 7.0)
    assert standard_of(blocks_of(alike, labels)).scale == 1.0


def test_a_folded_head_gives_the_same_scores_of_raw_rows():
    rows, labels = made(50, 9, 3)
    x, standard = standardised(rows, labels)
    head, _ = fit_softmax(blocks_of(x, labels), 3, 0.1)
    kernel, bias = folded(head, standard)
    np.testing.assert_allclose(rows @ kernel + bias, x @ head.kernel + head.bias, atol=1e-10)


def test_blocks_and_warm_starts_lead_to_the_same_minimum():
    rows, labels = made(200, 20, 3)
    x, _ = standardised(rows, labels)
    cold, _ = fit_softmax(blocks_of(x, labels), 3, 1e-3)
    strong, _ = fit_softmax(blocks_of(x, labels, 17), 3, 1e-1)
    warm, _ = fit_softmax(blocks_of(x, labels, 17), 3, 1e-3, strong)
    assert np.abs(warm.kernel - cold.kernel).max() < 2e-3 * np.abs(cold.kernel).max()  # 2e-5


def test_the_penalty_is_the_one_with_the_least_validation_loss():
    rows, labels = made(120, 60, 3, noise=4.0)
    seen = made(300, 60, 3, seed=5, noise=4.0)
    x, standard = standardised(rows, labels)
    val = blocks_of((seen[0] - standard.mean) * standard.scale, seen[1])
    shown = []
    head, l2, steps = choose_softmax(blocks_of(x, labels), val, 3, GRID, shown.append)
    assert shown == steps
    assert [step.l2 for step in steps] == list(GRID[: len(steps)])
    losses = [step.val_loss for step in steps]
    best = int(np.argmin(losses))
    assert l2 == steps[best].l2
    assert 0 < best < len(steps) - 1, "neither end of the grid, or this test shows little"
    assert len(steps) == min(best + 4, len(GRID)), "three weaker ones were tried"
    assert judge(head, val) == (losses[best], steps[best].val_accuracy)


def test_the_confusion_matrix_has_true_classes_as_rows():
    head = Linear(np.eye(3), np.zeros(3))
    rows = np.eye(3)[[0, 0, 1, 2, 2, 2]]
    labels = np.array([0, 1, 1, 2, 2, 0])
    counts = confusion_of(head, blocks_of(rows, labels, 4))
    np.testing.assert_array_equal(counts, [[1, 0, 1], [1, 1, 0], [0, 0, 2]])
    assert judge(head, blocks_of(rows, labels))[1] == pytest.approx(4 / 6)
