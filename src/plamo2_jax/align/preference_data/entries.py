"""What a line of the journal, the report and the configuration of preference data hold, checked where they are read.

A process that was killed, a disk and a person can all leave JSON that is no entry. What is none is made anew, or refused; it never gets
as far as the code that trusts it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object

_Fits = Callable[[Any], bool]

CONFIG, REPORT = "config.json", "report.json"
OR_AGAIN = "give another --output, or --again to make it anew"
_LARGEST_REPORT = 64 << 20


def is_entry(entry: Any, samples: int) -> bool:
    """Return whether it is what `plamo2 preference-data` writes in its journal for a prompt.

    Args:
        entry: of JSON.
        samples: answers to each prompt.
    """
    if _has(entry, _FAILED):
        return True
    if not (_has(entry, _ANSWERED) and len(entry["answers"]) == samples):
        return False
    answers = entry["answers"]
    if not all(_has(one, _ANSWER) and one["sample"] == i for i, one in enumerate(answers)):
        return False
    # What can be in a pair has a score.
    if any(one["score"] is None and one["dropped"] is None for one in answers):
        return False
    return all(_has(one, _VERDICT) and _is_pair(one, samples) for one in entry["verdicts"])


def read_report(output: Path) -> dict[str, Any] | None:
    """Return the report of a complete folder; None where it is missing, damaged or of a folder without its other files."""
    if (output / REPORT).is_symlink():
        return None
    try:
        report = read_json_object(output / REPORT, max_bytes=_LARGEST_REPORT)
    except ValueError:
        return None
    whole = _has(report, _REPORT, optional={"code_without_network": _is_flag})
    files = ("answers.jsonl", "pairs.jsonl", "heldout.jsonl")
    return report if whole and all((output / name).is_file() for name in files) else None


def read_identity(output: Path) -> dict[str, Any] | None:
    """Return what a folder was begun with; None where it was not begun.

    Raises:
        ValueError: its config.json is not that of preference data.
    """
    path = output / CONFIG
    if path.is_symlink():
        raise PlamoError(f"{path} is a link: the configuration must be a file of the folder itself; {OR_AGAIN}")
    if not path.exists():
        return None
    try:
        found = read_json_object(path)
    except ValueError as error:
        raise PlamoError(f"{error}; {OR_AGAIN}") from None
    if not _has(found, {"config": _is_object, "prompts": _is_text, "policy": _is_object, "judge": _is_object_or_none}):
        raise PlamoError(
            f"{path} is not the configuration of preference data: it must hold config, prompts, policy and judge; {OR_AGAIN}"
        )
    return found


def _has(found: Any, fields: Mapping[str, _Fits], optional: Mapping[str, _Fits] | None = None) -> bool:
    """Whether it is an object with just these fields, each as it must be."""
    if not isinstance(found, dict):
        return False
    known = {**fields, **(optional or {})}
    return fields.keys() <= found.keys() <= known.keys() and all(known[name](value) for name, value in found.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_object_or_none(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _or_none(fits: _Fits) -> _Fits:
    return lambda value: value is None or fits(value)


def _each(fits: _Fits) -> _Fits:
    """An object all of whose values are that."""
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _is_pair(verdict: Mapping[str, Any], samples: int) -> bool:
    pair, said = verdict["pair"], verdict["said"]
    if not (
        len(pair) == len(said) == 2 and all(_is_count(one) and one < samples for one in pair) and pair[0] < pair[1]
    ):
        return False
    return all(one in ("A", "B", "C", "?") for one in said) and verdict["winner"] in (None, *pair)


_FAILED: Mapping[str, _Fits] = {"id": _is_text, "failed": _is_text, "retries": _is_count}
_ANSWERED: Mapping[str, _Fits] = {"id": _is_text, "answers": _is_list, "verdicts": _is_list}
_ANSWER: Mapping[str, _Fits] = {
    "sample": _is_count,
    "text": _is_text,
    "finished": _is_flag,
    "tokens": _or_none(_is_count),
    "retries": _is_count,
    "dropped": lambda value: (
        value is None or (_is_text(value) and re.fullmatch(r"empty|broken|repeats \d{1,9}", value) is not None)
    ),
    "rules": _each(_is_share),
    "rules_mean": _is_share,
    "judge": _or_none(_is_share),
    "score": _or_none(_is_share),
}
_VERDICT: Mapping[str, _Fits] = {
    "pair": _is_list,
    "said": _is_list,
    "winner": _or_none(_is_count),
    "retries": _is_count,
}
_REPORT: Mapping[str, _Fits] = {
    "prompts": _is_count,
    "prompts_alike": _each(_is_text),
    "failed": _each(_is_text),
    "retries": _is_count,
    "answers": _is_count,
    "answers_dropped": _each(_is_count),
    "answers_finished": _is_count,
    "tokens": _is_count,
    "rules": _each(_is_number_or_none),
    "score": _is_number_or_none,
    "verdicts": _each(_is_count),
    "pairs": _is_count,
    "heldout_pairs": _is_count,
    "prompts_without_pair": _each(_is_count),
    "margin": _is_number_or_none,
    "characters": _each(_is_number_or_none),
}
