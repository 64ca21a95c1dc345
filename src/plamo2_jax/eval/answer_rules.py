"""Rules that check an answer automatically.

Rules are a JSON object, such as `{"language": "ja", "characters": [20, 400], "finished": true}`. Each rule gives a score in [0, 1]:

    language     "ja" or "en": the share of letters in the script of this language
    characters   [least, most]: 1 for a length within these bounds; otherwise length / least or most / length
    matches      regular expression: 1 if it matches the whole answer within `PATTERN_SECONDS`
    contains     text or list of texts: the share of these texts that are in the answer
    json         true: 1 if the answer is JSON, in a code block or not. {"name": "type"}: the share of these names in a JSON object whose
                 values have these types
    exact        text: 1 if the answer is this text, after NFKC normalization and folding of white space
    code         {"language": "python", "tests": "..."}: 1 if the tests pass with the last code block (see `plamo2_jax.sandbox`).
                 "names": ["sum"] lists functions of the code that the tests call and that have the name of a Python builtin
    check        {"name": "bullets", "count": 3, "mark": "・"}, or a list of such objects: the share of these checkers that the answer
                 passes. The other fields are the checker's parameters (see `plamo2_jax.checkers` and docs/checkers.md)
    finished     true: 1 if the answer ends by itself, not at the token limit. false: 1 if it does not
"""

from __future__ import annotations

import json
import re
import statistics
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from plamo2_jax import checkers
from plamo2_jax.errors import PlamoError
from plamo2_jax.pattern import matches_whole
from plamo2_jax.sandbox import passes

PATTERN_SECONDS = 1.0
"""Time limit of matching a regular expression against one answer. After it the expression does not match."""
LANGUAGES = ("ja", "en")
JSON_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
    "any": lambda value: True,
}

_JAPANESE = re.compile(
    "[\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f]"
)
_FENCED = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)```", re.DOTALL)


class RuleError(PlamoError):
    """A rule is unknown or malformed; the message names the rule."""


def check_rules(rules: Any) -> Mapping[str, Any]:
    """Check rules, and return them.

    Raises:
        RuleError: a rule is unknown or malformed.
    """
    if not isinstance(rules, Mapping):
        raise RuleError(f'rules must be an object such as {{"language": "ja"}}, not {type(rules).__name__}')
    for name, value in rules.items():
        if name not in _RULES:
            raise RuleError(f"the rule {name!r} is unknown: it must be one of {', '.join(_RULES)}")
        allowed, fits, _ = _RULES[name]
        if not fits(value):
            raise RuleError(f"the rule {name}={repr(value)[:100]} is not allowed: it must be {allowed}")
        if name == "check":
            for checker, parameters in _checks(value):
                try:
                    checkers.validate(checker, parameters)
                except checkers.CheckerError as error:
                    raise RuleError(f"the rule check: {error}") from None
    return rules


def score(
    rules: Mapping[str, Any], answer: str, finished: bool, *, allow_unisolated_code: bool = False
) -> dict[str, float]:
    """Return the score of an answer under each rule, by name of the rule. Scores are in [0, 1].

    Args:
        rules: rules that passed `check_rules`.
        answer: the whole answer.
        finished: whether it ended at a stop token or stop string.
        allow_unisolated_code: run the programs of `code` even if this system cannot isolate them.

    Raises:
        SandboxError: there is a rule `code`, programs cannot be isolated, and `allow_unisolated_code` is false.
    """
    found = {}
    for name, value in rules.items():
        if name == "code":
            found[name] = _code(value, answer, allow_unisolated_code)
        else:
            found[name] = round(_RULES[name][2](value, answer, finished), 6)
    return found


def mean(scores: Mapping[str, float]) -> float:
    """Return the mean over rules, or 1 without rules."""
    return statistics.fmean(scores.values()) if scores else 1.0


def _language(wanted: str, answer: str, finished: bool) -> float:
    letters = [c for c in unicodedata.normalize("NFKC", answer) if c.isalpha()]
    japanese = sum(_JAPANESE.match(c) is not None for c in letters)
    latin = sum(c.isascii() for c in letters)
    return (japanese if wanted == "ja" else latin) / max(1, len(letters))


def _characters(bounds: list[int], answer: str, finished: bool) -> float:
    least, most = bounds
    length = len(answer.strip())
    if length < least:
        return length / least
    return most / length if length > most else 1.0


def _contains(wanted: str | list[str], answer: str, finished: bool) -> float:
    texts = [wanted] if isinstance(wanted, str) else wanted
    return sum(text in answer for text in texts) / len(texts)


def _json(wanted: bool | Mapping[str, str], answer: str, finished: bool) -> float:
    blocks = _FENCED.findall(answer)
    try:
        value = json.loads(blocks[-1][1] if blocks else answer, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return 0.0
    if wanted is True:
        return 1.0
    if not isinstance(value, dict):
        return 0.0
    right = sum(name in value and JSON_TYPES[kind](value[name]) for name, kind in wanted.items())
    return right / max(1, len(wanted))


def _refuse_constant(name: str) -> None:
    raise PlamoError(f"{name} is not JSON")


def _checks(value: Mapping[str, Any] | list[Mapping[str, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    """Return the name and the parameters of each checker."""
    listed = [value] if isinstance(value, Mapping) else value
    return [(one["name"], {key: item for key, item in one.items() if key != "name"}) for one in listed]


def _check(value: Mapping[str, Any] | list[Mapping[str, Any]], answer: str, finished: bool) -> float:
    return statistics.fmean(checkers.check(name, answer, parameters) for name, parameters in _checks(value))


def _is_checks(value: Any) -> bool:
    listed = [value] if isinstance(value, Mapping) else value
    return (
        isinstance(listed, list | tuple)
        and bool(listed)
        and all(isinstance(one, Mapping) and "name" in one for one in listed)
    )


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _code(wanted: Mapping[str, Any], answer: str, allow_unisolated: bool) -> float:
    blocks = [body for name, body in _FENCED.findall(answer) if name.lower() in ("", "py", "python", "python3")]
    if not blocks:
        return 0.0
    return float(passes(blocks[-1], wanted["tests"], names=wanted.get("names", ()), allow_unisolated=allow_unisolated))


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and len(value) <= 2000 and re.compile(value) is not None
    except (re.error, RecursionError, OverflowError):
        return False


def _is_bounds(value: Any) -> bool:
    whole = isinstance(value, list | tuple) and len(value) == 2
    return whole and all(isinstance(n, int) and not isinstance(n, bool) for n in value) and 0 <= value[0] <= value[1]


def _is_texts(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(text, str) and text for text in value)


def _is_fields(value: Any) -> bool:
    return value is True or (
        isinstance(value, Mapping) and all(isinstance(kind, str) and kind in JSON_TYPES for kind in value.values())
    )


def _is_code(value: Any) -> bool:
    if not isinstance(value, Mapping) or value.keys() - {"names"} != {"language", "tests"}:
        return False
    names = value.get("names", [])
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    tests = isinstance(value["tests"], str) and bool(value["tests"].strip())
    return value["language"] == "python" and tests and named


# By name: the allowed values in words, a check of the value, and the score of (value, answer, finished).
_RULES: Mapping[str, tuple[str, Callable[[Any], bool], Callable[[Any, str, bool], float]]] = {
    "language": (
        " or ".join(map(repr, LANGUAGES)),
        lambda value: isinstance(value, str) and value in LANGUAGES,
        _language,
    ),
    "characters": ("[least, most], whole numbers of at least 0", _is_bounds, _characters),
    "matches": (
        "a regular expression of at most 2,000 characters",
        _is_pattern,
        lambda pattern, answer, finished: float(matches_whole(pattern, answer, PATTERN_SECONDS)),
    ),
    "contains": ("a text or a list of texts, none of them empty", _is_texts, _contains),
    "json": (f"true, or an object of names and types ({', '.join(JSON_TYPES)})", _is_fields, _json),
    "exact": (
        "a text that is not empty",
        lambda value: isinstance(value, str) and bool(value.strip()),
        lambda wanted, answer, finished: float(_folded(wanted) == _folded(answer)),
    ),
    "code": (
        '{"language": "python", "tests": "..."} with tests that are not empty, and if need be "names", a list of texts',
        _is_code,
        _code,
    ),
    "check": ('an object such as {"name": "no_comma"}, or a list of such objects', _is_checks, _check),
    "finished": (
        "true or false",
        lambda value: isinstance(value, bool),
        lambda wanted, answer, finished: float(finished == wanted),
    ),
}
