"""Verification steps that need no model: a step reads a draft and its seed, and returns an outcome.

A step is a dataclass whose fields are its parameters. The table of names is in `verify`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from plamo2_jax import checkers
from plamo2_jax.data.clean import duplicate_line_share, guess_language, top_ngram_share
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.answer_rules import check_rules
from plamo2_jax.eval.answer_rules import score as rule_scores
from plamo2_jax.sandbox import Limits, passes
from plamo2_jax.synth import copying, numbers
from plamo2_jax.synth.phrases import meta_phrase
from plamo2_jax.synth.record import Draft, Seed
from plamo2_jax.validation import require

_FENCED = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)```", re.DOTALL)
_PYTHON = ("", "py", "python", "python3")
_URL = re.compile(r"https?://[A-Za-z0-9\-._~:/?#@!$&'*+,;=%]+")
_CODE_SPAN = re.compile(r"`[^`\n]+`")
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Given:
    """What a step reads."""

    id: str
    """Unique among the drafts of a run. It is the prefix of the ids of requests."""
    draft: Draft
    seed: Seed
    language: str
    """Language that the draft should be in."""
    random_seed: int = 0
    """Random seed of requests."""
    allow_unisolated_code: bool = False
    """Run model-written programs even if this system cannot isolate them."""

    def value(self, name: str) -> Any:
        """Return a field of the draft or, without one, of the seed. Return None without both."""
        found = self.draft.fields.get(name, _MISSING)
        return self.seed.fields.get(name) if found is _MISSING else found

    def text(self) -> str:
        """Return the text of the draft, or its last message of the assistant."""
        if self.draft.text is not None:
            return self.draft.text
        return _last(self.draft.messages or (), "assistant")

    def question(self) -> str:
        """Return the first message of the user; empty for a draft without messages."""
        said = [message for message in self.draft.messages or () if message.get("role") == "user"]
        return str(said[0].get("content") or "") if said else ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a step."""

    reason: str | None = None
    """Why the draft is refused, a few words for counting; None: the draft passes."""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What the step measured, by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A verification step. Subclasses define `outcome`, or `requests` if they ask a model (`asking_steps`)."""

    of: str | None = None
    """Field with the text to verify; None: the text of the draft, or its last message of the assistant."""

    def text(self, given: Given) -> str:
        """Return the text to verify; empty if the field is missing."""
        if self.of is None:
            return given.text()
        value = given.value(self.of)
        return value if isinstance(value, str) else ""

    def outcome(self, given: Given) -> Outcome:
        """Return the result for one draft."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceStep(Step):
    """A step that compares a text with its source."""

    against: str | None = None
    """Field with the source; None: the text of the seed."""

    def source(self, given: Given) -> str:
        """Return the source; empty if it is missing."""
        if self.against is None:
            return given.seed.text
        value = given.value(self.against)
        return value if isinstance(value, str) else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules(Step):
    """Require a score under answer rules (`eval.answer_rules`), such as {"characters": [20, 400]}."""

    rules: Mapping[str, Any] | None = None
    """Rules; None: those in `field`."""
    field: str = "rules"
    """Field with the rules of each draft."""
    least: float = 1.0
    """Smallest allowed mean of the rules' scores."""

    def __post_init__(self) -> None:
        if self.rules is not None:
            check_rules(self.rules)
        require(self, "least", 0 <= self.least <= 1, "between 0 and 1")

    def outcome(self, given: Given) -> Outcome:
        rules = given.value(self.field) if self.rules is None else self.rules
        if not rules:
            return Outcome(f"no field {self.field}")
        # A draft ended by itself: recipes refuse answers that were cut off.
        text = self.text(given)
        scores = rule_scores(check_rules(rules), text, True, allow_unisolated_code=given.allow_unisolated_code)
        mean = math.fsum(scores.values()) / len(scores)
        failed = next((name for name, score in scores.items() if score < 1), None)
        return Outcome(None if mean >= self.least else f"rule {failed}", {"rules": mean})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraints(Step):
    """Require that checkers (`plamo2_jax.checkers`) pass, such as [{"name": "characters", "parameters": {...}}]."""

    constraints: Sequence[Mapping[str, Any]] | None = None
    """Checkers with their parameters; None: those in `field`."""
    field: str = "constraints"
    """Field with the checkers of each draft."""

    def __post_init__(self) -> None:
        for name, parameters in _named(self.constraints or ()):
            checkers.validate(name, parameters)

    def outcome(self, given: Given) -> Outcome:
        constraints = given.value(self.field) if self.constraints is None else self.constraints
        if not constraints:
            return Outcome(f"no field {self.field}")
        text = self.text(given)
        named = _named(constraints)
        failed = [name for name, parameters in named if not checkers.check(name, text, parameters)]
        share = 1 - len(failed) / len(named)
        return Outcome(f"constraint {failed[0]}" if failed else None, {"constraints": share})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code(Step):
    """Require that tests pass with the last Python code block, in the sandbox. A text without a block is a program as a whole."""

    tests: str | None = None
    """Python source of the tests; None: the text in `field`."""
    field: str = "tests"
    """Field with the tests of each draft."""
    seconds: float = 5.0
    """Time limit of program and tests together."""

    def __post_init__(self) -> None:
        require(self, "seconds", 0 < self.seconds <= 600, "above 0 and at most 600")

    def outcome(self, given: Given) -> Outcome:
        tests = given.value(self.field) if self.tests is None else self.tests
        if not isinstance(tests, str) or not tests.strip():
            return Outcome(f"no field {self.field}")
        text = self.text(given)
        blocks = [body for name, body in _FENCED.findall(text) if name.lower() in _PYTHON]
        program = blocks[-1] if blocks else text
        names = given.value("names") or ()
        passed = passes(
            program, tests, Limits(seconds=self.seconds), names=names, allow_unisolated=given.allow_unisolated_code
        )
        # Tests that accept an empty program test nothing.
        if passed and passes("", tests, Limits(seconds=self.seconds), allow_unisolated=given.allow_unisolated_code):
            return Outcome("tests pass without the program")
        return Outcome(None if passed else "tests fail")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number(Step):
    """Require that the final number of the text is the expected answer, exactly (see `numbers.final_number`)."""

    field: str = "answer"
    """Field with the expected answer, a number or a text with a final number."""

    def outcome(self, given: Given) -> Outcome:
        expected = expected_number(given.value(self.field))
        if expected is None:
            return Outcome(f"no number in the field {self.field}")
        found = numbers.final_number(self.text(given))
        return Outcome(None if found == expected else "no number" if found is None else "another number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Step):
    """Require a score that the recipe computed, such as the agreement of its samples."""

    name: str
    """Name of the score."""
    least: float = -math.inf
    """Smallest allowed score."""
    most: float = math.inf
    """Largest allowed score."""

    def __post_init__(self) -> None:
        require(self, "most", self.least <= self.most, f"at least the field least, {self.least:g}")

    def outcome(self, given: Given) -> Outcome:
        score = given.draft.scores.get(self.name)
        if score is None:
            return Outcome(f"no score {self.name}")
        return Outcome(None if self.least <= score <= self.most else self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthRatio(SourceStep):
    """Require that the text is neither much shorter nor much longer than its source."""

    least: float = 0.3
    """Smallest allowed number of characters relative to the source, without white space."""
    most: float = 3.0
    """Largest allowed number of characters relative to the source."""

    def __post_init__(self) -> None:
        require(self, "least", self.least >= 0, "0 or more")
        require(self, "most", self.least <= self.most, f"at least the field least, {self.least:g}")

    def outcome(self, given: Given) -> Outcome:
        source = len("".join(self.source(given).split()))
        if not source:
            return Outcome("no source")
        ratio = len("".join(self.text(given).split())) / source
        reason = "too short" if ratio < self.least else "too long" if ratio > self.most else None
        return Outcome(reason, {"length_ratio": ratio})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(SourceStep):
    """Refuse a text that copies much of its source literally."""

    most: float = 0.6
    """Largest allowed share of characters in windows of the source."""
    window: int = 20
    """Number of consecutive characters that count as copied, without white space."""
    longest: float = 0.4
    """Largest allowed length of the longest common window, as a share of the text."""

    def __post_init__(self) -> None:
        for name in ("most", "longest"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        require(self, "window", self.window >= 1, "at least 1")

    def outcome(self, given: Given) -> Outcome:
        text, source = self.text(given), self.source(given)
        length = len("".join(text.split()))
        if not length:
            return Outcome("empty")
        longest = copying.longest_copy(text, source) / length
        share = copying.copied_share(text, source, self.window)
        reason = "copied share" if share > self.most else "longest copy" if longest > self.longest else None
        return Outcome(reason, {"copied_share": share, "longest_copy": longest})


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaPhrases(Step):
    """Refuse a text with a meta phrase of phrases.yaml, such as "Sure, here is"."""

    allow: tuple[str, ...] = ()
    """Phrases that are allowed."""

    def outcome(self, given: Given) -> Outcome:
        phrase = meta_phrase(self.text(given), self.allow)
        return Outcome(None if phrase is None else phrase)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language(Step):
    """Require a language (`data.clean.guess_language`)."""

    language: str | None = None
    """ja, en or other; None: the language of the recipe."""

    def __post_init__(self) -> None:
        require(self, "language", self.language in (None, "ja", "en", "other"), "ja, en or other")

    def outcome(self, given: Given) -> Outcome:
        found = guess_language(self.text(given))
        return Outcome(None if found == (self.language or given.language) else found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repetition(Step):
    """Refuse a text that repeats itself."""

    lines: float = 0.3
    """Largest allowed share of characters in lines that occurred earlier."""
    ngram: float = 0.1
    """Largest allowed share of the most frequent window of 10 characters."""
    compression: float = 6.0
    """Largest allowed ratio of the size in UTF-8 and the size after deflate, for texts of at least 500 bytes."""

    def __post_init__(self) -> None:
        for name in ("lines", "ngram"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        require(self, "compression", self.compression >= 1, "at least 1")

    def outcome(self, given: Given) -> Outcome:
        text = self.text(given)
        if duplicate_line_share(text) > self.lines:
            return Outcome("lines")
        if top_ngram_share(text) > self.ngram:
            return Outcome("ngram")
        ratio = compression_ratio([text])
        if len(text.encode("utf-8", "surrogatepass")) >= 500 and ratio > self.compression:
            return Outcome("compression", {"compression_ratio": ratio})
        return Outcome(None, {"compression_ratio": ratio})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept(SourceStep):
    """Require that a translation keeps numbers, URLs, code spans and terms of its source.

    Numbers are compared by value, so that 1億2000万 and "120 million" are equal. A number may also be written in words.
    """

    numbers: float = 0.9
    """Smallest allowed share of the source's numbers."""
    urls: float = 1.0
    """Smallest allowed share of the source's URLs."""
    code: float = 1.0
    """Smallest allowed share of the source's code spans (`...`)."""
    terms: float = 1.0
    """Smallest allowed share of the terms."""
    terms_field: str = "terms"
    """Field with terms: a list of texts that must occur, or an object whose values must occur if their keys are in the source."""

    def __post_init__(self) -> None:
        for name in ("numbers", "urls", "code", "terms"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")

    def outcome(self, given: Given) -> Outcome:
        text, source = self.text(given), self.source(given)
        if not source.strip():
            return Outcome("no source")
        bare = _URL.sub(" ", source)
        shares = {
            "numbers": _kept_numbers(bare, text),
            "urls": _kept(_URL.findall(source), text),
            "code": _kept(_CODE_SPAN.findall(source), text),
            "terms": _kept(_terms(given.value(self.terms_field), source), text),
        }
        failed = next((name for name, share in shares.items() if share < getattr(self, name)), None)
        return Outcome(failed, {f"kept_{name}": share for name, share in shares.items()})


def expected_number(value: Any) -> Any:
    """Return the number that a field holds, as a fraction, or None. Floats are read by their decimal digits."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    # repr has the fewest digits that determine the value, but writes 0.00001 as 1e-05.
    return numbers.final_number(value if isinstance(value, str) else format(Decimal(repr(value)), "f"))


def compression_ratio(texts: Iterable[str]) -> float:
    """Return the size of texts in UTF-8 relative to their size after deflate. Repeated text has a large ratio; 1 without text."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)  # Raw deflate has no header, which would matter for short texts.
    before = after = 0
    for text in texts:
        data = text.encode("utf-8", "surrogatepass") + b"\n"
        before += len(data)
        after += len(packer.compress(data))
    return before / (after + len(packer.flush())) if before else 1.0


def _last(messages: Sequence[Mapping[str, Any]], role: str) -> str:
    said = [message for message in messages if message.get("role") == role]
    return str(said[-1].get("content") or "") if said else ""


def _named(constraints: Any) -> list[tuple[str, Mapping[str, Any]]]:
    allowed = 'a list of objects such as {"name": "characters", "parameters": {"relation": "less than", "count": 100}}'
    if not isinstance(constraints, list | tuple) or not all(
        isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in constraints
    ):
        raise PlamoError(f"constraints are not allowed: they must be {allowed}")
    return [(one["name"], one.get("parameters") or {}) for one in constraints]


def _kept_numbers(source: str, text: str) -> float:
    wanted = collections.Counter(numbers.numbers(source))
    found = collections.Counter(numbers.numbers(text))
    words = numbers.numbers_in_words(text)
    kept = sum(count if value in words else min(count, found[value]) for value, count in wanted.items())
    return kept / wanted.total() if wanted else 1.0


def _kept(wanted: Sequence[str], text: str) -> float:
    distinct = set(wanted)
    return sum(one in text for one in distinct) / len(distinct) if distinct else 1.0


def _terms(terms: Any, source: str) -> list[str]:
    if isinstance(terms, Mapping):
        return [str(target) for term, target in terms.items() if str(term) in source]
    return [str(term) for term in terms] if isinstance(terms, list | tuple) else []
