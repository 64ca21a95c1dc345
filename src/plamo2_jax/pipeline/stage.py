"""What a pipeline file says: stages, each one `plamo2` command."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of a pipeline.

    What it reads follows from its words: whatever a stage of the pipeline makes, or exists and has a slash in it, also behind `=` and
    before `@` (`ja=runs/data/ja`, `runs/small@60`). For pretrain, sft, dpo, prefer and distill it is every path in the resolved
    config.

    Raises:
        ValueError: the name or the command is not right.
    """

    name: str
    """Letters, digits, `_`, `-` and `.`; what is remembered of the stage lies in a file of this name."""
    command: str
    """What follows `plamo2` on a command line, quoted as for a shell. `> FILE` at its end keeps what it prints, once it is complete."""
    outputs: tuple[Path, ...] = ()
    """Files and folders that it makes; besides FILE, and the folder of a config's run."""
    inputs: tuple[Path, ...] = ()
    """Files and folders that it reads but does not name."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"Stage.name={self.name!r} is not allowed: it must be letters, digits, _, - and .")
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"stage {self.name}: the command {self.command!r} cannot be read: {error}") from error
        if not words or words[0] in ("plamo2", "pipeline") or words[0].startswith("-"):
            raise ValueError(f"stage {self.name}: the command must begin with a verb of plamo2, such as merge")
        if ">" in words[:-2] or words[-1] == ">":
            raise ValueError(f"stage {self.name}: > FILE is allowed once, at the end of the command")

    @property
    def argv(self) -> list[str]:
        """The arguments of `plamo2`."""
        words = shlex.split(self.command)
        return words if self.stdout is None else words[:-2]

    @property
    def stdout(self) -> Path | None:
        """The file that keeps what it prints."""
        words = shlex.split(self.command)
        return Path(words[-1]) if words[-2:-1] == [">"] else None


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Stages in any order: each runs after those that make what it reads.

    Raises:
        ValueError: two stages have the same name, or there is none.
    """

    home: Path
    """Folder that holds all outputs, and in .pipeline what is remembered of the stages."""
    stages: tuple[Stage, ...]
    """What is to be made."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names:
            raise ValueError("Pipeline.stages=() is not allowed: there must be at least one")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"Pipeline.stages is not allowed: {twice[0]} is the name of {names.count(twice[0])} of them"
            )
