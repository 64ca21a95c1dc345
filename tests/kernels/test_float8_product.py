"""Products in 8-bit floats: within the error of the formats, with gradients in e5m2, and whatever the scale of the operands."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plamo2_kernels.quant import FORWARD, GRADIENT, float8_product, float8_scale

# btd = bthp · hpd, as in the output projections, and a product with a matrix.
SHAPES = {
    "heads": ((2, 8, 4, 16), (4, 16, 24), ((2, 3), (0, 1))),
    "matrix": ((16, 48), (48, 12), ((1,), (0,))),
    "transposed": ((3, 5, 32), (7, 32), ((2,), (1,))),
}


def product(contracted, x, weight):
    return float8_product(x, weight, float8_scale(weight, FORWARD), contracted)


def operands(rng, shapes, dtype=jnp.float32):
    x, weight, contracted = shapes
    return jnp.asarray(rng.standard_normal(x), dtype), jnp.asarray(rng.standard_normal(weight), jnp.float32), contracted


def rounded(x, dtype):
    """The numbers that a product multiplies, in float64."""
    scale = np.asarray(float8_scale(x, dtype), np.float64)
    return np.asarray((np.asarray(x, np.float64) / scale).astype(dtype), np.float64) * scale


def exact(x, weight, contracted):
    return np.tensordot(x, weight, contracted)


@pytest.mark.parametrize("name", SHAPES)
def test_product_and_gradients_are_those_of_the_rounded_operands(rng, name):
    x, weight, contracted = operands(rng, SHAPES[name])
    y, backward = jax.vjp(functools.partial(product, contracted), x, weight)
    dy = jnp.asarray(rng.standard_normal(y.shape), jnp.float32)
    dx, dw = backward(dy)
    x8, w8, dy8 = rounded(x, FORWARD), rounded(weight, FORWARD), rounded(dy, GRADIENT)
    np.testing.assert_allclose(y, exact(x8, w8, contracted), rtol=1e-5, atol=1e-4)
    # The gradients of a product are those of an einsum, with rounded operands.
    letters = "abcdefgh"
    of_x, of_w = (list(axes) for axes in contracted)
    a = letters[: x.ndim]
    b = [letters[x.ndim + i] for i in range(weight.ndim)]
    for i, j in zip(of_x, of_w, strict=True):
        b[j] = a[i]
    b = "".join(b)
    c = "".join(letter for letter in a + b if (a + b).count(letter) == 1)
    np.testing.assert_allclose(dx, np.einsum(f"{c},{b}->{a}", dy8, w8), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dw, np.einsum(f"{a},{c}->{b}", x8, dy8), rtol=1e-5, atol=1e-4)


def test_error_is_within_the_formats_bound(rng):
    x, weight, contracted = operands(rng, SHAPES["matrix"])
    y, backward = jax.vjp(functools.partial(product, contracted), x, weight)
    dy = jnp.asarray(rng.standard_normal(y.shape), jnp.float32)
    dx, dw = (np.asarray(gradient, np.float64) for gradient in backward(dy))
    x, weight, dy = (np.asarray(array, np.float64) for array in (x, weight, dy))
    # Half a step of 3 and of 2 bits of mantissa, and half the smallest step, which is 2^-17 (2^-31) of the largest magnitude or less.
    forward, gradient = (1 + 2**-4) ** 2 - 1, (1 + 2**-4) * (1 + 2**-3) - 1
    slack = 1e-4
    assert np.all(np.abs(np.asarray(y) - x @ weight) <= (forward + slack) * (np.abs(x) @ np.abs(weight)) + slack)
    assert np.all(np.abs(dx - dy @ weight.T) <= (gradient + slack) * (np.abs(dy) @ np.abs(weight.T)) + slack)
    assert np.all(np.abs(dw - x.T @ dy) <= (gradient + slack) * (np.abs(x.T) @ np.abs(dy)) + slack)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_power_of_two_scales_the_product_exactly(rng, dtype):
    x, weight, contracted = operands(rng, SHAPES["heads"], dtype)
    y = product(contracted, x, weight)
    assert y.dtype == dtype
    scaled = product(contracted, x * 2**20, weight * 2**-30)
    np.testing.assert_array_equal(scaled.astype(jnp.float32), y.astype(jnp.float32) * 2**-10)


def test_scales_use_the_range_of_the_dtype(rng):
    for dtype in (FORWARD, GRADIENT):
        largest = float(jnp.finfo(dtype).max)
        for magnitude in (1e-30, 0.3, largest, largest * 2, 1e30):
            scaled = magnitude / float(float8_scale(jnp.float32([0, -magnitude]), dtype))
            assert largest / 2 < scaled <= largest
    assert float8_scale(jnp.zeros(3), FORWARD) == 1
    assert float8_scale(jnp.float32([[1, 448], [2, 896]]), FORWARD, (1,)).tolist() == [1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_stays_visible(bad):
    y = product(((1,), (0,)), jnp.float32([[1.0, bad]]), jnp.ones((2, 3)))
    assert not np.isfinite(y).any()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_8_bit_floats_reach_the_products(platform):
    """What XLA gets: no cast stands between the 8-bit floats and a product, so that the hardware can multiply them."""

    def gradients(x, weight, dy):
        return jax.vjp(functools.partial(product, ((1,), (0,))), x, weight)[1](dy)

    def forward(x, weight, dy):
        return product(((1,), (0,)), x, weight), *gradients(x, weight, dy)

    arrays = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((32, 64), jnp.bfloat16), ((64, 16), jnp.float32), ((32, 16), jnp.bfloat16))
    )
    text = jax.export.export(jax.jit(forward), platforms=[platform])(*arrays).mlir_module()
    found = re.findall(r"stablehlo\.dot_general .* : (\(.*?\) -> \S+)", text)
    assert sorted(found) == [
        "(tensor<32x16xf8E5M2>, tensor<64x16xf8E4M3FN>) -> tensor<32x64xbf16>",
        "(tensor<32x64xf8E4M3FN>, tensor<32x16xf8E5M2>) -> tensor<64x16xbf16>",
        "(tensor<32x64xf8E4M3FN>, tensor<64x16xf8E4M3FN>) -> tensor<32x16xbf16>",
    ]


def test_a_mesh_has_the_scale_of_the_whole_tensor(rng):
    x, weight, contracted = operands(rng, SHAPES["matrix"])
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "outputs"))
    places = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec(None, "outputs"))
    compute = jax.jit(lambda x, weight: jax.value_and_grad(lambda x: jnp.sum(product(contracted, x, weight) ** 2))(x))
    whole, divided = compute(x, weight), compute(*jax.device_put((x, weight), places))
    np.testing.assert_allclose(divided[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(divided[1], whole[1], rtol=1e-4, atol=1e-4)
