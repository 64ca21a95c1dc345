"""Compare two evaluations: paired differences of the scores of common items, with confidence intervals.

The interval is the interval of a paired t test. Answers to one question, such as several trials, are not independent, so the differences of
a question are averaged first, and the questions are the sample.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.request_json import identity
from plamo2_jax.eval.results import TaskResult, read_results

CONFIDENCE = 0.95
"""Probability that a confidence interval contains the difference."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The paired difference of one score, second minus first."""

    first: float
    """Mean of the first evaluation over the common items."""
    second: float
    """Mean of the second evaluation over the common items."""
    difference: float
    """Mean of the differences over questions."""
    interval: tuple[float, float] | None
    """The 95 % confidence interval of `difference`; None for a single question."""
    p_value: float | None
    """Two-sided p-value of the paired t test; None for a single question."""
    questions: int
    """Number of questions, the size of the sample."""
    items: int
    """Number of common items."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The comparison of one task."""

    metric: str
    """The main metric of the task."""
    scores: Mapping[str, Difference]
    """Differences by the names of scores. A metric that is not a mean over items is missing."""
    only_first: int
    """Number of items that only the first evaluation has."""
    only_second: int
    """Number of items that only the second evaluation has."""


def compare(first: Path, second: Path) -> dict[str, Comparison]:
    """Compare the tasks that two folders of results have in common.

    Raises:
        PlamoError: a folder cannot be read, no task is in both, or a task has different data or prompts.
    """
    one, other = read_results(first), read_results(second)
    names = [name for name in one if name in other]
    if not names:
        raise PlamoError(
            f"{first} and {second} have no task in common: they have {', '.join(one)} and {', '.join(other)}"
        )
    return {name: compare_results(name, one[name], other[name]) for name in names}


def compare_results(name: str, first: TaskResult, second: TaskResult) -> Comparison:
    """Compare two results of one task.

    Raises:
        PlamoError: the data, the prompts, the judges or their rubrics differ, or no item is in both.
    """
    for field, title in (("task", "task"), ("metric", "metric")):
        if first.result[field] != second.result[field]:
            raise PlamoError(
                f"{name}: the {title} differs ({first.result[field]} and {second.result[field]}): it must be the same in both folders"
            )
    data = [result.result["provenance"].get("data_sha256") for result in (first, second)]
    if data[0] != data[1]:
        raise PlamoError(
            f"{name}: the data differs (sha256 {data[0]} and {data[1]}): evaluate both models on the same files"
        )
    for title, one, other in zip(_RATED_BY, _rated_by(first), _rated_by(second), strict=True):
        if one != other:
            raise PlamoError(
                f"{name}: the {title} differs ({one} and {other}): ratings can only be compared if it is the same"
            )
    common = [id for id in first.answers if id in second.answers]
    if not common:
        raise PlamoError(f"{name}: no item is in both folders. Evaluate both models with the same --limit")
    for id in common:
        if first.answers[id].get("prompt_hash") != second.answers[id].get("prompt_hash"):
            raise PlamoError(
                f"{name}: the prompt of the item {id} differs: evaluate both models with the same --mode, --shots and --seed"
            )
    scores = {}
    for score in dict.fromkeys(key for id in common for key in first.answers[id]["scores"]):
        values: dict[Hashable, list[tuple[float, float]]] = collections.defaultdict(list)
        for id in common:
            rows = [result.answers[id]["scores"] for result in (first, second)]
            if all(score in row for row in rows):
                values[_question(id, first.answers[id])].append((rows[0][score], rows[1][score]))
        if values:
            scores[score] = _difference(values)
    return Comparison(
        first.result["metric"], scores, len(first.answers) - len(common), len(second.answers) - len(common)
    )


_RATED_BY = ("judge", "sha256 of the rubrics", "sha256 of the baseline's answers")


def _rated_by(result: TaskResult) -> tuple[Any, ...]:
    """Return what determines the ratings of answers, in the order of `_RATED_BY`; None for tasks without a judge."""
    judge, provenance = result.result.get("judge"), result.result["provenance"]
    baseline = provenance.get("baseline") or {}
    return None if judge is None else identity(judge, "judge"), provenance.get("rubric_sha256"), baseline.get("sha256")


def table(first: Path, second: Path, comparisons: Mapping[str, Comparison]) -> str:
    """Format comparisons as a text table: the main metric of each task, or all its scores if the metric is not a mean over items."""
    rows = [("task", "score", "first", "second", "difference", "95 % interval", "p", "items")]
    for name, comparison in comparisons.items():
        main = comparison.metric in comparison.scores
        for score, one in comparison.scores.items():
            if main and score != comparison.metric:
                continue
            interval = "-" if one.interval is None else f"[{one.interval[0]:+.4f}, {one.interval[1]:+.4f}]"
            p = "-" if one.p_value is None else f"{one.p_value:.3f}"
            rows.append(
                (
                    name,
                    score,
                    f"{one.first:.4f}",
                    f"{one.second:.4f}",
                    f"{one.difference:+.4f}",
                    interval,
                    p,
                    str(one.items),
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *map(str.rjust, row[2:], widths[2:])])
        for row in rows
    ]
    return "\n".join([f"first: {first}, second: {second}", *lines])


def _question(id: str, answer: Mapping[str, Any]) -> Hashable:
    """Return what the trials of a question have in common. Other items may have the same text, such as two sentences without a prompt."""
    base, _, trial = id.rpartition("/")
    return base if base and trial.isdecimal() else id, answer["question"], json.dumps(answer.get("reference"))


def _difference(values: Mapping[Hashable, list[tuple[float, float]]]) -> Difference:
    pairs = [pair for some in values.values() for pair in some]
    differences = [_mean([second - first for first, second in some]) for some in values.values()]
    n, mean = len(differences), _mean(differences)
    # If all differences are equal and not zero, a t test has no answer.
    interval = p_value = None
    if n > 1 and (mean == 0 or len(set(differences)) > 1):
        from scipy import stats  # This import takes most of a second.

        deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in differences) / (n - 1))
        error = deviation / math.sqrt(n)
        margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
        interval = (mean - margin, mean + margin)
        p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    first, second = (_mean([pair[side] for pair in pairs]) for side in (0, 1))
    return Difference(first, second, mean, interval, p_value, n, len(pairs))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
