"""`plamo2 synth CONFIG`: synthetic data from documents, rules and models."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.stage import LATER, Stage
from plamo2_jax.validation import require_at_least

if TYPE_CHECKING:
    from plamo2_jax.synth.config import SynthConfig
    from plamo2_jax.synth.limits import Guard
    from plamo2_jax.synth.recipe import Recipe
    from plamo2_jax.synth.spending import Spending

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a worker that received SIGTERM and stored all paid responses."""
FAILING = 75
"""Exit status of a worker whose server fails all requests. A later start may succeed."""


@dataclasses.dataclass(frozen=True)
class SynthOptions:
    """Make synthetic data by recipes, verify and filter it, and mix it with the documents.

    The config is a YAML file (docs/synthetic_data.md). Work units are written before the first request. You can interrupt the command at
    any time. Run it again to resume: it reuses stored responses and skips finished stages. Several workers may run the same command at the
    same time (docs/synthetic_cluster.md).
    """

    config: Annotated[Path, tyro.conf.Positional]
    """YAML file."""
    dry_run: bool = False
    """Print the number of entries and requests, the tokens and the cost by recipe. Send no request and write nothing."""
    stage: Stage | None = None
    """Stop after this stage. Default: run all stages. Earlier stages that are finished are skipped."""
    worker: bool = False
    """Process work units only. After all workers have ended, run the command without this option for the remaining stages."""
    worker_index: int | None = None
    """Index of this worker, from 0. It selects one of generator.servers. Worker 0 runs all stages; the others process work units only."""


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parse(SynthOptions, argv, "plamo2 synth")
    require_at_least(0, worker_index=options.worker_index)
    from plamo2_jax.eval.asking import ServerFailing
    from plamo2_jax.synth.config import read_config
    from plamo2_jax.synth.finish import finish, require_stage
    from plamo2_jax.synth.limits import Guard, Terminated
    from plamo2_jax.synth.run import generate, open_recipes, plan

    config = read_config(options.config)
    recipes = open_recipes(config)
    if options.dry_run:
        print(_estimates(config, recipes))
        return 0
    last = options.stage or ("generate" if options.worker or options.worker_index else "mix")
    require_stage(config, "write" if options.stage is None else last)
    if last == "plan":
        print(f"{len(plan(config, recipes))} units")
        return 0
    # Before anything is asked, because an error here would come after all requests.
    items = _evaluation_items(config) if last in LATER and last != "filter" else []
    guard = Guard()
    try:
        with _stop_at_sigterm(guard):
            wait = last in LATER or not (options.worker or options.worker_index)
            spent = generate(config, recipes, wait=wait, worker=options.worker_index or 0, guard=guard)
    except (Terminated, ServerFailing) as error:
        print(f"plamo2 synth: {error}", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else FAILING
    _print_spent(spent)
    if last not in LATER:
        return 0
    report, skipped = finish(config, recipes, items, last=last)
    if skipped:
        print(f"skipped, because their inputs and settings are unchanged: {', '.join(skipped)}")
    if report is None:
        print(config.output / "stages" / last)
        return 0
    _print_report(report)
    print(config.output / "records")
    return 1 if report["generate"]["failed"] else 0


def _evaluation_items(config: SynthConfig) -> list[Any]:
    from plamo2_jax.cli.against import evaluation_items

    items = list(evaluation_items(config.against))
    if config.against and not items:
        raise PlamoError("`against` has no evaluation item: give files or tasks with at least one item")
    return items


@contextlib.contextmanager
def _stop_at_sigterm(guard: Guard) -> Iterator[None]:
    """At SIGTERM, let the worker finish and store the requests in flight before it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: guard.stopped.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _estimates(config: SynthConfig, recipes: dict[str, Recipe]) -> str:
    """Return a table of the expected requests by recipe."""
    from plamo2_jax.synth.estimate import estimate, token_counter, total

    counter, prices = token_counter(config.generator), config.generator
    rows = [("recipe", "entries", "requests", "prompt tokens", "max new tokens", "most cost")]
    found = {use.name: estimate(config, use, recipes[use.name], counter) for use in config.recipes}
    rows += [_row(name, one, prices) for name, one in found.items()]
    rows.append(_row("all", total(found), prices))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join(
        [
            *lines,
            "Only the first request of each entry is counted; recipes with several steps or a judge send more. "
            f"{counter.method}",
        ]
    )


def _row(name: str, found: Any, prices: Any) -> tuple[str, ...]:
    cost = 0.0
    if prices is not None:
        cost = (found.prompt_tokens * prices.price_prompt + found.completion_tokens * prices.price_completion) / 1e6
    counts = (found.entries, found.requests, found.prompt_tokens, found.completion_tokens)
    return (name, *(f"{count:,}" for count in counts), f"{cost:.4g}")


def _print_spent(spent: Spending) -> None:
    print(
        f"requests so far: {spent.requests:,}; prompt tokens {spent.prompt_tokens:,}, generated tokens "
        f"{spent.completion_tokens:,}, cost {spent.cost:.4g}, seconds of all workers {spent.seconds:,.0f}"
    )
    if spent.failed_attempts or spent.wasted:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(spent.wasted.items()))
        tokens = spent.wasted_prompt_tokens + spent.wasted_completion_tokens
        print(
            f"wasted: {tokens:,} tokens, cost {spent.wasted_cost:.4g}{f' ({kinds})' if kinds else ''}; failed "
            f"attempts: {spent.failed_attempts:,}; {spent.unreported:,} of them may have been charged without "
            "a usage report"
        )


def _print_report(report: dict[str, Any]) -> None:
    made = report["generate"]
    for name, counts in made["recipes"].items():
        print(f"{name}: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()))
    for reason, count in made["refused"].items():
        print(f"  refused, {reason}: {count:,}")
    for reason, count in made["failed"].items():
        print(f"  failed, {reason}: {count:,}")
    for kind, sums in made["wasted"].items():
        tokens = sums["prompt_tokens"] + sums["completion_tokens"]
        print(f"paid without a record, {kind}: {sums['entries']:,} entries, {tokens:,} tokens, cost {sums['cost']:.4g}")
    for name, stage in report["stages"].items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in stage["refused"].items())
        print(
            f"{name}: {stage['records']['out']:,} of {stage['records']['in']:,} records"
            + (f" ({reasons})" if reasons else "")
        )
