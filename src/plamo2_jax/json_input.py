"""Parsing JSON that this process did not write itself, such as files of models, runs, journals and reports.

`json.loads` accepts NaN, repeated keys and unpaired surrogates, and for deep nesting and long numbers it raises exceptions that name no
file. This module raises one error with one sentence for each. A limit on the file size bounds memory.
"""

from __future__ import annotations

import collections
import json
import math
import os
import sys
from typing import Any, NoReturn

from plamo2_jax.errors import PlamoError
from plamo2_jax.storage import located

MAX_BYTES = 256 << 20
"""Default size limit of a JSON file, in bytes. The index of the largest sharded checkpoints has a few MB."""
MAX_DEPTH = 100
"""Deepest allowed nesting of arrays and objects."""


def parse_json(data: bytes | str, where: str, *, error: type[PlamoError] = PlamoError) -> Any:
    """Parse one JSON value.

    Args:
        data: UTF-8 bytes, with or without a byte order mark, or text.
        where: Name of the source in error messages: a file, or a file and a line.

    Raises:
        error: `data` is not UTF-8 or not JSON, nests deeper than MAX_DEPTH, repeats a key, or holds a number or a character that
            standard JSON does not have: NaN, infinity, a number too large for float64, an unpaired surrogate.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        value = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant, parse_float=_finite_float
        )
        # A text with few brackets cannot nest too deep. This holds for most files.
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth([value], MAX_DEPTH + 1)
        if "\\ud" in text or "\\uD" in text:
            _refuse_half_characters(value)
    except RecursionError:
        raise error(f"{where} is not valid JSON: it nests more than {MAX_DEPTH} levels deep") from None
    except UnicodeDecodeError as problem:
        raise error(f"{where} is not valid JSON: it is not UTF-8 ({problem.reason} at byte {problem.start})") from None
    except ValueError as problem:
        raise error(f"{where} is not valid JSON: {json_problem(problem)}") from None
    return value


def json_problem(error: ValueError) -> str:
    """Describe the problem with a JSON text, given an error of `json.loads`."""
    if "set_int_max_str_digits" in str(error):  # Python's own message addresses programmers, not users.
        return f"a number has more than {sys.get_int_max_str_digits():,} digits"
    return str(error)[:200]


def read_json_file(
    path: str | os.PathLike[str], *, error: type[PlamoError] = PlamoError, max_bytes: int = MAX_BYTES
) -> Any:
    """Read and parse a JSON file on this machine or in a bucket.

    Raises:
        error: The file is missing, not a regular file, unreadable, larger than `max_bytes` bytes, or not valid JSON by the rules of
            `parse_json`. The message names the file.
    """
    path = located(path)
    try:
        if not path.exists():
            raise error(f"{path} does not exist")
        if not path.is_file():
            raise error(f"{path} is not a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from problem
    if len(data) > max_bytes:
        raise error(f"{path} is too large for a JSON file of this kind: at most {max_bytes:,} bytes are allowed")
    return parse_json(data, str(path), error=error)


def read_json_object(
    path: str | os.PathLike[str], *, error: type[PlamoError] = PlamoError, max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """Read a JSON file that must hold an object. Arguments and errors are the same as for `read_json_file`."""
    value = read_json_file(path, error=error, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise error(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(name, _)] = collections.Counter(name for name, _ in pairs).most_common(1)
        raise PlamoError(f"the key {name[:80]!r} occurs twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise PlamoError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise PlamoError(f"the number {text[:40]} is too large for a float64")
    return value


def _check_depth(value: Any, levels: int) -> None:
    if levels == 0:
        raise RecursionError
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, dict | list):
            _check_depth(child, levels - 1)


def _refuse_half_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise PlamoError("a string holds an unpaired surrogate") from None
