"""Pieces of prompts: nothing lost, few shapes, a cut that the longest prompt's length decides."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.engine.prefill import piece_lengths, pieces


@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=6),
    size=st.sampled_from([16, 32, 64]),
    padding=st.integers(0, 2),
)
def test_pieces_hold_every_prompt(lengths, size, padding):
    prompts = [np.arange(1, length + 1) for length in lengths]
    rows = len(prompts) + padding
    batches = list(pieces(prompts, rows, size))
    assert [tokens.shape for tokens, _ in batches] == [(rows, length) for length in piece_lengths(max(lengths), size)]
    empty = np.zeros((2, rows, 0), int)
    tokens, segment_ids = (np.concatenate(arrays, axis=1) for arrays in zip(empty, *batches, strict=True))
    for row, prompt in enumerate([*prompts, *[np.zeros(0, int)] * padding]):
        np.testing.assert_array_equal(tokens[row][segment_ids[row] == 1], prompt)
        # Padding trails: a prompt's tokens lie on the same grid whatever else is read.
        assert not segment_ids[row, len(prompt) :].any()


@given(length=st.integers(0, 300), size=st.sampled_from([16, 32, 64]))
def test_a_prompt_is_cut_into_few_shapes(length, size):
    *whole, last = piece_lengths(length, size) or [0]
    assert set(whole) <= {size}
    assert last in {0, *(1 << n for n in range(4, 7))}
    assert last <= size
    assert 0 <= sum(whole) + last - length < max(size, 16)
