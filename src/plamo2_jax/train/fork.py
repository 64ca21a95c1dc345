"""Starting a run from a checkpoint of another one, optimizer included: a decay branch, other data, a longer schedule.

`init_from` takes parameters alone. A fork takes the whole state: parameters, moments of the optimizer, number of updates, random key,
moving average and, unless `fork_data` says otherwise, the position in the data. With the same configuration it makes the updates that the
other run made, bit for bit. The other run is only read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp

from plamo2_jax import checkpoint
from plamo2_jax.checkpoint import BASE_FINGERPRINT, CheckpointError
from plamo2_jax.errors import PlamoError
from plamo2_jax.manifest import MANIFEST, find_damage
from plamo2_jax.storage import address, located
from plamo2_jax.train import integrity, processes
from plamo2_jax.train.checkpoints import TRAINING, check_state, read_state
from plamo2_jax.train.config import RunConfig, differences, fill_defaults, free_fields
from plamo2_jax.train.loss_guard import LossGuard
from plamo2_jax.train.state import TrainState

FORKED_FROM = "forked_from"
"""Key of a fork's config.json: which run and step it started from, and what wrote that checkpoint."""


class ForkError(PlamoError):
    """A run cannot start from the checkpoint that `fork` names; the message says why."""


@dataclasses.dataclass(frozen=True)
class Fork:
    """A checkpoint of another run that this run starts from."""

    folder: Path
    step: int
    keeps_position: bool
    """Whether the position in the data is restored too."""
    origin: Mapping[str, Any]
    """Written to config.json under FORKED_FROM."""

    def restore(self, abstract: TrainState, iterator: grain.DatasetIterator, guard: LossGuard) -> TrainState:
        """Read the state, and move the data and the guard to where they were.

        Args:
            abstract: shapes, dtypes and shardings to read into.
            iterator: moved to the position in the data, if that comes along.
            guard: given the state saved with the checkpoint, if the position comes along.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        if self.keeps_position:
            return read_state(self.folder, self.step, abstract, iterator, guard)
        guard.step = self.step
        return read_state(self.folder, self.step, abstract)


def open_fork(config: RunConfig, abstract: TrainState, description: Mapping[str, Any]) -> Fork | None:
    """Find the checkpoint that `config.fork` names and check that this run can start from it; None where it names none.

    Args:
        config: the run that starts.
        abstract: shapes of its state.
        description: what its config.json will say.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, holds no optimizer or has other tensors, it is past the last step, or
            its tokenizer, data or the base of its adapters are others.
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
            f"RunConfig.fork={address(config.fork)!r} is not allowed: {name} holds parameters without the state of an optimizer. "
            "Use init_from to start from parameters"
        )
    if step >= config.steps:
        raise ForkError(
            f"RunConfig.steps={config.steps} is not allowed with fork={name}: it counts the updates before the fork too and must "
            f"be above {step}"
        )
    for key, what in (("tokenizer_fingerprint", "tokenizer"), (BASE_FINGERPRINT, "base of its adapters")):
        if key in theirs and key in description and theirs[key] != description[key]:
            raise ForkError(f"RunConfig.fork={name} is not allowed: that run has another {what} than this one")
    data = ("data", "examples")
    compared = ({key: described.get(key) for key in data} for described in (description, theirs))
    others = differences(*compared, frozenset(free_fields(config)))
    if others and config.fork_data == "continue":
        listed = "; ".join(others)
        raise ForkError(
            f"fork={name} cannot go on in the data of that run, since the data are others ({listed[:200]}). "
            "Give fork_data='restart' to read these data from their beginning"
        )
    check_state(folder, step, abstract)
    damage, manifest = processes.from_first(_check(path))
    if damage is not None:
        raise CheckpointError(f"{path} is damaged: {damage}; fork another checkpoint")
    origin = {"run": address(folder), "name": theirs.get("name"), "step": step, "data": config.fork_data, **manifest}
    return Fork(folder, step, config.fork_data == "continue", origin)


def parse_checkpoint(name: Path) -> tuple[Path, int | None]:
    """Split RUN@STEP, or RUN for its newest checkpoint (None), into folder and step.

    Raises:
        ForkError: what follows the @ is no step.
    """
    text = address(name)
    if match := re.fullmatch(r"(.+)@([0-9]{1,18})", text):
        return located(match[1]), int(match[2])
    if "@" in text.rpartition("/")[2]:
        raise ForkError(f"RunConfig.fork={text!r} is not allowed: it must be RUN or RUN@STEP, such as runs/demo@500")
    return located(name), None


def _check(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Return what is wrong with a checkpoint, and what its manifest says about the code that wrote it. Only the first process reads it."""
    if jax.process_index() != 0:
        return None, {}
    try:
        damage = find_damage(path)
    except FileNotFoundError:
        return f"it has no {MANIFEST}", {}
    return damage, {} if damage else {"written_by": integrity.written_by(path)}


def first_change(ours: Any, theirs: Any, updates: int) -> int | None:
    """Return the first of so many updates whose learning rate differs between two schedules; None where none does.

    Args:
        ours, theirs: schedules, functions of an array of updates.
        updates: how many to compare, from the first.
    """
    numbers = jnp.arange(updates)
    changed = jax.device_get(ours(numbers) != theirs(numbers))
    return int(changed.argmax()) if changed.any() else None
