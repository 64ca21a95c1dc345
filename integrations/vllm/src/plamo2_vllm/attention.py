"""Attention mixer: grouped queries, norms of q and k with a scale per head, RoPE, and a window of W + 1 tokens or none."""

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import divide, get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.platforms import current_platform

from plamo2_vllm.config import Plamo2Config
from plamo2_vllm.norms import float_parameter, rms_normalize

_QK_EPSILON = 1e-6
"""Epsilon of the norms of q and k. It is a constant in the public code."""


class Plamo2AttentionMixer(nn.Module):
    """Causal attention over the heads of this rank."""

    def __init__(self, vllm_config: VllmConfig, layer: int, prefix: str) -> None:
        super().__init__()
        config: Plamo2Config = vllm_config.model_config.hf_config
        quant_config, max_length = vllm_config.quant_config, vllm_config.model_config.max_model_len
        tp_size, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size_per_head
        self.num_heads = divide(heads, tp_size)
        # With fewer key/value heads than ranks, several ranks have the same head.
        self.num_kv_heads = divide(kv_heads, tp_size) if kv_heads >= tp_size else 1
        copies = 1 if kv_heads >= tp_size else divide(tp_size, kv_heads)
        self.sizes = [
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        ]
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_dim,
            heads,
            kv_heads,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            heads * self.head_dim, config.hidden_size, bias=False, quant_config=quant_config, prefix=f"{prefix}.o_proj"
        )
        self.q_weight = self._scale(self.num_heads, rank)
        self.k_weight = self._scale(self.num_kv_heads, rank // copies)
        self.rotary_emb = get_rope(
            self.head_dim,
            # The table of angles has this many rows; max_position_embeddings of PLaMo 2 is ten million.
            max_position=max_length,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta_of(layer)},
        )
        window = config.window_of(layer)
        if window is not None and window >= max_length:
            window = None  # no request is longer, and vLLM has more options for layers without a window
        options = {}
        if current_platform.is_cpu():
            from plamo2_vllm.cpu_pages import ClearingBackend

            options["attn_backend"] = ClearingBackend
        self.attn = Attention(
            self.num_heads,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=self.num_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant_config,
            per_layer_sliding_window=window,
            prefix=f"{prefix}.attn",
            **options,
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the output [tokens, hidden] for tokens at `positions` [tokens] of their requests."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split(self.sizes, dim=-1)
        q, k = self.rotary_emb(positions, self._norm(q, self.q_weight), self._norm(k, self.k_weight))
        return self.o_proj(self.attn(q, k, v))[0]

    def _scale(self, heads: int, shard: int) -> nn.Parameter:
        """Return a parameter [heads, head_dim] for the heads `shard · heads` … of the checkpoint."""
        parameter = float_parameter(heads, self.head_dim)
        parameter.weight_loader = lambda parameter, stored: parameter.data.copy_(stored.narrow(0, shard * heads, heads))
        return parameter

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, weight.shape)
        return (rms_normalize(heads, _QK_EPSILON).float() * weight).to(x.dtype).flatten(-2)
