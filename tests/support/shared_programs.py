"""Share the programs of equal runs among the runs of this process, which traces and compiles each of them once.

A run that is started twice, resumed, forked or compared with another one has the same program. The runs that tests start in processes of
their own build their programs themselves.
"""

import dataclasses
from pathlib import Path

import pytest

_KEPT = 16
"""Number of programs to keep, the last ones."""


def install(patch: pytest.MonkeyPatch) -> None:
    """Let `train` share programs."""
    from plamo2_jax.train import prepare

    build, programs = prepare.build_train_program, {}

    def shared(config, devices, tokenizer):
        if not _is_shared(config):
            return build(config, devices, tokenizer)
        lengths = tokenizer.padded_byte_lengths(config.model.vocab_size).tobytes()
        key = repr(_of_program(config)), tuple(devices), lengths
        program = programs.pop(key, None) or build(config, devices, tokenizer)
        programs[key] = program
        if len(programs) > _KEPT:
            del programs[next(iter(programs))]
        return program

    patch.setattr(prepare, "build_train_program", shared)


def _is_shared(config) -> bool:
    """Return whether the program of a run depends on its configuration alone. Other tasks read arrays of other runs."""
    task = config.task
    return task.kind == "pretrain" or (task.kind == "sft" and task.lora is None)


def _of_program(config):
    """Return the configuration with equal values in fields that the program does not depend on."""
    here = Path()
    return dataclasses.replace(
        config,
        name="run",
        output=here,
        tokenizer=here,
        data=dataclasses.replace(config.data, mixture=config.data.mixture[:1], seed=0),
        heldout={},
        evaluation=type(config.evaluation)(),
        fork=None,
        checkpoint_every=1,
        evaluate_every=1,
        log_every=1,
        max_to_keep=1,
    )
