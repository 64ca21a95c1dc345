"""HTML tables: whether a text is one <table> element with rows and cells."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_WHOLE = re.compile(r"\s*<table\b", re.IGNORECASE)
_EMPTY = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
)
MAX_DEPTH = 200


class _Table(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.rows: list[int] = []
        self.tables = 0
        self.valid = True

    def handle_starttag(self, tag: str, attrs) -> None:
        if not self.open:
            self.tables += 1
            self.valid &= tag == "table"
        if tag == "tr":
            self.valid &= bool(self.open) and self.open[-1] in ("table", "thead", "tbody", "tfoot")
            self.rows.append(0)
        elif tag in ("td", "th") and self.open[-1:] == ["tr"] and self.rows:
            self.rows[-1] += 1
        if tag not in _EMPTY and len(self.open) < MAX_DEPTH:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.valid &= bool(self.open) or not data.strip()


def is_html_table(text: str) -> bool:
    """Return whether a text is exactly one <table>, whose rows are direct parts of it and have cells."""
    if _WHOLE.match(text) is None or not text.rstrip().lower().endswith("</table>") or text.count("<") > 20_000:
        return False
    parser = _Table()
    try:
        parser.feed(text)
        parser.close()
    except (AssertionError, ValueError):  # The standard library's parser asserts on some malformed declarations.
        return False
    return parser.valid and parser.tables == 1 and bool(parser.rows) and all(parser.rows)
