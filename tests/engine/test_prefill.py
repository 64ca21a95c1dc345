"""Pieces of prompts: nothing lost, few shapes, a cut that the longest prompt's length decides."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.engine.prefill import SMALLEST_SPAN, cut_prompt, pieces, power_of_two


@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=6),
    size=st.sampled_from([16, 32, 64]),
    padding=st.integers(0, 2),
)
def test_pieces_hold_every_prompt(lengths, size, padding):
    prompts = [np.arange(1, length + 1) for length in lengths]
    rows = len(prompts) + padding
    ends = cut_prompt(max(lengths), size)
    batches = list(pieces(prompts, rows, size))
    assert [tokens.shape for tokens, _ in batches] == [
        (rows, power_of_two(end - start, 16)) for start, end in zip([0, *ends], ends, strict=False)
    ]
    empty = np.zeros((2, rows, 0), int)
    tokens, segment_ids = (np.concatenate(arrays, axis=1) for arrays in zip(empty, *batches, strict=True))
    for row, prompt in enumerate([*prompts, *[np.zeros(0, int)] * padding]):
        np.testing.assert_array_equal(tokens[row][segment_ids[row] == 1], prompt)
        # Padding trails: a prompt's tokens lie on the same grid whatever else is read.
        assert not segment_ids[row, len(prompt) :].any()


@given(
    length=st.integers(0, 300),
    size=st.sampled_from([16, 32, 64]),
    boundaries=st.lists(st.integers(0, 320), max_size=8).map(sorted),
    more=st.integers(0, 200),
)
def test_a_longer_prompt_is_cut_at_the_same_places(length, size, boundaries, more):
    ends = cut_prompt(length, size, boundaries)
    assert sorted(set(ends)) == ends
    assert all(0 < end - start <= size for start, end in zip([0, *ends], ends, strict=False))
    assert (ends or [0])[-1] == length
    # The boundaries that lie in the prompt are those of the longer one, too: its own end is the only other cut.
    shared = cut_prompt(length + more, size, [b for b in boundaries if b < length])
    assert ends[:-1] == shared[: len(ends) - 1]
    spans = [b for b in boundaries if b in ends]
    assert all(b - a >= SMALLEST_SPAN for a, b in zip([0, *spans], spans, strict=False) if a != b)
