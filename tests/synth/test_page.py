"""docs/synthetic_quality.md names every step, parameter and default, and its licences compose as it says."""

import dataclasses
import re
from pathlib import Path

import pytest

from plamo2_jax.synth.diversity import GateConfig
from plamo2_jax.synth.licenses import LicenseError, compose
from plamo2_jax.synth.verify import STEPS

PAGE = (Path(__file__).parents[2] / "docs" / "synthetic_quality.md").read_text(encoding="utf-8")


def rows(heading):
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]


def test_the_steps_are_those_of_the_table():
    table = {row[0].strip().strip("`"): row[2] for row in rows("Verification steps")}
    assert table.keys() == STEPS.keys()
    for name, kind in STEPS.items():
        for field in dataclasses.fields(kind):
            if field.name in ("of", "against"):
                continue
            shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
            simple = isinstance(field.default, int | float) and abs(field.default) < float("inf")
            wanted = f"`{field.name}: {shown}`" if simple else f"`{field.name}"
            assert wanted in table[name], (name, wanted)


@pytest.mark.parametrize("row", rows("Licences"), ids=lambda row: row[0].strip())
def test_licences_compose_as_the_page_says(row):
    names, expected = [name.strip() for name in row[0].split(",")], row[1].strip()
    if expected.startswith("refused"):
        with pytest.raises(LicenseError):
            compose(names)
    else:
        assert compose(names).license == expected


def test_the_limits_of_the_gates_are_the_defaults():
    limits = [float(re.search(r"[\d.]+", row[1]).group()) for row in rows("Gates against collapse")]
    gates = GateConfig()
    assert limits == [
        gates.min_distinct_4,
        gates.max_self_similarity,
        gates.max_compression_ratio,
        gates.max_top_opening,
    ]
