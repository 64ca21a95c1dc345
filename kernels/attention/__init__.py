"""Sliding-window and full attention that respects segments."""

from plamo2_kernels.attention.api import Implementation, attention, choose_implementation
from plamo2_kernels.attention.cached import Keys, cached_attention
from plamo2_kernels.attention.one_token import attend_one_token, dequantize_heads, quantize_heads
from plamo2_kernels.attention.splash import CHECKPOINT_NAME
from plamo2_kernels.attention.xla import attend_one, masked_attention, visible_keys

__all__ = [
    "CHECKPOINT_NAME",
    "Implementation",
    "Keys",
    "attend_one",
    "attend_one_token",
    "attention",
    "cached_attention",
    "choose_implementation",
    "dequantize_heads",
    "masked_attention",
    "quantize_heads",
    "visible_keys",
]
