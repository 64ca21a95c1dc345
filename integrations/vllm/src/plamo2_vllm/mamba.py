"""Mamba mixer.

    z, x = in_proj(u)
    x = silu(conv(x))
    B, C, dt = norms of the rows of bcdt_proj(x)
    output = out_proj(scan(x, dt_proj(dt), A, B, C, D) · silu(z))

Convolution and scan are vLLM's own kernels, the same as for Mamba-2. Between the two comes a projection of the convolution's output, which
Mamba-2 does not have.

The rows of in_proj stay as they are in the checkpoint: for each head, z and then x. So quantized weights, scales and LoRA factors of any
layout load as they are, and tensor parallelism divides the rows into whole heads.
"""

import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import divide, get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context

# The import of mamba_mixer2 registers the custom op.
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.mamba import mamba_mixer2  # noqa: F401
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_utils import (
    MambaStateDtypeCalculator,
    MambaStateShapeCalculator,
    is_conv_state_dim_first,
)
from vllm.model_executor.layers.mamba.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from vllm.model_executor.layers.mamba.ops.ssd_combined import mamba_chunk_scan_combined_varlen
from vllm.model_executor.layers.mamba.ops.ssu_dispatch import selective_state_update
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.utils.torch_utils import _encode_layer_name
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from plamo2_vllm.config import Plamo2Config
from plamo2_vllm.norms import float_parameter, rms_normalize


def state_dtypes(vllm_config: VllmConfig) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes of the states of convolution and scan. The scan's state is float32 unless --mamba-ssm-cache-dtype is given."""
    cache = vllm_config.cache_config
    ssm_dtype = "float32" if cache.mamba_ssm_cache_dtype == "auto" else cache.mamba_ssm_cache_dtype
    return MambaStateDtypeCalculator.mamba2_state_dtype(
        vllm_config.model_config.dtype, cache.mamba_cache_dtype, ssm_dtype
    )


def state_shapes(config: Plamo2Config, tp_size: int, num_spec: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Return the shapes of the states of a layer: convolution, and scan [heads, head_dim, d_state].

    Only x is convolved, not B and C as in Mamba-2: there are no groups in the state of the convolution.
    """
    return MambaStateShapeCalculator.mamba2_state_shape(
        tp_world_size=tp_size,
        intermediate_size=config.mamba_num_heads * config.hidden_size_per_head,
        n_groups=0,
        num_heads=config.mamba_num_heads,
        head_dim=config.hidden_size_per_head,
        state_size=config.mamba_d_state,
        conv_kernel=config.mamba_d_conv,
        num_spec=num_spec,
    )


def num_speculative_tokens(vllm_config: VllmConfig) -> int:
    """Return the number of tokens that a draft proposes, 0 without speculative decoding."""
    speculative = vllm_config.speculative_config
    return speculative.num_speculative_tokens if speculative else 0


class DepthwiseConv(nn.Module):
    """Weight [channels of this rank, taps] of the convolution.

    No linear layer of vLLM: on CPUs with AVX512-BF16, vLLM packs the weights of those with four taps for another kernel.
    """

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, taps), requires_grad=False)
        load = sharded_weight_loader(0)
        # Stored as [channels, 1, taps], in MLX copies as [channels, taps, 1].
        self.weight.weight_loader = lambda parameter, stored: load(parameter, stored.reshape(-1, taps))


class Plamo2MambaMixer(nn.Module, MambaBase):
    """Gated selective scan over the heads of this rank."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config: Plamo2Config = vllm_config.model_config.hf_config
        quant_config = vllm_config.quant_config
        self.config, self.vllm_config, self.prefix = config, vllm_config, prefix
        self.num_spec = num_speculative_tokens(vllm_config)
        self.tp_size = get_tensor_model_parallel_world_size()
        self.num_heads = divide(config.mamba_num_heads, self.tp_size)
        self.head_dim, self.d_state = config.hidden_size_per_head, config.mamba_d_state
        self.eps = config.rms_norm_eps
        self.inner = self.num_heads * self.head_dim  # of this rank
        inner = config.mamba_num_heads * self.head_dim

        def linear(cls: type, inputs: int, outputs: int, name: str) -> nn.Module:
            return cls(inputs, outputs, bias=False, quant_config=quant_config, prefix=f"{prefix}.{name}")

        self.in_proj = linear(ColumnParallelLinear, config.hidden_size, 2 * inner, "in_proj")
        self.conv1d = DepthwiseConv(self.inner, config.mamba_d_conv)
        # The sum over all heads: its result is the same on every rank.
        self.bcdt_proj = linear(RowParallelLinear, inner, 2 * self.d_state + config.dt_rank, "bcdt_proj")
        self.dt_proj = linear(ColumnParallelLinear, config.dt_rank, config.mamba_num_heads, "dt_proj")
        self.out_proj = linear(RowParallelLinear, inner, config.hidden_size, "out_proj")
        self.B_norm_weight = float_parameter(self.d_state)
        self.C_norm_weight = float_parameter(self.d_state)
        self.dt_norm_weight = float_parameter(config.dt_rank)
        self.A, self.D, self.dt_bias = (float_parameter(self.num_heads) for _ in range(3))
        shard = sharded_weight_loader(0)
        self.D.weight_loader = self.dt_bias.weight_loader = shard
        # Stored as A_log.
        self.A.weight_loader = lambda parameter, stored: shard(parameter, -torch.exp(stored.float()))

        # vLLM replaces it by views of the pages of this layer.
        self.kv_cache = (torch.tensor([]), torch.tensor([]))
        layers = get_current_vllm_config().compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"Duplicate layer name: {prefix}")
        layers[prefix] = self

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the output [tokens, hidden] for the tokens of a batch."""
        zx, _ = self.in_proj(hidden_states)
        y = zx.new_zeros(zx.shape[0], self.inner)
        # vLLM's op for Mamba-2 calls `conv_ssm_forward` of the layer with this name. vLLM's list of ops at which it splits compiled graphs
        # contains this op; an op of our own would have to be added there.
        torch.ops.vllm.mamba_mixer2(zx, y, _encode_layer_name(self.prefix))
        z = zx.view(-1, self.num_heads, 2, self.head_dim)[:, :, 0].reshape(y.shape)
        return self.out_proj(y * F.silu(z))[0]

    def conv_ssm_forward(self, projected_states: torch.Tensor, output: torch.Tensor) -> None:
        """Write scan(...) of the tokens into `output` [tokens, heads · head_dim], and update the states.

        A batch begins with requests that decode, and then has those that read their prompts. Rows after both are padding.

        Args:
            projected_states: Output of in_proj, [tokens, heads · 2 · head_dim].
            output: Zeros; padding keeps them.
        """
        all_metadata = get_forward_context().attn_metadata
        metadata = None if all_metadata is None else all_metadata[self.prefix]
        if metadata is None:
            return  # vLLM measures memory, before there are states
        decodes, prefills = metadata.num_decode_tokens, metadata.num_prefill_tokens
        tokens = decodes + prefills
        x = (
            projected_states[:tokens]
            .view(tokens, self.num_heads, 2, self.head_dim)[:, :, 1]
            .reshape(tokens, self.inner)
        )
        x = self._convolve(x, metadata)
        # One product for all tokens, since LoRA finds the adapter of a row by the number of the row.
        bcdt, _ = self.bcdt_proj(x)
        B, C, dt = bcdt.split([self.d_state, self.d_state, self.config.dt_rank], dim=-1)
        B, C, dt = (
            self._norm(B, self.B_norm_weight),
            self._norm(C, self.C_norm_weight),
            self._norm(dt, self.dt_norm_weight),
        )
        dt, _ = self.dt_proj(dt)

        x, output = (array.view(tokens, self.num_heads, self.head_dim) for array in (x, output[:tokens]))
        B, C = B.unsqueeze(1), C.unsqueeze(1)
        if decodes:
            self._step(*(array[:decodes] for array in (x, dt, B, C, output)), metadata)
        if prefills:
            self._scan(*(array[decodes:] for array in (x, dt, B, C, output)), metadata)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (rms_normalize(x, self.eps).float() * weight).to(x.dtype)

    def _convolve(self, x: torch.Tensor, metadata) -> torch.Tensor:
        """Return silu(conv(x)) [tokens, channels], and update the state of the convolution."""
        state = self.kv_cache[0] if is_conv_state_dim_first() else self.kv_cache[0].transpose(-1, -2)
        decodes, parts = metadata.num_decode_tokens, []
        if decodes:
            slots = metadata.state_indices_tensor_d
            parts.append(
                causal_conv1d_update(
                    x[:decodes],
                    state,
                    self.conv1d.weight,
                    None,
                    "silu",
                    conv_state_indices=slots,
                    num_accepted_tokens=metadata.num_accepted_tokens,
                    query_start_loc=metadata.query_start_loc_d,
                    max_query_len=slots.size(-1),
                )
            )
        if metadata.num_prefill_tokens:
            parts.append(
                causal_conv1d_fn(
                    x[decodes:].transpose(0, 1),
                    self.conv1d.weight,
                    None,
                    activation="silu",
                    conv_states=state,
                    has_initial_state=metadata.has_initial_states_p,
                    cache_indices=metadata.state_indices_tensor_p,
                    metadata=metadata,
                    query_start_loc=metadata.query_start_loc_p,
                ).transpose(0, 1)
            )
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)

    def _scan(self, x, dt, B, C, output, metadata) -> None:
        """Scan prompts, or pieces of prompts, that lie one after the other."""
        state, slots, begun = self.kv_cache[1], metadata.state_indices_tensor_p, metadata.has_initial_states_p
        initial = None
        if begun is not None and metadata.prep_initial_states:
            initial = torch.where(begun[:, None, None, None], state[slots], 0)
        state[slots] = mamba_chunk_scan_combined_varlen(
            x,
            dt,
            self.A,
            B,
            C,
            chunk_size=metadata.chunk_size,
            D=self.D,
            dt_bias=self.dt_bias,
            seq_idx=metadata.seq_idx_p,
            cu_seqlens=metadata.query_start_loc_p,
            cu_chunk_seqlens=metadata.cu_chunk_seqlen_p,
            last_chunk_indices=metadata.last_chunk_indices_p,
            initial_states=initial,
            dt_softplus=True,
            dt_limit=(0.0, float("inf")),
            out=output,
            state_dtype=state.dtype,
        )

    def _step(self, x, dt, B, C, output, metadata) -> None:
        """Update the state of each request by its next token, or by the tokens of its draft."""
        sizes = (self.num_heads, self.head_dim)
        selective_state_update(
            self.kv_cache[1],
            x,
            dt[:, :, None].expand(-1, *sizes),
            self.A[:, None, None].expand(*sizes, self.d_state),
            B,
            C,
            self.D[:, None].expand(sizes),
            self.dt_bias[:, None].expand(sizes),
            dt_softplus=True,
            state_batch_indices=metadata.state_indices_tensor_d,
            dst_state_batch_indices=metadata.state_indices_tensor_d,
            out=output,
            num_accepted_tokens=metadata.num_accepted_tokens,
            cu_seqlens=metadata.query_start_loc_d,
        )

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Return the dtypes of the states."""
        return state_dtypes(self.vllm_config)

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the states."""
        return state_shapes(self.config, self.tp_size, self.num_spec)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """The kind of metadata that the layer needs: chunks of requests, as for Mamba-2."""
        return MambaAttentionBackendEnum.MAMBA2
