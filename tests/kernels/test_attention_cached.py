"""Attention of a piece to a ring and to itself, in every way, against all keys at once; memory of a long window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_kernels.attention import Keys, attention, cached, cached_attention

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
