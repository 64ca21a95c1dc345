"""Which parameters decay, by the axes they name, and that only those do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.config import preset
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, logical_axes
from plamo2_jax.train.optimizer import OptimizerConfig, decay_mask, make_optimizer

MODEL = Plamo2(preset("tiny", num_hidden_layers=2, vocab_size=320))

MATRICES = {
    *(f"run_0/layer_0/mixer/{name}" for name in ("in_proj", "b_proj", "c_proj", "dt_down", "dt_up", "out_proj")),
    *(f"run_0/layer_1/mixer/{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *(f"run_0/layer_{layer}/mlp/{name}" for layer in (0, 1) for name in ("gate", "up", "down")),
}


def by_name(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_matrices_decay_and_nothing_else():
    mask = by_name(decay_mask(logical_axes(MODEL)))
    assert {name for name, decays in mask.items() if decays} == MATRICES
    kept = {name.rsplit("/", 1)[-1] for name, decays in mask.items() if not decays}
    assert kept == {
        *("embedding", "scale", "conv", "a_log", "skip", "dt_bias"),
        *("b_norm", "c_norm", "dt_norm", "q_scale", "k_scale"),
    }


def test_embedding_decay_is_an_option():
    mask = by_name(decay_mask(logical_axes(MODEL), decay_embedding=True))
    assert {name for name, decays in mask.items() if decays} == MATRICES | {"embedding"}


def test_without_a_gradient_only_decaying_parameters_move():
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), abstract_params(MODEL))
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.5), lambda step: 0.1, logical_axes(MODEL))
    update = jax.jit(
        lambda params: optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    )
    updates, _ = update(params)
    for name, update in by_name(updates).items():
        np.testing.assert_allclose(update, -0.05 if name in MATRICES else 0.0, rtol=1e-6, err_msg=name)


def test_gradients_are_clipped_to_the_global_norm():
    config = OptimizerConfig(clip_norm=1.0, weight_decay=0.0, beta1=0.0, beta2=0.0, epsilon=1e3)
    params = {"w": jnp.zeros((2, 2))}
    optimizer = make_optimizer(config, lambda step: 1e3, {"w": ("embed", "mlp")})
    updates, _ = optimizer.update({"w": jnp.full((2, 2), 50.0)}, optimizer.init(params), params)
    # Clipped to norm 1, each of the four entries is 0.5; an epsilon of 1e3 makes Adam's division all but a scaling.
    np.testing.assert_allclose(updates["w"], -0.5, rtol=1e-3)


def test_moments_in_bfloat16_give_almost_the_same_updates(rng):
    params = {"w": jnp.ones((4, 8))}
    grads = [{"w": jnp.asarray(rng.standard_normal((4, 8)) + 1, jnp.float32)} for _ in range(20)]
    results = []
    for dtype in ("float32", "bfloat16"):
        config = OptimizerConfig(clip_norm=1e6, mu_dtype=dtype, nu_dtype=dtype)
        optimizer = make_optimizer(config, lambda step: 1.0, {"w": ("embed", "mlp")})
        state = optimizer.init(params)
        for grad in grads:
            update, state = optimizer.update(grad, state, params)
        results.append(update["w"])
        assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(results[1], results[0], atol=0.02)


def test_a_moment_that_bfloat16_would_hold_still_is_refused():
    with pytest.raises(ValueError, match=r"nu_dtype='bfloat16' is not allowed: .* beta of 0\.999"):
        OptimizerConfig(beta2=0.999, nu_dtype="bfloat16")


@pytest.mark.parametrize(
    ("field", "value"), [("beta1", 1.0), ("beta2", -0.1), ("epsilon", 0), ("clip_norm", 0), ("mu_dtype", "float16")]
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=rf"OptimizerConfig\.{field}=.* must be"):
        OptimizerConfig(**{field: value})
