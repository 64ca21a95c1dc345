"""Checks of a training run before its first step: the files that its config names, its parameters, and an estimate of its memory."""

from __future__ import annotations

import dataclasses
import glob
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from plamo2_jax.convert.names import ModelName
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.in_training import open_benchmarks
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.storage import address, is_remote, located
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train import run_folder
from plamo2_jax.train.build import TrainProgram, build_train_program
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.fork import open_fork, parse_checkpoint


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a train step over all devices, if no array has copies on several devices. Only `activations` is an estimate."""

    state: int
    """Parameters, optimizer state, and the moving average."""
    frozen: int
    """Arrays that are not trained, such as a teacher."""
    gradients: int
    activations: int
    """Activations of one micro-batch that the backward pass reads, and the recomputed activations of one period, before the compiler fuses
    operations."""
    logits: int
    """Logits and their gradient that exist besides `activations`."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.state + self.frozen + self.gradients + self.activations + self.logits

    def summary(self) -> str:
        """Return the parts in words."""
        frozen = f"{_size(self.frozen)} arrays that are not trained, " if self.frozen else ""
        activations = _size(self.activations + self.logits)
        return (
            f"about {_size(self.total)} on one device: {_size(self.state)} parameters and optimizer, {frozen}"
            f"{_size(self.gradients)} gradients, {activations} activations and logits"
        )


def missing_paths(config: RunConfig) -> list[str]:
    """Return the paths that a run reads and that do not exist, with the names of their fields."""
    named: list[tuple[str, Path | None]] = [("tokenizer", config.tokenizer)]
    named += [(f"data.mixture[{number}].path", item.path) for number, item in enumerate(config.data.mixture)]
    named += [(f"heldout[{name!r}]", path) for name, path in config.heldout.items()]
    named += [(f"evaluation.paths[{name!r}]", path) for name, path in config.evaluation.paths.items()]
    named += [("init_from", None if config.init_from is None else ModelName.parse(config.init_from).folder)]
    named += [("fork", None if config.fork is None else parse_checkpoint(config.fork)[0])]
    named += [
        (f"task.{name}", None if path is None else ModelName.parse(path).folder)
        for name, path in config.task.inputs.items()
    ]
    return [f"{field}={address(path)}" for field, path in named if path is not None and not exists(path)]


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder exists, on this machine or in a bucket, or whether files match a pattern."""
    return bool(glob.glob(os.fspath(path), recursive=True)) if not is_remote(path) else located(path).exists()


def check_run(config: RunConfig, program: TrainProgram) -> Iterator[tuple[str, str]]:
    """Check a run as `train` does before its first step, and yield the name and the result of each check. Nothing is written.

    Args:
        program: Result of `one_device_program`.

    Raises:
        PlamoError: A file is missing, damaged, or does not fit the others; or the run's folder holds another run.
    """
    if missing := missing_paths(config):
        several = "do not exist" if len(missing) > 1 else "does not exist"
        raise PlamoError(
            f"{', '.join(missing)} {several}: every path of a config must exist. Correct the path, or create "
            "the tokenizer and the data first"
        )
    tokenizer = run_folder.load_tokenizer(config)
    tokenizer.padded_byte_lengths(config.model.vocab_size)
    yield "tokenizer", f"{address(config.tokenizer)}: {tokenizer.vocab_size:,} rows"
    yield from _check_data(config, program, tokenizer)
    if config.evaluation.tasks:
        open_benchmarks(config, tokenizer, jax.devices()[:1])
        yield "evaluation", f"{', '.join(config.evaluation.tasks)}: every item fits the model"
    if config.init_from is not None:
        run_folder.check_initial_shape(config)
        yield "init_from", f"{address(config.init_from)}: a model with the same shape"


def _check_data(config: RunConfig, program: TrainProgram, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    source = config.task.make_source(config, tokenizer)
    rows = config.data.batch_size * config.data.sequence_length * config.steps
    weights = [item.weight for item in config.data.mixture]
    for item, size, weight in zip(config.data.mixture, source.targets, weights, strict=True):
        epochs = rows * weight / sum(weights) / size
        yield "data", f"{address(item.path)}: {size:,} tokens, about {epochs:.2f} epochs"
    for name, path in config.heldout.items():
        next(iter(source.heldout(name, 0, 1)))
        yield "held out", f"{name}: {address(path)}"
    description = run_folder.describe(config, tokenizer, source, program.task.description)
    if run_folder.is_resumed(config):
        run_folder.check_resumable(config, description)
        yield "folder", f"{address(config.folder)}: this run, which can be resumed"
    elif config.fork is not None:
        fork = open_fork(config, program.state, description)
        yield "fork", f"{address(fork.folder)} at step {fork.step}"


def one_device_program(config: RunConfig) -> TrainProgram:
    """Build the program of a run for one device. Only the shapes of frozen arrays are read."""
    return build_train_program(dataclasses.replace(config, mesh=MeshConfig()), jax.devices()[:1])


def trained_parameters(program: TrainProgram) -> int:
    """Return the number of trained parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.state.params))


def estimate_memory(config: RunConfig, program: TrainProgram) -> MemoryEstimate:
    """Estimate the memory of a train step. No weights are allocated and nothing is compiled.

    Args:
        program: Result of `one_device_program`.
    """
    params, rows = program.state.params, config.data.batch_size // config.accumulation
    activations = _saved_bytes(program, rows)
    if config.remat != "none":
        # The backward pass computes the activations of one period at a time again.
        whole = _saved_bytes(one_device_program(dataclasses.replace(config, remat="none")), rows)
        activations += max(0, whole - activations) // sum(group.count for group in config.model.layer_groups)
    # The logits of a whole row are among the activations, those of a chunk are computed again; both have a gradient.
    copies, length = (2, config.loss_chunk) if config.loss_chunk else (1, config.data.sequence_length)
    return MemoryEstimate(
        state=_bytes(program.state),
        frozen=_bytes(program.task.frozen),
        gradients=_bytes(params),
        activations=activations,
        logits=copies * rows * length * config.model.vocab_size * 4,
    )


def _saved_bytes(program: TrainProgram, rows: int) -> int:
    """Return the bytes of the arrays that the backward pass of a batch of `rows` reads, without parameters and batch."""
    batch = {name: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for name, leaf in program.batch.items()}
    rng = jax.eval_shape(lambda: jax.random.key(0))

    def backward(params: Any, batch: Any, rng: Any, frozen: Any) -> Any:
        _, pullback, _ = jax.vjp(lambda given: program.task.loss_fn(given, batch, rng, frozen), params, has_aux=True)
        return jax.tree.leaves(pullback)

    arguments = (program.state.params, batch, rng, program.task.frozen)
    return max(
        0, _bytes(jax.eval_shape(backward, *arguments)) - _bytes((program.state.params, batch, program.task.frozen))
    )


def _bytes(tree: Any) -> int:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _size(count: int) -> str:
    """Return a number of bytes in words."""
    for unit, size in (("TB", 10**12), ("GB", 10**9)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 10**6:.0f} MB"
