"""Kernels of PLaMo 2: arrays in, arrays out; they know no model, no configuration and no Flax."""
