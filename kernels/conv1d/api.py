"""`causal_conv1d`: depthwise causal convolution whose taps never reach into another document.

A tap is a shift of the whole row, written as one `pad` that also cuts (`_shift`): XLA fuses shifts of an array that is in memory with
all that is computed from them, so the forward pass reads x and writes y and nothing else. A slice of a row extended by its state, the
obvious way, costs a copy of x before and of its gradient after.
"""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from plamo2_kernels.segments import carried_segments, first_segment

Activation = Literal["silu"]


def causal_conv1d(
    x: Float[Array, "b t *c"],
    weight: Float[Array, "*c k"],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    initial_state: Float[Array, "b k-1 *c"] | None = None,
    activation: Activation | None = None,
) -> tuple[Float[Array, "b t *c"], Float[Array, "b k-1 *c"]]:
    """y_t = f(Σ_j weight[j] x_{t-k+1+j}): the last tap meets the current token; taps on other segments and on padding count as zero.

    Sums in float32 (float64 if x is) and rounds once, after the activation.

    Args:
        x: inputs, with any number of channel axes.
        weight: one filter a channel, k taps.
        segment_ids: documents and padding (0) of each row; None: one document a row.
        initial_state: the k-1 inputs before the row's first token that is not padding, of its segment; zeros when None.
        activation: f; None: the identity. The gradient recomputes what f is applied to instead of keeping it.

    Returns:
        y in the dtype of x, and the k-1 inputs that end with the row's last token that is not padding (zeros for those of other
        segments; the initial state for a row of padding). Padding before the first or after the last token leaves the state as it is.

    Raises:
        ValueError: shapes do not fit together, or an unknown activation.
    """
    b, t, *channels = x.shape
    k = weight.shape[-1]
    if list(weight.shape[:-1]) != channels:
        raise ValueError(
            f"causal_conv1d: weight has shape {weight.shape}; with x {x.shape} it must be {(*channels, k)}"
        )
    if initial_state is not None and initial_state.shape != (b, k - 1, *channels):
        raise ValueError(
            f"causal_conv1d: initial_state has shape {initial_state.shape}: it must be {(b, k - 1, *channels)}"
        )
    if activation is not None and activation not in get_args(Activation):
        raise ValueError(
            f"causal_conv1d: activation={activation!r} must be None or one of {', '.join(get_args(Activation))}"
        )

    if segment_ids is None:
        lead, end = jnp.zeros((b,), jnp.int32), jnp.full((b,), t, jnp.int32)
    else:
        # The state belongs right before the first token, after the padding that leads the row.
        real = segment_ids != 0
        some = real.any(1)
        lead = jnp.where(some, jnp.argmax(real, axis=1), t)
        end = jnp.where(some, t - jnp.argmax(real[:, ::-1], axis=1), t)
    # Inside a shard_map x may vary over devices where the weight does not. The sum lets it vary too; its transpose adds up the devices.
    weight = weight + jnp.zeros_like(x, shape=(), dtype=weight.dtype)
    head = None
    if initial_state is not None:
        initial_state = initial_state.astype(x.dtype)
        head = _head(initial_state, weight, t) if k > 1 else None
    y = _convolve(activation, x, weight, segment_ids, lead, head)

    # The last k-1 inputs of the row with its state put in front of the first token.
    place = end[:, None] - (k - 1) + jnp.arange(k - 1)
    pick = jax.vmap(lambda row, index: row.at[index].get(mode="clip"))
    in_row = place >= lead[:, None]
    state = _masked(pick(x, place), in_row)
    if initial_state is not None:
        before = _masked(pick(initial_state, place - lead[:, None] + k - 1), ~in_row)
        state = state + before
    if segment_ids is not None:
        segments = jnp.where(in_row, pick(segment_ids, place), first_segment(segment_ids)[:, None])
        state = _masked(state, segments == carried_segments(segment_ids)[:, -1:])
    return y, state


def _head(state: Float[Array, "b lead *c"], weight: Float[Array, "*c k"], t: int) -> Float[Array, "b i *c"]:
    """What the state adds to each of the tokens after it that its inputs reach."""
    k = weight.shape[-1]
    dtype = jnp.promote_types(state.dtype, jnp.float32)
    state, weight = state.astype(dtype), weight.astype(dtype)
    reach = range(min(t, k - 1))
    # Tap j of token i meets input i + j of the state.
    return jnp.stack([sum(state[:, i + j] * weight[..., j] for j in range(k - 1 - i)) for i in reach], axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@functools.partial(jax.named_call, name="causal_conv1d")
def _convolve(activation, x, weight, segment_ids, lead, head):
    z = _sums(x, weight, segment_ids, lead, head)
    return (jax.nn.silu(z) if activation == "silu" else z).astype(x.dtype)


def _convolve_fwd(activation, x, weight, segment_ids, lead, head):
    return _convolve(activation, x, weight, segment_ids, lead, head), (x, weight, segment_ids, lead, head)


@functools.partial(jax.named_call, name="causal_conv1d_bwd")
def _convolve_bwd(activation, residuals, dy):
    """Two passes: x, dy -> dz and the weight's gradient; dz -> dx."""
    x, weight, segment_ids, lead, head = residuals
    k = weight.shape[-1]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    dz = dy.astype(dtype)
    if activation == "silu":
        z = _sums(x, weight, segment_ids, lead, head)
        s = jax.nn.sigmoid(z)
        dz = dz * s * (1 + z * (1 - s))
    row = (0, 1)
    dweight = [jnp.sum(_tap(x, segment_ids, d) * dz, axis=row) for d in reversed(range(k))]
    dz = dz.astype(x.dtype)
    if activation is not None:
        # One pass computes both and writes dz. Left to itself XLA computes dz anew for every tap that reads it, or writes every tap of x.
        dz, dweight = lax.optimization_barrier((dz, dweight))
    dx = sum(_tap(dz, segment_ids, -d) * weight[..., k - 1 - d].astype(dtype) for d in range(k))
    dhead = None
    if head is not None:
        dhead = jnp.stack(
            [jnp.sum(_masked(dz.astype(dtype), at), axis=1) for at in _reach(dz, segment_ids, lead, head)], axis=1
        )
    return dx.astype(x.dtype), jnp.stack(dweight, axis=-1).astype(weight.dtype), None, None, dhead


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _sums(x, weight, segment_ids, lead, head):
    """What the activation is applied to."""
    k = weight.shape[-1]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    z = sum(_tap(x, segment_ids, d) * weight[..., k - 1 - d].astype(dtype) for d in range(k))
    if head is not None:
        z = z + sum(_masked(head[:, i : i + 1], at) for i, at in enumerate(_reach(x, segment_ids, lead, head)))
    return z


def _tap(x, segment_ids, distance):
    """x of the token that many places back (ahead if negative), zero if that is of another segment."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    shifted = _shift(x, distance).astype(dtype)
    if segment_ids is None or distance == 0:
        return shifted
    return _masked(shifted, _shift(segment_ids, distance) == segment_ids)


def _shift(x, distance):
    """The row moved that many places to the right, zeros moving in: a pad whose other end is cut."""
    edges = [(0, 0, 0)] * x.ndim
    edges[1] = (distance, -distance, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _reach(x, segment_ids, lead, head):
    """For each token that the state reaches, the mask of its place in the row."""
    index = jnp.arange(x.shape[1])
    same = True if segment_ids is None else segment_ids == first_segment(segment_ids)[:, None]
    return [(index == lead[:, None] + i) & same for i in range(head.shape[1])]


def _masked(x, keep):
    return jnp.where(keep.reshape(keep.shape + (1,) * (x.ndim - 2)), x, 0)
