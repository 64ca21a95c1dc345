"""Programs that nobody has read, run in a fence and checked by tests. Standard library only."""

from plamo2_jax.sandbox.check import Limits, SandboxError, cuts_network, fence_problem, passes

__all__ = ["Limits", "SandboxError", "cuts_network", "fence_problem", "passes"]
