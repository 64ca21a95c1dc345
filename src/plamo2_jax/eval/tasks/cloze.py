"""Cloze: which of four words stands in a gap of a held-out page of the bundled corpus?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval import cloze
from plamo2_jax.eval.metrics import mean_metrics
from plamo2_jax.eval.task import Answer, Item, Metric, Request, Responses, Task, TaskOptions
from plamo2_jax.models import ScoreRequest

_LANGUAGES = ("ja", "en")


def open(name: str, options: TaskOptions) -> Task:
    """Open the task; `kinds` are languages.

    Raises:
        PlamoError: a language is unknown.
    """
    languages = options.kinds or _LANGUAGES
    if unknown := sorted(set(languages) - set(_LANGUAGES)):
        raise PlamoError(f"--kinds {unknown[0]} is not allowed for {name}: it must be ja or en")
    return Cloze(name, languages)


class Cloze:
    """The task. The choice with the largest log-probability, followed by the rest of the sentence, counts."""

    metric = "accuracy"

    def __init__(self, name: str, languages: Sequence[str]):
        self.name = name
        rows = [(language, row) for language in languages for row in cloze.questions(language)]
        self._rows = {row["id"]: row for _, row in rows}
        self.items = [
            Item(row["id"], f"{row['context']}____{row['after']}", row["choices"][row["answer"]], language)
            for language, row in rows
        ]
        data = json.dumps([row for _, row in rows], ensure_ascii=False)
        self.provenance = {
            "chance": 1 / cloze.CHOICES,
            "languages": list(languages),
            "data_sha256": hashlib.sha256(data.encode()).hexdigest(),
            "licence": "held-out pages of the bundled corpus: MPL-2.0, CC-BY-SA-3.0",
        }

    def requests(self, item: Item) -> Generator[Request, Responses, Answer]:
        """Yield the request of an item. Return {"text": the most likely word}."""
        row = self._rows[item.id]
        scores = yield ScoreRequest(row["context"], [choice + row["after"] for choice in row["choices"]])
        best = max(range(len(scores)), key=lambda i: scores[i].logprob)
        return {"text": row["choices"][best]}

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[Mapping[str, float]]:
        """Return accuracy, 0 or 1, for each item."""
        return [
            {"accuracy": float(answer["text"] == item.reference)} for item, answer in zip(items, answers, strict=True)
        ]

    def summarize(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return the accuracy over all items and of each language."""
        return mean_metrics(items, scores)
