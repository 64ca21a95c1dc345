"""ModelConfig: published sizes to the unit, the layer pattern, refusals."""

import dataclasses
import json

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.config import PRESETS, LayerKind, ModelConfig, preset
from plamo2_jax.model import Plamo2, abstract_params

# Exact counts of the published checkpoints, from file sizes or configs.
PUBLISHED = {
    "plamo-2-1b": 1_291_441_920,
    "plamo-2-8b": 9_118_372_864,
    "plamo-2-translate": 9_528_235_008,
    "plamo-2.1-2b": 2_454_012_928,
    "plamo-2.1-8b": 9_118_503_936,
}


@pytest.mark.parametrize("name", PRESETS)
def test_counts_equal_the_published_ones_and_the_real_parameters(name):
    config = preset(name)
    actual = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(Plamo2(config))))
    assert actual == config.parameter_count() == PUBLISHED.get(name, actual)


def test_the_31b_proposal_is_31b():
    assert round(preset("plamo-2-31b").parameter_count() / 1e9) == 31


def test_layers_alternate_as_published():
    kinds = preset("plamo-2-1b").layer_kinds
    assert kinds == (LayerKind.MAMBA, LayerKind.WINDOW) * 8
    three = preset("tiny", mamba_step=3, num_hidden_layers=7).layer_kinds
    assert [k is LayerKind.MAMBA for k in three] == [True, False, True, True, False, True, True]
    # With no layer left for attention by the pattern, the last one is attention.
    assert preset("tiny", mamba_step=4, num_hidden_layers=2).layer_kinds == (LayerKind.MAMBA, LayerKind.WINDOW)
    assert preset("tiny", mamba_enabled=False).layer_kinds == (LayerKind.WINDOW,) * 4


@given(st.integers(1, 24), st.integers(2, 5), st.data())
def test_runs_tile_the_stack(layers, step, data):
    plain = preset("tiny", num_hidden_layers=layers, mamba_step=step)
    attention = [i for i, kind in enumerate(plain.layer_kinds) if kind is LayerKind.WINDOW]
    full = data.draw(st.sets(st.sampled_from(attention))) if attention else ()
    config = dataclasses.replace(plain, full_attention_idx=tuple(full))
    tiled = {
        run.layer_index(i, j): kind
        for run in config.layer_groups
        for i in range(run.count)
        for j, kind in enumerate(run.kinds)
    }
    assert [tiled[i] for i in range(layers)] == list(config.layer_kinds)
    assert {i for i, kind in tiled.items() if kind is LayerKind.FULL} == set(full)


@pytest.mark.parametrize("name", PRESETS)
def test_the_public_json_reads_back(name):
    config = preset(name)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("hidden_size", 0, "a positive integer"),
        ("num_key_value_heads", 3, "a divisor of num_attention_heads=4"),
        ("mamba_step", 1, "at least 2"),
        ("full_attention_idx", (0,), r"a subset of the attention layers \[1, 3\]"),
        ("rope_theta", -1.0, "a positive number"),
        ("rope_theta", "1e4", "a positive number"),
        ("full_attention_idx", 1, "a list of layer numbers"),
        ("tie_word_embeddings", "yes", "true or false"),
        ("vocab_size", 10.5, "a positive integer"),
        ("bos_token_id", 4096, "below vocab_size=4096"),
        ("hidden_size_per_head", 33, "even"),
    ],
)
def test_a_bad_field_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError, match=rf"ModelConfig\.{field}=.*{allowed}"):
        preset("tiny", **{field: value})


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="must be one of tiny, plamo-2-1b"):
        preset("plamo-3")


def test_flops_follow_the_matrices():
    # Twice the weights (the tied embedding is one product), plus attention over the window, scan and convolution.
    config = preset("plamo-2-8b")
    flops = config.flops_per_token(4096)
    assert 2 * config.parameter_count() < flops < 2.2 * config.parameter_count()
    short, long = (preset("plamo-2.1-8b").flops_per_token(t) for t in (1024, 32768))
    # 16 attention layers, 4 · 4096 FLOPs for each of the (t + 1) / 2 keys a query sees on average.
    assert long - short == pytest.approx(16 * 4 * 4096 * (32768 - 1024) / 2)
