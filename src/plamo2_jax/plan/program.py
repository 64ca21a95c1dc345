"""The train step of a run, ready to be compiled for a slice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from plamo2_jax.sharding.rules import replicated
from plamo2_jax.train.build import build_train_program
from plamo2_jax.train.config import RunConfig

Kernels = Literal["pallas", "xla", "auto"]
"""pallas: the TPU kernels of scan and attention. They are named, because "auto" chooses by the platform of the process. xla: no kernels."""

KERNELS: dict[Kernels, dict[str, str]] = {
    "pallas": {"implementation": "pallas_tpu", "attention_implementation": "splash"},
    "xla": {"implementation": "xla", "attention_implementation": "xla"},
    "auto": {},
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A function and the shapes and shardings that it is compiled for."""

    function: Callable
    arguments: tuple
    """Trees of `jax.ShapeDtypeStruct` with shardings."""
    parts: Mapping[str, Any]
    """Kind → its part of the arguments, for the memory account."""
    out_shardings: Any
    donated: tuple[int, ...]
    mesh: Mesh
    flops: float
    """Model FLOPs on all devices together, without recomputation."""
    tokens: int
    """Tokens of one call on all devices."""
    data_dependent_trips: int | None = None
    """Trip count of loops whose end depends on data; None: there are none."""

    def trace(self) -> jax.stages.Traced:
        """Trace the function."""
        return jax.jit(self.function, out_shardings=self.out_shardings, donate_argnums=self.donated).trace(
            *self.arguments
        )


def train_program(config: RunConfig, devices: Sequence[jax.Device], kernels: Kernels) -> Program:
    """Return the train step of a run over these devices, as `train.loop` compiles it. No data, tokenizer or parameters are read.

    Raises:
        ValueError: model, batch or mesh do not divide over the devices, or the teacher's folder is missing or unfit.
    """
    built = build_train_program(config, devices, implementations=KERNELS[kernels])
    tokens, length = math.prod(built.batch["tokens"].shape), config.data.sequence_length
    forward_only = sum(other.flops_per_token(length) for other in built.task.forward_only)
    return Program(
        built.step,
        built.arguments,
        {
            "parameters": built.state.params,
            "optimizer": built.state.opt_state,
            **({} if built.state.ema is None else {"moving average": built.state.ema}),
            **built.task.frozen,
            "batch": built.batch,
        },
        (built.shardings, replicated(built.mesh)),
        (0,),
        built.mesh,
        (3 * config.model.flops_per_token(length) + forward_only) * tokens,
        tokens,
    )
