"""The token mixers with the row cut into shards: for the body of a `jax.shard_map` that has an axis over the row.

Each function takes the arguments of its namesake, every array this shard's part, and the name of the mesh axis along which the shards of
a row follow one another; the shards together give what the namesake gives of the whole row.
"""

from plamo2_kernels.sequence.attention import sharded_attention
from plamo2_kernels.sequence.conv import sharded_causal_conv1d
from plamo2_kernels.sequence.halo import preceding
from plamo2_kernels.sequence.scan import sharded_ssd

__all__ = ["preceding", "sharded_attention", "sharded_causal_conv1d", "sharded_ssd"]
