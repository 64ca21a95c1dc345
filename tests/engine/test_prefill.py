"""Pieces of prompts: nothing lost, few shapes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.engine.prefill import prefill_pieces


@given(lengths=st.lists(st.integers(0, 150), min_size=1, max_size=4), size=st.sampled_from([16, 32, 64]))
def test_pieces_hold_every_prompt_and_end_together(lengths, size):
    prompts = [np.arange(1, n + 1) for n in lengths]
    pieces = list(prefill_pieces(prompts, size))
    assert bool(pieces) == bool(max(lengths))
    for i, (tokens, segment_ids) in enumerate(pieces):
        t = tokens.shape[1]
        assert t == size or (i == 0 and t in (16, 32, 64) and t < size)
        assert segment_ids[:, -1].any()
    for row, prompt in enumerate(prompts):
        tokens = np.concatenate([t[row] for t, _ in pieces] or [np.array([], int)])
        segment_ids = np.concatenate([s[row] for _, s in pieces] or [np.array([], int)])
        np.testing.assert_array_equal(tokens[segment_ids == 1], prompt)
        np.testing.assert_array_equal(np.diff(segment_ids) < 0, False)
