"""Dataclasses out of the objects of a YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import shown

T = TypeVar("T")


def read_fields(kind: type[T], given: Any, where: str) -> T:
    """Return a dataclass with the fields of an object. Fields that are dataclasses are read from objects in it.

    Raises:
        PlamoError: a field is unknown, is missing, or has a value of another type.
    """
    if not isinstance(given, Mapping):
        raise PlamoError(f"{where} has {shown(given)}: it must be an object with fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, value in given.items():
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, 1)
            raise PlamoError(
                f"{where} has the field {shown(name)}: it must be one of {', '.join(fields)}"
                + (f". Did you mean {close[0]}?" if close else "")
            )
        values[name] = _value(hints[name], value, f"{where}.{name}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise PlamoError(f"{where}: the field {name} is missing")
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    """Return a value of the annotated type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(next(one for one in arguments if one is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise PlamoError(f"{where} is {shown(value)}: it must be a list")
        return tuple(_value(arguments[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    if origin is typing.Literal:
        if value not in arguments:
            raise PlamoError(f"{where} is {shown(value)}: it must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise PlamoError(f"{where} is {shown(value)}: it must be an object")
        return {str(name): _value(arguments[1], one, f"{where}.{name}") for name, one in value.items()}
    if dataclasses.is_dataclass(hint):
        return read_fields(hint, value, where)  # type: ignore[arg-type]
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    allowed = hint is Any or (isinstance(value, hint) and (hint is bool or not isinstance(value, bool)))
    if not allowed:
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise PlamoError(f"{where} is {shown(value)}: it must be {names.get(hint, hint.__name__)}")
    return value
