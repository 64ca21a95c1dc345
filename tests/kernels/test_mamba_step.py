"""The C++ update of a Mamba mixer by one token, against XLA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.config import preset
from plamo2_jax.model.axes import is_matrix
from plamo2_jax.model.cache import Context, MambaCache
from plamo2_jax.model.mamba import Mamba
from plamo2_jax.model.outputs_first import store_outputs_first
from plamo2_jax.model.parameters import DeclaredParameter
from plamo2_jax.model.quantized import contraction_axes
from plamo2_kernels import native

SHAPES = {
    # Sizes that are no multiple of a vector, and a convolution of other than 4 taps.
    "odd": {"hidden_size_per_head": 6, "mamba_num_heads": 3, "mamba_d_state": 5, "mamba_d_conv": 3},
    "even": {"hidden_size_per_head": 16, "mamba_num_heads": 4, "mamba_d_state": 32, "mamba_d_conv": 4},
}


@pytest.fixture(scope="module", params=SHAPES)
def mixer(request):
    """A mixer, its parameters with projections stored outputs first, and a function that draws inputs for a number of rows."""
    config = dataclasses.replace(preset("tiny"), **SHAPES[request.param])
    rng = np.random.default_rng(0)
    h, p, n, k = config.mamba_num_heads, config.hidden_size_per_head, config.mamba_d_state, config.mamba_d_conv

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def draw(rows):
        return normal(rows, 1, config.hidden_size), MambaCache(normal(rows, k - 1, h, p), normal(rows, h, p, n))

    module = Mamba(config)
    u, cache = draw(1)
    boxed = jax.eval_shape(module.init, jax.random.key(0), u, context(1), cache)["params"]

    def one(box):
        declared = box.declaration
        value = normal(*box.value.shape) * (0.3 if is_matrix(declared.names) else 1)
        return store_outputs_first(value, contraction_axes(declared)) if is_matrix(declared.names) else value

    params = jax.tree.map(one, boxed, is_leaf=lambda leaf: isinstance(leaf, DeclaredParameter))
    return module, params, draw


def context(rows, segments=None, continues=None):
    segments = jnp.ones(rows, jnp.int32) if segments is None else jnp.asarray(segments, jnp.int32)
    continues = jnp.ones(rows, bool) if continues is None else jnp.asarray(continues)
    return Context(segments[:, None], jnp.full((rows, 1), 9), jnp.full(rows, 9), continues)


def step(mixer, products, u, context, cache):
    module, params, _ = mixer
    module = module.clone(product_implementation=products)
    program = jax.jit(lambda u, context, cache: module.apply({"params": params}, u, context, cache))
    return program(u, context, cache), program.lower(u, context, cache).as_text()


@pytest.mark.parametrize("rows", [1, 5, 18])
def test_it_equals_xla(mixer, rows):
    native.require()
    u, cache = mixer[2](rows)
    # The second row starts a document, and the third is padding.
    at = context(
        rows, [1, 1, 0, 1, 1][:rows] + [2] * (rows - 5), [True, False, True, True, True][:rows] + [True] * (rows - 5)
    )
    (y, after), text = step(mixer, "auto", u, at, cache)
    assert "plamo2_mamba_step" in text
    (expected, expected_after), text = step(mixer, "xla", u, at, cache)
    assert "plamo2" not in text
    real = np.asarray(at.segment_ids[:, 0]) != 0
    np.testing.assert_allclose(y[real], expected[real], rtol=2e-5, atol=2e-5 * np.abs(expected[real]).max())
    for ours, xla in zip(jax.tree.leaves(after), jax.tree.leaves(expected_after), strict=True):
        np.testing.assert_allclose(ours, xla, rtol=2e-5, atol=2e-6 * np.abs(xla).max())


def test_a_row_does_not_depend_on_others_and_padding_keeps_its_state(mixer):
    native.require()
    u, cache = mixer[2](4)
    (y, after), _ = step(mixer, "auto", u, context(4), cache)
    # The other rows become padding, with inputs and states that are not numbers.
    poisoned = jnp.where(jnp.arange(4)[:, None, None] == 2, u, jnp.nan)
    nowhere = jax.tree.map(lambda leaf: leaf.at[jnp.array([0, 1, 3])].set(jnp.nan), cache)
    (alone, kept), _ = step(mixer, "auto", poisoned, context(4, [0, 0, 1, 0]), nowhere)
    np.testing.assert_array_equal(alone[2], y[2])
    for ours, full, before in zip(*map(jax.tree.leaves, (kept, after, nowhere)), strict=True):
        np.testing.assert_array_equal(ours[2], full[2])
        np.testing.assert_array_equal(ours[:2], before[:2])


def test_states_are_updated_in_place(mixer):
    native.require()
    module, params, draw = mixer
    module = module.clone(product_implementation="auto")
    u, cache = draw(2)

    def generate(cache, u):
        def body(carry):
            i, u, cache = carry
            y, cache = module.apply({"params": params}, u, context(2), cache)
            return i + 1, y, cache

        return jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, u, cache))[1:]

    text = jax.jit(generate, donate_argnums=0).lower(cache, u).compile().as_text()
    shape = ",".join(map(str, cache.ssm.shape))
    assert f"f32[{shape}]" in text
    assert not [line for line in text.splitlines() if " copy(" in line and f"f32[{shape}]" in line]
