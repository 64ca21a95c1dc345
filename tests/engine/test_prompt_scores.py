"""Scores of a prompt's tokens, and the warm-up: compared with a forward pass of the whole prompt, and with what is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig

LENGTH, SIZE = 160, 32


@pytest.fixture(scope="module")
def engine(generator):
    return Engine(
        generator.model,
        generator.params,
        slots=2,
        max_length=LENGTH,
        prefill_size=SIZE,
        usable=generator.tokenizer.vocab_size,
        prefix_cache=PrefixCache(1 << 28),
    )


def score(engine, prompt, n):
    scorer = engine.start_scoring(prompt, n)
    while not scorer.done:
        scorer.read_piece()
    return scorer.scores()


@pytest.mark.parametrize(("length", "n"), [(1, 1), (2, 5), (33, 0), (34, 1), (150, 1), (150, 5)])
def test_scores_are_those_of_a_forward_pass(engine, generator, length, n):
    model, usable = generator.model, generator.tokenizer.vocab_size
    prompt = np.random.default_rng(length).integers(0, usable, length).astype(np.int32)
    padded = np.zeros((1, 160), np.int32)
    padded[0, :length] = prompt
    logits = jax.jit(lambda tokens: model.apply({"params": generator.params}, tokens)[0])(padded)[0, : length - 1]
    expected = np.asarray(jax.nn.log_softmax(jnp.asarray(logits), axis=-1))
    scores = score(engine, prompt, n)
    assert scores.logprobs.shape == (length - 1,)
    assert scores.top_tokens.shape == scores.top_logprobs.shape == (length - 1, n)
    np.testing.assert_allclose(scores.logprobs, expected[np.arange(length - 1), prompt[1:]], atol=2e-5)
    for place in range(length - 1):
        # Ids that the tokenizer lacks are never among the likeliest.
        np.testing.assert_allclose(scores.top_logprobs[place], -np.sort(-expected[place, :usable])[:n], atol=2e-5)
        for token, value in zip(scores.top_tokens[place], scores.top_logprobs[place], strict=True):
            if token == prompt[place + 1]:
                assert value == scores.logprobs[place]


@pytest.mark.parametrize("bound", [False, True])
def test_nothing_is_compiled_after_the_warm_up(generator, bound):
    """Every size of a piece, a snapshot between pieces and at the end, restored or not, free and constrained steps, scores.

    Parameters from a file are bound to their device, and so is what is computed with them.
    """
    params = jax.device_put(generator.params, jax.devices()[0]) if bound else generator.params
    engine = Engine(
        generator.model,
        params,
        slots=3,
        max_length=LENGTH,
        prefill_size=SIZE,
        usable=generator.tokenizer.vocab_size,
        prefix_cache=PrefixCache(1 << 28),
    )
    engine.warm_up(scoring=True)
    assert len(engine.prefix_cache) == 0
    compiled = []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for length in (1, 2, 15, 17, 18, 33, 34, 66, 100, 159):
            prompt = np.full(length, 7, np.int32)
            for boundaries in ((), (), (34,)):
                prefix = engine.prefill(prompt, [b for b in boundaries if b < length])
            sampling = SamplingConfig(0.7, 5, 0.9, 0.1, 1.2, 0.1, 0.1)
            engine.insert(1, prefix, Request(prompt, sampling, StopConfig(1), (3,), 1, 0, 4, {5: 1.0}))
            engine.step(4)
            engine.step(1, allowed={1: np.full(9, 3, np.uint32)})
            engine.release([1])
            for n in (0, 1, 20):
                score(engine, prompt, n)
        assert compiled == []
        jax.jit(lambda x: x + 1.25)(np.zeros(3, np.float32))
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
