"""Forks: runs that start from a checkpoint of another run with its optimizer state, for a decay branch, other data or a longer schedule.

`init_from` takes only parameters. A fork takes the whole state: parameters, optimizer state, number of updates, random key, moving average
and, unless fork_data="restart", the data position. With the same configuration, it makes bit-identical updates to the other run. The other
run is not changed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from plamo2_jax import checkpoint
from plamo2_jax.checkpoint import BASE_FINGERPRINT, CheckpointError
from plamo2_jax.errors import PlamoError
from plamo2_jax.manifest import MANIFEST
from plamo2_jax.storage import address, located
from plamo2_jax.train import integrity
from plamo2_jax.train.checkpoints import TRAINING, check_state, read_state
from plamo2_jax.train.config import RunConfig, differences, fill_defaults, free_fields
from plamo2_jax.train.data_position import DataIterator
from plamo2_jax.train.loss_guard import LossGuard
from plamo2_jax.train.source import SHARDS
from plamo2_jax.train.state import TrainState

FORKED_FROM = "forked_from"
"""Key of config.json in a fork: run and step of the checkpoint, and the code that wrote it."""


class ForkError(PlamoError):
    """A run cannot start from the checkpoint that `fork` names."""


@dataclasses.dataclass(frozen=True)
class Fork:
    """The checkpoint of another run from which this run starts."""

    folder: Path
    step: int
    keeps_position: bool
    """Whether the data position is restored."""
    origin: Mapping[str, Any]
    """Value of FORKED_FROM in config.json."""

    def restore(self, abstract: TrainState, iterator: DataIterator, guard: LossGuard) -> TrainState:
        """Read the state. If the fork keeps the data position, restore the iterator and the guard too.

        Raises:
            CheckpointError: A tensor is missing or has another shape.
        """
        if self.keeps_position:
            return read_state(self.folder, self.step, abstract, iterator, guard)
        guard.step = self.step
        return read_state(self.folder, self.step, abstract)


def open_fork(config: RunConfig, abstract: TrainState, description: Mapping[str, Any]) -> Fork | None:
    """Find the checkpoint that `config.fork` names and check that this run can start from it. Return None if fork is not set.

    Args:
        abstract: Shapes of the state of this run.
        description: Contents of config.json of this run.

    Raises:
        PlamoError: There is no such checkpoint, it is damaged, has no optimizer state or other tensors, or is past the last step; or it
            belongs to another tokenizer, other data or another base of its adapters.
    """
    if config.fork is None:
        return None
    folder, step = parse_checkpoint(config.fork)
    path = checkpoint.step_folder(folder, step)
    step = int(path.name)
    name = f"{address(folder)}@{step}"
    theirs = fill_defaults(checkpoint.read_config(folder), config)
    if not (path / TRAINING).is_dir():
        raise ForkError(
            f"RunConfig.fork={address(config.fork)!r} is not allowed: {name} has parameters but no optimizer "
            "state. Use init_from to start from parameters"
        )
    if step >= config.steps:
        raise ForkError(
            f"RunConfig.steps={config.steps} is not allowed with fork={name}: it includes the updates before the fork and must "
            f"be above {step}"
        )
    for key, what in (("tokenizer_fingerprint", "tokenizer"), (BASE_FINGERPRINT, "base of its adapters")):
        if key in theirs and key in description and theirs[key] != description[key]:
            raise ForkError(
                f"RunConfig.fork={name} is not allowed: that run has a different {what}. Both must be the same"
            )
    # Older runs do not record their shards.
    data = ("data", "examples", *([SHARDS] if SHARDS in theirs else []))
    compared = ({key: described.get(key) for key in data} for described in (description, theirs))
    others = differences(*compared, frozenset(free_fields(config)))
    if others and config.fork_data == "continue":
        listed = "; ".join(others)
        raise ForkError(
            f"fork={name} cannot continue at the data position of that run, because the data differ "
            f"({listed[:200]}). Set fork_data='restart' to read the data of this run from the beginning"
        )
    check_state(folder, step, abstract)
    damage, has_manifest = integrity.find_damage(path)
    if not has_manifest:
        damage = f"it has no {MANIFEST}"
    if damage is not None:
        raise CheckpointError(f"{path} is damaged: {damage}. Fork another checkpoint")
    origin = {
        "run": address(folder),
        "name": theirs.get("name"),
        "step": step,
        "data": config.fork_data,
        "written_by": integrity.written_by(path),
    }
    return Fork(folder, step, config.fork_data == "continue", origin)


def parse_checkpoint(name: Path) -> tuple[Path, int | None]:
    """Split RUN@STEP into folder and step, or RUN into folder and None, which stands for the newest checkpoint.

    Raises:
        ForkError: The text after the @ is not a step.
    """
    text = address(name)
    if match := re.fullmatch(r"(.+)@([0-9]{1,18})", text):
        return located(match[1]), int(match[2])
    if "@" in text.rpartition("/")[2]:
        raise ForkError(f"RunConfig.fork={text!r} is not allowed: it must be RUN or RUN@STEP, such as runs/demo@500")
    return located(name), None


def first_change(ours: Any, theirs: Any, updates: int) -> int | None:
    """Return the first of `updates` updates for which two learning-rate schedules differ; None if they do not differ."""
    numbers = jnp.arange(updates)
    changed = jax.device_get(ours(numbers) != theirs(numbers))
    return int(changed.argmax()) if changed.any() else None
