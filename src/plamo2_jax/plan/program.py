"""The programs of a run, ready to be compiled for a slice: its train step, and a prefill and a decoding step of its model."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plamo2_jax.align.preferences import DpoConfig, preference_task
from plamo2_jax.align.sft import SftConfig, sft_task
from plamo2_jax.engine.weights import cast_matrices
from plamo2_jax.model import axes
from plamo2_jax.model.cache import AttentionCache, Cache, MambaCache
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, logical_axes
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from plamo2_jax.sharding.rules import param_shardings, replicated, with_shardings
from plamo2_jax.surgery.distill import distillation_task
from plamo2_jax.train.build import build_train_program
from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.pretraining import pretraining_task
from plamo2_jax.train.task import TaskContext, TrainTask

Kernels = Literal["pallas", "xla"]
"""pallas: the TPU kernels of scan and attention. They are named, because "auto" chooses by the platform of the process. xla: no kernels."""

_KERNELS: dict[Kernels, dict[str, str]] = {
    "pallas": {"implementation": "pallas_tpu", "attention_implementation": "splash"},
    "xla": {"implementation": "xla", "attention_implementation": "xla"},
}
_MOST_SERVING_CHIPS = 8


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

    def trace(self) -> jax.stages.Traced:
        """Trace the function."""
        return jax.jit(self.function, out_shardings=self.out_shardings, donate_argnums=self.donated).trace(
            *self.arguments
        )


def train_program(config: PretrainConfig, devices: Sequence[jax.Device], kernels: Kernels) -> Program:
    """Return the train step of a run over these devices, as `train.loop` compiles it. No data, tokenizer or parameters are read.

    Raises:
        ValueError: model, batch or mesh do not divide over the devices, or the teacher's folder is missing or unfit.
    """
    built = build_train_program(config, devices, _make_task(config), implementations=_KERNELS[kernels])
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


def _make_task(config: PretrainConfig) -> Callable[[Any, TaskContext], TrainTask]:
    if isinstance(config, DpoConfig):
        return preference_task
    if isinstance(config, SftConfig):
        return sft_task
    return pretraining_task if config.distillation is None else distillation_task


def serving_mesh(config: PretrainConfig, devices: Sequence[jax.Device]) -> Mesh:
    """Copies of the model over as many chips each as divide its heads, at most one host's; rows over the copies."""
    heads = math.gcd(config.model.num_attention_heads, config.model.mamba_num_heads)
    tensor = math.gcd(_MOST_SERVING_CHIPS, len(devices), heads)
    return make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor, slices=config.mesh.slices), devices)


def serving_program(
    config: PretrainConfig, devices: Sequence[jax.Device], *, rows: int, tokens: int, decode: bool
) -> Program:
    """One call of the model with a cache: a prefill of whole rows, or a token for each row behind `tokens` that are in the cache.

    XLA divides it (a call with a cache runs no kernel of Pallas); parameters are as inference holds them, matrices in bfloat16.

    Args:
        config: the run whose model it is.
        devices: of the slice.
        rows: of every copy of the model.
        tokens: of a row.
        decode: one more token rather than all of them.
    """
    mesh = serving_mesh(config, devices)
    model = Plamo2(config.model, dtype=jnp.dtype(config.dtype), **_KERNELS["xla"])
    if decode:
        model = model.clone(implementation="auto")
    boxed = jax.eval_shape(functools.partial(cast_matrices, model), abstract_params(model))
    params = with_shardings(boxed, param_shardings(logical_axes(model), boxed, mesh, "tensor"))
    total = rows * mesh.shape[axes.DATA]
    cache = _place_cache(jax.eval_shape(lambda: model.init_cache(total, tokens + decode)), mesh)
    by_rows = NamedSharding(mesh, PartitionSpec(axes.ROWS))
    ids = jax.ShapeDtypeStruct((total, 1 if decode else tokens), jnp.int32, sharding=by_rows)

    def call(params: Any, ids: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        features, cache = model.apply({"params": params}, ids, cache=cache, method="features")
        # Of a prompt only the last token's logits are wanted.
        logits = model.apply({"params": params}, features[:, -1:], method="logits")
        return jnp.argmax(logits[:, 0], axis=-1), cache

    # A prompt costs what a document of its length does; one more token reads the whole context.
    per_token = config.model.flops_per_token(tokens)
    return Program(
        call,
        (params, ids, cache),
        {"parameters": params, "cache": cache, "batch": ids},
        (by_rows, jax.tree.map(lambda leaf: leaf.sharding, cache)),
        (2,),
        mesh,
        per_token * total * (1 if decode else tokens),
        total * (1 if decode else tokens),
    )


def _place_cache(cache: Cache, mesh: Mesh) -> Cache:
    """Rows over the copies of the model, heads over the chips of each where they divide."""

    def place(leaf: jax.ShapeDtypeStruct, *names: str | None) -> jax.ShapeDtypeStruct:
        fits = [
            name if name != axes.TENSOR or leaf.shape[i] % mesh.shape[axes.TENSOR] == 0 else None
            for i, name in enumerate(names)
        ]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*fits)))

    rows = axes.ROWS

    def layer(entry: MambaCache | AttentionCache):
        if isinstance(entry, MambaCache):
            conv = place(entry.conv, None, rows, None, axes.TENSOR)
            return MambaCache(conv, place(entry.ssm, None, rows, axes.TENSOR))
        keys, values = (place(a, None, rows, None, axes.TENSOR) for a in (entry.k, entry.v))
        return AttentionCache(keys, values, place(entry.positions, None, rows), place(entry.segment_ids, None, rows))

    runs = tuple(tuple(map(layer, run)) for run in cache.runs)
    return Cache(runs, place(cache.count, rows), place(cache.segment, rows))
