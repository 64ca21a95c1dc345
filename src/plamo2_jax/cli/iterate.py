"""`plamo2 iterate CONFIG.py [--field value ...]`: rounds of a model answering, pairs, training on them, and merging."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from plamo2_jax.cli.preference_data import options_of, progress

if TYPE_CHECKING:
    from plamo2_jax.align.iterative_dpo import IterativeDpoConfig

DESCRIPTION = """Iterated DPO: a model answers prompts, is trained on pairs of its answers, and what comes out answers next.

usage: plamo2 iterate CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = IterativeDpoConfig(...)`; any field below can be replaced on the command line. Each round is
plamo2 preference-data from the model so far, plamo2 dpo on its pairs from the same model, which is the reference too, and a merge of both.

Writes OUTPUT/round_N/{pairs,train,model}. The same command goes on after a kill, in whatever stage; more --rounds can be added.

exit status: that of plamo2 pretrain: 0 when all rounds are made, 2 with an error in one line, 130 or 143 when stopped in training"""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status, as DESCRIPTION tells it."""
    options = options_of("iterate", argv, example, DESCRIPTION, "configs/iterate.py")
    if options is None:
        return 2
    from plamo2_jax.align.iterative_dpo import iterate

    with progress("iterate") as on_progress:
        ended = iterate(
            options.config,
            again=options.again,
            on_progress=on_progress,
            say=lambda line: print(line, file=sys.stderr),
        )
    if ended.signal is not None:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 128 + ended.signal
    print(ended.model)
    return 0


def example() -> IterativeDpoConfig:
    """The values that the help shows where no config file gives others."""
    from plamo2_jax.align.iterative_dpo import IterativeDpoConfig
    from plamo2_jax.cli import dpo, preference_data

    return IterativeDpoConfig(Path("runs/rounds"), Path("runs/sft"), preference_data.example(), dpo.example())
