"""Attention on CPUs that clears a page before it writes the first token into it.

Pages of windowed layers and of Mamba layers come from one pool. On CPUs, vLLM clears pages before use only for layers without a window, and
its kernel multiplies the values behind the last token of a page by weights of 0. If a Mamba layer used the page before, these values may be
NaN in bfloat16, and so would be the output of every second request.
"""

import torch
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl


class ClearingImpl(CPUAttentionBackendImpl):
    """vLLM's attention on CPUs, with pages cleared before use."""

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Write keys and values [tokens, kv_heads, head_dim] into the slots of kv_cache [pages, kv_heads, page_size, 2 · head_dim].

        The tokens of a request fill a page from its first slot on, so a write to the first slot means that the page is new to the request.
        """
        page_size = kv_cache.shape[2]
        first = slot_mapping[(slot_mapping >= 0) & (slot_mapping % page_size == 0)]
        if first.numel():
            kv_cache[first // page_size] = 0
        super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)


class ClearingBackend(CPUAttentionBackend):
    """Names `ClearingImpl` as the implementation of vLLM's backend for CPUs."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """Return the implementation."""
        return ClearingImpl
