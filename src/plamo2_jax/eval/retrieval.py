"""Retrieval probes: can a model find one fact in a long text? Questions, their two scores, and tables of them by length and depth.

A question is scored twice: whether greedy decoding gives the answer to the letter, and whether the answer is the likeliest of
several candidates that stand in the text or could. The second is what small models can do: chance is one over the number of
candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from plamo2_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Question:
    """One fact to find."""

    prompt: str
    """The text, ending where the answer begins."""
    answer: str
    candidates: tuple[str, ...]
    """The answer first, then wrong ones of the same form."""
    language: str
    length: int
    """Tokens that were asked for, answer and beginning of document included."""
    depth: float
    """Where the fact stands: 0 at the beginning of the text, 1 just before the question."""


class Answerer(Protocol):
    """A model that answers; prompts are token ids."""

    def complete(self, prompts: Sequence[np.ndarray], max_new_tokens: int) -> list[np.ndarray]:
        """Greedy continuations."""

    def log_likelihoods(
        self, prompts: Sequence[np.ndarray], candidates: Sequence[Sequence[np.ndarray]]
    ) -> list[np.ndarray]:
        """For each prompt [c] log-probabilities of its candidates."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """What became of a question."""

    question: Question
    tokens: int
    """Of the prompt."""
    exact: bool
    """Greedy decoding began with the answer."""
    ranked: bool
    """The answer was likelier than every other candidate."""
    text: str
    """What greedy decoding said."""


def ask(
    questions: Iterable[Question],
    answerer: Answerer,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 4,
    on_answer: Callable[[int], None] | None = None,
) -> list[Answered]:
    """Ask questions, those of one length together.

    Args:
        questions: to ask.
        answerer: the model.
        tokenizer: the model's.
        batch_size: prompts at once.
        on_answer: called with the number of questions just answered.

    Returns:
        In the order of the questions.
    """
    questions = list(questions)
    order = sorted(range(len(questions)), key=lambda i: (questions[i].length, i))
    answered: dict[int, Answered] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = [questions[i] for i in indices]
        cut = [split(question, tokenizer) for question in batch]
        prompts, candidates = [prompt for prompt, _ in cut], [rest for _, rest in cut]
        continuations = answerer.complete(prompts, max(len(rest[0]) for rest in candidates) + 2)
        scores = answerer.log_likelihoods(prompts, candidates)
        for i, question, (prompt, rest), said, score in zip(indices, batch, cut, continuations, scores, strict=True):
            text, wanted = tokenizer.decode(said), tokenizer.decode(rest[0])
            best = bool(np.all(score[0] > score[1:]))
            answered[i] = Answered(question, len(prompt), text.startswith(wanted), best, text)
        if on_answer:
            on_answer(len(indices))
    return [answered[i] for i in range(len(questions))]


def split(question: Question, tokenizer: Tokenizer) -> tuple[np.ndarray, list[np.ndarray]]:
    """The prompt's ids, bos in front, and those of each candidate behind it.

    A tokenizer may join the end of the prompt with the beginning of the answer; the prompt then ends before, as in the text a model
    was trained on.
    """
    whole = [tokenizer.encode(question.prompt + candidate, bos=True) for candidate in question.candidates]
    prompt = tokenizer.encode(question.prompt, bos=True)
    shared = min(_shared(prompt, ids) for ids in whole)
    return np.asarray(prompt[:shared]), [np.asarray(ids[shared:]) for ids in whole]


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(different[0]) if different.size else n


def depths(count: int) -> tuple[float, ...]:
    """`count` depths from 0 to 1."""
    return tuple(np.linspace(0, 1, count).tolist()) if count > 1 else (0.5,)


def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Ids of a text, bos included."""
    return len(tokenizer.encode(text, bos=True))


def table(answered: Sequence[Answered]) -> list[dict[str, Any]]:
    """Accuracies by language, length and depth, a row each; rows with depth None are over all depths."""
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
            "tokens": float(np.mean([member.tokens for member in members])),
        }
        for (language, length, depth), members in sorted(
            groups.items(), key=lambda item: (item[0][0], item[0][1], item[0][2] is not None, item[0][2] or 0)
        )
    ]


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows over all depths, as lines of text."""
    lines = [f"{'language':<9}{'length':>8}{'questions':>11}{'exact':>8}{'ranked':>8}{'chance':>8}"]
    lines += [
        f"{row['language']:<9}{row['length']:>8,}{row['questions']:>11}{row['exact']:>8.3f}{row['ranked']:>8.3f}{row['chance']:>8.3f}"
        for row in rows
        if row["depth"] is None
    ]
    return "\n".join(lines)
