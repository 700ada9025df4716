"""`CaffeSGD` and schedules against Caffe's formulas in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_alexnet.training.optimizer import Adam, CaffeSGD, scheduled

MULTIPLIERS = {"a/kernel": (0.1, 1.0), "a/bias": (0.2, 0.0), "b/kernel": (1.0, 1.0)}


def variables():
    generator = np.random.default_rng(0)
    shapes = {"a/kernel": (3, 4), "a/bias": (4,), "b/kernel": (4, 2), "b/bias": (2,)}
    found = []
    for path, shape in shapes.items():
        with keras.name_scope(path.split("/")[0]):
            value = generator.normal(size=shape).astype(np.float32)
            found.append(keras.Variable(value, name=path.split("/")[1]))
    assert [x.path for x in found] == list(shapes)
    return found


def caffe(weights, gradients, rate, momentum, decay):
    """``SGDSolver``, a step a row of gradients."""
    history = {path: np.zeros_like(x) for path, x in weights.items()}
    for some in gradients:
        for path, gradient in some.items():
            lr_mult, decay_mult = MULTIPLIERS.get(path, (1, 1))
            diff = gradient + decay * decay_mult * weights[path]
            history[path] = rate * lr_mult * diff + momentum * history[path]
            weights[path] = weights[path] - history[path]
    return weights


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_are_caffes(compiled):
    found = variables()
    generator = np.random.default_rng(1)
    gradients = [
        {x.path: generator.normal(size=x.shape).astype(np.float32) for x in found} for _ in range(6)
    ]
    weights = {x.path: x.numpy().astype(np.float64) for x in found}
    wanted = caffe(weights, gradients, 0.05, 0.8, 0.3)
    optimizer = CaffeSGD(0.05, 0.8, 0.3, MULTIPLIERS)
    optimizer.build(found)
    step = tf.function(lambda some: optimizer.apply(some, found), jit_compile=compiled)
    for some in gradients:
        step([tf.constant(x) for x in some.values()])
    for variable in found:
        np.testing.assert_allclose(variable.numpy(), wanted[variable.path], rtol=2e-6, atol=1e-6)


def test_it_is_rebuilt_from_its_configuration():
    optimizer = CaffeSGD(0.05, 0.8, 0.3, MULTIPLIERS)
    config = keras.saving.serialize_keras_object(optimizer)
    same = keras.saving.deserialize_keras_object(config)
    assert isinstance(same, CaffeSGD)
    assert same.multipliers == MULTIPLIERS
    assert (same.momentum, same.decay) == (0.8, 0.3)
    assert float(same.learning_rate) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", lambda step: 0.02),
        ("step", lambda step: 0.02 * 0.3 ** (step // 7)),
        ("cosine", lambda step: 0.01 * (1 + np.cos(np.pi * min(step, 42) / 42))),
    ],
)
def test_rates_are_those_of_the_schedule_at_every_step(schedule, wanted):
    weight = keras.Variable(np.zeros(1, np.float32), name="w")
    settings = {"learning_rate": 0.02, "gamma": 0.3, "step_size": 1, "epochs": 6}
    rate = scheduled({**settings, "schedule": schedule}, 7)
    optimizer = CaffeSGD(rate, 1e-12, 0.0)
    optimizer.build([weight])
    step = tf.function(lambda: optimizer.apply([tf.ones(1)], [weight]))
    for number in range(45):
        before = weight.numpy()[0]
        step()
        assert before - weight.numpy()[0] == pytest.approx(wanted(number), rel=1e-4, abs=1e-7)


def test_adam_updated_by_xla_is_keras_adam():
    generator = np.random.default_rng(1)
    found, theirs = variables(), variables()
    ours, plain = Adam(1e-3, epsilon=1e-8), keras.optimizers.Adam(1e-3, epsilon=1e-8)
    for _ in range(5):
        gradients = [tf.constant(generator.normal(size=x.shape), tf.float32) for x in found]
        ours.apply(gradients, found)
        plain.apply(gradients, theirs)
    for one, other in zip(found, theirs, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-7)
