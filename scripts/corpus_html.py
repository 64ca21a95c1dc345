"""Readable text blocks from documentation HTML, with the standard library's parser only.

Written for the pages of `build_corpus.py`; a page is parsed into a tree, the parts that are not prose (navigation,
scripts, keyboard tables, alternatives for other systems) are left out, and what remains becomes a list of `Block`.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"]
)
HEADINGS = frozenset(["h1", "h2", "h3", "h4", "h5", "h6"])
BLOCKS = (
    frozenset(
        [
            "address",
            "article",
            "aside",
            "blockquote",
            "body",
            "center",
            "dd",
            "details",
            "div",
            "dl",
            "dt",
            "fieldset",
            "figcaption",
            "figure",
            "footer",
            "form",
            "header",
            "html",
            "li",
            "main",
            "nav",
            "ol",
            "p",
            "pre",
            "section",
            "summary",
            "table",
            "tbody",
            "td",
            "tfoot",
            "th",
            "thead",
            "tr",
            "ul",
        ]
    )
    | HEADINGS
)
SKIPPED = frozenset(
    [
        "button",
        "caption",
        "form",
        "head",
        "iframe",
        "img",
        "input",
        "label",
        "nav",
        "noscript",
        "object",
        "script",
        "select",
        "style",
        "svg",
    ]
)
CJK = "\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
_BREAK_IN_CJK = re.compile(rf"(?<=[{CJK}])[ \t]*\n\s*(?=[{CJK}])")
_SPACES = re.compile(r"[ \t\n\r\f\v]+")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")


@dataclass(frozen=True)
class Block:
    """One paragraph, heading, list item, table row or listing of a page.

    Attributes:
        kind: "heading", "text", "item", "row" or "code".
        text: the text on one line, except "code", which keeps its line breaks.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Rules:
    """Rules for the pages of one source: which elements to read and which to omit.

    Attributes:
        root: finds the element that holds the prose (None: the page has none).
        drop_classes: elements with any of these classes are left out.
        drop_ids: elements with any of these ids are left out.
        code_classes: elements with any of these classes are listings, like `pre`.
        heading_classes: elements with any of these classes are headings, like `h2`.
        alternatives: elements with any of these classes hold variants of one text; the default (or the last) is kept.
    """

    root: Callable[[ET.Element], ET.Element | None]
    drop_classes: frozenset[str] = frozenset()
    drop_ids: frozenset[str] = frozenset()
    code_classes: frozenset[str] = frozenset()
    heading_classes: frozenset[str] = frozenset()
    alternatives: frozenset[str] = frozenset()


class _TreeParser(HTMLParser):
    """Feeds tags to an ElementTree builder, closing what the page leaves open."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.builder = ET.TreeBuilder()
        self.open: list[str] = []
        self.builder.start("page", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        implied = {"li": {"li"}, "p": {"p"}, "tr": {"tr", "td", "th"}, "td": {"td", "th"}, "th": {"td", "th"}}
        implied |= {"dt": {"dt", "dd"}, "dd": {"dt", "dd"}}
        while self.open and self.open[-1] in implied.get(tag, ()):
            self.builder.end(self.open.pop())
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        self.builder.end(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.open:
            return
        while True:
            last = self.open.pop()
            self.builder.end(last)
            if last == tag:
                return

    def handle_data(self, data: str) -> None:
        self.builder.data(data)

    def finish(self) -> ET.Element:
        self.close()
        while self.open:
            self.builder.end(self.open.pop())
        self.builder.end("page")
        return self.builder.close()


def parse_html(html: str) -> ET.Element:
    """The page as an element tree under one `page` element; never fails on bad nesting."""
    parser = _TreeParser()
    parser.feed(html)
    return parser.finish()


def by_id(*names: str) -> Callable[[ET.Element], ET.Element | None]:
    """A root finder: the first element whose id is one of `names`."""
    return lambda page: next((e for e in page.iter() if e.get("id") in names), None)


def by_class(*names: str) -> Callable[[ET.Element], ET.Element | None]:
    """A root finder: the first element that has one of the classes `names`."""
    return lambda page: next((e for e in page.iter() if not set(names).isdisjoint(e.get("class", "").split())), None)


def by_tag(name: str) -> Callable[[ET.Element], ET.Element | None]:
    """A root finder: the first element with this tag."""
    return lambda page: next(page.iter(name), None)


def one_line(text: str) -> str:
    """Collapse white space; a line break between two Japanese characters is no space."""
    text = _INVISIBLE.sub("", text).replace("\u00a0", " ")
    return _SPACES.sub(" ", _BREAK_IN_CJK.sub("", text)).strip()


def _listing(text: str) -> str:
    lines = [line.rstrip() for line in _INVISIBLE.sub("", text).replace("\u00a0", " ").expandtabs(4).splitlines()]
    return "\n".join(line for line in lines if line).strip("\n")


@dataclass
class _Walker:
    """Depth-first walk that gathers inline text and cuts a block wherever a block element begins or ends."""

    rules: Rules
    blocks: list[Block] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    marker: str = ""

    def flush(self, kind: str) -> None:
        raw, self.pending = "".join(self.pending), []
        text = _listing(raw) if kind == "code" else one_line(raw)
        if not text:
            return
        if kind in ("text", "item") and self.marker:
            kind, text, self.marker = "item", f"{self.marker} {text}", ""
        self.blocks.append(Block(kind, text))

    def inline(self, element: ET.Element) -> str:
        """All text under an element as one string, for a table cell."""
        walker = _Walker(self.rules)
        walker.children(element, "text")
        walker.flush("text")
        return one_line(" ".join(block.text for block in walker.blocks))

    def children(self, element: ET.Element, kind: str) -> None:
        if element.text:
            self.pending.append(element.text)
        start = element.get("start", "1")
        number = int(start) - 1 if start.isdigit() else 0
        for child in self.kept_children(element):
            if child.tag == "li":
                number += 1
                self.marker = f"{number}." if element.tag == "ol" else "-"
            self.visit(child, kind)
            if child.tail:
                self.pending.append(child.tail)

    def kept_children(self, element: ET.Element) -> Iterator[ET.Element]:
        if self.rules.alternatives.isdisjoint(element.get("class", "").split()) or not len(element):
            yield from element
            return
        default = [child for child in element if child.get("id", "").startswith("default")]
        chosen = (default or list(element))[-1]
        yield chosen

    def visit(self, element: ET.Element, kind: str) -> None:
        classes, rules = set(element.get("class", "").split()), self.rules
        if element.tag in SKIPPED or classes & rules.drop_classes or element.get("id") in rules.drop_ids:
            return
        if element.tag == "br":
            self.pending.append("\n")
        elif element.tag == "table":
            self.flush(kind)
            self.table(element)
        elif element.tag in BLOCKS or classes & (rules.code_classes | rules.heading_classes):
            self.flush(kind)
            inner = kind
            if kind != "code":
                if element.tag == "pre" or classes & rules.code_classes:
                    inner = "code"
                elif element.tag in HEADINGS or classes & rules.heading_classes:
                    inner = "heading"
            self.children(element, inner)
            self.flush(inner)
            if element.tag == "li":
                self.marker = ""
        else:
            self.children(element, kind)

    def table(self, table: ET.Element) -> None:
        for row in table.iter("tr"):
            cells = [self.inline(cell) for cell in row if cell.tag in ("td", "th")]
            text = " | ".join(cell for cell in cells if cell)
            if text:
                self.blocks.append(Block("row", text))


def extract_blocks(page: ET.Element, rules: Rules) -> list[Block]:
    """The blocks of a page in reading order; an empty list where the page has no prose element."""
    root = rules.root(page)
    if root is None:
        return []
    walker = _Walker(rules)
    walker.children(root, "text")
    walker.flush("text")
    return walker.blocks
