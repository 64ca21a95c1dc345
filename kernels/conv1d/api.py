"""`causal_conv1d`: depthwise causal convolution whose taps never reach into another document."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from plamo2_kernels.segments import carried_segments, first_segment


def causal_conv1d(
    x: Float[Array, "b t *c"],
    weight: Float[Array, "*c k"],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    initial_state: Float[Array, "b k-1 *c"] | None = None,
) -> tuple[Float[Array, "b t *c"], Float[Array, "b k-1 *c"]]:
    """y_t = Σ_j weight[j] x_{t-k+1+j}: the last tap meets the current token; taps on other segments and on padding count as zero.

    Args:
        x: inputs, with any number of channel axes.
        weight: one filter a channel, k taps.
        segment_ids: documents and padding (0) of each row; None: one document a row.
        initial_state: the k-1 inputs before the row's first token that is not padding, of its segment; zeros when None.

    Returns:
        y in the dtype of x, and the k-1 inputs that end with the row's last token that is not padding (zeros for those of other
        segments; the initial state for a row of padding). Padding before the first or after the last token leaves the state as it is.

    Raises:
        ValueError: shapes do not fit together.
    """
    b, t, *channels = x.shape
    k = weight.shape[-1]
    if list(weight.shape[:-1]) != channels:
        raise ValueError(
            f"causal_conv1d: weight has shape {weight.shape}; with x {x.shape} it must be {(*channels, k)}"
        )
    if initial_state is None:
        initial_state = jnp.zeros((b, k - 1, *channels), x.dtype)
    elif initial_state.shape != (b, k - 1, *channels):
        raise ValueError(
            f"causal_conv1d: initial_state has shape {initial_state.shape}; it must be {(b, k - 1, *channels)}"
        )
    initial_state = initial_state.astype(x.dtype)

    def tap(array, j):
        return lax.slice_in_dim(array, j, j + t, axis=1)

    if segment_ids is None:
        extended = jnp.concatenate([initial_state, x], axis=1)
        y = sum(tap(extended, j) * weight[..., j].astype(x.dtype) for j in range(k))
        return y, extended[:, t:]

    real = segment_ids != 0
    # The state belongs right before the first token, so it overwrites the padding that leads the row.
    lead = jnp.where(real.any(1), jnp.argmax(real, axis=1), t)
    place = jax.vmap(lambda row, piece, at: lax.dynamic_update_slice_in_dim(row, piece, at, axis=0))
    extended = place(jnp.pad(x, [(0, 0), (k - 1, 0)] + [(0, 0)] * len(channels)), initial_state, lead)
    first = first_segment(segment_ids)
    segments = jnp.pad(segment_ids, [(0, 0), (k - 1, 0)])
    segments = place(segments, jnp.broadcast_to(first[:, None], (b, k - 1)), lead)

    def masked(array, keep):
        return jnp.where(keep.reshape(keep.shape + (1,) * len(channels)), array, 0)

    y = sum(
        masked(tap(extended, j), tap(segments, j) == segment_ids) * weight[..., j].astype(x.dtype) for j in range(k)
    )
    end = t - jnp.argmax(real[:, ::-1], axis=1)
    end = jnp.where(real.any(1), end, t)
    cut = jax.vmap(lambda row, at: lax.dynamic_slice_in_dim(row, at, k - 1, axis=0))
    last = carried_segments(segment_ids)[:, -1:]
    return y, masked(cut(extended, end), cut(segments, end) == last)
