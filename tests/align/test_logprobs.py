"""Log-probabilities of answers: packing and padding change nothing, and nothing leaks from one answer to the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.align.logprobs import gather_pairs, segment_sums, token_log_probs

ROWS, T = 4, 48


def side(rng, prompt, n):
    """An answer of n tokens behind a prompt, as an element."""
    ids = np.concatenate([prompt, rng.integers(261, 860, n)]).astype(np.int32)
    weights = (np.arange(len(ids) - 1) >= len(prompt) - 1).astype(np.float32)
    return {"tokens": ids[:-1], "targets": ids[1:], "loss_weights": weights}


@pytest.fixture(scope="module")
def pairs():
    """Two pairs of answers."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(261, 860, n) for n in (5, 3)]
    return [[side(rng, prompt, n) for n in lengths] for prompt, lengths in zip(prompts, [(6, 3), (2, 9)], strict=True)]


def rows(placed):
    """A batch from (row, start, segment, element)."""
    names = ("tokens", "targets", "segment_ids", "positions", "loss_weights")
    batch = {name: np.zeros((ROWS, T), np.float32 if name == "loss_weights" else np.int32) for name in names}
    for row, start, segment, element in placed:
        here = slice(start, start + len(element["tokens"]))
        for name, values in element.items():
            batch[name][row, here] = values
        batch["segment_ids"][row, here] = segment
        batch["positions"][row, here] = np.arange(len(element["tokens"]))
    return batch


def packed(pairs, padding=0):
    """Both pairs in the second row, with padding before and between."""
    placed, start = [], padding
    for k, pair in enumerate(pairs):
        for s, element in enumerate(pair):
            placed.append((1, start, 2 * k + 1 + s, element))
            start += len(element["tokens"]) + padding
    return rows(placed)


@pytest.fixture(scope="module")
def log_probs(model):
    return jax.jit(lambda params, batch: token_log_probs(model, params, batch))


def test_packing_and_padding_change_nothing(pairs, log_probs, params):
    # Each answer by itself, a row each: chosen 1, rejected 1, chosen 2, rejected 2.
    alone = log_probs(params, rows([(i, 0, 1, e) for i, e in enumerate([e for pair in pairs for e in pair])]))
    expected = np.asarray(alone).sum(1).reshape(2, 2)
    assert np.all(expected < -5)
    for padding in (0, 3):
        batch = packed(pairs, padding)
        result = gather_pairs(log_probs(params, batch), None, batch, max_pairs=3)
        there = np.asarray(result.has_chosen & result.has_rejected)
        assert there.reshape(ROWS, 3).tolist() == [[False] * 3, [True, True, False], [False] * 3, [False] * 3]
        np.testing.assert_allclose(np.asarray(result.chosen)[there], expected[:, 0], rtol=1e-6)
        np.testing.assert_allclose(np.asarray(result.rejected)[there], expected[:, 1], rtol=1e-6)
        assert np.asarray(result.chosen_lengths)[there].tolist() == [6, 2]
        assert np.asarray(result.rejected_lengths)[there].tolist() == [3, 9]
        assert not np.any(np.asarray(result.chosen)[~there])


def test_single_answers_are_pairs_that_lack_the_other(pairs, log_probs, params):
    (chosen, rejected), (other, _) = pairs
    # Two chosen answers in a row, the rejected one in the next.
    batch = rows([(0, 0, 1, chosen), (0, len(chosen["tokens"]), 3, other), (1, 0, 2, rejected)])
    result = gather_pairs(log_probs(params, batch), None, batch, max_pairs=2)
    whole = packed(pairs)
    expected = gather_pairs(log_probs(params, whole), None, whole, max_pairs=2)
    assert np.asarray(result.has_chosen).tolist() == [True, True, False, False] + [False] * 4
    assert np.asarray(result.has_rejected).tolist() == [False, False, True, False] + [False] * 4
    assert not np.any(result.has_chosen & result.has_rejected)
    np.testing.assert_allclose(result.chosen[:2], expected.chosen[2:4], rtol=1e-6)
    np.testing.assert_allclose(result.rejected[2], expected.rejected[2], rtol=1e-6)


def test_chunks_change_nothing(pairs, log_probs, params, model):
    batch = packed(pairs)
    chunked = jax.jit(lambda params, batch: token_log_probs(model, params, batch, chunk=12))(params, batch)
    np.testing.assert_allclose(chunked, log_probs(params, batch), atol=2e-6)


def test_nothing_leaks_between_the_answers_of_a_pair(pairs, params, model):
    batch = packed(pairs)

    def chosen(noise):
        features, _ = model.apply(
            {"params": params},
            batch["tokens"],
            batch["segment_ids"],
            batch["positions"],
            embedding_noise=noise,
            method="features",
        )
        return jnp.sum(jnp.where((batch["segment_ids"] == 1)[..., None], features, 0))

    gradient = jax.jit(jax.grad(chosen))(jnp.zeros((ROWS, T, model.config.hidden_size)))
    own = batch["segment_ids"] == 1
    assert np.all(np.any(np.asarray(gradient)[own] != 0, axis=-1))
    assert not np.any(np.asarray(gradient)[~own])


def test_sums_by_segment(rng):
    values = rng.normal(size=(2, 7)).astype(np.float32)
    ids = np.array([[0, 2, 2, 1, 3, 3, 0], [1, 1, 1, 1, 1, 1, 1]])
    expected = [[values[b][ids[b] == s].sum() for s in (1, 2, 3, 4)] for b in range(2)]
    np.testing.assert_allclose(segment_sums(jnp.asarray(values), jnp.asarray(ids), 4), expected, rtol=1e-5)
