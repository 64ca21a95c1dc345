"""JSON encoding of plain Python values. Decoding runs no code of the sender and returns exact built-in types.

None, booleans, numbers, strings and lists encode as themselves. Every other type encodes as an object with one key, the type's name.
Functions and objects of a program's own classes encode as references, which the callers of `encode` and `decode` create and resolve.
"""

from __future__ import annotations

import datetime
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

MUTABLE = (list, dict, set, bytearray, deque)
"""Types that a function can modify in place."""

_TYPES = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, object)
} | {"NoneType": type(None)}


def _pairs(value: dict[Any, Any]) -> list[Any]:
    return [[key, item] for key, item in dict.items(value)]


# For each type: a function from the value to plainer values, and its inverse.
_KINDS: Mapping[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    complex: (lambda v: [v.real, v.imag], lambda c: complex(*c)),
    bytes: (bytes.hex, bytes.fromhex),
    bytearray: (bytearray.hex, bytearray.fromhex),
    set: (lambda v: list(set.__iter__(v)), set),
    frozenset: (lambda v: list(frozenset.__iter__(v)), frozenset),
    range: (lambda v: [v.start, v.stop, v.step], lambda c: range(*c)),
    OrderedDict: (_pairs, OrderedDict),
    Counter: (_pairs, lambda c: Counter(dict(c))),
    defaultdict: (_pairs, lambda c: defaultdict(None, c)),
    dict: (_pairs, dict),
    deque: (lambda v: [list(deque.__iter__(v)), v.maxlen], lambda c: deque(*c)),
    Decimal: (Decimal.__str__, Decimal),
    Fraction: (lambda v: [v.numerator, v.denominator], lambda c: Fraction(*c)),
    datetime.datetime: (datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    datetime.date: (datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.time: (datetime.time.isoformat, datetime.time.fromisoformat),
    datetime.timedelta: (lambda v: [v.days, v.seconds, v.microseconds], lambda c: datetime.timedelta(*c)),
    uuid.UUID: (lambda v: v.hex, uuid.UUID),
}
_BY_NAME = {kind.__name__: kind for kind in _KINDS}


def _has_methods(kind: type) -> bool:
    """Return whether a class of named tuples defines more than its fields."""
    own = (name for base in kind.__mro__ if base not in tuple.__mro__ for name in vars(base) if name[0] != "_")
    return not set(own) <= {*kind._fields}


def encode(value: Any, refer: Callable[[Any], Any], whole: bool = False) -> Any:
    """Encode a value with JSON types.

    Args:
        value: any object.
        refer: returns the reference (an object with one key) for a value that is not plain, or raises.
        whole: encode instances of subclasses of plain types (`class Stack(list)`) as references. Otherwise they lose their subclass.

    Returns:
        The input of `decode`.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 63 else {"int": hex(value)}
    if kind is float:
        return value if value - value == 0 else {"float": float.__repr__(value)}
    if kind is list:
        return [encode(item, refer, whole) for item in value]
    if kind is tuple:
        return {"tuple": [encode(item, refer, whole) for item in value]}
    if kind in _KINDS:
        return {kind.__name__: encode(_KINDS[kind][0](value), refer, whole)}
    if issubclass(kind, type):
        return {"type": value.__name__} if _TYPES.get(value.__name__) is value else refer(value)
    if issubclass(kind, tuple) and type(getattr(kind, "_fields", None)) is tuple and not (whole and _has_methods(kind)):
        fields, items = list(kind._fields), list(tuple.__iter__(value))
        return {"namedtuple": [kind.__name__, fields, encode(items, refer, whole)]}
    if not whole:
        for base, plain in ((int, int.__index__), (float, float.__float__), (str, str.__str__)):
            if issubclass(kind, base):
                return encode(plain(value), refer)
        for base, plain in ((list, list.__iter__), (tuple, tuple.__iter__)):
            if issubclass(kind, base):
                return encode(base(plain(value)), refer)
        for base in _KINDS:
            if issubclass(kind, base):
                return {base.__name__: encode(_KINDS[base][0](value), refer)}
    return refer(value)


def decode(content: Any, resolve: Callable[[str, Any], Any]) -> Any:
    """Decode a value.

    Args:
        content: the result of `encode`.
        resolve: returns the value of a reference, from its key and content.

    Raises:
        Exception: `content` is not a result of `encode`.
    """
    if isinstance(content, list):
        return [decode(item, resolve) for item in content]
    if not isinstance(content, dict):
        return content
    ((name, inner),) = content.items()
    if name == "int":
        return int(inner, 16)
    if name == "float":
        return float(inner)
    if name == "tuple":
        return tuple(decode(inner, resolve))
    if name == "type":
        return _TYPES[inner]
    if name == "namedtuple":
        title, fields, items = inner
        return namedtuple(title, fields)(*decode(items, resolve))
    if name in _BY_NAME:
        return _KINDS[_BY_NAME[name]][1](decode(inner, resolve))
    return resolve(name, inner)
