"""Regular expressions of others in bounded time and memory.

Some take longer than anybody can wait (`(a+)+b` on a row of a's), and Python's engine cannot be interrupted from another thread. So a
process of its own compiles and matches. It is ended, and begun anew, where that takes too long.
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

Method = Literal["match", "search", "fullmatch"]

LONGEST = 1000
"""Characters of the longest pattern that `first_matches` takes."""
_SECONDS = 1.0

# Reads a line with patterns, texts and method; writes a line with the first pattern that matches each text, or the number of a pattern
# and what is wrong with it.
_SERVE = """
import json, re, resource, sys, warnings
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for line in sys.stdin:
    patterns, texts, method = json.loads(line)
    number = 0
    try:
        compiled = []
        for number, pattern in enumerate(patterns):
            compiled.append(getattr(re.compile(pattern), method))
        found = []
        for text in texts:
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


class PatternError(ValueError):
    """A pattern is no regular expression, or matching takes too long.

    Attributes:
        pattern: the pattern; None where all together take too long.
        problem: what is wrong with it.
    """

    def __init__(self, pattern: str | None, problem: str):
        self.pattern, self.problem = pattern, problem
        super().__init__(problem if pattern is None else f"{shorten(pattern)} is not a regular expression: {problem}")


class _Matcher:
    """One process that matches, begun when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(
        self, patterns: Sequence[str], texts: Sequence[str], method: Method, seconds: float
    ) -> dict[str, Any] | None:
        """The process's answer, or None where there is none in time."""
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
                )
                # What it takes to start is not the expression's.
                self._ask([], [], "match", 60)
            return self._ask(patterns, texts, method, seconds)

    def _ask(self, patterns: Sequence[str], texts: Sequence[str], method: Method, seconds: float) -> Any:
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
atexit.register(_matcher.close)


def matches_whole(pattern: str, text: str, seconds: float) -> bool:
    """Whether the whole text matches, as far as that is found out in time."""
    answer = _matcher.ask([pattern], [text], "fullmatch", seconds)
    return answer is not None and answer.get("found") == [0]


def first_matches(
    patterns: Sequence[str], texts: Sequence[str], method: Method, seconds: float = _SECONDS
) -> list[int | None]:
    """The number of the first pattern that matches each text; None for a text that none matches.

    Args:
        patterns: regular expressions of Python's `re`.
        texts: what they are matched with.
        method: of `re`, that matches.
        seconds: for all of it.

    Raises:
        PatternError: a pattern has more than LONGEST characters, is no regular expression or needs too much memory, or matching takes
            longer than `seconds`.
    """
    for pattern in patterns:
        if len(pattern) > LONGEST:
            raise PatternError(pattern, f"it has {len(pattern):,} characters, more than {LONGEST:,}")
    if not patterns:
        return [None] * len(texts)
    answer = _matcher.ask(patterns, texts, method, seconds)
    if answer is None:
        which = shorten(patterns[0]) if len(patterns) == 1 else f"{len(patterns)} patterns"
        raise PatternError(
            None, f"matching {which} takes longer than {seconds:g} s: give patterns without nested repeats"
        )
    if "problem" in answer:
        raise PatternError(patterns[answer["pattern"]], answer["problem"])
    return answer["found"]


def require_pattern(pattern: str) -> None:
    """Raise PatternError unless `first_matches` takes a pattern, as far as that is known without matching."""
    if len(pattern) > LONGEST:
        raise PatternError(pattern, f"it has {len(pattern):,} characters, more than {LONGEST:,}")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        raise PatternError(pattern, str(error)[:200] or type(error).__name__) from None


def shorten(pattern: str) -> str:
    """A pattern for a message."""
    return repr(pattern) if len(pattern) <= 80 else f"{pattern[:60]!r}..."
