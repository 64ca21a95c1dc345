# Copyright 2026 the plamo2-jax authors. SPDX-License-Identifier: Apache-2.0
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with the License.
# You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0. Unless required by applicable law or agreed to in
# writing, software distributed under the License is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either
# express or implied. See the License for the specific language governing permissions and limitations under the License.
"""PLaMo 2 in plain PyTorch for transformers: a hybrid of Mamba and attention layers.

The network needs no CUDA extension. The scan of a Mamba layer runs in chunks of matrix products.

Shapes: b rows, t tokens, c channels of the residual stream, h heads, p channels of a head, n state size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_plamo2 import Plamo2Config

QK_EPSILON = 1e-6
"""Epsilon of the norms of queries and keys."""
CHUNK = 64
"""Tokens of a chunk of the scan. The results do not depend on it."""


class Plamo2Cache:
    """State of all layers after some tokens, for decoding.

    Attributes:
        length: Number of tokens.
        layers: By layer, the inputs of the convolution and the state of the scan, or keys and values; None before the first token.
    """

    is_compileable = False

    def __init__(self, num_layers: int) -> None:
        self.length = 0
        self.layers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * num_layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens."""
        del layer_idx
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Select rows, for beam search."""
        self.layers = [
            state and tuple(x.index_select(0, beam_idx.to(x.device)) for x in state) for state in self.layers
        ]


class Plamo2RMSNorm(nn.Module):
    """RMS norm, multiplied by (offset + weight)."""

    def __init__(self, size: int, epsilon: float, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.epsilon = epsilon
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized x, in its dtype."""
        return rms_normalize(x, self.epsilon) * (self.offset + self.weight.float()).to(x.dtype)


def rms_normalize(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return x / sqrt(mean(x²) + epsilon) over the last axis, computed in float32, in the dtype of x."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


class Plamo2MLP(nn.Module):
    """Gated MLP: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Plamo2Config) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output, [b, t, c]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Plamo2Attention(nn.Module):
    """Causal attention over a window or over all tokens, with normalized queries and keys and rotary positions."""

    def __init__(self, config: Plamo2Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.hidden_size_per_head,
        )
        self.window = config.window(layer)
        self.rope_base = config.rope_base(layer)
        self.qkv_proj = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.width, bias=False)
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size, bias=False)
        self.q_weight = nn.Parameter(torch.ones(self.heads, self.width))
        self.k_weight = nn.Parameter(torch.ones(self.kv_heads, self.width))

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None, cache: Plamo2Cache | None) -> torch.Tensor:
        """Return the output, [b, t, c].

        Args:
            x: Input, [b, t, c].
            valid: [b, k] bool, False for padding, for the last k tokens including these t; None: there is no padding.
            cache: State before these tokens. It is updated.
        """
        b, t, _ = x.shape
        start = cache.length if cache is not None else 0
        positions = torch.arange(start, start + t, device=x.device)
        q, k, v = self.qkv_proj(x).view(b, t, -1, self.width).split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        q = rotate(rms_normalize(q, QK_EPSILON) * self.q_weight, positions, self.rope_base).transpose(1, 2)
        k = rotate(rms_normalize(k, QK_EPSILON) * self.k_weight, positions, self.rope_base).transpose(1, 2)
        v = v.transpose(1, 2)
        if cache is not None:
            if (past := cache.layers[self.layer]) is not None:
                k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
            kept = k.shape[2] if self.window is None else min(self.window, k.shape[2])
            cache.layers[self.layer] = k[:, :, k.shape[2] - kept :], v[:, :, v.shape[2] - kept :]

        distance = positions[:, None] - torch.arange(start + t - k.shape[2], start + t, device=x.device)
        seen = (distance >= 0) & (distance <= (math.inf if self.window is None else self.window))
        if valid is not None:
            # A padding token sees itself, because softmax over no key is NaN.
            seen = (seen & valid[:, None, -k.shape[2] :] | (distance == 0))[:, None]
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


def rotate(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotate x [b, t, h, p] by RoPE (arXiv:2104.09864): channels i and i + p/2 form a pair with the frequency base^(-2i/p)."""
    width = x.shape[-1]
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float32, device=x.device) / width)
    angles = positions[:, None, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Plamo2Mamba(nn.Module):
    """Mamba mixer: a gated selective scan. As in Mamba-1, B, C and dt are projections of the convolution's output."""

    def __init__(self, config: Plamo2Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.width = config.mamba_num_heads, config.hidden_size_per_head
        self.state, self.rank, self.taps = config.mamba_d_state, config.dt_rank, config.mamba_d_conv
        self.epsilon = config.rms_norm_eps
        inner = self.heads * self.width
        self.in_proj = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, self.taps, groups=inner, bias=False)
        self.bcdt_proj = nn.Linear(inner, 2 * self.state + self.rank, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.heads, bias=False)
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.B_norm_weight = nn.Parameter(torch.ones(self.state))
        self.C_norm_weight = nn.Parameter(torch.ones(self.state))
        self.dt_norm_weight = nn.Parameter(torch.ones(self.rank))

    def forward(self, u: torch.Tensor, valid: torch.Tensor | None, cache: Plamo2Cache | None) -> torch.Tensor:
        """Return the output, [b, t, c]. The arguments are the same as for `Plamo2Attention`."""
        b, t, _ = u.shape
        inner = self.heads * self.width
        # The rows of in_proj are, head by head, the gate z and then x.
        z, x = self.in_proj(u).view(b, t, self.heads, 2 * self.width).chunk(2, dim=-1)
        x = x.reshape(b, t, inner)
        if valid is not None:
            x = x * valid[:, -t:, None]
        past = cache.layers[self.layer] if cache is not None else None
        window = torch.cat((x.new_zeros(b, self.taps - 1, inner) if past is None else past[0], x), dim=1)
        x = F.silu(self.conv1d(window.transpose(1, 2)).transpose(1, 2))

        weights = self.B_norm_weight, self.C_norm_weight, self.dt_norm_weight
        parts = self.bcdt_proj(x).split((self.state, self.state, self.rank), dim=-1)
        B, C, dt = (
            rms_normalize(part, self.epsilon) * weight.to(part.dtype)
            for part, weight in zip(parts, weights, strict=True)
        )
        dt = F.softplus(self.dt_proj(dt).float() + self.dt_bias.float())
        if valid is not None:
            dt = dt * valid[:, -t:, None]  # Padding does not change the state.
        x = x.view(b, t, self.heads, self.width)
        state = x.new_zeros(b, self.heads, self.width, self.state, dtype=torch.float32) if past is None else past[1]
        y, state = selective_scan(x.float(), dt, -self.A_log.float().exp(), B.float(), C.float(), state)
        y = (y + self.D.float()[:, None] * x.float()).to(u.dtype) * F.silu(z)
        if cache is not None:
            cache.layers[self.layer] = window[:, window.shape[1] - (self.taps - 1) :], state
        return self.out_proj(y.reshape(b, t, inner))


def selective_scan(
    x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute S_t = exp(dt_t A) S_{t-1} + dt_t x_t ⊗ B_t and y_t = S_t C_t.

    Tokens of a chunk are computed together from the products C_t · B_s of all pairs (SSD, arXiv:2405.21060, section 6).

    Args:
        x: [b, t, h, p] float32.
        dt: Step sizes, [b, t, h] float32.
        A: Negative decay rates, [h] float32.
        B, C: [b, t, n] float32, shared by all heads.
        state: State before the first token, [b, h, p, n] float32.

    Returns:
        y, [b, t, h, p], and the state after the last token.
    """
    outputs = []
    for start in range(0, x.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        xs, bs, cs = x[:, part] * dt[:, part, :, None], B[:, part], C[:, part]
        total = (dt[:, part] * A).cumsum(1).transpose(1, 2)  # [b, h, t], log-decay since the start of the chunk
        size = total.shape[-1]
        later = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
        decay = (total[..., :, None] - total[..., None, :]).masked_fill(later, -math.inf).exp()
        pairs = torch.einsum("btn,bsn->bts", cs, bs)[:, None] * decay
        inside = torch.einsum("bhts,bshp->bthp", pairs, xs)
        before = torch.einsum("btn,bhpn,bht->bthp", cs, state, total.exp())
        outputs.append(inside + before)
        rest = (total[..., -1:] - total).exp()
        state = state * total[..., -1, None, None].exp() + torch.einsum("bht,bthp,btn->bhpn", rest, xs, bs)
    return torch.cat(outputs, dim=1), state


class Plamo2DecoderLayer(nn.Module):
    """One layer: x += norm(mixer(norm(x))); x += norm(mlp(norm(x)))."""

    def __init__(self, config: Plamo2Config, layer: int) -> None:
        super().__init__()

        def norm(offset: float) -> Plamo2RMSNorm:
            return Plamo2RMSNorm(config.hidden_size, config.rms_norm_eps, offset)

        self.mixer = Plamo2Mamba(config, layer) if config.is_mamba(layer) else Plamo2Attention(config, layer)
        self.mlp = Plamo2MLP(config)
        self.pre_mixer_norm, self.post_mixer_norm = norm(1.0), norm(1 / 5)
        self.pre_mlp_norm, self.post_mlp_norm = norm(1.0), norm(1 / 5**1.5)

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None, cache: Plamo2Cache | None) -> torch.Tensor:
        """Return the residual stream after the layer. The arguments are the same as for `Plamo2Attention`."""
        x = x + self.post_mixer_norm(self.mixer(self.pre_mixer_norm(x), valid, cache))
        return x + self.post_mlp_norm(self.mlp(self.pre_mlp_norm(x)))


class Plamo2Layers(nn.Module):
    """The list of layers. It is a module because the public names have `layers` twice."""

    def __init__(self, config: Plamo2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Plamo2DecoderLayer(config, i) for i in range(config.num_hidden_layers))


class Plamo2PreTrainedModel(PreTrainedModel):
    """Initialization and settings that the models share."""

    config_class = Plamo2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Plamo2DecoderLayer",)
    _skip_keys_device_placement = "past_key_values"
    _supports_sdpa = True
    # generate() refuses modes that would rewind the state, such as assisted decoding.
    _is_stateful = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Return False: the model makes its own cache."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, Plamo2RMSNorm):
            nn.init.zeros_(module.weight)
        elif isinstance(module, Plamo2Attention):
            nn.init.ones_(module.q_weight)
            nn.init.ones_(module.k_weight)
        elif isinstance(module, Plamo2Mamba):
            for ones in (module.D, module.B_norm_weight, module.C_norm_weight, module.dt_norm_weight):
                nn.init.ones_(ones)
            module.A_log.copy_(torch.arange(1, module.heads + 1).log())
            dt = torch.empty(module.heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            module.dt_bias.copy_(dt + (-torch.expm1(-dt)).log())


class Plamo2Model(Plamo2PreTrainedModel):
    """Embedding, layers and final norm."""

    def __init__(self, config: Plamo2Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = Plamo2Layers(config)
        self.norm = Plamo2RMSNorm(config.hidden_size, config.rms_norm_eps, 1.0)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.embed_tokens = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Plamo2Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Compute the features of each token.

        Args:
            input_ids: [b, t] token ids; or give `inputs_embeds` [b, t, c].
            attention_mask: [b, tokens so far], 0 for padding on either side; None: there is no padding.
            past_key_values: State after the tokens before these. It is updated.
            use_cache: Return a cache; None: as in the config, but not in training.
            output_hidden_states: Also return the residual stream before each layer, and the features.
            **kwargs: Ignored. Positions follow from the number of tokens so far, because RoPE is relative.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(f"attention_mask must have the axes [rows, tokens], not {attention_mask.ndim} axes")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if past_key_values is None and use_cache:
            past_key_values = Plamo2Cache(self.config.num_hidden_layers)
        valid = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()

        states = []
        for layer in self.layers.layers:
            states.append(x)
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, valid, None)
            else:
                x = layer(x, valid, past_key_values)
        if past_key_values is not None:
            past_key_values.length += x.shape[1]
        x = self.norm(x)
        hidden_states = (*states, x) if output_hidden_states else None
        return BaseModelOutputWithPast(
            last_hidden_state=x, past_key_values=past_key_values, hidden_states=hidden_states
        )


class Plamo2ForCausalLM(Plamo2PreTrainedModel, GenerationMixin):
    """PLaMo 2 with logits of the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Plamo2Config) -> None:
        super().__init__(config)
        self.model = Plamo2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Plamo2Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits, and the loss if there are labels.

        Args:
            labels: [b, t] ids, equal to `input_ids` or -100 where a token does not count. The loss shifts them.
            logits_to_keep: Number of last tokens, or their indices, to compute logits for; 0: all.
            **kwargs: Passed to the loss. The other arguments are the same as for `Plamo2Model`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Plamo2Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of `forward` for the tokens that are not in the cache yet."""
        del kwargs
        inputs: dict[str, Any] = {"input_ids": input_ids}
        if past_key_values is not None and past_key_values.length:
            new = max(input_ids.shape[1] - past_key_values.length, 1)
            if attention_mask is not None:
                new = min(attention_mask.shape[1] - past_key_values.length, input_ids.shape[1])
            inputs = {"input_ids": input_ids[:, input_ids.shape[1] - new :]}
        elif inputs_embeds is not None:
            inputs = {"inputs_embeds": inputs_embeds}
        keep = {} if logits_to_keep is None else {"logits_to_keep": logits_to_keep}
        return {
            **inputs,
            **keep,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
        }
