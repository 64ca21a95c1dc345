"""Quantized products: every implementation against float64, and rows that do not depend on one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_kernels import native
from plamo2_kernels.errors import ImplementationError
from plamo2_kernels.native import library
from plamo2_kernels.quant import few_rows_product, quantized_product, quantized_products, xla

IMPLEMENTATIONS = ["reference", "xla", "ffi"]


def matrix(rng, n, k, bits, groups, zeros):
    low = -(2 ** (bits - 1))
    values = rng.integers(low, -low, (n, k))
    scales = rng.uniform(0.5, 1.5, (n, groups)).astype(np.float32) * 2.0**-bits
    points = rng.integers(low, -low, (n, groups)) if zeros else None
    dtype = {8: jnp.int8, 4: jnp.int4}[bits]
    made = jnp.asarray(values, dtype), jnp.asarray(scales), None if points is None else jnp.asarray(points, dtype)
    exact = values.astype(np.float64).reshape(n, groups, -1) - (0 if points is None else points[..., None])
    return made, (exact * scales[..., None]).reshape(n, k)


# Outputs and inputs that no block divides, groups that blocks divide and groups that they do not.
CASES = [
    (8, 67, 130, 1, False),
    (8, 67, 130, 1, True),
    (8, 33, 256, 8, False),
    (8, 33, 256, 4, True),
    (8, 5, 192, 1, True),
    (4, 67, 130, 1, False),
    (4, 35, 256, 8, False),
    (4, 35, 256, 4, True),
    (4, 35, 256, 2, False),
    (4, 33, 384, 1, True),
    (4, 9, 48, 6, True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_implementation_equals_float64(rng, case):
    bits, n, k, groups, zeros = case
    arrays, exact = matrix(rng, n, k, bits, groups, zeros)
    x = rng.normal(size=(17, k)).astype(np.float32)
    x[3] *= 1e3
    expected = x.astype(np.float64) @ exact.T
    size = np.linalg.norm(x, axis=1, keepdims=True) * np.linalg.norm(exact, axis=1)
    for implementation in IMPLEMENTATIONS:
        run = jax.jit(lambda x, *arrays, name=implementation: quantized_product(x, *arrays, implementation=name))
        for rows in (1, 2, 3, 17):
            y = run(jnp.asarray(x[:rows]), *arrays)
            assert y.shape == (rows, n)
            assert y.dtype == jnp.float32
            # Activations of 16 bits: an error of 4e-5 of the sum of absolute values, which cancel less than the sum.
            np.testing.assert_array_less(np.abs(y - expected[:rows]), 6e-5 * size[:rows] + 1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 2e-6), (jnp.bfloat16, 6e-3)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", [case for case in CASES if case[3] > 1], ids=str)
def test_groups_on_accelerators(rng, case, dtype, bound):
    """The operations that run on TPU and GPU, here on CPU."""
    bits, n, k, groups, zeros = case
    arrays, exact = matrix(rng, n, k, bits, groups, zeros)
    x = jnp.asarray(rng.normal(size=(5, k)), dtype)
    y = xla._on_accelerator(x, *arrays, None)
    expected = np.asarray(x, np.float64) @ exact.T
    assert np.linalg.norm(y - expected) < bound * np.linalg.norm(expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_activations_of_8_bits_have_a_scale_for_each_row(rng, bits):
    arrays, exact = matrix(rng, 40, 256, bits, 1, False)
    x = rng.normal(size=(5, 256)).astype(np.float32) * np.array([1, 1e-4, 1e4, 1, 0], np.float32)[:, None]
    scale = np.abs(x).max(1, keepdims=True) / 127
    rounded = np.round(x / np.where(scale > 0, scale, 1)) * scale
    expected = rounded.astype(np.float64) @ exact.T
    for implementation in IMPLEMENTATIONS:
        y = quantized_product(jnp.asarray(x), *arrays, activations="int8", implementation=implementation)
        # A tie may be rounded the other way.
        np.testing.assert_allclose(y, expected, atol=2e-3 * np.abs(expected).max(1).max(), rtol=2e-3)
        assert np.all(np.asarray(y)[4] == 0)


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize(("bits", "groups"), [(8, 1), (8, 4), (4, 1), (4, 8), (4, 4), (4, 32)])
def test_a_row_is_the_same_bits_in_every_crowd(rng, bits, groups, activations):
    arrays, _ = matrix(rng, 71, 256, bits, groups, zeros=groups == 4)
    x = rng.normal(size=(17, 256)).astype(np.float32)
    run = jax.jit(
        lambda x: quantized_product(x, *arrays, activations=activations, implementation="ffi"), static_argnums=()
    )
    alone = np.concatenate([run(jnp.asarray(x[i : i + 1])) for i in range(17)])
    x[5] = np.nan
    for rows in (2, 3, 4, 7, 17):
        for first in (0, 17 - rows):
            y = np.asarray(run(jnp.asarray(x[first : first + rows])))
            for row in range(first, first + rows):
                expected = np.full_like(alone[row], np.nan) if row == 5 else alone[row]
                np.testing.assert_array_equal(y[row - first], expected)


@pytest.mark.parametrize("outputs_first", [False, True])
def test_float32_products_of_few_rows(rng, outputs_first):
    for n, k in ((67, 130), (256, 64), (7, 9), (512, 600)):
        weight = rng.normal(size=(n, k)).astype(np.float32)
        x = rng.normal(size=(17, k)).astype(np.float32)
        expected = x.astype(np.float64) @ weight.T.astype(np.float64)
        held = jnp.asarray(weight if outputs_first else weight.T)
        library.require()
        run = jax.jit(lambda x, w: few_rows_product(x, w, outputs_first=outputs_first))
        alone = np.concatenate([run(jnp.asarray(x[i : i + 1]), held) for i in range(17)])
        size = np.linalg.norm(x, axis=1, keepdims=True) * np.linalg.norm(weight, axis=1)
        np.testing.assert_array_less(np.abs(alone - expected), 1e-6 * size)
        # With outputs first, the sums of more than 6 rows have another order.
        full = np.asarray(run(jnp.asarray(x), held))
        np.testing.assert_array_less(np.abs(full - expected), 1e-6 * size)
        for rows in (2, 8, 16, 33, 64):
            some = np.concatenate([x] * 4)[-rows:]
            of_these = np.concatenate([full if outputs_first and rows > 6 else alone] * 4)[-rows:]
            np.testing.assert_array_equal(run(jnp.asarray(some), held), of_these)


def test_stacked_matrices_are_multiplied_by_the_same_rows(rng):
    weight, x = rng.normal(size=(3, 50, 40)).astype(np.float32), rng.normal(size=(2, 50)).astype(np.float32)
    library.require()
    y = few_rows_product(jnp.asarray(x), jnp.asarray(weight), outputs_first=False)
    np.testing.assert_allclose(y, np.einsum("rk,pkn->prn", x, weight), atol=1e-5)


def test_what_cannot_run_is_refused(rng):
    (values, scales, _), _ = matrix(rng, 8, 16, 8, 1, False)
    x = jnp.ones((2, 16))
    with pytest.raises(ValueError, match="implementation='fast' must be one of auto, reference, xla, ffi, pallas_tpu"):
        quantized_product(x, values, scales, implementation="fast")
    with pytest.raises(ValueError, match=r"scales \(8, 3\) must be \[8, groups\], with groups dividing the 16 inputs"):
        quantized_product(x, values, jnp.ones((8, 3)))
    with pytest.raises(ImplementationError, match='"ffi" cannot run: it has no float8_e4m3fn matrices'):
        quantized_product(x, values.astype(jnp.float8_e4m3fn), scales, implementation="ffi")
    with pytest.raises(ImplementationError, match='"ffi" cannot run: it has no float8 activations'):
        quantized_product(x, values, scales, activations="float8", implementation="ffi")


@pytest.mark.parametrize(
    ("rows", "n", "k", "groups"), [(1, 128, 256, 2), (16, 200, 384, 12), (17, 72, 256, 4)], ids=["128", "32", "64"]
)
def test_the_tpu_kernel_equals_float64(rng, rows, n, k, groups):
    """Also with outputs past the end of the matrix, which are NaN in the interpreter, and rows that do not fill a register."""
    (values, scales, _), exact = matrix(rng, n, k, 4, groups, False)
    x = jnp.asarray(rng.normal(size=(rows, k)), jnp.bfloat16)
    y = quantized_product(x, values, scales, implementation="pallas_tpu", interpret=True)
    expected = np.asarray(x, np.float64) @ exact.T
    assert y.shape == (rows, n)
    size = np.linalg.norm(np.asarray(x, np.float64), axis=1, keepdims=True) * np.linalg.norm(exact, axis=1)
    # Sums of float32, with an offset of 136 that cancels.
    np.testing.assert_array_less(np.abs(y - expected), 3e-6 * size)


def test_tpu_programs_have_the_kernel_where_it_can_run(rng):
    for rows, k, groups, dtype, kernels in (
        (16, 256, 4, jnp.bfloat16, 1),
        (16, 256, 1, jnp.bfloat16, 0),
        (65, 256, 4, jnp.bfloat16, 0),
        (16, 256, 4, jnp.float32, 0),
        (16, 64, 2, jnp.bfloat16, 0),
    ):
        shapes = ((rows, k), dtype), ((128, k), jnp.int4), ((128, groups), jnp.float32)
        arguments = [jax.ShapeDtypeStruct(*each) for each in shapes]
        module = jax.export.export(jax.jit(quantized_product), platforms=["tpu"])(*arguments).mlir_module()
        assert module.count("@tpu_custom_call") == kernels
    (values, scales, _), _ = matrix(rng, 8, 128, 4, 2, False)
    with pytest.raises(
        ImplementationError, match='"pallas_tpu" cannot run: it multiplies bfloat16 by int4, not float32'
    ):
        quantized_product(jnp.ones((2, 128)), values, scales, implementation="pallas_tpu")


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int4])
@pytest.mark.parametrize("rows", [1, 16])
def test_products_together_equal_single_products(dtype, rows):
    native.require()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, 128)), jnp.float32)
    # Outputs that are no multiple of a block, and with and without zero points.
    matrices = []
    for n, groups, zeros in ((37, 2, True), (1, 1, False), (128, 4, False)):
        values = jnp.asarray(rng.integers(-8, 8, (n, 128)), dtype)
        scales = jnp.asarray(rng.uniform(1, 2, (n, groups)), jnp.float32)
        matrices.append((values, scales, jnp.asarray(rng.integers(-8, 8, (n, groups)), jnp.int8) if zeros else None))
    together = jax.jit(lambda x: quantized_products(x, matrices))
    assert together.lower(x).as_text().count("plamo2_integers") == 1
    for y, matrix in zip(together(x), matrices, strict=True):
        np.testing.assert_array_equal(y, quantized_product(x, *matrix, implementation="ffi"))
    mixed = [matrices[0], (matrices[2][0].astype(jnp.float8_e4m3fn), *matrices[2][1:])]
    np.testing.assert_array_equal(quantized_products(x, mixed)[1], quantized_product(x, *mixed[1]))
