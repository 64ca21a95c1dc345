"""The library of C++ functions for CPUs, which XLA calls through its foreign function interface (jax.ffi)."""

from plamo2_kernels.native.library import call, is_available, require

__all__ = ["call", "is_available", "require"]
