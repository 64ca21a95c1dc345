"""A whole measurement: prompts, warm-up, load, results."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plamo2_jax.bench_serve.client import Client, Record
from plamo2_jax.bench_serve.config import BenchConfig
from plamo2_jax.bench_serve.load import run_load
from plamo2_jax.bench_serve.prompts import PromptMaker, lengths
from plamo2_jax.bench_serve.statistics import summarize
from plamo2_jax.checkpoint import write_json
from plamo2_jax.errors import PlamoError


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured."""

    model: str
    unit: str
    """What prompt lengths are in: tokens or words."""
    records: list[Record]
    summary: dict[str, Any]


async def measure(client: Client, config: BenchConfig, on_end: Callable[[Record], None]) -> Result:
    """Put a load on a server.

    Args:
        client: sends the requests.
        config: the load.
        on_end: called with the record of each request that has ended.

    Raises:
        PlamoError: the server lists no model, or a request of the warm-up fails.
    """
    model = await client.find_model()
    maker = PromptMaker(client, config)
    await maker.start()
    prompt_tokens, output_tokens = lengths(config)
    prompts = [await maker.make(length) for length in prompt_tokens]
    for number in range(config.warmup):
        index = number % len(prompts)
        record = Record(index, output_tokens[index])
        await client.send(record, await maker.make(prompt_tokens[index]))
        if record.error is not None:
            raise PlamoError(f"the warm-up request failed ({record.error}): {record.detail}")
    records = await run_load(client, config, prompts, output_tokens, on_end)
    records.sort(key=lambda record: record.index)
    return Result(model, maker.unit, records, summarize(records, config))


def run(client: Client, config: BenchConfig, on_end: Callable[[Record], None]) -> Result:
    """Run `measure` to its end."""
    return asyncio.run(measure(client, config, on_end))


def write_result(folder: Path, url: str, config: BenchConfig, result: Result) -> None:
    """Write results.json and load.png into a folder that exists."""
    from plamo2_jax.bench_serve.plot import plot_load

    settings = {"url": url, "model": result.model, "prompt_unit": result.unit, **dataclasses.asdict(config)}
    rows = [_row(record) for record in result.records]
    write_json(folder / "results.json", {"settings": settings, "summary": result.summary, "requests": rows})
    loop = f"{config.concurrency} at a time" if config.rate is None else f"{config.rate:g} requests/s"
    plot_load(folder / "load.png", result.records, config, f"{result.model[:60]}: {loop}")


def _row(record: Record) -> dict[str, Any]:
    """Return a request for the results: times in seconds, rounded to microseconds, without those of single chunks."""
    row = dataclasses.asdict(record)
    arrivals = row.pop("arrivals")
    row |= {
        "first_text": arrivals[0] if arrivals else None,
        "last_text": arrivals[-1] if arrivals else None,
        "chunks": len(arrivals),
    }
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}


def as_text(result: Result) -> str:
    """Return the figures as a table for the terminal."""
    summary = result.summary
    lines = [
        f"{summary['completed']} of {summary['requests']} requests in {summary['seconds']:.1f} s:"
        f" {summary['requests_per_s']:.2f} requests/s, {summary['output_tokens_per_s']:.1f} output tokens/s"
        f" (counted by {summary['tokens_counted_by']}), {summary['cached_tokens']} of {summary['prompt_tokens']} prompt tokens cached",
        f"{'ms':<22}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}",
    ]
    names = {
        "ttft_ms": "time to first token",
        "itl_ms": "between chunks",
        "tpot_ms": "between tokens, mean",
        "e2e_ms": "end to end",
    }
    for name, title in names.items():
        found = summary[name]
        cells = (
            ("-",) * 5 if found is None else (f"{found[each]:,.1f}" for each in ("mean", "p50", "p90", "p99", "max"))
        )
        lines.append(f"{title:<22}" + "".join(f"{cell:>10}" for cell in cells))
    if goodput := summary.get("goodput"):
        lines.append(f"goodput: {goodput['fraction']:.1%} of requests, {goodput['requests_per_s']:.2f} requests/s")
    if summary["errors"]:
        lines.append("errors: " + ", ".join(f"{kind}: {count}" for kind, count in summary["errors"].items()))
        first = next(record for record in result.records if record.error)
        lines.append(f"first error ({first.error}): {first.detail}")
    return "\n".join(lines)
