"""Local checkpoints: the shards of each process on its host's own disk, beside the persistent checkpoints of the run.

A persistent checkpoint goes through the network to storage that all processes share. A local checkpoint goes to a disk of the host, so it
can be saved much more often. If the job restarts on the same hosts, it loses fewer steps; if a host is replaced, its local checkpoints are
lost, and the job restores a persistent checkpoint.

The folder of a run is `ROOT/NAME-ID`, where ID is a random identifier from the run folder: a new run of the same name never reads the files
of an old one. A checkpoint is a folder `STEP-TOKEN-pPROCESS` in it, written under a temporary name and renamed when it is complete.
TOKEN is the same in all processes and differs between starts of the job, so that no state is mixed from two starts. Several processes on
a host may use the same folder. After a renumbering, a process finds its shards in the folder of another process.

Orbax has an emergency checkpoint manager (`orbax.checkpoint.experimental.emergency`, 0.12.8). It is not used, because it needs at least two
copies of the parameters, saves local checkpoints only in the copies after the first, and compares no checksums.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plamo2_jax import checkpoint, manifest
from plamo2_jax.checkpoint import CheckpointError, first_line
from plamo2_jax.json_input import read_json_object
from plamo2_jax.storage import is_full_disk, located
from plamo2_jax.train import processes, shard_files
from plamo2_jax.train.state import TrainState

RUN_ID = "run_id.json"
"""File in the run folder with the identifier of the run in the names of local folders."""
_STATE = "state.json"
_TEMPORARY = ".tmp"
_NAME = re.compile(r"(\d{1,9})-([0-9a-f]{8})-p(\d{1,9})")
# A process has at most two local checkpoints of its own, and others that share its disk are seldom needed.
_MOST_OFFERED = 8


class LocalCheckpoints:
    """Save and restore the local checkpoints of one run. All processes of the job create one and call the same methods.

    Args:
        root: `RunConfig.local_checkpoints`, a folder on a disk of this host.
        run: Run folder.
        abstract: Shapes, dtypes and shardings of the train state.
    """

    def __init__(self, root: str | os.PathLike[str], run: str | os.PathLike[str], abstract: TrainState):
        self._root, self._run, self._abstract = Path(root).absolute(), located(run), abstract
        self._token = 0
        self._saved: list[int] = []
        """Steps that this process has saved in this start."""
        self._thread: threading.Thread | None = None
        self._found: dict[tuple[int, int], Path] = {}
        self._unusable: list[tuple[Path, str]] = []
        self._newest: tuple[int, int] | None = None
        begun = time.perf_counter()
        self._id = processes.from_first(_read_id(self._run / RUN_ID) if jax.process_index() == 0 else None)
        if self._id is not None:
            self._find()
        self.check_seconds = time.perf_counter() - begun
        """Time to compare the checkpoints with their checksums."""

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint that all processes hold complete and undamaged; None if there is none."""
        return None if self._newest is None else self._newest[0]

    def begin(self) -> None:
        """Report and remove checkpoints that cannot be used. Call this when the run folder is locked and written."""
        if self._id is None:
            self._id = processes.from_first(secrets.token_hex(8))
            if jax.process_index() == 0:
                checkpoint.write_json(self._run / RUN_ID, {"id": self._id})
        for path, reason in self._unusable:
            print(f"local checkpoint {path} is not used: {reason}", file=sys.stderr)
        for path, found in self._folders():
            if found is None or found[:2] != self._newest:
                _remove(path)
        self._token = processes.from_first(secrets.randbits(31))

    def restore(self) -> tuple[TrainState, dict[str, Any]]:
        """Read the checkpoint `newest`. Return the state and the JSON values that were saved with it.

        Raises:
            CheckpointError: The checkpoint cannot be read.
        """
        path = self._found[self._newest]
        try:
            content = read_json_object(path / _STATE)
            state = shard_files.read_shards(path, content["leaves"], self._abstract)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(
                f"cannot resume from {path}: {first_line(error)}. Remove it to resume from a persistent checkpoint"
            ) from error
        return state, content["data"]

    def save(self, state: TrainState, data: Mapping[str, Any]) -> None:
        """Save the shards of this process. They are copied before this returns, and a thread writes them.

        If the disk is full or fails, one line on stderr says so, and the run goes on.

        Args:
            data: JSON values to save with the state.
        """
        self.wait()
        self._remove_old()
        step = int(state.step)
        arguments = step, self._path(step), shard_files.copy_shards(state), data
        self._thread = threading.Thread(target=self._write, args=arguments, name="local checkpoint")
        self._thread.start()

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, after a rollback."""
        self.wait()
        for path, found in self._folders():
            if found is not None and found[2] == jax.process_index() and found[0] > step:
                _remove(path)
        self._saved = [saved for saved in self._saved if saved <= step]
        self._token = (self._token + 1) % (1 << 31)

    def wait(self) -> None:
        """Wait until the last save is written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def remove(self) -> None:
        """Remove all checkpoints of the run, when it is complete."""
        self.wait()
        checkpoint.barrier("local checkpoints no longer needed")
        if self._id is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        return self._root / f"{self._run.name}-{self._id}"

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}-{self._token:08x}-p{jax.process_index()}"

    def _folders(self) -> Iterator[tuple[Path, tuple[int, int, int] | None]]:
        """Yield the checkpoints in the folder with step, token and process, newest first.

        Before them come unfinished checkpoints, with None.
        """
        found, process = [], jax.process_index()
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if match := _NAME.fullmatch(path.name):
                found.append((path, (int(match[1]), int(match[2], 16), int(match[3]))))
            elif path.name.endswith(_TEMPORARY):
                yield path, None
        # Of several copies of one checkpoint, the own one first.
        yield from sorted(found, key=lambda entry: (-entry[1][0], entry[1][1], entry[1][2] != process))

    def _find(self) -> None:
        """Find the usable checkpoints of this process, and agree with the other processes on the newest that all of them have."""
        for path, found in self._folders():
            if found is None:
                if f"-p{jax.process_index()}." in path.name:
                    self._unusable.append((path, "its writing was interrupted"))
            elif found[:2] not in self._found and len(self._found) < _MOST_OFFERED:
                reason = self._problem(path)
                if reason is None:
                    self._found[found[:2]] = path
                elif found[2] == jax.process_index():
                    self._unusable.append((path, reason))
        offered = np.full((_MOST_OFFERED, 2), -1, np.int32)
        offered[: len(self._found)] = np.reshape([*self._found], (-1, 2))
        held = [{tuple(map(int, pair)) for pair in rows if pair[0] >= 0} for rows in processes.gather(offered)]
        self._newest = max(set.intersection(*held), default=None)
        if self._newest is None and any(held) and jax.process_index() == 0:
            without = [str(number) for number, pairs in enumerate(held) if not pairs]
            which = f"process {', '.join(without)} holds none" if without else "the processes hold different ones"
            newest = max(step for pairs in held for step, _ in pairs)
            self._unusable.append((self._folder, f"{which}, and others hold step {newest}"))

    def _problem(self, path: Path) -> str | None:
        """Return why a checkpoint cannot be used by this process, or None."""
        try:
            if (damage := manifest.find_damage(path, _STATE)) is not None:
                return f"it is damaged: {damage}"
            content = read_json_object(path / _STATE)
            # First the cheap check: shards of other devices need no checksums.
            if (difference := shard_files.find_difference(content["leaves"], self._abstract)) is not None:
                return difference
            damage = manifest.find_damage(path)
        except FileNotFoundError:
            return f"it is damaged: {manifest.MANIFEST} is missing"
        except (ValueError, KeyError, TypeError, OSError) as error:
            return f"it cannot be read: {first_line(error)}"
        return None if damage is None else f"it is damaged: {damage}"

    def _remove_old(self) -> None:
        """Remove the checkpoints that no restart can need, once all processes have a newer one."""
        newest = max(self._saved, default=-1)
        common = -processes.largest(
            -newest
        )  # Also a barrier: no process starts a save before all have finished the last one.
        if common < 0:
            return
        kept = {common, *sorted(self._saved)[-2:]} if common < newest else {common}
        for path, found in self._folders():
            if found is not None and (
                found[1] != self._token or (found[2] == jax.process_index() and found[0] not in kept)
            ):
                _remove(path)

    def _write(self, step: int, path: Path, shards: Any, data: Mapping[str, Any]) -> None:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
        try:
            temporary.mkdir(parents=True)
            leaves = shard_files.write_shards(temporary, shards)
            checkpoint.write_json(temporary / _STATE, {"data": data, "leaves": leaves})
            manifest.write_manifest(temporary, sorted(os.listdir(temporary)), {"step": step})
            temporary.rename(path)
            self._saved.append(step)
        except OSError as error:
            _remove(temporary)
            reason = "the disk is full" if is_full_disk(error) else first_line(error)
            print(
                f"the local checkpoint {path} could not be written: {reason}. The run continues without it",
                file=sys.stderr,
            )


def _read_id(path: Path) -> str | None:
    """Read the identifier of a run; None if the file is missing or invalid."""
    try:
        found = read_json_object(path).get("id")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) and re.fullmatch(r"[0-9a-f]{16}", found) else None


def _remove(path: Path) -> None:
    # Renamed first, so that an interrupted removal leaves no folder under a final name.
    if not path.name.endswith(_TEMPORARY):
        target = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
        try:
            path.rename(target)
        except OSError:  # Another process on this host has removed it.
            return
        path = target
    shutil.rmtree(path, ignore_errors=True)
