"""`plamo2 report RUN`: one HTML page from a run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from plamo2_jax.cli.arguments import parse


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Write RUN/report.html: configuration, curves, held-out bits per byte beside xz, and samples.

    It reads config.json and metrics.jsonl, and where they exist evaluation.json (plamo2 evaluate --output) and samples.jsonl
    (plamo2 generate --json). The page needs no other file and no network.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, such as runs/demo."""


def main(argv: list[str]) -> None:
    """Write the page and print its path."""
    arguments = parse(Arguments, argv, "plamo2 report")
    from plamo2_jax.report.page import write_report  # Matplotlib is slow to import.

    print(write_report(arguments.run))
