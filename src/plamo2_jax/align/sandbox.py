"""Code sandbox; an alias of plamo2_jax.sandbox."""

from plamo2_jax.sandbox import Limits, SandboxError, cuts_network, isolation_problem, passes

__all__ = ["Limits", "SandboxError", "cuts_network", "isolation_problem", "passes"]
