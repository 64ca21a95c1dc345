"""The library as functions in a JAX program.

It is compiled at its first use, in about 5 s, and kept in the user's cache folder. Without a C++ compiler, or if anything else fails,
callers use XLA instead, and one line of the log says why.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from plamo2_kernels.errors import ImplementationError
from plamo2_kernels.native.compiler import CompilationError, compile_library, library_key, target_flags
from plamo2_kernels.native.library_cache import find_or_make

_FUNCTIONS = (
    "plamo2_attend_one",
    "plamo2_float_columns",
    "plamo2_float_outputs",
    "plamo2_integers",
    "plamo2_mamba_step",
    "plamo2_rms_norm",
)
_logger = logging.getLogger(__name__)
_lock = threading.Lock()


def register(flags: tuple[str, ...], suffix: str = "", folder: Path | None = None) -> None:
    """Compile the library, unless the cache has it, load it, and register its functions with XLA.

    Args:
        flags: compiler flags of the target.
        suffix: appended to the names of the functions.
        folder: cache folder; None: the user's.

    Raises:
        CompilationError, OSError, RuntimeError: the library cannot be compiled, cached or loaded.
    """
    if platform.system() not in ("Linux", "Darwin"):
        raise CompilationError(f"the library is not built on {platform.system()}")
    path = find_or_make(library_key(flags), functools.partial(compile_library, flags), folder)
    library = ctypes.CDLL(str(path))
    for name in _FUNCTIONS:
        jax.ffi.register_ffi_target(name + suffix, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")


@functools.cache
def _failure() -> str | None:
    """Load the library once. Return why it cannot be loaded, or None."""
    try:
        register(target_flags())
    except (CompilationError, OSError, RuntimeError, AttributeError) as error:
        return " ".join(str(error).split())
    return None


def is_available() -> bool:
    """Return whether the library can be called. If it cannot, the first call logs why."""
    with _lock:
        first = _failure.cache_info().currsize == 0
        failure = _failure()
    if failure is not None and first:
        _logger.warning("C++ kernels are not used, XLA computes instead: %s", failure)
    return failure is None


def require() -> None:
    """Load the library.

    Raises:
        ImplementationError: it cannot be compiled or loaded.
    """
    with _lock:
        failure = _failure()
    if failure is not None:
        raise ImplementationError(f'implementation="ffi" cannot run: {failure}. Use "xla", or install a C++ compiler')


def call(
    name: str,
    result: jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    *arrays: jax.Array,
    in_place: Mapping[int, int] | None = None,
    **attributes: Any,
):
    """Call a function of the library in a JAX program on CPU.

    Args:
        name: name of the function.
        result: shapes and dtypes of its results.
        arrays: its arguments.
        in_place: maps the number of an argument to the number of the result that takes its memory. XLA copies the argument first if it is
            still needed.
        attributes: its settings.
    """
    call = jax.ffi.ffi_call(name, result, vmap_method="sequential", input_output_aliases=in_place)
    return call(*arrays, **attributes)
