"""Encode frozen dataclasses as JSON with type tags, to send them between two processes without pickle."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError

_TYPE = "__type__"


def encode(value: Any) -> Any:
    """Return the JSON form of a value: dataclasses of this package, paths, tuples, lists, dicts with string keys, and JSON's own types.

    Raises:
        TypeError: the value or a part of it has another type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {_TYPE: name_of(type(value)), **fields}
    if isinstance(value, Path):
        return {_TYPE: "path", "path": str(value)}
    if isinstance(value, tuple):
        return {_TYPE: "tuple", "items": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) and key != _TYPE for key in value):
        return {key: encode(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a value of type {type(value).__name__} cannot be sent to the compiler process: {value!r}")


def decode(value: Any) -> Any:
    """Return the value that `encode` turned into JSON. A dataclass is constructed again, so it checks its fields.

    Raises:
        PlamoError: the JSON names a type that is not a dataclass of this package.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {key: decode(item) for key, item in value.items() if key != _TYPE}
    match value.get(_TYPE):
        case None:
            return fields
        case "path":
            return Path(fields["path"])
        case "tuple":
            return tuple(fields["items"])
        case name:
            return named(name, dataclasses.is_dataclass)(**fields)


def name_of(thing: Any) -> str:
    """Return `module:name` of a class or a function of a module."""
    return f"{thing.__module__}:{thing.__qualname__}"


def named(name: str, allowed: Any) -> Any:
    """Return the class or function of this package that `name_of` names.

    Raises:
        PlamoError: it is not part of this package, or `allowed` returns false for it.
    """
    module, _, attribute = name.partition(":")
    if module.split(".")[0] == __name__.split(".")[0]:
        found = getattr(importlib.import_module(module), attribute, None)
        if allowed(found):
            return found
    raise PlamoError(f"{name!r} is not allowed here: it must be a class or a function of plamo2_jax")
