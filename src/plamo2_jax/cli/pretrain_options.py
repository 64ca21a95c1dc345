"""The options of `plamo2 pretrain`, `sft` and `dpo`: the fields of the run's configuration, and what is no part of it. Imports tyro:
import on demand.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Generic, TypeVar, get_args, get_type_hints

import tyro

from plamo2_jax.cli import arguments
from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.processes import ProcessesConfig

Config = TypeVar("Config", bound=PretrainConfig)


@dataclasses.dataclass(frozen=True)
class RunOptions(Generic[Config]):
    """One start of a run."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    """The run."""
    distributed: ProcessesConfig = dataclasses.field(default_factory=ProcessesConfig)
    """How this process joins a job of several."""
    profile: str | None = None
    """FIRST:LAST, such as 10:13: trace these steps into OUTPUT/NAME/profile, for TensorBoard or XProf."""


def parse(verb: str, path: str, default: Config, args: list[str], description: str) -> RunOptions[Config]:
    """Options of the command line, over the configuration of the file at `path`.

    A part that may be missing (`lora`) is one as soon as an option names a field of it: tyro would want a word before the options.
    """
    named = [name for name in _optional_parts(type(default)) if any(arg.startswith(f"--{name}.") for arg in args)]
    missing = {name: _optional_parts(type(default))[name]() for name in named if getattr(default, name) is None}
    return arguments.parse(
        RunOptions[type(default)],
        args,
        f"plamo2 {verb} {path}",
        description=description,
        default=RunOptions(dataclasses.replace(default, **missing)),
        config=(tyro.conf.AvoidSubcommands,) if named else (),
    )


def _optional_parts(config: type) -> dict[str, type]:
    """The parts of a configuration that may be missing and whose fields all have defaults."""
    found = {}
    for name, hint in get_type_hints(config).items():
        for kind in filter(dataclasses.is_dataclass, get_args(hint)):
            fields = dataclasses.fields(kind)
            if all(
                f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING for f in fields
            ):
                found[name] = kind
    return found
