"""The plan: work units of entries, written before the first request.

OUTPUT/plan/NNNNN.jsonl     the entries of a unit: recipe, seed and sample number
OUTPUT/plan/plan.json       hashes of the configuration and of the units; written last
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.storage import new_folder
from plamo2_jax.synth.config import RecipeUse, SynthConfig, digest
from plamo2_jax.synth.finished_stages import files_of, hash_of
from plamo2_jax.synth.recipe import Recipe
from plamo2_jax.synth.record import Seed, Source
from plamo2_jax.synth.rule_recipes.translation import aligned_seeds
from plamo2_jax.synth.seeds import document_seeds, field_seeds, numbered_seeds

PLAN = "plan.json"
_SEEDS = "seed_files"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One use of a recipe."""

    id: str
    recipe: str
    seed: Seed
    sample: int

    def to_json(self) -> dict[str, Any]:
        """Return the entry as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Entry:
        """Return the entry of a JSON object that `to_json` made."""
        seed = content["seed"]
        sources = tuple(Source(**source) for source in seed["sources"])
        return cls(content["id"], content["recipe"], Seed(**{**seed, "sources": sources}), content["sample"])

    def random(self, seed: int) -> np.random.Generator:
        """Return a random generator that depends on the entry and the seed of the run only."""
        return np.random.default_rng([seed, int(self.id, 16)])


def planned_inputs(config: SynthConfig, recipes: Mapping[str, Recipe]) -> str:
    """Return the hash of everything that determines the plan."""
    prompts = {name: [recipe.version, recipe.prompt_sha256] for name, recipe in recipes.items()}
    return digest([config.recipes, config.seeds, config.seed, config.unit_size, prompts])


def write_plan(config: SynthConfig, recipes: Mapping[str, Recipe], folder: Path) -> list[str]:
    """Write the plan unless it exists, and return the names of its units.

    Raises:
        PlamoError: the folder has the plan of another configuration, or no recipe has a seed.
    """
    inputs, documents = planned_inputs(config, recipes), hash_of(files_of([*config.seeds.inputs, *config.seeds.fields]))
    if (folder / PLAN).is_file():
        stored = parse_json((folder / PLAN).read_bytes(), str(folder / PLAN))
        if stored.get("inputs") != inputs:
            raise PlamoError(
                f"{folder} has the plan of a run with other recipes or seeds: choose another output, or delete "
                f"the folder {folder} to plan again. Stored responses to the same requests are reused"
            )
        # Older plans do not record their documents.
        if stored.get(_SEEDS, documents) != documents:
            raise PlamoError(
                f"{folder} has the plan of a run with other contents of seeds.inputs or seeds.fields: restore the files, choose another "
                f"output, or delete the folder {folder} to plan again"
            )
        return [unit["name"] for unit in stored["units"]]
    units: list[dict[str, Any]] = []
    with new_folder(folder) as partial:
        for use in config.recipes:
            for entries in _in_units(entries_of(config, use, recipes[use.name]), config.unit_size):
                name = f"{len(units):05d}"
                content = [entry.to_json() for entry in entries]
                lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in content)
                (partial / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", errors="surrogatepass")
                units.append({"name": name, "recipe": use.name, "entries": len(entries), "hash": digest(content)})
        if not units:
            raise PlamoError(
                "no recipe has a seed: at least one is needed. Check seeds.inputs, seeds.fields and the languages "
                "of the recipes"
            )
        (partial / PLAN).write_text(
            json.dumps({"inputs": inputs, _SEEDS: documents, "units": units}, indent=1) + "\n", encoding="utf-8"
        )
    return [unit["name"] for unit in units]


def read_unit(folder: Path, name: str) -> list[Entry]:
    """Return the entries of a unit."""
    path = folder / f"{name}.jsonl"
    with path.open("rb") as file:
        return [Entry.from_json(parse_json(line, str(path))) for line in file]


def entries_of(config: SynthConfig, use: RecipeUse, recipe: Recipe) -> Iterator[Entry]:
    """Yield the entries of a recipe, in the order of its seeds."""
    for seed in _chosen(config, use, recipe):
        for sample in range(use.samples):
            key = [seed, recipe.name, recipe.version, recipe.prompt_sha256, sample, config.seed]
            yield Entry(digest(key), use.name, seed, sample)


def _chosen(config: SynthConfig, use: RecipeUse, recipe: Recipe) -> Iterator[Seed]:
    """Yield the seeds of a recipe: all that fit it, or the `seeds` ones with the smallest hashes, in their order."""
    if recipe.source == "none":
        yield from numbered_seeds(use.seeds or 1, recipe.language)
        return

    def fitting() -> Iterator[Seed]:
        found = [document_seeds(config.seeds) if recipe.source == "document" else field_seeds(config.seeds)]
        if config.seeds.translations is not None and "translation" in recipe.fields:
            found.append(aligned_seeds(config.seeds.translations))
        for seed in itertools.chain(*found):
            if recipe.source_language in (None, seed.language) and all(name in seed.fields for name in recipe.fields):
                yield seed

    if use.seeds is None:
        yield from fitting()
        return
    ranked = ((digest([config.seed, recipe.name, seed.id]), i) for i, seed in enumerate(fitting()))
    wanted = {i for _, i in heapq.nsmallest(use.seeds, ranked)}
    yield from (seed for i, seed in enumerate(fitting()) if i in wanted)


def _in_units(entries: Iterator[Entry], size: int) -> Iterator[list[Entry]]:
    unit: list[Entry] = []
    for entry in entries:
        unit.append(entry)
        if len(unit) == size:
            yield unit
            unit = []
    if unit:
        yield unit
