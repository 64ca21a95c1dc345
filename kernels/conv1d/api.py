"""`causal_conv1d`: depthwise causal convolution whose taps do not reach into another document.

A tap is a shift of the whole row, written as one `pad` with a negative end (`_shift`). XLA fuses such shifts with their consumers, so the
forward pass only reads x and writes y. Slices of a row that is extended by its state, the obvious way, cost a copy of x and a copy of its
gradient.
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
    """Return y_t = f(Σ_j weight[j] x_{t-k+1+j}). The last tap multiplies the current token; taps on other segments and padding are zero.

    Sums are in float32 (float64 if x is float64) and rounded once, after the activation.

    Args:
        x: Inputs with any number of feature axes.
        weight: One filter of k taps per feature.
        segment_ids: Documents and padding (0) of each row; None: one document per row.
        initial_state: The k-1 inputs before the first token of the row that is not padding, from its segment; None: zeros.
        activation: f; None: the identity. The backward pass computes the input of f again instead of storing it.

    Returns:
        y in the dtype of x, and the last k-1 inputs up to the last token that is not padding (zeros for inputs of other segments; the
        initial state for a row of padding). Padding at the start or end of a row does not change the state.

    Raises:
        ValueError: Shapes do not fit together, or the activation is unknown.
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
        # The state is directly before the first token, after the padding at the start of the row.
        real = segment_ids != 0
        some = real.any(1)
        lead = jnp.where(some, jnp.argmax(real, axis=1), t)
        end = jnp.where(some, t - jnp.argmax(real[:, ::-1], axis=1), t)
    # Inside a shard_map, x may vary over devices while the weight does not. This sum makes the weight vary too; its transpose adds the
    # devices.
    weight = weight + jnp.zeros_like(x, shape=(), dtype=weight.dtype)
    head = None
    if initial_state is not None:
        initial_state = initial_state.astype(x.dtype)
        head = _head(initial_state, weight, t) if k > 1 else None
    y = _convolve(activation, x, weight, segment_ids, lead, head)

    # The last k-1 inputs of the row, with the state before the first token.
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
    """Return the contribution of the state to each token that its inputs reach."""
    k = weight.shape[-1]
    dtype = jnp.promote_types(state.dtype, jnp.float32)
    state, weight = state.astype(dtype), weight.astype(dtype)
    reach = range(min(t, k - 1))
    # Tap j of token i multiplies input i + j of the state.
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
    """Compute the gradients in two passes: x, dy -> dz and the weight's gradient; dz -> dx."""
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
        # One pass computes both and writes dz. Without the barrier, XLA computes dz again for every tap, or writes every tap of x.
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
    """Return the input of the activation."""
    k = weight.shape[-1]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    z = sum(_tap(x, segment_ids, d) * weight[..., k - 1 - d].astype(dtype) for d in range(k))
    if head is not None:
        z = z + sum(_masked(head[:, i : i + 1], at) for i, at in enumerate(_reach(x, segment_ids, lead, head)))
    return z


def _tap(x, segment_ids, distance):
    """Return x of the token `distance` places before (after if negative), or zero if it is in another segment."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    shifted = _shift(x, distance).astype(dtype)
    if segment_ids is None or distance == 0:
        return shifted
    return _masked(shifted, _shift(segment_ids, distance) == segment_ids)


def _shift(x, distance):
    """Shift the row `distance` places to the right and fill with zeros, as one pad with a negative end."""
    edges = [(0, 0, 0)] * x.ndim
    edges[1] = (distance, -distance, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _reach(x, segment_ids, lead, head):
    """Return, for each token that the state reaches, the mask of its position in the row."""
    index = jnp.arange(x.shape[1])
    same = True if segment_ids is None else segment_ids == first_segment(segment_ids)[:, None]
    return [(index == lead[:, None] + i) & same for i in range(head.shape[1])]


def _masked(x, keep):
    return jnp.where(keep.reshape(keep.shape + (1,) * (x.ndim - 2)), x, 0)
