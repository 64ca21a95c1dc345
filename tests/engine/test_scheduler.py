"""Continuous batching: whoever shares the engine, whatever is cached and whoever leaves, a request's tokens are the same bits.

The tests name the reports of other servers whose kind of fault they exclude.
"""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.scheduler import Scheduler
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.model import Plamo2

SLOTS, LENGTH, SIZE = 4, 128, 16
SAMPLING = [
    SamplingConfig(temperature=0),
    SamplingConfig(),
    SamplingConfig(temperature=0.8, top_k=12, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
]
# Prompts share beginnings of several lengths, shorter and longer than a piece.
PROMPTS = [
    np.concatenate([np.arange(5, 5 + shared), np.random.default_rng(own).integers(5, 280, own)]).astype(np.int32)
    for shared in (1, 20, 50)
    for own in (0, 1, 2, 13, 30)
]


def request(prompt, sampling=SAMPLING[1], count=6, **more):
    return Request(prompt, sampling, StopConfig(count), more.pop("stop_ids", ()), 3, 0, **more)


@pytest.fixture(scope="module", params=[None, 200], ids=["rings", "pages"])
def start(request, generator):
    """Makes schedulers; with a window longer than a row, attention layers keep every token, and the prefix cache keeps pages."""
    if request.param:
        model = Plamo2(dataclasses.replace(generator.model.config, attention_window_size=request.param))
        generator = Generator(model.clone(scan_layers=False), generator.params, generator.tokenizer, prefill_size=SIZE)

    def start(max_bytes=0, **options):
        cache = PrefixCache(max_bytes) if max_bytes else None
        engine = Engine(
            generator.model,
            generator.params,
            slots=SLOTS,
            max_length=LENGTH,
            prefill_size=SIZE,
            usable=generator.tokenizer.vocab_size,
            prefix_cache=cache,
        )
        return Scheduler(engine, generator.tokenizer, **options)

    return start


def run(scheduler):
    while scheduler.busy:
        scheduler.run_round()


@pytest.fixture(scope="module")
def alone(start):
    """The row of a request that a fresh scheduler runs by itself."""
    known = {}

    def alone(wanted):
        key = (wanted.prompt.tobytes(), wanted.sampling, wanted.stop, wanted.stop_ids, tuple(wanted.boundaries))
        if key not in known:
            scheduler = start()
            (job,) = scheduler.submit([wanted])
            run(scheduler)
            known[key] = job.row
        return known[key]

    return alone


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_request_is_the_same_bits_alone_and_in_a_crowd(start, alone, data):
    """Second request crashes (llama.cpp#9170, #21762), concurrent prompts crash (#27537), the next request continues the last one
    (ik_llama#1696), padding writes a live row's state (vllm#42947, #55178), a prompt read between bursts corrupts (sglang#39342).
    """
    budget = data.draw(st.sampled_from([1, 16, 48, None]))
    scheduler = start(data.draw(st.sampled_from([0, 20_000, 1 << 30])), prefill_budget=budget)
    jobs = []
    for _ in range(data.draw(st.integers(4, 10))):
        prompt = data.draw(st.sampled_from(PROMPTS))
        wanted = request(
            prompt,
            data.draw(st.sampled_from(SAMPLING)),
            data.draw(st.integers(1, 8)),
            stop_ids=data.draw(st.sampled_from([(), tuple(range(60))])),
            boundaries=data.draw(st.sampled_from([(), (40,)])),
        )
        jobs += scheduler.submit([wanted], priority=data.draw(st.integers(0, 2)))
        if data.draw(st.booleans()):
            scheduler.cancel(data.draw(st.sampled_from(jobs)))
        for _ in range(data.draw(st.integers(0, 2))):
            scheduler.run_round()
    run(scheduler)
    for job in jobs:
        expected = alone(job.request)
        if job.row.finish_reason == "cancelled":
            assert job.row.token_ids == expected.token_ids[: len(job.row.token_ids)]
        else:
            assert job.row.token_ids == expected.token_ids
            assert job.row.logprobs == expected.logprobs
            assert job.row.completion() == expected.completion()
    assert sorted(scheduler._free) == list(range(SLOTS))


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: str(len(prompt)))
def test_a_cached_prefix_gives_the_same_bits(start, alone, prompt):
    """Exact repeats abort (llama-cpp-turboquant#175), a tail of one token gives a wrong token (sglang#29633), short prompts are never
    found (llama.cpp#20428), only attention is restored (LMCache#4247), hit lengths disagree (vllm#45614).
    """
    scheduler = start(1 << 30)
    for expected_cached in (0, len(prompt) - 1):
        (job,) = scheduler.submit([request(prompt)])
        run(scheduler)
        assert job.cached_tokens == expected_cached
        assert job.row.completion() == alone(request(prompt)).completion()
        # The request after it begins alike and goes on differently.
        longer = request(np.append(prompt, [77, 78, 79]).astype(np.int32))
        (other,) = scheduler.submit([longer])
        run(scheduler)
        assert other.row.completion() == alone(longer).completion()


def test_a_conversation_finds_the_turns_before(start, alone):
    """Reuse silently becomes 0 % (vllm#45238, #54504, mlx-lm#1162, llama.cpp#21831)."""
    scheduler, text = start(1 << 30), np.random.default_rng(0).integers(5, 280, 110).astype(np.int32)
    turns = [40, 80]
    for i, end in enumerate([50, 90, 110]):
        wanted = request(text[:end], boundaries=[b for b in turns if b < end])
        (job,) = scheduler.submit([wanted])
        run(scheduler)
        assert job.cached_tokens == [0, 40, 80][i]
        assert job.row.completion() == alone(wanted).completion()


def test_salts_share_nothing(start):
    scheduler = start(1 << 30)
    cached = []
    for salt in ("a", "b", "a"):
        jobs = scheduler.submit([request(PROMPTS[-1], salt=salt)])
        run(scheduler)
        cached.append(jobs[0].cached_tokens)
    assert cached == [0, 0, len(PROMPTS[-1]) - 1]


def test_the_prefix_cache_stays_within_its_budget(start, alone):
    scheduler = start(60_000)
    cache = scheduler.engine.prefix_cache
    for prompt in PROMPTS * 2:
        (job,) = scheduler.submit([request(prompt)])
        run(scheduler)
        assert cache.bytes <= cache.max_bytes
        assert job.row.completion() == alone(request(prompt)).completion()
    assert cache.evictions
    assert len(cache)


def test_poison_in_free_slots_reaches_nobody(start, alone):
    """NaN in every leaf of the free slots: requests that take them, and their neighbours, are unchanged."""
    scheduler = start()
    state = scheduler.engine._state
    poison = jax.tree.map(
        lambda leaf: jax.numpy.full_like(leaf, np.nan) if leaf.dtype == np.float32 else leaf, state.cache
    )
    scheduler.engine._state = state.replace(cache=poison)
    jobs = [scheduler.submit([request(prompt)])[0] for prompt in PROMPTS[5:12]]
    run(scheduler)
    for job in jobs:
        assert job.row.completion() == alone(job.request).completion()


def test_a_cancelled_job_frees_its_slot_within_one_round(start):
    """Generation runs on after the client left (vllm#32439, textgen#4521)."""
    scheduler = start()
    jobs = [scheduler.submit([request(PROMPTS[0], count=60)])[0] for _ in range(SLOTS + 1)]
    scheduler.run_round()
    scheduler.cancel(jobs[0])
    scheduler.cancel(jobs[-1])
    ended = {delta.job: delta.finish_reason for delta in scheduler.run_round() if delta.finish_reason}
    assert ended == {jobs[0]: "cancelled", jobs[-1]: "cancelled"}
    assert (scheduler.running, scheduler.waiting) == (SLOTS - 1, 0)


def test_priorities_and_deadlines(start):
    now = [0.0]
    scheduler = start(clock=lambda: now[0])
    first = [scheduler.submit([request(PROMPTS[0], count=20)])[0] for _ in range(SLOTS)]
    late = scheduler.submit([request(PROMPTS[1])], priority=1)[0]
    urgent = scheduler.submit([request(PROMPTS[2])], priority=-1)[0]
    hopeless = scheduler.submit([request(PROMPTS[3])], deadline=5.0)[0]
    now[0] = 6.0
    scheduler.run_round()
    assert hopeless.row.finish_reason == "deadline"
    run(scheduler)
    assert all(job.row.finish_reason == "length" for job in (*first, late, urgent))
    assert urgent.started <= late.started


def test_samples_of_one_prompt_share_its_reading(start, monkeypatch):
    scheduler = start()
    started = []
    begin = scheduler.engine.start_prefill
    monkeypatch.setattr(scheduler.engine, "start_prefill", lambda *args: started.append(args) or begin(*args))
    prompt = PROMPTS[-1]
    jobs = scheduler.submit([Request(prompt, SAMPLING[1], StopConfig(5), (), 1, i) for i in range(SLOTS + 3)])
    run(scheduler)
    assert len(started) == 1
    assert len({tuple(job.row.token_ids) for job in jobs}) > 1


def test_bias_and_likeliest_tokens(start):
    scheduler = start()
    (job,) = scheduler.submit([request(PROMPTS[6], SAMPLING[0], logit_bias={9: 100.0}, top_logprobs=5)])
    (other,) = scheduler.submit([request(PROMPTS[6], SAMPLING[0], top_logprobs=20)])
    run(scheduler)
    assert set(job.row.token_ids) == {9}
    for row, n in ((job.row, 5), (other.row, 20)):
        for token, logprob, top in zip(row.token_ids, row.logprobs, row.top_logprobs, strict=True):
            # Greedy decoding takes the first of the likeliest; both are rounded alike.
            assert top[0] == (token, logprob)
            assert len(top) == n
            assert sorted(top, key=lambda pair: -pair[1]) == list(top)


class OnlyEven:
    """Allows even ids at even places, odd ids at odd places."""

    def __init__(self):
        self.places = 0

    def allowed(self):
        return np.full(9, 0x55555555 if self.places % 2 == 0 else 0xAAAAAAAA, np.uint32)

    def push(self, token):
        self.places += 1


def test_constraints_bind_their_row_alone(start, alone):
    scheduler = start()
    (free,) = scheduler.submit([request(PROMPTS[7])])
    bound = scheduler.submit([request(PROMPTS[8], constraint=OnlyEven)])[0]
    run(scheduler)
    assert [token % 2 for token in bound.row.token_ids] == [0, 1, 0, 1, 0, 1]
    assert free.row.completion() == alone(request(PROMPTS[7])).completion()
