"""Readable text blocks from manual pages written with the man(7) macros.

Only what prose needs: sections, paragraphs, tagged items, listings, fonts and the usual escapes. Pages in mdoc(7), tables
and pages that only point to another give nothing.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from corpus_html import Block, one_line

_CHARACTERS = {
    "bu": "•", "em": "—", "en": "–", "hy": "-", "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "aq": "'", "dq": '"',
    "co": "©", "mu": "×", "<=": "≤", ">=": "≥", "!=": "≠", "+-": "±", "->": "→", "<-": "←", "rs": "\\", "ti": "~",
    "ha": "^", "ga": "`", "at": "@", "sh": "#", "de": "°", "mc": "µ", "Fo": "«", "Fc": "»", "->>": "→", "ba": "|",
}  # fmt: skip
_ESCAPE = re.compile(
    r"\\(?:f(?:\(..|\[[^]]*\]|.)|s(?:[+-]?\d|\([+-]?\d\d|\[[^]]*\])|m\[[^]]*\]|[hv]'[^']*'|\*(?:\((?P<s2>..)|\[(?P<sb>[^]]*)\]|(?P<s1>.))"
    r"|\((?P<c2>..)|\[(?P<cb>[^]]*)\]|(?P<one>.)|$)"
)
_ONE = {"-": "-", "e": "\\", " ": " ", "~": " ", "0": " ", "'": "'", "`": "`", "t": " ", "\\": "\\"}
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')
_PARAGRAPH = frozenset({"PP", "LP", "P", "HP", "RS", "RE", "sp", "Sp"})
_FONTS = frozenset({"B", "I", "R", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB"})
_UNTIL = {"TS": "TE", "EQ": "EN", "PS": "PE", "de": ".", "ig": "."}


def plain(text: str) -> str:
    """A roff string without its escapes."""

    def replace(match: re.Match[str]) -> str:
        name = match["c2"] or match["cb"] or match["s2"] or match["sb"]
        if name is not None:
            if name.startswith("u") and re.fullmatch(r"u[0-9A-F]{4,6}", name):
                return chr(int(name[1:], 16))
            return _CHARACTERS.get(name, "")
        return _ONE.get(match["one"] or "", "")

    return _ESCAPE.sub(replace, text.split('\\"')[0])


def _arguments(text: str) -> list[str]:
    return [plain(a.replace('""', '"') if a else b) for a, b in _ARGUMENT.findall(text)]


def man_blocks(source: str) -> list[Block]:
    """Blocks of a page in man(7) macros; an empty list for other pages."""
    blocks: list[Block] = []
    pending: list[str] = []
    state = {"listing": False, "tag": False, "until": ""}

    def flush(kind: str = "text") -> None:
        lines, pending[:] = pending[:], []
        if state["listing"]:
            text, kind = "\n".join(line.rstrip() for line in lines if line.strip()), "code"
        else:
            text = one_line("\n".join(lines))
        if text:
            blocks.append(Block(kind, text))

    if not re.search(r"^\.\s*TH\b", source, re.MULTILINE):
        return []
    for line in source.splitlines():
        macro, _, rest = line[1:].strip().partition(" ") if line[:1] in ".'" and line else ("", "", "")
        if state["until"]:
            state["until"] = "" if macro == state["until"] or line.startswith("..") else state["until"]
        elif macro in _UNTIL:
            flush()
            state["until"] = _UNTIL[macro]
        elif macro in ("SH", "SS"):
            flush()
            state["listing"] = False
            blocks.append(Block("heading", one_line(" ".join(_arguments(rest)))))
        elif macro in _PARAGRAPH:
            flush()
        elif macro == "IP":
            flush()
            mark = _arguments(rest)[:1]
            pending.extend(["- "] if mark and mark[0] in ("•", "*", "o", "-", "\\(bu") else mark)
        elif macro in ("TP", "TQ"):
            flush()
            state["tag"] = True
            continue
        elif macro in ("nf", "EX"):
            flush()
            state["listing"] = True
        elif macro in ("fi", "EE"):
            flush()
            state["listing"] = False
        elif macro == "br" or line == "":
            # A line break inside Japanese prose is a paragraph for our purpose, inside a listing nothing.
            if not state["listing"]:
                flush()
        elif macro in _FONTS:
            words = _arguments(rest)
            pending.append(("" if len(macro) == 2 and macro not in ("SM", "SB") else " ").join(words))
        elif not macro and line[:1] not in ".'":
            pending.append(plain(line))
        else:
            continue
        if state["tag"] and pending and not state["listing"]:
            # The line after .TP is the term: a line of its own.
            flush()
            state["tag"] = False
    flush()
    return [block for block in blocks if block.text]


def read_man(path: Path) -> list[Block]:
    """Blocks of one compressed manual page, in UTF-8 or (older Japanese pages) EUC-JP."""
    raw = gzip.decompress(path.read_bytes())
    try:
        return man_blocks(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return man_blocks(raw.decode("euc-jp", errors="replace"))
