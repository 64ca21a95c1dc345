"""Sliding-window and full attention that respects segments."""

from plamo2_kernels.attention.xla import attention, masked_attention

__all__ = ["attention", "masked_attention"]
