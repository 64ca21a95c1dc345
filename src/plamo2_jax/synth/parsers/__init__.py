"""Parsers: turn a model's answer into values for the next step of a recipe, or refuse it with a reason.

A parser is a frozen dataclass whose fields are the parameters in a recipe file. Calling it with a text returns a value (a text, a number,
or a list or dict of them), or a `Refusal` whose reason begins with "parse: ". Parsers never raise, and take time linear in the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.parsers.blocks import CodeAndTests, Json, TableQuestion
from plamo2_jax.synth.parsers.labels import Fields, QaPairs
from plamo2_jax.synth.parsers.parser import LONGEST, Parser, is_number, refuse
from plamo2_jax.synth.parsers.passages import Items, Passage
from plamo2_jax.synth.parsers.verdicts import Choice, FinalAnswer, Score
from plamo2_jax.validation import shown

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


# By the beginning of a field's annotation: what a value must be, and whether a value of a YAML file is that.
_KINDS = {
    "tuple": ("a list of texts", lambda value: isinstance(value, list)),
    "Mapping": ("a mapping", lambda value: isinstance(value, dict)),
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", is_number),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
}
