"""Run a configuration of synthetic data: plan, work units, filters, and the files that training reads.

OUTPUT/plan/             the work units; written before anything is asked
OUTPUT/units/            responses and outcomes of each unit
OUTPUT/records/          JSON lines of the records that passed all stages, README.md (the data card) and card.json
OUTPUT/data/             the mixture with the documents, if the configuration has `mix`
OUTPUT/report.json       counts by reason and what was spent
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax import models
from plamo2_jax.checkpoint import write_json
from plamo2_jax.data.contamination import ContaminationIndex
from plamo2_jax.errors import PlamoError
from plamo2_jax.progress import tqdm
from plamo2_jax.storage import lock_folder, new_folder
from plamo2_jax.synth.card import CardStatistics, card_content, write_card
from plamo2_jax.synth.config import GeneratorConfig, SynthConfig
from plamo2_jax.synth.diversity import check
from plamo2_jax.synth.filters import filter_contaminated, filter_duplicates, filter_records
from plamo2_jax.synth.limits import Budget, LimitedModel, Rate
from plamo2_jax.synth.mix import MixConfig, mix
from plamo2_jax.synth.plan import write_plan
from plamo2_jax.synth.recipe import Recipe
from plamo2_jax.synth.recipe_files import open_recipe
from plamo2_jax.synth.seeds import document_seeds
from plamo2_jax.synth.stage import StageReport
from plamo2_jax.synth.units import JournalSpending, Models, UnitRunner
from plamo2_jax.synth.verify import needs_judge

_POLL = 0.5
_SHARD = 100_000
_STAGES = ("licenses", "clean", "hojichar", "quality", "decontaminate", "deduplicate")


def open_recipes(config: SynthConfig) -> dict[str, Recipe]:
    """Return the recipes by name, without a model.

    Raises:
        PlamoError: a recipe is unknown or damaged, occurs twice, or needs a model that the configuration lacks.
    """
    recipes: dict[str, Recipe] = {}
    for use in config.recipes:
        if use.name in recipes:
            raise PlamoError(f"recipes has {use.name} twice: raise its samples instead")
        recipe = recipes[use.name] = open_recipe(use.name)
        if recipe.uses_model and config.generator is None:
            raise PlamoError(f"the recipe {use.name} needs a model: add generator to the config")
        if needs_judge(recipe.verify) and config.judge is None:
            raise PlamoError(f"the recipe {use.name} has the verification step judge: add judge to the config")
    return recipes


def generate(config: SynthConfig, recipes: Mapping[str, Recipe], *, wait: bool = True) -> dict[str, Any]:
    """Work on all units of the plan that no other worker has. Return what was spent.

    Args:
        config: the configuration.
        recipes: the recipes, of `open_recipes`.
        wait: wait for the units of other workers.

    Raises:
        BudgetSpent: a budget is spent.
        PlamoError: the plan is of another configuration, or a server fails all requests.
    """
    plan, units = config.output / "plan", config.output / "units"
    config.output.mkdir(parents=True, exist_ok=True)
    with _lock_when_free(config.output / ".planning"):
        names = write_plan(config, recipes, plan)
    units.mkdir(exist_ok=True)
    uses_model = any(recipe.uses_model for recipe in recipes.values())
    budget = Budget(config.limits, JournalSpending(units, config))
    opened: list[models.ChatModel] = []

    def open_model(role: str, settings: GeneratorConfig | None) -> models.ChatModel | None:
        if settings is None or not uses_model:
            return None
        fields = {field.name for field in dataclasses.fields(models.ChatModelConfig)}
        plain = models.ChatModelConfig(**{name: getattr(settings, name) for name in fields})
        opened.append(models.open(plain))
        rate = None
        if config.limits.requests_per_minute is not None and opened[-1].parallel:
            rate = Rate(config.output / f".rate-{role}.json", config.limits.requests_per_minute)
        return LimitedModel(opened[-1], settings, budget, rate)

    try:
        both = Models(open_model("generator", config.generator), open_model("judge", config.judge))
        if opened and both.generator is not None:
            recipes = {name: open_recipe(name, model=opened[0]) for name in recipes}
        with tqdm(total=len(names), desc="units", unit="unit") as progress:
            runner = UnitRunner(config, recipes, both, plan, units)
            left = list(names)
            while left:
                busy = []
                for name in left:
                    if runner.work(name):
                        progress.update()
                    else:
                        busy.append(name)
                if len(busy) == len(left):
                    if not wait:
                        break
                    time.sleep(_POLL)
                left = busy
        budget.refresh()
        return dataclasses.asdict(budget.spent)
    finally:
        for model in opened:
            model.close()


def finish(
    config: SynthConfig, recipes: Mapping[str, Recipe], index: ContaminationIndex | None = None
) -> dict[str, Any]:
    """Filter, decontaminate and deduplicate the records of all units, and write them. Return the report.

    Args:
        config: the configuration.
        recipes: the recipes.
        index: evaluation items; None: none.

    Raises:
        PlamoError: a unit is not finished, no record is left, or the records are too similar (`gates`).
    """
    with lock_folder(config.output):
        runner = UnitRunner(config, recipes, Models(), config.output / "plan", config.output / "units")
        names = write_plan(config, recipes, runner.plan)
        made = _Made()
        reports: dict[str, StageReport] = {}
        records: Iterable[dict[str, Any]] = made.records(runner, names)
        records = filter_records(records, config.filters, reports)
        if index is not None:
            records = filter_contaminated(records, index, reports.setdefault("decontaminate", StageReport()))
        if config.deduplicate is not None:
            sources = (seed.text for seed in document_seeds(config.seeds)) if config.seeds.inputs else ()
            report = reports.setdefault("deduplicate", StageReport())
            records = filter_duplicates(records, config.deduplicate, report, texts=sources, folder=config.output)
        statistics = CardStatistics()
        with new_folder(config.output / "records", replace=True) as partial:
            _write_shards(partial, _counted(records, statistics))
            # Recipes without a model repeat their wordings by construction.
            written = {recipe.name for recipe in recipes.values() if recipe.uses_model}
            for name, meter in sorted(statistics.meters.items()):
                if name in written:
                    check(meter.measure(), config.gates, f"the recipe {name}")
            content = card_content(config.output.name, statistics, {k: reports[k] for k in _STAGES if k in reports})
            write_card(partial, content)
        report_json = {"generate": made.to_json(), "records": statistics.records, "stages": content["stages"]}
        if config.mix is not None:
            report_json["mix"] = _mix(config)
        write_json(config.output / "report.json", report_json)
        return report_json


@contextlib.contextmanager
def _lock_when_free(folder: Path) -> Iterator[None]:
    """Lock a folder; wait while another worker has it."""
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(folder))
            except PlamoError:
                time.sleep(_POLL)
                continue
            yield
            return


@dataclasses.dataclass
class _Made:
    """Counts of the outcomes of all entries."""

    entries: int = 0
    failed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    by_recipe: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    spent: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def records(self, runner: UnitRunner, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the records of all units, and count."""
        for name in names:
            for outcome in runner.outcomes(name):
                self.entries += 1
                counts = self.by_recipe.setdefault(outcome["recipe"], collections.Counter())
                self.spent.update(outcome["spent"])
                if "failed" in outcome:
                    self.failed[outcome["failed"]] += 1
                    counts["failed"] += 1
                    continue
                counts.update(records=len(outcome["records"]), refused=len(outcome["refused"]))
                self.refused.update(f"{outcome['recipe']}: {reason}" for reason in outcome["refused"])
                yield from outcome["records"]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON. `spent` is what the stored responses of the outcomes cost."""
        return {
            "entries": self.entries,
            "failed": dict(sorted(self.failed.items())),
            "refused": dict(sorted(self.refused.items())),
            "recipes": {name: dict(sorted(counts.items())) for name, counts in sorted(self.by_recipe.items())},
            "spent": {name: round(value, 9) for name, value in sorted(self.spent.items()) if name != "seconds"},
        }


def _counted(records: Iterable[dict[str, Any]], statistics: CardStatistics) -> Iterator[dict[str, Any]]:
    for record in records:
        statistics.add(record)
        yield record


def _write_shards(folder: Path, records: Iterator[dict[str, Any]]) -> None:
    """Write JSON lines, texts and messages into files of their own, because training reads them apart."""
    files: dict[str, Any] = {}
    counts: collections.Counter[str] = collections.Counter()
    try:
        for record in records:
            kind = record["kind"]
            if counts[kind] % _SHARD == 0:
                if kind in files:
                    files[kind].close()
                files[kind] = (folder / f"{kind}_{counts[kind] // _SHARD:05d}.jsonl").open("w", encoding="utf-8")
            counts[kind] += 1
            files[kind].write(json.dumps(record, ensure_ascii=False) + "\n")
    finally:
        for file in files.values():
            file.close()


def _mix(config: SynthConfig) -> dict[str, Any]:
    assert config.mix is not None
    settings = {field.name: getattr(config.mix, field.name) for field in dataclasses.fields(config.mix)}
    shutil.rmtree(config.output / "data", ignore_errors=True)
    content = mix(
        MixConfig(
            records=(str(config.output / "records"),), documents=config.seeds.inputs, seed=config.seed, **settings
        ),
        config.output / "data",
    )
    return {name: content[name] for name in ("unit", "people", "synthetic", "synthetic_share", "files")}
