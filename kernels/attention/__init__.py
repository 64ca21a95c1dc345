"""Sliding-window and full attention that respects segments."""

from plamo2_kernels.attention.api import Implementation, attention, choose_implementation
from plamo2_kernels.attention.cached import Keys, cached_attention
from plamo2_kernels.attention.xla import attend_one, masked_attention, visible_keys

__all__ = [
    "Implementation",
    "Keys",
    "attend_one",
    "attention",
    "cached_attention",
    "choose_implementation",
    "masked_attention",
    "visible_keys",
]
