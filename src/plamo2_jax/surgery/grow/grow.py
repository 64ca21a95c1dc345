"""Larger models out of smaller ones: weights reused along every axis by its name.

How PLaMo 2's 31B reused its 8B's weights is not public; these are the published methods, each with its paper in `expansion` and `depth`.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np
from jax import Array

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import Plamo2, axes, init_params
from plamo2_jax.surgery.grow.depth import Depth, LayerPlan, check_kinds, close, layer_plan
from plamo2_jax.surgery.grow.width import Expansion, Width, expansions
from plamo2_jax.surgery.structure import (
    Params,
    SurgeryError,
    flatten,
    layer_places,
    restack,
    structure,
    unflatten,
    unstack,
)

# New channels of both sides of a product cannot be zero, or neither would have a gradient: this fraction of a fresh value leaks in.
_LEAK = 1e-3


def grow(
    params: Params,
    source: ModelConfig,
    target: ModelConfig,
    *,
    width: Width = "clone",
    depth: Depth = "identity",
    noise: float = 0.0,
    seed: int = 0,
) -> Params:
    """Parameters of the larger network. Pure: it can be jitted with shardings of what comes out, or run on shapes alone.

    Args:
        params: of the smaller network, float32, in JAX or NumPy; what comes out is the same.
        source, target: shapes of both. They may differ in width (embed, mlp, heads, kv_heads, mamba_heads, state, and dt_rank that
            follows from embed) and depth, not in vocabulary, head size or pattern of layers.
        width: how channels are added; see `Width`. clone and zero keep the function.
        depth: how layers are added; see `Depth`. identity keeps the function.
        noise: copies of a channel that are read alike stay alike for ever, since their gradients are the same. This standard deviation,
            relative to each reading parameter's root mean square, tells them apart; the noise of a channel's copies cancels, so that
            the function is kept (HyperCloning's noisy variant, arXiv:2409.12903, section 3.2).
        seed: of noise and of what starts at random.

    Raises:
        SurgeryError: the target cannot be grown out of the source; the message names the axis or field.
    """
    grown, plan = _plan(source, target, width, depth)
    old_structure, shapes = structure(source), structure(target).shapes
    # Only silent channels need what a new network starts with.
    fresh = (
        flatten(jax.jit(lambda key: init_params(Plamo2(target), key))(jax.random.key(seed))) if width == "zero" else {}
    )
    rng = np.random.SeedSequence(seed)
    deep = flatten(_deepen(params, source, target, plan))
    result = {}
    for path, leaf in deep.items():
        declared = structure(target).declared[path]
        value = _expand(declared, leaf, fresh.get(path), grown, old_structure.paired)
        if noise:
            value = value + _noise(declared, value, grown, noise, (rng.entropy, zlib.crc32("/".join(path).encode())))
        if value.shape != shapes[path]:
            raise SurgeryError(f"parameter {'/'.join(path)} came out as {value.shape}, not {shapes[path]}")
        result[path] = value
    return unflatten(result)


def grow_moments(
    mu: Params,
    nu: Params,
    source: ModelConfig,
    target: ModelConfig,
    *,
    width: Width = "clone",
    depth: Depth = "identity",
) -> tuple[Params, Params]:
    """Adam's means of gradients and of their squares, grown as the gradients of the grown network's parameters are.

    Exact for clone without noise; what is new, and what stands in silent layers, starts at zero. Whether it helps is for an experiment to
    say: the default everywhere is a new optimizer.

    Args:
        mu, nu: trees like the parameters.
        source, target, width, depth: as for `grow`.
    """
    grown, plan = _plan(source, target, width, depth)

    def carry(tree: Params, power: int) -> Params:
        result = {}
        deep = flatten(_deepen(tree, source, target, plan, silence=lambda leaf: leaf * 0))
        for path, leaf in deep.items():
            declared = structure(target).declared[path]
            for position, name in enumerate(declared.names):
                if name in grown:
                    e = grown[name]
                    weight = e.gradient_weight(declared, name) ** power
                    leaf = _take(leaf, e, position) * _along(weight.astype(np.float32), leaf.ndim, position)
            result[path] = leaf
        return unflatten(result)

    return carry(mu, 1), carry(nu, 2)


def _plan(
    source: ModelConfig, target: ModelConfig, width: Width, depth: Depth
) -> tuple[dict[str, Expansion], LayerPlan]:
    for name in ("tie_word_embeddings", "rms_norm_eps"):
        if getattr(source, name) != getattr(target, name):
            raise SurgeryError(
                f"{name} is {getattr(source, name)} and would be {getattr(target, name)}; growing leaves it alone, so it must stay"
            )
    plan = layer_plan(source, target, depth)
    if depth == "identity":
        check_kinds(source, target, plan)
    return expansions(source, target, width), plan


def _deepen(params: Params, source: ModelConfig, target: ModelConfig, plan: LayerPlan, silence=None) -> Params:
    """The tree of the target's depth and the source's width."""
    old = unstack(params, source)
    declared = structure(source).declared
    places = layer_places(source)

    def taken(origin: int, silent: bool) -> Params:
        if not silent:
            return old[origin]
        if silence is not None:
            return jax.tree.map(silence, old[origin])
        flat = flatten(old[origin])
        return unflatten({path: close(declared[(*places[origin][:2], *path)], leaf) for path, leaf in flat.items()})

    layers = [taken(*pair) for pair in zip(plan.source, plan.silent, strict=True)]
    return restack(params, layers, target)


def _take(leaf: Array, expansion: Expansion, position: int) -> Array:
    return leaf.take(np.maximum(expansion.source, 0), axis=position)


def _along(values: np.ndarray, ndim: int, position: int) -> np.ndarray:
    shape = [1] * ndim
    shape[position] = len(values)
    return values.reshape(shape)


def _expand(
    declared: axes.Declaration, leaf: Array, fresh: Array | None, grown: dict[str, Expansion], paired: frozenset[str]
) -> Array:
    offset = declared.offset or 0.0
    value = leaf + offset
    for position, name in enumerate(declared.names):
        if name in grown:
            weight = grown[name].weight(declared, name).astype(np.float32)
            value = _take(value, grown[name], position) * _along(weight, leaf.ndim, position)
    if fresh is not None and (starts := _starts(declared, grown, paired)) is not None:
        value = value + starts * (fresh + offset)
    return value - offset


def _starts(declared: axes.Declaration, grown: dict[str, Expansion], paired: frozenset[str]) -> np.ndarray | None:
    """How much of a fresh value each entry starts with, broadcasting to the parameter; None: nothing anywhere."""
    starts, silent = None, np.zeros((), bool)
    for position, name in enumerate(declared.names):
        if name not in grown or grown[name].copied.all():
            continue
        e = grown[name]
        new = _along(~e.copied, len(declared.names), position)
        reads = declared.offset is None and name in declared.reads
        makes = declared.offset is None and name not in declared.reads
        # What reads a silent channel may start at random, what reads one that sounds must be zero; and what makes a channel under a
        # norm must be zero, or the norm's mean would move.
        if (reads and not e.normed) or (makes and e.normed and name not in paired):
            silent = silent | new
        else:
            share = np.where(new, np.float32(_LEAK if makes and name in paired else 1), np.float32(0))
            starts = share if starts is None else np.maximum(starts, share)
    return None if starts is None else np.where(silent, np.float32(0), starts)


def _noise(
    declared: axes.Declaration, value: Array, grown: dict[str, Expansion], noise: float, seed: tuple
) -> Array | float:
    read = [(i, name) for i, name in enumerate(declared.names) if name in grown and name in declared.reads]
    if not read:
        return 0.0
    drawn = np.random.default_rng(seed).standard_normal(value.shape)
    for position, name in read:
        drawn = grown[name].project(drawn, position, declared)
    size = ((value + (declared.offset or 0.0)) ** 2).mean() ** 0.5
    return noise * size * drawn.astype(np.float32)


def check_target(source: ModelConfig, target: ModelConfig, width: Width, depth: Depth) -> None:
    """Refuse a target that cannot be grown out of the source, before anything is read.

    Raises:
        SurgeryError: see `grow`.
    """
    _plan(source, target, width, depth)
