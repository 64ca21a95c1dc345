"""RMS norm: both implementations against float64, and rows that do not depend on one another."""

import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_kernels.rms_norm import rms_norm


@pytest.mark.parametrize("shape", [(3, 1, 512), (17, 64), (2, 1, 3, 24), (1, 7)])
@pytest.mark.parametrize("implementation", ["xla", "ffi"])
def test_a_norm_equals_float64(rng, shape, implementation):
    x, scale = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[-2 if len(shape) == 4 else -1 :])
    scale = scale.astype(np.float32)
    exact = x.astype(np.float64)
    exact = exact / np.sqrt(np.mean(exact**2, -1, keepdims=True) + 1e-5) * (0.2 + scale)

    def run(x):
        return np.asarray(rms_norm(jnp.asarray(x), jnp.asarray(scale), 1e-5, offset=0.2, implementation=implementation))

    y = run(x)
    np.testing.assert_allclose(y, exact, rtol=2e-6, atol=1e-6)
    if implementation == "ffi":
        x[0] = np.nan
        for row in range(1, shape[0]):
            np.testing.assert_array_equal(run(x[row : row + 1])[0], y[row])
        np.testing.assert_array_equal(run(x)[1:], y[1:])
