"""Candidates of a sweep: meshes, micro-batches, remat policies and loss chunks, without those that cannot fit, the most promising first.

The formulas here use only the configuration. They select the candidates to compile and their order; the compiler decides whether a
candidate fits.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import get_args

from plamo2_jax.config import LayerKind
from plamo2_jax.model.block import Remat
from plamo2_jax.plan.chips import Chip
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.sharding.rules import Strategy
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.pretraining import Pretrain

_POWERS = (1, 2, 4, 8, 16, 32, 64)
_ROWS = (1, 2, 4)
"""Rows of one micro-batch for each device group."""
_CHUNKS = (512, 1024, 2048, 4096)
_LONG = 32768
"""Rows of this many tokens may be divided over the mesh axis `sequence`."""
_POLICIES: tuple[Remat, ...] = tuple(policy for policy in get_args(Remat) if policy != "offload")
# Products of the forward pass that are computed again, as a share (docs/sharding.md).
_RECOMPUTED = {
    "none": 0.0,
    "dots": 0.02,
    "dots_except_up": 0.24,
    "dots_except_gate_up": 0.46,
    "outputs": 0.68,
    "block": 1.0,
    "offload": 1.0,
}
_STATE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
# Part of the peak and of the links that well divided programs reach.
_EFFICIENCY = 0.75


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One point of a sweep."""

    options: str
    """Options of the command line that give `config`."""
    config: RunConfig
    least_bytes: float
    """Lower bound on the HBM bytes of one chip."""
    likely_bytes: float
    """Rough estimate of the HBM bytes of one chip, for the order of compilation."""
    seconds: float
    """Rough time of a step, for the order of compilation."""


def candidates(config: RunConfig, devices: int, chip: Chip) -> tuple[list[Candidate], int]:
    """Return the candidates whose lower bound fits into HBM, and the number of others.

    The candidates that are likely to fit come first, and among them the fastest by a rough estimate.

    Args:
        devices: Number of devices of all slices.
    """
    found = list(_all(config, devices, chip))
    fitting = [each for each in found if each.least_bytes <= chip.hbm_bytes]
    return sorted(fitting, key=lambda each: (each.likely_bytes > chip.hbm_bytes, each.seconds, each.options)), len(
        found
    ) - len(fitting)


def _all(config: RunConfig, devices: int, chip: Chip) -> Iterator[Candidate]:
    for mesh in _meshes(config, devices):
        choices = itertools.product(_ROWS, _POLICIES, _chunks(config, mesh), _strategies(config, mesh))
        for rows, remat, chunk, sharding in choices:
            groups = mesh.data * mesh.fsdp
            if config.data.batch_size % (groups * rows):
                continue
            accumulation = config.data.batch_size // (groups * rows)
            point = dataclasses.replace(
                config, mesh=mesh, accumulation=accumulation, remat=remat, loss_chunk=chunk, sharding=sharding
            )
            yield Candidate(options(point), point, *memory_bounds(point), rough_seconds(point, chip))


def options(config: RunConfig) -> str:
    """Return the options of the command line that a sweep chooses."""
    mesh = config.mesh
    return (
        f"--mesh.data {mesh.data} --mesh.fsdp {mesh.fsdp} --mesh.sequence {mesh.sequence} --mesh.tensor {mesh.tensor} "
        f"--accumulation {config.accumulation} --remat {config.remat} --loss-chunk {config.loss_chunk} "
        f"--sharding {config.sharding}"
    )


def _meshes(config: RunConfig, devices: int) -> Iterator[MeshConfig]:
    model, slices = config.model, config.mesh.slices
    heads = math.gcd(model.num_attention_heads, model.mamba_num_heads)
    length = config.data.sequence_length
    given = config.mesh.shape(devices)[2]
    for tensor, sequence in itertools.product(_POWERS[:4], _POWERS[:4]):
        if heads % tensor or devices % (tensor * sequence) or length % sequence:
            continue
        if sequence not in (1, given) and length < _LONG:
            continue
        rest = devices // (tensor * sequence)
        for data in _POWERS:
            if rest % data == 0 and data % slices == 0:
                yield MeshConfig(data=data, fsdp=rest // data, sequence=sequence, tensor=tensor, slices=slices)


def _strategies(config: RunConfig, mesh: MeshConfig) -> tuple[Strategy, ...]:
    # With one part there is nothing to gather, and zero1 and zero2 divide neither tokens nor heads.
    once: tuple[Strategy, ...] = ("zero1", "zero2") if mesh.fsdp > 1 and mesh.sequence == mesh.tensor == 1 else ()
    return once if config.sharding in ("zero1", "zero2") else (config.sharding, *once)


def _chunks(config: RunConfig, mesh: MeshConfig) -> list[int | None]:
    sizes = [size for size in _CHUNKS if config.data.sequence_length % size == 0 and size % mesh.sequence == 0]
    # Few large chunks have the same cost, so of the sizes only the given one and the two largest are compared.
    chosen = {config.loss_chunk, None, *sizes[-2:]}
    return sorted(chosen, key=lambda size: size or 0)


def memory_bounds(config: RunConfig) -> tuple[float, float]:
    """Return a lower bound on the HBM bytes of one chip, and a rough estimate.

    The lower bound is parameters, moments, gradients, saved activations and one chunk of logits.
    """
    model, mesh, length = config.model, config.mesh, config.data.sequence_length
    shards = mesh.fsdp * mesh.tensor * mesh.sequence
    moments = _STATE_BYTES[config.optimizer.mu_dtype] + _STATE_BYTES[config.optimizer.nu_dtype]
    copies = 4 + 4 + moments + (4 if config.ema_decay is not None else 0)
    if not isinstance(config.task, Pretrain):
        copies = 0  # Adapters train few of the parameters, and a teacher has parameters of its own.
    tokens = config.data.batch_size // config.accumulation // (mesh.data * mesh.fsdp) * length / mesh.sequence
    width = 2 if config.dtype == "bfloat16" else 4
    saved = tokens * width * sum(_saved_channels(config, group.kinds) * group.count for group in model.layer_groups)
    chunk = tokens if config.loss_chunk is None else tokens * config.loss_chunk / length
    logits = chunk * model.vocab_size / mesh.tensor
    always = copies * model.parameter_count() / shards
    if config.sharding in ("zero1", "zero2"):
        # Whole matrices and gradients of one micro-batch in 2 bytes, and with zero1 sums of gradients in 4.
        sums = 4 - 4 / shards if config.sharding == "zero1" else 0
        always += (2 + 2 + sums) * model.parameter_count()
    # Without remat, the results of element-by-element operations are saved too. Logits exist in float32, with their gradient and a copy.
    # One layer needs about ten arrays as wide as the MLP, and the embedding is gathered in two types.
    table = 10 * model.vocab_size * model.hidden_size / mesh.tensor
    layer = 10 * tokens * width * model.intermediate_size / mesh.tensor
    likely = always + saved * (2 if config.remat == "none" else 1.05) + 6 * logits + table + layer
    return always + saved + 2 * logits, likely


def _saved_channels(config: RunConfig, kinds: tuple[LayerKind, ...]) -> float:
    """Return a lower bound on the values for each token that a device saves for one period."""
    model, tensor = config.model, config.mesh.tensor
    total = float(model.hidden_size)
    if config.remat in ("block", "offload"):
        return total if config.remat == "block" else 0.0
    for kind in kinds:
        head = model.hidden_size_per_head
        # Results of the mixer and of the MLP.
        total += 2 * model.hidden_size
        if kind is not LayerKind.MAMBA:
            total += model.num_attention_heads * head / tensor
        if config.remat == "outputs":
            continue
        if kind is LayerKind.MAMBA:
            total += 2 * model.mamba_num_heads * head / tensor
        else:
            total += (model.num_attention_heads + 2 * model.num_key_value_heads) * head / tensor
        total += {"dots_except_gate_up": 0, "dots_except_up": 1}.get(config.remat, 2) * model.intermediate_size / tensor
    return total


def rough_seconds(config: RunConfig, chip: Chip) -> float:
    """Return a rough time of one step: products with those computed again, or the collectives of parameters, whichever is longer."""
    model, mesh, length = config.model, config.mesh, config.data.sequence_length
    devices = mesh.data * mesh.fsdp * mesh.sequence * mesh.tensor
    tokens = config.data.batch_size * length / devices
    # One more pass of the head's products if the logits are computed in chunks.
    head = 2 * model.vocab_size * model.hidden_size if config.loss_chunk is not None else 0.0
    flops = model.flops_per_token(length) * (3 + _RECOMPUTED[config.remat]) + head
    compute = tokens * flops / (chip.peak_flops * _EFFICIENCY)
    shards = mesh.fsdp * mesh.sequence
    # Parameters are gathered in 2 bytes in each pass, and their gradients scattered in 4.
    passes = 2 * (2 if config.remat == "none" else 3) + 4
    if config.sharding == "zero1":
        passes /= config.accumulation
    elif config.sharding == "zero2":
        passes = 2 / config.accumulation + 2
    moved = config.accumulation * passes * model.parameter_count() / mesh.tensor * (shards - 1) / shards
    moved += 8 * model.parameter_count() / (shards * mesh.tensor) * (mesh.data - 1) / mesh.data
    # A layer sums its activations over `tensor` four times in a step, and each sum is a scatter and a gather.
    layers = model.num_hidden_layers * (1 + (mesh.tensor > 1))
    moved += 8 * layers * tokens * mesh.tensor * model.hidden_size * 2 * (mesh.tensor - 1) / mesh.tensor
    links = moved / (chip.ici_bytes_per_second * 2 / 3 * _EFFICIENCY)
    return max(compute, links) + 0.3 * min(compute, links)
