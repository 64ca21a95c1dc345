"""Block: a mixer and an MLP, each in a residual branch. Period: the blocks that the scan over layers repeats."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.model import axes, parallel
from plamo2_jax.model.attention import Attention
from plamo2_jax.model.cache import AttentionCache, Context, LayerCache, MambaCache
from plamo2_jax.model.layers import MIXER_SCALE, MLP_SCALE, GatedMLP, RMSNorm, observe, record_block_influence
from plamo2_jax.model.mamba import Mamba
from plamo2_kernels.attention import CHECKPOINT_NAME
from plamo2_kernels.attention import Implementation as AttentionImplementation
from plamo2_kernels.quant import Implementation as ProductImplementation
from plamo2_kernels.ssd import Implementation

Remat = Literal["none", "dots", "dots_except_up", "dots_except_gate_up", "outputs", "block", "offload"]
"""Activations of a period that the forward pass saves for the backward pass, which recomputes the others, from the most saved to the
fewest. docs/sharding.md has the memory and the recomputation of each.

none: saves all. dots: saves the input of the period, the results of products with weights, and the outputs of attention. dots_except_up,
dots_except_gate_up: as dots, without the widest products of the MLP. outputs: saves the input, the results of mixers and MLPs, and the
outputs of attention. block: saves the input. offload: saves the input in host memory.
"""

_INPUT = "period_input"
# Projections by their names (`linear.project`): results of a branch, with the output of attention, which takes long to compute, then the
# other products of the mixers.
_OUTPUTS = ("out_proj", "o_proj", "down", CHECKPOINT_NAME)
_MIXER = ("in_proj", "b_proj", "c_proj", "dt_down", "q_proj", "k_proj", "v_proj")


def recomputed(period: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """Apply a rematerialization policy to `Period`."""
    policies = jax.checkpoint_policies
    policy = {
        # Products with batch axes, such as attention scores and those of the scan, are recomputed.
        "dots": policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(CHECKPOINT_NAME)
        ),
        "dots_except_up": policies.save_only_these_names(*_OUTPUTS, *_MIXER, "gate"),
        "dots_except_gate_up": policies.save_only_these_names(*_OUTPUTS, *_MIXER),
        "outputs": policies.save_only_these_names(*_OUTPUTS),
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
    product_implementation: ProductImplementation = "xla"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], context: Context, cache: MambaCache | AttentionCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache]:
        """Return the residual stream after the layer, and the new cache of the layer (None without a cache)."""
        c = self.config
        if self.kind is LayerKind.MAMBA:
            mixer = Mamba(c, self.implementation, self.mesh, self.product_implementation, name="mixer")
        else:
            settings = self.attention_implementation, self.mesh, self.product_implementation
            mixer = Attention(c, self.kind, *settings, name="mixer")

        def opening(name):
            y = RMSNorm(1.0, c.rms_norm_eps, product_implementation=self.product_implementation, name=name)(x)
            observe(self, y, (axes.EMBED,), context.segment_ids)
            return y

        def closing(name, offset):
            products = self.product_implementation
            return RMSNorm(offset, c.rms_norm_eps, True, product_implementation=products, name=name)

        def gathered(y):
            # Otherwise XLA divides the few rows of a decoding step over all devices, and sends them around in every layer.
            return y if cache is None else parallel.gather_channels(self.mesh, y)

        y, new = mixer(opening("pre_mixer_norm"), context, cache)
        x = gathered(x + closing("post_mixer_norm", MIXER_SCALE)(gathered(y)))
        y = GatedMLP(c, self.product_implementation, name="mlp")(opening("pre_mlp_norm"), context.segment_ids)
        return gathered(x + closing("post_mlp_norm", MLP_SCALE)(gathered(y))), new


class Period(nn.Module):
    """One block for each of `kinds`, the body of the scan over a layer group."""

    config: ModelConfig
    kinds: tuple[LayerKind, ...]
    implementation: Implementation
    attention_implementation: AttentionImplementation = "auto"
    mesh: jax.sharding.Mesh | None = None
    product_implementation: ProductImplementation = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], caches: tuple | None, context: Context):
        """Return the residual stream after the period, and the new caches of its layers (None without caches)."""
        x = checkpoint_name(x, _INPUT)
        start, new = x, []
        for position, kind in enumerate(self.kinds):
            settings = (self.implementation, self.attention_implementation, self.mesh, self.product_implementation)
            block = Block(self.config, kind, *settings, name=f"layer_{position}")
            x, cache = block(x, context, None if caches is None else caches[position])
            new.append(cache)
        record_block_influence(self, start, x, context.segment_ids)
        return x, None if caches is None else tuple(new)
