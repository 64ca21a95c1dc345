"""Generation with the cache against the whole forward pass, and what a row may depend on."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from plamo2_jax.engine.generator import Generator, default_stop_ids
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.engine.weights import cast_matrices
from plamo2_jax.model import Plamo2

GREEDY = SamplingConfig(temperature=0)
WARM = SamplingConfig(temperature=1.0, top_p=0.9)
# Lengths on both sides of a piece of 16, of the window of 6 and of nothing to prefill.
PROMPTS = [[1], [1, 7], list(range(5, 22)), [1, *range(200, 239)]]


def endless(count):
    return StopConfig(max_new_tokens=count, ids=())


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward(model, params, tokens, usable):
    return jax.nn.log_softmax(model.apply({"params": params}, tokens)[0][..., :usable], axis=-1)


def greedy_by_full_forward(model, params, prompt, count, usable):
    """Tokens and their log-probabilities, every one from a forward pass over the whole row."""
    tokens, logprobs = np.zeros((1, 80), np.int32), []
    tokens[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + count):
        row = np.asarray(forward(model, params, tokens, usable))[0, end - 1]
        tokens[0, end] = row.argmax()
        logprobs.append(row.max())
    return tokens[0, len(prompt) : len(prompt) + count].tolist(), logprobs


@pytest.mark.parametrize("full_attention", [False, True])
def test_greedy_equals_the_whole_forward_pass(model, params, tokenizer, full_attention):
    if full_attention:
        # Every attention layer at once: the runs of layers, and so the tree of parameters, stay as they are.
        model = Plamo2(dataclasses.replace(model.config, full_attention_idx=(1, 3)))
    generator = Generator(model, params, tokenizer, prefill_size=16)
    completions = generator.generate(PROMPTS, sampling=GREEDY, stop=endless(24))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        tokens, logprobs = greedy_by_full_forward(model, params, prompt, 24, tokenizer.vocab_size)
        assert list(completion.token_ids) == tokens
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)
        assert completion.finish_reason == "length"


@pytest.fixture(scope="module")
def batch(generator):
    return generator.generate(PROMPTS, sampling=WARM, stop=endless(20), seed=3)


def test_a_row_is_alone_what_it_is_in_a_batch(generator, batch):
    for prompt, row in zip(PROMPTS, batch, strict=True):
        alone = generator.generate([prompt], sampling=WARM, stop=endless(20), seed=3)[0]
        assert (alone.token_ids, alone.text) == (row.token_ids, row.text)


def test_a_generator_remembers_nothing(generator, model, params, tokenizer, batch):
    generator.generate([[1, 2, 3]], sampling=WARM, stop=endless(5))
    fresh = Generator(model, params, tokenizer, prefill_size=16)
    again = generator.generate(PROMPTS, sampling=WARM, stop=endless(20), seed=3)
    assert again == fresh.generate(PROMPTS, sampling=WARM, stop=endless(20), seed=3) == batch


def test_seeds_differ_and_samples_too(generator, batch):
    other = generator.generate(PROMPTS, sampling=WARM, stop=endless(20), seed=4)
    assert all(a.token_ids != b.token_ids for a, b in zip(batch, other, strict=True))
    samples = generator.generate(PROMPTS, sampling=WARM, stop=endless(20), seed=3, samples=3)
    assert [row.token_ids for row in samples[::3]] == [row.token_ids for row in batch]
    assert len({row.token_ids for row in samples}) == len(samples)
    shared = [a == b for a, b in zip(batch[0].token_ids, batch[1].token_ids, strict=True)]
    assert sum(shared) <= 5, "prompts must not share their noise: this model is so flat that they would draw alike"


def test_text_is_the_decoded_tokens(generator, tokenizer, batch):
    for row in batch:
        assert row.text == tokenizer.decode(row.token_ids, skip_control=True)
        assert max(row.token_ids) < tokenizer.vocab_size


def test_an_ended_row_is_cut_and_changes_no_other(generator, batch):
    """Stop on an id that ends one row early and another never."""
    stop_id = next(id for id in batch[0].token_ids[2:10] if any(id not in row.token_ids for row in batch[1:]))
    stopped = generator.generate(PROMPTS, sampling=WARM, stop=StopConfig(20, ids=(stop_id,)), seed=3)
    for row, whole in zip(stopped, batch, strict=True):
        if stop_id in whole.token_ids:
            assert row.token_ids == whole.token_ids[: whole.token_ids.index(stop_id) + 1]
            assert row.finish_reason == "stop_id"
        else:
            assert (row.token_ids, row.finish_reason) == (whole.token_ids, "length")
    assert len({row.finish_reason for row in stopped}) == 2


def test_stop_ids_wait_for_the_minimum(generator, tokenizer):
    everything = tuple(range(5, tokenizer.vocab_size))
    stop = StopConfig(20, min_new_tokens=7, ids=everything)
    for row in generator.generate(PROMPTS, sampling=WARM, stop=stop):
        assert set(row.token_ids[:7]) <= set(range(5))
        assert row.token_ids[7:] == () or len(row.token_ids) >= 8


def test_stop_strings_span_tokens(generator, tokenizer, batch):
    """The text around the boundary of two tokens in the middle of a row ends it; the others go on as before."""
    for index, whole in enumerate(batch):
        pieces = [tokenizer.decode([id], skip_control=True) for id in whole.token_ids]
        where = [i for i in range(3, 15) if all(p and "\ufffd" not in p for p in pieces[i : i + 2])]
        if not where:
            continue
        string = pieces[where[0]][-1:] + pieces[where[0] + 1][:1]
        rows = generator.generate(PROMPTS, sampling=WARM, stop=StopConfig(20, ids=(), strings=(string,)), seed=3)
        assert rows[index].finish_reason == "stop_string"
        assert rows[index].text == whole.text[: whole.text.index(string)]
        assert rows[index].token_ids == whole.token_ids[: len(rows[index].token_ids)]
        assert len(rows[index].token_ids) <= where[0] + 2
        for row, other in zip(rows, batch, strict=True):
            if string not in other.text:
                assert row == other
        return
    pytest.fail("no row has two neighbouring tokens of text; choose another seed")


def test_streamed_pieces_join_to_the_text(generator, batch):
    strings = (batch[3].text[8:10],)
    stream = generator.stream(PROMPTS, sampling=WARM, stop=StopConfig(20, ids=(), strings=strings), seed=3)
    texts, pieces = [""] * len(PROMPTS), 0
    for row, piece in stream:
        assert piece
        texts[row] += piece
        pieces += 1
    results = stream.results()
    assert texts == [row.text for row in results]
    assert pieces > 2 * len(PROMPTS)
    assert stream.tokens_generated == sum(len(row.token_ids) for row in results)


def test_repetition_penalty_counts_prompt_and_text(generator, tokenizer):
    """A huge penalty forbids every id seen while the logits of another are above the penalized ones."""
    sampling = SamplingConfig(temperature=0, repetition_penalty=1e6)
    for prompt, row in zip(PROMPTS, generator.generate(PROMPTS, sampling=sampling, stop=endless(24)), strict=True):
        assert len(set(row.token_ids)) == 24
        assert not set(row.token_ids) & set(prompt)


def test_text_prompts_begin_with_bos(generator, tokenizer):
    texts = ["", "吾輩は猫", "the", "<|plamo:op|>ab"]
    ids = [tokenizer.encode(text, bos=True) for text in texts]
    assert ids[0].tolist() == [tokenizer.bos_id]
    stop = endless(6)
    assert generator.generate(texts, sampling=WARM, stop=stop) == generator.generate(ids, sampling=WARM, stop=stop)
    control = generator.generate(texts[3:], sampling=WARM, stop=stop, allow_control=True, bos=False)
    op_first = [tokenizer.op_id, *tokenizer.encode("ab")]
    assert control == generator.generate([op_first], sampling=WARM, stop=stop)


def test_without_a_tokenizer_ids_still_work(model, params, tokenizer):
    rows = Generator(model, params).generate(PROMPTS[:1], sampling=WARM, stop=endless(4))
    assert rows[0].text is None
    assert len(rows[0].token_ids) == 4
    assert default_stop_ids(model, None) == (1, 2)
    assert default_stop_ids(model, tokenizer) == (1, 2, 4)


def test_rows_that_wait_for_a_slot_write_what_they_would_alone(model, params, tokenizer):
    """Nine samples through two slots: as many as end early make room at once."""
    stop = StopConfig(20, ids=tuple(range(5, 120)))
    crowd = Generator(model, params, tokenizer, prefill_size=16, max_slots=2)
    rows = crowd.generate([*PROMPTS, PROMPTS[0]], sampling=WARM, stop=stop, seed=3, samples=2)
    assert len({len(row.token_ids) for row in rows}) > 2
    for i, prompt in enumerate([*PROMPTS, PROMPTS[0]]):
        assert rows[2 * i : 2 * i + 2] == crowd.generate([prompt], sampling=WARM, stop=stop, seed=3, samples=2)


def test_casting_matrices_ahead_changes_no_bit(model, params):
    model = dataclasses.replace(model, dtype=jax.numpy.bfloat16)
    cast = cast_matrices(model, params)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (cast, params)]
    assert sizes[0] < 0.55 * sizes[1]
    tokens = np.arange(1, 25).reshape(2, 12)
    apply = jax.jit(lambda params: model.apply({"params": params}, tokens)[0])
    np.testing.assert_array_equal(apply(cast), apply(params))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt"),
        ([[]], {}, "prompt 0 has no token"),
        ([[1], [5, 288]], {}, "prompt 1 has ids from 5 to 288"),
        ([[1.5]], {}, "row of integers"),
        ([[1] * 60], {"stop": StopConfig(41)}, "prompt 0 has 60 tokens; together with max_new_tokens=41 they exceed"),
        ([[1]], {"samples": 0}, "samples=0"),
        ([[1]], {"seed": -1}, "seed=-1"),
        ([[1]], {"stop": StopConfig(9, ids=(288,))}, "the model has ids from 0 to 287"),
        (["a\ud800"], {}, "surrogate"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(model, params, tokenizer, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        Generator(model, params, tokenizer, max_length=100).stream(prompts, **{"stop": StopConfig(9), **options})


def test_text_without_a_tokenizer_is_refused(model, params):
    generator = Generator(model, params)
    with pytest.raises(ValueError, match="no tokenizer"):
        generator.stream(["text"])
    with pytest.raises(ValueError, match="the generator has no tokenizer"):
        generator.stream([[1]], stop=StopConfig(strings=("x",)))


def test_logits_that_are_no_numbers_are_reported(model, params):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    with pytest.raises(ValueError, match="are not finite"):
        Generator(model, broken).generate([[1, 2]], sampling=WARM, stop=endless(3))
