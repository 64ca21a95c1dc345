"""Retrieval probes: can a model find one fact in a long text? Questions, their two scores, and tables of them by length and depth.

A question is scored twice: whether greedy decoding gives the answer to the letter, and whether the answer is the likeliest of
several candidates that stand in the text or could. The second is what small models can do: chance is one over the number of
candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.models import ChatModel, CompletionRequest, RequestError, ScoreRequest
from plamo2_jax.models.scoring import split_texts
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
    model: ChatModel,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 4,
    on_answer: Callable[[int], None] | None = None,
) -> list[Answered]:
    """Ask questions, those of one length together.

    Args:
        questions: to ask.
        model: the model to ask.
        tokenizer: the model's.
        batch_size: questions given to the model at once.
        on_answer: called with the number of questions just answered.

    Returns:
        In the order of the questions.

    Raises:
        ValueError: the model refuses a question, for instance because it is longer than its context.
    """
    questions = list(questions)
    order = sorted(range(len(questions)), key=lambda i: (questions[i].length, i))
    answered: dict[int, Answered] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        cut = [split(questions[i], tokenizer) for i in indices]
        stop = StopConfig(max_new_tokens=max(len(candidates[0]) for _, candidates in cut) + 2)
        greedy = SamplingConfig(temperature=0.0)
        responses = model.complete([CompletionRequest(prompt, sampling=greedy, stop=stop) for prompt, _ in cut])
        scores = model.score([ScoreRequest(*both) for both in cut])
        for i, (prompt, candidates), response, score in zip(indices, cut, responses, scores, strict=True):
            for one in (response, score):
                if isinstance(one, RequestError):
                    raise PlamoError(f"a question of {len(prompt)} tokens has no answer: {one.reason}")
            said, right = response[0], tokenizer.decode(candidates[0])
            text = said.text if said.token_ids is None else tokenizer.decode(said.token_ids)
            best = all(score[0].logprob > other.logprob for other in score[1:])
            answered[i] = Answered(questions[i], len(prompt), text.startswith(right), best, text)
        if on_answer:
            on_answer(len(indices))
    return [answered[i] for i in range(len(questions))]


def split(question: Question, tokenizer: Tokenizer) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the ids of the prompt, bos in front, and of each candidate behind it; `models.ScoreRequest` says where they are cut."""
    return split_texts(tokenizer, question.prompt, question.candidates)


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
