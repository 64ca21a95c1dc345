"""Sandbox for untrusted Python programs: runs tests against a program, both in isolated processes. Needs the standard library only."""

from plamo2_jax.sandbox.check import Limits, SandboxError, isolation_problem, passes

__all__ = ["Limits", "SandboxError", "isolation_problem", "passes"]
