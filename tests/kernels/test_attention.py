"""Windowed attention against a dense softmax in float64; blocks, groups, segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_kernels.attention import attention, masked_attention

B, T, H, G, P = 2, 41, 4, 2, 8
SEGMENTS = np.stack([np.repeat([1, 2, 3], [17, 1, 23]), np.repeat([0, 1, 0, 2, 0], [3, 12, 2, 20, 4])]).astype(np.int32)


def dense(q, k, v, segment_ids, window):
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    y = np.zeros_like(q)
    for b, i, h in np.ndindex(B, T, H):
        keys = [
            j
            for j in range(T)
            if j <= i and segment_ids[b, j] == segment_ids[b, i] and (window is None or i - j <= window)
        ]
        scores = k[b, keys, h // (H // G)] @ q[b, i, h] * P**-0.5
        weights = np.exp(scores - scores.max())
        y[b, i, h] = weights / weights.sum() @ v[b, keys, h // (H // G)]
    return y


def inputs(rng):
    return [rng.normal(size=(B, T, heads, P)).astype(np.float32) for heads in (H, G, G)]


@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("block_size", [8, 41, 64])
def test_blocks_equal_the_dense_softmax(rng, window, block_size):
    q, k, v = inputs(rng)
    y = attention(q, k, v, segment_ids=SEGMENTS, window=window, block_size=block_size)
    np.testing.assert_allclose(y, dense(q, k, v, SEGMENTS, window), rtol=2e-5, atol=2e-6)


def test_a_window_is_that_many_past_tokens_and_the_token_itself(rng):
    q, k, v = inputs(rng)

    def reach(v):
        return attention(q, k, v, window=5, block_size=16)[0].sum((1, 2))

    jacobian = np.abs(np.asarray(jax.jacobian(reach)(jnp.asarray(v)))[:, 0]).sum((-1, -2))
    distance = np.arange(T)[:, None] - np.arange(T)
    assert ((jacobian > 0) == ((distance >= 0) & (distance <= 5))).all()


@pytest.mark.parametrize("block_size", [8, 64])
def test_no_gradient_crosses_a_boundary_and_blocks_agree(rng, block_size):
    q, k, v = inputs(rng)
    document = (SEGMENTS == 2)[..., None, None]

    def scalar(qkv, block_size):
        y = attention(*qkv, segment_ids=SEGMENTS, window=6, block_size=block_size)
        return jnp.sum(jnp.where(document, y, 0) ** 2)

    grads = jax.grad(scalar)((q, k, v), block_size)
    for grad, expected in zip(grads, jax.grad(scalar)((q, k, v), T), strict=True):
        assert (np.asarray(grad)[SEGMENTS != 2] == 0).all()
        assert np.abs(np.asarray(grad)[SEGMENTS == 2]).max() > 0
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


def test_memory_grows_linearly_with_the_row():
    def temporaries(t):
        shapes = [jax.ShapeDtypeStruct((1, t, heads, 16), jnp.float32) for heads in (4, 1, 1)]
        step = jax.grad(lambda q, k, v: attention(q, k, v, window=64, block_size=64).sum(), argnums=(0, 1, 2))
        return jax.jit(step).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 2.5 * temporaries(2048)


def test_one_query_a_row_equals_the_last_of_many(rng):
    q, k, v = inputs(rng)
    expected = dense(q, k, v, SEGMENTS, 5)
    positions = np.tile(np.arange(T), (B, 1))
    for i in (3, 20, T - 6):
        one = slice(i, i + 1)
        y = masked_attention(q[:, one], k, v, SEGMENTS[:, one], SEGMENTS, positions[:, one], positions, window=5)
        np.testing.assert_allclose(y, expected[:, one], rtol=2e-5, atol=2e-6)
