"""Answer the items of a task with a model, and write the result.

FOLDER/result.json      metrics with standard errors, hashes of data and prompts, model, settings, versions
FOLDER/answers.jsonl    question, answer and scores of each item, in the order of the items
FOLDER/journal.jsonl    every response, so that a run that was interrupted goes on where it was
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import plamo2_jax
from plamo2_jax.checkpoint import write_json
from plamo2_jax.data.contamination import Rule
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval import request_json
from plamo2_jax.eval.asking import Asker
from plamo2_jax.eval.contamination import summary
from plamo2_jax.eval.task import Answer, HasPlots, Item, Request, Responses, Task
from plamo2_jax.journal import Journal
from plamo2_jax.models import ChatModel, RequestError
from plamo2_jax.progress import tqdm
from plamo2_jax.storage import lock_folder, write_whole

RESULT = "result.json"
ANSWERS = "answers.jsonl"
JOURNAL = "journal.jsonl"
TIMES = ("seconds", "finished")
"""Fields of a result that differ between two runs with the same results."""
_LARGEST_ERROR_LIST = 100
_MOST_SAMPLING_SETTINGS = 10


def answer_items(
    task: Task, model: ChatModel, judge: ChatModel | None = None, *, items: Sequence[Item] | None = None
) -> list[Answer]:
    """Answer items in memory, and return their answers in order.

    Args:
        task: the task.
        model: the evaluated model.
        judge: the judge model, for tasks that need one.
        items: the items; None: all items of the task.

    Raises:
        PlamoError: a request failed, or the task needs a judge.
    """
    items = task.items if items is None else items
    answers: list[Any] = [None] * len(items)
    for i, answer in drive([task.requests(item) for item in items], Asker(model, judge)):
        if isinstance(answer, RequestError):
            raise PlamoError(f"the item {items[i].id} of the task {task.name} has no answer: {answer.reason}")
        answers[i] = answer
    return answers


def run_task(
    task: Task,
    model: ChatModel,
    judge: ChatModel | None = None,
    *,
    folder: Path | None = None,
    limit: int | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 256,
    concurrency: int = 8,
    contaminated: Mapping[str, Rule] | None = None,
) -> dict[str, Any]:
    """Answer the items of a task, score the answers, and return the result. Stored responses are reused.

    Args:
        task: the task.
        model: the evaluated model.
        judge: the judge model, for tasks that need one.
        folder: folder for result.json, answers.jsonl and the journal; None: nothing is written.
        limit: maximum number of items, equally many of each group; None: all.
        settings: JSON object for the result: how the task was opened.
        batch_size: maximum number of requests in one call of a local model.
        concurrency: number of concurrent requests to a server.
        contaminated: how the training data contains an item, by the ids of such items; None: unknown. The answers then have the field
            `contaminated`, and the result has the metrics of these items and of the others.

    Returns:
        The contents of result.json. `errors` lists the items without an answer; the metrics are means over the other items.

    Raises:
        PlamoError: the folder is in use, a server fails all requests, or the task needs a judge.
    """
    items = spread(task.items, limit)
    if len({item.id for item in items}) < len(items):
        raise PlamoError(
            f"two items of the task {task.name} have the same id: ids must be unique. Check the data for repeated rows"
        )
    with contextlib.ExitStack() as stack:
        journal = None
        if folder is not None:
            stack.enter_context(lock_folder(folder))
            journal = Journal(folder / JOURNAL, request_json.is_entry)
            stack.callback(journal.close)
        progress = stack.enter_context(tqdm(total=0, desc=task.name, unit="request"))

        def on_progress(new: int, done: int) -> None:
            if new:
                progress.total += new
                progress.refresh()
            progress.update(done)

        asker = Asker(model, judge, journal, batch_size=batch_size, concurrency=concurrency, on_progress=on_progress)
        prompts: list[str | None] = [None] * len(items)
        sampling: dict[str, dict[str, Any]] = {}
        generators = [_noting_prompt(task.requests(item), prompts, i, sampling) for i, item in enumerate(items)]
        answers: list[Any] = [None] * len(items)
        for i, answer in drive(generators, asker):
            answers[i] = answer
        progress.close()
        answered = [i for i, answer in enumerate(answers) if not isinstance(answer, RequestError)]
        some, scores = [items[i] for i in answered], []
        if some:
            scores = task.score(some, [answers[i] for i in answered])
        metrics = task.summarize(some, scores) if some else {}
        plots: list[str] = []
        if folder is not None:
            plots = (
                [path.name for path in task.plots(some, scores, folder)] if some and isinstance(task, HasPlots) else []
            )
            rows = zip(some, answered, scores, strict=True)
            write_whole(
                folder / ANSWERS,
                b"".join(_answer_line(item, prompts[i], answers[i], row, contaminated) for item, i, row in rows),
            )
        main = metrics.get(task.metric)
        errors = [(items[i].id, answers[i].reason) for i in range(len(items)) if isinstance(answers[i], RequestError)]
        result = {
            "task": task.name,
            "metric": task.metric,
            "score": None if main is None else main.value,
            "stderr": None if main is None else main.stderr,
            "n": len(some),
            "metrics": {name: dataclasses.asdict(metric) for name, metric in metrics.items()},
            "failed": len(errors),
            "errors": [{"id": id, "reason": reason} for id, reason in errors[:_LARGEST_ERROR_LIST]],
            "prompt_hash": request_json.digest(prompts),
            "provenance": {"data_sha256": _items_sha256(task.items), **task.provenance},
            "sampling": list(sampling.values()),
            "settings": {**(settings or {}), "limit": limit},
            "model": dict(model.description),
            "judge": None if judge is None else dict(judge.description),
            "tokens": asker.tokens(),
            "plots": plots,
            **({} if contaminated is None else {"contamination": summary(task, some, scores, contaminated)}),
            "versions": versions(),
            "seconds": asker.seconds(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if folder is not None:
            write_json(folder / RESULT, result)
    return result


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Return at most `limit` items in their order, equally many of each group, which a hash of their ids selects."""
    if limit is None or limit >= len(items):
        return list(items)
    groups: dict[str | None, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.group, []).append(i)
    ranks = {}
    for members in groups.values():
        ranks |= {i: rank for rank, i in enumerate(sorted(members, key=lambda i: request_json.digest(items[i].id)))}
    return [items[i] for i in sorted(sorted(ranks, key=lambda i: (ranks[i], i))[:limit])]


def versions() -> dict[str, str]:
    """Return the versions of this package, of jax and NumPy, and of Python."""
    packages = {name: metadata.version(name) for name in ("jax", "numpy")}
    return {"plamo2-jax": plamo2_jax.__version__, **packages, "python": platform.python_version()}


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

    def advance(i: int, responses: Responses | None) -> Iterator[tuple[int, Answer]]:
        try:
            waiting.append((i, generators[i].send(responses)))
        except StopIteration as end:
            yield i, end.value

    for i in range(len(generators)):
        yield from advance(i, None)
    while waiting:
        asked, waiting = waiting, []
        for (i, _), responses in zip(asked, ask([request for _, request in asked]), strict=True):
            if isinstance(responses, RequestError):
                generators[i].close()
                yield i, responses
            else:
                yield from advance(i, responses)


def _noting_prompt(
    inner: Generator[Request, Responses, Answer],
    prompts: list[str | None],
    i: int,
    sampling: dict[str, dict[str, Any]],
) -> Generator[Request, Responses, Answer]:
    """Run the generator of item i. Store the hash of its first request, which does not depend on the model, and its sampling settings."""
    try:
        request = next(inner)
        fields = request_json.request_json(request)
        prompts[i] = request_json.digest(fields)
        if len(sampling) < _MOST_SAMPLING_SETTINGS:
            settings = {name: fields[name] for name in ("kind", "sampling", "stop", "n") if name in fields}
            sampling[request_json.digest(settings)] = settings
        while True:
            responses = yield request
            request = inner.send(responses)
    except StopIteration as end:
        return end.value


def _items_sha256(items: Sequence[Item]) -> str:
    """Return a hash of questions and references, for tasks that generate their data."""
    rows = [[item.id, item.question, item.reference, item.group] for item in items]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _answer_line(
    item: Item,
    prompt: str | None,
    answer: Answer,
    scores: Mapping[str, float],
    contaminated: Mapping[str, Rule] | None,
) -> bytes:
    row = {"id": item.id, "group": item.group, "question": item.question, "reference": item.reference}
    row |= {"prompt_hash": prompt, "answer": answer, "scores": dict(scores)}
    if contaminated is not None:
        row["contaminated"] = contaminated.get(item.id)
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
