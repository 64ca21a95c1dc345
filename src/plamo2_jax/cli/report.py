"""`plamo2 report RUN`: write an HTML page about a run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from plamo2_jax.cli.arguments import parse


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Write RUN/report.html with the training curves, held-out evaluations, samples and configuration of a run. The run may be unfinished.

    Reads config.json and, if they exist, metrics.jsonl, evaluation.json (plamo2 evaluate --output) and samples.jsonl (plamo2 generate
    --json). If RUN is the folder of a pipeline, the page shows its stages as a graph, a table of all models, and answers of the models side
    by side. The page ends with a summary of each run and model in RUN. Files and lines that cannot be read are skipped, with a note on the
    page and on stderr. The page is a single file that works offline.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, such as runs/demo."""


def main(argv: list[str]) -> None:
    """Run the command."""
    options = parse(ReportOptions, argv, "plamo2 report")
    from plamo2_jax.report.page import write_report  # jax is slow to import.

    print(write_report(options.run, on_note=lambda note: print(note, file=sys.stderr)))
