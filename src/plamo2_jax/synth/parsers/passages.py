"""Parsers of running texts and of lists."""

from __future__ import annotations

import dataclasses
import re

from plamo2_jax.synth.parsers.markdown import unwrap, without_emphasis, without_markdown
from plamo2_jax.synth.parsers.parser import LONGEST, refuse, require_range, require_texts
from plamo2_jax.synth.record import Refusal

_BULLET = re.compile(r"^\s{0,12}(?:[-*+•・]|(?:\d{1,3}|[①-⑳])[.)．、）]?)(?:\s+|(?<=[•・.)．、）①-⑳]))(?=\S)")


@dataclasses.dataclass(frozen=True)
class Passage:
    """A running text. The value is the text without its prefix."""

    prefix: tuple[str, ...] = ()
    """Allowed beginnings. The answer must have one, with or without emphasis or a heading mark. Empty: any beginning."""
    least_characters: int = 1
    """Shortest text."""
    most_characters: int = LONGEST
    """Longest text."""
    plain: bool = True
    """Remove a code fence or quotation marks around the text, headings and emphasis. False: keep them."""

    def __post_init__(self) -> None:
        require_texts(self, "prefix")
        require_range(self, "least_characters", "most_characters")

    def __call__(self, text: str) -> str | Refusal:
        text = text.strip()
        if self.prefix:
            bare = text.lstrip("#>* ")
            found = next((bare[len(one) :].lstrip("*") for one in self.prefix if bare.startswith(one)), None)
            if found is None:
                return refuse("no prefix")
            text = found.strip()
        if self.plain:
            text = without_markdown(unwrap(text))
        if len(text) < self.least_characters:
            return refuse("too short")
        return text if len(text) <= self.most_characters else refuse("too long")


@dataclasses.dataclass(frozen=True)
class Items:
    """A list with bullets or numbers. The value is the list of the texts, without repeated ones."""

    least: int = 1
    """Smallest number of items."""
    most: int = 100
    """Largest number of items; further items are dropped."""
    least_characters: int = 1
    """Shortest item. Shorter ones are dropped."""

    def __post_init__(self) -> None:
        require_range(self, "least", "most", 1)
        require_range(self, "least_characters", None, 1)

    def __call__(self, text: str) -> list[str] | Refusal:
        items: list[str] = []
        for line in text.splitlines():
            match = _BULLET.match(line)
            if match is not None:
                items.append(line[match.end() :].strip())
            elif items and line[:1] in (" ", "\t", "　") and line.strip():
                items[-1] += f"\n{line.strip()}"  # The continuation of an item is indented.
        items = [item for item in map(without_emphasis, dict.fromkeys(items)) if len(item) >= self.least_characters]
        return items[: self.most] if len(items) >= self.least else refuse("too few list items")
