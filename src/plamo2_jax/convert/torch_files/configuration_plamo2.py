# Copyright 2026 the plamo2-jax authors. SPDX-License-Identifier: Apache-2.0
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with the License.
# You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0. Unless required by applicable law or agreed to in
# writing, software distributed under the License is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either
# express or implied. See the License for the specific language governing permissions and limitations under the License.
"""Configuration of PLaMo 2 for transformers. It has the keys of the public config.json."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class Plamo2Config(PretrainedConfig):
    """Shape of a PLaMo 2 model.

    Args:
        hidden_size: Width of the residual stream.
        num_hidden_layers: Number of layers, Mamba and attention layers together.
        intermediate_size: Width of the gated MLP.
        num_attention_heads: Query heads of an attention layer.
        num_key_value_heads: Key/value heads; a divisor of the query heads.
        hidden_size_per_head: Width of a head, in attention and Mamba layers.
        mamba_num_heads: Heads of a Mamba layer.
        mamba_d_state: State size per channel.
        mamba_d_conv: Taps of the depthwise causal convolution.
        mamba_step: Period of the layer pattern: layer i is attention where i mod mamba_step == mamba_step // 2.
        mamba_enabled: False: every layer is an attention layer.
        attention_window_size: Number of past tokens that a windowed layer sees, besides the token itself.
        full_attention_idx: Attention layers that see all past tokens.
        rope_theta: RoPE base of the layers in `full_attention_idx`.
        rope_local_theta: RoPE base of windowed layers; None: `rope_theta`.
        vocab_size: Rows of the embedding.
        rms_norm_eps: Epsilon of the norms, except the norms of queries and keys (1e-6).
        initializer_range: Standard deviation of linear and embedding weights at initialization.
        max_position_embeddings: Not used; RoPE has no limit.
        **kwargs: Keys of `PretrainedConfig`, and keys that other programs read (`layers_block_type`, `head_dim`, ...).
    """

    model_type = "plamo2"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        hidden_size: int = 4096,
        num_hidden_layers: int = 32,
        intermediate_size: int = 13312,
        num_attention_heads: int = 32,
        num_key_value_heads: int = 4,
        hidden_size_per_head: int = 128,
        mamba_num_heads: int = 64,
        mamba_d_state: int = 64,
        mamba_d_conv: int = 4,
        mamba_step: int = 2,
        mamba_enabled: bool = True,
        attention_window_size: int = 2048,
        full_attention_idx: list[int] | None = None,
        rope_theta: float = 10000.0,
        rope_local_theta: float | None = None,
        vocab_size: int = 32000,
        tie_word_embeddings: bool = True,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        max_position_embeddings: int = 10 * 1024 * 1024,
        use_cache: bool = True,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Store the fields. Raise ValueError if the sizes contradict each other."""
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.hidden_size_per_head = hidden_size_per_head
        self.mamba_num_heads = mamba_num_heads
        self.mamba_d_state = mamba_d_state
        self.mamba_d_conv = mamba_d_conv
        self.mamba_step = mamba_step
        self.mamba_enabled = mamba_enabled
        self.attention_window_size = attention_window_size
        self.full_attention_idx = list(full_attention_idx or ())
        self.rope_theta = rope_theta
        self.rope_local_theta = rope_local_theta
        self.vocab_size = vocab_size
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.max_position_embeddings = max_position_embeddings
        self.use_cache = use_cache
        if num_attention_heads % num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={num_key_value_heads} is not allowed: it must divide num_attention_heads={num_attention_heads}"
            )
        if mamba_step < 2:
            raise ValueError(f"mamba_step={mamba_step} is not allowed: it must be at least 2")
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )

    @property
    def dt_rank(self) -> int:
        """Rank of the projection for dt."""
        return max(64, self.hidden_size // 16)

    def is_mamba(self, layer: int) -> bool:
        """Return whether a layer is a Mamba layer; the others are attention layers."""
        if not self.mamba_enabled:
            return False
        if self.num_hidden_layers <= self.mamba_step // 2:
            return layer != self.num_hidden_layers - 1
        return layer % self.mamba_step != self.mamba_step // 2

    def window(self, layer: int) -> int | None:
        """Return the number of past tokens that an attention layer sees besides the token itself; None: all."""
        return None if layer in self.full_attention_idx else self.attention_window_size

    def rope_base(self, layer: int) -> float:
        """Return the RoPE base of an attention layer."""
        if layer in self.full_attention_idx or self.rope_local_theta is None:
            return float(self.rope_theta)
        return float(self.rope_local_theta)
