"""Scores of answers to pfgen-bench questions, with several processes. The results equal the benchmark's own to the last digit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from plamo2_jax.data.workers import available_cores
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.pfgen.benchmark import QuestionFile, read_criteria
from plamo2_jax.eval.pfgen.keywords import helpfulness
from plamo2_jax.eval.pfgen.ngrams import NgramScorer
from plamo2_jax.eval.pfgen.table_cache import cached_scorer


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of an answer. They are about 1 for a good answer; fluency and the average may exceed 1."""

    fluency: float
    """How much the answer's n-grams occur in the references, compared with a reference."""
    truthfulness: float
    """Share of characters that are part of 3-grams of the references."""
    helpfulness: float
    """Share of the keywords that the answer has: 1 for all, 0 if a keyword of full importance is missing."""
    average: float
    """Mean of the three."""


def score_question(file: QuestionFile, answers: Sequence[str]) -> list[Scores]:
    """Score answers to one question.

    Raises:
        PlamoError: the question's file is missing or damaged.
    """
    criteria = read_criteria(file)
    try:
        scorer = cached_scorer(file.sha256, lambda: NgramScorer(criteria.pools))
        return [
            _combine(fluency.tolist(), truthfulness.tolist(), helpful)
            for fluency, truthfulness, helpful in zip(
                *scorer.score(answers), helpfulness(criteria.keywords, answers), strict=True
            )
        ]
    except PlamoError as error:
        raise PlamoError(f"{file.path}: {error}") from error


def score_questions(
    files: Sequence[QuestionFile], answers: Sequence[Sequence[str]], *, processes: int | None = None
) -> Iterator[list[Scores]]:
    """Score the answers to several questions. Yield the scores of the answers to each question, in order.

    Args:
        files: the questions.
        answers: the answers to each question.
        processes: number of processes; None: one for each core. New processes do not import JAX.

    Raises:
        PlamoError: a file is missing or damaged.
    """
    processes = min(len(files), available_cores() if processes is None else processes)
    if processes < 2:
        yield from map(score_question, files, answers)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Not forked: this process may hold threads of JAX.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        try:
            for result in pool.map(_score_in_worker, files, answers):
                if isinstance(result, str):
                    raise PlamoError(result)
                yield result
        except BrokenProcessPool:
            raise PlamoError(
                "a process that scores answers was killed: run the command again with fewer --processes"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _score_in_worker(file: QuestionFile, answers: Sequence[str]) -> list[Scores] | str:
    """Return the scores, or the message of an error, because not all errors can be sent between processes."""
    try:
        return score_question(file, answers)
    except PlamoError as error:
        return str(error)


def _combine(fluency: Sequence[float], truthfulness: Sequence[float], helpful: float) -> Scores:
    """Round and add the scores as the benchmark does: each pool to 6 digits after division by their number, the rest to 5."""
    # The public results were made with Python 3.12 or later, whose `sum` has no rounding error. Older versions of Python sometimes differ
    # by 0.00001 in the average.
    fluent = math.fsum(round(value / len(fluency), 6) for value in fluency)
    truthful = math.fsum(round(value / len(truthfulness), 6) for value in truthfulness)
    helpful = round(helpful, 5)
    average = round((fluent + truthful + helpful) / 3, 5)
    return Scores(round(fluent, 6), round(truthful, 6), helpful, average)
