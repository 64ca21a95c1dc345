"""Retrieval probes: questions about one fact in a long text, their two scores, and tables of the scores by length and depth.

A question has two scores: whether greedy decoding gives exactly the answer, and whether the answer has the highest probability of several
candidates of the same form. Small models can do only the second; chance is one over the number of candidates.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plamo2_jax.eval.depths import depth_label
from plamo2_jax.eval.heat_map import heat_maps, mean_panel
from plamo2_jax.eval.metrics import mean_metrics
from plamo2_jax.eval.phonebook_names import LANGUAGES
from plamo2_jax.eval.run import answer_items
from plamo2_jax.eval.task import Answer, Item, Metric, Request, Responses
from plamo2_jax.models import ChatModel, ScoreRequest


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about one fact in a text."""

    prompt: str
    """The text, which ends where the answer begins."""
    answer: str
    candidates: tuple[str, ...]
    """The answer, followed by wrong answers of the same form."""
    language: str
    length: int
    """Requested number of tokens, including the answer and the bos token."""
    depth: float
    """Position of the fact: 0 at the beginning of the text, 1 just before the question."""


class RetrievalTask:
    """Questions as a benchmark task. Item ids are LANGUAGE/LENGTH/DEPTH/NUMBER, and the groups are LANGUAGE/LENGTH.

    A model must score the candidates. Greedy decoding gives the answer exactly if each of its tokens is the most likely one, so nothing is
    generated.

    Args:
        name: name of the task.
        questions: the questions.
        provenance: fields for the result.
    """

    metric = "ranked"

    def __init__(self, name: str, questions: Iterable[Question], provenance: Mapping[str, Any]):
        self.name, self.provenance = name, provenance
        numbers: collections.Counter[str] = collections.Counter()
        self.questions: dict[str, Question] = {}
        """The questions by item id."""
        for question in questions:
            place = f"{question.language}/{question.length}/{depth_label(question.depth)}"
            self.questions[f"{place}/{numbers[place]}"] = question
            numbers[place] += 1
        self.items = [
            Item(item_id, question.prompt[-80:], question.answer, f"{question.language}/{question.length}")
            for item_id, question in self.questions.items()
        ]

    def requests(self, item: Item) -> Generator[Request, Responses, Answer]:
        """Yield the request of an item. Return {"text": the most likely candidate, "exact": whether greedy decoding gives the answer}.

        "text" is "" if another candidate is as likely as the answer, and no candidate is more likely.
        """
        question = self.questions[item.id]
        scores = yield ScoreRequest(question.prompt, question.candidates)
        others = max((score.logprob for score in scores[1:]), default=float("-inf"))
        best = max(range(len(scores)), key=lambda i: scores[i].logprob)
        text = question.candidates[best] if best or scores[0].logprob > others else ""
        return {"text": text, "exact": scores[0].is_greedy}

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[Mapping[str, float]]:
        """Return for each item: ranked and exact, 0 or 1; and chance, one over the number of candidates."""
        return [
            {
                "ranked": float(answer["text"] == item.reference),
                "exact": float(answer["exact"]),
                "chance": 1 / len(self.questions[item.id].candidates),
            }
            for item, answer in zip(items, answers, strict=True)
        ]

    def summarize(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return the mean of each score, over all items and for each language and length."""
        return mean_metrics(items, scores)

    def plots(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]], folder: Path) -> list[Path]:
        """Draw NAME.png: maps of both scores by length and depth, for each language."""
        cells: dict[str, dict[tuple[str, str], list[float]]] = {}
        for item, row in zip(items, scores, strict=True):
            question = self.questions[item.id]
            for score in ("exact", "ranked"):
                place = (f"{question.length:,}", depth_label(question.depth))
                cells.setdefault(f"{question.language}: {score}", {}).setdefault(place, []).append(row[score])
        if not cells:
            return []
        path = folder / f"{self.name}.png"
        heat_maps(path, [mean_panel(title, cells[title]) for title in sorted(cells)], self.name)
        return [path]


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question with the results of a model."""

    question: Question
    exact: bool
    """Whether greedy decoding gives the answer."""
    ranked: bool
    """Whether the answer has a higher probability than every other candidate."""
    text: str
    """The most likely candidate, see `RetrievalTask.requests`."""


def ask(
    questions: Iterable[Question],
    model: ChatModel,
    *,
    batch_size: int = 4,
    on_answer: Callable[[int], None] | None = None,
) -> list[Answered]:
    """Ask a model questions, in batches of similar length.

    Args:
        questions: Questions of one probe.
        model: Model that scores continuations.
        batch_size: Questions per batch.
        on_answer: Called after each batch with the number of its questions.

    Returns:
        The results in the order of the questions.

    Raises:
        PlamoError: The model refuses a question, for instance because it is longer than the model's context.
    """
    questions = list(questions)
    task = RetrievalTask("probe", questions, {})
    items = sorted(task.items, key=lambda item: task.questions[item.id].length)
    results: dict[int, Answered] = {}
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        answers = answer_items(task, model, items=batch)
        for item, answer, score in zip(batch, answers, task.score(batch, answers), strict=True):
            question = task.questions[item.id]
            results[id(question)] = Answered(question, answer["exact"], score["ranked"] == 1, answer["text"])
        if on_answer:
            on_answer(len(batch))
    return [results[id(question)] for question in questions]


def settings(
    languages: Iterable[str], lengths: Sequence[int], depths: Sequence[float], samples: int, seed: int
) -> Iterator[tuple[str, int, float, np.random.Generator]]:
    """Yield language, length, depth and random generator of each question of a probe."""
    for language, length, depth, sample in itertools.product(languages, lengths, depths, range(samples)):
        key = [seed, LANGUAGES.index(language), length, round(depth * 1000), sample]
        yield language, length, depth, np.random.default_rng(key)


def table(answered: Sequence[Answered]) -> list[dict[str, Any]]:
    """Return the accuracies by language, length and depth as rows. Rows with depth None are over all depths."""
    groups: dict[tuple, list[Answered]] = {}
    for one in answered:
        question = one.question
        for depth in (None, round(question.depth, 3)):
            groups.setdefault((question.language, question.length, depth), []).append(one)
    return [
        {
            "language": language,
            "length": length,
            "depth": depth,
            "questions": len(members),
            "exact": float(np.mean([member.exact for member in members])),
            "ranked": float(np.mean([member.ranked for member in members])),
            "chance": float(np.mean([1 / len(member.question.candidates) for member in members])),
        }
        for (language, length, depth), members in sorted(
            groups.items(), key=lambda item: (item[0][0], item[0][1], item[0][2] is not None, item[0][2] or 0)
        )
    ]


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows over all depths as a text table."""
    lines = [f"{'language':<9}{'length':>8}{'questions':>11}{'exact':>8}{'ranked':>8}{'chance':>8}"]
    lines += [
        f"{row['language']:<9}{row['length']:>8,}{row['questions']:>11}{row['exact']:>8.3f}{row['ranked']:>8.3f}{row['chance']:>8.3f}"
        for row in rows
        if row["depth"] is None
    ]
    return "\n".join(lines)
