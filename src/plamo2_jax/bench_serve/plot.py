"""The plot of a load: how latencies are distributed, and how the load went over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plamo2_jax.bench_serve.client import Record
from plamo2_jax.bench_serve.config import BenchConfig
from plamo2_jax.bench_serve.statistics import between_chunks, end_to_end, first_token, in_flight

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
_STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}


def plot_load(path: Path, records: Sequence[Record], config: BenchConfig, title: str) -> None:
    """Write a PNG: cumulative distributions of TTFT, inter-token time and end-to-end time, and the load over time.

    Args:
        path: file to write.
        records: of the requests.
        config: the load; its limits are drawn.
        title: title of the figure.
    """
    good = [record for record in records if record.error is None and record.arrivals]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 6.0), layout="constrained")
        panels = figure.subplots(2, 2)
        gaps = [gap for record in good for gap in between_chunks(record)]
        _distribution(panels[0, 0], "time to first token", list(map(first_token, good)), config.slo_ttft)
        _distribution(panels[0, 1], "time between chunks", gaps, None)
        _distribution(panels[1, 0], "end to end", list(map(end_to_end, good)), None)
        _over_time(panels[1, 1], records, good)
        figure.suptitle(title.replace("$", r"\$"), fontsize=10)
        figure.savefig(path, dpi=120)


def _distribution(axes: Axes, title: str, values: Sequence[float], limit: float | None) -> None:
    """Draw which fraction of the values is at most so large."""
    axes.set_title(title, loc="left")
    axes.set_xlabel("ms")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.2)
    if not values:
        return
    ordered = np.sort(values)
    axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=_BLUE)
    for percentile in (50, 90, 99):
        value = float(np.percentile(ordered, percentile))
        axes.plot([value], [percentile / 100], "o", color=_BLUE, markersize=3)
        axes.annotate(
            f"p{percentile} {value:,.0f}" if value >= 10 else f"p{percentile} {value:.2f}",
            (value, percentile / 100),
            xytext=(5, -9),
            textcoords="offset points",
        )
    if limit is not None:
        axes.axvline(limit, color=_ORANGE, linestyle="--", linewidth=1, label="limit")
        axes.legend(frameon=False, loc="lower right")
    if ordered[0] > 0 and ordered[-1] > 50 * np.percentile(ordered, 10):
        axes.set_xscale("log")


def _over_time(axes: Axes, records: Sequence[Record], good: Sequence[Record]) -> None:
    """Draw the requests in flight and the output tokens per second."""
    axes.set_title("load", loc="left")
    axes.set_xlabel("s")
    axes.grid(alpha=0.2)
    steps: list[tuple[float, Any]] = [(0.0, 0), *in_flight(records)]
    axes.step(*zip(*steps, strict=True), where="post", color=_GREY, linewidth=1)
    axes.set_ylabel("requests in flight", color=_GREY)
    axes.set_ylim(bottom=0)
    end = max((record.ended for record in records), default=0.0)
    if not good or end <= 0:
        return
    # A chunk counts as many tokens as the chunks of its request do on average.
    times = np.concatenate([record.arrivals for record in good])
    weights = np.concatenate([np.full(len(r.arrivals), r.tokens / len(r.arrivals)) for r in good])
    bins = min(60, max(4, len(good)))
    counts, edges = np.histogram(times, bins=bins, range=(0, end), weights=weights)
    other = axes.twinx()
    other.plot((edges[1:] + edges[:-1]) / 2, counts / np.diff(edges), color=_GREEN, linewidth=1.4)
    other.set_ylabel("output tokens/s", color=_GREEN)
    other.set_ylim(bottom=0)
    other.spines["right"].set_visible(True)
