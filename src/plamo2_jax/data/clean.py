"""Cleaning of raw text: characters, boilerplate lines (see `boilerplate`), language, length and repetition.

A document is a dict with at least "text"; every other key travels through untouched. The defaults keep text as its author
wrote it: PLaMo's tokenizer has no normalizer, so the model must see real text, and Unicode NFC is not harmless for
Japanese (it turns the name variants U+FA19 神 and U+FA10 塚 into other characters). Ask for it with `unicode_form`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from plamo2_jax.data.boilerplate import Boilerplate, RemovedLines, boilerplate_lines, line_key

__all__ = [
    "CleanConfig",
    "CleanReport",
    "boilerplate_lines",
    "clean_documents",
    "duplicate_line_share",
    "guess_language",
    "line_key",
    "normalize_text",
    "rejection",
    "top_ngram_share",
]

UNICODE_FORMS = ("none", "NFC", "NFKC")
LANGUAGES = ("ja", "en", "other")

_NEWLINES = re.compile("\r\n?|[\u0085\u2028\u2029\v\f]")
# Controls except tab and newline, the byte-order mark, the interlinear marks, non-characters, lone surrogates.
_UNWANTED = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
    "|[" + "".join(chr(plane << 16 | low) for plane in range(1, 17) for low in (0xFFFE, 0xFFFF)) + "]"
)
_TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa\u30fc\uff66-\uff9d]")
_HAN = re.compile("[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_LETTER = re.compile(r"[^\W\d_]")
_STRETCH = 1_000_000
_ENGLISH = re.compile(r"\b(?:the|of|and|to|in|is|for|that|are|with|it|as|be|on|or|by|this|you|a|can)\b", re.IGNORECASE)


@dataclass(frozen=True)
class CleanConfig:
    """What a document must be like to pass.

    Attributes:
        unicode_form: "none" (default), "NFC" or "NFKC".
        languages: languages that pass, of "ja", "en" and "other".
        min_chars: documents with fewer characters after cleaning are dropped.
        max_duplicate_lines: largest share of characters that may lie in lines seen before in the same document.
        max_top_ngram: largest share of the document's 10-character windows that one window may make up.
    """

    unicode_form: str = "none"
    languages: tuple[str, ...] = ("ja", "en")
    min_chars: int = 50
    max_duplicate_lines: float = 0.3
    max_top_ngram: float = 0.2

    def __post_init__(self) -> None:
        if self.unicode_form not in UNICODE_FORMS:
            raise ValueError(f"unicode_form is {self.unicode_form!r}; it must be one of {', '.join(UNICODE_FORMS)}")
        if not self.languages or not set(self.languages) <= set(LANGUAGES):
            raise ValueError(f"languages is {self.languages!r}; it must name some of {', '.join(LANGUAGES)}")
        if self.min_chars < 1:
            raise ValueError(f"min_chars is {self.min_chars}; it must be at least 1")
        for name in ("max_duplicate_lines", "max_top_ngram"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")


@dataclass
class CleanReport:
    """What cleaning did: documents and characters in and out, lines removed, and documents dropped by reason."""

    documents_in: int = 0
    documents_out: int = 0
    chars_in: int = 0
    chars_out: int = 0
    chars_boilerplate: int = 0
    removed: RemovedLines = field(default_factory=RemovedLines)
    rejected: Counter[str] = field(default_factory=Counter)
    chars_rejected: Counter[str] = field(default_factory=Counter)

    @property
    def boilerplate_lines(self) -> int:
        """Lines removed as boilerplate."""
        return self.removed.lines

    def lost(self) -> dict[str, int]:
        """Characters lost by cause; "white space and controls" is what normalization removed."""
        causes = {"boilerplate": self.chars_boilerplate, **dict(sorted(self.chars_rejected.items()))}
        return causes | {"white space and controls": self.chars_in - self.chars_out - sum(causes.values())}

    def to_json(self) -> dict[str, Any]:
        """Everything, with the hundred lines that were removed most often."""
        return {
            "documents": {"in": self.documents_in, "out": self.documents_out},
            "characters": {"in": self.chars_in, "out": self.chars_out, "lost": self.lost()},
            "rejected": dict(sorted(self.rejected.items())),
            "boilerplate_lines": self.boilerplate_lines,
            "most_removed_lines": [{"line": line, "times": times} for line, times in self.removed.most_common(100)],
        }

    def summary(self) -> str:
        """One line for a log."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.rejected.items())) or "none"
        return (
            f"cleaning kept {self.documents_out} of {self.documents_in} documents, {self.chars_out} of {self.chars_in} "
            f"characters; boilerplate lines removed: {self.boilerplate_lines}; rejected: {reasons}"
        )


def normalize_text(text: str, unicode_form: str = "none") -> str:
    """The same text with plain newlines, no control characters, no trailing spaces and no runs of blank lines.

    Idempotent. Leading spaces, tabs, full-width forms, emoji joiners and variation selectors stay as they are.
    """
    text = _UNWANTED.sub("", _NEWLINES.sub("\n", text))
    if unicode_form != "none":
        text = unicodedata.normalize(unicode_form, text)
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()


def guess_language(text: str) -> str:
    """The language of a text, "ja", "en" or "other", by script.

    Japanese: at least a fifth of the letters are kana or kanji, and of those at least one in twenty is kana (else it is
    Chinese). English: nine letters in ten are Latin, and at least one word in twenty-five is one of the twenty commonest
    English words (else it is another language, or a listing). Reads the first 20,000 characters.
    """
    text = text[:20_000]
    letters = len(_LETTER.findall(text))
    kana = len(_KANA.findall(text))
    japanese = kana + len(_HAN.findall(text))
    if letters == 0:
        return "other"
    if japanese >= 0.2 * letters and kana >= 0.05 * japanese:
        return "ja"
    if len(_LATIN.findall(text)) >= 0.9 * letters and len(_ENGLISH.findall(text)) >= 0.04 * len(text.split()):
        return "en"
    return "other"


def duplicate_line_share(text: str) -> float:
    """Share of the characters that lie in lines that occurred earlier in the same text; blank lines count for nothing."""
    seen: set[str] = set()
    total = repeated = 0
    for line in text.splitlines():
        line = line.strip()
        total += len(line)
        repeated += len(line) if line in seen else 0
        seen.add(line)
    return repeated / total if total else 0.0


def top_ngram_share(text: str, n: int = 10) -> float:
    """Share of the windows of `n` characters that equal the most frequent one; 0 for texts shorter than 10 windows.

    Of texts longer than a million characters, the mean over stretches of that length.
    """
    windows = len(text) - n + 1
    if windows < 10:
        return 0.0
    count = 0
    for start in range(0, windows, _STRETCH):
        stretch = Counter(text[i : i + n] for i in range(start, min(start + _STRETCH, windows)))
        count += stretch.most_common(1)[0][1]
    return count / windows


def rejection(text: str, config: CleanConfig, declared: str | None = None) -> str | None:
    """Why a cleaned text does not pass ("empty", "short", "language", "repeated lines", "repeated text"), or None.

    Args:
        text: after `normalize_text`.
        config: what passes.
        declared: the language the document claims; a text that looks like another one does not pass.
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
    """Cleaned documents, in order; those that do not pass are counted in `report` under their reason.

    Args:
        documents: dicts with a str under "text".
        config: what passes.
        report: filled in while the iterator runs.
        boilerplate: lines to remove, from `boilerplate_lines` over the same documents.
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
                report.removed.add(removed)
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
    """The language that a document declares, without its region: "en" for "en-US". None for none."""
    language = document.get("language")
    return re.split("[-_]", language)[0].lower() if isinstance(language, str) and language else None
