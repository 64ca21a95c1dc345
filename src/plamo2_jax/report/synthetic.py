"""Synthetic data in the report of a run: the output folders of `plamo2 synth` inside the run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.storage import is_link

REPORT, RECORDS, CARD = "report.json", "records", "README.md"
_KINDS = {"text": "texts", "messages": "conversations"}


@dataclasses.dataclass(frozen=True)
class SyntheticData:
    """An output folder of `plamo2 synth`, as the page shows it."""

    name: str
    card: str
    """Path of the data card, relative to the run folder."""
    entries: int
    records: int
    recipes: list[tuple[str, int, int, int]]
    """Recipe, records before the filters, refused drafts, failed entries."""
    stages: list[tuple[str, int, int]]
    """Filter, records in, records out."""
    refused: list[tuple[str, int]]
    """Reason and number, of recipes, filters and failures."""
    shares: list[tuple[str, float]]
    """Kind of data, and share of synthetic characters or tokens in its mixture with data that people wrote."""


def read_synthetic(folder: Path, notes: list[str]) -> list[SyntheticData]:
    """Read the folders with synthetic data inside a run folder.

    Args:
        folder: the run folder.
        notes: gets a sentence about each folder that could not be read.
    """
    found = []
    for path in sorted(folder.iterdir()):
        # A link may lead out of the run.
        files = [path, path / REPORT, path / RECORDS, path / RECORDS / CARD]
        if any(is_link(one) for one in files) or not (files[1].is_file() and files[3].is_file()):
            continue
        try:
            found.append(_read(path.name, read_json_object(path / REPORT)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = error if isinstance(error, PlamoError) else "a value is missing or has the wrong type"
            notes.append(f"{path / REPORT} is not the report of plamo2 synth: {reason}")
    return found


def _read(name: str, report: Mapping[str, Any]) -> SyntheticData:
    made, stages = report["generate"], report["stages"]
    refused = [*made["refused"].items(), *((f"failed: {reason}", count) for reason, count in made["failed"].items())]
    refused += [(f"{stage}: {reason}", n) for stage, one in stages.items() for reason, n in one["refused"].items()]
    shares = report.get("mix", {}).get("synthetic_share", {})
    return SyntheticData(
        name=name,
        card=f"{name}/{RECORDS}/{CARD}",
        entries=int(made["entries"]),
        records=int(report["records"]),
        recipes=[
            (recipe, *(int(counts.get(kind, 0)) for kind in ("records", "refused", "failed")))
            for recipe, counts in made["recipes"].items()
        ],
        stages=[(stage, int(one["records"]["in"]), int(one["records"]["out"])) for stage, one in stages.items()],
        refused=[(str(reason), int(count)) for reason, count in refused],
        shares=[(_KINDS.get(kind, kind), float(share)) for kind, share in shares.items()],
    )
