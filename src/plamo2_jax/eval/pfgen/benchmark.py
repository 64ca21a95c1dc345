"""Reading a checkout of the pfgen-bench repository: questions, references, keywords and example answers. No code of it is run."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.pattern import PatternError, require_pattern

SOURCE = "https://github.com/pfnet-research/pfgen-bench"
"""Where to get the benchmark."""
LICENCE = "Apache-2.0; the reference answers were written by language models, and their licences depend on the model"
"""Licence of the benchmark."""
_MAX_BYTES = 32 << 20
_ID = re.compile(r"Q[0-9]{1,9}")
_LITERAL = "QUESTION_DATA"


@dataclasses.dataclass(frozen=True)
class QuestionFile:
    """A file data/Q*.json that was read and checked."""

    id: str
    """Name of the file without its ending, such as Q01."""
    path: Path
    text: str
    """The question."""
    category: str | None
    """Subject."""
    sha256: str
    """Hexadecimal SHA-256 of the file."""


@dataclasses.dataclass(frozen=True)
class Criteria:
    """What the answers to a question are scored with."""

    keywords: Sequence[Mapping[str, Any]]
    """Trees of keywords: {"t": pattern}, {"and": [...]} or {"or": [...]}, at the root with an optional `importance`."""
    pools: Mapping[str, Sequence[str]]
    """Reference texts by the name of the pool."""


class Benchmark:
    """The questions of a checkout.

    Args:
        folder: the checkout, with data/Q01.json and further files.

    Raises:
        PlamoError: the folder has no question.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        paths = sorted((folder / "data").glob("Q*.json")) if (folder / "data").is_dir() else []
        self._paths = {path.stem: path for path in paths if _ID.fullmatch(path.stem)}
        self._files: dict[str, QuestionFile] = {}
        if not self._paths:
            raise PlamoError(
                f"{folder} has no file data/Q01.json: it must be a checkout of pfgen-bench. Get it from {SOURCE} (licence: {LICENCE})"
            )

    @property
    def questions(self) -> list[QuestionFile]:
        """All questions, in the order of their file names. The files are read at the first use."""
        return [self._read(id) for id in self._paths]

    def find(self, question: str) -> QuestionFile | None:
        """Return the question with an id or a text, or None."""
        if question in self._paths:
            return self._read(question)
        return next((each for each in self.questions if each.text == question), None)

    def examples(self) -> list[tuple[str, str]]:
        """Return the questions and answers for the prompts, from a literal in pfgen.py.

        Raises:
            PlamoError: the file is missing or has no such literal.
        """
        path = self.folder / "pfgen.py"
        literal = _literal(path, _read_bytes(path))
        examples = []
        for number, line in enumerate(literal.strip().split("\n"), 1):
            value = parse_json(line, f"{path}: line {number} of {_LITERAL}")
            if not (
                isinstance(value, dict)
                and isinstance(value.get("question"), str)
                and isinstance(value.get("answer"), str)
            ):
                raise PlamoError(
                    f"{path}: line {number} of {_LITERAL} must be an object with the texts `question` and `answer`"
                )
            examples.append((value["question"], value["answer"]))
        return examples

    def _read(self, id: str) -> QuestionFile:
        if id not in self._files:
            path = self._paths[id]
            value, sha256 = _read_question(path)
            self._files[id] = QuestionFile(id, path, value["question"], value.get("category"), sha256)
        return self._files[id]


def read_criteria(file: QuestionFile) -> Criteria:
    """Read the references and keywords of a question.

    Raises:
        PlamoError: the file is missing or damaged, or has changed since it was first read.
    """
    value, sha256 = _read_question(file.path)
    if sha256 != file.sha256:
        raise PlamoError(f"{file.path} changed while answers were scored: run the command again")
    return Criteria(value["keywords"], value["answers"])


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise PlamoError(
                f"{path} does not exist or is not a file: get pfgen-bench from {SOURCE} (licence: {LICENCE})"
            )
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise PlamoError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > _MAX_BYTES:
        raise PlamoError(f"{path} is too large: at most {_MAX_BYTES >> 20} MiB are allowed")
    return data


def _read_question(path: Path) -> tuple[dict[str, Any], str]:
    """Return the checked contents of a file and its SHA-256."""
    data = _read_bytes(path)
    value = parse_json(data, str(path))
    if not isinstance(value, dict):
        raise PlamoError(f"{path} must be a JSON object with `question`, `keywords` and `answers`")
    if not isinstance(value.get("question"), str) or not value["question"]:
        raise PlamoError(f"{path}: `question` must be a text")
    if not isinstance(value.get("category"), str | None):
        raise PlamoError(f"{path}: `category` must be a text")
    if value.get("question_id", path.stem) != path.stem:
        raise PlamoError(
            f"{path}: `question_id` is {json.dumps(value['question_id'])[:80]}; it must be the name of the file"
        )
    pools = value.get("answers")
    if not isinstance(pools, dict) or not pools:
        raise PlamoError(f"{path}: `answers` must be an object with at least one list of reference texts")
    for name, references in pools.items():
        if (
            not isinstance(references, list)
            or not references
            or not all(isinstance(one, str) and one for one in references)
        ):
            raise PlamoError(f"{path}: `answers` has {name!r}, which must be a list of texts, none of them empty")
    if not isinstance(value.get("keywords"), list):
        raise PlamoError(f"{path}: `keywords` must be a list")
    for number, keyword in enumerate(value["keywords"], 1):
        _check_keyword(keyword, f"{path}: keyword {number}")
        importance = keyword.get("importance", 1.0)
        if isinstance(importance, bool) or not isinstance(importance, int | float):
            raise PlamoError(f"{path}: `importance` of keyword {number} must be a number")
    return value, hashlib.sha256(data).hexdigest()


def _check_keyword(keyword: Any, where: str) -> None:
    if isinstance(keyword, dict) and isinstance(pattern := keyword.get("t"), str):
        try:
            require_pattern(pattern)
        except PatternError as error:
            raise PlamoError(f"{where}: {error}") from None
        return
    parts = keyword.get("and", keyword.get("or")) if isinstance(keyword, dict) and "t" not in keyword else None
    if not isinstance(parts, list) or not parts:
        raise PlamoError(f"{where} must have a text `t`, or a list of keywords `and` or `or`")
    for part in parts:
        _check_keyword(part, where)


def _literal(path: Path, source: bytes) -> str:
    """Return the text that a Python source assigns to QUESTION_DATA, without running it."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PlamoError(f"{path} is not Python source: {str(error)[:200] or type(error).__name__}") from None
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        named = any(isinstance(target, ast.Name) and target.id == _LITERAL for target in targets)
        if named and isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
    raise PlamoError(f"{path} does not assign a text to {_LITERAL}: it must be pfgen.py from {SOURCE}")
