"""`plamo2 pretrain CONFIG.py [--field value ...]`: train a model, or resume its training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plamo2_jax.cli.arguments import split_config_file
from plamo2_jax.cli.run_options import RunOptions, load_run, parse
from plamo2_jax.config import preset
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.errors import PlamoError
from plamo2_jax.log_format import emit, is_json, json_output
from plamo2_jax.storage import address
from plamo2_jax.surgery.distill import Distill
from plamo2_jax.train.config import RunConfig, TaskConfig
from plamo2_jax.train.loop import TrainResult, train
from plamo2_jax.train.pretraining import Pretrain
from plamo2_jax.train.processes import join, leave_when_aborted, leave_when_broken
from plamo2_jax.train.profiler import ProfileSteps
from plamo2_jax.train.writers import require_writers

DESCRIPTION = """Train a model from a config file, or resume its training.

usage: plamo2 pretrain CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = RunConfig(..., task=Pretrain(...))`, or task=Distill(...) for distillation from a teacher:

  from plamo2_jax.train.config import RunConfig
  from plamo2_jax.train.pretraining import Pretrain
  from plamo2_jax.surgery.distill import Distill

plamo2 init FOLDER writes config files to start from. Any field below can be replaced on the command line; the fields of the task are listed
with those of the run. The run is written to OUTPUT/NAME: config.json (the resolved config), tokenizer.jsonl, checkpoints/, metrics.jsonl
and tensorboard/. The same command resumes an interrupted run from its newest intact checkpoint; the result is bit-identical to an
uninterrupted run. Ctrl-C and SIGTERM save a checkpoint and end the run. A run without a checkpoint of its own starts from --fork RUN@STEP
(optimizer included), from --init-from (parameters only), or from random parameters. docs/pretraining.md shows how to train a finished run
further. Only one process at a time can train a run; a second process is refused.

For a job of several processes, give each of them --distributed.coordinator HOST:PORT (of the first), --distributed.process-count N and
--distributed.process-id 0 .. N-1; or --distributed.coordinator auto on a TPU pod, under SLURM or Open MPI. All processes need one shared
file system.

exit status:
  0        all steps are done
  2        an error, explained in one line on stderr; saved files are unchanged; fix the cause and run the same command again
  75       another process of the job has ended (the last line on stderr names it): start all processes again to resume
  130, 143 Ctrl-C or SIGTERM (128 + the signal): a checkpoint was saved; the same command resumes
  137      killed: the same command resumes from the newest checkpoint"""


def main(argv: list[str]) -> int:
    """Run the command and return the exit status."""

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
    """Train from a config file; the shared code of `pretrain`, `sft` and `dpo`.

    Args:
        verb: name of the command.
        argv: config file and overrides.
        example: values that the help shows if no config file is given.
        tasks: classes of tasks that the command runs.
        description: description for the help.
        such_as: a config file to name in messages.
        report: prints the results of a complete run.

    Returns:
        The exit status, see DESCRIPTION.
    """
    path, overrides = split_config_file(argv, such_as, lambda: parse(verb, "CONFIG.py", example, ["-h"], description))
    options = parse(verb, path, load_run(Path(path), tasks, such_as), overrides, description)
    profile = None if options.profile is None else ProfileSteps.parse(options.profile)
    if profile is not None and profile.first > options.config.steps:
        raise PlamoError(f"--profile {options.profile} traces no step: the run has {options.config.steps} steps")
    with json_output(options.log_format == "json"):
        try:
            return _run(options, profile, report)
        except (PlamoError, OSError) as error:
            if not is_json():
                raise
            emit("error", text=str(error))
            return 2


def _run(options: RunOptions, profile: ProfileSteps | None, report: Callable[[Any, TrainResult], None]) -> int:
    config = options.config
    require_writers(options.metrics)  # Before this process waits for the others.
    join(options.distributed)
    leave_when_aborted(config.folder)
    with leave_when_broken(config.folder):
        result = train(config, profile=profile, open_benchmarks=_open_benchmarks, writers=options.metrics)
    emit("end", step=result.step, steps=config.steps, signal=result.signal, folder=address(config.folder))
    if result.signal is not None:
        print(f"stopped after step {result.step} of {config.steps}; the same command resumes the run", file=sys.stderr)
        return 128 + result.signal
    report(config, result)
    print(config.folder)
    return 0


def _open_benchmarks(*arguments: Any) -> Any:
    from plamo2_jax.eval.in_training import open_benchmarks  # Only runs with evaluation.tasks need the engine.

    return open_benchmarks(*arguments)


def example(task: TaskConfig | None = None, data: str = "data/train", init_from: Path | None = None) -> RunConfig:
    """Return the values that the help shows if no config file is given."""
    return RunConfig(
        name="example",
        model=preset("tiny"),
        tokenizer=Path("tokenizer.jsonl"),
        data=DataConfig((MixtureItem(Path(data)),), sequence_length=256, batch_size=16),
        steps=1000,
        init_from=init_from,
        task=task or Pretrain(),
    )
