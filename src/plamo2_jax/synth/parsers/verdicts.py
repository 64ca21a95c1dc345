"""Parsers of short results: a score, a final answer, a choice."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence

from plamo2_jax.synth.numbers import numbers
from plamo2_jax.synth.parsers.labels import labelled_parts
from plamo2_jax.synth.parsers.markdown import without_emphasis
from plamo2_jax.synth.parsers.parser import is_number, is_texts, refuse, require_range, require_texts
from plamo2_jax.synth.record import Refusal
from plamo2_jax.validation import require, shown

_SCORE = r"-?\d{1,9}(?:\.\d{1,9})?(?![\d.]*\d)"


@dataclasses.dataclass(frozen=True)
class Score:
    """A number after a label, or in [[ ]]. The value is the number; the last one of an answer counts."""

    least: float = 0
    """Smallest score."""
    most: float = 5
    """Largest score."""
    labels: tuple[str, ...] = ("Score", "Total score", "点数", "評点", "評価", "スコア", "合計")
    """Labels of the score, followed by a colon."""

    def __post_init__(self) -> None:
        require_texts(self, "labels", some=True)
        ordered = is_number(self.least) and is_number(self.most) and self.least < self.most
        require(self, "most", ordered, f"a number above least={shown(self.least)}")

    def __call__(self, text: str) -> float | Refusal:
        found = re.findall(rf"\[\[ ?({_SCORE}) ?\]\]", text)
        if not found:
            for label, content in labelled_parts(text, {"score": self.labels}, lines=True):
                match = label and re.match(rf"[^\d\-]{{0,4}}({_SCORE})", unicodedata.normalize("NFKC", content[:40]))
                if match:
                    found.append(match[1])
        if not found:
            bare = re.fullmatch(rf"({_SCORE})(?:点|/\d{{1,3}})?", text.strip()[:40])
            found = [bare[1]] if bare else []
        if not found:
            return refuse("no score")
        value = float(found[-1])
        return value if self.least <= value <= self.most else refuse("score out of range")


@dataclasses.dataclass(frozen=True)
class FinalAnswer:
    """A solution with a final answer on its last labelled line. The value is a dict with `solution` and `answer`."""

    labels: tuple[str, ...] = ("Answer", "Final answer", "The answer is", "答え", "答", "解答", "最終的な答え")
    """Labels of the answer. The answer may also be in \\boxed{}."""
    number: bool = True
    """Whether the answer must be a number. `answer` is then the number without units and separators, in its shortest form."""
    least_characters: int = 1
    """Shortest solution."""

    def __post_init__(self) -> None:
        require_texts(self, "labels", some=True)
        require_range(self, "least_characters", None, 0)

    def __call__(self, text: str) -> dict[str, str] | Refusal:
        boxed = re.findall(r"\\boxed\{([^{}\n]{1,200})\}", text)
        labelled = [
            content for label, content in labelled_parts(text, {"answer": self.labels}, lines=True) if label and content
        ]
        if not boxed and not labelled:
            return refuse("no final answer")
        answer = boxed[-1] if boxed else without_emphasis(labelled[-1]).rstrip("。.").strip()
        if self.number:
            number = read_number(answer)
            if number is None:
                return refuse("the final answer is not a number")
            answer = number
        solution = text.strip()
        return (
            {"solution": solution, "answer": answer} if len(solution) >= self.least_characters else refuse("too short")
        )


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several answers, such as yes or no. The value is its name."""

    options: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Texts of each option. The last line of the answer must begin with one of them, in any case."""

    def __post_init__(self) -> None:
        several = isinstance(self.options, Mapping) and len(self.options) >= 2
        require(self, "options", several and all(map(is_texts, self.options.values())), "texts of two or more options")

    def __call__(self, text: str) -> str | Refusal:
        lines = [line.strip(" \t　*「」\"'[]") for line in text.splitlines()]
        last = next((line.casefold() for line in reversed(lines) if line), "")
        texts = [(one.casefold(), name) for name, some in self.options.items() for one in some]
        # The longest first: "no change" before "no".
        for one, name in sorted(texts, reverse=True, key=lambda pair: len(pair[0])):
            # "Nothing" is not "no"; Japanese has no spaces between words.
            if last.startswith(one) and not re.match("[a-z]{2}", last[len(one) - 1 : len(one) + 1]):
                return name
        return refuse("no choice")


def read_number(text: str) -> str | None:
    """Return the number in a text in its shortest form, such as "1200" for "１，２００円" and "1200000" for "120万円".

    Return None without a number, with several, and with an exponent.
    """
    if re.search("[\u00b2\u00b3\u00b9\u2070-\u2079]", text):
        return None
    found = numbers(text[:200])
    if len(found) != 1:
        return None
    value = found[0]
    # A decimal if it is exact: one half may be written 1/2 or 0.5.
    for places in range(61):
        if 10**places % value.denominator == 0:
            digits = str(abs(value.numerator) * (10**places // value.denominator)).rjust(places + 1, "0")
            whole, part = digits[: len(digits) - places], digits[len(digits) - places :]
            return ("-" if value < 0 else "") + (f"{whole}.{part}" if part else whole)
    return f"{value.numerator}/{value.denominator}"
