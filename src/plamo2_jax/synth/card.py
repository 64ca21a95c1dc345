"""Data cards: README.md with YAML front matter as on the Hugging Face Hub, and card.json with the same numbers."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import heapq
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plamo2_jax.storage import write_whole
from plamo2_jax.synth.diversity import DiversityMeter
from plamo2_jax.synth.stage import StageReport, text_of

JSON, MARKDOWN = "card.json", "README.md"
_EXAMPLES = 2
_SHOWN = 400
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_COUNTED = ("recipe", "language", "license", "generator", "generation", "kind")


@dataclasses.dataclass
class CardStatistics:
    """Statistics of the records of a data set. They do not depend on the order of the records."""

    counts: dict[str, collections.Counter[str]] = dataclasses.field(
        default_factory=lambda: {name: collections.Counter() for name in _COUNTED}
    )
    usage: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Sums of the numbers in `usage`."""
    meters: dict[str, DiversityMeter] = dataclasses.field(default_factory=dict)
    """Diversity by recipe."""
    _examples: dict[str, list[tuple[int, str]]] = dataclasses.field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record in the form of `Record.to_json`."""
        recipe = record["recipe"]["name"]
        values = {
            "recipe": f"{recipe} {record['recipe']['version']}",
            "language": record["language"],
            "license": record["license"],
            "generator": f"{record['generator']['name']} ({record['generator']['license']})",
            "generation": str(record["generation"]),
            "kind": record["kind"],
        }
        for name, value in values.items():
            self.counts[name][value] += 1
        for name, value in record["usage"].items():
            self.usage[name] += value
        self.meters.setdefault(recipe, DiversityMeter()).add(record)
        rank = int.from_bytes(hashlib.blake2b(str(record["id"]).encode(), digest_size=8).digest(), "big")
        examples = self._examples.setdefault(recipe, [])
        heapq.heappush(examples, (-rank, text_of(record)[:_SHOWN]))
        if len(examples) > _EXAMPLES:
            heapq.heappop(examples)

    @property
    def records(self) -> int:
        """Number of records."""
        return self.counts["kind"].total()

    def examples(self) -> dict[str, list[str]]:
        """Return the beginnings of a few texts of each recipe, which a hash of their ids selects."""
        return {name: [text for _, text in sorted(some, reverse=True)] for name, some in sorted(self._examples.items())}


def card_content(
    name: str, statistics: CardStatistics, reports: Mapping[str, StageReport], *, currency: str = ""
) -> dict[str, Any]:
    """Return the contents of card.json.

    Args:
        name: name of the data set.
        statistics: statistics of its records.
        reports: counts by name of the stage.
        currency: currency of the costs.
    """
    usage = {key: round(value, 6) for key, value in sorted(statistics.usage.items())}
    return {
        "name": name,
        "records": statistics.records,
        "counts": {key: dict(sorted(counts.items())) for key, counts in statistics.counts.items()},
        "stages": {key: report.to_json() for key, report in reports.items()},
        "usage": usage | ({"currency": currency} if currency else {}),
        "diversity": {key: meter.measure().to_json() for key, meter in sorted(statistics.meters.items())},
        "examples": statistics.examples(),
    }


def write_card(folder: Path, content: Mapping[str, Any]) -> None:
    """Write card.json and README.md of `card_content` into an existing folder."""
    write_whole(folder / JSON, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    write_whole(folder / MARKDOWN, markdown(content).encode())


def markdown(content: Mapping[str, Any]) -> str:
    """Return the data card of `card_content` as Markdown with YAML front matter."""
    counts = content["counts"]
    front = {
        "pretty_name": content["name"],
        "language": sorted(language for language in counts["language"]),
        **_front_license(list(counts["license"])),
        "size_categories": [next((size for most, size in _SIZES if content["records"] < most), "n>1M")],
        "tags": ["synthetic"],
        "configs": [
            {"config_name": kind, "data_files": f"{kind}_*.jsonl"}
            for kind in ("text", "messages")
            if kind in counts["kind"]
        ],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---",
        f"# {_line(content['name'])}",
        f"{content['records']:,} synthetic records, made with `plamo2 synth`. Every record names its sources, its recipe, its generator "
        "and its licence.",
    ]
    for name, title in zip(
        _COUNTED, ("Recipes", "Languages", "Licences", "Generators", "Generations", "Kinds"), strict=True
    ):
        rows = [(value, f"{count:,}") for value, count in counts[name].items()]
        parts += [f"## {title}", _table((title[:-1], "records"), rows)]
    refused = [
        (stage, reason, f"{count:,}")
        for stage, report in content["stages"].items()
        for reason, count in report["refused"].items()
    ]
    flow = [
        (stage, f"{report['records']['in']:,}", f"{report['records']['out']:,}")
        for stage, report in content["stages"].items()
    ]
    if flow:
        parts += ["## Stages", _table(("stage", "records in", "records out"), flow)]
    if refused:
        parts += ["## Refused records", _table(("stage", "reason", "records"), refused)]
    parts += ["## Cost", _table(("quantity", "sum"), [(key, f"{value}") for key, value in content["usage"].items()])]
    columns = ("recipe", "distinct-4", "self-similarity", "compression ratio", "most common opening")
    rows = [
        (
            recipe,
            f"{one['distinct']['4']:.3f}",
            f"{one['self_similarity']:.3f}",
            f"{one['compression_ratio']:.2f}",
            f"{one['top_opening']['share']:.1%}",
        )
        for recipe, one in content["diversity"].items()
    ]
    parts += ["## Diversity", _table(columns, rows), "## Examples"]
    for recipe, texts in content["examples"].items():
        parts += [f"### {_line(recipe)}", *("\n".join(f"> {line}" for line in text.splitlines()) for text in texts)]
    return "\n\n".join(parts) + "\n"


def _front_license(licenses: list[str]) -> dict[str, Any]:
    """Return the licence fields of the front matter. The Hub has names in lower case, and `other` for anything else."""
    if len(licenses) == 1 and " " not in licenses[0] and licenses[0] != "unknown":
        return {"license": licenses[0].lower()}
    return {"license": "other", "license_name": ", ".join(sorted(licenses)) or "none"}


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(_line, line))} |" for line in lines)


def _line(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
