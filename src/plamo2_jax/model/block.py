"""Blocks: a mixer and an MLP, each in a residual branch; and periods of blocks, the body of the scan over layers."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.model.attention import Attention
from plamo2_jax.model.cache import AttentionCache, MambaCache
from plamo2_jax.model.context import Context
from plamo2_jax.model.layers import MIXER_SCALE, MLP_SCALE, GatedMLP, RMSNorm, observe, record_block_influence
from plamo2_jax.model.mamba import Mamba
from plamo2_kernels.attention import Implementation as AttentionImplementation
from plamo2_kernels.ssd import Implementation

Remat = Literal["none", "dots", "block", "offload"]
"""What the forward pass keeps of a period of layers for the backward pass, which recomputes the rest.

none: everything. dots: the period's input and the results of products with weights. block: the input. offload: the input, in the host's
memory.
"""

_INPUT = "period_input"


def recomputed(period: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """Return a period that keeps what `remat` says."""
    policies = jax.checkpoint_policies
    policy = {
        # Attention scores and the scan's products have batch axes: they are recomputed.
        "dots": policies.dots_with_no_batch_dims_saveable,
        "block": policies.nothing_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
    return period if remat == "none" else nn.remat(period, prevent_cse=False, policy=policy[remat])


class Block(nn.Module):
    """One layer: x += norm(mixer(norm(x))); x += norm(mlp(norm(x)))."""

    config: ModelConfig
    kind: LayerKind
    implementation: Implementation
    attention_implementation: AttentionImplementation = "auto"
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], context: Context, cache: MambaCache | AttentionCache | None
    ) -> tuple[Float[Array, "b t d"], MambaCache | AttentionCache | None]:
        """Return the residual stream after the layer, and the layer's new cache."""
        c = self.config
        if self.kind is LayerKind.MAMBA:
            mixer = Mamba(c, self.implementation, self.mesh, name="mixer")
        else:
            mixer = Attention(c, self.kind, self.attention_implementation, self.mesh, name="mixer")

        def opening(name):
            y = RMSNorm(1.0, c.rms_norm_eps, name=name)(x)
            observe(self, y, (axes.EMBED,), context.segment_ids)
            return y

        def closing(name, offset):
            return RMSNorm(offset, c.rms_norm_eps, ends_residual=True, name=name)

        y, cache = mixer(opening("pre_mixer_norm"), context, cache)
        x = x + closing("post_mixer_norm", MIXER_SCALE)(y)
        y = GatedMLP(c, name="mlp")(opening("pre_mlp_norm"), context.segment_ids)
        return x + closing("post_mlp_norm", MLP_SCALE)(y), cache


class Period(nn.Module):
    """One period of a run: a block of each of its kinds; the body of the scan over the run."""

    config: ModelConfig
    kinds: tuple[LayerKind, ...]
    implementation: Implementation
    attention_implementation: AttentionImplementation = "auto"
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], caches: tuple | None, context: Context):
        """Return the residual stream after the period, and the new caches of its layers."""
        x = checkpoint_name(x, _INPUT)
        before, new = x, []
        for position, kind in enumerate(self.kinds):
            block = Block(
                self.config,
                kind,
                self.implementation,
                self.attention_implementation,
                self.mesh,
                name=f"layer_{position}",
            )
            x, cache = block(x, context, None if caches is None else caches[position])
            new.append(cache)
        record_block_influence(self, before, x, context.segment_ids)
        return x, None if caches is None else tuple(new)
