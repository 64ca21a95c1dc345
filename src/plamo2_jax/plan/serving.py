"""The engine's programs as they would be compiled for a slice: reading a piece of prompts, and a token for every slot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plamo2_jax.config import ModelConfig
from plamo2_jax.engine.engine import CAPACITY
from plamo2_jax.engine.shardings import cache_shardings
from plamo2_jax.engine.step import decode, empty_state, prefill
from plamo2_jax.engine.weights import abstract_weights
from plamo2_jax.model import Plamo2, axes
from plamo2_jax.model.cache import Cache
from plamo2_jax.plan.program import KERNELS, Kernels
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from plamo2_jax.sharding.rules import replicated, with_shardings

_MOST_CHIPS = 8


@dataclasses.dataclass(frozen=True)
class ServingProgram:
    """A compiled function of the engine, and what it is compiled for; fields as in `program.Program`."""

    trace: Callable[[], jax.stages.Traced]
    parts: Mapping[str, Any]
    mesh: Mesh
    flops: float
    tokens: int
    data_dependent_trips: int = 1
    """How often a loop runs whose end depends on data: decoding is priced for one token, and for a first draw inside top-p."""


def serving_mesh(model: ModelConfig, devices: Sequence[jax.Device], slices: int = 1) -> Mesh:
    """Copies of the model over as many chips each as divide its heads, at most one host's; rows over the copies."""
    heads = math.gcd(model.num_attention_heads, model.mamba_num_heads)
    tensor = math.gcd(_MOST_CHIPS, len(devices), heads)
    return make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor, slices=slices), devices)


def prefill_program(
    config: ModelConfig, dtype: str, mesh: Mesh, kernels: Kernels, *, rows: int, tokens: int, length: int | None = None
) -> ServingProgram:
    """`engine.step.prefill` of one piece of `tokens` for `rows` prompts of each copy of the model, into a cache of `length` tokens."""
    model = Plamo2(config, dtype=jnp.dtype(dtype), mesh=mesh, scan_layers=False, **KERNELS[kernels])
    weights, total = abstract_weights(model), rows * mesh.shape[axes.DATA]
    cache = _placed(mesh, jax.eval_shape(lambda: model.init_cache(total, length or tokens)))
    ids = jax.ShapeDtypeStruct((total, tokens), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(axes.ROWS)))
    return ServingProgram(
        lambda: prefill.trace(model, weights, cache, ids, ids),
        {"parameters": weights, "cache": cache, "batch": ids},
        mesh,
        # A prompt costs what a document of its length does.
        config.flops_per_token(tokens) * total * tokens,
        total * tokens,
    )


def decode_program(config: ModelConfig, dtype: str, mesh: Mesh, *, rows: int, tokens: int) -> ServingProgram:
    """`engine.step.decode` of `rows` slots of each copy of the model, each as long as `tokens` and one more."""
    model = Plamo2(config, dtype=jnp.dtype(dtype), mesh=mesh, scan_layers=False)
    weights, total = abstract_weights(model), rows * mesh.shape[axes.DATA]
    whole = replicated(mesh)
    shapes = jax.eval_shape(lambda: empty_state(model.clone(mesh=None), total, tokens + 1))
    state = with_shardings(shapes, jax.tree.map(lambda leaf: whole, shapes)).replace(cache=_placed(mesh, shapes.cache))

    def scalar(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    arguments = (
        scalar(bool, config.vocab_size),
        scalar(jnp.uint32, total, -(-config.vocab_size // 32)),
        scalar(bool, total),
        scalar(jnp.int32),
        scalar(bool),
    )
    return ServingProgram(
        lambda: decode.trace(model, weights, state, *arguments, capacity=CAPACITY),
        {"parameters": weights, "cache": state.cache, "batch": state.replace(cache=())},
        mesh,
        # One more token reads the whole context.
        config.flops_per_token(tokens) * total,
        total,
    )


def _placed(mesh: Mesh, cache: Cache) -> Cache:
    return with_shardings(cache, cache_shardings(mesh, cache))
