"""The train step of a run, ready to be compiled for a slice."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from plamo2_jax.train.build import build_train_program
from plamo2_jax.train.config import RunConfig

Kernels = Literal["pallas", "xla", "auto"]
"""pallas: the TPU kernels of scan and attention, by name, because "auto" chooses by the platform of the process. xla: no kernels."""

KERNELS: dict[Kernels, dict[str, str]] = {
    "pallas": {"implementation": "pallas_tpu", "attention_implementation": "splash"},
    "xla": {"implementation": "xla", "attention_implementation": "xla"},
    "auto": {},
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to compile for the devices of a mesh."""

    trace: Callable[[], jax.stages.Traced]
    """Traces the function with the shapes and shardings of its arguments."""
    parts: Mapping[str, Any]
    """Kind → its part of the arguments, for the memory account: a tree of `jax.ShapeDtypeStruct` with shardings."""
    mesh: Mesh
    flops: float
    """Model FLOPs on all devices together, without recomputation."""
    tokens: int
    """Tokens of one call on all devices."""
    data_dependent_trips: int | None = None
    """Trip count of loops whose end depends on data; None: there are none."""


def train_program(config: RunConfig, devices: Sequence[jax.Device], kernels: Kernels) -> Program:
    """Return the train step of a run over these devices, as `train.loop` compiles it. No data, tokenizer or parameters are read.

    Raises:
        PlamoError: model, batch or mesh cannot be divided over the devices, or a file of a teacher is missing or unfit.
    """
    built = build_train_program(config, devices, implementations=KERNELS[kernels])
    tokens, length = math.prod(built.batch["tokens"].shape), config.data.sequence_length
    forward_only = sum(other.flops_per_token(length) for other in built.task.forward_only)
    parts = {
        "parameters": built.state.params,
        "optimizer": built.state.opt_state,
        **({} if built.state.ema is None else {"moving average": built.state.ema}),
        **built.task.frozen,
        "batch": built.batch,
    }
    flops = (3 * config.model.flops_per_token(length) + forward_only) * tokens
    return Program(functools.partial(built.jit().trace, *built.arguments), parts, built.mesh, flops, tokens)
