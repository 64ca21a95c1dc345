"""Contamination: training documents that contain an item of an evaluation set, and items that a training document contains.

Texts are compared after Unicode NFKC and case folding. Letters, digits and combining marks count; white space, punctuation and symbols do
not. An item is contaminated by a document in one of three ways:

    window     they share 30 consecutive characters (scripts without spaces, such as Japanese) or 13 consecutive words (other text)
    whole      the document contains an item that is shorter than a window
    shingles   the document contains at least half of the 13-character shingles of an item, which may be rearranged

Windows are compared by 64-bit hashes. An index of evaluation items takes about 40 bytes for each of their characters. A hash collision
marks a clean document as contaminated about once in 10^13 characters, for items with 10^6 characters in total.

The lengths were chosen on the bundled corpus: 13 characters of Japanese are shared by two thirds of unrelated pages, and 30 by 0.1 %.
"""

from __future__ import annotations

import collections
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from plamo2_jax.data.documents import Document
from plamo2_jax.data.window_hashes import WORD_BREAK, Presence, Windows, codes_of, has_window, mix, powers, unit_hashes
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require

Rule = Literal["window", "whole", "shingles"]

_STRETCH = 1 << 18
"""Number of characters of a document that are hashed together: 2 MiB for each array."""
_SAMPLE = 20_000
"""Number of characters from which the script of a text is recognised."""
# Scripts written without spaces: Thai, Lao, Myanmar, Khmer, kana (also of half width), Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class ContaminationConfig:
    """Lengths of matches that count as contamination."""

    window_characters: int = 30
    """Number of shared consecutive characters, for items in scripts without spaces."""
    window_words: int = 13
    """Number of shared consecutive words, for other items."""
    shingle: int = 13
    """Number of characters of a shingle."""
    shingle_share: float = 0.5
    """Share of an item's shingles in one document. Items shorter than a window have no shingles."""
    min_characters: int = 8
    """Smallest number of characters of an item. Shorter items are not compared, because unrelated documents contain them."""

    def __post_init__(self) -> None:
        for name in ("window_characters", "window_words", "shingle", "min_characters"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "shingle_share", 0 < self.shingle_share <= 1, "above 0 and at most 1")


@dataclass(frozen=True)
class EvaluationItem:
    """An item of an evaluation set."""

    id: str
    """Name in reports, such as "jmmlu.jsonl, line 3"."""
    texts: tuple[str, ...]
    """The texts of the item, such as question and answer. If none of them fills a window, only the longest one is compared, as a whole."""


@dataclass(frozen=True)
class Match:
    """A document that contaminates an item."""

    item: int
    """Index of the item."""
    rule: Rule
    share: float
    """Share of the item's windows in the document. For `shingles`: share of its shingles."""


@dataclass
class ContaminationReport:
    """Statistics of the removal of contaminated documents.

    Attributes:
        items: Number of evaluation items.
        too_short: Number of items with too few characters to compare.
        matches: Number of matches of document and item by rule. A document may match several items.
        contaminated: Identifiers of the items that at least one document contains.
        first: The first removed documents: their id, and the id, the rule and the share of one of their items.
    """

    items: int = 0
    too_short: int = 0
    documents_in: int = 0
    documents_out: int = 0
    chars_in: int = 0
    chars_out: int = 0
    matches: collections.Counter[str] = field(default_factory=collections.Counter)
    contaminated: dict[str, None] = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the counts, the first twenty removed documents and the first hundred contaminated items as JSON."""
        return {
            "items": {"all": self.items, "too_short": self.too_short, "contaminated": len(self.contaminated)},
            "documents": {"in": self.documents_in, "out": self.documents_out},
            "characters": {"in": self.chars_in, "out": self.chars_out},
            "matches": dict(sorted(self.matches.items())),
            "first": self.first,
            "first_items": list(self.contaminated)[:100],
        }

    def summary(self) -> str:
        """Return a line for a log."""
        short = f", {self.too_short} of them too short to compare" if self.too_short else ""
        return (
            f"removed {self.documents_in - self.documents_out} of {self.documents_in} documents, which contain "
            f"{len(self.contaminated)} of {self.items} evaluation items{short}"
        )


class ContaminationIndex:
    """Index of evaluation items. It can be pickled and used in several threads.

    Args:
        items: Evaluation items.
        config: Lengths of matches.

    Attributes:
        too_short: [items] bool, whether an item has too few characters to compare.

    Raises:
        PlamoError: There is no item.
    """

    def __init__(self, items: Iterable[EvaluationItem], config: ContaminationConfig | None = None):
        self.config = config = config or ContaminationConfig()
        self.ids: list[str] = []
        self._shortest = {"characters": sys.maxsize, "words": sys.maxsize}
        short: list[bool] = []
        beginnings: list[_Text] = []
        # Hashes of windows by rule, kind and length, with the index of their item.
        rows: dict[tuple[Rule, str, int], list[tuple[int, np.ndarray]]] = {}

        def add(rule: Rule, kind: str, length: int, text: _Text) -> None:
            rows.setdefault((rule, kind, length), []).append((len(self.ids), text.hashes(kind, length)))

        for item in items:
            parts = [_Text(text) for text in item.texts]
            long = [part for part in parts if part.length(part.kind) >= self._window(part.kind)]
            for part in long:
                add("window", part.kind, self._window(part.kind), part)
                if part.length("characters") >= config.shingle:
                    add("shingles", "characters", config.shingle, part)
            longest = max(parts, key=lambda part: part.length("characters"), default=_Text(""))
            short.append(not long and longest.length("characters") < config.min_characters)
            if not long and not short[-1]:
                kind = longest.kind_as_whole
                add("whole", kind, longest.length(kind), longest)
                # Only where an item may begin, windows of all lengths are compared.
                self._shortest[kind] = min(self._shortest[kind], longest.length(kind))
                beginnings.append(longest)
            self.ids.append(item.id)
        if not self.ids:
            raise PlamoError("there is no evaluation item: at least one is needed")
        self.too_short = np.array(short)
        self._tables = {key: _Table(some, len(self.ids)) for key, some in rows.items()}
        first = {
            kind: np.unique(
                np.concatenate([text.beginning(kind, length) for text in beginnings if text.kind_as_whole == kind])
            )
            for kind, length in self._shortest.items()
            if length < sys.maxsize
        }
        self._beginnings = {kind: Presence(hashes) for kind, hashes in first.items()}
        # A document without any of these windows contains no item: kind, length, hashes.
        self._needed = [
            (kind, length, table.presence, table.hashes)
            for (rule, kind, length), table in self._tables.items()
            if rule != "whole"
        ] + [(kind, self._shortest[kind], self._beginnings[kind], first[kind]) for kind in first]

    def matches(self, text: str) -> list[Match]:
        """Return the items that a document contains, by rising index. An item has one match, by the first rule that applies."""
        codes = codes_of(text)
        if not self._may_match(codes):  # Most documents.
            return []
        document = _Text(text, codes)
        places: dict[tuple[Rule, str, int], list[np.ndarray]] = {key: [] for key in self._tables}
        for kind in ("characters", "words"):
            keys = [key for key in self._tables if key[1] == kind]
            if not keys:
                continue
            for windows in document.stretches(kind, max(length for _, _, length in keys)):
                starts = None
                if kind in self._beginnings:
                    hashes = windows.hashes(self._shortest[kind])
                    starts = np.flatnonzero(self._beginnings[kind].may_have(hashes))
                for key in keys:
                    found = windows.hashes(key[2], starts if key[0] == "whole" else None)
                    places[key].append(self._tables[key].find(found))
        matches: dict[int, Match] = {}
        # The order of the rules decides which match of an item is returned.
        for rule in ("window", "whole", "shingles"):
            least = self.config.shingle_share if rule == "shingles" else 0.0
            for key, table in self._tables.items():
                if key[0] == rule and any(map(len, places[key])):
                    for item, share in table.shares(np.unique(np.concatenate(places[key])), least):
                        matches.setdefault(item, Match(item, rule, share))
        return [matches[item] for item in sorted(matches)]

    def _may_match(self, codes: np.ndarray) -> bool:
        """Return whether a document has a window that an item has, or that an item begins with."""
        if len(codes) > _STRETCH:  # Only the full comparison has bounded memory.
            return True
        units: dict[str, np.ndarray] = {}
        for kind, length, presence, hashes in self._needed:
            if kind not in units:
                units[kind] = unit_hashes(codes, kind)
            if has_window(units[kind], length, presence, hashes):
                return True
        return False

    def _window(self, kind: str) -> int:
        return self.config.window_words if kind == "words" else self.config.window_characters


def decontaminate(
    documents: Iterable[Document], index: ContaminationIndex, report: ContaminationReport | None = None
) -> Iterator[Document]:
    """Yield the documents that contain no evaluation item, in order.

    Args:
        documents: Training documents.
        index: Evaluation items.
        report: Statistics to update while the iterator runs.
    """
    report = report if report is not None else ContaminationReport()
    report.items, report.too_short = len(index.ids), int(index.too_short.sum())
    for document in documents:
        report.documents_in += 1
        report.chars_in += len(document.text)
        matches = index.matches(document.text)
        for match in matches:
            report.matches[match.rule] += 1
            report.contaminated.setdefault(index.ids[match.item])
        if matches:
            if len(report.first) < 20:
                best = max(matches, key=lambda match: (match.rule != "shingles", match.share))
                report.first.append(
                    {
                        "document": document.id,
                        "item": index.ids[best.item],
                        "rule": best.rule,
                        "share": round(best.share, 4),
                    }
                )
            continue
        report.documents_out += 1
        report.chars_out += len(document.text)
        yield document


def contaminated_items(
    items: Sequence[str], documents: Iterable[str], config: ContaminationConfig | None = None
) -> list[Rule | None]:
    """Return for each evaluation item how a training document contains it, or None if no document does.

    Args:
        items: Texts of the items.
        documents: Texts of the training documents, read once.
        config: Lengths of matches.
    """
    if not items:
        return []
    index = ContaminationIndex((EvaluationItem(str(i), (text,)) for i, text in enumerate(items)), config)
    found: list[Rule | None] = [None] * len(items)
    for text in documents:
        for match in index.matches(text):
            if found[match.item] in (None, "shingles"):
                found[match.item] = match.rule
    return found


def texts_of(record: Mapping[str, Any], fields: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the texts in a record, from the named fields or from all fields, including nested lists and objects."""
    texts: list[str] = []

    def add(value: Any) -> None:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, Mapping):
            for each in value.values():
                add(each)
        elif isinstance(value, list | tuple):
            for each in value:
                add(each)

    for name in fields or record:
        add(record.get(name))
    return tuple(texts)


def normalize(text: str) -> str:
    """Return the text as it is compared, with a space between words. It has letters, digits and combining marks."""
    return "".join(chr(code) if code else " " for code in codes_of(text)).strip()


class _Text:
    """A text as codes of its characters and hashes of its words.

    Args:
        text: The text.
        codes: Its `codes_of`; None: make them.
    """

    def __init__(self, text: str, codes: np.ndarray | None = None):
        codes = codes_of(text) if codes is None else codes
        self._text = text
        self._codes = codes[codes != WORD_BREAK]
        breaks = np.flatnonzero(codes == WORD_BREAK)
        # Positions of the breaks among the kept characters.
        starts = np.unique(np.concatenate([[0], breaks - np.arange(len(breaks))]))
        self._word_starts = starts[starts < len(self._codes)]

    @functools.cached_property
    def kind(self) -> str:
        """The unit of comparison: "characters" if at least a fifth of the text is in a script without spaces, else "words"."""
        # The beginning of a long text is representative.
        unspaced = len(_UNSPACED.findall(self._text, 0, _SAMPLE))
        return "characters" if unspaced >= 0.2 * min(len(self._codes), _SAMPLE) else "words"

    @property
    def kind_as_whole(self) -> str:
        """The unit of comparison of a text that is shorter than a window. Spaces do not matter next to scripts without spaces."""
        return "characters" if _UNSPACED.search(self._text) else "words"

    def length(self, kind: str) -> int:
        """Return the number of characters or words."""
        return len(self._codes if kind == "characters" else self._word_starts)

    def hashes(self, kind: str, length: int) -> np.ndarray:
        """Return the sorted distinct hashes [k] u64 of all windows of `length` characters or words."""
        parts = [windows.hashes(length) for windows in self.stretches(kind, length)]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)

    def beginning(self, kind: str, length: int) -> np.ndarray:
        """Return the hash [1] u64 of the first `length` characters or words."""
        return Windows(self._units(kind, 0, length)).hashes(length)

    def stretches(self, kind: str, longest: int) -> Iterator[Windows]:
        """Yield the windows of the text in stretches. Every window of at most `longest` units is in one of them."""
        for start in range(0, self.length(kind), _STRETCH):
            yield Windows(self._units(kind, start, start + _STRETCH + longest - 1))

    def _units(self, kind: str, start: int, stop: int) -> np.ndarray:
        """Return the hash of each character or word [n] u64 in a range."""
        if kind == "characters":
            return mix(self._codes[start:stop].astype(np.uint64))
        starts = self._word_starts[start:stop]
        ends = np.append(starts[1:], self._word_starts[stop] if stop < len(self._word_starts) else len(self._codes))
        characters = mix(self._codes[starts[0] : ends[-1]].astype(np.uint64))
        place = np.arange(len(characters)) - np.repeat(starts - starts[0], ends - starts)
        # The order of the characters after the 64th does not matter.
        terms = characters * powers(64)[0][np.minimum(place, 63)]
        return mix(np.add.reduceat(terms, starts - starts[0]))


class _Table:
    """Hashes of windows, and the items that have them.

    Args:
        rows: Items with their hashes. An item may occur several times.
        items: Number of items.
    """

    def __init__(self, rows: Sequence[tuple[int, np.ndarray]], items: int):
        hashes = np.concatenate([hashes for _, hashes in rows])
        owners = np.repeat(np.array([item for item, _ in rows], np.int32), [len(hashes) for _, hashes in rows])
        order = np.lexsort((owners, hashes))
        hashes, owners = hashes[order], owners[order]
        kept = np.append(True, (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1]))
        hashes, self._owners = hashes[kept], owners[kept]
        self.hashes, first = np.unique(hashes, return_index=True)
        self._first = np.append(first, len(hashes))
        self._sizes = np.bincount(self._owners, minlength=items)
        self.presence = Presence(self.hashes)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Return the places in the table [k] of those hashes that it has."""
        # Most windows of a document are not in the table, and a search costs far more than a look-up.
        candidates = hashes[self.presence.may_have(hashes)]
        places = np.minimum(np.searchsorted(self.hashes, candidates), len(self.hashes) - 1)
        return places[self.hashes[places] == candidates]

    def shares(self, places: np.ndarray, least: float) -> Iterator[tuple[int, float]]:
        """Yield the items with at least the share `least` of their windows at the distinct places [k], and this share."""
        first = self._first[places]
        counts = self._first[places + 1] - first
        # Concatenate the ranges from `first`.
        owners = self._owners[np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)]
        items, counts = np.unique(owners, return_counts=True)
        shares = counts / self._sizes[items]
        yield from zip(items[shares >= least].tolist(), shares[shares >= least].tolist(), strict=True)
