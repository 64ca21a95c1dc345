"""The options of `plamo2 pretrain`, `sft` and `dpo`: the fields of the run's configuration, and what is no part of it. Imports tyro:
import on demand.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Generic, TypeVar

import tyro

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
    """Options of the command line, over the configuration of the file at `path`."""
    return tyro.cli(
        RunOptions[type(default)],
        prog=f"plamo2 {verb} {path}",
        description=description,
        default=RunOptions(default),
        args=args,
    )
