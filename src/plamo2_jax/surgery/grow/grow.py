"""Growing the parameters of a model to a larger shape, axis by axis, selected by axis names.

How the 31B of PLaMo 2 reused the weights of the 8B is not public. The methods here come from papers, which `width` and `depth` cite.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import Plamo2, axes, init_params
from plamo2_jax.surgery.grow.depth import Depth, LayerPlan, check_kinds, layer_plan
from plamo2_jax.surgery.grow.width import Expansion, Width, expansions
from plamo2_jax.surgery.structure import Params, SurgeryError, layer_places, restack, structure, unstack

# If new channels were zero on both sides of a product, neither side would have a gradient. One side starts at this share of a fresh value.
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
    """Return the parameters of the larger model. The function is pure: it can be jitted with output shardings or run on shapes alone.

    Args:
        params: Parameters of the smaller model, float32 JAX or NumPy arrays. The result has arrays of the same library.
        source, target: Configs of both models. They may differ in width (embed, mlp, heads, kv_heads, mamba_heads, state, and dt_rank,
            which follows from embed) and in depth, but not in vocabulary, head size or layer pattern.
        width: How channels are added. clone and zero keep the function.
        depth: How layers are added. identity keeps the function.
        noise: Standard deviation of the noise on copied channels, relative to each parameter's root mean square. Without noise, copies
            that are read with equal weights have equal gradients and stay equal. The noise cancels over the copies of a channel, so the
            function is kept (noisy variant of HyperCloning, arXiv:2409.12903, section 3.2).
        seed: Random seed of the noise and of fresh values.

    Raises:
        SurgeryError: The target cannot be grown from the source. The message names the axis or field.
    """
    grown, plan = check_target(source, target, width, depth)
    paired, new = structure(source).paired, structure(target)
    fresh = {}
    if width == "zero":  # Only `zero` needs the initial values of a new model.
        fresh = flatten_dict(jax.jit(lambda key: init_params(Plamo2(target), key))(jax.random.key(seed)))
    result = {}
    for path, leaf in flatten_dict(_deepen(params, source, target, plan)).items():
        name, declared = "/".join(path), new.declared[path]
        value = _expand(declared, leaf, fresh.get(path), grown, paired)
        if noise:
            value = value + _noise(declared, value, grown, noise, (seed, zlib.crc32(name.encode())))
        if value.shape != new.shapes[path]:
            raise SurgeryError(f"parameter {name} has shape {value.shape} after growing, expected {new.shapes[path]}")
        result[path] = value
    return unflatten_dict(result)


def grow_moments(
    mu: Params,
    nu: Params,
    source: ModelConfig,
    target: ModelConfig,
    *,
    width: Width = "clone",
    depth: Depth = "identity",
) -> tuple[Params, Params]:
    """Return Adam's first and second moments, scaled like the gradients of the grown parameters.

    This is exact for clone without noise. Moments of new channels and of layers with zero output start at zero. No measurement shows that
    carried moments help, so `plamo2 grow` does not carry them.

    Args:
        mu, nu: First and second moments, trees like the parameters.
    """
    grown, plan = check_target(source, target, width, depth)

    def carry(tree: Params, power: int) -> Params:
        result = {}
        for path, leaf in flatten_dict(_deepen(tree, source, target, plan, silence=lambda leaf: leaf * 0)).items():
            declared = structure(target).declared[path]
            for position, name in enumerate(declared.names):
                if name in grown:
                    weight = grown[name].gradient_weight(declared, name) ** power
                    leaf = _take(leaf, grown[name], position, weight)
            result[path] = leaf
        return unflatten_dict(result)

    return carry(mu, 1), carry(nu, 2)


def check_target(
    source: ModelConfig, target: ModelConfig, width: Width, depth: Depth
) -> tuple[dict[str, Expansion], LayerPlan]:
    """Check that the target can be grown from the source. Return the expansion of each axis and the source of each layer.

    Raises:
        SurgeryError: The target cannot be grown from the source. The message names the axis or field.
    """
    plan = layer_plan(source, target, depth)
    if depth == "identity":
        check_kinds(source, target, plan)
    return expansions(source, target, width), plan


def _deepen(params: Params, source: ModelConfig, target: ModelConfig, plan: LayerPlan, silence=None) -> Params:
    """Return the parameter tree with the depth of the target and the width of the source."""
    old = unstack(params, source)
    declared = structure(source).declared
    places = layer_places(source)

    def taken(origin: int, silent: bool) -> Params:
        if not silent:
            return old[origin]
        if silence is not None:
            return jax.tree.map(silence, old[origin])
        flat = flatten_dict(old[origin])
        for path, leaf in flat.items():
            end = declared[(*places[origin][:2], *path)]
            if end.ends_residual:  # A norm factor of zero gives the residual branch zero output.
                flat[path] = leaf * 0 - end.norm_offset
        return unflatten_dict(flat)

    layers = [taken(*pair) for pair in zip(plan.source, plan.silent, strict=True)]
    return restack(params, layers, target)


def _take(leaf: Array, expansion: Expansion, position: int, weight: np.ndarray) -> Array:
    """Return the source channels of an axis, each multiplied by its weight."""
    taken = leaf.take(np.maximum(expansion.source, 0), axis=position)
    return taken * _along(weight.astype(np.float32), leaf.ndim, position)


def _along(values: np.ndarray, ndim: int, position: int) -> np.ndarray:
    return np.expand_dims(values, [i for i in range(ndim) if i != position])


def _expand(
    declared: axes.Declaration, leaf: Array, fresh: Array | None, grown: dict[str, Expansion], paired: frozenset[str]
) -> Array:
    offset = declared.norm_offset or 0.0
    value = leaf + offset
    for position, name in enumerate(declared.names):
        if name in grown:
            value = _take(value, grown[name], position, grown[name].weight(declared, name))
    if fresh is not None and (starts := _starts(declared, grown, paired)) is not None:
        value = value + starts * (fresh + offset)
    return value - offset


def _starts(declared: axes.Declaration, grown: dict[str, Expansion], paired: frozenset[str]) -> np.ndarray | None:
    """Return the share of a fresh value that each entry starts with, broadcastable to the parameter; None if all shares are 0."""
    starts, silent = None, np.zeros((), bool)
    for position, name in enumerate(declared.names):
        if name not in grown or grown[name].copied.all():
            continue
        e = grown[name]
        new = _along(~e.copied, len(declared.names), position)
        reads = declared.norm_offset is None and name in declared.contracts
        makes = declared.norm_offset is None and name not in declared.contracts
        # Weights that read a zero channel may be random; weights that read a nonzero channel must be zero. Weights that produce a new
        # channel under a norm must be zero too, or the mean square of the norm would change.
        if (reads and not e.normed) or (makes and e.normed and name not in paired):
            silent = silent | new
        else:
            share = np.where(new, np.float32(_LEAK if makes and name in paired else 1), np.float32(0))
            starts = share if starts is None else np.maximum(starts, share)
    return None if starts is None else np.where(silent, np.float32(0), starts)


def _noise(
    declared: axes.Declaration, value: Array, grown: dict[str, Expansion], noise: float, seed: tuple
) -> Array | float:
    read = [(i, name) for i, name in enumerate(declared.names) if name in grown and name in declared.contracts]
    if not read:
        return 0.0
    drawn = np.random.default_rng(seed).standard_normal(value.shape)
    for position, name in read:
        drawn = grown[name].project(drawn, position, declared)
    size = ((value + (declared.norm_offset or 0.0)) ** 2).mean() ** 0.5
    return noise * size * drawn.astype(np.float32)
