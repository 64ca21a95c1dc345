"""The programs of the engine, ready to be compiled for a slice: prefill of a piece of prompts, and one decoding step."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
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
from plamo2_jax.plan.program import KERNELS, Kernels, Program
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from plamo2_jax.sharding.rules import replicated, with_shardings

_MOST_CHIPS = 8
# Iterations of a loop whose end depends on data: a plan counts one decoded token, and one draw of top-p sampling.
_TRIPS = 1


def serving_mesh(model: ModelConfig, devices: Sequence[jax.Device], slices: int = 1) -> Mesh:
    """Return a mesh with copies of the model. Each copy takes the most chips that divide its heads, at most 8 (one host)."""
    heads = math.gcd(model.num_attention_heads, model.mamba_num_heads)
    tensor = math.gcd(_MOST_CHIPS, len(devices), heads)
    return make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor, slices=slices), devices)


def prefill_program(
    config: ModelConfig, dtype: str, mesh: Mesh, kernels: Kernels, *, rows: int, tokens: int, length: int | None = None
) -> Program:
    """Return `engine.step.prefill` of a piece of `tokens` for `rows` prompts per copy of the model, into a cache of `length` tokens."""
    model = Plamo2(config, dtype=jnp.dtype(dtype), mesh=mesh, scan_layers=False, **KERNELS[kernels])
    weights, total = abstract_weights(model), rows * mesh.shape[axes.DATA]
    cache = _placed(mesh, jax.eval_shape(lambda: model.init_cache(total, length or tokens)))
    ids = jax.ShapeDtypeStruct((total, tokens), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(axes.ROWS)))
    # A prompt costs as much as a document of its length.
    flops = config.flops_per_token(tokens) * total * tokens
    parts = {"parameters": weights, "cache": cache, "batch": ids}
    trace = functools.partial(prefill.trace, model, weights, cache, ids, ids)
    return Program(trace, parts, mesh, flops, total * tokens, _TRIPS)


def decode_program(config: ModelConfig, dtype: str, mesh: Mesh, *, rows: int, tokens: int) -> Program:
    """Return `engine.step.decode` of `rows` slots per copy of the model, for one more token after `tokens` tokens in the cache."""
    model = Plamo2(config, dtype=jnp.dtype(dtype), mesh=mesh, scan_layers=False)
    weights, total = abstract_weights(model), rows * mesh.shape[axes.DATA]
    whole = replicated(mesh)
    shapes = jax.eval_shape(lambda: empty_state(model.clone(mesh=None), total, tokens + 1))
    cache = _placed(mesh, jax.eval_shape(lambda: model.init_cache(total, tokens + 1)))
    state = with_shardings(shapes, jax.tree.map(lambda leaf: whole, shapes)).replace(cache=cache)

    def scalar(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    arguments = (
        scalar(bool, config.vocab_size),
        scalar(jnp.uint32, total, -(-config.vocab_size // 32)),
        scalar(bool, total),
        scalar(jnp.int32),
        scalar(bool),
    )
    # One more token reads the whole context.
    flops = config.flops_per_token(tokens) * total
    parts = {"parameters": weights, "cache": state.cache, "batch": state.replace(cache=())}
    trace = functools.partial(decode.trace, model, weights, state, *arguments, capacity=CAPACITY)
    return Program(trace, parts, mesh, flops, total, _TRIPS)


def _placed(mesh: Mesh, cache: Cache) -> Cache:
    return with_shardings(cache, cache_shardings(mesh, cache))
