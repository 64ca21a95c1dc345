"""Options of the commands that train: the fields of the RunConfig and of its task, and options that apply to one start only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import tyro

from plamo2_jax.cli import arguments
from plamo2_jax.config_file import load_config
from plamo2_jax.errors import PlamoError
from plamo2_jax.log_format import LogFormat
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.processes import ProcessesConfig
from plamo2_jax.train.writers import WriterName

_VERBS = {"pretrain": "pretrain", "distill": "pretrain", "sft": "sft", "dpo": "dpo"}
"""Kind of task → the command that runs it."""
_RENAMED = {"--keep": "--max-to-keep", "--distillation.": "--"}
"""Old name or prefix of an option → its name now."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """A run, and the options that apply to one start only."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """The run."""
    distributed: ProcessesConfig = dataclasses.field(default_factory=ProcessesConfig)
    """How this process joins a job of several processes."""
    profile: str | None = None
    """FIRST:LAST, such as 10:13: trace these steps into OUTPUT/NAME/profile, for TensorBoard or XProf."""
    metrics: tuple[WriterName, ...] = ("tensorboard",)
    """Where to log metrics in addition to metrics.jsonl, such as `--metrics tensorboard wandb`: TensorBoard (OUTPUT/NAME/tensorboard) and
    Weights & Biases (needs the extra wandb; its environment variables apply, such as WANDB_PROJECT and WANDB_MODE=offline)."""
    log_format: LogFormat = "text"
    """text: a progress bar on a terminal, otherwise a line every 30 s. json: one JSON object per line on standard error, for each log
    write, evaluation, checkpoint and message (docs/watching.md)."""


def load_run(path: Path, tasks: Sequence[type], such_as: str) -> RunConfig:
    """Return the run of a config file.

    Args:
        path: the file.
        tasks: classes of tasks that the command accepts.
        such_as: a file to name in messages.

    Raises:
        PlamoError: the file sets no RunConfig, or one with another task, or a field is out of range.
    """
    config = load_config(path, RunConfig, such_as)
    if type(config.task) not in tasks:
        allowed = " or ".join(f"task={task.__name__}(...)" for task in tasks)
        raise PlamoError(
            f"{path} sets a run with task={type(config.task).__name__}(...): it must be {allowed}. plamo2 "
            f"{_VERBS[config.task.kind]} runs this one"
        )
    return config


def parse(verb: str, path: str, default: RunConfig, args: Sequence[str], description: str | None = None) -> RunOptions:
    """Replace values of the run in the file `path` by options of the command line. The help begins with `description`."""
    return _read(RunOptions, RunOptions(_with_parts(default, args)), args, f"plamo2 {verb} {path}", description)


def parse_config(default: RunConfig, args: Sequence[str], prog: str) -> RunConfig:
    """Return a run with the fields that a command line sets.

    Args:
        default: the run.
        args: the options.
        prog: the command as the user types it, without the options.

    Raises:
        PlamoError: an option is unknown; the message names the closest one, or the new name of an old one.
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
    # `_with_parts` has decided which optional parts exist. By default, tyro makes each of them a subcommand.
    config = (tyro.conf.AvoidSubcommands,)
    return arguments.parse(kind, args, prog, description=description, default=default, config=config)


def _with_parts(config: RunConfig, args: Sequence[str]) -> RunConfig:
    """Add the optional parts of the task (`lora`) that options name; for the help, add all of them."""
    asks_for_help = bool({"-h", "--help"} & set(args))
    made = {}
    for name, hint in get_type_hints(type(config.task)).items():
        part = next(filter(dataclasses.is_dataclass, get_args(hint)), None)
        named = asks_for_help or any(word.startswith(f"--{name}.") for word in args)
        if named and part is not None and type(None) in get_args(hint) and getattr(config.task, name) is None:
            made[name] = part()
    try:
        return dataclasses.replace(config, task=dataclasses.replace(config.task, **made))
    except ValueError:
        if asks_for_help:
            return config  # This run allows no such part, so the help does not show it.
        raise
