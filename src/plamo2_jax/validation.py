"""Validation of configuration fields, with one form of message."""

from __future__ import annotations

import dataclasses
import numbers
import operator
import reprlib
from typing import Any

from plamo2_jax.errors import PlamoError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6


def is_whole(value: Any) -> bool:
    """Return whether a value is an integer of Python or NumPy, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Return whether a value is a number of Python or NumPy, and no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """Return a value as text for a message, shortened if it is long."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer with more digits than Python converts
        return "an integer of thousands of digits"
    return text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}"


def require(config: Any, name: str, condition: Any, allowed: str, *, where: str | None = None) -> None:
    """Raise an error unless a field of a configuration meets a condition.

    Args:
        config: Usually a dataclass in its `__post_init__`.
        name: Name of the field; a name with dots is a field of a field.
        condition: Whether the value is allowed.
        allowed: End of the sentence "it must be ...".
        where: Name of the configuration in the message; None: its class.

    Raises:
        PlamoError: The condition does not hold. The message names the field, its value and what is allowed.
    """
    if not condition:
        value = shown(operator.attrgetter(name)(config))
        raise PlamoError(f"{where or type(config).__name__}.{name}={value} is not allowed: it must be {allowed}")


def changed_fields(config: Any) -> set[str]:
    """Return the names of the fields of a dataclass whose values differ from their defaults. Required fields are not among them."""
    changed = set()
    for field in dataclasses.fields(config):
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default
        if default is not dataclasses.MISSING and getattr(config, field.name) != default:
            changed.add(field.name)
    return changed


def require_kind(value: Any, kind: type, name: str) -> None:
    """Raise PlamoError unless a value is None or an instance of a class. The message calls the value `name`."""
    if value is not None and not isinstance(value, kind):
        raise PlamoError(f"{name}={shown(value)} is not allowed: it must be of type {kind.__name__}")


def require_at_least(least: int, **options: float | None) -> None:
    """Refuse options of a command that are below a bound; None is allowed.

    Args:
        least: the smallest allowed value.
        options: values by field name; the message calls `batch_size` --batch-size.

    Raises:
        PlamoError: a value is too small.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise PlamoError(f"--{name.replace('_', '-')} {value} is not allowed: it must be at least {least}")
