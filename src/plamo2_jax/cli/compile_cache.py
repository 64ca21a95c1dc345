"""JAX's persistent compilation cache for the `plamo2` command, in the user's cache folder.

This module only sets environment variables: commands that do not use JAX need not import it, and child processes inherit the settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path

from plamo2_jax.user_cache import cache_folder

NO_CACHE = "--no-cache"
"""Option of every command. It disables the cache."""
MAX_BYTES = 4 * 10**9
"""Largest total size of the cached programs, in bytes. JAX's own limit needs another package and takes a lock for every read."""
_MIN_COMPILE_SECONDS = "0.3"
"""Programs with a shorter compilation, in seconds, are not cached. In `generate` on two CPU cores they take 0.3 s of 12 s in total."""


def enable() -> None:
    """Enable the cache, unless the user set JAX's own variables or the calling program has already imported JAX.

    If the cache folder is not writable, programs are compiled each time.
    """
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        root = cache_folder("compiled")
        folder = root / _cpu()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        trim(root, MAX_BYTES)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home folder.
        return
    if os.access(folder, os.W_OK | os.X_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", _MIN_COMPILE_SECONDS)


def disable() -> None:
    """Disable the cache in this process and its child processes."""
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_compilation_cache", False)


def trim(folder: Path, max_bytes: int) -> None:
    """Remove the least recently used programs until the remaining ones take at most `max_bytes`."""
    found = []
    for path in folder.rglob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # Another process removed it.
            status = path.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size


def _cpu() -> str:
    """Return a name for this kind of CPU.

    XLA compiles for the CPU it runs on, and the cache key of some JAX versions does not cover the instruction sets. Machines that share a
    home folder must not run each other's programs: an instruction may be missing, or a sum may have another order.
    """
    words = [platform.machine()]
    with contextlib.suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")
        kinds = ("vendor_id", "cpu family", "model", "flags", "features", "cpu implementer", "cpu part")
        words += [line for line in first.splitlines() if line.split("\t")[0].split(":")[0].strip().lower() in kinds]
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(words).encode()).hexdigest()[:12]}"
