"""One call of a generator: its requests run in their own engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.request import Completion, Request
from plamo2_jax.engine.scheduler import Job, Scheduler
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer


class Generation(Iterator[tuple[int, str]]):
    """Iterate over (row number, text piece). Pieces are not empty. The computation starts with the first `next`.

    The concatenated pieces of a row are the text of its completion.

    Args:
        prompts: for each prompt, the requests of its samples. Rows are numbered in this order.
        start: creates the engine.
        tokenizer: decodes the tokens; None: completions contain token ids only.
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
        """Number of tokens generated so far, summed over the rows."""
        return sum(len(job.row.token_ids) for job in self._jobs)

    def results(self) -> list[Completion]:
        """Generate the remaining tokens and return the completion of each row."""
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
