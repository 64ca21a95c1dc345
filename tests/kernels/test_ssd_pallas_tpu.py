"""The scan's TPU kernels: on the simulated TPU, over long rows, and lowered without one; what they compute is tested in test_ssd_pallas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from plamo2_kernels.errors import ImplementationError
from plamo2_kernels.ssd import ssd
from plamo2_kernels.ssd.pallas_tpu import choose_blocks
from support.scans import (
    SIZES,
    Size,
    arguments,
    assert_equal_to_reference,
    cotangents_for,
    evaluate,
    segments_from,
    single,
)


def test_the_simulated_tpu_agrees_with_the_reference(rng):
    """Uninitialized memory is NaN there, and a read out of bounds raises. Two loops over eight heads, two blocks of heads."""
    size = Size(b=1, t=150, h=32, p=8, n=8, chunk=128)
    segment_ids = segments_from([(0, 3), (1, 60), (1, 1), (1, 80)], size.t)[None]
    args = arguments(rng, size, groups=1)
    cotangents = cotangents_for(rng, args, segment_ids)
    actual = evaluate(single(args), segment_ids, single(cotangents), "pallas_tpu", interpret=pltpu.InterpretParams())
    assert_equal_to_reference(actual, args, segment_ids, cotangents, 1e-5)


def test_a_row_of_32768_tokens_agrees_with_the_reference(rng):
    """Also where steps lie seven orders of magnitude apart in a chunk: differences of running sums that reach 20,000 keep fewer digits.

    Measured: 8e-4 for dA, below 1e-4 for all else; the chunked scan in XLA has 1e-3 and 4e-4.
    """
    size = Size(b=1, t=32768, h=2, p=8, n=8, chunk=128)
    args = arguments(rng, size, groups=1)
    args["dt"] = np.exp(rng.uniform(np.log(1e-6), np.log(20.0), size=args["dt"].shape))
    args["A"] = np.array([-1e-3, -64.0])
    segment_ids = segments_from([(1, 20000), (1, 1), (1, 9000), (0, 500), (1, 3000)], size.t)[None]
    cotangents = cotangents_for(rng, args, segment_ids)
    actual = evaluate(single(args), segment_ids, single(cotangents), "pallas_tpu")
    assert_equal_to_reference(actual, args, segment_ids, cotangents, 3e-3)


@given(st.integers(1, 3), st.integers(1, 200), st.integers(1, 4))
def test_blocks_cut_every_number_of_heads(b, heads_a_group, g):
    blocks = choose_blocks(b, heads_a_group * g, g, None)
    assert heads_a_group % blocks.heads == 0
    assert blocks.heads % blocks.unroll == 0
    assert blocks.heads % 8 == 0 or blocks.unroll == blocks.heads <= 8
    # Both cores of a chip have work.
    assert b * g * (heads_a_group // blocks.heads) > 1 or heads_a_group == 1


@pytest.mark.parametrize(
    ("dtype", "t", "h", "p", "g", "n"),
    [(jnp.bfloat16, 2048, 64, 128, 1, 64), (jnp.float32, 200, 4, 32, 2, 16)],
    ids=["8B", "tiny"],
)
def test_kernels_lower_for_tpu(dtype, t, h, p, g, n):
    """Through Mosaic, which has not every primitive; no decay matrix a head, nor one state a token, is an array of the program."""
    shapes = {"x": (1, t, h, p), "dt": (1, t, h), "A": (h,), "B": (1, t, g, n), "C": (1, t, g, n), "D": (h,)}
    args = [jax.ShapeDtypeStruct(s, dtype if n in ("x", "B", "C") else jnp.float32) for n, s in shapes.items()]
    segment_ids = jax.ShapeDtypeStruct((1, t), jnp.int32)

    def forward(*args):
        return ssd(*args[:6], segment_ids=args[6], implementation="pallas_tpu")

    def gradient(*args):
        out, pull = jax.vjp(lambda *wanted: forward(*wanted, args[6]), *args[:6])
        return pull(out)

    for function, kernels in ((forward, 1), (gradient, 2)):
        module = jax.export.export(jax.jit(function), platforms=["tpu"])(*args, segment_ids).mlir_module()
        assert module.count("@tpu_custom_call") == kernels


def test_what_it_cannot_take_is_refused(rng):
    args = arguments(rng, SIZES["pallas_tpu"])
    with pytest.raises(
        ImplementationError, match="chunk_size=100 is not allowed with pallas_tpu: it must be a multiple"
    ):
        ssd(**single(args), implementation="pallas_tpu", chunk_size=100)
    with (
        jax.enable_x64(True),
        pytest.raises(ImplementationError, match="x has dtype float64: pallas_tpu supports bfloat16 and"),
    ):
        ssd(**args, implementation="pallas_tpu")
    with pytest.raises(ValueError, match="interpret mode"):
        jax.jit(lambda args: ssd(**args, implementation="pallas_tpu"))(single(args))
