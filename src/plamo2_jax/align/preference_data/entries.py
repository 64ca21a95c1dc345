"""Validation of the journal, the report and the configuration of preference data.

A killed process, a damaged disk or a user can leave JSON with other contents. Invalid entries and reports are made again, and an invalid
configuration is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.public_config import is_integer, is_number

_Fits = Callable[[Any], bool]

CONFIG, REPORT = "config.json", "report.json"
OR_AGAIN = "choose another --output, or add --again to start over"
_LARGEST_REPORT = 64 << 20


def is_entry(entry: Any, samples: int) -> bool:
    """Return whether a JSON value is an entry of the journal for a prompt with this number of answers."""
    if _has(entry, _FAILED):
        return True
    if not (_has(entry, _ANSWERED) and len(entry["answers"]) == samples):
        return False
    answers = entry["answers"]
    if not all(_has(one, _ANSWER) and one["sample"] == i for i, one in enumerate(answers)):
        return False
    # An answer that can be in a pair has a score.
    if any(one["score"] is None and one["dropped"] is None for one in answers):
        return False
    return all(_has(one, _VERDICT) and _is_pair(one, samples) for one in entry["verdicts"])


def read_report(output: Path) -> dict[str, Any] | None:
    """Return the report of a complete folder; None if the report is damaged, or if it or another file is missing."""
    if (output / REPORT).is_symlink():
        return None
    try:
        report = read_json_object(output / REPORT, max_bytes=_LARGEST_REPORT)
    except ValueError:
        return None
    whole = _has(report, _REPORT, optional={"code_without_network": _is(bool)})
    files = ("answers.jsonl", "pairs.jsonl", "heldout.jsonl")
    return report if whole and all((output / name).is_file() for name in files) else None


def read_identity(output: Path) -> dict[str, Any] | None:
    """Return the contents of config.json in a folder of preference data; None if there is no such file.

    Raises:
        PlamoError: the file is a link, or no configuration of preference data.
    """
    path = output / CONFIG
    if path.is_symlink():
        raise PlamoError(f"{path} is a symbolic link: the configuration must be a file in the folder; {OR_AGAIN}")
    if not path.exists():
        return None
    try:
        found = read_json_object(path)
    except ValueError as error:
        raise PlamoError(f"{error}; {OR_AGAIN}") from None
    if not _has(found, {"config": _is(dict), "prompts": _is(str), "policy": _is(dict), "judge": _or_none(_is(dict))}):
        raise PlamoError(
            f"{path} is not the configuration of preference data: it must hold config, prompts, policy and judge; {OR_AGAIN}"
        )
    return found


def _has(found: Any, fields: Mapping[str, _Fits], optional: Mapping[str, _Fits] | None = None) -> bool:
    """Return whether a value is an object with exactly these fields, apart from optional ones, and every field is valid."""
    if not isinstance(found, dict):
        return False
    known = {**fields, **(optional or {})}
    return fields.keys() <= found.keys() <= known.keys() and all(known[name](value) for name, value in found.items())


def _is(kind: type) -> _Fits:
    return lambda value: isinstance(value, kind)


def _or_none(fits: _Fits) -> _Fits:
    return lambda value: value is None or fits(value)


def _each(fits: _Fits) -> _Fits:
    """Return a check of an object's values."""
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _is_count(value: Any) -> bool:
    return is_integer(value) and 0 <= value < 1 << 63


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_pair(verdict: Mapping[str, Any], samples: int) -> bool:
    pair, said = verdict["pair"], verdict["said"]
    counts = len(pair) == len(said) == 2 and all(_is_count(one) and one < samples for one in pair)
    if not counts or pair[0] >= pair[1]:
        return False
    return all(one in ("A", "B", "C", "?") for one in said) and verdict["winner"] in (None, *pair)


_FAILED: Mapping[str, _Fits] = {"id": _is(str), "failed": _is(str), "retries": _is_count}
_ANSWERED: Mapping[str, _Fits] = {"id": _is(str), "answers": _is(list), "verdicts": _is(list)}
_ANSWER: Mapping[str, _Fits] = {
    "sample": _is_count,
    "text": _is(str),
    "finished": _is(bool),
    "tokens": _or_none(_is_count),
    "retries": _is_count,
    "dropped": _or_none(
        lambda value: isinstance(value, str) and re.fullmatch(r"empty|broken|repeats \d{1,9}", value) is not None
    ),
    "rules": _each(_is_share),
    "rules_mean": _is_share,
    "judge": _or_none(_is_share),
    "score": _or_none(_is_share),
}
_VERDICT: Mapping[str, _Fits] = {
    **dict.fromkeys(("pair", "said"), _is(list)),
    "winner": _or_none(_is_count),
    "retries": _is_count,
}
_REPORT: Mapping[str, _Fits] = {
    **dict.fromkeys(
        ("prompts", "retries", "answers", "answers_finished", "tokens", "pairs", "heldout_pairs"), _is_count
    ),
    **dict.fromkeys(("answers_dropped", "verdicts", "prompts_without_pair"), _each(_is_count)),
    **dict.fromkeys(("prompts_alike", "failed"), _each(_is(str))),
    **dict.fromkeys(("rules", "characters"), _each(_or_none(is_number))),
    **dict.fromkeys(("score", "margin"), _or_none(is_number)),
}
