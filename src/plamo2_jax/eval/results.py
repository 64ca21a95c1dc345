"""Read the results of evaluations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.run import ANSWERS, RESULT
from plamo2_jax.json_input import parse_json, read_json_object


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """The result of one task, and the answers to its items."""

    result: Mapping[str, Any]
    """Contents of result.json."""
    answers: Mapping[str, Mapping[str, Any]]
    """Rows of answers.jsonl by the id of the item, in the order of the items."""


def read_results(folder: Path) -> dict[str, TaskResult]:
    """Return the results in a folder that `plamo2 evaluate --output` wrote, by the names of their folders.

    Raises:
        PlamoError: a file cannot be read, is not JSON or lacks fields; or the folder has no result.
    """
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (path / RESULT).is_file():
            found[path.name] = _read(path)
    if not found:
        raise PlamoError(
            f"{folder} has no results: it must be a folder that plamo2 evaluate --tasks ... --output wrote"
        )
    return found


def _read(folder: Path) -> TaskResult:
    result = read_json_object(folder / RESULT)
    try:
        if not all(isinstance(result[name], str) for name in ("task", "metric")):
            raise TypeError
        for name in ("provenance", "metrics", "model", "settings", "versions", "tokens"):
            if not isinstance(result[name], dict):
                raise TypeError
        for metric in result["metrics"].values():
            if not isinstance(metric["value"], int | float) or not isinstance(metric["stderr"], int | float | None):
                raise TypeError
            if not isinstance(metric["n"], int):
                raise TypeError
        for part in ("contaminated", "clean") if "contamination" in result else ():
            found = result["contamination"][part]
            metrics = [found["metrics"][name] for name in found["metrics"] if name == result["metric"]]
            if not isinstance(found["n"], int) or not all(
                isinstance(one["value"], int | float) and isinstance(one["stderr"], int | float | None)
                for one in metrics
            ):
                raise TypeError
        if not isinstance(result["n"], int) or not isinstance(result["failed"], int):
            raise TypeError
    except (KeyError, TypeError):
        raise PlamoError(f"{folder / RESULT} is not a result of plamo2 evaluate: run the evaluation again") from None
    answers = {}
    try:
        with (folder / ANSWERS).open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{folder / ANSWERS}, line {number}"
                row = parse_json(line, where)
                scores = row["scores"] if isinstance(row, dict) else None
                if not (isinstance(scores, dict) and all(isinstance(value, int | float) for value in scores.values())):
                    raise TypeError
                if not all(isinstance(row[name], str) for name in ("id", "question")):
                    raise TypeError
                answers[row["id"]] = row
    except OSError as error:
        raise PlamoError(f"{folder / ANSWERS} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError):
        raise PlamoError(f"{where} is not an answer of plamo2 evaluate: run the evaluation again") from None
    return TaskResult(result, answers)
