"""Samplers against plain NumPy definitions, their limits, and the distribution they draw from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.engine.sampling import (
    PROMPT,
    RowSampling,
    SamplingConfig,
    apply_temperature,
    draw,
    in_top_p,
    keep_min_p,
    keep_top_k,
    penalize,
    sample,
)


def of_rows(config, rows):
    """The same settings for every row."""
    return jax.tree.map(lambda value: jnp.full(rows, value), RowSampling.of(config))


def choose(logits, keys, config, counts=None):
    """`sample` with the same settings for every row."""
    counts = jnp.zeros(logits.shape, jnp.int32) if counts is None else counts
    return jax.jit(sample)(jnp.asarray(logits), keys, of_rows(config, len(logits)), counts)


@pytest.fixture
def logits(rng):
    # Steps of 1/8: plenty of exact ties.
    return np.round(rng.normal(0, 2, (8, 50)) * 8).astype(np.float32) / 8


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def keep_top_p(logits, p):
    """What `in_top_p` says of every token."""
    p = jnp.full(len(logits), p)
    columns = [in_top_p(jnp.asarray(logits), jnp.full(len(logits), i), p) for i in range(logits.shape[1])]
    return np.where(np.stack(columns, axis=1), logits, -np.inf)


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
    assert kept(keep_top_k(logits, jnp.full(len(logits), k))) == [set(by_likelihood(row)[:k]) for row in logits]


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    assert kept(keep_top_p(logits, p)) == [top_p_ids(row, p) for row in logits]


@pytest.mark.parametrize("p", [1.0, 0.5, 0.05, 1e-4])
def test_min_p_keeps_those_near_the_likeliest(logits, p):
    want = [{i for i, q in enumerate(softmax(row)) if q >= p * softmax(row).max() * (1 - 1e-6)} for row in logits]
    assert kept(keep_min_p(logits, jnp.full(len(logits), p))) == want


def test_both_zeros_are_equals():
    zeros = np.array([[-0.0, 0.0, -0.0, -1.0]], np.float32)
    assert kept(keep_top_k(zeros, jnp.array([2]))) == [{0, 1}]
    assert kept(keep_top_p(zeros, 0.1)) == [{0}]


@pytest.mark.parametrize("p", [1e-38, 1e-46])
def test_top_p_that_underflows_keeps_the_likeliest(logits, p):
    """Drawing would never end if every token were outside the set."""
    assert kept(keep_top_p(logits, p)) == [{by_likelihood(row)[0]} for row in logits]


def test_filters_leave_what_they_keep_unchanged(logits):
    for filtered in (keep_top_k(logits, jnp.full(8, 5)), keep_min_p(logits, jnp.full(8, 0.1))):
        filtered = np.asarray(filtered)
        np.testing.assert_array_equal(filtered[np.isfinite(filtered)], logits[np.isfinite(filtered)])


def test_penalties_follow_ctrl_and_openai():
    logits = np.array([[2.0, -2.0, 2.0, -2.0, 0.0]] * 2, np.float32)
    counts = np.array([[PROMPT, PROMPT + 1, 0, 3, PROMPT]] * 2)
    sampling = of_rows(SamplingConfig(repetition_penalty=4.0), 2)
    sampling = sampling.replace(presence_penalty=jnp.array([0, 0.5]), frequency_penalty=jnp.array([0, 0.25]))
    np.testing.assert_array_equal(
        penalize(logits, counts, sampling), [[0.5, -8.0, 2.0, -8.0, 0.0], [0.5, -8.75, 2.0, -9.25, 0.0]]
    )


def possible_ids(row, seen, config):
    """Ids that may be drawn and the logits that they are drawn by, step by step."""
    row = np.where(seen, np.where(row > 0, row / config.repetition_penalty, row * config.repetition_penalty), row)
    row = row / config.temperature
    row = np.where(np.isin(np.arange(len(row)), by_likelihood(row)[: config.top_k]), row, -np.inf)
    return {i for i in top_p_ids(row, config.top_p) if row[i] >= row.max() + np.log(config.min_p)}, row


def adjusted_logits(logits, config, counts):
    """What top-p and min-p look at."""
    rows = of_rows(config, len(logits))
    return keep_top_k(apply_temperature(penalize(jnp.asarray(logits), counts, rows), rows.temperature), rows.top_k)


def test_steps_compose_in_the_stated_order(logits, rng):
    seen = rng.random(logits.shape) < 0.3
    config = SamplingConfig(temperature=0.5, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.5)
    keys = jax.random.split(jax.random.key(2), 3000 * len(logits))
    counts = np.where(seen, PROMPT, 0)
    many = [jnp.repeat(jnp.asarray(array), 3000, axis=0) for array in (logits, counts)]
    tokens = choose(many[0], keys, config, many[1])[0].reshape(len(logits), 3000)
    adjusted = np.asarray(adjusted_logits(logits, config, counts))
    for row, mask, got, drawn in zip(logits, seen, adjusted, np.asarray(tokens), strict=True):
        ids, row = possible_ids(row, mask, config)
        assert set(drawn) == ids
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
    tokens, logprobs = choose(logits, jax.random.split(jax.random.key(3), 8), config)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    want = [np.log(softmax(row)).max() for row in logits]
    np.testing.assert_allclose(logprobs, want, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.7, top_k=6),
        SamplingConfig(temperature=1.5, top_p=0.8),
        SamplingConfig(temperature=1.5, top_p=0.2),
        SamplingConfig(min_p=0.1),
        SamplingConfig(top_p=0.7, min_p=0.3),
    ],
)
def test_frequencies_follow_the_distribution(rng, config):
    """Pearson's chi-square over 20,000 seeded draws, bound at the 1e-4 quantile by Wilson and Hilferty."""
    draws, row = 20_000, rng.normal(0, 1, 12).astype(np.float32)
    kept = keep_top_p(np.asarray(adjusted_logits(row[None], config, np.zeros((1, 12), np.int32))), config.top_p)
    probabilities = softmax(np.asarray(keep_min_p(kept, jnp.array([config.min_p])))[0].astype(np.float64))
    keys = jax.random.split(jax.random.key(1), draws)
    tokens, _ = choose(jnp.broadcast_to(row, (draws, 12)), keys, config)
    counts, possible = np.bincount(tokens, minlength=12), probabilities > 0
    assert counts[~possible].sum() == 0
    expected = draws * probabilities[possible]
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum() - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bound


def test_a_row_draws_alike_in_any_company(logits):
    """Each row has settings of its own; alone, a row skips the steps that only others ask for."""
    keys = jax.random.split(jax.random.key(5), 8)
    configs = [
        SamplingConfig(temperature=0),
        SamplingConfig(),
        SamplingConfig(top_k=5),
        SamplingConfig(temperature=0.9, top_p=0.95),
        SamplingConfig(min_p=0.1),
        SamplingConfig(temperature=0, repetition_penalty=2.0),
        SamplingConfig(top_p=0.3, presence_penalty=3.0),
        SamplingConfig(temperature=2.0, top_k=9, top_p=0.7, frequency_penalty=1.0),
    ]
    counts = jnp.asarray(np.arange(8 * 50).reshape(8, 50) % 3)
    rows = jax.tree.map(lambda *values: jnp.stack(values), *map(RowSampling.of, configs))
    together = jax.jit(sample)(jnp.asarray(logits), keys, rows, counts)
    for i, config in enumerate(configs):
        alone = choose(logits[i : i + 1], keys[i : i + 1], config, counts[i : i + 1])
        assert (alone[0][0], alone[1][0]) == (together[0][i], together[1][i])


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
        ("repetition_penalty", 1e-46),
        ("frequency_penalty", 1e300),
        ("presence_penalty", float("inf")),
        ("frequency_penalty", float("nan")),
    ],
)
def test_config_names_what_is_out_of_range(field, value):
    with pytest.raises(ValueError, match=rf"SamplingConfig\.{field}="):
        SamplingConfig(**{field: value})


@pytest.mark.parametrize("v", [1, 2, 9, 50, 4096])
def test_a_draw_is_where_the_sum_of_probabilities_passes_the_number(rng, v):
    logits = rng.normal(0, 3, (200, v)).astype(np.float32)
    logits[:, 1::3] = -np.inf
    uniform = np.concatenate([[0, 1 - 2**-24], rng.random(198)]).astype(np.float32)
    tokens = np.asarray(draw(jnp.asarray(logits), jnp.asarray(uniform)))
    for row, number, token in zip(logits, uniform, tokens, strict=True):
        sums = np.cumsum(softmax(row.astype(np.float64)))
        assert np.isfinite(row[token])
        assert sums[token] >= number - 1e-5
        assert (sums[token - 1] if token else 0) <= number + 1e-5


def test_a_number_at_the_edge_of_a_token_draws_no_token_of_probability_zero(rng):
    """Where rounding decides: the number that is the sum before each token, and its neighbours."""
    logits = rng.normal(0, 3, 900).astype(np.float32)
    logits[rng.random(900) < 0.5] = -np.inf
    edges = np.cumsum(softmax(logits.astype(np.float64))).astype(np.float32)
    uniform = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(1))])
    uniform = np.minimum(uniform, np.float32(1 - 2**-24))
    tokens = np.asarray(jax.jit(draw)(jnp.broadcast_to(logits, (len(uniform), 900)), jnp.asarray(uniform)))
    assert np.isfinite(logits[tokens]).all()


def test_logits_that_are_no_numbers_end_a_draw():
    logits = jnp.stack([jnp.full(9, jnp.nan), jnp.full(9, -jnp.inf), jnp.zeros(9)])
    tokens, logprobs = choose(logits, jax.random.split(jax.random.key(0), 3), SamplingConfig(top_p=0.5))
    assert not np.isfinite(logprobs[:2]).any()
    assert tokens[2] < 5
    assert np.isfinite(logprobs[2])
