"""The questions of Japanese MT-Bench and of ELYZA-tasks-100, with references and criteria for the judge."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.benchmark_files import BUNDLED, data_identity, read_csv, read_rows, sha256

REFERENCE_CATEGORIES = ("coding", "math", "reasoning")
"""Categories of MT-Bench whose answers are judged with a reference answer."""
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""Temperature of MT-Bench's answers by category (FastChat, llm_judge/common.py). The other categories are greedy."""
_MT_BENCH = BUNDLED / "mt_bench_ja"
_ELYZA = ("input", "output", "eval_aspect")


@dataclasses.dataclass(frozen=True)
class Question:
    """A conversation to answer."""

    id: str
    turns: tuple[str, ...]
    """Messages of the user. Each is asked after the answers to those before it."""
    category: str | None = None
    references: tuple[str, ...] = ()
    """Reference answer to each turn; empty if there is none."""
    criteria: str = ""
    """Criteria of this question for the judge."""
    temperature: float = 0.0


def read_mt_bench(path: Path | None) -> tuple[list[Question], dict[str, Any]]:
    """Read the questions of MT-Bench, and the reference answers that are part of this package.

    Args:
        path: JSON lines with question_id, category and turns. None: version 4 of the Japanese questions, part of this package.

    Returns:
        The questions, and their identity for the provenance.

    Raises:
        PlamoError: a record is malformed, or a question has no reference answer that it needs.
    """
    file = path or _MT_BENCH / "question_full-v4.jsonl"
    references = {}
    for where, row in read_rows(_MT_BENCH / "reference_answers.jsonl", {"question_id": int, "choices": list}):
        references[row["question_id"]] = _texts(where, "choices[0].turns", row["choices"][0]["turns"])
    questions = []
    for where, row in read_rows(file, {"question_id": int, "category": str, "turns": list}):
        turns, category = _texts(where, "turns", row["turns"]), row["category"]
        needed = category in REFERENCE_CATEGORIES
        if needed and len(references.get(row["question_id"], ())) != len(turns):
            raise PlamoError(
                f"{where}: question_id {row['question_id']} of the category {category} has no reference answer for each of its "
                f"{len(turns)} turns: only the questions of Japanese MT-Bench (versions 3 and 4) have them"
            )
        reference = references[row["question_id"]] if needed else ()
        temperature = TEMPERATURES.get(category, 0.0)
        questions.append(Question(str(row["question_id"]), turns, category, reference, temperature=temperature))
    return questions, data_identity(file)


def read_elyza(path: Path) -> tuple[list[Question], dict[str, Any]]:
    """Read ELYZA-tasks-100: a CSV file with a header, JSON lines or Parquet, with input, output and eval_aspect.

    Raises:
        PlamoError: a record is malformed.
    """
    if path.suffix == ".csv":
        header, *rows = read_csv(path, len(_ELYZA), f"the columns must be {', '.join(_ELYZA)}") or [("", [])]
        if header[1] != list(_ELYZA):
            raise PlamoError(
                f"{path} has the columns {', '.join(header[1]) or 'none'}: they must be {', '.join(_ELYZA)}"
            )
        records = [dict(zip(_ELYZA, fields, strict=True)) for _, fields in rows]
    else:
        records = [row for _, row in read_rows(path, dict.fromkeys(_ELYZA, str))]
    if not records:
        raise PlamoError(f"{path} has no records: at least one is needed")
    questions = [
        Question(str(i), (row["input"],), references=(row["output"],), criteria=row["eval_aspect"])
        for i, row in enumerate(records, 1)
    ]
    identity = {"data": path.name, "data_sha256": sha256([path])} if path.is_file() else data_identity(path)
    return questions, identity


def _texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    if not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
        raise PlamoError(f"{where}: the field {name!r} must be a list of texts, at least one")
    return tuple(value)
