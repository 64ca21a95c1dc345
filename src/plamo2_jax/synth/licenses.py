"""Licences of synthetic records: the strictest of the licences of the sources and of the generator.

licenses.yaml lists the conditions of each licence. The licence of a record meets all conditions of all of them. If one of the licences
does, it is the record's licence; otherwise the record's licence is an expression with AND. Some licences do not compose: a share-alike
licence allows no further condition, and a text without permission for adapted works cannot be rephrased. The terms of a model never stand
for the licence of a source. A record keeps its sources, whose authors and notices must still be named.

Names are ids of the SPDX list (https://spdx.org/licenses). The list has no terms of models; their names are this table's own.

Sources of the table:
    Creative Commons: section 3 of CC-BY-4.0, CC-BY-SA-4.0 and the other legal codes; adaptations under a later version: section 4(b) of
        the 3.0 licences; https://creativecommons.org/compatiblelicenses: of the GPL, only version 3 is compatible, with BY-SA 4.0, in one
        direction
    MPL-2.0: sections 1.12 and 3.3 (GPL as secondary licence). ODbL-1.0: section 4.4. Apache-2.0: section 4
    Llama 2 and 3: section 1.b.v of LICENSE in models/llama2 and models/llama3 of https://github.com/meta-llama/llama-models forbids to
        improve other large language models with outputs. Llama 3.1: section 1.b.i of models/llama3_1/LICENSE asks for "Llama" at the
        beginning of the name of a model that was trained on outputs, and for "Built with Llama"; 3.2, 3.3 and 4 repeat it
    Gemma: https://ai.google.dev/gemma/terms: no rights in outputs (section 3.3), but a model trained on them to perform like Gemma is a
        derivative (1.1) that passes on the forbidden uses and a notice (3.1)
    Qwen and Qwen-Research: LICENSE of Qwen2.5-72B-Instruct and of Qwen2.5-3B-Instruct on the Hugging Face Hub, section 4: "Built with
        Qwen" or "Improved using Qwen" on models trained on outputs; Qwen-Research is for research and evaluation
    PLaMo-Community: https://www.preferred.jp/ja/plamo-community-license/: "Built with PLaMo" on published outputs and derivatives,
        "PLaMo" in the names of derived models, conditions for commercial use. Read second hand
    Tencent-Hunyuan: section 5(b). OpenAI and Anthropic: the terms of use forbid the development of competing models. Read second hand
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require, shown

FILE = Path(__file__).with_name("licenses.yaml")
CONDITIONS = (
    "attribution",
    "share-alike",
    "non-commercial",
    "no-derivatives",
    "research-only",
    "restricted-use",
    "model-notice",
    "no-training",
)
UNKNOWN = "unknown"
_MOST_CHOICES = 1024
"""Bounds the time for many expressions with OR."""
_OPERATOR = re.compile(r"\s+(AND|OR)\s+")


class LicenseError(PlamoError):
    """Licences do not allow a record to be written.

    Attributes:
        reason: A few words for counting, such as "unknown".
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class License:
    """A licence or the terms of a model."""

    name: str
    """SPDX id, or a name of licenses.yaml."""
    conditions: frozenset[str] = frozenset()
    joins: frozenset[str] = frozenset()
    """Names of share-alike licences whose works may be shared under this one."""
    also: tuple[str, ...] = ()
    """Names of licences that may be chosen instead of this one."""
    terms: bool = False
    """Whether these are the terms of a model, which are no licence for the works of others."""


@dataclasses.dataclass(frozen=True)
class LicenseConfig:
    """Licences that may be written."""

    allow: tuple[str, ...] = ()
    """Names of licences that are written although the table does not have them ("unknown": those without a licence), or although
    they forbid adapted works or training. The user has checked them."""
    forbid: tuple[str, ...] = ()
    """Conditions that no record may have, such as non-commercial."""

    def __post_init__(self) -> None:
        require(self, "forbid", set(self.forbid) <= set(CONDITIONS), f"among {', '.join(CONDITIONS)}")


@dataclasses.dataclass(frozen=True)
class Composition:
    """The licence of a record."""

    license: str
    """Names joined by AND, as in an SPDX expression."""
    conditions: tuple[str, ...]
    """Conditions in the order of CONDITIONS."""


def compose(names: Iterable[str], config: LicenseConfig | None = None) -> Composition:
    """Return the licence of a work that was made from works with these licences.

    Args:
        names: SPDX expressions or names of the sources' licences and of the generator's.
        config: which licences may be written; None: the defaults.

    Raises:
        LicenseError: a licence is unknown, forbids adapted works or training, has a forbidden condition, or does not compose with another.
    """
    config = config or LicenseConfig()
    problems = []
    # Of licences joined by OR, any may be chosen: take the first choice with the fewest conditions that composes.
    choices = itertools.islice(_choices(sorted(set(names))), _MOST_CHOICES)
    for choice in sorted(choices, key=lambda one: len(frozenset().union(*map(_conditions_of, one)))):
        try:
            return _compose(choice, config)
        except LicenseError as error:
            problems.append(error)
    raise problems[0]


def find(name: str) -> License | None:
    """Return the licence of an SPDX id, a name or an alias, in any case of letters, or None if the table does not have it."""
    return _table().get(name.strip().casefold())


def _compose(names: Sequence[str], config: LicenseConfig) -> Composition:
    allowed = {name.casefold() for name in config.allow}
    found: dict[str, License] = {}
    for name in names:
        license = find(name)
        is_allowed = name.casefold() in allowed or (license is not None and license.name.casefold() in allowed)
        if license is None:
            if not is_allowed:
                raise LicenseError(
                    UNKNOWN,
                    f"the licence {shown(name)} is unknown: records with unknown licences are not written. "
                    f"Declare the licence of the source or of the generator, or add {shown(name)} to "
                    "licenses.allow if you have checked it",
                )
            license = License(name)
        if is_allowed:
            license = dataclasses.replace(license, conditions=license.conditions - {"no-derivatives", "no-training"})
        found[license.name] = license
    for license in found.values():
        for condition, forbids in (("no-derivatives", "adapted works"), ("no-training", "training on its outputs")):
            if condition in license.conditions:
                raise LicenseError(
                    condition,
                    f"the licence {license.name} does not allow {forbids}: remove the sources with this "
                    "licence, or add it to licenses.allow if you have another permission",
                )
        for condition in CONDITIONS:
            if condition in license.conditions and condition in config.forbid:
                raise LicenseError(
                    condition,
                    f"the licence {license.name} has the condition {condition}, which licenses.forbid "
                    "excludes: remove the sources with this licence, or remove the condition from "
                    "licenses.forbid",
                )
    strictest = _strictest(list(found.values()))
    conditions = frozenset().union(*(license.conditions for license in strictest))
    return Composition(
        " AND ".join(license.name for license in strictest), tuple(one for one in CONDITIONS if one in conditions)
    )


def _strictest(licenses: list[License]) -> list[License]:
    """Return the licences that meet the conditions of all others, sorted by name.

    Raises:
        LicenseError: a share-alike licence excludes another licence.
    """
    for shared in licenses:
        if "share-alike" not in shared.conditions:
            continue
        for other in licenses:
            joined = other.name in shared.joins or shared.name in other.joins
            alike = "share-alike" in other.conditions
            if other is not shared and not joined and (alike or not other.conditions <= shared.conditions):
                # Both directions of two share-alike licences give one sentence.
                first, second = sorted((shared.name, other.name))
                raise LicenseError(
                    f"{first} with {second}",
                    f"the licences {first} and {second} do not compose: {shared.name} requires adapted works to have the same licence "
                    "and no further conditions. Make separate records from their sources",
                )
    # Of two licences with the same conditions, one with a notice of its own cannot stand for the other, except permissive ones.
    kept = []
    for license in sorted(licenses, key=lambda one: one.name):
        others = [other for other in licenses if other is not license]
        if not any(_covers(other, license) for other in others):
            kept.append(license)
    return kept


def _covers(strict: License, loose: License) -> bool:
    """Return whether a work under the licence `strict` meets the conditions of `loose`."""
    if loose.name in strict.joins:
        return True
    if strict.terms and loose.conditions:
        return False  # A model's owner cannot give away the rights of others.
    if find(loose.name) is None:
        return False  # Its conditions are not in the table.
    if not loose.conditions:
        # Licences without conditions are covered; of two, the first by name is kept.
        return bool(strict.conditions) or find(strict.name) is None or strict.name < loose.name
    return loose.conditions < strict.conditions and "share-alike" not in loose.conditions


def _choices(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the sets of licences that meet all expressions, one for each way to choose among licences joined by OR."""
    if not names:
        yield ()
        return
    for head in _alternatives(names[0]):
        for rest in _choices(names[1:]):
            yield tuple(sorted({*head, *rest}))


def _alternatives(expression: str) -> list[tuple[str, ...]]:
    """Return the alternatives of an SPDX expression; AND binds closer than OR. Other expressions are one unknown licence."""
    if not expression.strip():
        return [(UNKNOWN,)]
    if license := find(expression):
        return [(expression.strip(),), *((name,) for name in license.also)]
    if "(" in expression or not _OPERATOR.search(expression):
        return [(expression.strip(),)]
    return [
        tuple(part.strip() for part in re.split(r"\s+AND\s+", one)) for one in re.split(r"\s+OR\s+", expression.strip())
    ][:8]


def _conditions_of(name: str) -> frozenset[str]:
    license = find(name)
    return frozenset(CONDITIONS) if license is None else license.conditions


@functools.cache
def _table() -> Mapping[str, License]:
    return read_table(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def read_table(table: Mapping[str, Mapping[str, Any]]) -> dict[str, License]:
    """Check a table of licences, and return the licences by name and alias in lower case.

    Raises:
        PlamoError: a condition is unknown, or two licences have the same name or alias.
    """
    found: dict[str, License] = {}
    for name, entry in table.items():
        conditions = frozenset(entry.get("conditions", ()))
        if not conditions <= set(CONDITIONS):
            wrong = min(conditions - set(CONDITIONS))
            raise PlamoError(f"licences: {name} has the condition {wrong!r}: it must be one of {', '.join(CONDITIONS)}")
        license = License(
            name,
            conditions,
            frozenset(entry.get("joins", ())),
            tuple(entry.get("also", ())),
            bool(entry.get("terms", False)),
        )
        for key in (name, *entry.get("aliases", ())):
            if key.casefold() in found:
                raise PlamoError(f"licences: the name {key!r} occurs twice")
            found[key.casefold()] = license
    return found
