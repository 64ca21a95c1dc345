"""Summaries of the scores of items."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.task import Item, Metric


def mean_metric(values: Iterable[float]) -> Metric:
    """Return the mean and its standard error, from the sample standard deviation.

    Raises:
        PlamoError: there is no value.
    """
    values = list(values)
    n = len(values)
    if n == 0:
        raise PlamoError("a metric has no values: a task needs at least one item")
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Metric(mean, None if deviation is None else deviation / math.sqrt(n), n)


def mean_metrics(items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> dict[str, Metric]:
    """Return the mean of each score over all items, and over each group as NAME/GROUP. Names keep the order of their first use."""
    columns: dict[str, list[float]] = {}
    groups: dict[str, list[float]] = {}
    for item, row in zip(items, scores, strict=True):
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
            if item.group is not None:
                groups.setdefault(f"{name}/{item.group}", []).append(value)
    return {name: mean_metric(values) for name, values in (columns | groups).items()}
