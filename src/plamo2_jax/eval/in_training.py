"""Benchmark tasks during training: answered by the current parameters, on the devices of the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.weights import decoding_params
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.asking import Asker
from plamo2_jax.eval.run import drive, spread
from plamo2_jax.eval.task import Item, Request, Task, TaskOptions
from plamo2_jax.eval.tasks import TASKS, open_task
from plamo2_jax.model import Plamo2
from plamo2_jax.models import ChatRequest, CompletionRequest, RequestError, ScoreRequest
from plamo2_jax.models.local import LocalChatModel
from plamo2_jax.progress import tqdm
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.config import RunConfig


class TrainingBenchmarks:
    """The tasks of a run, as `train.benchmarks.Benchmarks`.

    With several devices, heads, MLP columns and vocabulary are divided over all of them, as with `--mesh.tensor`.

    Args:
        run: the run.
        tokenizer: its tokenizer.
        devices: its devices.

    Raises:
        PlamoError: there are several processes, a task is unknown, needs data or a judge, or has an item that is too long for the model.
    """

    def __init__(self, run: RunConfig, tokenizer: Tokenizer, devices: Sequence[jax.Device]):
        if jax.process_count() > 1:
            raise PlamoError(
                "evaluation.tasks is not allowed in a job of several processes. Run plamo2 evaluate --tasks with its checkpoints"
            )
        self._config, self._tokenizer, self._devices = run.evaluation, tokenizer, list(devices)
        mesh = make_mesh(MeshConfig(fsdp=1, tensor=len(devices)), devices) if len(devices) > 1 else None
        self._model = Plamo2(run.model, dtype=jnp.dtype(run.dtype), mesh=mesh, scan_layers=False)
        self._template = ChatTemplate.load(run.evaluation.template)
        self._tasks = [(task, self._items(task)) for task in map(self._open, run.evaluation.tasks)]

    def _open(self, name: str) -> Task:
        config = self._config
        if (info := TASKS.get(name)) is None:
            raise PlamoError(f"evaluation.tasks has {name!r}, which is unknown: plamo2 evaluate --list shows the tasks")
        if info.needs_judge:
            raise PlamoError(f"evaluation.tasks has {name}, which needs a judge: use plamo2 evaluate with a checkpoint")
        if info.source is not None and name not in config.paths:
            raise PlamoError(
                f"evaluation.tasks has {name}, whose data is not part of this package (licence: {info.licence}): get it from "
                f"{info.source}, and set evaluation.paths to {{{name!r}: PATH}}"
            )
        options = TaskOptions(
            path=config.paths.get(name),
            shots=config.shots,
            lengths=config.lengths,
            max_new_tokens=config.max_new_tokens,
            count_tokens=lambda text: len(self._tokenizer.encode(text)),
        )
        return open_task(name, options)

    def _items(self, task: Task) -> Sequence[Item]:
        """Return the items to answer. Raise PlamoError if the first request of one is too long, which would fail after hours."""
        items = spread(task.items, self._config.limit)
        longest = self._model.config.max_position_embeddings
        for item in items:
            generator = task.requests(item)
            size = self._size(next(generator))
            generator.close()
            if size > longest:
                raise PlamoError(
                    f"evaluation.tasks: the item {item.id} of {task.name} needs {size} tokens, and the model "
                    f"has {longest} positions. Use smaller evaluation.lengths, shots or max_new_tokens, or "
                    "remove the task"
                )
        return items

    def _size(self, request: Request) -> int:
        """Return the number of tokens of a request with its answer."""
        if isinstance(request, ChatRequest):
            chat = self._template.encode(
                self._tokenizer, request.messages, add_generation_prompt=True, **request.variables
            )
            return len(chat.ids) + request.stop.max_new_tokens
        if isinstance(request, CompletionRequest):
            return self._tokens(request.prompt, request.bos) + request.stop.max_new_tokens
        if isinstance(request, ScoreRequest):
            longest = max(self._tokens(text, False) for text in request.continuations)
            return self._tokens(request.context, request.bos) + longest
        return 0

    def _tokens(self, prompt: Any, bos: bool) -> int:
        return len(self._tokenizer.encode(prompt, bos=bos) if isinstance(prompt, str) else prompt)

    def measure(self, params: Any, keep_on: Callable[[], bool]) -> dict[str, float]:
        """Answer the tasks, as described in `Benchmarks.measure`. Metrics of groups are omitted, and standard errors are included."""
        placed = decoding_params(self._model, params, self._devices[0])
        generator = Generator(self._model, placed, self._tokenizer, max_slots=self._config.batch_size)
        longest = self._model.config.max_position_embeddings
        metrics: dict[str, float] = {}
        with LocalChatModel(
            generator, self._template, {}, batch_size=self._config.batch_size, max_prompt_tokens=longest
        ) as model:
            for task, items in self._tasks:
                found = self._answer(task, items, model, keep_on)
                if found is None:
                    return {}
                metrics |= found
        return metrics

    def _answer(
        self, task: Task, items: Sequence[Item], model: LocalChatModel, keep_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        answered, answers, failed = [], [], []
        for start in range(0, len(items), self._config.batch_size):
            if not keep_on():
                return None
            batch = items[start : start + self._config.batch_size]
            done = dict(drive([task.requests(item) for item in batch], Asker(model)))
            for i, item in enumerate(batch):
                if isinstance(done[i], RequestError):
                    failed.append(f"{item.id}: {done[i].reason}")
                else:
                    answered.append(item)
                    answers.append(done[i])
        if failed:
            tqdm.write(f"{task.name}: {len(failed)} items have no answer; the first: {failed[0]}", file=sys.stderr)
        figures = {"items": float(len(answered)), "failed": float(len(failed))}
        if answered:
            scores = task.score(answered, answers)
            for name, metric in task.summarize(answered, scores).items():
                if "/" not in name:
                    figures[name] = metric.value
                    figures |= {} if metric.stderr is None else {f"{name}_stderr": metric.stderr}
        return {f"{task.name}/{name}": value for name, value in figures.items()}


def open_benchmarks(run: RunConfig, tokenizer: Tokenizer, devices: Sequence[jax.Device]) -> TrainingBenchmarks:
    """Open the tasks of a run; `train.loop.train` takes this function.

    Raises:
        PlamoError: see `TrainingBenchmarks`.
    """
    return TrainingBenchmarks(run, tokenizer, devices)
