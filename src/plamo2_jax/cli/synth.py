"""`plamo2 synth CONFIG`: synthetic data from documents, rules and models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from plamo2_jax.cli.arguments import parse

if TYPE_CHECKING:
    from plamo2_jax.synth.config import SynthConfig
    from plamo2_jax.synth.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class SynthOptions:
    """Make synthetic data by recipes, verify and filter it, and mix it with the documents.

    The config is a YAML file (docs/synthetic_data.md). Work units are written before anything is asked. Interrupt the command at any time;
    run it again to resume: stored responses are not asked for again. Several workers may run the same command at the same time.
    """

    config: Annotated[Path, tyro.conf.Positional]
    """YAML file."""
    dry_run: bool = False
    """Print the number of entries and requests, the tokens and the cost by recipe. Nothing is asked or written."""
    worker: bool = False
    """Work on units only. Run the command without this option at the end."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    options = parse(SynthOptions, argv, "plamo2 synth")
    from plamo2_jax.synth.config import read_config
    from plamo2_jax.synth.run import finish, generate, open_recipes

    config = read_config(options.config)
    recipes = open_recipes(config)
    if options.dry_run:
        print(_estimates(config, recipes))
        return 0
    index = None
    if config.against:
        from plamo2_jax.cli.against import evaluation_items
        from plamo2_jax.data.contamination import ContaminationIndex

        # Before anything is asked, because an error here would come after all requests.
        index = ContaminationIndex(evaluation_items(config.against), config.contamination)
    spent = generate(config, recipes, wait=not options.worker)
    _print_spent(spent)
    if options.worker:
        return 0
    report = finish(config, recipes, index)
    _print_report(report)
    print(config.output / "records")
    return 1 if report["generate"]["failed"] else 0


def _estimates(config: SynthConfig, recipes: dict[str, Recipe]) -> str:
    """Return a table of the expected requests by recipe."""
    from plamo2_jax.synth.plan import Estimate, estimate

    prices = config.generator
    rows = [("recipe", "entries", "requests", "prompt tokens", "most new tokens", "most cost")]
    total = Estimate()
    for use in config.recipes:
        found = estimate(config, use, recipes[use.name])
        for field in dataclasses.fields(Estimate):
            setattr(total, field.name, getattr(total, field.name) + getattr(found, field.name))
        rows.append(_row(use.name, found, prices))
    rows.append(_row("all", total, prices))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    note = "First request of each entry; recipes with several steps ask more. A token is counted as three characters."
    return "\n".join([*lines, note])


def _row(name: str, found: Any, prices: Any) -> tuple[str, ...]:
    cost = 0.0
    if prices is not None:
        cost = (found.prompt_tokens * prices.price_prompt + found.completion_tokens * prices.price_completion) / 1e6
    counts = (found.entries, found.requests, found.prompt_tokens, found.completion_tokens)
    return (name, *(f"{count:,}" for count in counts), f"{cost:.4g}")


def _print_spent(spent: dict[str, Any]) -> None:
    print(
        f"requests so far: {spent['requests']:,}; prompt tokens {spent['prompt_tokens']:,}, generated tokens "
        f"{spent['completion_tokens']:,}, cost {spent['cost']:.4g}; attempts repeated in this start: {spent['repeated']:,}"
    )


def _print_report(report: dict[str, Any]) -> None:
    made = report["generate"]
    for name, counts in made["recipes"].items():
        print(f"{name}: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()))
    for reason, count in made["refused"].items():
        print(f"  refused, {reason}: {count:,}")
    for reason, count in made["failed"].items():
        print(f"  failed, {reason}: {count:,}")
    for name, stage in report["stages"].items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in stage["refused"].items())
        print(
            f"{name}: {stage['records']['out']:,} of {stage['records']['in']:,} records"
            + (f" ({reasons})" if reasons else "")
        )
