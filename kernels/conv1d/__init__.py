"""Depthwise causal convolution that respects segments."""

from plamo2_kernels.conv1d.api import causal_conv1d

__all__ = ["causal_conv1d"]
