"""The one-token update of a Mamba mixer in C++, where it can run."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from plamo2_jax.model.cache import Context, MambaCache
from plamo2_jax.model.layers import OBSERVED
from plamo2_jax.model.linear import INPUTS
from plamo2_jax.model.outputs_first import OutputsFirst
from plamo2_kernels import native
from plamo2_kernels.mamba_step import MambaWeights, mamba_step

_PROJECTIONS = ("b_proj", "c_proj", "dt_down", "dt_up")


def steps_natively(module: nn.Module, x: jax.Array, context: Context, cache: MambaCache | None) -> bool:
    """Return whether `step_natively` can run: one float32 token of each row on CPU, with float32 projections stored outputs first.

    Args:
        module: Mamba mixer.
        x: Inputs of the convolution, [b, t, h, p].
        context: Segments of the tokens.
        cache: States of the layer.
    """
    if cache is None or x.shape[1] != 1 or context.deferred or module.mesh is not None:
        return False
    if module.implementation != "auto" or module.product_implementation not in ("auto", "ffi"):
        return False
    # The C++ kernel records nothing.
    if module.is_initializing() or any(map(module.is_mutable_collection, (OBSERVED, INPUTS))):
        return False
    weights = module.variables["params"]
    projections = [weights[name] for name in _PROJECTIONS]
    if not all(isinstance(each, OutputsFirst) for each in projections):
        return False
    arrays = [x, cache.conv, cache.ssm, *jax.tree.leaves({name: weights[name] for name in MambaWeights._fields})]
    is_float32 = all(array.dtype == jnp.float32 for array in arrays)
    return is_float32 and jax.default_backend() == "cpu" and native.is_available()


def step_natively(
    module: nn.Module, x: jax.Array, z: jax.Array, context: Context, cache: MambaCache
) -> tuple[jax.Array, MambaCache]:
    """Return the input of the output projection, [b, 1, h, p], and the new states.

    Args:
        module: Mamba mixer.
        x, z: The two parts of the input projection, [b, 1, h, p].
        context: Segments of the tokens.
        cache: States of the layer.
    """
    weights = module.variables["params"]
    leaves = {name: weights[name] for name in MambaWeights._fields}
    arrays = MambaWeights(**{name: leaf.values if name in _PROJECTIONS else leaf for name, leaf in leaves.items()})
    tokens = x[:, 0], z[:, 0], context.segment_ids[:, 0], context.continues
    settings = {"epsilon": module.config.rms_norm_eps}
    y, conv, ssm = mamba_step(*tokens, arrays, cache.conv, cache.ssm, **settings)
    return y[:, None], MambaCache(conv, ssm)
