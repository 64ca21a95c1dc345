"""Matching of untrusted regular expressions in bounded time and memory.

Some expressions take exponential time (`(a+)+b` on a string of a's), and Python's engine cannot be interrupted from another thread. So a
separate process compiles and matches. If it takes too long, it is killed and started again.
"""

from __future__ import annotations

import atexit
import json
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal

from plamo2_jax.errors import PlamoError

Method = Literal["match", "search", "fullmatch"]
_ENDS = "ends"

LONGEST = 1000
"""Largest length of a pattern, in characters."""
_SECONDS = 1.0

# Program of the process. It reads a JSON line with patterns, texts and method. It writes a line with the index of the first matching
# pattern of each text, or for the method "ends" with the end of the first match of each pattern, or with the index of an invalid pattern
# and the problem.
_SERVE = """
import json, re, resource, sys, warnings
warnings.simplefilter("ignore")
try:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (OSError, ValueError):
    pass  # macOS does not limit address space. The time limit still applies.
for line in sys.stdin:
    patterns, texts, method = json.loads(line)
    number = 0
    try:
        compiled = []
        for number, pattern in enumerate(patterns):
            compiled.append(getattr(re.compile(pattern), "search" if method == "ends" else method))
        found = []
        for text in texts:
            if method == "ends":
                found.append([match and match.end() for match in (matches(text) for matches in compiled)])
                continue
            for number, matches in enumerate(compiled):
                if matches(text) is not None:
                    found.append(number)
                    break
            else:
                found.append(None)
        answer = {"found": found}
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        answer = {"pattern": number, "problem": str(error)[:200] or type(error).__name__}
    print(json.dumps(answer), flush=True)
"""


class PatternError(PlamoError):
    """A pattern is not a valid regular expression, or matching takes too long.

    Attributes:
        pattern: The pattern; None if all patterns together take too long.
        problem: Description of the problem.
    """

    def __init__(self, pattern: str | None, problem: str):
        self.pattern, self.problem = pattern, problem
        super().__init__(problem if pattern is None else f"{shorten(pattern)} is not a regular expression: {problem}")


class _Matcher:
    """The process that matches. It starts at the first call of `ask`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, patterns: Sequence[str], texts: Sequence[str], method: str, seconds: float) -> dict[str, Any] | None:
        """Return the answer of the process, or None after the time limit."""
        with self._lock:
            if self._process is None:
                atexit.unregister(self.close)  # It may be registered by an earlier start.
                atexit.register(self.close)
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
                )
                # The start of the process does not count towards the time limit.
                self._ask([], [], "match", 60)
            return self._ask(patterns, texts, method, seconds)

    def _ask(self, patterns: Sequence[str], texts: Sequence[str], method: str, seconds: float) -> Any:
        process = self._process
        deadline = time.monotonic() + seconds
        try:
            process.stdin.write(json.dumps([[*patterns], [*texts], method]).encode() + b"\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                line = process.stdout.readline()
                if line:
                    return json.loads(line)
        except BrokenPipeError:
            pass
        self._end()
        return None

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._process = None


_matcher = _Matcher()


def matches_whole(pattern: str, text: str, seconds: float) -> bool:
    """Return whether the whole text matches; False if matching exceeds the time limit."""
    answer = _matcher.ask([pattern], [text], "fullmatch", seconds)
    return answer is not None and answer.get("found") == [0]


def first_matches(
    patterns: Sequence[str], texts: Sequence[str], method: Method, seconds: float = _SECONDS
) -> list[int | None]:
    """Return, for each text, the index of the first pattern that matches it, or None.

    Args:
        patterns: Regular expressions in the syntax of Python's `re`.
        method: Name of the method of a compiled pattern.
        seconds: Time limit for all texts.

    Raises:
        PatternError: A pattern has more than LONGEST characters, is not a regular expression or needs too much memory, or matching takes
            longer than `seconds`.
    """
    return _found(patterns, texts, method, seconds) if patterns else [None] * len(texts)


def search_ends(patterns: Sequence[str], texts: Sequence[str], seconds: float = _SECONDS) -> list[list[int | None]]:
    """Return, for each text and each pattern, the end of the first match, or None.

    Args:
        patterns: Regular expressions in the syntax of Python's `re`.
        seconds: Time limit for all texts.

    Raises:
        PatternError: As for `first_matches`.
    """
    return _found(patterns, texts, _ENDS, seconds) if patterns else [[] for _ in texts]


def _found(patterns: Sequence[str], texts: Sequence[str], method: str, seconds: float) -> list[Any]:
    for pattern in patterns:
        if len(pattern) > LONGEST:
            raise PatternError(pattern, f"it has {len(pattern):,} characters, more than {LONGEST:,}")
    answer = _matcher.ask(patterns, texts, method, seconds)
    if answer is None:
        which = shorten(patterns[0]) if len(patterns) == 1 else f"{len(patterns)} patterns"
        problem = f"matching {which} takes longer than {seconds:g} s. Give patterns without nested repeats"
        raise PatternError(None, problem)
    if "problem" in answer:
        raise PatternError(patterns[answer["pattern"]], answer["problem"])
    return answer["found"]


def require_pattern(pattern: str) -> None:
    """Raise PatternError if a pattern is too long or is not a regular expression."""
    if len(pattern) > LONGEST:
        raise PatternError(pattern, f"it has {len(pattern):,} characters, more than {LONGEST:,}")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        raise PatternError(pattern, str(error)[:200] or type(error).__name__) from None


def shorten(pattern: str) -> str:
    """Return a pattern as text for a message, shortened if it is long."""
    return repr(pattern) if len(pattern) <= 80 else f"{pattern[:60]!r}..."
