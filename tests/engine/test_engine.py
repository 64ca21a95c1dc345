"""Slots: a request's bits do not depend on the others, a slot keeps nothing of the request before, and no setting compiles."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig

SLOTS, LENGTH, SIZE = 4, 64, 16
CONFIGS = [
    SamplingConfig(temperature=0),
    SamplingConfig(),
    SamplingConfig(temperature=0.8, top_k=12, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
    SamplingConfig(temperature=1.3, presence_penalty=0.5, frequency_penalty=0.2),
]


def request(length, sampling=CONFIGS[1], *, count=8, seed=0, sample=0, stop_ids=(), least=0):
    prompt = np.random.default_rng(length).integers(5, 280, length).astype(np.int32)
    return Request(prompt, sampling, StopConfig(count, least), stop_ids, seed, sample)


@pytest.fixture(scope="module")
def start(generator):
    return lambda: Engine(generator.model, generator.params, slots=SLOTS, max_length=LENGTH, prefill_size=SIZE)


def alone(start, wanted, slot):
    """Tokens and log-probabilities of a request that has the engine to itself."""
    engine = start()
    prefix = engine.prefill(wanted.prompt)
    engine.insert(slot, prefix, wanted)
    burst = engine.step(wanted.stop.max_new_tokens)
    made = burst.tokens[:, slot] >= 0
    return burst.tokens[made, slot], burst.logprobs[made, slot]


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_request_is_the_same_bits_alone_and_in_a_crowd(start, data):
    """Requests of random lengths and settings arrive at random, leave when they end or are cancelled, and their slots are used again."""
    engine, held, got = start(), {}, {}
    for number in range(data.draw(st.integers(3, 8))):
        wanted = request(
            data.draw(st.integers(1, 3 * SIZE)),
            data.draw(st.sampled_from(CONFIGS)),
            count=data.draw(st.integers(1, 8)),
            seed=data.draw(st.integers(0, 3)),
            stop_ids=data.draw(st.sampled_from([(), tuple(range(60))])),
        )
        free = [slot for slot in range(SLOTS) if slot not in held]
        if not free or (data.draw(st.booleans()) and held):
            gone = data.draw(st.sampled_from(sorted(held)))
            engine.release([gone])
            held.pop(gone)
            free = [slot for slot in range(SLOTS) if slot not in held]
        slot = data.draw(st.sampled_from(free))
        prefix = engine.prefill(wanted.prompt)
        engine.insert(slot, prefix, wanted)
        held[slot], got[number] = number, (wanted, slot, [], [])
        burst = engine.step(data.draw(st.integers(1, 6)), until_free=data.draw(st.booleans()))
        for slot, number in held.items():
            made = burst.tokens[:, slot] >= 0
            got[number][2].extend(burst.tokens[made, slot])
            got[number][3].extend(burst.logprobs[made, slot])
    for wanted, slot, tokens, logprobs in got.values():
        expected = alone(start, wanted, slot)
        np.testing.assert_array_equal(tokens, expected[0][: len(tokens)])
        np.testing.assert_array_equal(np.array(logprobs, np.float32), expected[1][: len(tokens)])


def test_insert_overwrites_every_leaf_of_its_slot_and_no_other(start):
    engine = start()
    for slot in range(SLOTS):
        prefix = engine.prefill(request(9 + slot).prompt)
        engine.insert(slot, prefix, request(9 + slot, seed=9, count=9, least=3, stop_ids=(7,)))
    engine.step(5)
    before = jax.device_get(engine._state)
    poisoned = jax.tree.map(
        lambda leaf: leaf.at[2].set(True if leaf.dtype == bool else np.nan if leaf.dtype == np.float32 else 77),
        engine._state,
    )
    wanted, states = request(20, CONFIGS[2]), []
    for state in (engine._state, poisoned):
        engine._state = jax.tree.map(jax.numpy.copy, state)
        prefix = engine.prefill(wanted.prompt)
        engine.insert(2, prefix, wanted)
        states.append(jax.device_get(engine._state))
    jax.tree.map(np.testing.assert_array_equal, *states)
    others = [0, 1, 3]
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new[others], old[others]), states[0], before)


def test_a_request_is_the_same_bits_in_every_slot(start):
    engine = start()
    prompt = request(12)
    for slot in range(SLOTS):
        engine.insert(slot, engine.prefill(prompt.prompt), prompt)
    burst = engine.step(8)
    for values in (burst.tokens, burst.logprobs):
        np.testing.assert_array_equal(values, values[:, :1].repeat(SLOTS, axis=1))


def test_new_settings_compile_nothing(generator, caplog):
    """Temperature, top-k, top-p, min-p, penalties, seed, limits and stop ids are data."""

    def write(sampling, **more):
        generator.generate([[1, 2, 3], [4, 5]], sampling=sampling, **more)

    def compiled():
        return [record.message for record in caplog.records if record.message.startswith("Compiling")]

    with jax.log_compiles():
        # A stop string that is found releases a slot.
        write(SamplingConfig(), stop=StopConfig(9, strings=tuple(map(chr, range(97, 123)))))
        caplog.clear()
        for config in CONFIGS:
            write(config, stop=StopConfig(9))
        write(SamplingConfig(temperature=0.3), stop=StopConfig(9, ids=(1, 2, 3, 250, 251)), seed=5)
        write(SamplingConfig(top_p=0.2), stop=StopConfig(20, min_new_tokens=2, ids=()), seed=1 << 31)
        write(SamplingConfig(), stop=StopConfig(20, strings=("a", "b", "e")))
        assert not compiled()
        # No other test of this process may have compiled it.
        write(SamplingConfig(), stop=StopConfig(9), samples=31)
        assert any("decode" in message for message in compiled()), "another number of slots compiles"
