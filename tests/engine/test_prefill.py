"""Pieces of prompts: nothing lost, few shapes, a cut that the prompt's own length decides."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.engine.prefill import Cut, pieces


@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=12),
    size=st.sampled_from([16, 32, 64]),
    slots=st.sampled_from([1, 2, 8]),
)
def test_pieces_hold_every_prompt(lengths, size, slots):
    groups = {}
    for length in lengths:
        groups.setdefault(Cut.of(length, size, slots), []).append(np.arange(1, length + 1))
    for cut, prompts in groups.items():
        assert 1 <= cut.rows <= slots
        assert cut.rows * (cut.last or size) <= max(128, size)
        prompts = prompts[: cut.rows]
        shapes = [tokens.shape for tokens, _ in pieces(prompts, cut, cut.rows, size)]
        assert shapes == [(cut.rows, size)] * cut.whole + [(cut.rows, cut.last)] * bool(cut.last)
        assert cut.last in (0, 16, 32, 64)
        tokens, segment_ids = (
            (
                np.concatenate([np.zeros((cut.rows, 0), int), *arrays], axis=1)
                for arrays in zip(*pieces(prompts, cut, cut.rows, size), strict=True)
            )
            if shapes
            else (np.zeros((cut.rows, 0), int),) * 2
        )
        for row, prompt in enumerate([*prompts, *[np.zeros(0, int)] * (cut.rows - len(prompts))]):
            np.testing.assert_array_equal(tokens[row][segment_ids[row] == 1], prompt)
            # Padding trails: a prompt's tokens lie on the same grid whatever else is read.
            assert not segment_ids[row, len(prompt) :].any()
