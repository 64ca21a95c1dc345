"""`plamo2 pretrain CONFIG.py [--field value ...]`: train a model, or go on training it."""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from plamo2_jax.train.config import PretrainConfig
    from plamo2_jax.train.loop import TrainResult

DESCRIPTION = """Train a model from a config file, or resume its training.

usage: plamo2 pretrain CONFIG.py [--field value] [--part.field value] ...

CONFIG.py is a Python file that sets `config = PretrainConfig(...)`:

  from plamo2_jax.train.config import PretrainConfig

The folder configs/ of the source tree has examples. Any field below can be replaced on the command line. The run is written to
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

    def hooks(config: PretrainConfig) -> dict[str, Any]:
        if config.distillation is None:
            return {}
        from plamo2_jax.surgery.distill import distillation_task

        return {"make_task": distillation_task}

    def report(config: PretrainConfig, outcome: TrainResult) -> None:
        for language, heldout in outcome.heldout.items():
            print(f"held-out {language}: {heldout.bits_per_byte:.4f} bits per byte")

    return train("pretrain", argv, example, DESCRIPTION, "configs/demo.py", hooks, report)


def train(
    verb: str,
    argv: list[str],
    example: Callable[[], PretrainConfig],
    description: str,
    such_as: str,
    hooks: Callable[[Any], dict[str, Any]],
    report: Callable[[Any, TrainResult], None],
) -> int:
    """Train from a config file: what `pretrain`, `sft` and `dpo` share.

    Args:
        verb: which of them.
        argv: config file and overrides.
        example: makes the values that the help shows where no config file gives others; config files must set one of its class.
        description: of the help.
        such_as: a config file to name in messages.
        hooks: what `train.loop.pretrain` gets besides the configuration.
        report: prints what a run that is complete came to.

    Returns:
        The exit status, as DESCRIPTION tells it.
    """
    from plamo2_jax.cli.pretrain_options import parse

    if not argv or argv[0].startswith("-"):
        if "-h" in argv or "--help" in argv:
            parse(verb, "CONFIG.py", example(), ["--help"], description)
        print(f"plamo2 {verb}: the first argument must be a config file, such as {such_as}", file=sys.stderr)
        return 2
    path, *overrides = argv
    options = parse(verb, path, load_config(Path(path), type(example())), overrides, description)
    config = options.config
    from plamo2_jax.train.loop import pretrain
    from plamo2_jax.train.processes import join, leave_when_aborted, leave_when_broken
    from plamo2_jax.train.watch import ProfileSteps

    profile = None if options.profile is None else ProfileSteps.parse(options.profile)
    join(options.distributed)
    leave_when_aborted(config.folder)
    with leave_when_broken(config.folder):
        outcome = pretrain(config, profile=profile, **hooks(config))
    if outcome.signal is not None:
        print(
            f"stopped after step {outcome.step} of {config.steps}; the same command goes on from there", file=sys.stderr
        )
        return 128 + outcome.signal
    report(config, outcome)
    print(config.folder)
    return 0


def example() -> PretrainConfig:
    """The values that the help shows where no config file gives others."""
    from plamo2_jax.config import preset
    from plamo2_jax.data.pipeline import DataConfig, MixtureItem
    from plamo2_jax.train.config import PretrainConfig

    return PretrainConfig(
        name="example",
        model=preset("tiny"),
        tokenizer=Path("tokenizer.jsonl"),
        data=DataConfig((MixtureItem(Path("data/train")),), sequence_length=256, batch_size=16),
        steps=1000,
    )


def load_config(path: Path, *kinds: type) -> Any:
    """The `config` of a config file, which is run as Python.

    Args:
        path: the file.
        kinds: exact classes, one of which it must be of; none: PretrainConfig.

    Raises:
        ValueError: there is no such file, it is not right Python, it sets no such configuration, or what it sets is out of range.
    """
    if not kinds:
        from plamo2_jax.train.config import PretrainConfig

        kinds = (PretrainConfig,)
    return load_setting(path, "config", kinds, "configs/demo.py")


def load_setting(path: Path, name: str, kinds: tuple[type, ...], such_as: str) -> Any:
    """What a Python file sets a name to.

    Args:
        path: the file.
        name: the name that it must set.
        kinds: exact classes, one of which it must be of.
        such_as: a file to name in messages.

    Raises:
        ValueError: as `load_config`.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; the first argument must be a {name} file, such as {such_as}")
    try:
        found = runpy.run_path(str(path)).get(name)
    except (SyntaxError, ImportError, TypeError, NameError, AttributeError) as error:
        raise ValueError(f"{path}, line {_line(error, path)}: {error}") from error
    if type(found) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{path} must set `{name}` to a {wanted}; it sets it to {type(found).__name__}")
    return found


def _line(error: Exception, path: Path) -> int | None:
    """The line of the config file at which its execution stopped."""
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
