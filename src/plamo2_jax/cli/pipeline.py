"""`plamo2 pipeline PIPELINE.py`: run the unfinished stages of a pipeline."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from plamo2_jax.cli.arguments import call
from plamo2_jax.cli.main import OLD_COMMANDS, module_of
from plamo2_jax.cli.main import main as plamo2
from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.pipeline.graph import Description, Graph
    from plamo2_jax.pipeline.run import Ran

_RESUMING = ("pretrain", "sft", "dpo", "preference-data", "iterate")
"""Commands that take a config file and options for its fields, and that resume after an interruption (synth also resumes)."""
_OUTPUTS = ("output", "reference_log_probs")
"""Config fields that name outputs."""
_SCRATCH = ("local_checkpoints", "cache")
"""Config fields that name folders of a host. They do not change the result."""
_SET_BY_ITERATE = ("policy", "init_from", "mixture", "heldout")
"""Config fields that `iterate` sets itself in every round."""


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
    are the same as when it ended. After an interruption, the same command resumes: pretrain, sft, dpo, preference-data, iterate and synth
    continue from their saved state, and other stages start from the beginning. Before a stage starts from the beginning, its old outputs
    are moved to HOME/.pipeline/stale.

    The exit status is the status of the stage that failed or was stopped (see plamo2 pretrain --help), or 2 if the pipeline file is wrong.

    Args:
        file: The pipeline file.
        dry_run: Print the stages that would run and the reasons, and run nothing.
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
    for name in force:
        if name not in names:
            raise PlamoError(f"--force {name} has no effect with --until {until}, which does not depend on it")
    if dry_run:
        verdicts = Planner(graph, State(graph.home), force).plan(names)
        for number, (name, verdict) in enumerate(verdicts.items(), start=1):
            plan = "finished" if verdict.why is None else f"to run ({verdict.why})"
            print(f"{number:2} {name}: {plan}\n   plamo2 {graph.stages[name].command}")
        return 0
    status, ran = run(graph, names, force, command)
    print(table(graph, ran))
    return status


def describe(argv: list[str]) -> Description:
    """Read the config file of a command and resolve it as the command does.

    Raises:
        PlamoError: there is no such file, or its config is not allowed.
    """
    from plamo2_jax.pipeline.graph import Description

    verb, *rest = argv
    verb = OLD_COMMANDS.get(verb, verb)
    if verb == "synth" and rest:
        return _describe_synth(rest[0])
    if verb not in (*_RESUMING, "distill") or not rest or rest[0].startswith("-"):
        return Description(None)
    from plamo2_jax.cli import preference_data, run_options
    from plamo2_jax.config_file import load_config
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.train.config import to_json

    path, *overrides = rest
    makes_pairs = verb in ("preference-data", "iterate")
    if verb == "distill":  # It takes the config file of a pretraining run, and no overrides.
        config, outputs = load_config(Path(path)), ()
    else:
        config = load_config(Path(path), type(importlib.import_module(f"plamo2_jax.cli.{module_of(verb)}").example()))
        options = preference_data if makes_pairs else run_options
        if overrides:
            config = options.parse(verb, path, config, overrides, "").config
        outputs = (config.output if makes_pairs else config.folder,)
    without = (*_OUTPUTS, *_SCRATCH, *(_SET_BY_ITERATE if verb == "iterate" else ()))
    leaves = list(_leaves(config, without))
    scratch = (getattr(config, "local_checkpoints", None), getattr(getattr(config, "data", None), "cache", None))
    return Description(
        to_json(config),
        paths=tuple(str(ModelName.parse(value).folder) for value in leaves if isinstance(value, Path)),
        words=tuple(value for value in leaves if isinstance(value, str) and "/" in value),
        outputs=outputs,
        others=tuple(Path(each) for each in (config.output, *scratch) if each is not None),
        file=path,
        resumes=verb in _RESUMING,
    )


def _describe_synth(path: str) -> Description:
    """Read the YAML file of `plamo2 synth`."""
    from plamo2_jax.pipeline.graph import Description
    from plamo2_jax.synth.config import read_config
    from plamo2_jax.train.config import to_json

    config = read_config(Path(path))
    leaves = list(_leaves(config, ("output",)))
    return Description(
        to_json(config),
        paths=tuple(str(value) for value in leaves if isinstance(value, Path)),
        words=tuple(value for value in leaves if isinstance(value, str) and "/" in value),
        outputs=(config.output,),
        file=path,
        resumes=True,
    )


def _leaves(value: Any, without: Collection[str]) -> Iterator[Any]:
    """Yield all values in a config, except those of the fields `without`."""
    if dataclasses.is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.name not in without}
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for each in value:
            yield from _leaves(each, without)
    else:
        yield value


def command(argv: list[str], stdout: Path | None) -> int:
    """Run one command in this process. This saves the start-up time of Python and JAX, and killing the pipeline also ends the stage.

    Args:
        argv: the arguments of `plamo2`.
        stdout: file for its standard output. The file is written when the command has succeeded.
    """
    from plamo2_jax.storage import write_whole

    printed = io.StringIO()
    try:
        with contextlib.nullcontext() if stdout is None else contextlib.redirect_stdout(printed):
            status = plamo2(argv)
    except SystemExit as error:  # tyro refuses an option.
        status = error.code if isinstance(error.code, int) else 2
    finally:
        gc.collect()  # Otherwise arrays in reference cycles stay on the device during the next stages.
    if stdout is not None and status == 0:
        write_whole(stdout, printed.getvalue().encode())
    return status


def table(graph: Graph, ran: list[Ran]) -> str:
    """Return a table of the stages and their durations. The last line is the total of the stages that this call ran."""
    width = max(map(len, graph.stages))
    lines = [
        f"{each.name:<{width}}  {'skipped' if each.why is None else 'run':<11}  {each.seconds:8.1f} s" for each in ran
    ]
    spent = sum(each.seconds for each in ran if each.why is not None)
    return "\n".join([*lines, f"{'':<{width}}  {'this call':<11}  {spent:8.1f} s"])


def main(argv: list[str]) -> int:
    """Run the command and return the exit status."""
    return call(pipeline, argv, "plamo2 pipeline")
