"""Samplers against plain NumPy definitions, their limits, and the distribution they draw from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.infer.sampling import (
    SamplingConfig,
    filter_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sample,
)


@pytest.fixture
def logits(rng):
    # Steps of 1/8: plenty of exact ties.
    return np.round(rng.normal(0, 2, (8, 50)) * 8).astype(np.float32) / 8


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def by_likelihood(row):
    """Ids by falling logit, equals by rising id."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


def kept(filtered):
    return [set(np.flatnonzero(np.isfinite(row))) for row in np.asarray(filtered)]


def top_p_ids(row, p):
    probabilities, chosen, total = softmax(row.astype(np.float64)), set(), 0.0
    for i in by_likelihood(row):
        if chosen and total >= p:
            break
        chosen.add(i)
        total += probabilities[i]
    return chosen


@pytest.mark.parametrize("k", [1, 2, 7, 50, 1000])
def test_top_k_keeps_the_k_likeliest(logits, k):
    assert kept(keep_top_k(logits, k)) == [set(by_likelihood(row)[:k]) for row in logits]


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    assert kept(keep_top_p(logits, p)) == [top_p_ids(row, p) for row in logits]


@pytest.mark.parametrize("p", [1.0, 0.5, 0.05, 1e-4])
def test_min_p_keeps_those_near_the_likeliest(logits, p):
    want = [{i for i, q in enumerate(softmax(row)) if q >= p * softmax(row).max() * (1 - 1e-6)} for row in logits]
    assert kept(keep_min_p(logits, p)) == want


def test_both_zeros_are_equals():
    zeros = np.array([[-0.0, 0.0, -0.0, -1.0]], np.float32)
    assert kept(keep_top_k(zeros, 2)) == [{0, 1}]
    assert kept(keep_top_p(zeros, 0.1)) == [{0}]


def test_filters_leave_what_they_keep_unchanged(logits):
    for filtered in (keep_top_k(logits, 5), keep_top_p(logits, 0.7), keep_min_p(logits, 0.1)):
        filtered = np.asarray(filtered)
        np.testing.assert_array_equal(filtered[np.isfinite(filtered)], logits[np.isfinite(filtered)])


def test_repetition_penalty_follows_ctrl():
    logits = np.array([[2.0, -2.0, 2.0, -2.0, 0.0]], np.float32)
    seen = np.array([[True, True, False, False, True]])
    np.testing.assert_array_equal(penalize_repetition(logits, seen, 4.0), [[0.5, -8.0, 2.0, -2.0, 0.0]])


def test_steps_compose_in_the_stated_order(logits, rng):
    seen = rng.random(logits.shape) < 0.3
    config = SamplingConfig(temperature=0.5, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.5)
    filtered = np.asarray(filter_logits(logits, config, seen))
    for row, mask, got in zip(logits, seen, filtered, strict=True):
        row = np.where(mask, np.where(row > 0, row / 1.5, row * 1.5), row) / 0.5
        row = np.where(np.isin(np.arange(50), by_likelihood(row)[:20]), row, -np.inf)
        ids = top_p_ids(row, 0.8)
        ids = {i for i in ids if row[i] >= row.max() + np.log(0.05)}
        assert set(np.flatnonzero(np.isfinite(got))) == ids
        np.testing.assert_allclose(got[list(ids)], (row - row.max())[list(ids)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(temperature=0),
        SamplingConfig(top_k=1),
        SamplingConfig(top_p=1e-6),
        SamplingConfig(temperature=1e-30, top_k=1),
        SamplingConfig(temperature=0, top_k=3, top_p=0.5, min_p=0.2),
    ],
)
def test_limits_are_greedy(logits, config):
    tokens, logprobs = sample(jnp.asarray(logits), jax.random.split(jax.random.key(3), 8), config)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    want = [np.log(softmax(row)).max() for row in logits]
    np.testing.assert_allclose(logprobs, want, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.7, top_k=6),
        SamplingConfig(temperature=1.5, top_p=0.8),
        SamplingConfig(min_p=0.1),
    ],
)
def test_frequencies_follow_the_distribution(rng, config):
    """Pearson's chi-square over 20,000 seeded draws, bound at the 1e-4 quantile by Wilson and Hilferty."""
    draws, row = 20_000, rng.normal(0, 1, 12).astype(np.float32)
    probabilities = softmax(np.asarray(filter_logits(row[None], config))[0].astype(np.float64))
    keys = jax.random.split(jax.random.key(1), draws)
    tokens, _ = jax.jit(sample, static_argnums=2)(jnp.broadcast_to(row, (draws, 12)), keys, config)
    counts, possible = np.bincount(tokens, minlength=12), probabilities > 0
    assert counts[~possible].sum() == 0
    expected = draws * probabilities[possible]
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum() - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bound


def test_a_row_draws_alike_in_any_company(logits):
    keys = jax.random.split(jax.random.key(5), 8)
    config = SamplingConfig(temperature=0.9, top_p=0.95)
    together, _ = sample(jnp.asarray(logits), keys, config)
    for i in range(8):
        alone, _ = sample(jnp.asarray(logits[i : i + 1]), keys[i : i + 1], config)
        assert alone[0] == together[i]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
    ],
)
def test_config_names_what_is_out_of_range(field, value):
    with pytest.raises(ValueError, match=rf"SamplingConfig\.{field}="):
        SamplingConfig(**{field: value})


def test_penalty_without_a_mask_is_refused(logits):
    with pytest.raises(ValueError, match="mask of tokens seen"):
        sample(jnp.asarray(logits), jax.random.split(jax.random.key(0), 8), SamplingConfig(repetition_penalty=1.2))


def test_a_draw_is_the_categorical_one(logits):
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), len(logits))
    forbidden = jnp.asarray(logits).at[:, ::3].set(-jnp.inf)
    tokens, _ = sample(forbidden, keys, SamplingConfig())
    np.testing.assert_array_equal(tokens, jax.vmap(jax.random.categorical)(keys, forbidden))
