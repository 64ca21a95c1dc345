"""The options of verbs that take a training run: the fields of its RunConfig, its task's among them, and how it is started.

Imports tyro and jax: import on demand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import tyro

from plamo2_jax.cli import arguments
from plamo2_jax.config_file import load_config
from plamo2_jax.errors import PlamoError
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.processes import ProcessesConfig

_VERBS = {"pretrain": "pretrain", "distill": "pretrain", "sft": "sft", "dpo": "dpo"}
"""The verb that runs each kind of task."""
_RENAMED = {"--keep": "--max-to-keep", "--distillation.": "--"}
"""Options of earlier versions, or what they began with → what they are called now."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """One start of a run."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """The run."""
    distributed: ProcessesConfig = dataclasses.field(default_factory=ProcessesConfig)
    """How this process joins a job of several."""
    profile: str | None = None
    """FIRST:LAST, such as 10:13: trace these steps into OUTPUT/NAME/profile, for TensorBoard or XProf."""


def load_run(path: Path, tasks: Sequence[type], such_as: str) -> RunConfig:
    """Return the run of a config file.

    Args:
        path: the file.
        tasks: classes of tasks that this verb accepts.
        such_as: a file to name in messages.

    Raises:
        ValueError: the file sets no RunConfig, or one of another task, or what it sets is out of range.
    """
    config = load_config(path, RunConfig, such_as)
    if type(config.task) not in tasks:
        allowed = " or ".join(f"task={task.__name__}(...)" for task in tasks)
        raise PlamoError(
            f"{path} sets a run with task={type(config.task).__name__}(...): it must be {allowed}. plamo2 "
            f"{_VERBS[config.task.kind]} runs this one"
        )
    return config


def parse(verb: str, path: str, default: RunConfig, args: list[str], description: str) -> RunOptions:
    """Read the options of a verb that starts a run, over the configuration of the file at `path`."""
    return _read(RunOptions, RunOptions(_with_parts(default, args)), args, f"plamo2 {verb} {path}", description)


def parse_config(default: RunConfig, args: Sequence[str], prog: str) -> RunConfig:
    """Return a run with the fields that a command line gives.

    Args:
        default: the run.
        args: the options.
        prog: the command as the user types it, up to the options.

    Raises:
        ValueError: an option is unknown; the message names the closest one, or what it is called now.
    """
    return _read(RunConfig, _with_parts(default, args), args, prog)


def _read(kind: type, default: Any, args: Sequence[str], prog: str, description: str | None = None) -> Any:
    for word in args:
        option = word.partition("=")[0]
        for old, new in _RENAMED.items():
            if option == old or (old.endswith(".") and option.startswith(old)):
                where = ", of a run with task=Distill(...)" if new == "--" else ""
                raise PlamoError(
                    f"{option} is now {new + option.removeprefix(old)}{where}; {prog} --help lists the options"
                )
    # A part that may be missing is one or is none by now. tyro would want a word before its options.
    config = (tyro.conf.AvoidSubcommands,)
    return arguments.parse(kind, list(args), prog, description=description, default=default, config=config)


def _with_parts(config: RunConfig, args: Sequence[str]) -> RunConfig:
    """The run, where a part of its task that may be missing (`lora`) is one as soon as an option names a field of it, and in the help."""
    asks_for_help = bool({"-h", "--help"} & set(args))
    hints = get_type_hints(type(config.task))
    optional = {
        name: next(filter(dataclasses.is_dataclass, get_args(hint)), None)
        for name, hint in hints.items()
        if type(None) in get_args(hint)
    }
    made = {
        name: part()
        for name, part in optional.items()
        if part is not None
        and getattr(config.task, name) is None
        and (asks_for_help or any(word.startswith(f"--{name}.") for word in args))
    }
    if not made:
        return config
    try:
        return dataclasses.replace(config, task=dataclasses.replace(config.task, **made))
    except ValueError:
        if asks_for_help:
            return config  # The help of a run that allows no such part does not show it.
        raise
