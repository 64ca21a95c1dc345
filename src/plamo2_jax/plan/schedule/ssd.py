"""The selective scan as a program to plan: its operands at the shape of a preset, forward alone or with its gradient."""

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
    """One way to compute the scan of a preset's state-space layer."""

    preset: str
    implementation: str
    chunk_size: int | None
    """Tokens a chunk; None: the implementation's own choice on TPU."""
    direction: Literal["forward", "forward+backward"]
    tokens: int = 8192
    batch: int = 1
    segments: bool = True
    """Whether rows hold several documents."""
    initial_state: bool = False
    """Whether a state comes in, and its gradient goes out."""

    def build(self) -> tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]:
        """The function, of positional arrays, and its operands."""
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
        # `ssd` would choose by the platform of the process, which is a CPU.
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
