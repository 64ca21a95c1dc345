"""Find and remove the lines that web pages repeat around their text: navigation, footers, notices.

Not every repeated line is boilerplate: manuals repeat headings, programs repeat statements, licences repeat paragraphs. So a repeated line
is removed only at the beginning or end of a document, only next to other repeated lines or if it is as long as a notice, and only if it
does not look like program code. `where="anywhere"` removes repeated lines everywhere.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from plamo2_jax.errors import PlamoError

Where = Literal["edges", "anywhere"]

MIN_CHARS = 8
"""With where="anywhere", smallest number of characters in the key of a removed line. Shorter lines, such as "Example", are headings."""
EDGE_LINES = 50
"""Number of lines at the beginning and at the end of a document that may be boilerplate, without blank lines."""
MIN_RUN, NOTICE_WIDTH = 3, 20
"""At an edge, consecutive repeated lines are removed if they are this many, or if one is this wide; a wide character counts twice."""
OTHER_LINES = 2
"""Number of lines that are not repeated, such as title and date, that may be between the edge and the boilerplate."""

# Lines of program code: indented, or with the syntax of a statement, comment or declaration.
_PROGRAM = re.compile(r"[ \t]|#|//|/\*|\*/|import\b|from\s.*\bimport\b|.*(?:[{}=\\]|\(\)|;$)")


@dataclass(frozen=True)
class Boilerplate:
    """The repeated lines of a corpus.

    Attributes:
        keys: Hashes of the `line_key` of each.
        where: "edges": remove them at the beginning and end of a document. "anywhere": remove all.
    """

    keys: frozenset[int] = frozenset()
    where: Where = "edges"

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, line: str) -> bool:
        return text_hash(line_key(line)) in self.keys

    def split(self, lines: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the lines of a document to keep and the lines to remove, each in order."""
        if self.where == "anywhere":
            removed = {i for i, line in enumerate(lines) if line in self}
        else:
            filled = [i for i, line in enumerate(lines) if line.strip()]
            removed = {*self._at_edge(lines, filled), *self._at_edge(lines, filled[::-1])}
        keep = [line for i, line in enumerate(lines) if i not in removed]
        return keep, [lines[i] for i in sorted(removed)]

    def _at_edge(self, lines: Sequence[str], order: Sequence[int]) -> Iterator[int]:
        """Yield the indices of the lines to remove at one edge. `order`: indices of the lines that are not blank, from that edge inward."""
        others, run = 0, []
        for i in itertools.chain(order[:EDGE_LINES], (None,)):
            if i is not None and not _PROGRAM.match(lines[i]) and lines[i] in self:
                run.append(i)
                continue
            if len(run) >= MIN_RUN or any(_width(line_key(lines[j])) >= NOTICE_WIDTH for j in run):
                yield from run
            run = []
            others += 1
            if others > OTHER_LINES:
                return


def line_key(line: str) -> str:
    """Return the key of a line. Lines that differ only in character width, case, digits and white space have the same key."""
    line = unicodedata.normalize("NFKC", line).casefold()
    return re.sub(r"\s+", "", re.sub(r"\d+", "0", line))


class LineCounter:
    """Counts in how many different documents each line occurs. Copies of one document count once, since deduplication removes them.

    Args:
        min_documents: Smallest number of documents that makes a line boilerplate.
        where: "edges": count, and later remove, lines at the beginning and end of documents. "anywhere": all lines.
    """

    def __init__(self, min_documents: int = 20, where: Where = "edges"):
        if min_documents < 2:
            raise PlamoError(f"min_documents={min_documents} is not allowed: it must be at least 2")
        self._min_documents, self._where = min_documents, where
        self._counts: Counter[int] = Counter()
        self._seen: set[int] = set()

    def add(self, document: int, lines: Iterable[int]) -> None:
        """Count a document, given as `text_hash` and `line_hashes`."""
        if document not in self._seen:
            self._seen.add(document)
            self._counts.update(lines)

    def boilerplate(self) -> Boilerplate:
        """Return the lines that occur in enough documents."""
        keys = frozenset(key for key, count in self._counts.items() if count >= self._min_documents)
        return Boilerplate(keys, self._where)


def boilerplate_lines(documents: Iterable[dict], min_documents: int = 20, where: Where = "edges") -> Boilerplate:
    """Find the lines that occur in at least `min_documents` different documents.

    Args:
        documents: Dicts with a str under "text".
        min_documents, where: See `LineCounter`.
    """
    counter = LineCounter(min_documents, where)
    for document in documents:
        counter.add(text_hash(document["text"]), line_hashes(document["text"], where))
    return counter.boilerplate()


def line_hashes(text: str, where: Where) -> set[int]:
    """Return the hashes of the lines of a document that may be boilerplate."""
    lines = [line for line in text.split("\n") if line.strip()]
    if where == "edges":
        lines = lines if len(lines) <= 2 * EDGE_LINES else lines[:EDGE_LINES] + lines[-EDGE_LINES:]
        lines = [line for line in lines if not _PROGRAM.match(line)]
    keys = {line_key(line) for line in lines}
    return {text_hash(key) for key in keys if where == "edges" or len(key) >= MIN_CHARS}


def text_hash(text: str) -> int:
    """Return a 64-bit hash of a text."""
    # Eight bytes instead of the text of a line: a corpus has millions of different lines.
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _width(text: str) -> int:
    return sum(2 if ord(character) >= 0x2E80 else 1 for character in text)
