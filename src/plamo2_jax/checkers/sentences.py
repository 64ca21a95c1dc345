"""Splitting of Japanese and English text into sentences.

The Japanese rules follow the segmenter that M-IFEval uses: a sentence ends at 。, ! or ? or at the end of a line, but not inside 「」 or
parentheses. The English rules follow the heuristics of the Punkt algorithm (Kiss and Strunk 2006), with a fixed list of
abbreviations instead of a trained one: a sentence ends at a word that ends with ., ! or ?, unless it is an abbreviation, or a number before
a word in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_FOLDED = str.maketrans({"！": "!", "？": "?", "｡": "。", "（": "(", "）": ")", "｢": "「", "｣": "」"})
_ENDS = "。!?"
_QUOTE = re.compile("「[^「」]*」")
_PARENTHESES = re.compile(r"\([^()]*\)")
_SENTENCE = re.compile(rf"[^{_ENDS}]*[{_ENDS}]|[^{_ENDS}]+")
_MARKED = re.compile(rf".[^{_ENDS}]*[{_ENDS}]?")
_STOP = re.compile(r"(?<=\.)(?![A-Za-z0-9.])")
_SPACED = re.compile(r"(?<=[。．.!?])\s+")
_HIDDEN = str.maketrans({"。": "\ue000", "!": "\ue001", "?": "\ue002"})
_SHOWN = str.maketrans({"\ue000": "。", "\ue001": "!", "\ue002": "?"})

# Abbreviations that an English sentence seldom ends with: titles, units of companies, months, days, references, Latin.
_ABBREVIATIONS_TEXT = (
    "mr mrs ms dr prof st sr jr rev gen col capt lt sgt gov sen rep hon pres jan feb mar apr jun jul aug "
    "sept sep oct nov dec mon tue wed thu fri sat sun vs etc e.g i.e cf al ca viz approx est fig vol no "
    "pp ed eds dept univ assn co corp inc ltd bros mt ft ave blvd rd u.s u.k u.n e.u d.c n.y l.a a.m p.m "
    "b.c a.d ph.d m.d b.a m.a"
)
_ABBREVIATIONS = frozenset(_ABBREVIATIONS_TEXT.split())
_LAST_MARK = re.compile(r"[.!?]+[\"')\]}”’*_]*$")
_INITIAL = re.compile(r"[A-Za-z]\.$")
_LEADING = "\"'([{“‘*_`#>-"


def japanese_sentences(text: str) -> list[str]:
    """Split a Japanese text into sentences. A line that ends with の continues on the next line."""
    found = []
    for line in _joined_lines(text.strip().translate(_FOLDED)):
        found += _split_line(line, _SENTENCE)
    return found


def _joined_lines(text: str) -> Iterator[str]:
    """Yield the lines of a text. A line of two or more characters that ends with の is joined with the next one."""
    parts: list[str] = []
    joined = False
    for line in text.splitlines():
        if parts and not joined:
            yield "".join(parts)
            parts = []
        parts.append(line)
        # An empty line changes nothing about the end of the line before it.
        joined = line.endswith("の") and (joined or len(line) > 1) if line else joined
    if parts:
        yield "".join(parts)


def _split_line(line: str, sentence: re.Pattern[str]) -> list[str]:
    """Split a line after each mark that is not inside 「」 or parentheses."""
    for pattern in (_QUOTE, _PARENTHESES):
        line = pattern.sub(lambda match: match.group().translate(_HIDDEN), line)
    return [part.translate(_SHOWN) for part in sentence.findall(line)]


def marked_sentences(text: str) -> list[str]:
    """Split a text into sentences for JFBench, which uses pysbd.

    A sentence ends at each of 。．！？!?, at a . unless a Latin letter or a digit follows, and at the end of a line, but not inside 「」 or
    parentheses. If ending at every mark before white space gives more sentences, these are returned.
    """
    found = []
    for line in text.translate(_FOLDED).replace("．", "。").splitlines():
        found += [part for sentence in _split_line(line, _MARKED) for part in _STOP.split(sentence)]
    spaced = [part.strip() for part in _SPACED.split(text.translate(_FOLDED)) if part.strip()]
    found = [sentence.strip() for sentence in found if sentence.strip()]
    return spaced if len(spaced) > len(found) else found


def english_sentences(text: str) -> list[str]:
    """Split an English text into sentences. The end of a line does not end a sentence."""
    words = text.split()
    found: list[list[str]] = []
    start = 0
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        if _ends_sentence(word, following):
            found.append(words[start : index + 1])
            start = index + 1
    if start < len(words):
        found.append(words[start:])
    return [" ".join(sentence) for sentence in found]


def _ends_sentence(word: str, following: str) -> bool:
    mark = _LAST_MARK.search(word[-20:])
    if mark is None:
        return False
    if mark.group()[0] in "!?":
        return True
    stem = word[: len(word) - len(mark.group())].lstrip(_LEADING).lower()
    first = following.lstrip(_LEADING)[:1]
    if mark.group().startswith(".."):
        return first.isupper()
    if not stem:
        return bool(word.strip("."))
    if stem in _ABBREVIATIONS:
        return False
    if len(stem) == 1 and stem.isalpha():  # an initial
        return not first.isupper() and not first.islower()
    return not (following[:1].islower() and stem.isdigit())
