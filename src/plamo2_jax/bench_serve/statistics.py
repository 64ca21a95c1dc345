"""What the records of a load say: latencies, throughput, goodput and errors."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from plamo2_jax.bench_serve.client import Record
from plamo2_jax.bench_serve.config import BenchConfig

PERCENTILES = (50, 90, 99)


def first_token(record: Record) -> float:
    """Return the milliseconds from the time at which a request was to be sent to its first text (TTFT).

    A load generator that falls behind must not make a server look faster, so the wait before sending counts.
    """
    return 1e3 * (record.arrivals[0] - record.scheduled)


def between_chunks(record: Record) -> list[float]:
    """Return the milliseconds between chunks with text. A chunk may hold several tokens."""
    return (1e3 * np.diff(record.arrivals)).tolist()


def between_tokens(record: Record) -> float | None:
    """Return the mean milliseconds between two tokens after the first (TPOT); None for a single token."""
    if record.tokens < 2 or len(record.arrivals) < 2:
        return None
    return 1e3 * (record.arrivals[-1] - record.arrivals[0]) / (record.tokens - 1)


def end_to_end(record: Record) -> float:
    """Return the milliseconds from the time at which a request was to be sent to its end."""
    return 1e3 * (record.ended - record.scheduled)


def summarize(records: Sequence[Record], config: BenchConfig) -> dict[str, Any]:
    """Return the figures of a load, as JSON has them. Latencies are in milliseconds, rates per second."""
    good = [record for record in records if record.error is None]
    seconds = max((record.ended for record in records), default=0.0)
    texts = [record for record in good if record.arrivals]
    gaps = [gap for record in texts for gap in between_chunks(record)]
    output = sum(record.tokens for record in good)
    prompt = sum(record.prompt_tokens or 0 for record in good)
    chunks = sum(len(record.arrivals) for record in good)
    summary = {
        "requests": len(records),
        "completed": len(good),
        "errors": dict(collections.Counter(record.error for record in records if record.error)),
        "finish_reasons": dict(collections.Counter(record.finish_reason for record in good)),
        "seconds": seconds,
        "requests_per_s": _rate(len(good), seconds),
        "prompt_tokens": prompt,
        "cached_tokens": sum(record.cached_tokens or 0 for record in good),
        "output_tokens": output,
        "output_tokens_per_s": _rate(output, seconds),
        "total_tokens_per_s": _rate(output + prompt, seconds),
        "tokens_counted_by": "usage" if all(record.completion_tokens is not None for record in good) else "chunks",
        "tokens_per_chunk": output / chunks if chunks else None,
        "peak_in_flight": _peak(records),
        "largest_delay_ms": max((1e3 * (record.sent - record.scheduled) for record in records), default=0.0),
        "ttft_ms": _percentiles(list(map(first_token, texts))),
        "itl_ms": _percentiles(gaps),
        "tpot_ms": _percentiles([each for each in map(between_tokens, texts) if each is not None]),
        "e2e_ms": _percentiles(list(map(end_to_end, good))),
    }
    if config.slo_ttft is not None or config.slo_itl is not None:
        met = sum(meets(record, config) for record in records)
        summary["goodput"] = {
            "slo_ttft_ms": config.slo_ttft,
            "slo_itl_ms": config.slo_itl,
            "fraction": met / len(records) if records else 0.0,
            "requests_per_s": _rate(met, seconds),
        }
    return summary


def meets(record: Record, config: BenchConfig) -> bool:
    """Return whether a request was answered within the limits. A request with an error or without text was not."""
    if record.error is not None or not record.arrivals:
        return False
    mean = between_tokens(record)
    fast = config.slo_ttft is None or first_token(record) <= config.slo_ttft
    return fast and (config.slo_itl is None or mean is None or mean <= config.slo_itl)


def in_flight(records: Sequence[Record]) -> list[tuple[float, int]]:
    """Return the times at which the number of running requests changed, with the number from then on."""
    changes = sorted(
        [(record.sent, 1) for record in records if record.error != "not sent"]
        + [(record.ended, -1) for record in records if record.error != "not sent"]
    )
    count, steps = 0, []
    for time, change in changes:
        count += change
        steps.append((time, count))
    return steps


def _peak(records: Sequence[Record]) -> int:
    return max((count for _, count in in_flight(records)), default=0)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean, percentiles and largest value; None of no value."""
    if not values:
        return None
    found = dict(zip((f"p{each}" for each in PERCENTILES), np.percentile(values, PERCENTILES).tolist(), strict=True))
    return {"mean": float(np.mean(values)), **found, "max": float(np.max(values))}
