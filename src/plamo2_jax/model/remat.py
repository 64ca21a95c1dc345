"""Rematerialization policies: the activations that the forward pass of a period saves for the backward pass.

The backward pass computes all other activations again. The scan over layers saves one copy for each period, so these are the largest
arrays of a train step. All policies give the same loss and gradients.

    policy               saved for each period, for each token
    none                 every activation that the backward pass reads
    dots                 input and all products with weights
    dots_except_mlp_in   the same without the products gate and up of the MLP, the two widest
    dots_except_mlp      input and the products of the mixers
    block                input
    offload              input, in host memory
"""

from __future__ import annotations

from typing import Literal, get_args

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "dots", "dots_except_mlp_in", "dots_except_mlp", "block", "offload"]
"""Names of the policies, from the most saved activations to the fewest."""
REMAT: tuple[Remat, ...] = get_args(Remat)

INPUT = "period_input"
MIXER = "mixer_product"
MLP_IN = "mlp_in_product"
MLP_OUT = "mlp_out_product"
"""Names of activations. A module gives an activation its name with `named`."""

named = checkpoint_name


def recomputed(period: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """Apply a rematerialization policy to a module class, the body of the scan over layers."""
    policies = jax.checkpoint_policies
    policy = {
        # Products with batch axes, such as attention scores and those of the scan, are recomputed.
        "dots": policies.dots_with_no_batch_dims_saveable,
        "dots_except_mlp_in": policies.save_only_these_names(MIXER, MLP_OUT),
        "dots_except_mlp": policies.save_only_these_names(MIXER),
        "block": policies.nothing_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
    return period if remat == "none" else nn.remat(period, prevent_cse=False, policy=policy[remat])
