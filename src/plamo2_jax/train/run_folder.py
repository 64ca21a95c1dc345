"""The folder of a run: its lock, its config.json, and the check that a run can be resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from plamo2_jax import checkpoint
from plamo2_jax.checkpoint import BASE_FINGERPRINT, REFERENCE_FINGERPRINT, TEACHER_FINGERPRINT
from plamo2_jax.convert.load import read_shape
from plamo2_jax.errors import PlamoError
from plamo2_jax.model.plamo2 import Plamo2, abstract_params
from plamo2_jax.model_files import optional_file
from plamo2_jax.storage import address, located, lock_folder, write_whole
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train import integrity, processes
from plamo2_jax.train.checkpoints import no_checkpoint_left
from plamo2_jax.train.config import RunConfig, differences, fill_defaults, free_fields, to_json
from plamo2_jax.train.fork import FORKED_FROM, Fork, first_change
from plamo2_jax.train.local_checkpoints import RUN_ID
from plamo2_jax.train.schedule import make_schedule
from plamo2_jax.train.source import SHARDS, Source


class TrainingError(PlamoError):
    """A run cannot start or resume."""


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[Callable[[], None]]:
    """Lock the folder of a run while the block runs. The first process of a job holds the lock for all.

    An existing folder is locked at once. A new folder is locked when the block calls the function that it gets, so that a run that fails
    its checks leaves no folder behind. Buckets have no locks.

    Raises:
        TrainingError: Another process holds the lock.
    """
    with contextlib.ExitStack() as stack:
        held = False

        def take() -> None:
            nonlocal held
            if held:
                return
            refusal = None
            if jax.process_index() == 0:
                try:
                    stack.enter_context(lock_folder(folder))
                except (ValueError, OSError) as error:
                    refusal = str(error)
            if (refusal := processes.from_first(refusal)) is not None:
                raise TrainingError(refusal)
            held = True

        if processes.from_first(jax.process_index() == 0 and folder.exists()):
            take()
        yield take


def load_tokenizer(config: RunConfig) -> Tokenizer:
    """Load the tokenizer of a run.

    Raises:
        PlamoError: The tokenizer does not exist or cannot be read.
    """
    if not located(config.tokenizer).exists():
        raise TrainingError(
            f"RunConfig.tokenizer={str(config.tokenizer)!r} does not exist: it must be a tokenizer.jsonl or its "
            "folder. Train one with plamo2 tokenizer train"
        )
    return Tokenizer.load(config.tokenizer)


def is_resumed(config: RunConfig, local_step: int | None = None) -> bool:
    """Return whether the run has a checkpoint of its own to resume from.

    Args:
        local_step: Step of the newest local checkpoint; None: there is none.

    Raises:
        CheckpointError: It has only damaged checkpoints.
        TrainingError: The folder holds something else than a run, or a run with local checkpoints that the config does not name.
    """
    if local_step is not None or checkpoint.latest_step(config.folder) is not None:
        return True
    if integrity.damaged(config.folder):
        raise no_checkpoint_left(config.folder)
    if optional_file(config.folder, checkpoint.CONFIG) is not None:
        if "steps" not in checkpoint.read_config(config.folder):
            raise TrainingError(
                f"{config.folder} holds a model or adapters, and no training run: starting one here would overwrite its config.json. "
                "Choose another `name` or `output`"
            )
        if config.local_checkpoints is None and optional_file(config.folder, RUN_ID) is not None:
            raise TrainingError(
                f"{config.folder} holds a run with local checkpoints and no other: to resume, add --local-checkpoints FOLDER, as when it "
                f"was started. To start again from the beginning, delete {config.folder / RUN_ID}"
            )
    return False


def check_initial_shape(config: RunConfig) -> None:
    """Check that the model of `init_from` has the shape of the run. No weight is read.

    Raises:
        PlamoError: It is not a model, or a parameter has another shape.
    """
    shapes = (
        jax.tree.map(lambda leaf: tuple(leaf.shape), abstract_params(Plamo2(model)))
        for model in (config.model, read_shape(config.init_from))
    )
    if next(shapes) != next(shapes):
        raise TrainingError(
            f"init_from={address(config.init_from)} has a model with a different shape than `model`: all sizes "
            "must be the same"
        )


def describe(config: RunConfig, tokenizer: Tokenizer, source: Source, task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of config.json. `task` is the description of the task."""
    return {**to_json(config), "tokenizer_fingerprint": tokenizer.fingerprint, **source.description, **task}


def check_resumable(config: RunConfig, description: Mapping[str, Any], local_step: int | None = None) -> dict[str, Any]:
    """Check that the folder contains the same run. Return the contents of config.json to write.

    `steps` may increase if the learning rates of all updates so far stay the same.

    Raises:
        TrainingError: The folder contains another run, or the learning rates differ.
    """
    folder = config.folder
    theirs = fill_defaults(checkpoint.read_config(folder), config)
    ours = {**description, FORKED_FROM: theirs[FORKED_FROM]} if FORKED_FROM in theirs else dict(description)
    # Older runs do not record their shards and frozen models, and a job of several processes does not compute fingerprints of models.
    for key in (BASE_FINGERPRINT, REFERENCE_FINGERPRINT, TEACHER_FINGERPRINT, SHARDS):
        if key in theirs:
            ours.setdefault(key, theirs[key])
        elif key in ours:
            theirs = {**theirs, key: ours[key]}
    steps = theirs.get("steps")
    if isinstance(steps, int) and steps < config.steps:
        theirs = {**theirs, "steps": config.steps}
    if different := differences(ours, theirs, frozenset(free_fields(config))):
        raise TrainingError(
            f"{folder} contains a run with a different configuration, so it cannot be resumed "
            f"({'; '.join(different)}). Give this run a new name. To start from the other run, set "
            "fork=RUN@STEP (with its optimizer state) or init_from=RUN (parameters only)"
        )
    if isinstance(steps, int) and steps < config.steps:
        _check_past(config, steps, local_step)
    return ours


def _check_past(config: RunConfig, steps: int, local_step: int | None) -> None:
    """Raise TrainingError if the learning rates of the updates so far, in a run of `steps`, differ in this longer run."""
    found = checkpoint.steps(config.folder)
    newest = max([*found, local_step or 0])
    schedules = [make_schedule(config.schedule, total) for total in (config.steps, steps)]
    changed = first_change(*schedules, newest)
    if changed is None:
        return
    usable = [step for step in found if step <= changed]
    advice = (
        f"No checkpoint up to step {changed} exists, so the run cannot be forked before the change. Start a new "
        "run from its parameters with init_from"
    )
    if usable:
        advice = f"Fork it before the change: --name NEW --fork {config.folder}@{usable[-1]} --steps {config.steps}"
    updates = f"update {newest}" if changed + 1 == newest else f"updates {changed + 1} to {newest}"
    raise TrainingError(
        f"{config.folder} cannot be resumed with steps={config.steps}: it was trained with steps={steps}, and "
        f"{updates} had a different learning rate. You can change `steps` only if the learning rates of all "
        f"finished updates stay the same, for example before a wsd decay begins. {advice}"
    )


def start(config: RunConfig, fork: Fork | None, resumed: bool, local_step: int | None = None) -> str:
    """Describe the initial state of a run. `local_step` is the step of the newest local checkpoint, if any."""
    if resumed:
        persistent = checkpoint.latest_step(config.folder)
        if local_step is not None and (persistent is None or local_step >= persistent):
            return f"resuming from step {local_step} (local checkpoint)"
        return f"resuming from step {persistent}"
    if fork is not None:
        return f"fork of {address(fork.folder)} at step {fork.step}, with its optimizer"
    return "random parameters" if config.init_from is None else f"parameters of {address(config.init_from)}"


def write_description(config: RunConfig, tokenizer: Tokenizer, source: Source, description: Mapping[str, Any]) -> None:
    """Write config.json, the tokenizer and the files of the source. All processes call this; the first one writes."""
    folder = config.folder
    checkpoint.barrier("run folder looked at")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(folder / checkpoint.CONFIG, description)
        tokenizer.save(folder / checkpoint.TOKENIZER)
        for name, text in source.files.items():
            write_whole(folder / name, text.encode())
    checkpoint.barrier("run folder written")
