"""Typed access to the fields of a JSON request. A field with a wrong type or value raises an error that names the field. null counts as
absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plamo2_jax.serve.errors import invalid
from plamo2_jax.validation import shown


class Fields:
    """The fields of a JSON object.

    Args:
        value: the parsed JSON.
        where: path of the object in the request, such as "stream_options."; empty for the request itself.
    """

    def __init__(self, value: Any, where: str = ""):
        if not isinstance(value, dict):
            name = where.rstrip(".") or None
            raise invalid(name, f"{name or 'the body'} must be a JSON object, not {_kind(value)}")
        self._value, self._where = value, where
        self._read: set[str] = set()
        self._nested: list[Fields] = []

    @property
    def unknown(self) -> list[str]:
        """Names of the fields that were not read; fields of nested objects have their path."""
        own = [self._where + name for name in self._value if name not in self._read]
        return own + [name for nested in self._nested for name in nested.unknown]

    def path(self, name: str) -> str:
        """Return the name of a field with the path of its object."""
        return self._where + name

    def get(self, name: str) -> Any:
        """Return a field of any type; None if it is absent."""
        self._read.add(name)
        return self._value.get(name)

    def refuse(self, name: str, allowed: str) -> Exception:
        """Return the error of a field whose value is not allowed; `allowed` ends the sentence "it must be ..."."""
        return invalid(
            self.path(name), f"{self.path(name)}={shown(self.get(name))} is not allowed: it must be {allowed}"
        )

    def boolean(self, name: str, default: bool) -> bool:
        """Return a boolean field."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return default if value is None else value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """Return an integer field in a range. A number such as 3.0 is an integer, as in JSON Schema."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(name, f"an integer from {low} to {high}")
        return value

    def number(
        self,
        name: str,
        default: float,
        low: float | None = None,
        high: float | None = None,
        *,
        above: float | None = None,
    ) -> float:
        """Return a field that is a finite number from `low` to `high`, or greater than `above`."""
        value = self.get(name)
        if value is None:
            return default
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not right or (low is not None and value < low) or (high is not None and value > high):
            raise self.refuse(name, _range(low, high, above))
        if above is not None and value <= above:
            raise self.refuse(name, _range(low, high, above))
        return float(value) if abs(value) < 1e30 else self._too_large(name)

    def _too_large(self, name: str) -> float:
        raise self.refuse(name, "below 1e30")

    def string(self, name: str, default: str | None = None, max_length: int | None = None) -> str | None:
        """Return a text field of at most `max_length` characters."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.refuse(name, "a string")
        if value is not None and max_length is not None and len(value) > max_length:
            raise self.refuse(name, f"a string of at most {max_length} characters")
        return default if value is None else value

    def choice(self, name: str, allowed: Sequence[str], default: str | None = None) -> str | None:
        """Return a field that is one of some strings."""
        value = self.get(name)
        if value is not None and not (isinstance(value, str) and value in allowed):
            raise self.refuse(name, "one of " + ", ".join(allowed))
        return default if value is None else value

    def nested(self, name: str) -> Fields | None:
        """Return the fields of an object; None if it is absent."""
        value = self.get(name)
        if value is None:
            return None
        self._nested.append(Fields(value, f"{self.path(name)}."))
        return self._nested[-1]

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return an object whose keys are free; empty if it is absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(name, "an object")
        return value or {}

    def items(self, name: str, what: str) -> list[Any] | None:
        """Return a field that is an array; None if it is absent. `what` describes the array in the error."""
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            raise self.refuse(name, what)
        return value


def _range(low: float | None, high: float | None, above: float | None) -> str:
    if above is not None:
        return f"a number above {above:g}" + ("" if high is None else f" and at most {high:g}")
    return "a number" + (
        "" if low is None else f" of at least {low:g}" if high is None else f" from {low:g} to {high:g}"
    )


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
