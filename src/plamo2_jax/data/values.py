"""Conversion of a record's fields to JSON values."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import uuid
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from plamo2_jax.data.documents import UnreadableRecord

MAX_DEPTH = 64
NOT_FINITE = "NaN or infinity became null"
NOT_TEXT = "omitted: bytes that are not text in the field"
_DROP = object()


def plain_fields(
    fields: Mapping[str, Any], changes: Counter[str] | None = None, texts: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of a record with JSON values.

    Bytes and decimals become text, and dates become ISO 8601. NaN and infinity become null. Bytes that are not UTF-8 are omitted.

    Args:
        fields: Values by name.
        changes: Counter of losses.
        texts: Names of fields whose bytes must be UTF-8.

    Raises:
        UnreadableRecord: A text holds an unpaired surrogate or is not UTF-8, or the values nest too deeply.
    """
    for name in texts:
        if isinstance(fields.get(name), bytes):
            try:
                fields[name].decode("utf-8")
            except UnicodeDecodeError as error:
                raise UnreadableRecord("invalid UTF-8", f"byte {error.start} of the field {name!r}") from None
    return _mapping(fields, "", 0, Counter() if changes is None else changes)


def _mapping(values: Mapping[Any, Any], path: str, depth: int, changes: Counter[str]) -> dict[str, Any]:
    plain = {}
    for name, value in values.items():
        name = name if isinstance(name, str) else str(name)
        if not name.isascii():
            _check_text(name, f"the name of a field of {path}" if path else "the name of a field")
        value = _plain(value, f"{path}.{name}" if path else name, depth, changes)
        if value is not _DROP:
            plain[name] = value
    return plain


def _plain(value: Any, path: str, depth: int, changes: Counter[str]) -> Any:
    if isinstance(value, str):
        _check_text(value, f"the field {path[:80]!r}")
        return value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        changes[NOT_FINITE] += 1
        return None
    if depth >= MAX_DEPTH:
        raise UnreadableRecord("nested too deeply", f"more than {MAX_DEPTH} levels in the field {_top(path)}")
    if isinstance(value, Mapping):
        return _mapping(value, path, depth + 1, changes)
    if isinstance(value, list | tuple):
        plain = [_plain(item, f"{path}[{i}]", depth + 1, changes) for i, item in enumerate(value)]
        return [None if item is _DROP else item for item in plain]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            changes[f"{NOT_TEXT} {_top(path)}"] += 1
            return _DROP
    if hasattr(value, "tolist"):  # Arrays and scalars of NumPy.
        return _plain(value.tolist(), path, depth + 1, changes)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta | decimal.Decimal | uuid.UUID):
        return str(value)
    changes[f"omitted: {type(value).__name__} in the field {_top(path)}"] += 1
    return _DROP


def _top(path: str) -> str:
    """Return the field of the record at the start of a path, for a message."""
    return repr(re.split(r"[.\[]", path, maxsplit=1)[0][:40])


def _check_text(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can write an unpaired surrogate, "\ud800", which no encoding can represent.
        raise UnreadableRecord("lone surrogate", f"character {error.start} of {what}") from None
