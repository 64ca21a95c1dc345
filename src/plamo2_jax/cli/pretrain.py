"""`plamo2 pretrain CONFIG.py [--field value ...]`: train a model, or go on training it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from plamo2_jax.train.config import RunConfig
    from plamo2_jax.train.loop import TrainResult

DESCRIPTION = """Train a model from a config file, or resume its training.

usage: plamo2 pretrain CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = RunConfig(..., task=Pretrain(...))`, or task=Distill(...) to learn from a teacher too:

  from plamo2_jax.train.config import RunConfig
  from plamo2_jax.train.pretraining import Pretrain
  from plamo2_jax.surgery.distill import Distill

The folder configs/ of the source tree has examples. Any field below can be replaced on the command line; a task's fields stand beside
those of the run. The run is written to
OUTPUT/NAME: config.json (the resolved config), tokenizer.jsonl, checkpoints/, metrics.jsonl and tensorboard/. The same command resumes a
run that was stopped, from its newest intact checkpoint, exactly as if it had never stopped. Ctrl-C and SIGTERM save a checkpoint and end
the run. A run without a checkpoint of its own starts from --fork RUN@STEP (optimizer included), from --init-from (parameters alone), or
from random parameters. docs/pretraining.md shows how to train a finished run further. One process at a time trains a run; a second one of
the same name is refused.

For a job of several processes, give each of them --distributed.coordinator HOST:PORT (of the first), --distributed.process-count N and
--distributed.process-id 0 .. N-1; or --distributed.coordinator auto on a TPU pod, under SLURM or Open MPI. They share one file system.

exit status:
  0        all steps are done
  2        an error, in one line on stderr; saved files stay as they are; the same command fails again until the cause is removed
  75       another process of the job is gone, as the last line on stderr says: start all of them again to resume
  130, 143 Ctrl-C or SIGTERM (128 + the signal): a checkpoint was saved; the same command resumes
  137      killed: the same command resumes from the newest checkpoint"""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status, as DESCRIPTION tells it."""
    from plamo2_jax.surgery.distill import Distill
    from plamo2_jax.train.pretraining import Pretrain

    def report(config: RunConfig, result: TrainResult) -> None:
        for language, heldout in result.heldout.items():
            print(f"held-out {language}: {heldout.bits_per_byte:.4f} bits per byte")

    return run("pretrain", argv, example(), (Pretrain, Distill), DESCRIPTION, "configs/demo.py", report)


def run(
    verb: str,
    argv: list[str],
    example: RunConfig,
    tasks: tuple[type, ...],
    description: str,
    such_as: str,
    report: Callable[[Any, TrainResult], None],
) -> int:
    """Train from a config file: what `pretrain`, `sft` and `dpo` share.

    Args:
        verb: which of them.
        argv: config file and overrides.
        example: the values that the help shows where no config file gives others.
        tasks: kinds of tasks that the verb runs.
        description: of the help.
        such_as: a config file to name in messages.
        report: prints the results of a run that is complete.

    Returns:
        The exit status, as DESCRIPTION tells it.
    """
    from plamo2_jax.cli.run_options import load_run, parse

    if not argv or argv[0].startswith("-"):
        if "-h" in argv or "--help" in argv:
            parse(verb, "CONFIG.py", example, ["--help"], description)
        print(f"plamo2 {verb}: the first argument must be a config file, such as {such_as}", file=sys.stderr)
        return 2
    path, *overrides = argv
    options = parse(verb, path, load_run(Path(path), tasks, such_as), overrides, description)
    config = options.config
    from plamo2_jax.train.loop import train
    from plamo2_jax.train.processes import join, leave_when_aborted, leave_when_broken
    from plamo2_jax.train.profiler import ProfileSteps

    profile = None if options.profile is None else ProfileSteps.parse(options.profile)
    join(options.distributed)
    leave_when_aborted(config.folder)
    with leave_when_broken(config.folder):
        result = train(config, profile=profile)
    if result.signal is not None:
        print(f"stopped after step {result.step} of {config.steps}; the same command resumes the run", file=sys.stderr)
        return 128 + result.signal
    report(config, result)
    print(config.folder)
    return 0


def example() -> RunConfig:
    """The values that the help shows where no config file gives others."""
    from plamo2_jax.config import preset
    from plamo2_jax.data.pipeline import DataConfig, MixtureItem
    from plamo2_jax.train.config import RunConfig
    from plamo2_jax.train.pretraining import Pretrain

    return RunConfig(
        name="example",
        model=preset("tiny"),
        tokenizer=Path("tokenizer.jsonl"),
        data=DataConfig((MixtureItem(Path("data/train")),), sequence_length=256, batch_size=16),
        steps=1000,
        task=Pretrain(),
    )
