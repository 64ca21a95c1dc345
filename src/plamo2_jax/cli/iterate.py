"""`plamo2 iterate CONFIG.py [--field value ...]`: iterative DPO."""

from __future__ import annotations

import sys
from pathlib import Path

from plamo2_jax.align.iterative_dpo import IterativeDpoConfig
from plamo2_jax.align.iterative_dpo import iterate as run_rounds
from plamo2_jax.cli import dpo, preference_data

DESCRIPTION = """Iterative DPO: in each round the model answers prompts and is trained on pairs of its answers.

usage: plamo2 iterate CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = IterativeDpoConfig(...)`; any field below can be replaced on the command line. A round has
three stages: plamo2 preference-data with the newest model as the policy; plamo2 dpo on the pairs, with this model as the initial model and
the reference; and plamo2 merge of this model and the trained model.

Writes OUTPUT/round_N/{pairs,train,model}. After an interruption in any stage, the same command resumes. You can increase --rounds later.

exit status:
  0        all rounds are done
  2        an error, in one line on stderr
  130, 143 Ctrl-C or SIGTERM: the same command resumes"""


def main(argv: list[str]) -> int:
    """Run the command and return the exit status."""
    options = preference_data.options_of("iterate", argv, example, DESCRIPTION, "configs/iterate.py")
    with preference_data.progress("iterate") as on_progress:
        ended = run_rounds(
            options.config,
            again=options.again,
            on_progress=on_progress,
            say=lambda line: print(line, file=sys.stderr),
        )
    if ended.signal is not None:
        print("stopped; the same command resumes", file=sys.stderr)
        return 128 + ended.signal
    print(ended.model)
    return 0


def example() -> IterativeDpoConfig:
    """Return the values that the help shows if no config file is given."""
    return IterativeDpoConfig(Path("runs/rounds"), Path("runs/sft"), preference_data.example(), dpo.example())
