"""Growing keeps the function: along every axis, in depth, and all at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from plamo2_jax.model import Plamo2, abstract_params, axes
from plamo2_jax.surgery.grow.depth import grown_config, layer_plan
from plamo2_jax.surgery.grow.grow import grow, grow_moments
from plamo2_jax.surgery.grow.width import Expansion, expansions
from plamo2_jax.surgery.structure import SurgeryError, structure
from support.models import TIED, UNTIED, difference, logits, make_tokens

# Several axes at a time: a compilation costs more than all else here. Sizes are odd on purpose.
TIED_GROWTH = {
    "embed": {"hidden_size": 40},
    "mlp, heads and layers": {"intermediate_size": 33, "num_attention_heads": 8, "num_hidden_layers": 6},
    "kv_heads, mamba_heads and state": {
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "mamba_num_heads": 7,
        "mamba_d_state": 10,
    },
    "smaller groups": {"num_key_value_heads": 4},
}


WIDER = {
    "hidden_size": 40,
    "intermediate_size": 40,
    "mamba_d_state": 10,
    "mamba_num_heads": 7,
    "num_attention_heads": 8,
}


@functools.cache
def gradient(config):
    """The compiled gradient of some function of a model's logits."""
    tokens, segment_ids = make_tokens(config)
    model = Plamo2(config)

    def value(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, tokens, segment_ids)[0]) * (segment_ids != 0)[..., None])

    return jax.jit(jax.grad(value))


@pytest.mark.parametrize("changes", TIED_GROWTH.values(), ids=TIED_GROWTH.keys())
def test_cloning_along_each_axis_keeps_the_logits(originals, changes):
    config, params, expected = originals["tied"]
    target = dataclasses.replace(config, **changes)
    # The noise is as large as the weights themselves.
    grown = grow(params, config, target, noise=1.0, seed=1)
    assert difference(logits(target, grown), expected) < 1e-5


def test_silent_channels_keep_the_logits_and_can_learn(originals):
    """No parameter of the grown network is without a gradient, but those of the new states' makers are small: both start near zero."""
    config, params, expected = originals["tied"]
    target = dataclasses.replace(config, **WIDER)
    grown = grow(params, config, target, width="zero")
    assert difference(logits(target, grown), expected) < 1e-5
    slopes = flatten_dict(gradient(target)(grown))
    for path, names in ((("mlp", "down"), 0), (("mixer", "out_proj"), 0), (("mixer", "b_proj"), 2)):
        slope = np.asarray(slopes[("run_0", "layer_0", *path)])
        new = np.moveaxis(slope[0], names, 0)[-1]
        assert np.abs(new).max() > 1e-7, path


@pytest.mark.parametrize("width", ["clone", "zero"])
def test_growing_everything_at_once_keeps_the_logits(originals, width):
    """Untied, with full attention, an epsilon that counts, and a rank of dt that follows the width."""
    config, params, expected = originals["untied"]
    wide = dataclasses.replace(
        config,
        hidden_size=1200,
        intermediate_size=24,
        num_attention_heads=10,
        num_key_value_heads=2,
        mamba_num_heads=5,
        mamba_d_state=8,
        num_hidden_layers=5,
    )
    target = grown_config(config, wide, "identity")
    assert target.full_attention_idx == (1, 3)
    assert target.dt_rank > config.dt_rank
    grown = grow(params, config, target, width=width, noise=0.3)
    assert difference(logits(target, grown), expected) < 1e-5


def test_tiling_by_a_whole_factor_is_cloning(originals):
    config, params, _ = originals["tied"]
    target = dataclasses.replace(config, hidden_size=48, intermediate_size=40, mamba_d_state=12, mamba_num_heads=8)
    cloned, tiled = (grow(params, config, target, width=width) for width in ("clone", "tile"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), cloned, tiled)


def test_golden_values_of_cloning_and_padding():
    """Width 2 to 3 with a norm: the channel with two copies is quieter, such that the mean of squares stays."""
    clone = Expansion(2, np.array([0, 1, 0]), normed=True)
    np.testing.assert_allclose(clone.gain, np.sqrt([3 / 4, 3 / 2, 3 / 4]))
    np.testing.assert_allclose(clone.read, np.sqrt([3 / 4, 3 / 2, 3 / 4]) * 2 / 3)
    x = np.array([3.0, 4.0])
    assert np.mean((clone.gain * x[[0, 1, 0]]) ** 2) == pytest.approx(np.mean(x**2))
    zero = Expansion(2, np.array([0, 1, -1]), normed=True)
    np.testing.assert_allclose(zero.gain, [1.5**0.5, 1.5**0.5, 0])
    plain = Expansion(2, np.array([0, 1, 0]), normed=False)
    np.testing.assert_allclose(plain.read, [0.5, 1, 0.5])
    scale = axes.Declaration(("embed",), ("embed",), 1.0)
    np.testing.assert_allclose(clone.weight(scale, "embed"), 2 / 3)


def test_copies_are_told_apart_by_noise_alone(originals):
    """Without noise the gradients of copies are equal, so that training could never tell them apart."""
    config, params, _ = originals["tied"]
    target = dataclasses.replace(config, **WIDER)
    for noise, alike in ((0.0, True), (0.5, False)):
        slopes = gradient(target)(grow(params, config, target, noise=noise))["run_0"]["layer_0"]["mlp"]["up"]
        first, second = np.split(np.asarray(slopes), 2, axis=-1)
        assert np.allclose(first, second, rtol=1e-3, atol=1e-5 * np.abs(first).max()) is alike


def test_moments_grow_as_gradients_do(originals):
    config, params, _ = originals["tied"]
    target = dataclasses.replace(config, **WIDER)
    small = jax.tree.map(np.asarray, gradient(config)(params))
    large = gradient(target)(grow(params, config, target))
    mu, nu = grow_moments(small, jax.tree.map(np.square, small), config, target)
    for path, expected in flatten_dict(large).items():
        size = np.linalg.norm(expected) + 1e-3
        assert np.linalg.norm(flatten_dict(mu)[path] - expected) < 1e-3 * size, path
        assert np.linalg.norm(flatten_dict(nu)[path] - np.square(expected)) < 2e-3 * size**2, path


def test_plans_of_layers():
    deeper = dataclasses.replace(TIED, num_hidden_layers=8)
    assert layer_plan(TIED, deeper, "stack").source == (0, 1, 2, 3, 0, 1, 2, 3)
    assert layer_plan(TIED, deeper, "interleave").source == (0, 1, 0, 1, 2, 3, 2, 3)
    identity = layer_plan(TIED, deeper, "identity")
    assert identity.source == (0, 1, 0, 1, 2, 3, 2, 3)
    assert identity.silent == (False, False, True, True) * 2
    # The rest of a shorter last period stays last.
    assert layer_plan(UNTIED, dataclasses.replace(UNTIED, num_hidden_layers=5), "stack").source == (0, 1, 0, 1, 2)


@pytest.mark.parametrize("depth", ["stack", "interleave"])
def test_stacked_layers_are_the_old_ones(originals, depth):
    config, params, _ = originals["tied"]
    target = dataclasses.replace(config, num_hidden_layers=8)
    grown = grow(params, config, target, depth=depth)
    old, new = (tree["run_0"]["layer_1"]["mixer"]["q_proj"] for tree in (params, grown))
    order = [0, 1, 0, 1] if depth == "stack" else [0, 0, 1, 1]
    np.testing.assert_array_equal(new, old[np.array(order)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 16}, "axis 'embed' has size 24 and would have 16: growing cannot shrink it"),
        ({"vocab_size": 80}, "axis 'vocab' has size 61 and would have 80: growing does not change this axis"),
        ({"hidden_size_per_head": 16}, "axis 'head_dim' has size 8"),
        ({"num_hidden_layers": 5}, "must grow by a multiple of 2"),
        ({"num_hidden_layers": 2}, "growing cannot remove layers"),
        ({"mamba_step": 4}, "the layer pattern MAMA (mamba_step=2) differs"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is True and would be False"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 4, "mamba_d_state": 3},
            "axis 'state' has size 6 and would have 3",
        ),
        ({"full_attention_idx": (1,)}, "layer 1 of the target has kind 'full'"),
    ],
)
def test_what_cannot_grow_is_refused(changes, message):
    with pytest.raises(SurgeryError) as error:
        grow(abstract_params(Plamo2(TIED)), TIED, dataclasses.replace(TIED, **changes))
    assert message in str(error.value)


def test_groups_that_cannot_be_cut_are_refused():
    config = dataclasses.replace(TIED, num_attention_heads=6)
    for heads, groups, message in (
        (10, 5, "cannot be split into whole groups of 2"),
        (6, 3, "cannot be split into whole groups of 2"),
    ):
        target = dataclasses.replace(config, num_attention_heads=heads, num_key_value_heads=groups)
        with pytest.raises(SurgeryError, match=message):
            expansions(config, target, "clone")


def test_every_axis_of_channels_has_growth():
    """A new axis would have to be grown too, and nothing here would need to know it."""
    target = dataclasses.replace(
        UNTIED,
        hidden_size=2048,
        intermediate_size=40,
        num_attention_heads=8,
        num_key_value_heads=2,
        mamba_num_heads=8,
        mamba_d_state=12,
    )
    s = structure(UNTIED)
    assert set(expansions(UNTIED, target, "clone")) == s.local_axes | s.global_axes
    assert s.normed == {"embed", "state", "dt_rank"}
    assert s.paired == {"state"}
