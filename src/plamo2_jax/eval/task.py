"""Benchmark tasks: their items, the requests that an item needs, and the scores of its answer.

A task sends no requests itself. `requests` is a generator: it yields a request, receives the responses, and returns the answer. The runner
sends the requests of many items together, stores every response in a journal, and replays stored responses after a restart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from plamo2_jax.models import ChatRequest, ChatResponse, CompletionRequest, Score, ScoreRequest


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
    """A conversation for the judge model instead of the evaluated model."""

    request: ChatRequest


Request = ChatRequest | CompletionRequest | ScoreRequest | JudgeRequest
Responses = Sequence[ChatResponse] | Sequence[Score]
"""The `n` responses of a `ChatRequest` or `CompletionRequest`, or the scores of the continuations of a `ScoreRequest`."""
Answer = Mapping[str, Any]
"""What an item's generator returns: a JSON object, for instance {"text": "..."} or {"choice": 2}. It is written to the answers file."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a task."""

    id: str
    """Unique within the task. It may contain a trial number, such as Q01/3."""
    question: str
    """Text of the question, without examples. It is shown in the report and compared with the training data."""
    reference: Any = None
    """JSON value that the answer is compared with."""
    group: str | None = None
    """Subject or category. The result has the mean of each group."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A summary over items."""

    value: float
    stderr: float | None
    """Standard error of `value`; None if it is not defined."""
    n: int
    """Number of items."""


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """Settings that a task is opened with."""

    path: Path | None = None
    """File or folder with the benchmark's data, for tasks whose data is not part of this package."""
    mode: str | None = None
    """Form of the prompts, for instance "completion" or "chat". None: the task's default."""
    shots: int | None = None
    """Number of examples in the prompt. None: the task's default."""
    trials: int | None = None
    """Number of answers to each question. None: the task's default."""
    max_new_tokens: int | None = None
    """Largest number of tokens of an answer. None: the task's default."""
    seed: int = 0
    """Seed of sampled answers and of generated questions."""
    lengths: tuple[int, ...] = ()
    """Numbers of tokens of generated contexts. Empty: the task's default."""
    depths: int | None = None
    """Number of positions of a fact in generated contexts, from the beginning to the end. None: the task's default."""
    kinds: tuple[str, ...] = ()
    """Kinds of generated questions, for tasks that have several. Empty: all."""
    count_tokens: Callable[[str], int] | None = None
    """Returns the number of tokens of a text. None if the model has no tokenizer here; tasks then count three characters as a token."""
    baseline: Path | None = None
    """Answers of a baseline model that the judge compares with: a folder of results or its answers.jsonl. None: the judge rates answers."""
    processes: int | None = None
    """Number of processes that score answers. None: one for each core."""
    allow_unisolated_code: bool = False
    """Run model-written programs even if this system cannot isolate them."""


class Task(Protocol):
    """A benchmark. Everything is determined by its data and options; a task has no random state."""

    name: str
    """Name on the command line."""
    metric: str
    """Name of the metric that is compared and plotted."""
    provenance: Mapping[str, Any]
    """JSON object for the result: sha256 of the data, licence, ids of the examples, sampling settings."""
    items: Sequence[Item]

    def requests(self, item: Item) -> Generator[Request, Responses, Answer]:
        """Yield the requests of an item one after another, and return its answer."""
        ...

    def score(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[Mapping[str, float]]:
        """Return the scores of each answer by name. An item may lack a score that does not apply to it."""
        ...

    def summarize(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]]) -> Mapping[str, Metric]:
        """Return the metrics over all items. `metrics.mean_metrics` is the usual implementation."""
        ...


@runtime_checkable
class HasPlots(Protocol):
    """A task that draws plots of its scores, such as heat maps. The runner writes them beside the results."""

    def plots(self, items: Sequence[Item], scores: Sequence[Mapping[str, float]], folder: Path) -> list[Path]:
        """Draw the scores into PNG files in an existing folder. Return the paths of the files."""
        ...
