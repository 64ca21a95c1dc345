"""`plamo2 distill CONFIG.py OUT`: write a teacher's logits to disk for distillation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from plamo2_jax.cli.arguments import parse
from plamo2_jax.validation import require_at_least


@dataclasses.dataclass(frozen=True)
class DistillOptions:
    """Write the top-k logits of a run's teacher to disk, for every row that the run will read.

    CONFIG.py sets `config = RunConfig(..., task=Distill(teacher=...))`. To train with the logits: plamo2 pretrain CONFIG.py --logits OUT

    Training looks up rows by their content, and refuses logits from another teacher, tokenizer, temperature or data. A row takes
    sequence-length × (8 × top-k + 4) bytes. Without this step, the teacher runs together with the student during training.
    """

    config: Annotated[Path, tyro.conf.Positional]
    """Config file of the run."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder to create: it must not exist, or it must be empty."""
    top_k: int | None = None
    """Number of teacher logits to store per position. Default: the config's task.top_k if it is set, or 32."""
    steps: int | None = None
    """Number of batches to write. Default: all batches of the run."""


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parse(DistillOptions, argv, "plamo2 distill")
    from plamo2_jax.cli.run_options import load_run
    from plamo2_jax.surgery.distill import Distill
    from plamo2_jax.surgery.teacher_logits import write_teacher_logits
    from plamo2_jax.tokenizer.tokenizer import Tokenizer

    config = load_run(options.config, (Distill,), "configs/demo_small.py")
    require_at_least(1, steps=options.steps)
    rows = write_teacher_logits(
        config,
        config.task.teacher,
        config.task.temperature,
        options.output,
        Tokenizer.load(config.tokenizer),
        steps=config.steps if options.steps is None else options.steps,
        top_k=next(k for k in (options.top_k, config.task.top_k, 32) if k is not None),
    )
    print(f"{options.output}: {rows:,} rows")
    return 0
