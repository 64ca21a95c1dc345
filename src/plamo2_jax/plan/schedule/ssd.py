"""The selective scan as a program to compile: its operands at the shape of a preset's layer, forward alone or with its gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from plamo2_jax.config import preset
from plamo2_kernels.ssd import ssd

_XLA_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class SsdProgram:
    """One way to compute the scan of a preset's Mamba layer."""

    preset: str
    """Name of the model."""
    implementation: str
    """Implementation of `plamo2_kernels.ssd.ssd`: xla or pallas_tpu."""
    chunk_size: int | None
    """Tokens per chunk; None: the implementation's default on TPU."""
    direction: Literal["forward", "forward+backward"]
    tokens: int = 8192
    """Tokens per row."""
    batch: int = 1
    """Rows."""
    segments: bool = True
    """Whether rows hold several documents."""
    initial_state: bool = False
    """Whether the scan starts from a given state, whose gradient is computed too."""

    def build(self) -> tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]:
        """Return the function, which takes positional arrays, and its operands' shapes and dtypes."""
        config = preset(self.preset)
        b, t, h = self.batch, self.tokens, config.mamba_num_heads
        p, n, g = config.hidden_size_per_head, config.mamba_d_state, 1

        def struct(dtype, *shape):
            return jax.ShapeDtypeStruct(shape, dtype)

        activations, exact = jnp.bfloat16, jnp.float32
        state = struct(exact, b, h, p, n)
        inputs = [struct(activations, b, t, h, p), struct(exact, b, t, h), struct(exact, h)]
        inputs += [struct(activations, b, t, g, n)] * 2 + [struct(exact, h)]
        inputs += [state] if self.initial_state else []
        segments = [struct(jnp.int32, b, t)] if self.segments else []
        count = len(inputs)
        # `ssd` chooses its default by the platform of the process, which is a CPU here.
        chunk_size = self.chunk_size or (_XLA_CHUNK if self.implementation == "xla" else None)

        def forward(*arrays):
            return ssd(
                *arrays[:6],
                initial_state=arrays[6] if self.initial_state else None,
                segment_ids=arrays[count] if self.segments else None,
                implementation=self.implementation,
                chunk_size=chunk_size,
            )

        def both(*arrays):
            rest = arrays[count : count + len(segments)]
            out, vjp = jax.vjp(lambda *inputs: forward(*inputs, *rest), *arrays[:count])
            return out, vjp(arrays[-2:])

        if self.direction == "forward":
            return forward, (*inputs, *segments)
        # Cotangents of y and of the final state.
        return both, (*inputs, *segments, inputs[0], state)
