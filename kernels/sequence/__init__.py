"""The token mixers for a row in shards, to call in a `jax.shard_map` with a mesh axis over the row.

Each function has the arguments of the function without `sharded_`, with this shard's part of every array, and the name of the mesh axis
over the row. The results of all shards together equal the result of that function for the whole row.
"""

from plamo2_kernels.sequence.attention import sharded_attention
from plamo2_kernels.sequence.conv import sharded_causal_conv1d
from plamo2_kernels.sequence.halo import preceding
from plamo2_kernels.sequence.scan import sharded_ssd

__all__ = ["preceding", "sharded_attention", "sharded_causal_conv1d", "sharded_ssd"]
