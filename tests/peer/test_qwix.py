"""GPTQ and AWQ beside the pure functions of qwix (Apache-2.0), an independent implementation in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.quantize.equalize import awq_scales
from plamo2_jax.quantize.gptq import gptq

pytestmark = pytest.mark.peer


@pytest.fixture
def case(rng):
    mixing = rng.normal(size=(64, 64)) * np.exp(rng.normal(size=64))
    inputs = rng.normal(size=(600, 64)) @ mixing
    # In float32, a value at the middle of two steps rounds either way, and all later columns follow.
    with jax.enable_x64(True):
        yield jnp.asarray(inputs), jnp.asarray(inputs.T @ inputs), jnp.asarray(rng.normal(size=(24, 64)))


@pytest.mark.parametrize("qtype", ["int8", "int4"])
def test_gptq_gives_the_same_values(case, qtype):
    """With one scale a row, which qwix too computes before the first correction."""
    from qwix._src.core import qarray
    from qwix.contrib import gptq_core

    _, hessian, weight = case
    how = qarray.HowToQuantize(qtype=jnp.dtype(qtype), channelwise_axes=[0], tiled_axes={}, calibration_method="absmax")
    expected, _ = gptq_core.quantize_weight(weight, hessian, how)
    found = gptq(weight, hessian, expected.scale, kind=qtype, act_order=False)
    values = np.asarray(expected.qvalue, np.float64)
    # qwix uses -128, which is not used here.
    rows = np.all(values > -128, axis=1)
    assert rows.sum() > 8
    np.testing.assert_array_equal(np.asarray(found)[rows], values[rows])


def test_awq_gives_the_same_scales(case):
    """With the error that qwix minimizes, which is the error of the weights times the mean magnitudes, and with its rounding."""
    from qwix._src.core import qarray
    from qwix.contrib import awq_core

    inputs, _, weight = case
    magnitude = awq_core.compute_act_scale(inputs)
    how = qarray.HowToQuantize(qtype=jnp.int4, channelwise_axes=[0], tiled_axes={1: 16}, calibration_method="absmax")
    expected = awq_core.search_optimal_scales(weight, magnitude, how)

    def rounded(weight):
        return qarray.dequantize(qarray.quantize(weight, how))

    found = awq_scales((weight,), magnitude, lambda off: jnp.mean(jnp.square(off * magnitude)), [rounded])
    np.testing.assert_allclose(found, expected[0], rtol=1e-4)
