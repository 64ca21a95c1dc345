"""The causal convolution against a loop, across segments, padding and pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_kernels.conv1d import causal_conv1d

T, C, K = 12, 3, 4


def by_hand(x, weight, segment_ids):
    y = np.zeros_like(x)
    for b, t, j in np.ndindex(x.shape[0], x.shape[1], K):
        s = t - (K - 1) + j
        if s >= 0 and segment_ids[b, s] == segment_ids[b, t]:
            y[b, t] += weight[:, j] * x[b, s]
    return y


@given(st.lists(st.lists(st.integers(0, 3), min_size=T, max_size=T).map(sorted), min_size=2, max_size=2), st.booleans())
def test_taps_stay_inside_their_segment(rows, lead):
    rng = np.random.default_rng(0)
    # Sorted ids put the padding first; rolled, it trails.
    segment_ids = np.array([row if lead else row[row.count(0) :] + [0] * row.count(0) for row in rows], np.int32)
    x, weight = rng.normal(size=(2, T, C)).astype(np.float32), rng.normal(size=(C, K)).astype(np.float32)
    y, _ = causal_conv1d(x, weight, segment_ids=segment_ids)
    real = segment_ids != 0
    np.testing.assert_allclose(np.asarray(y)[real], by_hand(x, weight, segment_ids)[real], rtol=1e-5, atol=1e-6)


@jax.jit
def convolve(x, weight, segment_ids, state):
    return causal_conv1d(x, weight, segment_ids=segment_ids, initial_state=state)


@given(st.integers(0, T), st.integers(0, 3))
def test_pieces_with_padding_around_them_are_the_whole_row(cut, lead):
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(1, T, C)).astype(np.float32), rng.normal(size=(C, K)).astype(np.float32)
    expected, expected_state = causal_conv1d(x, weight)
    pieces, state = [], np.zeros((1, K - 1, C), np.float32)
    for piece in (x[:, :cut], x[:, cut:]):
        # One shape for all pieces, padding filled with what must not be seen.
        here = slice(lead, lead + piece.shape[1])
        padded, segment_ids = np.full((1, T + 3, C), 7.0, np.float32), np.zeros((1, T + 3), np.int32)
        padded[:, here], segment_ids[:, here] = piece, 5
        y, state = convolve(padded, weight, segment_ids, state)
        pieces.append(y[:, here])
    np.testing.assert_allclose(np.concatenate(pieces, 1), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, expected_state)


def test_no_gradient_crosses_a_boundary(rng):
    segment_ids = np.array([[1, 1, 1, 2, 3, 3, 0, 4, 4, 4, 0, 0]], np.int32)
    x, weight = rng.normal(size=(1, T, C)).astype(np.float32), rng.normal(size=(C, K)).astype(np.float32)
    jacobian = jax.jacobian(lambda x: causal_conv1d(x, weight, segment_ids=segment_ids)[0].sum(-1))(jnp.asarray(x))
    reach = np.abs(np.asarray(jacobian)[0, :, 0]).sum(-1)
    same = segment_ids[0][:, None] == segment_ids[0][None]
    assert (reach[~same] == 0).all()
    assert (np.diagonal(reach) > 0).all()


def test_the_last_tap_meets_the_current_token(rng):
    x = rng.normal(size=(1, T, C)).astype(np.float32)
    y, _ = causal_conv1d(x, np.eye(1, K, K - 1).repeat(C, 0).astype(np.float32))
    np.testing.assert_array_equal(y, x)


def test_a_misshapen_weight_is_named(rng):
    with pytest.raises(ValueError, match=r"weight has shape \(2, 4\).*must be \(3, 4\)"):
        causal_conv1d(np.zeros((1, T, C), np.float32), np.zeros((2, K), np.float32))
