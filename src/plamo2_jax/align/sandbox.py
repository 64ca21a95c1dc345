"""The code sandbox, under the name that it had first; see plamo2_jax.sandbox."""

from plamo2_jax.sandbox import Limits, SandboxError, cuts_network, fence_problem, passes

__all__ = ["Limits", "SandboxError", "cuts_network", "fence_problem", "passes"]
