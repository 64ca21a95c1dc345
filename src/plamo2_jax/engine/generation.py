"""The texts of one call of a generator: their requests run in an engine of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.request import Completion, Request
from plamo2_jax.engine.scheduler import Job, Scheduler
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer


class Generation(Iterator[tuple[int, str]]):
    """An iterator of (row, text piece). Pieces are never empty; nothing is computed before the first is asked for.

    The pieces of a row, joined, are its completion's text.

    Args:
        prompts: for each prompt the requests of its samples; rows are numbered in this order.
        start: makes the engine.
        tokenizer: for text; None: ids only.
    """

    def __init__(self, prompts: Sequence[Sequence[Request]], start: Callable[[], Engine], tokenizer: Tokenizer | None):
        self._prompts, self._start, self._tokenizer = prompts, start, tokenizer
        self._jobs: list[Job] = []
        self._pieces = self._run()

    def __next__(self) -> tuple[int, str]:
        """Return the next piece of any row.

        Raises:
            PlamoError: the model's logits are not finite numbers.
        """
        return next(self._pieces)

    @property
    def tokens_generated(self) -> int:
        """Tokens of all rows so far."""
        return sum(len(job.row.token_ids) for job in self._jobs)

    def results(self) -> list[Completion]:
        """Return the completion of each row; generate what is still missing."""
        for _ in self:
            pass
        return [job.row.completion() for job in self._jobs]

    def _run(self) -> Iterator[tuple[int, str]]:
        scheduler = Scheduler(self._start(), self._tokenizer)
        self._jobs = [job for requests in self._prompts for job in scheduler.submit(requests)]
        numbers = {job: i for i, job in enumerate(self._jobs)}
        while scheduler.busy:
            for delta in scheduler.run_round():
                if delta.error is not None:
                    raise PlamoError(f"row {numbers[delta.job]}: {delta.error}")
                if delta.text:
                    yield numbers[delta.job], delta.text
