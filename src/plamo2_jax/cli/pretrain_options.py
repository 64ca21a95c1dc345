"""The options of `plamo2 pretrain`: the fields of the run's configuration, and what is no part of it. Imports tyro: import on demand."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.processes import ProcessesConfig


@dataclasses.dataclass(frozen=True)
class PretrainOptions:
    """One start of a run."""

    config: Annotated[PretrainConfig, tyro.conf.arg(name="")]
    """The run."""
    distributed: ProcessesConfig = dataclasses.field(default_factory=ProcessesConfig)
    """How this process joins a job of several."""
    profile: str | None = None
    """FIRST:LAST, such as 10:13: trace these steps into OUTPUT/NAME/profile, for TensorBoard or XProf."""


def parse(path: str, default: PretrainConfig, args: list[str], description: str) -> PretrainOptions:
    """Options of the command line, over the configuration of the file at `path`."""
    return tyro.cli(
        PretrainOptions,
        prog=f"plamo2 pretrain {path}",
        description=description,
        default=PretrainOptions(default),
        args=args,
    )
