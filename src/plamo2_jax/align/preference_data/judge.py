"""Comparison of answers by a model as judge, in both orders.

Judges prefer the answer that they read first (Zheng et al., arXiv:2306.05685). An answer wins a pair only if it wins in both orders;
otherwise the pair is a tie. The judge's score of an answer is the share of its pairs that it wins, where a tie counts as half a win.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.eval.judging import COMPARISON_RUBRIC, comparison_messages, read_verdict
from plamo2_jax.models import ChatModel, ChatModelConfig, ChatRequest, RequestError
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class JudgeConfig(ChatModelConfig):
    """Judge model that compares answers. Without `model`, no judge is used."""

    rubric: str = COMPARISON_RUBRIC
    """System message. It must ask for [[A]], [[B]] or, for a tie, [[C]] at the end."""
    weight: float = 1.0
    """Weight of the judge's win rate in the score of an answer, relative to `rules_weight`."""
    max_new_tokens: int = 512
    """Maximum number of tokens of the judge's reply."""

    def __post_init__(self) -> None:
        super().__post_init__()
        asks = "[[A]]" in self.rubric and "[[B]]" in self.rubric
        require(self, "rubric", asks, "a text that asks for [[A]] or [[B]]")
        require(self, "weight", 0 < self.weight < math.inf, "positive and finite")
        require(self, "max_new_tokens", self.max_new_tokens >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Result of the comparison of two answers."""

    pair: tuple[int, int]
    """Sample numbers of the answers."""
    said: tuple[str, str]
    """Replies A, B, C (a tie) or "?" (unreadable): with the first of the pair as A, then with the second as A."""
    winner: int | None
    """Sample number of the winner, or None for a tie."""
    retries: int
    """Number of failed attempts."""


def compare(
    judge: ChatModel,
    config: JudgeConfig,
    requests: Sequence[ChatRequest],
    answers: Sequence[Mapping[int, str]],
    seed: int,
) -> list[list[Verdict] | RequestError]:
    """Compare all pairs of the answers to each request, in both orders.

    Args:
        requests: the answered requests.
        answers: texts by sample number, for each request.

    Returns:
        The verdicts of each request, or the error of its judge.
    """
    pairs = [list(itertools.combinations(sorted(texts), 2)) for texts in answers]
    orders = [
        ChatRequest(
            f"{request.id}\n{first}\n{second}",
            _messages(config.rubric, request, texts[first], texts[second]),
            sampling=SamplingConfig(temperature=0.0),
            stop=StopConfig(max_new_tokens=config.max_new_tokens),
            seed=seed,
        )
        for request, texts, some in zip(requests, answers, pairs, strict=True)
        for i, j in some
        for first, second in ((i, j), (j, i))
    ]
    said = iter(judge.chat(orders) if orders else [])
    found: list[list[Verdict] | RequestError] = []
    for some in pairs:
        replies = [(pair, next(said), next(said)) for pair in some]
        errors = [one for _, *both in replies for one in both if isinstance(one, RequestError)]
        if errors:
            found.append(RequestError(f"the judge: {errors[0].reason}", sum(one.retries for one in errors)))
        else:
            found.append([_verdict(pair, first[0], second[0]) for pair, first, second in replies])
    return found


def win_shares(samples: Sequence[int], verdicts: Sequence[Verdict]) -> dict[int, float]:
    """Return the share of its pairs that each sample wins, by sample number. A tie is half a win; a sample without pairs has ½."""
    points, games = dict.fromkeys(samples, 0.0), dict.fromkeys(samples, 0)
    for verdict in verdicts:
        for sample in verdict.pair:
            games[sample] += 1
            points[sample] += 0.5 if verdict.winner is None else float(verdict.winner == sample)
    return {sample: points[sample] / games[sample] if games[sample] else 0.5 for sample in samples}


def _verdict(pair: tuple[int, int], first: Any, second: Any) -> Verdict:
    said = read_verdict(first.text), read_verdict(second.text)
    winner = {("A", "B"): pair[0], ("B", "A"): pair[1]}.get(said)
    return Verdict(pair, said, winner, first.retries + second.retries)


def _messages(rubric: str, request: ChatRequest, a: str, b: str) -> list[dict[str, str]]:
    said = "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in request.messages)
    return comparison_messages(rubric, said, a, b)
