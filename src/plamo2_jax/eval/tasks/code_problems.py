"""Programming problems in the formats of HumanEval, JHumanEval and HumanEval+, and the programs in a model's answers."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.benchmark_files import check_field, read_rows

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Stop sequences of a completion (Chen et al., arXiv:2107.03374)."""
_FIELDS: Mapping[str, type | tuple[type, ...]] = {"task_id": str, "prompt": str, "entry_point": str, "test": str}
_PLUS_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "task_id": str,
    "prompt": str,
    "entry_point": str,
    "canonical_solution": str,
    "base_input": list,
    "plus_input": list,
    "atol": (int, float),
}
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_FENCED = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = ("", "py", "python", "python3")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function to write."""

    id: str
    prompt: str
    """Beginning of a program: imports, helper functions, the function's signature and its docstring."""
    entry_point: str
    """Name of the function."""
    tests: Mapping[str, str]
    """Python source of the tests by the name of their score."""


def read_problems(path: Path) -> list[Problem]:
    """Read problems in the format of HumanEval. A field `prompt_ja` has precedence over `prompt`.

    Raises:
        PlamoError: a record is malformed.
    """
    problems = []
    for where, row in read_rows(path, _FIELDS):
        if "prompt_ja" in row:
            check_field(where, row, "prompt_ja", str)
        prompt = row.get("prompt_ja", row["prompt"])
        tests = {"pass": f"{row['test']}\ncheck({row['entry_point']})"}
        problems.append(_checked(where, Problem(row["task_id"], prompt, row["entry_point"], tests)))
    return _unique(path, problems)


def read_plus_problems(path: Path) -> list[Problem]:
    """Read the problems of HumanEval+. The tests `base` have HumanEval's own inputs, and the tests `plus` the added ones.

    Raises:
        PlamoError: a record is malformed.
    """
    problems = []
    for where, row in read_rows(path, _PLUS_FIELDS):
        for name in ("base_input", "plus_input"):
            if not all(isinstance(given, list) for given in row[name]):
                raise PlamoError(f"{where}: the field {name!r} must be a list of lists of arguments")
        tests = {name: _plus_tests(row, row[f"{name}_input"]) for name in ("base", "plus")}
        problems.append(_checked(where, Problem(row["task_id"], row["prompt"], row["entry_point"], tests)))
    return _unique(path, problems)


def completed(problem: Problem, completion: str) -> str:
    """Return the program of a completion, which ends before the first stop sequence. A server may ignore stop sequences."""
    ends = [end for end in map(completion.find, STOP) if end >= 0]
    return f"{problem.prompt}{completion[: min(ends, default=None)]}"


def answered(problem: Problem, answer: str) -> str:
    """Return the program of a chat answer: imports and helper functions of the prompt, then the last Python code block.

    An answer without a block, or whose last block has no end because the answer was cut off, counts as far as it goes.
    """
    blocks = [body for language, body in _FENCED.findall(answer) if language.lower() in _PYTHON]
    before = problem.prompt.rpartition(f"def {problem.entry_point}(")[0]
    return f"{before}\n{blocks[-1] if blocks else answer}"


def _checked(where: str, problem: Problem) -> Problem:
    if not _IDENTIFIER.fullmatch(problem.entry_point):
        raise PlamoError(f"{where}: entry_point is {problem.entry_point[:40]!r}: it must be the name of a function")
    if f"def {problem.entry_point}(" not in problem.prompt:
        raise PlamoError(f"{where}: the prompt must contain `def {problem.entry_point}(`, the function of entry_point")
    return problem


def _unique(path: Path, problems: list[Problem]) -> list[Problem]:
    ids = [problem.id for problem in problems]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise PlamoError(f"{path} has two problems with the task_id {twice[:40]!r}: each must have its own")
    return problems


def _plus_tests(row: Mapping[str, Any], inputs: list[list[Any]]) -> str:
    """Return tests that compare a function with the canonical solution for all inputs.

    The rules are EvalPlus': results are equal, or for floats close; the root of a polynomial (`find_zero`) is tested by its value.
    The canonical solution runs in the process of the tests, where the program cannot see it.
    """
    settings = {
        "name": row["entry_point"],
        "solution": row["prompt"] + row["canonical_solution"],
        "inputs": json.dumps(inputs),
        "tolerance": row["atol"],
    }
    return f"{_COMPARISON}\n_compare_all({row['entry_point']}, **{settings!r})"


_COMPARISON = """
import copy, json

def _floats(value):
    return isinstance(value, float) or isinstance(value, (list, tuple)) and all(isinstance(one, float) for one in value)

def _close(result, expected, tolerance):
    if isinstance(expected, (list, tuple)):
        pairs = zip(result, expected, strict=True)
        return type(result) is type(expected) and all(_close(one, other, tolerance) for one, other in pairs)
    return abs(result - expected) <= tolerance + 1e-7 * abs(expected)

def _compare_all(function, name, solution, inputs, tolerance):
    reference = {"__name__": "reference"}
    exec(compile(solution, "reference", "exec"), reference)
    for arguments in json.loads(inputs):
        expected = reference[name](*copy.deepcopy(arguments))
        result = function(*copy.deepcopy(arguments))
        if name == "find_zero":
            assert abs(reference["poly"](*arguments, result)) <= tolerance
        elif result != expected:
            allowed = tolerance or (1e-6 if _floats(expected) else 0)
            assert allowed and type(result) is type(expected) and _close(result, expected, allowed)
"""
"""Tests of HumanEval+. They run in the sandbox."""
