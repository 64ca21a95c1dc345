"""A run's own checkpoints: parameters, optimizer, step, random key and the position in the data, saved while training goes on."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import grain
import grain.checkpoint
import orbax.checkpoint as ocp

from plamo2_jax.checkpoint import CHECKPOINTS, PARAMS, CheckpointError, restore_params, step_folder
from plamo2_jax.train.state import TrainState

TRAINING = "training"
"""Item with all of the TrainState but its parameters."""
DATA = "data"
"""Item with the state of the Grain iterator."""


class RunCheckpoints:
    """Saves and restores the checkpoints of one run; a context manager, which waits for saves under way.

    Args:
        folder: the run's folder.
        keep: how many checkpoints to keep.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int):
        self._folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self._folder / CHECKPOINTS,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
            item_names=(PARAMS, TRAINING, DATA),
        )

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, state: TrainState, iterator: grain.DatasetIterator) -> None:
        """Save after the current step. Arrays are copied before this returns, so the state may be donated; writing goes on behind."""
        items = {
            PARAMS: ocp.args.StandardSave(state.params),
            TRAINING: ocp.args.StandardSave(_without_params(state)),
            DATA: grain.checkpoint.CheckpointSave(iterator),
        }
        self._manager.save(int(state.step), args=ocp.args.Composite(**items), force=True)

    def restore(self, abstract: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """Read the newest checkpoint.

        Args:
            abstract: the state's shapes, dtypes and shardings.
            iterator: moved to the position in the data that was saved with the state.

        Raises:
            CheckpointError: a part of it is missing, damaged or of another shape.
        """
        path = step_folder(self._folder)
        step = int(path.name)
        params = restore_params(self._folder, abstract.params, step)
        items = {
            TRAINING: ocp.args.StandardRestore(_without_params(abstract)),
            DATA: grain.checkpoint.CheckpointRestore(iterator),
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"{path} cannot be resumed from: {str(error).splitlines()[0][:300]}") from error
        return TrainState(params=params, **restored[TRAINING])


def _without_params(state: TrainState) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(state) if field.name != "params"]
    return {name: getattr(state, name) for name in names}
