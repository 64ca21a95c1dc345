"""Markdown in answers: code blocks, quotation marks, headings and emphasis."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]{0,30})[^\n]{0,100}$")
_QUOTES = {'"': '"', "'": "'", "“": "”", "「": "」", "『": "』", "`": "`"}
_EMPHASIS = re.compile(r"^(\*\*|__)(.+)\1$")


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the content of each closed code block of a Markdown text."""
    blocks: list[tuple[str, str]] = []
    fence, language, lines = "", "", []
    for line in text.splitlines():
        if fence:
            bare = line.strip()
            if len(bare) >= len(fence) and set(bare) == {fence[0]}:
                blocks.append((language, "\n".join(lines)))
                fence = ""
            else:
                lines.append(line)
        elif match := _FENCE.match(line):
            fence, language, lines = match[1], match[2].casefold(), []
    return blocks


def unwrap(text: str) -> str:
    """Return a text without a code fence and without one pair of quotation marks around it."""
    lines = text.splitlines()
    if len(lines) >= 3 and _FENCE.match(lines[0]) and set(lines[-1].strip()) in ({"`"}, {"~"}):
        text = "\n".join(lines[1:-1]).strip()
    close = _QUOTES.get(text[:1])
    if close is not None and len(text) >= 2 and text.endswith(close):
        inner = text[1:-1]
        # 「a」と「b」 begins and ends with quotation marks that do not belong together.
        if close not in inner and text[0] not in inner:
            text = inner.strip()
    return text


def without_markdown(text: str) -> str:
    """Return a text without headings, quotation marks of blocks, and emphasis; bullets become "-"."""
    return "\n".join(map(_plain_line, text.splitlines())).strip()


def _plain_line(line: str) -> str:
    bare = re.sub(r"^ {0,3}(?:#{1,6}|>)[ \t]+", "", line)
    bare = re.sub(r"^(\s{0,12})[*+][ \t]+(?=\S)", r"\1- ", bare)
    return re.sub(r"(\*\*|__)(?=\S)([^*_\n]{1,300}?)(?<=\S)\1", r"\2", bare)


def without_emphasis(text: str) -> str:
    """Return a text without white space and bold type around it."""
    return _EMPHASIS.sub(r"\2", text.strip()).strip()
