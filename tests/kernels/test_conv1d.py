"""The causal convolution against a loop, across segments, padding and pieces; its gradients, its activation, its passes over memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

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


def test_a_misshapen_weight_is_named(rng, unchecked_shapes):
    with pytest.raises(ValueError, match=r"weight has shape \(2, 4\).*must be \(3, 4\)"):
        causal_conv1d(np.zeros((1, T, C), np.float32), np.zeros((2, K), np.float32))


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="activation='gelu' must be None or one of silu"):
        causal_conv1d(np.zeros((1, T, C), np.float32), np.zeros((C, K), np.float32), activation="gelu")


def taps_of_a_state(x, weight, segment_ids, state, activation):
    """The same by indexing into each row with its state put before the first token; differentiable, in the dtype of its inputs."""
    rows = []
    for row, ids, before in zip(x, segment_ids, state, strict=True):
        lead = next((t for t in range(T) if ids[t]), T)
        y = jnp.zeros_like(row)
        for t in range(T):
            for j in range(K):
                s = t - (K - 1) + j
                if s < lead and t >= lead and ids[t] == ids[lead] and s - lead >= -(K - 1):
                    y = y.at[t].add(weight[:, j] * before[s - lead + K - 1])
                elif s >= 0 and ids[s] == ids[t]:
                    y = y.at[t].add(weight[:, j] * row[s])
        rows.append(y)
    y = jnp.stack(rows)
    return jax.nn.silu(y) if activation else y


SEGMENTS = np.array(
    [[1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 0, 0], [0, 0, 4, 4, 4, 4, 0, 0, 5, 5, 5, 5], [0] * T, [7] * T], np.int32
)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_gradients_of_every_input_are_those_of_the_loop(rng, activation):
    shapes = [(4, T, C), (C, K), (4, K - 1, C)]
    x, weight, state = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    # What the rows of padding give has no meaning.
    dy = rng.normal(size=x.shape).astype(np.float32) * (SEGMENTS != 0)[..., None]

    def kernel(x, weight, state):
        return causal_conv1d(x, weight, segment_ids=SEGMENTS, initial_state=state, activation=activation)[0]

    loop = functools.partial(taps_of_a_state, segment_ids=SEGMENTS, activation=activation)
    y, vjp = jax.vjp(jax.jit(kernel), x, weight, state)
    expected, expected_vjp = jax.vjp(lambda x, weight, state: loop(x, weight, state=state), x, weight, state)
    real = SEGMENTS != 0
    np.testing.assert_allclose(np.asarray(y)[real], np.asarray(expected)[real], rtol=1e-5, atol=1e-6)
    for grad, wanted in zip(vjp(dy), expected_vjp(dy), strict=True):
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_short_pieces_with_a_state(rng, t):
    x, weight = rng.normal(size=(2, 8 + t, C)).astype(np.float32), rng.normal(size=(C, K)).astype(np.float32)
    expected, expected_state = causal_conv1d(x, weight)
    _, state = causal_conv1d(x[:, :8], weight)
    y, state = causal_conv1d(x[:, 8:], weight, initial_state=state)
    np.testing.assert_allclose(y, expected[:, 8:], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state, expected_state)


def test_bfloat16_is_rounded_once(rng):
    x = jnp.asarray(rng.normal(size=(4, T, C)), jnp.bfloat16)
    weight = jnp.asarray(rng.normal(size=(C, K)), jnp.float32)
    y, _ = causal_conv1d(x, weight, segment_ids=SEGMENTS, activation="silu")
    exact, _ = causal_conv1d(x.astype(jnp.float32), weight, segment_ids=SEGMENTS, activation="silu")
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_rows_sharded_over_devices_give_the_same_gradients(rng):
    x, weight = rng.normal(size=(4, T, C)).astype(np.float32), rng.normal(size=(C, K)).astype(np.float32)

    def loss(x, weight, segment_ids):
        return jnp.sum(causal_conv1d(x, weight, segment_ids=segment_ids, activation="silu")[0] ** 2)

    @jax.shard_map(
        mesh=jax.sharding.Mesh(jax.devices()[:2], ("data",)),
        in_specs=(PartitionSpec("data"), PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
    )
    def sharded(x, weight, segment_ids):
        return jax.lax.psum(loss(x, weight, segment_ids), "data")

    grads = jax.jit(jax.grad(sharded, argnums=(0, 1)))(x, weight, SEGMENTS)
    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, weight, SEGMENTS)
    for grad, wanted in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=1e-5)


def test_nothing_as_large_as_the_row_is_kept_besides_inputs_and_outputs():
    shapes = [
        jax.ShapeDtypeStruct(s, d)
        for s, d in [((1, 512, 64), jnp.float32), ((64, K), jnp.float32), ((1, 512), jnp.int32)]
    ]
    forward = jax.jit(lambda x, w, s: causal_conv1d(x, w, segment_ids=s, activation="silu")[0])
    assert forward.lower(*shapes).compile().memory_analysis().temp_size_in_bytes < 512 * 64 * 4
