"""The network: what may see what, pieces against whole rows, packed against separate, initial values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo2_jax.config import LayerKind
from plamo2_jax.engine.weights import unstack
from plamo2_jax.model import Plamo2, abstract_params, axes, init_params, logical_axes

T = 24
SEGMENTS = np.array([[0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 0, 0]], np.int32)


def tokens(rng, b=1, t=T):
    return rng.integers(0, 97, size=(b, t)).astype(np.int32)


def relative(actual, expected):
    return np.linalg.norm(np.asarray(actual) - np.asarray(expected)) / np.linalg.norm(expected)


def test_the_whole_network_leaks_nothing_between_documents(model, params):
    """Gradient of one document's features by every embedding of the row: exactly zero outside the document.

    Features, since tied logits read the embedding table once more; a different token at each place tells the places apart.
    """
    row = np.arange(T)[None]

    @jax.jit
    def gradient(table, weights):
        def scalar(table):
            x, _ = model.apply({"params": {**params, "embedding": table}}, row, SEGMENTS, method="features")
            return jnp.sum(jnp.sin(x) * weights[..., None])

        return jax.grad(scalar)(table)

    for document in (1, 2, 3):
        inside = SEGMENTS[0] == document
        reach = np.abs(np.asarray(gradient(params["embedding"], inside[None].astype(np.float32))))[:T]
        assert (reach[~inside] == 0.0).all()
        assert (reach[inside] > 0).any(axis=-1).all()


def test_periods_one_by_one_are_the_scan_over_them(model, params, rng):
    """Whole rows, and pieces with a cache that is not stacked."""
    apart, own = model.clone(scan_layers=False), unstack(model, params)
    jax.tree.map(lambda a, b: a.shape == b.shape or pytest.fail(f"{a.shape} {b.shape}"), own, abstract_params(apart))
    row = tokens(rng)
    apply = jax.jit(
        lambda model, params, row, cache: model.apply({"params": params}, row, cache=cache), static_argnums=0
    )
    expected, _ = apply(model, params, row, None)
    assert relative(apply(apart, own, row, None)[0], expected) < 1e-6
    cache, pieces = apart.init_cache(1, T), []
    for start in (0, 8, 16):
        logits, cache = apply(apart, own, row[:, start : start + 8], cache)
        pieces.append(logits)
    assert relative(np.concatenate(pieces, axis=1), expected) < 1e-5


def test_no_token_sees_a_later_one(apply, params, rng):
    row = tokens(rng)
    logits, _ = apply(params, row)
    for t in (1, 7, T - 1):
        changed = row.copy()
        changed[0, t] = (changed[0, t] + 1) % 97
        other, _ = apply(params, changed)
        np.testing.assert_array_equal(other[:, :t], logits[:, :t])
        assert (np.abs(other[:, t:] - logits[:, t:]).max(-1) > 0).all()


def test_packed_rows_equal_separate_documents(apply, params, rng):
    row = tokens(rng)
    packed, _ = apply(params, row, SEGMENTS)
    for document in (1, 2, 3):
        where = SEGMENTS[0] == document
        alone = np.zeros_like(row)
        alone[0, : where.sum()] = row[0, where]
        segment_ids = (np.arange(T) < where.sum()).astype(np.int32)[None]
        separate, _ = apply(params, alone, segment_ids)
        assert relative(packed[0, where], separate[0, : where.sum()]) < 1e-5


@settings(max_examples=6)
@given(st.lists(st.sampled_from([1, 2, 5]), min_size=4, max_size=12), st.integers(0, 2**32 - 1))
def test_pieces_of_any_length_equal_the_whole_row(apply, model, params, lengths, seed):
    """Rows that start late, stop early and hold several documents, cut anywhere; the ring of the window wraps."""
    rng = np.random.default_rng(seed)
    row = tokens(rng, b=3)
    segment_ids = np.concatenate([np.ones((1, T), np.int32), SEGMENTS, SEGMENTS[:, ::-1]])
    expected, _ = apply(params, row, segment_ids)
    cache, pieces, start = model.init_cache(3, T), [], 0
    # Pieces of three lengths up to the end: each length is compiled.
    for length in [*lengths, *([5] * T), 2, 2, 1]:
        if start + length > T:
            continue
        piece = slice(start, start + length)
        logits, cache = apply(params, row[:, piece], segment_ids[:, piece], cache=cache)
        pieces.append(logits)
        start = piece.stop
    assert start == T
    real = segment_ids != 0
    assert relative(np.concatenate(pieces, 1)[real], np.asarray(expected)[real]) < 1e-5
    np.testing.assert_array_equal(cache.count, real.sum(1))


def test_a_cache_used_again_for_a_new_document_starts_afresh(apply, model, params, rng):
    first, second = tokens(rng), tokens(rng)
    expected, _ = apply(params, second)
    _, cache = apply(params, first, np.full((1, T), 1, np.int32), cache=model.init_cache(1, 2 * T))
    logits, _ = apply(params, second, np.full((1, T), 2, np.int32), cache=cache)
    assert relative(logits, expected) < 1e-5


def test_both_scans_and_recomputation_give_one_answer(model, rng):
    row = tokens(rng, b=2)
    shallow = dataclasses.replace(model.config, num_hidden_layers=2, full_attention_idx=())
    params = jax.jit(functools.partial(init_params, Plamo2(shallow)))(jax.random.key(1))

    def loss(model, params):
        logits, _ = model.apply({"params": params}, row, np.repeat(SEGMENTS, 2, 0))
        return jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    results = [
        jax.jit(jax.value_and_grad(functools.partial(loss, Plamo2(shallow, **options))))(params)
        for options in ({}, {"implementation": "reference"}, {"remat": "block"})
    ]
    for value, grads in results[1:]:
        assert float(value) == pytest.approx(float(results[0][0]), rel=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), grads, results[0][1])


def test_bfloat16_stays_near_float32(model, params, apply, rng):
    row = tokens(rng)
    exact, _ = apply(params, row)
    half_model = Plamo2(model.config, dtype=jnp.bfloat16)
    half, cache = jax.jit(half_model.apply)({"params": params}, row, cache=half_model.init_cache(1, T))
    assert half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(d) for d in ("bfloat16", "float32", "int32")}
    assert relative(half, exact) < 0.03


def test_compile_time_layout_does_not_grow_with_depth(model):
    deep = dataclasses.replace(model.config, num_hidden_layers=40, full_attention_idx=())
    shallow = dataclasses.replace(deep, num_hidden_layers=8)

    def size(config):
        net = Plamo2(config)
        params = jax.eval_shape(lambda: init_params(net, jax.random.key(0)))
        return len(jax.jit(net.apply).lower({"params": params}, jax.ShapeDtypeStruct((1, T), jnp.int32)).as_text())

    assert size(deep) < 1.05 * size(shallow)


class TestInitialValues:
    """Section 1.7 of the public facts: what each kind of parameter starts from."""

    def test_scales_rates_and_steps(self, params):
        mixer = params["run_0"]["layer_0"]["mixer"]
        np.testing.assert_allclose(mixer["a_log"][0], np.log(np.arange(1, 7)), rtol=1e-6)
        step = np.log1p(np.exp(np.asarray(mixer["dt_bias"], np.float64)))
        assert ((step > 0.99e-3) & (step < 1.01e-1)).all()
        for name in ("skip", "b_norm", "c_norm", "dt_norm"):
            assert (np.asarray(mixer[name]) == 1).all()
        assert (np.abs(mixer["conv"]) <= 0.5).all()
        assert (np.asarray(params["run_0"]["layer_0"]["post_mlp_norm"]["scale"]) == 0).all()

    def test_matrices_are_normal_with_the_configured_deviation(self, model, params):
        for leaf in (params["embedding"], params["run_0"]["layer_1"]["mlp"]["gate"]):
            assert np.std(leaf) == pytest.approx(model.config.initializer_range, rel=0.03)
            assert abs(np.mean(leaf)) < 0.003

    def test_layers_differ(self, params):
        first, second = (params[run]["layer_0"]["mlp"]["down"] for run in ("run_0", "run_1"))
        assert not np.array_equal(first, second)


def test_every_parameter_names_its_axes(model, params):
    sizes = {
        axes.EMBED: 64,
        axes.MLP: 96,
        axes.HEADS: 4,
        axes.KV_HEADS: 2,
        axes.HEAD_DIM: 16,
        axes.MAMBA_HEADS: 6,
        axes.STATE: 8,
        axes.DT_RANK: 64,
        axes.CONV: 4,
        axes.VOCAB: 97,
        None: 2,
    }

    def check(names, leaf):
        assert len(names) == leaf.ndim
        assert all(sizes[name] == size for name, size in zip(names, leaf.shape, strict=True) if name != axes.LAYERS)

    names = logical_axes(model)
    axes.map_with_axes(check, names, params)
    assert all(leaf[0] == axes.LAYERS for leaf in jax.tree.leaves(names["run_0"], is_leaf=axes.is_axes))


def test_the_config_of_these_tests_covers_every_kind(model):
    assert set(model.config.layer_kinds) == set(LayerKind)
    assert [run.count for run in model.config.layer_groups] == [1, 1, 1]
