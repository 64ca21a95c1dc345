"""The classes of a pipeline file: stages, each one `plamo2` command."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from pathlib import Path

from plamo2_jax.errors import PlamoError


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of a pipeline, with the paths that it reads and makes.

    For a command with a config file (pretrain, sft, dpo, preference-data, iterate, distill) the config's fields of type Path are inputs
    too, and its output folder is an output (not for distill). A path in the command must be inside a declared input or output; otherwise
    the pipeline is refused.

    Raises:
        PlamoError: the name or the command is not allowed.
    """

    name: str
    """Letters, digits, `_`, `-` and `.`; also the name of the stage's record in HOME/.pipeline."""
    command: str
    """The arguments of `plamo2`, quoted as for a shell. `> FILE` at the end writes the standard output to a file when the command has
    succeeded."""
    outputs: tuple[str | os.PathLike[str], ...] = ()
    """Files and folders that it makes, besides FILE and the output folder of a config."""
    inputs: tuple[str | os.PathLike[str], ...] = ()
    """Files, folders, patterns, RUN@STEP and data sets (`bundled:` and `tfds:`) that it reads, besides the paths of a config."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise PlamoError(f"Stage.name={self.name!r} is not allowed: it must be letters, digits, _, - and .")
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise PlamoError(f"stage {self.name}: the command {self.command!r} cannot be read: {error}") from error
        if not words or words[0] in ("plamo2", "pipeline") or words[0].startswith("-"):
            raise PlamoError(
                f"stage {self.name}: the command must start with the name of a plamo2 command, such as merge"
            )
        if ">" in words[:-2] or words[-1] == ">":
            raise PlamoError(f"stage {self.name}: > FILE is allowed only once, at the end of the command")

    @property
    def argv(self) -> list[str]:
        """The arguments of `plamo2`."""
        words = shlex.split(self.command)
        return words if self.stdout is None else words[:-2]

    @property
    def stdout(self) -> Path | None:
        """The file for its standard output, or None."""
        words = shlex.split(self.command)
        return Path(words[-1]) if words[-2:-1] == [">"] else None


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The stages, in any order. Each runs after the stages that make its inputs.

    Raises:
        PlamoError: two stages have the same name, or there are no stages.
    """

    home: Path
    """Folder of all outputs; .pipeline in it holds the records of the stages."""
    stages: tuple[Stage, ...]
    """The commands."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names:
            raise PlamoError("Pipeline.stages=() is not allowed: there must be at least one stage")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise PlamoError(
                f"Pipeline.stages is not allowed: {twice[0]} is the name of {names.count(twice[0])} of them"
            )
