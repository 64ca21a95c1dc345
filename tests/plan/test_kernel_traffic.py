"""HBM traffic of kernels by their block specs, compared with counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from plamo2_jax.plan.schedule.kernel_traffic import count_moves, kernel_calls


def moves(index_map, grid):
    zeros = [jnp.zeros((), jnp.int32)] * len(grid)
    return count_moves(jax.make_jaxpr(index_map)(*zeros), grid)


@pytest.mark.parametrize(
    ("index_map", "grid", "count"),
    [
        (lambda i: (i, 0), (5,), 5),
        (lambda i: (0, 0), (5,), 1),
        (lambda i, j: (i, j), (3, 4), 12),
        (lambda i, j: (i, 0), (3, 4), 3),
        # Every row starts with the first column again, so it is fetched again.
        (lambda i, j: (0, j), (3, 4), 12),
        (lambda i, j: (0, j), (3, 1), 1),
        (lambda i, j: (0, jax.lax.div(j, 2)), (1, 8), 4),
        # Rows alternate direction: each starts with the block at which the row before ends.
        (lambda i, j: (0, jnp.where(i % 2 == 0, j, 3 - j)), (2, 4), 7),
        (lambda: (0, 0), (), 1),
    ],
)
def test_a_block_moves_when_its_index_changes(index_map, grid, count):
    assert moves(index_map, grid) == count


def product(a, b):
    """Multiply [m,k] @ [k,n] in blocks (64, 128, 128) and sum in the output block."""

    def kernel(a_ref, b_ref, o_ref, scratch_ref):
        o_ref[...] += jnp.dot(a_ref[...], b_ref[...], preferred_element_type=jnp.float32)

    (m, k), n = a.shape, b.shape[1]
    return pl.pallas_call(
        kernel,
        grid=(m // 64, n // 128, k // 128),
        in_specs=[pl.BlockSpec((64, 128), lambda i, j, k: (i, k)), pl.BlockSpec((128, 128), lambda i, j, k: (k, j))],
        out_specs=pl.BlockSpec((64, 128), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((m, n), jnp.float32),
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32)],
        name="product",
    )(a, b)


def operands():
    return jax.ShapeDtypeStruct((256, 512), jnp.bfloat16), jax.ShapeDtypeStruct((512, 384), jnp.bfloat16)


def test_kernels_of_a_function_are_found_inside_other_calls():
    def twice(a, b):
        inner = jax.jit(product)(a, b)
        return jax.lax.cond(inner[0, 0] > 0, lambda: product(a, b), lambda: inner)

    first, second = kernel_calls(jax.make_jaxpr(twice)(*operands()))
    assert first == second
    assert first.name == "product"
    assert first.grid == (4, 3, 4)
    assert [(block.bytes, block.moves) for block in first.blocks] == [
        (64 * 128 * 2, 48),
        (128 * 128 * 2, 48),
        (64 * 128 * 4, 12),
    ]


def test_blocks_take_whole_tiles():
    def kernel(a_ref, o_ref):
        o_ref[...] = a_ref[...]

    def copy(a, rows):
        spec = pl.BlockSpec((None, rows, 64), lambda i: (i, 0, 0))
        return pl.pallas_call(kernel, grid=(3,), in_specs=[spec], out_specs=spec, out_shape=a, name="copy")(a)

    for rows, tall in ((1, 1), (2, 2), (3, 4), (12, 16)):
        a = jax.ShapeDtypeStruct((3, rows, 64), jnp.float32)
        (call,) = kernel_calls(jax.make_jaxpr(lambda a, rows=rows: copy(a, rows))(a))
        assert {block.bytes for block in call.blocks} == {tall * 128 * 4}


def test_traffic_that_depends_on_data_is_refused():
    def kernel(order_ref, a_ref, o_ref):
        o_ref[...] = a_ref[...]

    def gather(order, a):
        spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(4,),
            in_specs=[pl.BlockSpec((8, 128), lambda i, order: (order[i], 0))],
            out_specs=pl.BlockSpec((8, 128), lambda i, order: (i, 0)),
        )
        return pl.pallas_call(kernel, grid_spec=spec, out_shape=a, name="gather")(order, a)

    order, a = np.zeros(4, np.int32), jax.ShapeDtypeStruct((32, 128), jnp.float32)
    with pytest.raises(ValueError, match="traffic of the kernel gather depends on data"):
        kernel_calls(jax.make_jaxpr(gather)(order, a))
