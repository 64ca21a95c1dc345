"""Compilation of the C++ sources on the machine that runs them, for the instructions of its CPU."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

SOURCES = Path(__file__).parent / "source"
MAIN = "plamo2_kernels.cc"
# The exact kinds of x86-64 and ARM that the compiler's machine has.
_NATIVE = {"x86_64": "-march=native", "amd64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
_FLAGS = ("-O3", "-std=gnu++17", "-shared", "-fPIC", "-w")
_TIMEOUT = 120
"""Longest compilation, in seconds. It takes about 5 s."""


class CompilationError(Exception):
    """The library cannot be compiled. The message is one line."""


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, or None. The environment variable CXX names it first."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++", "cc")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def target_flags() -> tuple[str, ...]:
    """Return the compiler's flags for this machine's CPU."""
    flag = _NATIVE.get(platform.machine().lower())
    return () if flag is None else (flag,)


def library_key(flags: tuple[str, ...]) -> str:
    """Return a hash of all that the library depends on: sources, flags, kind of CPU, and the version of jaxlib."""
    parts = [*_FLAGS, *flags, cpu_kind(), importlib.metadata.version("jaxlib"), platform.platform()]
    made = hashlib.sha256("\n".join(parts).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cc", ".h"):
            made.update(path.name.encode() + b"\0" + path.read_bytes())
    return made.hexdigest()[:24]


def cpu_kind() -> str:
    """Return a description of the CPU and its instructions, from /proc/cpuinfo where it exists."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kinds = ("vendor_id", "cpu family", "model", "flags", "features", "cpu implementer", "cpu part")
    return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip().lower() in kinds)


def compile_library(flags: tuple[str, ...], output: Path) -> None:
    """Compile the library.

    Raises:
        CompilationError: there is no compiler, or it fails or takes too long.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CompilationError("there is no C++ compiler (c++, g++ or clang++)")
    command = [compiler, *_FLAGS, *flags, f"-I{jax.ffi.include_dir()}", str(SOURCES / MAIN), "-o", str(output)]
    if Path(compiler).name == "cc":
        command.append("-lstdc++")
    # The compiler's temporary files are not in a folder that others can write.
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                env={**os.environ, "TMPDIR": folder, "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilationError(f"{compiler} fails: {str(error)[:300]}") from None
    if done.returncode:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
        )
        raise CompilationError(f"{compiler} fails: {lines[0][:300]}")
