"""Depthwise causal convolution that respects segments."""
