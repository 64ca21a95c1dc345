"""Answer the items of a task with a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.task import Answer, Item, JudgeRequest, Request, Responses, Task
from plamo2_jax.models import ChatModel, ChatRequest, CompletionRequest, RequestError, ScoreRequest

_KINDS = (ScoreRequest, CompletionRequest, ChatRequest, JudgeRequest)


def answer_items(
    task: Task, model: ChatModel, judge: ChatModel | None = None, *, items: Sequence[Item] | None = None
) -> list[Answer]:
    """Answer items, all together, and return their answers in order.

    Args:
        task: the task.
        model: the evaluated model.
        judge: the judge model, for tasks that need one.
        items: the items; None: all items of the task.

    Raises:
        PlamoError: a request failed, or the task needs a judge.
    """
    items = task.items if items is None else items
    answers: list[Answer | None] = [None] * len(items)
    for i, answer in drive([task.requests(item) for item in items], lambda requests: ask(requests, model, judge)):
        if isinstance(answer, RequestError):
            raise PlamoError(f"the item {items[i].id} of the task {task.name} has no answer: {answer.reason}")
        answers[i] = answer
    return answers


def drive(
    generators: Sequence[Generator[Request, Responses, Answer]],
    ask: Callable[[Sequence[Request]], Sequence[Responses | RequestError]],
) -> Iterator[tuple[int, Answer | RequestError]]:
    """Run generators together: ask the next requests of all unfinished generators in one call, until every generator has returned.

    Args:
        generators: the generators of items, not started.
        ask: returns the responses to requests, or an error for each request that failed.

    Yields:
        The index of a finished generator with its answer, or with the error of its failed request.
    """
    waiting: list[tuple[int, Request]] = []

    def advance(i: int, responses: Responses | None) -> Answer | None:
        try:
            waiting.append((i, generators[i].send(responses)))
        except StopIteration as end:
            return end.value
        return None

    for i in range(len(generators)):
        if (answer := advance(i, None)) is not None:
            yield i, answer
    while waiting:
        asked, waiting = waiting, []
        for (i, _), responses in zip(asked, ask([request for _, request in asked]), strict=True):
            if isinstance(responses, RequestError):
                generators[i].close()
                yield i, responses
            elif (answer := advance(i, responses)) is not None:
                yield i, answer


def ask(
    requests: Sequence[Request], model: ChatModel, judge: ChatModel | None = None
) -> list[Responses | RequestError]:
    """Send requests to the model or the judge, those of one kind in one call. Return responses or an error for each, in order.

    Raises:
        PlamoError: a request is for the judge, and there is none.
    """
    results: list[Any] = [None] * len(requests)
    for kind in _KINDS:
        places = [i for i, request in enumerate(requests) if isinstance(request, kind)]
        if not places:
            continue
        if kind is JudgeRequest and judge is None:
            raise PlamoError("the task needs a judge: add --judge MODEL_OR_URL")
        send = {
            ScoreRequest: model.score,
            CompletionRequest: model.complete,
            ChatRequest: model.chat,
            JudgeRequest: judge and (lambda some: judge.chat([one.request for one in some])),
        }[kind]
        for i, result in zip(places, send([requests[i] for i in places]), strict=True):
            results[i] = result
    return results
