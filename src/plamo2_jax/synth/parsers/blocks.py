"""Parsers of answers with a block in a formal language: JSON, code with tests, a table with a question."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.synth.parsers.labels import QaPairs
from plamo2_jax.synth.parsers.markdown import code_blocks
from plamo2_jax.synth.parsers.parser import refuse, require_range, require_texts
from plamo2_jax.synth.record import Refusal
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class Json:
    """A JSON object or array, in a code block or with text around it. The value is that object or array."""

    required: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Type of each required key of an object: string, number, boolean, array or object. Texts must not be empty."""

    def __post_init__(self) -> None:
        fits = isinstance(self.required, Mapping) and all(one in _TYPES for one in self.required.values())
        require(self, "required", fits, f"types by key, each one of {', '.join(_TYPES)}")

    def __call__(self, text: str) -> Any | Refusal:
        blocks = [body for language, body in code_blocks(text) if language in ("", "json")]
        start = min((place for place in map(text.find, "{[") if place >= 0), default=-1)
        end = max(text.rfind("}"), text.rfind("]"))
        candidates = [*blocks[-1:], text[start : end + 1] if 0 <= start < end else ""]
        for candidate in candidates:
            try:
                value = parse_json(candidate, "answer")
            except PlamoError:
                continue
            if isinstance(value, dict | list):
                break
        else:
            return refuse("no JSON")
        if self.required and not isinstance(value, dict):
            return refuse("not a JSON object")
        for key, kind in self.required.items():
            if not _TYPES[kind](value.get(key)):
                return refuse(f"no {kind} {key}")
        return value


_TYPES = {
    "string": lambda value: isinstance(value, str) and bool(value.strip()),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list) and bool(value),
    "object": lambda value: isinstance(value, dict) and bool(value),
}


@dataclasses.dataclass(frozen=True)
class CodeAndTests:
    """Two code blocks: a program and its tests. The value is a dict with `program` and `tests`."""

    language: tuple[str, ...] = ("python", "py", "")
    """Names of the language after the opening fence; other blocks are ignored."""
    least_asserts: int = 2
    """Smallest number of lines of the tests that begin with `assert` or call a method `assert…`."""

    def __post_init__(self) -> None:
        require_texts(self, "language", some=True, empty=True)
        require_range(self, "least_asserts", None, 1)

    def __call__(self, text: str) -> dict[str, str] | Refusal:
        blocks = [body for language, body in code_blocks(text) if language in self.language]
        if len(blocks) < 2:
            return refuse("fewer than two code blocks")
        program, tests = blocks[0], blocks[-1]
        checks = sum(1 for line in tests.splitlines() if re.match(r"\s{0,40}(?:self\.)?assert", line))
        if checks < self.least_asserts:
            return refuse("too few assertions")
        return {"program": program, "tests": tests} if program.strip() else refuse("no program")


@dataclasses.dataclass(frozen=True)
class TableQuestion:
    """A Markdown table with a question and its answer. The value is a dict with `table`, `question` and `answer`."""

    least_rows: int = 2
    """Smallest number of rows below the heading."""
    question: tuple[str, ...] = QaPairs.question
    """Labels of the question."""
    answer: tuple[str, ...] = QaPairs.answer
    """Labels of the answer."""

    def __post_init__(self) -> None:
        require_range(self, "least_rows", None, 1)
        require_texts(self, "question", some=True)
        require_texts(self, "answer", some=True)

    def __call__(self, text: str) -> dict[str, str] | Refusal:
        lines = [line.strip() for line in text.splitlines()]
        starts = [i for i, line in enumerate(lines) if i and _is_table_rule(line) and lines[i - 1].startswith("|")]
        if not starts:
            return refuse("no table")
        first = last = starts[0]
        while last + 1 < len(lines) and lines[last + 1].startswith("|"):
            last += 1
        rows = lines[first - 1 : last + 1]
        if len({_cells(row) for row in rows}) != 1:
            return refuse("rows of the table differ in length")
        if len(rows) - 2 < self.least_rows:
            return refuse("too few rows")
        pairs = QaPairs(self.question, self.answer)("\n".join(lines[last + 1 :]))
        if isinstance(pairs, Refusal):
            pairs = QaPairs(self.question, self.answer)("\n".join(lines[: first - 1]))
        return pairs if isinstance(pairs, Refusal) else {"table": "\n".join(rows), **pairs[0]}


def _is_table_rule(line: str) -> bool:
    return line.startswith("|") and "---" in line and not line.strip("|-: \t")


def _cells(row: str) -> int:
    return row.replace("\\|", "").strip("|").count("|") + 1
