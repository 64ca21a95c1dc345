"""Meta phrases: sentences in which a model talks about its answer or about itself, such as "Sure, here is" and 「AIとして」."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from plamo2_jax.errors import PlamoError

FILE = Path(__file__).with_name("phrases.yaml")
_PLACES = ("start", "end", "anywhere")
_END = 80
"""Number of characters at the end of a text in which a phrase of the kind `end` is searched for."""


def meta_phrase(text: str, allow: Sequence[str] = ()) -> str | None:
    """Return the first meta phrase of a text as phrases.yaml has it, or None without one. All languages are compared.

    Args:
        text: the text.
        allow: phrases that are not counted.
    """
    folded = _fold(text)
    allowed = set(map(_fold, allow))
    places = {"start": folded.lstrip("\"'「『*#-> "), "end": folded[-_END:], "anywhere": folded}
    for place, phrase, wanted in _phrases():
        if wanted in allowed:
            continue
        if places[place].startswith(wanted) if place == "start" else wanted in places[place]:
            return phrase
    return None


@functools.cache
def _phrases() -> list[tuple[str, str, str]]:
    """Return (place, phrase, folded phrase) of all phrases."""
    return read_phrases(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def read_phrases(table: Mapping[str, Mapping[str, Sequence[str]]]) -> list[tuple[str, str, str]]:
    """Check a table of phrases by language and place, and return (place, phrase, folded phrase).

    Raises:
        PlamoError: a place is unknown, or a phrase is not a text.
    """
    found = []
    for language, by_place in table.items():
        for place, phrases in by_place.items():
            if place not in _PLACES:
                raise PlamoError(f"phrases.{language}.{place} is not allowed: it must be one of {', '.join(_PLACES)}")
            for phrase in phrases:
                if not isinstance(phrase, str) or not _fold(phrase):
                    raise PlamoError(f"phrases.{language}.{place} has {phrase!r}: it must be a text")
                found.append((place, phrase, _fold(phrase)))
    return found


def _fold(text: str) -> str:
    # Models write the apostrophe as ' or as U+2019.
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'").casefold().strip()
