"""Retrieval probes: questions about one fact in a long text, their two scores, and tables of the scores by length and depth.

A question is scored twice: whether greedy decoding gives exactly the answer, and whether the answer has the highest probability of several
candidates of the same form. Small models can do only the second; chance is one over the number of candidates.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.phonebook_names import LANGUAGES
from plamo2_jax.models import ChatModel, CompletionRequest, RequestError, ScoreRequest
from plamo2_jax.models.scoring import split_texts
from plamo2_jax.tokenizer.tokenizer import Tokenizer


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


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question with the results of a model."""

    question: Question
    tokens: int
    """Number of tokens of the prompt."""
    exact: bool
    """Whether the output of greedy decoding starts with the answer."""
    ranked: bool
    """Whether the answer has a higher probability than every other candidate."""
    text: str
    """Output of greedy decoding."""


def ask(
    questions: Iterable[Question],
    model: ChatModel,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 4,
    on_answer: Callable[[int], None] | None = None,
) -> list[Answered]:
    """Ask a model questions, in batches of similar length.

    Args:
        batch_size: Questions per batch.
        on_answer: Called after each batch with the number of its questions.

    Returns:
        The results in the order of the questions.

    Raises:
        PlamoError: The model refuses a question, for instance because it is longer than the model's context.
    """
    questions = list(questions)
    order = sorted(range(len(questions)), key=lambda i: (questions[i].length, i))
    answered: dict[int, Answered] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        cut = [split_texts(tokenizer, questions[i].prompt, questions[i].candidates) for i in indices]
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


def settings(
    languages: Iterable[str], lengths: Sequence[int], depths: Sequence[float], samples: int, seed: int
) -> Iterator[tuple[str, int, float, np.random.Generator]]:
    """Yield language, length, depth and random generator of each question of a probe."""
    for language, length, depth, sample in itertools.product(languages, lengths, depths, range(samples)):
        key = [seed, LANGUAGES.index(language), length, round(depth * 1000), sample]
        yield language, length, depth, np.random.default_rng(key)


def depths(count: int) -> tuple[float, ...]:
    """Return `count` evenly spaced depths from 0 to 1; 0.5 if `count` is 1."""
    return tuple(np.linspace(0, 1, count).tolist()) if count > 1 else (0.5,)


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
            "tokens": float(np.mean([member.tokens for member in members])),
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
