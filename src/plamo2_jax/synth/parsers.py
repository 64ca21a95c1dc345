"""Parsers: turn a model's answer into values for the next step of a recipe, or refuse it with a reason.

A parser is a frozen dataclass whose fields are the parameters in a recipe file. Calling it with a text returns a value (a text, a number,
or a list or dict of them), or a `Refusal` whose reason begins with "parse: ". Parsers never raise, and take time linear in the text.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.synth.record import Refusal
from plamo2_jax.validation import require, shown

LONGEST = 1 << 18
"""Largest number of characters of an answer. Longer answers are refused."""
_COLON = ":："
_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]{0,30})[^\n]{0,100}$")
_QUOTES = {'"': '"', "'": "'", "“": "”", "「": "」", "『": "』", "`": "`"}
_BULLET = re.compile(r"^\s{0,12}(?:[-*+•・]|(?:\d{1,3}|[①-⑳])[.)．、）]?)(?:\s+|(?<=[•・.)．、）①-⑳]))(?=\S)")
_EMPHASIS = re.compile(r"^(\*\*|__)(.+)\1$")


class Parser(Protocol):
    """A parser with its parameters."""

    def __call__(self, text: str) -> Any | Refusal:
        """Return the value of an answer, or a refusal."""
        ...


def refuse(reason: str) -> Refusal:
    """Return a refusal by a parser."""
    return Refusal(f"parse: {reason}")


@dataclasses.dataclass(frozen=True)
class Passage:
    """A running text. The value is the text without its prefix."""

    prefix: tuple[str, ...] = ()
    """Allowed beginnings. The answer must have one, with or without emphasis or a heading mark. Empty: any beginning."""
    least_characters: int = 1
    """Shortest text."""
    most_characters: int = LONGEST
    """Longest text."""
    plain: bool = True
    """Remove a code fence or quotation marks around the text, headings and emphasis. False: keep them."""

    def __post_init__(self) -> None:
        _require_texts(self, "prefix")
        _require_range(self, "least_characters", "most_characters")

    def __call__(self, text: str) -> str | Refusal:
        text = text.strip()
        if self.prefix:
            bare = text.lstrip("#>* ")
            found = next((bare[len(one) :].lstrip("*") for one in self.prefix if bare.startswith(one)), None)
            if found is None:
                return refuse("no prefix")
            text = found.strip()
        if self.plain:
            text = _without_markdown(_unwrap(text))
        if len(text) < self.least_characters:
            return refuse("too short")
        return text if len(text) <= self.most_characters else refuse("too long")


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
        _require_texts(self, "question", some=True)
        _require_texts(self, "answer", some=True)
        _require_range(self, "least", "most", 1)

    def __call__(self, text: str) -> list[dict[str, str]] | Refusal:
        labels = {"question": self.question, "answer": self.answer}
        pairs: list[dict[str, str]] = []
        question: str | None = None
        for label, content in _labelled(text, labels):
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
        require(self, "labels", named and all(map(_is_texts, self.labels.values())), "a list of labels by field")
        _require_texts(self, "optional")
        require(self, "optional", set(self.optional) <= set(self.labels), "names of fields in labels")

    def __call__(self, text: str) -> dict[str, str] | Refusal:
        found: dict[str, str] = {}
        for label, content in _labelled(text, self.labels):
            if label is not None and content:
                found.setdefault(label, content)
        for name in self.labels:
            if name not in found and name not in self.optional:
                return refuse(f"no field {name}")
        return {name: found.get(name, "") for name in self.labels}


@dataclasses.dataclass(frozen=True)
class Json:
    """A JSON object or array, in a code block or with text around it. The value is that object or array."""

    required: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Type of each required key of an object: string, number, boolean, array or object. Texts must not be empty."""

    def __post_init__(self) -> None:
        fits = isinstance(self.required, Mapping) and all(one in _TYPES for one in self.required.values())
        require(self, "required", fits, f"types by key, each one of {', '.join(_TYPES)}")

    def __call__(self, text: str) -> Any | Refusal:
        blocks = [body for language, body in code_blocks(text) if language in ("", "json")]
        start = min((place for place in map(text.find, "{[") if place >= 0), default=-1)
        end = max(text.rfind("}"), text.rfind("]"))
        candidates = [*blocks[-1:], text[start : end + 1] if 0 <= start < end else ""]
        for candidate in candidates:
            try:
                value = parse_json(candidate, "answer")
            except PlamoError:
                continue
            if isinstance(value, dict | list):
                break
        else:
            return refuse("no JSON")
        if self.required and not isinstance(value, dict):
            return refuse("not a JSON object")
        for key, kind in self.required.items():
            if not _TYPES[kind](value.get(key)):
                return refuse(f"no {kind} {key}")
        return value


_TYPES = {
    "string": lambda value: isinstance(value, str) and bool(value.strip()),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list) and bool(value),
    "object": lambda value: isinstance(value, dict) and bool(value),
}


@dataclasses.dataclass(frozen=True)
class Items:
    """A list with bullets or numbers. The value is the list of the texts, without repeated ones."""

    least: int = 1
    """Smallest number of items."""
    most: int = 100
    """Largest number of items; further items are dropped."""
    least_characters: int = 1
    """Shortest item. Shorter ones are dropped."""

    def __post_init__(self) -> None:
        _require_range(self, "least", "most", 1)
        _require_range(self, "least_characters", None, 1)

    def __call__(self, text: str) -> list[str] | Refusal:
        items: list[str] = []
        for line in text.splitlines():
            match = _BULLET.match(line)
            if match is not None:
                items.append(line[match.end() :].strip())
            elif items and line[:1] in (" ", "\t", "　") and line.strip():
                items[-1] += f"\n{line.strip()}"  # The continuation of an item is indented.
        items = [item for item in map(_without_emphasis, dict.fromkeys(items)) if len(item) >= self.least_characters]
        return items[: self.most] if len(items) >= self.least else refuse("too few list items")


@dataclasses.dataclass(frozen=True)
class CodeAndTests:
    """Two code blocks: a program and its tests. The value is a dict with `program` and `tests`."""

    language: tuple[str, ...] = ("python", "py", "")
    """Names of the language after the opening fence; other blocks are ignored."""
    least_asserts: int = 2
    """Smallest number of lines of the tests that begin with `assert` or call a method `assert…`."""

    def __post_init__(self) -> None:
        _require_texts(self, "language", some=True, empty=True)
        _require_range(self, "least_asserts", None, 1)

    def __call__(self, text: str) -> dict[str, str] | Refusal:
        blocks = [body for language, body in code_blocks(text) if language in self.language]
        if len(blocks) < 2:
            return refuse("fewer than two code blocks")
        program, tests = blocks[0], blocks[-1]
        checks = sum(1 for line in tests.splitlines() if re.match(r"\s{0,40}(?:self\.)?assert", line))
        if checks < self.least_asserts:
            return refuse("too few assertions")
        return {"program": program, "tests": tests} if program.strip() else refuse("no program")


@dataclasses.dataclass(frozen=True)
class TableQuestion:
    """A Markdown table with a question and its answer. The value is a dict with `table`, `question` and `answer`."""

    least_rows: int = 2
    """Smallest number of rows below the heading."""
    question: tuple[str, ...] = QaPairs.question
    """Labels of the question."""
    answer: tuple[str, ...] = QaPairs.answer
    """Labels of the answer."""

    def __post_init__(self) -> None:
        _require_range(self, "least_rows", None, 1)
        _require_texts(self, "question", some=True)
        _require_texts(self, "answer", some=True)

    def __call__(self, text: str) -> dict[str, str] | Refusal:
        lines = [line.strip() for line in text.splitlines()]
        starts = [i for i, line in enumerate(lines) if i and _is_table_rule(line) and lines[i - 1].startswith("|")]
        if not starts:
            return refuse("no table")
        first = last = starts[0]
        while last + 1 < len(lines) and lines[last + 1].startswith("|"):
            last += 1
        rows = lines[first - 1 : last + 1]
        if len({_cells(row) for row in rows}) != 1:
            return refuse("rows of the table differ in length")
        if len(rows) - 2 < self.least_rows:
            return refuse("too few rows")
        pairs = QaPairs(self.question, self.answer)("\n".join(lines[last + 1 :]))
        if isinstance(pairs, Refusal):
            pairs = QaPairs(self.question, self.answer)("\n".join(lines[: first - 1]))
        return pairs if isinstance(pairs, Refusal) else {"table": "\n".join(rows), **pairs[0]}


@dataclasses.dataclass(frozen=True)
class Score:
    """A number after a label, or in [[ ]]. The value is the number; the last one of an answer counts."""

    least: float = 0
    """Smallest score."""
    most: float = 5
    """Largest score."""
    labels: tuple[str, ...] = ("Score", "Total score", "点数", "評点", "評価", "スコア", "合計")
    """Labels of the score, followed by a colon."""

    def __post_init__(self) -> None:
        _require_texts(self, "labels", some=True)
        ordered = _is_number(self.least) and _is_number(self.most) and self.least < self.most
        require(self, "most", ordered, f"a number above least={shown(self.least)}")

    def __call__(self, text: str) -> float | Refusal:
        found = re.findall(r"\[\[ ?(\d{1,4}(?:\.\d{1,4})?) ?\]\]", text)
        if not found:
            for label, content in _labelled(text, {"score": self.labels}, lines=True):
                match = label and re.match(
                    r"\D{0,4}(\d{1,4}(?:\.\d{1,4})?)", unicodedata.normalize("NFKC", content[:40])
                )
                if match:
                    found.append(match[1])
        if not found:
            bare = re.fullmatch(r"(\d{1,4}(?:\.\d{1,4})?)(?:点|/\d{1,3})?", text.strip()[:40])
            found = [bare[1]] if bare else []
        if not found:
            return refuse("no score")
        value = float(found[-1])
        return value if self.least <= value <= self.most else refuse("score out of range")


@dataclasses.dataclass(frozen=True)
class FinalAnswer:
    """A solution with a final answer on its last labelled line. The value is a dict with `solution` and `answer`."""

    labels: tuple[str, ...] = ("Answer", "Final answer", "The answer is", "答え", "答", "解答", "最終的な答え")
    """Labels of the answer. The answer may also be in \\boxed{}."""
    number: bool = True
    """Whether the answer must be a number. `answer` is then the number without units and separators, in its shortest form."""
    least_characters: int = 1
    """Shortest solution."""

    def __post_init__(self) -> None:
        _require_texts(self, "labels", some=True)
        _require_range(self, "least_characters", None, 0)

    def __call__(self, text: str) -> dict[str, str] | Refusal:
        boxed = re.findall(r"\\boxed\{([^{}\n]{1,200})\}", text)
        labelled = [
            content for label, content in _labelled(text, {"answer": self.labels}, lines=True) if label and content
        ]
        if not boxed and not labelled:
            return refuse("no final answer")
        answer = boxed[-1] if boxed else _without_emphasis(labelled[-1]).rstrip("。.").strip()
        if self.number:
            number = read_number(answer)
            if number is None:
                return refuse("the final answer is not a number")
            answer = number
        solution = text.strip()
        return (
            {"solution": solution, "answer": answer} if len(solution) >= self.least_characters else refuse("too short")
        )


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several answers, such as yes or no. The value is its name."""

    options: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Texts of each option. The last line of the answer must begin with one of them, in any case."""

    def __post_init__(self) -> None:
        several = isinstance(self.options, Mapping) and len(self.options) >= 2
        require(self, "options", several and all(map(_is_texts, self.options.values())), "texts of two or more options")

    def __call__(self, text: str) -> str | Refusal:
        lines = [line.strip(" \t　*「」\"'[]") for line in text.splitlines()]
        last = next((line.casefold() for line in reversed(lines) if line), "")
        texts = [(one.casefold(), name) for name, some in self.options.items() for one in some]
        # The longest first: "no change" before "no".
        for one, name in sorted(texts, reverse=True, key=lambda pair: len(pair[0])):
            if last.startswith(one):
                return name
        return refuse("no choice")


PARSERS: Mapping[str, type[Any]] = {
    "passage": Passage,
    "qa_pairs": QaPairs,
    "fields": Fields,
    "json": Json,
    "list": Items,
    "code_and_tests": CodeAndTests,
    "table_question": TableQuestion,
    "score": Score,
    "final_answer": FinalAnswer,
    "choice": Choice,
}
"""Parsers by their names in recipe files."""


def make_parser(name: Any, parameters: Mapping[str, Any], where: str) -> Parser:
    """Return a parser.

    Raises:
        PlamoError: the name or a parameter is unknown, or a value is not allowed.
    """
    if not isinstance(name, str) or name not in PARSERS:
        raise PlamoError(f"{where}: the parser {shown(name)} is unknown: it must be one of {', '.join(PARSERS)}")
    known = {field.name: field for field in dataclasses.fields(PARSERS[name])}
    for key, value in parameters.items():
        if key not in known:
            raise PlamoError(f"{where}: the parser {name} has no parameter {shown(key)}: it has {', '.join(known)}")
        kind, fits = _KINDS[str(known[key].type).split("[")[0]]
        if not fits(value):
            raise PlamoError(f"{where}: {key}={shown(value)} is not allowed for the parser {name}: it must be {kind}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    try:
        parser = PARSERS[name](**given)
    except PlamoError as error:
        raise PlamoError(f"{where}: {error}") from None
    return lambda text: parser(text) if len(text) <= LONGEST else refuse("too long")


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


def read_number(text: str) -> str | None:
    """Return the number in a text in its shortest form, such as "1200" for "１，２００円". Return None without a number or with several."""
    text = unicodedata.normalize("NFKC", text[:200])
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text).replace("\N{MINUS SIGN}", "-")
    found = re.findall(r"-?\d+(?:\.\d+)?(?:/\d+)?", text)
    if len(found) != 1:
        return None
    if "/" in found[0]:
        return found[0]
    try:
        return format(Decimal(found[0]).normalize(), "f")
    except InvalidOperation:
        return None


def _labelled(text: str, labels: Mapping[str, Sequence[str]], *, lines: bool = False) -> list[tuple[str | None, str]]:
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


def _unwrap(text: str) -> str:
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


def _without_markdown(text: str) -> str:
    return "\n".join(map(_plain_line, text.splitlines())).strip()


def _plain_line(line: str) -> str:
    bare = re.sub(r"^ {0,3}(?:#{1,6}|>)[ \t]+", "", line)
    bare = re.sub(r"^(\s{0,12})[*+][ \t]+(?=\S)", r"\1- ", bare)
    return re.sub(r"(\*\*|__)(?=\S)([^*_\n]{1,300}?)(?<=\S)\1", r"\2", bare)


def _without_emphasis(text: str) -> str:
    return _EMPHASIS.sub(r"\2", text.strip()).strip()


def _is_table_rule(line: str) -> bool:
    return line.startswith("|") and "---" in line and not line.strip("|-: \t")


def _cells(row: str) -> int:
    return row.replace("\\|", "").strip("|").count("|") + 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) and one.strip() for one in value)
    )


def _require_texts(config: Any, name: str, *, some: bool = False, empty: bool = False) -> None:
    value = getattr(config, name)
    fits = isinstance(value, tuple) and all(isinstance(one, str) and (one or empty) for one in value)
    require(config, name, fits and (value or not some), "a list of texts")


def _require_range(config: Any, least: str, most: str | None, lowest: int = 0) -> None:
    value = getattr(config, least)
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(config, least, whole and value >= lowest, f"a whole number of at least {lowest}")
    if most is not None:
        largest = getattr(config, most)
        whole = isinstance(largest, int) and not isinstance(largest, bool)
        require(config, most, whole and largest >= value, f"a whole number of at least {least}={value}")


# By the beginning of a field's annotation: what a value must be, and whether a value of a YAML file is that.
_KINDS = {
    "tuple": ("a list of texts", lambda value: isinstance(value, list)),
    "Mapping": ("a mapping", lambda value: isinstance(value, dict)),
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", _is_number),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
}
