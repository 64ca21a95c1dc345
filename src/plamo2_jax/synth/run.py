"""Plan and generate: write the work units of a configuration, and work on them beside other workers.

OUTPUT/plan/             the work units; written before the first request
OUTPUT/units/            responses and outcomes of each unit
OUTPUT/spending.json     what all starts of all workers have spent, in `synth.spending`
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from plamo2_jax import models
from plamo2_jax.checkpoint import write_json
from plamo2_jax.errors import PlamoError
from plamo2_jax.progress import tqdm
from plamo2_jax.storage import lock_folder
from plamo2_jax.synth.config import GeneratorConfig, SynthConfig, digest
from plamo2_jax.synth.folder_clock import FolderClock
from plamo2_jax.synth.limits import Budget, Guard, LimitedModel, ServerGate
from plamo2_jax.synth.owner_file import require_links
from plamo2_jax.synth.plan import PLAN, write_plan
from plamo2_jax.synth.rate import Rate
from plamo2_jax.synth.recipe import Recipe
from plamo2_jax.synth.recipe_files import open_recipe
from plamo2_jax.synth.spending import Ledger, Spending, StoredSpending
from plamo2_jax.synth.units import Models, UnitRunner
from plamo2_jax.synth.verify import needs_judge

_POLL = 0.5


def open_recipes(config: SynthConfig) -> dict[str, Recipe]:
    """Return the recipes by name, without a model.

    Raises:
        PlamoError: a recipe is unknown or damaged, occurs twice, or needs a model that the configuration lacks.
    """
    recipes: dict[str, Recipe] = {}
    for use in config.recipes:
        if use.name in recipes:
            raise PlamoError(f"`recipes` has {use.name} twice: each recipe must occur once. Raise its samples instead")
        recipe = recipes[use.name] = open_recipe(use.name)
        if recipe.uses_model and config.generator is None:
            raise PlamoError(f"the recipe {use.name} needs a model: add `generator` to the config")
        if needs_judge(recipe.verify) and config.judge is None:
            raise PlamoError(f"the recipe {use.name} has the verification step `judge`: add `judge` to the config")
    return recipes


def plan(config: SynthConfig, recipes: Mapping[str, Recipe]) -> list[str]:
    """Write the plan unless it exists, and return the names of its units.

    Raises:
        PlamoError: the plan is of another configuration, or workers in the output folder could not exclude each other.
    """
    require_links(config.output)
    with _lock_when_free(config.output / ".planning"):
        try:
            return write_plan(config, recipes, config.output / "plan")
        except PlamoError:
            if not (config.output / "plan" / PLAN).is_file():
                raise
            # Another host, which does not see the lock, may have written it meanwhile.
            return write_plan(config, recipes, config.output / "plan")


def generate(
    config: SynthConfig,
    recipes: Mapping[str, Recipe],
    *,
    wait: bool = True,
    worker: int = 0,
    guard: Guard | None = None,
) -> Spending:
    """Work on all units of the plan that no other worker has. Return what all workers have spent.

    Args:
        config: the configuration.
        recipes: the recipes, of `open_recipes`.
        wait: wait for the units of other workers.
        worker: number of this worker. It selects one of `servers`.
        guard: may be used to stop the worker.

    Raises:
        BudgetSpent: a budget is spent.
        Terminated: the guard was stopped.
        ServerFailing: a server fails all requests.
        PlamoError: the plan is of another configuration, or a server refuses all requests.
    """
    names, output = plan(config, recipes), config.output
    guard = Guard() if guard is None else guard
    (output / "units").mkdir(exist_ok=True)
    uses_model = any(recipe.uses_model for recipe in recipes.values())
    clock = FolderClock(output)
    ledger = Ledger(output / "spending") if uses_model else None
    budget = None if ledger is None else Budget(config, StoredSpending(output, config), ledger)
    opened: list[models.ChatModel] = []

    def open_model(settings: GeneratorConfig | None) -> models.ChatModel | None:
        if settings is None or budget is None:
            return None
        fields = {field.name for field in dataclasses.fields(models.ChatModelConfig)}
        plain = models.ChatModelConfig(**{name: getattr(settings, name) for name in fields})
        gate = None
        if plain.url is not None:
            if settings.servers:
                plain = dataclasses.replace(plain, url=settings.servers[worker % len(settings.servers)])
            path = output / f".rate-{digest(plain.url)[:12]}.json"
            rate = Rate(path, config.limits.requests_per_minute, config.limits.tokens_per_minute, clock)
            gate = ServerGate(rate, guard, budget, settings)
        opened.append(models.open(plain, gate=gate))
        return LimitedModel(opened[-1], settings, budget, guard)

    try:
        both = Models(open_model(config.generator), open_model(config.judge))
        if opened and both.generator is not None:
            recipes = {name: open_recipe(name, model=opened[0]) for name in recipes}
        with tqdm(total=len(names), desc="units", unit="unit") as progress:
            runner = UnitRunner(config, recipes, both, output / "plan", output / "units", guard, budget, clock)
            left = list(names)
            while left:
                busy = []
                for name in left:
                    guard.check()
                    if runner.work(name):
                        progress.update()
                    else:
                        busy.append(name)
                if len(busy) == len(left):
                    if not wait:
                        break
                    time.sleep(_POLL)
                left = busy
    finally:
        for model in opened:
            model.close()
        if budget is not None:
            budget.refresh()
            write_json(output / "spending.json", budget.spent.to_json())
    return Spending() if budget is None else budget.spent


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
