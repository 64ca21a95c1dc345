"""`plamo2 pipeline PIPELINE.py`: run the unfinished stages of a pipeline."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from plamo2_jax.cli.arguments import call
from plamo2_jax.cli.main import OLD_VERBS, module_of
from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.pipeline.graph import Description, Graph
    from plamo2_jax.pipeline.run import Ran

_RESUMING = ("pretrain", "sft", "dpo", "preference-data")
"""Verbs that take a config file and options for its fields, and that resume after an interruption."""
_MADE = ("output", "reference_log_probs")
"""Config fields that name outputs of a run."""


def pipeline(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PIPELINE.py")],
    *,
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False,
    until: str | None = None,
    force: tuple[str, ...] = (),
) -> int:
    """Run plamo2 commands in the order of their inputs and outputs; finished stages are skipped.

    PIPELINE.py is a Python file that sets `pipeline = Pipeline(home=..., stages=(Stage(...), ...))`; see configs/pipeline_demo.py and
    docs/pipeline.md. A stage is finished while its command, its resolved config, its inputs, its outputs and the version of this package
    are the same as when it ended. The same command resumes after Ctrl-C, SIGTERM or a kill: a training run from its newest checkpoint,
    any other stage from its beginning. Before a stage starts again, its old outputs are moved to HOME/.pipeline/stale.

    The exit status is the status of the stage that failed or was stopped (see plamo2 pretrain --help), or 2 if the pipeline file is wrong.

    Args:
        file: The pipeline file.
        dry_run: Print which stages would run and why, and run nothing.
        until: Run only this stage and the stages it depends on.
        force: Run these stages even if they are finished.
    """
    from plamo2_jax.config_file import load_config
    from plamo2_jax.pipeline.graph import Graph
    from plamo2_jax.pipeline.plan import Planner
    from plamo2_jax.pipeline.run import run
    from plamo2_jax.pipeline.stage import Pipeline
    from plamo2_jax.pipeline.state import State

    graph = Graph(load_config(file, Pipeline, "configs/pipeline_demo.py", name="pipeline"), describe)
    for name in (*force, *([] if until is None else [until])):
        if name not in graph.stages:
            raise PlamoError(f"{file} has no stage {name!r}; it has {', '.join(graph.stages)}")
    names = set(graph.stages) if until is None else graph.ancestors(until)
    if dry_run:
        verdicts = Planner(graph, State(graph.home), force).plan(names)
        for number, (name, verdict) in enumerate(verdicts.items(), start=1):
            told = "finished" if verdict.why is None else f"to run ({verdict.why})"
            print(f"{number:2} {name}: {told}\n   plamo2 {graph.stages[name].command}")
        return 0
    status, ran = run(graph, names, force, command)
    print(table(graph, ran))
    return status


def describe(argv: list[str]) -> Description:
    """Read the config file of a command, as the verb resolves it.

    Raises:
        ValueError: there is no such file, or its config is not allowed.
    """
    from plamo2_jax.pipeline.graph import Description

    verb, *rest = argv
    verb = OLD_VERBS.get(verb, verb)
    if verb not in (*_RESUMING, "distill") or not rest or rest[0].startswith("-"):
        return Description(None)
    from plamo2_jax.cli import preference_data_options, run_options
    from plamo2_jax.config_file import load_config
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.train.config import to_json

    path, *overrides = rest
    if verb == "distill":  # It takes the config file of a pretraining run, and no overrides.
        config, outputs = load_config(Path(path)), ()
    else:
        config = load_config(Path(path), type(importlib.import_module(f"plamo2_jax.cli.{module_of(verb)}").example()))
        options = preference_data_options if verb == "preference-data" else run_options
        if overrides:
            config = options.parse(verb, path, config, overrides, "").config
        outputs = (config.output if verb == "preference-data" else config.folder,)
    leaves = list(_leaves(config))
    return Description(
        to_json(config),
        paths=tuple(str(ModelName.parse(value).folder) for value in leaves if isinstance(value, Path)),
        words=tuple(value for value in leaves if isinstance(value, str) and "/" in value),
        outputs=outputs,
        file=path,
        resumes=verb in _RESUMING,
    )


def _leaves(value: Any) -> Iterator[Any]:
    """Yield all values in a config, without the fields that name outputs."""
    if hasattr(value, "__dataclass_fields__"):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__ if name not in _MADE}
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def command(argv: list[str], stdout: Path | None) -> int:
    """Run one command in this process. This saves the start of Python and jax, and a kill ends both at once.

    Args:
        argv: the arguments of `plamo2`.
        stdout: file for its standard output, written once the command has ended well.
    """
    from plamo2_jax.cli.main import main as plamo2
    from plamo2_jax.storage import write_whole

    try:
        if stdout is None:
            return _status(plamo2, argv)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = _status(plamo2, argv)
        if status == 0:
            write_whole(stdout, printed.getvalue().encode())
        return status
    finally:
        gc.collect()  # Otherwise arrays in reference cycles stay on the device during the next stages.


def _status(plamo2: Any, argv: list[str]) -> int:
    try:
        return plamo2(argv)
    except SystemExit as error:  # An option that tyro refuses.
        return error.code if isinstance(error.code, int) else 2


def table(graph: Graph, ran: list[Ran]) -> str:
    """Return a table of the stages, with the time that was spent now."""
    width = max(map(len, graph.stages))
    lines = [
        f"{each.name:<{width}}  {'skipped' if each.why is None else 'run':<11}  {each.seconds:8.1f} s" for each in ran
    ]
    spent = sum(each.seconds for each in ran if each.why is not None)
    return "\n".join([*lines, f"{'':<{width}}  {'now':<11}  {spent:8.1f} s"])


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status."""
    return call(pipeline, argv, "plamo2 pipeline")
