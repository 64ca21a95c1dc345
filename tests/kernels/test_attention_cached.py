"""Attention of a piece to a ring and to itself, in every way, against all keys at once; memory of a long window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_kernels import native
from plamo2_kernels.attention import (
    Keys,
    attend_one_token,
    attention,
    cached,
    cached_attention,
    quantize_heads,
)

B, H, G, P = 2, 4, 2, 16


def random_keys(rng, t, segments, positions):
    k, v = rng.normal(size=(2, B, t, G, P)).astype(np.float32).swapaxes(2, 3)
    return Keys(k, v, np.asarray(positions, np.int32), np.asarray(segments, np.int32))


def written(ring, keys, count):
    """The ring after the tokens of `keys` that are not padding, token by token; and their number."""
    ring, count = Keys(*(np.array(a) for a in ring)), count.copy()
    for b in range(B):
        for t in np.flatnonzero(keys.segment_ids[b]):
            slot = count[b] % ring.positions.shape[1]
            for old, new in zip(ring[:2], keys[:2], strict=True):
                old[b, :, slot] = new[b, :, t]
            for old, new in zip(ring[2:], keys[2:], strict=True):
                old[b, slot] = new[b, t]
            count[b] += 1
    return ring, count


def case(rng, window, slots, lead, trail):
    """Two rows of two documents: what was read before, then a piece with padding in front and behind."""
    t, before = 40, (31, 5)
    lengths = t - lead - trail
    segments = np.zeros((B, max(before) + t), int)
    for b, n in enumerate(before):
        document = np.array([1] * (n // 2) + [2] * (n - n // 2 + 11) + [3] * (lengths - 11))
        segments[b, max(before) - n : max(before)] = document[:n]
        segments[b, max(before) + lead : max(before) + t - trail] = document[n:]
    positions = np.maximum(np.cumsum(segments != 0, axis=1) - 1, 0)
    whole = random_keys(rng, segments.shape[1], segments, positions)
    q = rng.normal(size=(B, t, H, P)).astype(np.float32)
    past, piece = (
        Keys(*(a[:, :, part] for a in whole[:2]), *(a[:, part] for a in whole[2:]))
        for part in (slice(max(before)), slice(max(before), None))
    )
    empty = Keys(
        np.zeros((B, G, slots, P), np.float32),
        np.zeros((B, G, slots, P), np.float32),
        np.zeros((B, slots), np.int32),
        np.full((B, slots), -1, np.int32),
    )
    ring, count = written(empty, past, np.zeros(B, np.int32))
    return q, piece, ring, count


@pytest.mark.parametrize(("window", "slots"), [(9, 10), (None, 64)])
@pytest.mark.parametrize(("lead", "trail"), [(0, 0), (7, 0), (0, 6), (3, 2)])
def test_every_way_equals_all_keys_at_once(rng, monkeypatch, window, slots, lead, trail):
    q, piece, ring, count = case(rng, window, slots, lead, trail)
    attend = functools.partial(cached_attention, q, piece, ring, count, window=window)
    dense = attend(implementation="xla")
    splash = attend(implementation="splash", interpret=True)
    monkeypatch.setattr(cached, "_MOST_SCORES", 0)
    monkeypatch.setattr(cached, "_BLOCK", 7)
    blocks = attend(implementation="xla")
    real = piece.segment_ids != 0
    np.testing.assert_allclose(blocks[real], dense[real], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(splash[real], dense[real], rtol=2e-5, atol=2e-5)
    # And the piece as the end of a whole row, without a ring.
    keys = cached.in_order(piece, ring, count)
    rows = np.concatenate([np.zeros((B, keys.k.shape[2] - q.shape[1], H, P), np.float32), q], axis=1)
    k, v = keys.k.swapaxes(1, 2), keys.v.swapaxes(1, 2)
    whole = attention(rows, k, v, segment_ids=keys.segment_ids, window=window, implementation="xla")
    np.testing.assert_allclose(np.asarray(whole)[:, -q.shape[1] :][real], dense[real], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("window", [32768, None])
def test_a_long_window_takes_little_memory(window):
    """A piece of 512 in a window of 32,768 with 32 heads: all scores would be 2.2 GB a row."""
    t, s, h, g, p = 512, 32769, 32, 8, 128

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def keys(n):
        return Keys(shape(1, g, n, p), shape(1, g, n, p), shape(1, n, dtype=jnp.int32), shape(1, n, dtype=jnp.int32))

    attend = jax.jit(functools.partial(cached_attention, window=window, implementation="xla"))
    compiled = attend.lower(shape(1, t, h, p), keys(t), keys(s), shape(1, dtype=jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 64 << 20


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_one_token_in_cpp_equals_float64(rng, kind, window):
    """Rings in any state: empty slots, other segments, slots that are not a number; and rows on their own have the same bits."""
    native.require()
    b, h, g, s, p = 3, 6, 2, 37, 24
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in ((b, h, p), (b, g, s, p), (b, g, s, p)))
    positions = np.stack([rng.permutation(s) for _ in range(b)]).astype(np.int32)
    segments = np.where(positions < 30, np.where(positions < 12, 1, 2), -1).astype(np.int32)
    at, of = np.array([29, 11, 15], np.int32), np.array([2, 1, 2], np.int32)
    scales, exact = None, (k.astype(np.float64), v.astype(np.float64))
    if kind == "int8":
        (k, of_k), (v, of_v) = quantize_heads(jnp.asarray(k)), quantize_heads(jnp.asarray(v))
        scales = of_k, of_v
        assert np.abs(np.asarray(k, np.float64) * of_k[..., None] - exact[0]).max() < 0.51 * np.asarray(of_k).max()
        exact = tuple(np.asarray(a, np.float64) * np.asarray(c)[..., None] for a, c in ((k, of_k), (v, of_v)))
    distance = at[:, None] - positions
    seen = (segments == of[:, None]) & (distance >= 0) & ((distance <= window) if window is not None else True)
    scores = np.einsum("bgup,bgsp->bgus", q.reshape(b, g, 3, p).astype(np.float64), exact[0]) * p**-0.5
    scores = np.where(seen[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bgus,bgsp->bgup", weights / weights.sum(-1, keepdims=True), exact[1]).reshape(b, h, p)
    if kind == "float32":
        k, v = (np.where(seen[:, None, :, None], a, np.nan) for a in (k, v))

    def run(rows, implementation):
        ring = Keys(*(jnp.asarray(a)[rows] for a in (k, v, positions, segments)))
        held = None if scales is None else tuple(a[rows] for a in scales)
        settings = {"window": window, "implementation": implementation}
        return np.asarray(attend_one_token(jnp.asarray(q)[rows], ring, held, at[rows], of[rows], **settings))

    ours = run(slice(None), "ffi")
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    for row in range(b):
        np.testing.assert_array_equal(run(slice(row, row + 1), "ffi")[0], ours[row])
    if kind == "int8":
        np.testing.assert_allclose(run(slice(None), "xla"), expected, atol=2e-6)
