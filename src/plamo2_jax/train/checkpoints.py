"""Checkpoints of a run: parameters, optimizer state, step, random key and data position, saved in the background."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from plamo2_jax import checkpoint, manifest
from plamo2_jax.checkpoint import CHECKPOINTS, EMA, PARAMS, CheckpointError, first_line, frugal_handler
from plamo2_jax.storage import absolute, is_full_disk
from plamo2_jax.train import integrity
from plamo2_jax.train.data_position import DataIterator, gather_position
from plamo2_jax.train.local_checkpoints import LocalCheckpoints
from plamo2_jax.train.loss_guard import LossGuard
from plamo2_jax.train.state import TrainState

TRAINING = "training"
"""Checkpoint item with the TrainState without parameters and moving average."""
DATA = "data"
"""Checkpoint item with the data position of the job and the state of the loss guard."""


class RunCheckpoints:
    """Save and restore the checkpoints of one run. A context manager, which waits for running saves when it exits.

    Args:
        abstract: Shapes, dtypes and shardings of the state.
        keep: Number of checkpoints to keep.
        about: JSON values to record in each manifest, besides code versions.
        local: Local checkpoints of the run; None if they are off.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        abstract: TrainState,
        keep: int,
        about: Mapping[str, Any],
        local: LocalCheckpoints | None = None,
    ):
        self.tier: Literal["persistent", "local"] | None = None
        """Kind of checkpoint that `restore` read; None before."""
        self._abstract = abstract
        self._local = local
        self._folder = absolute(folder)
        self._about = {**integrity.provenance(), **about}
        self._saving: int | None = None
        self._items: tuple[str, ...] = ()
        items = {PARAMS: abstract.params, TRAINING: _without_params(abstract), EMA: abstract.ema}
        handlers = {name: frugal_handler(tree) for name, tree in items.items() if tree is not None}
        self._manager = ocp.CheckpointManager(
            self._folder / CHECKPOINTS,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            ),
            item_handlers={**handlers, DATA: ocp.JsonCheckpointHandler()},
        )

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._local is not None:
            self._local.wait()
        try:
            self._manager.close()
        except Exception as error:
            # If the run ends with an error, that error matters more than an incomplete checkpoint.
            if kind is None:
                raise self._save_error(error) from error

    def save(self, state: TrainState, iterator: DataIterator, guard: LossGuard) -> None:
        """Save the state. The arrays are copied before this returns, so the state may be donated; a thread writes them.

        Raises:
            CheckpointError: This checkpoint, or the one before it, could not be written. Earlier checkpoints are untouched.
        """
        items = {
            PARAMS: ocp.args.StandardSave(state.params),
            TRAINING: ocp.args.StandardSave(_without_params(state)),
            DATA: ocp.args.JsonSave(_data(iterator, guard)),
        }
        if state.ema is not None:
            items[EMA] = ocp.args.StandardSave(state.ema)
        try:
            self._manager.wait_until_finished()
            self._saving, self._items = int(state.step), tuple(items)
            self._manager.save(self._saving, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._save_error(error) from error

    def save_local(self, state: TrainState, iterator: DataIterator, guard: LossGuard) -> None:
        """Save a local checkpoint. The arrays are copied before this returns, so the state may be donated."""
        self._local.save(state, _data(iterator, guard))

    def remove_local(self) -> None:
        """Remove all local checkpoints after the last save of a complete run.

        Raises:
            CheckpointError: The last checkpoint could not be written.
        """
        if self._local is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_error(error) from error
        self._local.remove()

    def check(self) -> None:
        """Check whether a save in the background has failed.

        Raises:
            CheckpointError: A checkpoint could not be written.
        """
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._save_error(error) from error

    def restore(self, iterator: DataIterator, guard: LossGuard) -> TrainState:
        """Read the newest intact checkpoint, persistent or local. Damaged checkpoints are reported on stderr; persistent ones are renamed.

        A checkpoint without a manifest, from an older version of this package, counts as damaged if it cannot be read.

        Args:
            iterator, guard: Get the states that were saved with the checkpoint.

        Raises:
            CheckpointError: No intact checkpoint is left, or an intact checkpoint has another shape.
        """
        local = None if self._local is None else self._local.newest
        while (step := checkpoint.latest_step(self._folder)) is not None and (local is None or step > local):
            path = self._folder / CHECKPOINTS / str(step)
            damage, has_manifest = integrity.find_damage(path)
            if damage is None:
                try:
                    self.tier = "persistent"
                    return read_state(self._folder, step, self._abstract, iterator, guard)
                except CheckpointError as error:
                    if has_manifest:
                        raise
                    damage = str(error)
            self._set_aside(path, integrity.DAMAGED, f"is damaged: {damage}")
        if local is not None:
            self.tier = "local"
            state, data = self._local.restore()
            try:
                _set_data(data, iterator, guard)
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"cannot resume from the local checkpoint of step {local}: {first_line(error)}"
                ) from error
            return state
        raise no_checkpoint_left(self._folder)

    def restore_step(self, step: int, iterator: DataIterator, guard: LossGuard) -> TrainState:
        """Read one checkpoint, after comparing its files with their checksums. For the arguments, see `restore`.

        Raises:
            CheckpointError: A part of it is missing or damaged, or has another shape.
        """
        checkpoint.verify_files(checkpoint.step_folder(self._folder, step))
        return read_state(self._folder, step, self._abstract, iterator, guard)

    def step_before(self, step: int, every: int) -> int | None:
        """Return the newest regular checkpoint before a step of high loss and set aside all later checkpoints; None if there is none.

        Regular means that its step is a multiple of `every`. A checkpoint that a signal caused is ignored, because a run that was never
        interrupted does not have it, and both runs must go back to the same step.
        """
        self._manager.wait_until_finished()
        found = checkpoint.steps(self._folder)
        before = max((number for number in found if number < step and number % every == 0), default=None)
        if before is not None:
            for number in found:
                if number > before:
                    reason = f"is not used, because it is after the loss spike at step {step}"
                    self._set_aside(self._folder / CHECKPOINTS / str(number), "spike", reason)
            if self._local is not None:
                self._local.drop_after(before)
        return before

    def _set_aside(self, path: Path, suffix: str, reason: str) -> None:
        checkpoint.barrier(f"{path.name} judged")  # No process may still be reading it.
        if jax.process_index() == 0:
            moved = integrity.set_aside(path, suffix)
            print(f"{path} {reason}; it is kept as {moved.name}", file=sys.stderr)
        checkpoint.barrier(f"{path.name} set aside")
        self._manager.reload()

    def _write_manifest(self) -> None:
        """Write the manifest. Orbax calls this in a thread of the first process before it renames the finished folder."""
        root, step = self._folder / CHECKPOINTS, str(self._saving)
        # In object stores, where renaming is not atomic, Orbax writes under the final name and marks the end with a file.
        unfinished = sorted(root.glob(f"{step}{ocp.utils.TMP_DIR_SUFFIX}*"))
        manifest.write_manifest((unfinished or [root / step])[0], self._items, self._about)

    def _save_error(self, error: Exception) -> CheckpointError:
        kept = ", ".join(map(str, checkpoint.steps(self._folder))) or "none"
        # Orbax and TensorStore describe a full disk in hundreds of characters.
        reason = "the disk is full" if is_full_disk(error) else first_line(error)
        return CheckpointError(
            f"the checkpoint of step {self._saving} could not be written to {self._folder / CHECKPOINTS}: "
            f"{reason}. Finished checkpoints in this folder: {kept}"
        )


def check_state(folder: Path, step: int, abstract: TrainState) -> None:
    """Check that a checkpoint has the tensors of a state, without reading them.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    for item, wanted in ((PARAMS, abstract.params), (EMA, abstract.ema), (TRAINING, _without_params(abstract))):
        if wanted is not None:
            checkpoint.check_params(folder, wanted, step, item)


def read_state(
    folder: Path,
    step: int,
    abstract: TrainState,
    iterator: DataIterator | None = None,
    guard: LossGuard | None = None,
) -> TrainState:
    """Read the state of a run from a checkpoint, without comparing checksums.

    Args:
        folder: Run folder, absolute.
        abstract: Shapes, dtypes and shardings of the state.
        iterator, guard: Get the states that were saved with the checkpoint; None: not restored.

    Raises:
        CheckpointError: A part of it is missing or damaged, or has another shape.
    """
    params = checkpoint.restore_params(folder, abstract.params, step, verify=False)
    ema = None
    if abstract.ema is not None:
        ema = checkpoint.restore_params(folder, abstract.ema, step, item=EMA, verify=False)
    path = checkpoint.step_folder(folder, step)
    try:
        rest = checkpoint.restore_params(folder, _without_params(abstract), step, item=TRAINING, verify=False)
        if iterator is not None or guard is not None:
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
                data = reader.restore(path / DATA, args=ocp.args.JsonRestore())
            _set_data(data, iterator, guard)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"cannot resume from {path}: {first_line(error)}") from error
    return TrainState(params=params, ema=ema, **rest)


def no_checkpoint_left(folder: Path) -> CheckpointError:
    """Return the error for a run whose checkpoints are all damaged."""
    return CheckpointError(
        f"{folder} has no intact checkpoint to resume from; damaged: {', '.join(integrity.damaged(folder))}. "
        "Restore a checkpoint from a backup, or start the run again under another name"
    )


def _data(iterator: DataIterator, guard: LossGuard) -> dict[str, Any]:
    """Return the JSON values of a checkpoint."""
    return {"iterator": gather_position(iterator.get_state()), "guard": guard.get_state()}


def _set_data(data: Any, iterator: DataIterator | None, guard: LossGuard | None) -> None:
    """Restore what `_data` returned."""
    if iterator is not None:
        iterator.set_state(data["iterator"])
    if guard is not None:
        guard.set_state(data["guard"])


def _without_params(state: TrainState) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(state) if field.name not in ("params", "ema")]
    return {name: getattr(state, name) for name in names}
