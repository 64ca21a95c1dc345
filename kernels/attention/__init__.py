"""Sliding-window and full attention that respects segments."""

from plamo2_kernels.attention.api import Implementation, attention, choose_implementation
from plamo2_kernels.attention.xla import masked_attention

__all__ = ["Implementation", "attention", "choose_implementation", "masked_attention"]
