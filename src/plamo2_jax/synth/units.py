"""Work units: send the requests of a unit to the models, verify the drafts, and write the result once.

OUTPUT/units/NNNNN/journal.jsonl    every response, so that no request is paid for twice
OUTPUT/units/NNNNN/done.jsonl       the outcome of each entry, in the order of the plan; it appears complete

The bytes of done.jsonl depend on the plan and the responses only, not on interruptions or on the number of workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval import request_json
from plamo2_jax.eval.asking import Asker
from plamo2_jax.eval.run import drive
from plamo2_jax.eval.task import JudgeRequest
from plamo2_jax.journal import Journal
from plamo2_jax.json_input import parse_json
from plamo2_jax.models import ChatModel, ChatResponse, RequestError
from plamo2_jax.storage import write_whole
from plamo2_jax.synth.config import GeneratorConfig, SynthConfig, digest
from plamo2_jax.synth.lease import LeaseLost, lease
from plamo2_jax.synth.limits import Budget, Guard
from plamo2_jax.synth.plan import Entry, read_unit
from plamo2_jax.synth.recipe import Recipe
from plamo2_jax.synth.record import Draft, GeneratorStamp, RecipeStamp, Record, Refusal, Seed, Usage
from plamo2_jax.synth.spending import JOURNAL, Spending
from plamo2_jax.synth.verify import verify

DONE = "done.jsonl"


@dataclasses.dataclass(frozen=True)
class Models:
    """The models of a run. A run with rule-based recipes has none."""

    generator: ChatModel | None = None
    judge: ChatModel | None = None


@dataclasses.dataclass(frozen=True)
class UnitRunner:
    """Works on units.

    Attributes:
        config: the configuration.
        recipes: recipes by name in the configuration.
        models: the models.
        plan: folder of the plan.
        units: folder of the units.
        guard: decides whether requests may be sent and responses may be stored.
        budget: counts the responses that may not be stored; None: there are no models.
        clock: seconds of the clock that stamps the files of `units`.
        on_progress: called with a number of new requests, and the number of requests that have just been answered.
    """

    config: SynthConfig
    recipes: Mapping[str, Recipe]
    models: Models
    plan: Path
    units: Path
    guard: Guard = dataclasses.field(default_factory=Guard)
    budget: Budget | None = None
    clock: Callable[[], float] = time.time
    on_progress: Callable[[int, int], None] | None = None

    def state(self, name: str) -> str:
        """Return "done", "failed" (some entries, which are tried again) or "open"."""
        head, outcomes = self._stored(name)
        if head is None or head["key"] != self._key(name):
            return "open"
        again = any("failed" in one and one["attempts"] < self.config.limits.attempts for one in outcomes)
        return "failed" if again else "done"

    def work(self, name: str) -> bool:
        """Finish a unit. Return False if another worker has it, or takes it over.

        Raises:
            Halt: a budget is spent, or the worker was asked to stop.
        """
        with lease(self.units / name, clock=self.clock) as taken:
            if taken is None:
                return False
            with self.guard.unit(taken):
                try:
                    if self.state(name) != "done":
                        self._work(name)
                except LeaseLost:
                    return False
            return True

    def outcomes(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the outcomes of a finished unit: {"id", "recipe", "records", "refused"} or {"id", "recipe", "failed", "attempts"}."""
        head, outcomes = self._stored(name)
        if head is None:
            raise PlamoError(f"the unit {name} is not finished")
        yield from outcomes

    def _stored(self, name: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        path = self.units / name / DONE
        if not path.is_file():
            return None, []
        with path.open("rb") as file:
            head, *outcomes = (parse_json(line, str(path)) for line in file)
        return head, outcomes

    def _key(self, name: str) -> str:
        """Return the hash of everything that determines the outcome of a unit."""
        entries = read_unit(self.plan, name)
        recipes = {one.recipe: self.recipes[one.recipe] for one in entries}
        made = {key: [one.prompt_sha256, getattr(one, "config", None), one.verify] for key, one in recipes.items()}
        uses = any(one.uses_model for one in recipes.values())
        models = [model and model.description for model in (self.models.generator, self.models.judge)] if uses else []
        licenses = [self.config.generator and self.config.generator.license] if uses else []
        return digest([[one.id for one in entries], made, models, licenses, self.config.allow_unisolated_code])

    def _work(self, name: str) -> None:
        folder, entries = self.units / name, read_unit(self.plan, name)
        head, stored = self._stored(name)
        if head is None or head["key"] != self._key(name):
            stored = []
        failed = {one["id"]: one for one in stored if "failed" in one}
        with contextlib.ExitStack() as stack:
            journal = _LeasedJournal(folder / JOURNAL, self)
            stack.callback(journal.close)
            generator = self.models.generator
            asker = None
            if generator is not None:
                concurrency = self.config.generator.concurrency if self.config.generator else 8
                asker = Asker(
                    generator,
                    self.models.judge,
                    journal,
                    batch_size=len(entries),
                    concurrency=concurrency,
                    on_progress=self.on_progress,
                )

            def ask(requests: Sequence[Any]) -> Sequence[Any]:
                if asker is None:
                    raise PlamoError("a recipe needs a model: add `generator` to the config")
                return asker(requests)

            given_up = {id for id, one in failed.items() if one["attempts"] >= self.config.limits.attempts}
            open_entries = [entry for entry in entries if entry.id not in given_up]
            counters = [_UsageCounter(self.config) for _ in open_entries]
            found = {id: failed[id] for id in given_up}
            generators = [self._requests(entry, usage) for entry, usage in zip(open_entries, counters, strict=True)]
            for i, outcome in drive(generators, ask):
                entry = open_entries[i]
                if isinstance(outcome, RequestError):
                    count = failed[entry.id]["attempts"] + 1 if entry.id in failed else 1
                    outcome = {"failed": outcome.reason, "attempts": count}
                spent = dataclasses.asdict(counters[i].total())
                found[entry.id] = {"id": entry.id, "recipe": entry.recipe, **outcome, "spent": spent}
        outcomes = [found[entry.id] for entry in entries]
        lines = [{"key": self._key(name)}, *outcomes]
        text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
        self.guard.check_lease()
        write_whole(folder / DONE, text.encode("utf-8", "surrogatepass"))

    def _requests(self, entry: Entry, usage: _UsageCounter) -> Generator[Any, Any, dict[str, Any]]:
        """Yield the requests of an entry, and return its outcome."""
        recipe = self.recipes[entry.recipe]
        drafts = yield from usage.counted(recipe.requests(entry.seed, entry.sample, entry.random(self.config.seed)))
        if isinstance(drafts, Refusal):
            return {"records": [], "refused": [drafts.reason]}
        records, refused = [], []
        for number, draft in enumerate(drafts):
            id = digest([entry.id, number])
            verified = yield from usage.counted(
                verify(
                    id,
                    draft,
                    entry.seed,
                    recipe.verify,
                    language=recipe.language,
                    random_seed=self.config.seed,
                    allow_unisolated_code=self.config.allow_unisolated_code,
                )
            )
            if isinstance(verified, Refusal):
                refused.append(verified.reason)
            else:
                records.append((id, verified))
        spent = usage.total()
        return {
            # The first record carries the usage of the entry, so that sums over records are right.
            "records": [
                self._record(id, entry, recipe, one.draft, spent if i == 0 else Usage(), one.scores, one.verdicts)
                for i, (id, one) in enumerate(records)
            ],
            "refused": refused,
        }

    def _record(
        self,
        id: str,
        entry: Entry,
        recipe: Recipe,
        draft: Draft,
        usage: Usage,
        scores: Mapping[str, float],
        verdicts: Mapping[str, bool],
    ) -> dict[str, Any]:
        seed: Seed = entry.seed
        record = Record(
            id=id,
            language=recipe.language,
            kind=recipe.kind,
            sources=seed.sources,
            recipe=RecipeStamp(recipe.name, recipe.version, recipe.prompt_sha256),
            generator=self._stamp(recipe),
            sampling=recipe.sampling,
            seed=self.config.seed,
            sample=entry.sample,
            usage=usage,
            license="unknown",  # The stage `licenses` composes it.
            generation=seed.generation + 1,
            text=draft.text,
            messages=draft.messages,
            scores=scores,
            verdicts=verdicts,
            parents=(seed.id,) if seed.generation else (),
            fields=draft.fields,
        )
        return json.loads(json.dumps(record.to_json()))

    def _stamp(self, recipe: Recipe) -> GeneratorStamp:
        """Return the provenance of a recipe's records. The outputs of rule-based recipes are works of this package."""
        if not recipe.uses_model or self.models.generator is None or self.config.generator is None:
            return GeneratorStamp(f"plamo2-jax recipe {recipe.name}", recipe.version, "Apache-2.0")
        description, config = self.models.generator.description, self.config.generator
        fingerprint = description.get("fingerprint") or digest(dict(description))
        return GeneratorStamp(str(description.get("model", "model")), str(fingerprint), config.license)


class _LeasedJournal(Journal):
    """A journal that only the holder of the unit's lease writes. Entries that come too late are counted as wasted."""

    def __init__(self, path: Path, runner: UnitRunner):
        super().__init__(path, request_json.is_entry)
        self._runner = runner

    def extend(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write entries; raise LeaseLost if this worker has lost the lease."""
        try:
            self._runner.guard.check_lease()
        except LeaseLost:
            if self._runner.budget is not None:
                for entry in entries:
                    self._runner.budget.waste_entry(entry)
            raise
        super().extend(entries)


class _UsageCounter:
    """Sums the cost of the responses to the requests of an entry."""

    def __init__(self, config: SynthConfig):
        self._config, self._spent = config, Spending()

    def counted(self, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Yield the requests of a generator, and count their responses."""
        try:
            request = next(generator)
            while True:
                responses: Sequence[ChatResponse] = yield request
                prices = self._config.judge if isinstance(request, JudgeRequest) else self._config.generator
                self._spent.add(responses, prices or GeneratorConfig())
                request = generator.send(responses)
        except StopIteration as end:
            return end.value

    def total(self) -> Usage:
        """Return the sums. Times are not part of them, because they differ between two runs."""
        spent = self._spent
        return Usage(spent.prompt_tokens, spent.completion_tokens, 0.0, round(spent.cost, 9))
