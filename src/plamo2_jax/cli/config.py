"""`plamo2 config`: show, compare and check config files."""

from __future__ import annotations

import json as json_lines
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from plamo2_jax.cli.arguments import call_subcommand

if TYPE_CHECKING:
    from plamo2_jax.train.config import RunConfig

Source = Annotated[Path, tyro.conf.Positional]


def show(config: Source, *, changed: bool = False, json: bool = False) -> None:
    """Print every field of a config with its value, default and help text.

    On the command line, fields of the task have no prefix: task.z_loss is the option --z-loss.

    Args:
        config: A config file or a run folder.
        changed: Print only the fields that differ from their defaults.
        json: Print one JSON object per field.
    """
    from plamo2_jax.project.fields import describe

    found = describe(config)
    fields = [field for field in found.fields if field.changed or not changed]
    if json:
        for field in fields:
            default = {} if field.required else {"default": field.default}
            _print_json({"name": field.name, "value": field.value, **default, "help": field.help})
        return
    count = sum(field.changed for field in found.fields)
    print(
        f"{found.source}: {found.kind} with {len(found.fields)} fields; {count} differ from their defaults or have "
        "none (*)\n"
    )
    width = min(shutil.get_terminal_size().columns, 140)
    for field in fields:
        default = "required" if field.required else f"default {field.default!r}"
        mark, note = ("*", f"    ({default})") if field.changed else (" ", "")
        print(f"{mark} {field.name} = {field.value!r}{note}")
        print(textwrap.fill(field.help, width, initial_indent="      ", subsequent_indent="      "))


def diff(
    first: Source,
    second: Annotated[Path | None, tyro.conf.Positional] = None,
    *,
    exit_code: bool = False,
    json: bool = False,
) -> int:
    """Print the fields that differ between two configs, or between a config and the defaults.

    Args:
        first: A config file, or a run folder, whose stored config is read.
        second: The second config. Default: compare `first` with the default values.
        exit_code: Exit with status 1 if a field differs.
        json: Print one JSON object per field.
    """
    from plamo2_jax.project.fields import describe

    found = describe(first)
    if second is None:
        names = ("defaults", str(first))
        sides = (found.defaults(), found.values())
    else:
        names = (str(first), str(second))
        sides = (found.values(), describe(second).values())
    rows = [(name, [side.get(name, _ABSENT) for side in sides]) for name in dict.fromkeys((*sides[1], *sides[0]))]
    rows = [(name, values) for name, values in rows if values[0] != values[1]]
    if json:
        for name, values in rows:
            held = zip(("first", "second"), values, strict=True)
            _print_json({"name": name, **{side: value for side, value in held if value is not _ABSENT}})
    else:
        print(f"{names[0]} -> {names[1]}: {len(rows)} fields differ")
        for name, values in rows:
            before, after = ("(absent)" if value is _ABSENT else repr(value) for value in values)
            print(f"  {name}: {before} -> {after}")
    return int(exit_code and bool(rows))


_ABSENT = object()
"""Stands for the value of a field that a config does not have."""


def validate(config: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Check config files before a run: values, input files, number of parameters and memory. Nothing is written.

    A training config is checked as at the start of its run, without compiling: tokenizer, data, held-out data, initial parameters, and
    whether the run's folder holds another run. A pipeline is checked as plamo2 pipeline --dry-run does. Input paths of other configs must
    exist. The memory is an estimate for one device; plamo2 plan compiles the run for a TPU slice and prints the memory of each chip.

    Args:
        config: Config or pipeline files.
    """
    for number, path in enumerate(config):
        _validate(path, separated=number > 0)


def _validate(path: Path, separated: bool) -> None:
    from plamo2_jax.pipeline.stage import Pipeline
    from plamo2_jax.project.fields import load
    from plamo2_jax.train.config import RunConfig

    config = load(path)
    print(("\n" if separated else "") + f"{path}: {type(config).__name__}")
    if isinstance(config, RunConfig):
        _validate_run(config)
    elif isinstance(config, Pipeline):
        from plamo2_jax.cli.pipeline import describe
        from plamo2_jax.pipeline.graph import Graph

        _say("stages", ", ".join(Graph(config, describe).stages))
    else:
        _validate_paths(path, config)
    _say("valid", "yes")


def _validate_run(config: RunConfig) -> None:
    from plamo2_jax.project.check import check_run, estimate_memory, one_device_program, trained_parameters

    data, program = config.data, one_device_program(config)
    _say("task", config.task.kind)
    _say(
        "steps",
        f"{config.steps:,} of {data.batch_size} x {data.sequence_length} = {data.batch_size * data.sequence_length:,} tokens",
    )
    total, trained = config.model.parameter_count(), trained_parameters(program)
    _say("parameters", f"{total:,}" + (f", {trained:,} of them trained" if trained != total else ""))
    _say("memory", estimate_memory(config, program).summary())
    for name, result in check_run(config, program):
        _say(name, result)


def _validate_paths(path: Path, config: Any) -> None:
    """Check that the paths exist that a config of another command reads."""
    from plamo2_jax.cli.pipeline import describe
    from plamo2_jax.errors import PlamoError
    from plamo2_jax.project.check import exists

    verb = _VERBS.get(type(config).__name__)
    if verb is None:
        return
    paths = describe([verb, str(path)]).paths
    if missing := [each for each in paths if not exists(each)]:
        several = "do not exist" if len(missing) > 1 else "does not exist"
        raise PlamoError(f"{path} names {', '.join(missing)}, which {several}: create it first, or correct the path")
    _say("paths", ", ".join(paths) or "none")


_VERBS = {"PreferenceDataConfig": "preference-data", "IterativeDpoConfig": "iterate", "SynthConfig": "synth"}
"""Class of a config -> the command that reads it."""


def _say(name: str, text: str) -> None:
    print(f"  {name:<11} {text}", flush=True)


def _print_json(value: dict[str, Any]) -> None:
    print(json_lines.dumps(value, ensure_ascii=False))


SUBCOMMANDS = {"show": show, "diff": diff, "validate": validate}


def main(argv: list[str]) -> int | None:
    """Run the command."""
    return call_subcommand(SUBCOMMANDS, argv, "plamo2 config")
