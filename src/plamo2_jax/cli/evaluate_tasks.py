"""The part of `plamo2 evaluate` that runs benchmark tasks."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.task import Task, TaskOptions
from plamo2_jax.eval.tasks import TASKS, open_task, options_of

if TYPE_CHECKING:
    from plamo2_jax.cli.evaluate_options import EvaluateOptions
    from plamo2_jax.models import ChatModel

# A local model checks its own maximum length. This limit bounds the memory that one prompt may need.
_MOST_PROMPT_TOKENS = 1 << 20
# For each text that is generated together, so many requests are sent in one call: fewer calls keep the model busier, more calls lose less
# work when a run is killed.
_REQUESTS_PER_SLOT = 4


def print_tasks() -> None:
    """Print the tasks with their licences and the sources of their data."""
    for name in sorted(TASKS):
        info = TASKS[name]
        print(f"{name}: {info.summary}{' Needs --judge.' if info.needs_judge else ''}")
        if info.source is None:
            print("    data: included")
        else:
            print(f"    data: --path {name}=PATH, from {info.source}")
        print(f"    licence: {info.licence}")
    print("FILE.yaml: Tasks on your own JSON lines, defined in a YAML file (docs/evaluation_tasks.md).")


def run_tasks(options: EvaluateOptions, folder: Path) -> int:
    """Run the tasks, print a table, and write the results and report.html to a folder.

    Returns:
        The exit status: 1 if a request failed.

    Raises:
        PlamoError: a task or a model cannot be opened, or a server fails all requests.
    """
    tasks = open_tasks(options)
    if options.judge is None and (
        judged := [name for name in options.tasks if name in TASKS and TASKS[name].needs_judge]
    ):
        raise PlamoError(f"the task {judged[0]} needs a judge: add --judge MODEL_OR_URL")

    from plamo2_jax.eval.run import run_task
    from plamo2_jax.eval.server_identity import check_servers
    from plamo2_jax.report.evaluation import write_evaluation_report

    contaminated = _contaminated(options, tasks)
    slots = 64 if options.batch_size is None else options.batch_size
    judge = None
    with open_model(options, slots) as model:
        if options.judge is not None:
            judge = open_judge(options, slots)
        check_servers(folder, {"model": model.description, "judge": None if judge is None else judge.description})
        results = []
        for label, task in tasks.items():
            result = run_task(
                task,
                model,
                judge,
                folder=folder / label,
                limit=options.limit,
                settings={
                    option: value
                    for option, value in _settings(options).items()
                    if option == "seed" or option in options_of(task.name)
                },
                batch_size=_REQUESTS_PER_SLOT * slots,
                concurrency=options.concurrency,
                contaminated=contaminated.get(label),
            )
            results.append((label, result))
            for error in result["errors"][:3]:
                print(f"plamo2 evaluate: {label}, item {error['id']}: {error['reason']}", file=sys.stderr)
        if judge is not None:
            judge.close()
    report = write_evaluation_report(folder)
    print(results_table(results))
    for label, result in results:
        if "contamination" in result:
            print(_contamination_line(label, result))
    print(f"results: {folder}, report: {report}")
    failed = sum(result["failed"] for _, result in results)
    if failed:
        print(
            f"plamo2 evaluate: {failed} items have no answer; run the same command again to retry them", file=sys.stderr
        )
    return 1 if failed else 0


def open_tasks(options: EvaluateOptions) -> dict[str, Task]:
    """Open the tasks. Return them by the names of their folders: NAME, or NAME-MODE if the mode is given.

    Raises:
        PlamoError: a task is unknown or occurs twice, or its data is missing or malformed.
    """
    from plamo2_jax.eval.tasks.user import open_file

    paths, common = _paths(options), _task_options(options)
    for name in paths:
        if name not in options.tasks:
            raise PlamoError(f"--path names {name}, which is not one of --tasks {' '.join(options.tasks)}")
    for name in options.tasks:
        if options.tasks.count(name) > 1:
            raise PlamoError(f"--tasks has {name} twice: each task must occur once")
    for option in _settings(options):
        if option != "seed" and not any(option in options_of(name) for name in options.tasks):
            flag = option.replace("_", "-")
            raise PlamoError(f"--{flag} has no effect on {', '.join(options.tasks)}: leave it out")
    tasks: dict[str, Task] = {}
    for name in options.tasks:
        if name.endswith((".yaml", ".yml")):
            opened = open_file(Path(name), common)
        else:
            opened = [open_task(name, dataclasses.replace(common, path=paths.pop(name, None)))]
        for task in opened:
            mode = options.mode if "mode" in options_of(task.name) else None
            label = task.name if mode is None else f"{task.name}-{mode}"
            if label in tasks:
                raise PlamoError(f"--tasks has {label} twice: each task must occur once")
            tasks[label] = task
    return tasks


def output_folder(options: EvaluateOptions) -> Path:
    """Return the folder for the results of tasks.

    Raises:
        PlamoError: `output` is a file, or has the name of a JSON file.
    """
    if options.output is None:
        name = options.served_model or options.model
        if options.step is not None:
            name += f"@{options.step}"
        # Parts of a path, such as runs/ in runs/demo/sft, tell models apart.
        return Path("runs/evaluation") / re.sub(r"[^\w.@-]+", "-", name.removeprefix("runs/")).strip("-.")
    if options.output.suffix == ".json" or options.output.is_file():
        raise PlamoError(f"--output {options.output} is not allowed: with --tasks it must be a folder")
    return options.output


def open_model(options: EvaluateOptions, slots: int) -> ChatModel:
    """Open the evaluated model.

    Raises:
        PlamoError: it cannot be read, or the server does not answer or lists no model.
    """
    return _open(options.model, options, slots, options.served_model, options.api_key_env)


def open_judge(options: EvaluateOptions, slots: int) -> ChatModel:
    """Open the judge.

    Raises:
        PlamoError: it cannot be read, or the server does not answer or lists no model.
    """
    plain = dataclasses.replace(options, step=None, template=None)
    return _open(options.judge, plain, slots, options.judge_model, options.judge_api_key_env)


def compare_folders(first: Path, second: Path, output: Path | None) -> None:
    """Print the paired differences between two folders of results, and write them to the JSON file `output`.

    Raises:
        PlamoError: a folder has no results, no task is in both, or the data or prompts of a task differ.
    """
    from plamo2_jax.checkpoint import write_json
    from plamo2_jax.eval.compare import compare, table

    comparisons = compare(first, second)
    print(table(first, second, comparisons))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        tasks = {name: dataclasses.asdict(one) for name, one in comparisons.items()}
        write_json(output, {"first": str(first), "second": str(second), "tasks": tasks})


def _open(name: str, options: EvaluateOptions, slots: int, served: str | None, api_key_env: str | None) -> ChatModel:
    from plamo2_jax import models

    if name.startswith(("http://", "https://")):
        from plamo2_jax.eval.server_identity import server_description
        from plamo2_jax.models.server_stream import ServerChatStream, with_version

        if served is None:
            served = ServerChatStream(name, api_key_env=api_key_env, timeout=options.timeout).model
        fields: dict[str, Any] = {"concurrency": options.concurrency, "timeout": options.timeout}
        client = models.open(with_version(name), model=served, api_key_env=api_key_env, **fields)
        client.description = server_description(client.description, client.identify())
        return client
    if options.step is not None:
        name = f"{name}@{options.step}"
    model = models.open(
        name,
        template=options.template,
        dtype=options.dtype,
        batch_size=slots,
        max_prompt_tokens=_MOST_PROMPT_TOKENS,
    )
    model.description = {**model.description, "dtype": options.dtype}
    return model


def _paths(options: EvaluateOptions) -> dict[str, Path]:
    """Return the paths of --path, --pfgen and --jmmlu by task."""
    named: dict[str, Path] = {}
    given = [("pfgen", options.pfgen), ("jmmlu", options.jmmlu)]
    needing = [name for name in options.tasks if name in TASKS and TASKS[name].source is not None]
    for text in options.path:
        name, separator, path = text.partition("=")
        if not separator:
            if len(needing) != 1:
                raise PlamoError(f"--path {text} has no task name: it must be NAME=PATH, such as jmmlu={text}")
            name, path = needing[0], text
        given.append((name, Path(path)))
    for name, path in given:
        if path is None:
            continue
        if name in named:
            raise PlamoError(f"the task {name} has two paths: {named[name]} and {path}. Give only one")
        named[name] = path
    return named


def _task_options(options: EvaluateOptions) -> TaskOptions:
    names = {field.name for field in dataclasses.fields(TaskOptions)} - {"path", "count_tokens"}
    values = {name: getattr(options, name) for name in names}
    return TaskOptions(**values, count_tokens=_token_counter(options))


def _token_counter(options: EvaluateOptions) -> Any:
    """Return a function that counts tokens with the model's tokenizer, or None if it is not on this machine."""
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.tokenizer.tokenizer import FILE_NAME, Tokenizer

    if options.model is None or options.model.startswith(("http://", "https://")):
        return None
    file = ModelName.parse(options.model).folder / FILE_NAME
    if not file.is_file():
        return None
    load = functools.cache(lambda: Tokenizer.load(file))
    return lambda text: len(load().encode(text))


def _contaminated(options: EvaluateOptions, tasks: Mapping[str, Task]) -> dict[str, dict[str, str]]:
    """Return the items of each task that the training data contains; empty without --training-data."""
    if not options.training_data:
        return {}
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.eval.contamination import contaminated_by_task
    from plamo2_jax.tokenizer.tokenizer import FILE_NAME, Tokenizer

    file = options.tokenizer
    if file is None and not options.model.startswith(("http://", "https://")):
        file = ModelName.parse(options.model).folder / FILE_NAME
    tokenizer = Tokenizer.load(file) if file is not None and (file == options.tokenizer or file.is_file()) else None
    return contaminated_by_task({name: task.items for name, task in tasks.items()}, options.training_data, tokenizer)


def _contamination_line(label: str, result: dict[str, Any]) -> str:
    parts = []
    for name in ("clean", "contaminated"):
        found = result["contamination"][name]
        metric = found["metrics"].get(result["metric"])
        parts.append(f"{name} items {found['n']}" + ("" if metric is None else f" ({metric['value']:.4f})"))
    return f"{label}, {result['metric']}: {', '.join(parts)}"


def _settings(options: EvaluateOptions) -> dict[str, Any]:
    """Return the options of tasks that the user gave, for the result."""
    names = ("mode", "shots", "trials", "max_new_tokens", "lengths", "depths", "kinds", "seed")
    values = {name: getattr(options, name) for name in names}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value not in (None, ())
    }


def results_table(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return the scores of tasks as a table, from names and contents of result.json."""
    rows = [("task", "metric", "score", "stderr", "items", "failed")]
    for label, result in results:
        figures = ["-" if result[name] is None else f"{result[name]:.4f}" for name in ("score", "stderr")]
        rows.append((label, result["metric"], *figures, str(result["n"]), str(result["failed"])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *map(str.rjust, row[2:], widths[2:])])
        for row in rows
    )
