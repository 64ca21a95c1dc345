"""Pruning: masked is shrunk, importance is what it says, plans are of the published shapes, and what cannot be is refused."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from plamo2_jax.config import preset
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.surgery.prune.cut import check_target, cut_config, cut_params
from plamo2_jax.surgery.prune.importance import activation_scores, magnitude_scores, period_losses, score, taylor_scores
from plamo2_jax.surgery.prune.masks import apply_masks, full_masks, keep_tree, mask_state, places, soften
from plamo2_jax.surgery.prune.prune import find_masks, mean_loss, schedule
from plamo2_jax.surgery.prune.search import candidates, prune_best
from plamo2_jax.surgery.prune.selection import first_masks, select_masks
from plamo2_jax.surgery.structure import SurgeryError
from support.models import TIED, UNTIED, difference, logits, make_batch

# All axes of a model in two or three compilations of the small one; the masked one is the large one's.
CUTS = {
    "tied": [
        {"hidden_size": 15, "mamba_num_heads": 3},
        {"intermediate_size": 7, "num_attention_heads": 2, "num_key_value_heads": 1, "mamba_d_state": 4},
        {"num_attention_heads": 2, "num_hidden_layers": 2},
    ],
    # dt_rank goes with the width.
    "untied": [
        {
            "hidden_size": 1056,
            "intermediate_size": 9,
            "num_attention_heads": 3,
            "mamba_num_heads": 2,
            "mamba_d_state": 5,
        }
    ],
}


def random_masks(config, target, seed=0):
    rng = np.random.default_rng(seed)
    scores = {
        place: {axis: rng.random(shape) for axis, shape in shapes.items()} for place, shapes in places(config).items()
    }
    return select_masks(scores, config, target)


@pytest.fixture(scope="module")
def scored(originals):
    """The tied model, a batch and its loss."""
    config, params, _ = originals["tied"]
    return config, params, make_batch(config), mean_loss(config)


@pytest.mark.parametrize(("name", "changes"), [(name, cut) for name, cuts in CUTS.items() for cut in cuts])
def test_masked_is_shrunk(originals, name, changes):
    config, params, whole = originals[name]
    target = dataclasses.replace(config, **changes)
    check_target(config, target)
    masks = random_masks(config, target)
    small = cut_config(config, target, masks)
    shrunk = logits(small, cut_params(params, masks, config, small))
    masked = logits(config, jax.jit(lambda params: apply_masks(params, masks, config))(params))
    assert difference(masked, shrunk) < 1e-5
    assert difference(masked, whole) > 1e-2


def test_full_masks_change_nothing_and_cut_parameters_do_not_matter(originals):
    config, params, _ = originals["tied"]
    masks = full_masks(config)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), apply_masks(params, masks, config), params
    )
    target = dataclasses.replace(config, hidden_size=15, mamba_num_heads=3)
    masks = random_masks(config, target)
    keep = keep_tree(masks, config)
    noisy = jax.tree.map(lambda leaf, kept: np.where(kept, leaf, 7.0).astype(np.float32), params, keep)
    a, b = (logits(config, apply_masks(tree, masks, config)) for tree in (params, noisy))
    assert difference(a, b) < 1e-6


def test_moments_of_what_is_cut_are_forgotten(originals):
    config, params, _ = originals["tied"]
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = jax.tree.map(lambda leaf: leaf + 1, optimizer.init(params))
    masks = random_masks(config, dataclasses.replace(config, hidden_size=15, intermediate_size=7))
    forgotten = mask_state(state, optimizer, masks, config)
    mu = forgotten[1][0].mu
    assert int(forgotten[1][0].count) == int(state[1][0].count)
    jax.tree.map(
        lambda leaf, kept: np.testing.assert_array_equal(leaf, np.broadcast_to(kept, leaf.shape).astype(np.float32)),
        mu,
        keep_tree(masks, config),
    )


def test_every_layer_keeps_its_own_and_whole_groups(originals):
    config, _, _ = originals["tied"]
    target = dataclasses.replace(
        config, hidden_size=15, intermediate_size=7, num_attention_heads=1, num_key_value_heads=1, mamba_num_heads=3
    )
    masks = random_masks(config, target)
    attention = masks["run_0/layer_1"]
    kept = {
        axis: set(np.atleast_1d(mask.sum(-1)))
        for place in ("", "run_0/layer_0", "run_0/layer_1")
        for axis, mask in masks[place].items()
    }
    sizes = {"embed": 15, "mlp": 7, "heads": 1, "kv_heads": 1, "mamba_heads": 3, "state": 6, "dt_rank": 64}
    assert kept == {axis: {size} for axis, size in sizes.items()}
    assert not np.array_equal(attention["mlp"][0], attention["mlp"][1])
    groups = attention["heads"].reshape(2, 2, 2).any(-1)
    np.testing.assert_array_equal(groups, attention["kv_heads"])


def test_taylor_scores_are_finite_differences_of_masking(scored):
    config, params, batch, loss = scored
    scores = taylor_scores(params, config, [batch], loss)
    measure = jax.jit(lambda masks: loss(soften(params, masks, config), batch))
    ones = jax.tree.map(lambda mask: np.ones(mask.shape, np.float32), full_masks(config))
    step = 2e-2
    for place, axis, index in [
        ("", "embed", (3,)),
        ("run_0/layer_0", "mamba_heads", (1, 2)),
        ("run_0/layer_0", "state", (0, 1)),
        ("run_0/layer_0", "dt_rank", (0, 5)),
        ("run_0/layer_1", "heads", (1, 3)),
        ("run_0/layer_1", "mlp", (0, 4)),
        ("run_0", "layers", (1,)),
    ]:
        ends = []
        for sign in (1, -1):
            moved = jax.tree.map(np.copy, ones)
            moved[place][axis][index] += sign * step
            ends.append(float(measure(moved)))
        slope = (ends[0] - ends[1]) / (2 * step)
        largest = np.sqrt(scores[place][axis].max())
        assert abs(abs(slope) - np.sqrt(scores[place][axis][index])) < 0.03 * largest + 2e-5, (place, axis)


def test_activation_scores_are_those_of_the_network_run_by_hand(scored):
    """The first norm sees the embedding: its part of the stream's score is known without the network."""
    config, params, batch, _ = scored
    shallow = dataclasses.replace(config, num_hidden_layers=2)
    cut = dict(params, run_0=jax.tree.map(lambda leaf: leaf[:1], params["run_0"]))
    batch = {name: value[:1] for name, value in batch.items()}
    observed = activation_scores(cut, shallow, [batch])
    assert set(observed["run_0"]) == {"layers"}
    assert observed["run_0"]["layers"].shape == (1,)
    assert 0 < observed["run_0"]["layers"][0] < 2
    x = params["embedding"][batch["tokens"]]
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps)
    scale = 1 + params["run_0"]["layer_0"]["pre_mixer_norm"]["scale"][0]
    first = (np.abs(normed * scale) * (batch["segment_ids"] != 0)[..., None]).sum(1) / (batch["segment_ids"] != 0).sum()
    # Squares of four norms are summed: the stream's score is at least the first one's, and of its order.
    assert np.all(observed[""]["embed"] >= first[0] - 1e-5)
    # Padding does not count.
    padded = {name: np.pad(value, ((0, 1), (0, 3))) for name, value in batch.items()}
    again = activation_scores(cut, shallow, [padded])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), again, observed)


def test_magnitude_and_random_read_no_data(scored):
    config, params, _, loss = scored
    silent = dict(params, embedding=params["embedding"] * 0)
    assert np.all(magnitude_scores(silent, config)[""]["embed"] < magnitude_scores(params, config)[""]["embed"])
    a, b, c = (score("random", params, config, [], loss, seed=seed)[""]["embed"] for seed in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    for method in ("activation", "taylor"):
        with pytest.raises(SurgeryError, match="calibration data hold no batch"):
            score(method, params, config, [], loss)


def test_the_loss_without_a_period_is_that_of_the_cut_network(scored):
    config, params, batch, loss = scored
    rises = period_losses(params, config, [batch], loss)["run_0"]["layers"]
    masks = full_masks(config)
    masks["run_0"]["layers"][0] = False
    small = cut_config(config, dataclasses.replace(config, num_hidden_layers=2), masks)
    cut = cut_params(params, masks, config, small)
    whole, less = (float(jax.jit(f)(tree, batch)) for f, tree in ((loss, params), (mean_loss(small), cut)))
    assert less - whole == pytest.approx(rises[0], abs=1e-4)


def test_rounds_shrink_step_by_step(scored):
    config, params, batch, _ = scored
    target = dataclasses.replace(
        config, hidden_size=12, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1, mamba_num_heads=2
    )
    shapes = schedule(config, target, 3)
    assert [shape.hidden_size for shape in shapes] == [19, 15, 12]
    assert shapes[-1] == target
    masks = find_masks(params, config, target, [batch], rounds=2, depth="same")
    assert masks[""]["embed"].sum() == 12


def test_full_attention_follows_the_layers_that_are_kept(originals):
    config, params, _ = originals["tied"]
    config = dataclasses.replace(config, full_attention_idx=(3,))
    params = {
        **params,
        **{f"run_{i}": jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], params["run_0"]) for i in (0, 1)},
    }
    masks = full_masks(config)
    masks["run_0"]["layers"][0] = False
    small = cut_config(config, dataclasses.replace(config, num_hidden_layers=2, full_attention_idx=()), masks)
    assert small.full_attention_idx == (1,)
    cut = cut_params(params, masks, config, small)
    np.testing.assert_array_equal(
        cut["run_0"]["layer_1"]["mixer"]["q_proj"][0], params["run_1"]["layer_1"]["mixer"]["q_proj"][0]
    )


def test_published_cuts_on_shapes():
    """31B to 8B, and 8B to the public 2B: every parameter of the one comes out of the other."""
    for name, source, target, count in [
        ("31b", preset("plamo-2-31b"), preset("plamo-2-8b", vocab_size=100032), 9_118_503_936),
        ("8b", preset("plamo-2.1-8b"), preset("plamo-2.1-2b"), 2_454_012_928),
    ]:
        check_target(source, target, multiple_of=128)
        masks = first_masks(source, target)
        shapes = jax.eval_shape(lambda p, a=(masks, source, target): cut_params(p, *a), abstract_params(Plamo2(source)))
        assert shapes == abstract_params(Plamo2(target)), name
        assert sum(leaf.size for leaf in flatten_dict(shapes).values()) == count
    assert set(masks["run_0/layer_0"]["mlp"].sum(-1)) == {5632}
    assert set(masks["run_0/layer_0"]["dt_rank"].sum(-1)) == {128}


def test_search_splits_a_budget():
    source = preset("plamo-2.1-8b")
    shapes = candidates(source, 2.5e9, lambda config: config.parameter_count(), multiple_of=128)
    assert all(shape.parameter_count() <= 2.5e9 for shape in shapes)
    assert all(shape.hidden_size % 128 == 0 and shape.intermediate_size % 128 == 0 for shape in shapes)
    assert {shape.num_hidden_layers for shape in shapes} == set(range(16, 33, 2))
    with pytest.raises(SurgeryError, match="fits a budget of 1,000"):
        candidates(source, 1e3, lambda config: config.parameter_count(), multiple_of=128)
    assert all(shape.flops_per_token(64) <= 2e4 for shape in candidates(TIED, 2e4, lambda c: c.flops_per_token(64)))


def test_the_width_of_a_single_layer_can_be_cut():
    one = dataclasses.replace(TIED, num_hidden_layers=1, full_attention_idx=())
    (*_, shape) = candidates(one, 0.9 * one.parameter_count(), lambda config: config.parameter_count())
    assert (shape.num_hidden_layers, shape.hidden_size < one.hidden_size) == (1, True)


def test_search_returns_the_pruned_model_of_lowest_loss(scored):
    config, params, batch, _ = scored
    shapes = [dataclasses.replace(config, intermediate_size=size) for size in (4, 12)]
    measured = {}
    best = prune_best(params, config, shapes, [batch], method="magnitude", on_pruned=measured.__setitem__)
    assert list(measured) == shapes
    assert best.config == min(measured, key=measured.get)
    assert float(mean_loss(best.config)(best.params, batch)) == pytest.approx(measured[best.config], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "axis 'embed' has size 24 and would have 32: the target must not be larger"),
        ({"vocab_size": 60}, "vocab_size is 61 and would be 60"),
        ({"hidden_size": 20}, "axis 'embed' would have size 20: it must be a multiple of 8, such as 16 or 24"),
        ({"num_hidden_layers": 6}, "pruning cannot add layers"),
        ({"num_hidden_layers": 3}, "must fall by a multiple of 2"),
        ({"num_key_value_heads": 1}, "a group cannot gain members"),
        ({"mamba_enabled": False}, "the layer pattern MAMA (mamba_step=2) differs from the target's pattern, AAAA"),
    ],
)
def test_what_cannot_be_cut_is_refused(changes, message):
    with pytest.raises(SurgeryError) as error:
        check_target(TIED, dataclasses.replace(TIED, **changes), multiple_of=8)
    assert message in str(error.value)


def test_a_single_layer_is_another_pattern():
    with pytest.raises(SurgeryError, match="Keep at least one whole period"):
        check_target(UNTIED, dataclasses.replace(UNTIED, num_hidden_layers=1, full_attention_idx=()))


def test_masks_of_another_size_are_refused(originals):
    config, params, _ = originals["tied"]
    with pytest.raises(SurgeryError, match="keep 24 channels of axis 'embed' in all layers, but the target has 15"):
        cut_params(params, full_masks(config), config, dataclasses.replace(config, hidden_size=15))
