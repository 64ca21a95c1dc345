"""The selective scan (state-space duality) of PLaMo 2."""

from plamo2_kernels.ssd.api import Implementation, ssd

__all__ = ["Implementation", "ssd"]
