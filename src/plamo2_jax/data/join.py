"""Addition of fields from other records with the same id, such as scores, or the documents that a synthetic record was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class JoinConfig:
    """What is added to which records.

    Attributes:
        fields: Fields of the other records to add. A field that the record has is replaced.
        key: id: add the fields to the record with the same id. source: add them to the entries of the record's field "source" (a list of
            objects with an id) with the same id.
    """

    fields: tuple[str, ...]
    key: Literal["id", "source"] = "id"

    def __post_init__(self) -> None:
        require(self, "fields", self.fields and "id" not in self.fields, "one or more fields other than id")
        require(self, "key", self.key in ("id", "source"), "id or source")


@dataclasses.dataclass
class JoinReport:
    """Statistics of a join: ids that records ask for, and how many of them have no other record."""

    asked: int = 0
    missing: int = 0


def keys_of(record: Mapping[str, Any], config: JoinConfig) -> list[str]:
    """Return the ids whose fields are added to a record, each once.

    Raises:
        PlamoError: The field "source" is not a list of objects with an id.
    """
    if config.key == "id":
        return [str(record["id"])] if "id" in record else []
    sources = record.get("source", [])
    if not isinstance(sources, list) or not all(isinstance(one, Mapping) and "id" in one for one in sources):
        raise PlamoError(f"record {record.get('id')}: the field source must be a list of objects with an id")
    return list(dict.fromkeys(str(one["id"]) for one in sources))


def addition(record: Mapping[str, Any], config: JoinConfig) -> dict[str, Any]:
    """Return the fields of another record that are added."""
    return {name: record[name] for name in config.fields if name in record}


def only_addition(key: str, additions: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the fields of the other records with one id, or None without such a record.

    Raises:
        PlamoError: There are several such records, and they differ.
    """
    found = None
    for some in additions:
        if found is not None and found != some:
            raise PlamoError(f"several records to join have the id {key[:200]!r} and differ: ids must be unique")
        found = some
    return found


def add_fields(record: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], config: JoinConfig) -> dict[str, Any]:
    """Return the record with the fields of `found`, the additions by id."""
    if config.key == "id":
        return {**record, **found.get(str(record.get("id")), {})}
    if "source" not in record:
        return dict(record)
    return {**record, "source": [{**one, **found.get(str(one["id"]), {})} for one in record["source"]]}


def join(
    records: Iterable[Mapping[str, Any]],
    others: Iterable[Mapping[str, Any]],
    config: JoinConfig,
    report: JoinReport | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the records in order, with the fields of the others. The added fields of all others are held in memory."""
    report = report if report is not None else JoinReport()
    found: dict[str, dict[str, Any]] = {}
    for other in others:
        key, some = str(other.get("id")), addition(other, config)
        found[key] = only_addition(key, [found[key], some] if key in found else [some]) or {}
    for record in records:
        keys = keys_of(record, config)
        report.asked += len(keys)
        report.missing += sum(key not in found for key in keys)
        yield add_fields(record, found, config)
