"""The options of `plamo2 preference-data` and `iterate`: the fields of a configuration, and what is no part of it. Imports tyro: import on
demand.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Generic, TypeVar

import tyro

from plamo2_jax.cli import arguments

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Options(Generic[Config]):
    """One start."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    """What to make."""
    again: bool = False
    """Remove what is in the output folder, of this or another configuration, and begin anew."""


def parse(verb: str, path: str, default: Config, args: list[str], description: str) -> Options[Config]:
    """Options of the command line, over the configuration of the file at `path`."""
    prog = f"plamo2 {verb} {path}"
    return arguments.parse(Options[type(default)], args, prog, description=description, default=Options(default))
