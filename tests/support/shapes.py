"""Checks of the shapes and dtypes in annotations, at every call. Only tests install them: outside tests annotations cost nothing."""

import types
from collections.abc import Callable

import jax
import jaxtyping
import numpy as np
from beartype import beartype

PACKAGES = ["plamo2_kernels", "plamo2_jax.model", "plamo2_jax.engine"]
"""The packages that work on arrays. Their functions are checked while jax traces them, once a program."""


def install() -> None:
    """Check the functions of `PACKAGES`, which must not have been imported yet."""
    jaxtyping.Array = jax.Array | np.ndarray  # JAX takes NumPy's arrays wherever it takes its own.
    jaxtyping.install_import_hook(PACKAGES, f"{__name__}.check_arrays")


def check_arrays(function: Callable) -> Callable:
    """Return the function with beartype's checks of the parameters and results whose annotation names an array.

    Other annotations describe what a caller should pass, such as a float where 0 does as well.
    """
    if not isinstance(function, types.FunctionType) or function.__name__ == "__init__":
        return function
    arrays = {name: hint for name, hint in function.__annotations__.items() if "Array, " in str(hint)}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return beartype(function)
