"""GPTQ, AWQ and SmoothQuant on small matrices, beside plain float64 computations of what they define."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.quantize.equalize import awq_scales_by_moment, smoothquant_scales
from plamo2_jax.quantize.gptq import gptq
from plamo2_jax.quantize.rounding import (
    absmax_scales,
    output_error,
    round_to_nearest,
    searched_scales,
    spread,
)

LIMITS = {"int8": (-127, 127), "int4": (-8, 7)}


@pytest.fixture
def correlated(rng):
    """Inputs [n, c] whose channels differ in size and depend on each other, their second moment, and a matrix."""
    mixing = rng.normal(size=(48, 48)) * np.exp(rng.normal(size=48))
    inputs = rng.normal(size=(600, 48)) @ mixing
    return inputs, inputs.T @ inputs / len(inputs), rng.normal(size=(20, 48))


def obq(weight, hessian, scales, kind, damping, act_order):
    """Quantize a column, correct the others by the inverse Hessian, and remove the column from it: the definition, without factors."""
    weight, count = weight.copy(), weight.shape[1]
    hessian = hessian + damping * np.mean(np.diagonal(hessian)) * np.eye(count)
    inverse, values = np.linalg.inv(hessian), np.zeros_like(weight)
    order = np.argsort(-np.diagonal(hessian), kind="stable") if act_order else np.arange(count)
    for i in order:
        values[:, i] = np.clip(np.round(weight[:, i] / scales[:, i]), *LIMITS[kind])
        error = (weight[:, i] - values[:, i] * scales[:, i]) / inverse[i, i]
        weight -= np.outer(error, inverse[i])
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return values


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("kind", "groups", "block"), [("int4", 3, 16), ("int8", 1, 128), ("int4", 1, 20)])
def test_gptq_is_what_it_defines(correlated, kind, groups, block, act_order):
    _, hessian, weight = correlated
    # In float32, a value at the middle of two steps rounds either way, and all later columns follow.
    with jax.enable_x64(True):
        matrix = jnp.asarray(weight)
        scales = absmax_scales(matrix, groups, kind)
        expected = obq(weight, hessian, np.repeat(scales, 48 // groups, axis=1), kind, 0.01, act_order)
        found = gptq(matrix, jnp.asarray(hessian), scales, kind=kind, act_order=act_order, block=block)
        np.testing.assert_array_equal(found, expected)
        assert np.mean(round_to_nearest(matrix, scales, kind) != expected) > 0.1


@pytest.mark.parametrize(("kind", "groups"), [("int4", 3), ("int8", 1), ("float8", 1)])
def test_gptq_loses_less_than_rounding(correlated, kind, groups):
    _, hessian, weight = correlated
    weight, hessian = jnp.asarray(weight, jnp.float32), jnp.asarray(hessian, jnp.float32)
    scales = absmax_scales(weight, groups, kind)
    nearest = output_error(weight, round_to_nearest(weight, scales, kind) * spread(scales, 48), hessian)[0]
    found = output_error(weight, gptq(weight, hessian, scales, kind=kind) * spread(scales, 48), hessian)[0]
    assert found < 0.7 * nearest
    searched = searched_scales(weight, groups, kind, jnp.diagonal(hessian))
    best = output_error(weight, gptq(weight, hessian, searched, kind=kind) * spread(searched, 48), hessian)[0]
    assert best < found


def test_gptq_ignores_inputs_that_are_always_0(correlated):
    _, hessian, weight = correlated
    hessian = hessian.copy()
    hessian[5], hessian[:, 5] = 0, 0
    weight = jnp.asarray(weight, jnp.float32)
    values = gptq(weight, jnp.asarray(hessian, jnp.float32), absmax_scales(weight, 1, "int4"), kind="int4")
    assert np.all(np.asarray(values)[:, 5] == 0)
    assert np.all(np.isfinite(values))


def test_the_search_of_scales_only_helps(correlated):
    _, hessian, weight = correlated
    weight, importance = jnp.asarray(weight, jnp.float32), np.diagonal(hessian).astype(np.float32)
    errors = []
    for scales in (absmax_scales(weight, 3, "int4"), searched_scales(weight, 3, "int4", jnp.asarray(importance))):
        off = round_to_nearest(weight, scales, "int4") * spread(scales, 48) - weight
        errors.append(np.sum(np.square(off).reshape(20, 3, 16) * importance.reshape(3, 16), axis=-1))
    assert np.all(errors[1] <= errors[0] * (1 + 1e-5))
    assert errors[1].sum() < 0.9 * errors[0].sum()


def test_awq_is_the_best_power_of_the_magnitudes(correlated):
    """For two matrices with the same inputs, by the error of their products with the inputs themselves."""
    inputs, hessian, weight = correlated
    weights = (weight[:8], weight[8:])
    magnitude = np.abs(inputs).mean(0)
    losses, tried = [], []
    for power in np.linspace(0, 1, 20):
        scales = (magnitude / magnitude.max()) ** power
        scales /= np.sqrt(scales.max() * scales.min())
        loss = 0
        for each in weights:
            groups = (each * scales).reshape(len(each), 3, 16)
            steps = np.abs(groups).max(-1, keepdims=True) / 7
            rounded = np.clip(np.round(groups / steps), -8, 7) * steps
            loss += np.sum(np.square(inputs @ (rounded.reshape(each.shape) / scales - each).T))
        losses.append(loss)
        tried.append(scales)
    assert 0 < np.argmin(losses) < 19
    moment = jnp.asarray(hessian, jnp.float32)
    matrices = tuple(jnp.asarray(each, jnp.float32) for each in weights)
    found = awq_scales_by_moment(matrices, jnp.asarray(magnitude, jnp.float32), moment, ("int4",) * 2, (3, 3))
    np.testing.assert_allclose(found, tried[int(np.argmin(losses))], rtol=1e-4)


def test_smoothquant_divides_the_difficulty(rng):
    """With alpha = 1/2, inputs and columns of the weight have the same largest magnitude afterwards."""
    largest, weight = rng.uniform(0.1, 50, 12), rng.normal(size=(6, 12))
    weights = (jnp.asarray(weight[:4]), jnp.asarray(weight[4:]))
    scales = np.asarray(smoothquant_scales(weights, jnp.asarray(largest)))
    np.testing.assert_allclose(largest / scales, np.abs(weight * scales).max(0), rtol=1e-5)
    zero = smoothquant_scales(weights, jnp.asarray(largest).at[3].set(0))
    assert zero[3] == 1
