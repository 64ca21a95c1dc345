"""The stages after generation: filters, decontamination, deduplication, and the files that training reads.

OUTPUT/stages/filter/          records that passed the filters; decontaminate/ and deduplicate/ beside it
OUTPUT/records/                JSON lines of the records that passed all stages, README.md (the data card) and card.json
OUTPUT/data/                   the mixture with the documents, if the configuration has `mix`
OUTPUT/report.json             counts by reason, and the cost of the records

A stage whose inputs and settings are unchanged is not run again.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import importlib.util
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.checkpoint import write_json
from plamo2_jax.data.contamination import ContaminationIndex, EvaluationItem
from plamo2_jax.errors import PlamoError
from plamo2_jax.json_input import parse_json
from plamo2_jax.storage import lock_folder
from plamo2_jax.synth.card import CardStatistics, card_content, write_card
from plamo2_jax.synth.config import SynthConfig
from plamo2_jax.synth.diversity import check
from plamo2_jax.synth.filters import filter_contaminated, filter_duplicates, filter_records
from plamo2_jax.synth.finished_stages import Finished, Stages, hash_of, state_of
from plamo2_jax.synth.mix import MixConfig, mix
from plamo2_jax.synth.plan import write_plan
from plamo2_jax.synth.recipe import Recipe
from plamo2_jax.synth.seeds import document_seeds
from plamo2_jax.synth.stage import LATER, Stage, StageReport
from plamo2_jax.synth.units import DONE, Models, UnitRunner

_SHARD = 100_000
_RECORDS = "records.jsonl"
_REPORTS = ("licenses", "clean", "hojichar", "quality", "decontaminate", "deduplicate")


def require_stage(config: SynthConfig, stage: Stage) -> None:
    """Raise a PlamoError if the configuration does not have a stage."""
    fields = {"decontaminate": config.against, "deduplicate": config.deduplicate, "mix": config.mix}
    if stage in fields and not fields[stage]:
        field = "against" if stage == "decontaminate" else stage
        raise PlamoError(
            f"--stage {stage} is not allowed: the config has no `{field}`. Add it, or choose another stage"
        )


def finish(
    config: SynthConfig,
    recipes: Mapping[str, Recipe],
    items: Sequence[EvaluationItem] = (),
    *,
    last: Stage = "mix",
) -> tuple[dict[str, Any] | None, list[str]]:
    """Run the stages after generation that are not finished, up to a stage.

    Args:
        config: the configuration.
        recipes: the recipes.
        items: evaluation items of `against`.
        last: the last stage to run.

    Returns:
        The content of report.json, or None if `last` comes before the stage `write`; and the names of the stages that were finished before.

    Raises:
        PlamoError: a unit is not finished, no record is left, or the records are too similar (`gates`).
    """
    with lock_folder(config.output):
        stages, folder = Stages(config.output), config.output / "stages"
        found = [_filter(stages, config, recipes, folder / "filter")]
        source = folder / "filter" / _RECORDS
        if config.against and _reaches(last, "decontaminate"):
            found.append(_decontaminate(stages, config, items, source, found[-1], folder / "decontaminate"))
            source = folder / "decontaminate" / _RECORDS
        if config.deduplicate is not None and _reaches(last, "deduplicate"):
            found.append(_deduplicate(stages, config, source, found[-1], folder / "deduplicate"))
            source = folder / "deduplicate" / _RECORDS
        if not _reaches(last, "write"):
            return None, stages.skipped
        reports = {name: report for one in found for name, report in one.content["reports"].items()}
        found.append(_write(stages, config, recipes, source, found[-1], reports))
        content = found[-1].content
        report = {"generate": found[0].content["generate"], "records": content["records"], "stages": content["stages"]}
        write_json(config.output / "report.json", report)
        if config.mix is not None and _reaches(last, "mix"):
            if not content["records"]:
                raise PlamoError(f"no record is left to mix: {config.output / 'report.json'} has the reasons")
            report["mix"] = _mix(stages, config, found[-1]).content
            write_json(config.output / "report.json", report)
        return report, stages.skipped


def _reaches(last: Stage, stage: Stage) -> bool:
    return LATER.index(stage) <= LATER.index(last)


def _filter(stages: Stages, config: SynthConfig, recipes: Mapping[str, Recipe], folder: Path) -> Finished:
    runner = UnitRunner(config, recipes, Models(), config.output / "plan", config.output / "units")
    names = write_plan(config, recipes, runner.plan)
    for name in names:
        if not (runner.units / name / DONE).is_file():
            raise PlamoError(f"the unit {name} is not finished: run the command without --stage and --worker")
    filters = config.filters
    inputs = [
        hash_of(runner.units / name / DONE for name in names),
        filters,
        hash_of([filters.quality.model]) if filters.quality is not None and filters.quality.model.is_file() else None,
        importlib.metadata.version("hojichar") if filters.hojichar and _has_hojichar() else None,
    ]

    def write(partial: Path) -> dict[str, Any]:
        made, reports = _Made(), {}
        _write_lines(partial / _RECORDS, filter_records(made.records(runner, names), filters, reports))
        return {"generate": made.to_json(), "reports": {name: one.to_json() for name, one in reports.items()}}

    return stages.run("filter", folder, inputs, write)


def _has_hojichar() -> bool:
    return importlib.util.find_spec("hojichar") is not None


def _decontaminate(
    stages: Stages, config: SynthConfig, items: Sequence[EvaluationItem], source: Path, before: Finished, folder: Path
) -> Finished:
    def write(partial: Path) -> dict[str, Any]:
        report = StageReport()
        index = ContaminationIndex(items, config.contamination)
        _write_lines(partial / _RECORDS, filter_contaminated(_read_lines(source), index, report))
        return {"reports": {"decontaminate": report.to_json()}}

    inputs = [before.digest, config.contamination, [[item.id, list(item.texts)] for item in items]]
    return stages.run("decontaminate", folder, inputs, write)


def _deduplicate(stages: Stages, config: SynthConfig, source: Path, before: Finished, folder: Path) -> Finished:
    settings = config.deduplicate
    assert settings is not None

    def write(partial: Path) -> dict[str, Any]:
        report = StageReport()
        texts = (seed.text for seed in document_seeds(config.seeds)) if config.seeds.inputs else ()
        kept = filter_duplicates(_read_lines(source), settings, report, texts=texts, folder=config.output)
        _write_lines(partial / _RECORDS, kept)
        return {"reports": {"deduplicate": report.to_json()}}

    inputs = [before.digest, settings, config.seeds, state_of(config.seeds.inputs)]
    return stages.run("deduplicate", folder, inputs, write)


def _write(
    stages: Stages,
    config: SynthConfig,
    recipes: Mapping[str, Recipe],
    source: Path,
    before: Finished,
    reports: Mapping[str, Any],
) -> Finished:
    # Recipes without a model repeat their wordings by construction.
    by_models = sorted(recipe.name for recipe in recipes.values() if recipe.uses_model)

    def write(partial: Path) -> dict[str, Any]:
        statistics = CardStatistics()
        _write_shards(partial, _counted(_read_lines(source), statistics))
        for name, meter in sorted(statistics.meters.items()):
            if name in by_models:
                check(meter.measure(), config.gates, f"the recipe {name}")
        some = {name: StageReport.from_json(reports[name]) for name in _REPORTS if name in reports}
        content = card_content(config.output.name, statistics, some)
        write_card(partial, content)
        return {"records": statistics.records, "stages": content["stages"]}

    inputs = [before.digest, config.output.name, config.gates, by_models, reports]
    return stages.run("write", config.output / "records", inputs, write)


def _mix(stages: Stages, config: SynthConfig, before: Finished) -> Finished:
    assert config.mix is not None
    settings = {field.name: getattr(config.mix, field.name) for field in dataclasses.fields(config.mix)}
    given = MixConfig(
        records=(str(config.output / "records"),), documents=config.seeds.inputs, seed=config.seed, **settings
    )

    def write(folder: Path) -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        content = mix(given, folder)
        return {name: content[name] for name in ("unit", "people", "synthetic", "synthetic_share", "files")}

    inputs = [before.digest, given, state_of(given.documents), state_of(given.conversations)]
    return stages.run("mix", config.output / "data", inputs, write, whole=True)


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield parse_json(line, str(path))


@dataclasses.dataclass
class _Made:
    """Counts of the outcomes of all entries."""

    entries: int = 0
    failed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    by_recipe: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    spent: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    wasted: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    """What the stored responses of entries without a record cost, by kind: failed, cut (at max_new_tokens) and refused."""

    def records(self, runner: UnitRunner, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the records of all units, and count."""
        for name in names:
            for outcome in runner.outcomes(name):
                self.entries += 1
                counts = self.by_recipe.setdefault(outcome["recipe"], collections.Counter())
                self.spent.update(outcome["spent"])
                if not outcome.get("records") and any(outcome["spent"].values()):
                    kind = self.wasted.setdefault(_kind_of_waste(outcome), collections.Counter())
                    kind.update({"entries": 1, **outcome["spent"]})
                if "failed" in outcome:
                    self.failed[outcome["failed"]] += 1
                    counts["failed"] += 1
                    continue
                counts.update(records=len(outcome["records"]), refused=len(outcome["refused"]))
                self.refused.update(f"{outcome['recipe']}: {reason}" for reason in outcome["refused"])
                yield from outcome["records"]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON. `spent` is the cost of the stored responses of the outcomes."""
        return {
            "entries": self.entries,
            "failed": dict(sorted(self.failed.items())),
            "refused": dict(sorted(self.refused.items())),
            "recipes": {name: dict(sorted(counts.items())) for name, counts in sorted(self.by_recipe.items())},
            "spent": _rounded(self.spent),
            "wasted": {kind: _rounded(sums) for kind, sums in sorted(self.wasted.items())},
        }


def _kind_of_waste(outcome: Mapping[str, Any]) -> str:
    if "failed" in outcome:
        return "failed"
    return "cut" if set(outcome["refused"]) == {"response: cut at max_new_tokens"} else "refused"


def _rounded(sums: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 9) for name, value in sorted(sums.items()) if name != "seconds"}


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
