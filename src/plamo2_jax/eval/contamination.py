"""Items of benchmark tasks that a model's training data contains."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plamo2_jax.data.contamination import Rule, contaminated_items
from plamo2_jax.data.shards import MANIFEST, open_shards
from plamo2_jax.data.sources import read_documents
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.task import Item, Task
from plamo2_jax.progress import tqdm
from plamo2_jax.tokenizer.tokenizer import Tokenizer


def contaminated_by_task(
    tasks: Mapping[str, Sequence[Item]], inputs: Sequence[str], tokenizer: Tokenizer | None
) -> dict[str, dict[str, Rule]]:
    """Return for each task the items whose question is in the training data: how it is found, by the item's id. The data is read once.

    Args:
        tasks: items by the name of the task.
        inputs: folders of shards, or inputs of `read_documents`.
        tokenizer: tokenizer of the shards.

    Raises:
        PlamoError: the data cannot be read, or shards are given without their tokenizer.
    """
    places = [(name, item) for name, items in tasks.items() for item in items]
    texts = tqdm(_texts(inputs, tokenizer), desc="compare with training data", unit="doc")
    found: dict[str, dict[str, Rule]] = {name: {} for name in tasks}
    rules = contaminated_items([item.question for _, item in places], texts)
    for (name, item), rule in zip(places, rules, strict=True):
        if rule is not None:
            found[name][item.id] = rule
    return found


def summary(
    task: Task, items: Sequence[Item], scores: Sequence[Mapping[str, float]], rules: Mapping[str, Rule]
) -> dict[str, Any]:
    """Return the number of contaminated items, and the metrics of these items and of the others, for the result of a task.

    Args:
        task: the task.
        items: answered items.
        scores: their scores.
        rules: how a contaminated item is found in the training data, by its id.
    """
    result: dict[str, Any] = {"items": len(items)}
    for name, wanted in (("contaminated", True), ("clean", False)):
        chosen = [i for i, item in enumerate(items) if (item.id in rules) == wanted]
        metrics = task.summarize([items[i] for i in chosen], [scores[i] for i in chosen]) if chosen else {}
        result[name] = {
            "n": len(chosen),
            "metrics": {
                each: {"value": metric.value, "stderr": metric.stderr, "n": metric.n}
                for each, metric in metrics.items()
            },
        }
    result["rules"] = dict(collections.Counter(rules[item.id] for item in items if item.id in rules))
    return result


def _texts(inputs: Sequence[str], tokenizer: Tokenizer | None) -> Iterator[str]:
    for spec in inputs:
        if not (Path(spec) / MANIFEST).is_file():
            for document in read_documents([spec]):
                yield document.text
            continue
        if tokenizer is None:
            raise PlamoError(
                f"{spec} is a folder of shards: its text needs the tokenizer that wrote it. Add --tokenizer FILE"
            )
        shards = open_shards(spec, tokenizer)
        for i in range(len(shards)):
            yield tokenizer.decode(shards[i].ids)
