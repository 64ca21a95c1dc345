"""Several texts under way: prompts are read, rows take slots of an engine, and those that wait get slots as others end."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator, Sequence

from plamo2_jax.engine.engine import CAPACITY, Engine
from plamo2_jax.engine.request import Completion, Request, Row
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer


class Generation(Iterator[tuple[int, str]]):
    """An iterator of (row, text piece), pieces never empty; nothing is computed before the first is asked for.

    The pieces of a row, joined, are its completion's text.

    Args:
        requests: one for each row; neighbours of one prompt share its reading.
        start: makes the engine.
        tokenizer: for text; None: ids only.
    """

    def __init__(self, requests: Sequence[Request], start, tokenizer: Tokenizer | None):
        self._rows = [Row(request, tokenizer) for request in requests]
        self._start = start
        self._pieces = self._run()

    def __next__(self) -> tuple[int, str]:
        """The next piece of any row.

        Raises:
            ValueError: the model's logits are not finite numbers.
        """
        return next(self._pieces)

    @property
    def tokens_generated(self) -> int:
        """Tokens of all rows so far."""
        return sum(len(row.token_ids) for row in self._rows)

    def results(self) -> list[Completion]:
        """The completions, one a row; generates what is still missing."""
        for _ in self:
            pass
        return [row.completion() for row in self._rows]

    def _run(self) -> Iterator[tuple[int, str]]:
        engine, pace, taken = self._start(), _Pace(), {}
        waiting = collections.deque(range(len(self._rows)))
        while waiting or taken:
            self._fill(engine, waiting, taken)
            begun = time.perf_counter()
            tokens, logprobs = engine.step(pace.count, until_free=bool(waiting))
            made = int((tokens >= 0).any(axis=1).sum())
            pace.measured(time.perf_counter() - begun, made)
            for step in range(made):
                for slot, index in taken.items():
                    row = self._rows[index]
                    if row.alive and (piece := self._push(index, int(tokens[step, slot]), float(logprobs[step, slot]))):
                        yield index, piece
            # Stop strings are seen only here, not by the compiled loop.
            if found := [slot for slot, i in taken.items() if self._rows[i].finish_reason == "stop_string"]:
                engine.release(found)
            taken = {slot: index for slot, index in taken.items() if self._rows[index].alive}

    def _fill(self, engine: Engine, waiting: collections.deque[int], taken: dict[int, int]) -> None:
        """Give free slots to the rows that wait longest."""
        free = [slot for slot in range(engine.slots) if slot not in taken]
        starting = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
        # Samples of one prompt stand side by side and share its array.
        by_prompt: dict[int, list[int]] = {}
        for index in starting:
            by_prompt.setdefault(id(self._rows[index].request.prompt), []).append(index)
        for group in by_prompt.values():
            prefix = engine.prefill(self._rows[group[0]].request.prompt)
            for index in group:
                slot = free.pop(0)
                engine.insert(slot, prefix, self._rows[index].request)
                taken[slot] = index

    def _push(self, index: int, token: int, logprob: float) -> str:
        try:
            return self._rows[index].push(token, logprob)
        except ValueError as error:
            raise PlamoError(f"row {index}: {error}") from None


class _Pace:
    """How many tokens one call of the engine makes: enough to hide its cost, few enough that text keeps coming."""

    # Seconds that a reader waits for text, as long as a token takes less.
    interval = 0.1

    def __init__(self):
        self.count = 1
        self._compiled = False

    def measured(self, seconds: float, made: int) -> None:
        """Learn from the last call; the first may have compiled and teaches nothing."""
        if self._compiled and made:
            self.count = max(1, min(CAPACITY, int(self.interval * made / seconds)))
        self._compiled = True
