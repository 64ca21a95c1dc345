"""`plamo2 init FOLDER`: write a project folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plamo2_jax.cli.arguments import call


def init(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    template: Literal["start", "demo", "quickstart", "large"] = "start",
) -> None:
    """Write a project folder: config files to edit, a Makefile, a .gitignore and hints about the data format.

    `make` in the new folder trains a model on the text that comes with plamo2-jax; change TEXT in configs/pipeline.py to train on yours.

    Args:
        folder: Folder to create: it must not exist, or it must be empty.
        template: Config files to write. start: pretraining on your own text, SFT and DPO. demo: all stages of the demo. quickstart: the
            model of plamo2 quickstart. large: models with 1B to 31B parameters on TPU slices.
    """
    from plamo2_jax.project.templates import TEMPLATES, write_project

    for path in write_project(folder, template):
        print(folder / path)
    chosen = TEMPLATES[template]
    where = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    print()
    if template == "start":
        print(
            f"{folder / 'data' / 'README.md'} describes where to put your text. Without it, make uses the bundled text.\n"
        )
    print(f"{where}make check   # check the configs\n{where}make         # {chosen.command}")


def main(argv: list[str]) -> None:
    """Run the command."""
    call(init, argv, "plamo2 init")
