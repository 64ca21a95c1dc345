"""Parsers of texts with labels, such as "Q: …" or "Title: …"."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from plamo2_jax.synth.parsers.parser import is_texts, refuse, require_range, require_texts
from plamo2_jax.synth.record import Refusal
from plamo2_jax.validation import require

_COLON = ":："


@dataclasses.dataclass(frozen=True)
class QaPairs:
    """Questions with answers. The value is a list of dicts with `question` and `answer`."""

    question: tuple[str, ...] = ("Q", "Question", "質問", "問", "問題")
    """Labels of a question. A number and a colon may follow."""
    answer: tuple[str, ...] = ("A", "Answer", "回答", "答え", "答", "解答")
    """Labels of an answer."""
    least: int = 1
    """Smallest number of pairs."""
    most: int = 20
    """Largest number of pairs; further pairs are dropped."""

    def __post_init__(self) -> None:
        require_texts(self, "question", some=True)
        require_texts(self, "answer", some=True)
        require_range(self, "least", "most", 1)

    def __call__(self, text: str) -> list[dict[str, str]] | Refusal:
        labels = {"question": self.question, "answer": self.answer}
        pairs: list[dict[str, str]] = []
        question: str | None = None
        for label, content in labelled_parts(text, labels):
            if label == "question":
                question = content
            elif question and content:
                pairs.append({"question": question, "answer": content})
                question = None
        if len(pairs) < self.least:
            return refuse("too few question-answer pairs")
        return pairs[: self.most]


@dataclasses.dataclass(frozen=True)
class Fields:
    """Labelled texts, such as "Title: …". The value is a dict with the names in `labels`."""

    labels: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Labels of each field. A label is at the beginning of a line and followed by a colon. The text goes on until the next label."""
    optional: tuple[str, ...] = ()
    """Fields that may be missing. Their value is then an empty text."""

    def __post_init__(self) -> None:
        named = isinstance(self.labels, Mapping) and self.labels
        require(self, "labels", named and all(map(is_texts, self.labels.values())), "a list of labels by field")
        require_texts(self, "optional")
        require(self, "optional", set(self.optional) <= set(self.labels), "names of fields in labels")

    def __call__(self, text: str) -> dict[str, str] | Refusal:
        found: dict[str, str] = {}
        for label, content in labelled_parts(text, self.labels):
            if label is not None and content:
                found.setdefault(label, content)
        for name in self.labels:
            if name not in found and name not in self.optional:
                return refuse(f"no field {name}")
        return {name: found.get(name, "") for name in self.labels}


def labelled_parts(
    text: str, labels: Mapping[str, Sequence[str]], *, lines: bool = False
) -> list[tuple[str | None, str]]:
    """Return the parts of a text that begin with a label and a colon at the beginning of a line. The first part may have no label.

    Args:
        lines: whether a part ends at the end of its line.
    """
    names = {one.casefold(): name for name, some in labels.items() for one in some}
    # A label may have a number (Q1, 質問 2), emphasis, a heading mark or a bullet around it.
    options = "|".join(re.escape(one) for one in sorted(names, key=len, reverse=True))
    pattern = re.compile(
        rf"[ \t　#>*_\-・【\[]{{0,8}}(?:\d{{1,3}}[.)] ?)?[*_]{{0,2}}({options})[ \t　]?[0-9０-９]{{0,3}}[*_】\]]{{0,3}}[ \t　]?"
        rf"[{_COLON}][*_]{{0,3}}[ \t　]?",
        re.IGNORECASE,
    )
    parts: list[tuple[str | None, list[str]]] = [(None, [])]
    for line in text.splitlines():
        match = pattern.match(line)
        if match is None:
            if lines and parts[-1][0] is not None and parts[-1][1] and parts[-1][1][0]:
                parts.append((None, []))
            parts[-1][1].append(line)
        else:
            parts.append((names.get(match[1].casefold()), [line[match.end() :]]))
    return [(name, "\n".join(some).strip()) for name, some in parts]
