"""Turn the blocks of all pages into documents: remove untranslated and repeated text, and text shared with the held-out split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from corpus_html import CJK, Block

from plamo2_jax.data.boilerplate import line_key
from plamo2_jax.data.minhash import squeeze

Page = list[Block]
Pages = dict[tuple[str, str], Page]  # (language, pair key) -> blocks

_CJK_CHARACTER = re.compile(f"[{CJK}]")
_WORD = re.compile(r"[A-Za-z][a-z]{2,}")
_LOWER_WORD = re.compile(r"\b[a-z]{2,}\b")
_ENGLISH_RUN = re.compile(r"(?:[A-Za-z][A-Za-z'’,;:()\"/-]*[ ]+){7,}[A-Za-z]+")
_IDENTIFIER = re.compile(r"[A-Z]{2}|[a-z][A-Z]|[\d._]")
_MARKER = re.compile(r"^(?:-|\d+\.) ")
_LINK = re.compile(r"https?://\S+")
MIN_REPEAT = {"ja": 15, "en": 30}  # shorter paragraphs ("Click OK.") may repeat; list items may up to twice this
WINDOW = {
    "ja": 25,
    "en": 50,
}  # characters without white space; a train paragraph may share no such window with held-out


def is_untranslated(block: Block, english: set[str]) -> bool:
    """Return whether a block of a Japanese page, or at least a sentence of it, is untranslated English."""
    if block.kind == "code" or (block.kind == "heading" and _IDENTIFIER.search(block.text)):
        return False
    japanese = len(_CJK_CHARACTER.findall(block.text))
    if not japanese:
        return bool(_WORD.search(block.text)) and (block.text in english or len(_WORD.findall(block.text)) >= 3)
    return japanese < 0.3 * len(block.text) and bool(_ENGLISH_RUN.search(block.text))


def is_prose_row(text: str) -> bool:
    """Return whether a table row is prose: some cell holds a Japanese or English sentence."""
    return any(
        len(_CJK_CHARACTER.findall(cell)) >= 12 or len(_LOWER_WORD.findall(cell)) >= 4 for cell in text.split(" | ")
    )


def tidy(page: Page, titles: set[str], navigation: frozenset[str]) -> Page:
    """A page without tables of names and numbers, bare links, and cross-references that only name another page."""
    kept: Page = []
    heading = ""
    for block in page:
        bare = _MARKER.sub("", block.text)
        is_reference = block.kind in ("text", "item", "row") and bare in titles
        is_link = block.kind != "code" and not _LINK.sub("", bare).strip(" →.・-")
        is_icon_name = block.kind == "text" and bare == heading
        is_table_of_names = block.kind == "row" and not is_prose_row(bare)
        if is_reference or is_link or is_icon_name or is_table_of_names or bare in navigation:
            continue
        heading = bare if block.kind == "heading" else heading
        kept.append(block)
    return kept


def drop_empty_sections(page: Page) -> Page:
    """A page without headings that nothing follows, but for the first (the title)."""
    kept: Page = []
    for index, block in enumerate(page):
        followed = index + 1 < len(page) and page[index + 1].kind != "heading"
        if block.kind != "heading" or followed or (index == 0 and len(page) > 1):
            kept.append(block)
    return kept


def drop_untranslated(pages: Pages) -> tuple[Pages, int]:
    """Japanese pages without the paragraphs that are still English; also how many were dropped."""
    result, dropped = {}, 0
    for (language, pair), page in pages.items():
        if language == "ja":
            english = {block.text for block in pages.get(("en", pair), [])}
            # A title stays: "Day Function" names its page in both languages.
            kept = [
                b for i, b in enumerate(page) if (i == 0 and b.kind == "heading") or not is_untranslated(b, english)
            ]
            dropped += len(page) - len(kept)
            page = kept
        result[language, pair] = page
    return result, dropped


def drop_repeats(pages: Pages, order: Iterable[tuple[str, str]]) -> tuple[Pages, int]:
    """Pages without the paragraphs that an earlier page (or the same one) holds already; also how many were dropped.

    Two paragraphs are the same if `line_key` says so: width, case, digits and spacing do not matter. Headings and
    paragraphs whose key is shorter than `MIN_REPEAT` are structure and stay.
    """
    seen: set[tuple[str, str]] = set()
    result, dropped = {}, 0
    for language, pair in order:
        kept = []
        for block in pages[language, pair]:
            key = line_key(block.text)
            shortest = MIN_REPEAT[language] * (2 if block.kind == "item" else 1)
            if block.kind != "heading" and len(key) >= shortest:
                if (language, key) in seen:
                    dropped += 1
                    continue
                seen.add((language, key))
            kept.append(block)
        result[language, pair] = kept
    return result, dropped


def windows(text: str, size: int) -> set[str]:
    """All windows of `size` characters of the text without white space."""
    text = squeeze(text)
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def drop_leaks(pages: Pages, heldout: set[str]) -> tuple[Pages, Counter[str]]:
    """Train pages without the paragraphs that share a window of `WINDOW` characters with held-out text.

    Args:
        pages: all pages; held-out ones are returned as they are.
        heldout: pair keys of the held-out split.

    Returns:
        the pages, and how many paragraphs were dropped by language.
    """
    known: dict[str, set[str]] = {language: set() for language in WINDOW}
    for (language, pair), page in pages.items():
        if pair in heldout:
            for block in page:
                known[language] |= windows(block.text, WINDOW[language])
    result, dropped = {}, Counter()
    for (language, pair), page in pages.items():
        if pair not in heldout:
            kept = [b for b in page if known[language].isdisjoint(windows(b.text, WINDOW[language]))]
            dropped[language] += len(page) - len(kept)
            page = kept
        result[language, pair] = page
    return result, dropped


def render(page: Page) -> str:
    """A page as text: one newline between paragraphs, an empty line before a heading, numbered lists without gaps."""
    parts, number, last = [], 0, 0
    for block in page:
        text = block.text
        if block.kind == "heading":
            text, number = "\n" + text, 0
        step = re.match(r"(\d+)\. ", text) if block.kind == "item" else None
        if step:
            # The page's own numbers tell where a new list begins; steps that were dropped leave no hole.
            number = number + 1 if int(step[1]) > last and number else 1
            last = int(step[1])
            text = f"{number}. {text[step.end() :]}"
        parts.append(text)
    return "\n".join(parts).strip()
