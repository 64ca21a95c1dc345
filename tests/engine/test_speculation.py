"""Speculative decoding changes no token, and leaves the cache that plain decoding leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.scheduler import Scheduler
from plamo2_jax.engine.speculation import Lookup, SpeculationConfig, propose
from plamo2_jax.engine.stop import StopConfig

SLOTS, LENGTH = 3, 128
SPECULATION = SpeculationConfig(drafts=4, ngram=2, max_rows=SLOTS, max_pause=4)
SAMPLING = [
    # A penalty below 1 makes a random model repeat itself, so drafts are kept.
    SamplingConfig(temperature=0, repetition_penalty=0.7),
    SamplingConfig(temperature=0.5, top_p=0.8, repetition_penalty=0.7),
    SamplingConfig(temperature=0),
    SamplingConfig(),
]


@pytest.fixture(scope="module")
def run(generator):
    """Runs requests with or without speculation; returns their rows, and how many draft tokens were read and kept."""

    def run(requests, speculation):
        engine = Engine(
            generator.model,
            generator.params,
            slots=SLOTS,
            max_length=LENGTH,
            prefill_size=16,
            usable=generator.tokenizer.vocab_size,
            speculation=speculation,
        )
        scheduler, counts = Scheduler(engine, generator.tokenizer), np.zeros(2, int)
        step = engine.step

        def counted(*args, **options):
            burst = step(*args, **options)
            counts[:] += burst.drafted.sum(), burst.kept.sum()
            return burst

        engine.step = counted
        jobs = [job for request in requests for job in scheduler.submit([request])]
        while scheduler.busy:
            scheduler.run_round()
        return [job.row for job in jobs], counts

    return run


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_drafts_change_no_token(run, data):
    """n-gram drafts corrupt hybrid models (vllm#39273, #52942), a rollback leaves stale state (llama.cpp#28007, #18391)."""
    requests = [
        Request(
            np.array(data.draw(st.lists(st.integers(5, 9), min_size=1, max_size=40)), np.int32),
            data.draw(st.sampled_from(SAMPLING)),
            StopConfig(data.draw(st.integers(1, 60))),
            data.draw(st.sampled_from([(), (20, 30)])),
            data.draw(st.integers(0, 3)),
            0,
        )
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    plain, _ = run(requests, None)
    speculative, _ = run(requests, SPECULATION)
    for one, other in zip(plain, speculative, strict=True):
        assert one.token_ids == other.token_ids
        assert one.finish_reason == other.finish_reason
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)


def test_drafts_are_kept_where_text_repeats(run):
    repeating = Request(np.tile(np.arange(5, 25), 3).astype(np.int32), SAMPLING[0], StopConfig(60), (), 0, 0)
    _, (drafted, kept) = run([repeating], SPECULATION)
    assert kept > 20
    assert kept > drafted / 2


def test_constrained_rows_are_never_drafted(run):
    """A grammar is ignored or loses its place with drafts (vllm#36138, #11484, #15554)."""

    class OnlyOne:
        def allowed(self):
            bits = np.zeros(9, np.uint32)
            bits[0] = 1 << 7
            return bits

        def push(self, token):
            assert token == 7

    request = Request(np.full(20, 7, np.int32), SAMPLING[0], StopConfig(30), (), 0, 0, constraint=OnlyOne)
    (row,), (drafted, _) = run([request], SPECULATION)
    assert row.token_ids == [7] * 30
    assert drafted == 0


def test_committing_some_tokens_gives_the_cache_of_reading_them(generator):
    model, params = generator.model, {"params": generator.params}
    tokens = jnp.asarray(np.random.default_rng(0).integers(5, 280, (2, 25)), jnp.int32)
    _, cache = model.apply(params, tokens[:, :20], cache=model.init_cache(2, 64), method="features")
    kept = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)

    @jax.jit
    def deferred(cache):
        features, commit = model.apply(
            params, tokens[:, 20:], jnp.ones((2, 5), jnp.int32), cache, method="features_deferred"
        )
        return features, commit(jnp.asarray(kept))

    features, committed = deferred(cache)
    expected, _ = model.apply(params, tokens[:, 20:], cache=cache, method="features")
    _, read = model.apply(params, tokens[:, 20:], jnp.asarray(kept), cache=cache, method="features")
    np.testing.assert_allclose(features, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), committed, read)


def lookup(tokens, width=32):
    history = np.full((1, width), 99, np.int32)
    history[0, : len(tokens)] = tokens
    zero = jnp.zeros(1, jnp.int32)
    return Lookup(jnp.asarray(history), jnp.array([len(tokens)]), zero, zero)


@pytest.mark.parametrize(
    ("tokens", "draft"),
    [
        ([1, 2, 3, 4, 5, 1, 2], [3, 4, 5, 1]),
        # The latest place counts, and the text is taken to repeat itself.
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2, 4]),
        ([7, 7, 7, 7], [7, 7, 7, 7]),
        ([1, 2, 3], []),
        ([1], []),
        # What is behind the text is no match.
        ([99, 5, 99], []),
    ],
)
def test_lookup(tokens, draft):
    drafts, counts = propose(lookup(tokens), SPECULATION)
    assert drafts[0, : counts[0]].tolist() == draft


def test_useless_drafts_pause_their_row():
    state, pauses = lookup([1, 2, 1, 2]), []
    for _ in range(4):
        state = state.judged(jnp.array([4]), jnp.array([0]), 4)
        pauses.append(int(state.paused[0]))
        assert propose(state, SPECULATION)[1][0] == 0
    assert pauses == [2, 4, 4, 4]
    for _ in range(4):
        state = state.append(jnp.array([1]), jnp.array([True]))
    assert state.paused[0] == 0
    assert state.judged(jnp.array([4]), jnp.array([4]), 4).pause[0] == 0
