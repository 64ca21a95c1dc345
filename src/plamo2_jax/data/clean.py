"""Cleaning of raw text: control characters, boilerplate lines, language, length and repetition.

A document is a dict with at least "text"; all other keys are kept unchanged. The defaults keep the characters of the author: PLaMo's
tokenizer has no normalizer, so the model must see real text, and Unicode NFC changes Japanese names (it replaces the variants
U+FA19 神 and U+FA10 塚 by other characters). Set `unicode_form` to apply it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from plamo2_jax.data.boilerplate import Boilerplate, line_key
from plamo2_jax.data.characters import NEWLINES, UNWANTED, count_characters, is_plain, most_frequent_window
from plamo2_jax.validation import require

UNICODE_FORMS = ("none", "NFC", "NFKC")
LANGUAGES = ("ja", "en", "other")

_TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class CleanConfig:
    """Criteria for keeping a document.

    Attributes:
        unicode_form: Unicode normalization form; none: keep all characters.
        languages: Languages to keep, detected from the script and common words. A text is also rejected if its record declares another
            language.
        min_chars: Smallest number of characters after cleaning.
        max_duplicate_lines: Largest share of characters in lines that occurred earlier in the same document.
        max_top_ngram: Largest share of the most frequent 10-character n-gram among all 10-character n-grams of the document.
    """

    unicode_form: Literal["none", "NFC", "NFKC"] = "none"
    languages: tuple[Literal["ja", "en", "other"], ...] = ("ja", "en")
    min_chars: int = 50
    max_duplicate_lines: float = 0.3
    max_top_ngram: float = 0.2

    def __post_init__(self) -> None:
        require(self, "unicode_form", self.unicode_form in UNICODE_FORMS, f"one of {', '.join(UNICODE_FORMS)}")
        known = self.languages and set(self.languages) <= set(LANGUAGES)
        require(self, "languages", known, f"one or more of {', '.join(LANGUAGES)}")
        require(self, "min_chars", self.min_chars >= 1, "at least 1")
        for name in ("max_duplicate_lines", "max_top_ngram"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")


@dataclass
class CleanReport:
    """Statistics of cleaning: documents and characters in and out, removed lines, and rejected documents by reason.

    Attributes:
        removed: Number of removed boilerplate lines by `line_key`.
        examples: The first removed line of each key.
    """

    documents_in: int = 0
    documents_out: int = 0
    chars_in: int = 0
    chars_out: int = 0
    chars_boilerplate: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    chars_rejected: Counter[str] = field(default_factory=Counter)

    def add(self, part: CleanReport) -> None:
        """Add the statistics of the documents that follow."""
        for name in ("documents_in", "documents_out", "chars_in", "chars_out", "chars_boilerplate"):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        for name in ("removed", "rejected", "chars_rejected"):
            getattr(self, name).update(getattr(part, name))
        self.examples = part.examples | self.examples

    def count_removed(self, lines: Iterable[str]) -> None:
        """Count lines that were removed as boilerplate."""
        for line in lines:
            key = line_key(line)
            self.removed[key] += 1
            self.examples.setdefault(key, line.strip())

    def most_removed(self, number: int) -> list[tuple[str, int]]:
        """Return the lines that were removed most often, shortened, with their counts."""
        lines = ((self.examples[key], count) for key, count in self.removed.most_common(number))
        return [(line if len(line) <= 80 else f"{line[:77]}...", count) for line, count in lines]

    def lost(self) -> dict[str, int]:
        """Return the removed characters by cause; "white space and controls" were removed by normalization."""
        causes = {"boilerplate": self.chars_boilerplate, **dict(sorted(self.chars_rejected.items()))}
        return causes | {"white space and controls": self.chars_in - self.chars_out - sum(causes.values())}

    def to_json(self) -> dict[str, Any]:
        """Return all statistics as JSON, with the hundred lines that were removed most often."""
        return {
            "documents": {"in": self.documents_in, "out": self.documents_out},
            "characters": {"in": self.chars_in, "out": self.chars_out, "lost": self.lost()},
            "rejected": dict(sorted(self.rejected.items())),
            "boilerplate_lines": self.removed.total(),
            "most_removed_lines": [{"line": line, "times": times} for line, times in self.most_removed(100)],
        }

    def summary(self) -> str:
        """Return a line for a log."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.rejected.items())) or "none"
        return (
            f"cleaning kept {self.documents_out} of {self.documents_in} documents, {self.chars_out} of {self.chars_in} "
            f"characters; boilerplate lines removed: {self.removed.total()}; rejected: {reasons}"
        )


def normalize_text(text: str, unicode_form: str = "none") -> str:
    """Return the text with plain newlines, and without control characters, trailing spaces and repeated blank lines.

    The function is idempotent. Leading spaces, tabs, full-width forms, emoji joiners and variation selectors are kept.
    """
    if unicode_form == "none" and is_plain(text):  # Most texts.
        return text
    text = UNWANTED.sub("", NEWLINES.sub("\n", text))
    if unicode_form != "none":
        text = unicodedata.normalize(unicode_form, text)
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()


def guess_language(text: str) -> str:
    """Return the language of a text by its script: "ja", "en" or "other". Only the first 20,000 characters are read.

    Japanese: at least 20 % of the letters are kana or kanji, and at least 5 % of the kana and kanji are kana (fewer: Chinese). English:
    at least 90 % of the letters are Latin, and at least 4 % of the words are among the twenty most common English words (fewer: another
    language, or a listing).
    """
    counts = count_characters(text[:20_000])
    japanese = counts.kana + counts.han
    if counts.letters == 0:
        return "other"
    if japanese >= 0.2 * counts.letters and counts.kana >= 0.05 * japanese:
        return "ja"
    if counts.latin >= 0.9 * counts.letters and counts.english >= 0.04 * counts.words:
        return "en"
    return "other"


def duplicate_line_share(text: str) -> float:
    """Return the share of characters in lines that occurred earlier in the same text, without blank lines."""
    seen: set[str] = set()
    total = repeated = 0
    for line in text.splitlines():
        line = line.strip()
        total += len(line)
        repeated += len(line) if line in seen else 0
        seen.add(line)
    return repeated / total if total else 0.0


def top_ngram_share(text: str, n: int = 10) -> float:
    """Return the share of the most frequent window of `n` characters among all windows; 0 for texts with fewer than 10 windows.

    For texts longer than a million characters, return the mean over parts of that length.
    """
    windows = len(text) - n + 1
    return most_frequent_window(text, n) / windows if windows >= 10 else 0.0


def rejection(text: str, config: CleanConfig, declared: str | None = None) -> str | None:
    """Return the reason for which a text is rejected ("empty", "short", "language", "repeated lines", "repeated text"), or None to keep it.

    Args:
        text: Text after `normalize_text`.
        config: Criteria.
        declared: Language that the document declares. A text that looks like another language is rejected.
    """
    if not text:
        return "empty"
    if len(text) < config.min_chars:
        return "short"
    language = guess_language(text)
    if language not in config.languages or (declared is not None and declared != language):
        return "language"
    if duplicate_line_share(text) > config.max_duplicate_lines:
        return "repeated lines"
    if top_ngram_share(text) > config.max_top_ngram:
        return "repeated text"
    return None


def clean_documents(
    documents: Iterable[dict],
    config: CleanConfig | None = None,
    report: CleanReport | None = None,
    boilerplate: Boilerplate | None = None,
) -> Iterator[dict]:
    """Yield the cleaned documents in order. Rejected documents are counted in `report` by reason.

    Args:
        documents: Dicts with a str under "text".
        config: Criteria; None: the defaults.
        report: Statistics to update while the iterator runs.
        boilerplate: Lines to remove, from `boilerplate_lines` on the same documents.
    """
    config = config or CleanConfig()
    report = report if report is not None else CleanReport()
    for document in documents:
        raw = document["text"]
        report.documents_in += 1
        report.chars_in += len(raw)
        text = normalize_text(raw, config.unicode_form)
        if boilerplate:
            kept, removed = boilerplate.split(text.split("\n"))
            if removed:
                report.count_removed(removed)
                shorter = normalize_text("\n".join(kept))
                report.chars_boilerplate += len(text) - len(shorter)
                text = shorter
        reason = rejection(text, config, _declared(document))
        if reason:
            report.rejected[reason] += 1
            report.chars_rejected[reason] += len(text)
            continue
        report.documents_out += 1
        report.chars_out += len(text)
        yield {**document, "text": text}


def _declared(document: dict) -> str | None:
    """Return the language that a document declares, without region ("en" for "en-US"), or None."""
    language = document.get("language")
    return re.split("[-_]", language)[0].lower() if isinstance(language, str) and language else None
