"""Check a grammar in a separate process, with bounded time and memory.

llguidance limits most of its work, but it does not limit the proof that an intersection of regular expressions is not empty: a JSON
schema of 2 kB with 40 patterns under `allOf` compiles for minutes. No Python thread can interrupt it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from plamo2_jax.errors import PlamoError

CPU_SECONDS = 3
MEMORY_BYTES = 4 << 30
# For a process that is stopped or gets no CPU.
_WALL_SECONDS = 60
_PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL")


def parser_limits():
    """Return the limits of llguidance (`LLParserLimits`): a mask takes at most about 10 ms with 100,000 ids."""
    import llguidance

    return llguidance.LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def require_compilable(grammar: str, name: str) -> None:
    """Refuse a grammar that llguidance refuses, or that it cannot compile within the limits.

    Args:
        grammar: the grammar, in llguidance's form.
        name: its name in the error.

    Raises:
        PlamoError: the grammar is wrong or too complex.
    """
    path = [os.path.abspath(entry) for entry in sys.path if entry]
    environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-P", os.path.abspath(__file__)],
            input=grammar.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "PYTHONPATH": os.pathsep.join(path)},
            cwd="/",
            timeout=_WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _too_complex(name) from None
    if done.returncode:
        raise _too_complex(name)
    if done.stdout:
        raise grammar_error(name, done.stdout.decode())


def grammar_error(name: str, message: str) -> PlamoError:
    """Return the error of a grammar that llguidance refuses, with llguidance's message in one line."""
    short = " ".join(message.replace("<non-verbose/>", "").split())
    return PlamoError(f"{name} is not allowed: {short[:300]}")


def _too_complex(name: str) -> PlamoError:
    return PlamoError(
        f"{name} is too complex: it must compile within {CPU_SECONDS} s and {MEMORY_BYTES >> 30} GiB. Use fewer or simpler patterns, and "
        "no allOf of them"
    )


def _main() -> None:
    """Compile the grammar that standard input holds; write the error, if there is one."""
    import resource

    for what, limit in ((resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_AS, MEMORY_BYTES)):
        # Some systems do not support every limit.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (limit, limit))
    import llguidance

    message = llguidance.LLMatcher.validate_grammar(sys.stdin.buffer.read().decode(), limits=parser_limits())
    sys.stdout.buffer.write(message.encode())


if __name__ == "__main__":
    _main()
