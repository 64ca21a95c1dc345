"""Kernels of PLaMo 2: functions from arrays to arrays, independent of the model, its configuration and Flax."""
