"""Search for the bits of each matrix within a budget of bytes.

The KL divergence of the logits on held-out text ranks the matrices of hybrid models better than the error of their weights or products
(arXiv:2604.13440). It is measured for each matrix alone, forward only. The matrices with the smallest divergence per saved byte get 4 bits,
until the model fits the budget.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from plamo2_jax.config import ModelConfig
from plamo2_jax.data.batch import Batch
from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2, axes
from plamo2_jax.quantize.config import MatrixFormat, QuantizeConfig, matrices, matrix_format
from plamo2_jax.quantize.divergence import features, kl_divergence
from plamo2_jax.quantize.quantize import round_matrix


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A matrix that may get 4 bits instead of 8."""

    path: str
    format: MatrixFormat
    saved: int
    """Bytes that it saves."""
    divergence: float
    """KL divergence of the logits with this matrix alone in 4 bits, nats per token."""


def format_bytes(shape: Sequence[int], form: MatrixFormat, inputs: int) -> int:
    """Return the bytes of a matrix in a format."""
    size = int(np.prod(shape))
    return (size // 2 if form.kind == "int4" else size) + 4 * form.groups * size // inputs


def search_formats(
    config: ModelConfig,
    leaves: Mapping[str, Any],
    formats: Mapping[str, MatrixFormat],
    budget: int,
    options: QuantizeConfig,
    batches: Sequence[Batch],
    *,
    on_matrix: Callable[[], None] | None = None,
) -> dict[str, MatrixFormat]:
    """Return formats with which the model has at most `budget` bytes.

    Args:
        config: Config of the model.
        leaves: Float parameters by path, of the model without a scan over layers.
        formats: Formats to start from. Matrices in int8 may get 4 bits, except the embedding and the head.
        budget: Bytes of all parameters on disk.
        options: Group size of 4 bits.
        batches: Held-out batches.
        on_matrix: Called after each measurement.

    Raises:
        PlamoError: Even with 4 bits wherever they are allowed, the model is larger.
    """
    declared = matrices(config)
    float_bytes = sum(leaf.size * np.dtype(leaf.dtype).itemsize for path, leaf in leaves.items() if path not in formats)
    total = float_bytes + sum(_bytes(declared[path], form) for path, form in formats.items())
    if total <= budget:
        return dict(formats)
    smaller = candidates(config, formats, options)
    least = total - sum(saved for _, saved in smaller.values())
    if least > budget:
        raise PlamoError(
            f"--budget {budget:,} is too small: with 4 bits in all allowed matrices, the model has {least:,} "
            "bytes. Use at least this budget"
        )
    model = Plamo2(config, scan_layers=False)

    @jax.jit
    def measure(flat: Mapping[str, Any], expected: jax.Array, batch: Batch) -> jax.Array:
        params = flax.traverse_util.unflatten_dict(flat, sep="/")
        return kl_divergence(model, params, expected, params, features(model, params, batch), batch)

    run = jax.jit(lambda flat, batch: features(model, flax.traverse_util.unflatten_dict(flat, sep="/"), batch))
    expected = [run(leaves, batch) for batch in batches]
    found = []
    for path, (form, saved) in smaller.items():
        rounded = round_matrix(path, declared[path][0], leaves[path], form, options, None)[0].dequantize()
        flat = {**leaves, path: rounded}
        losses = [float(measure(flat, x, batch)) for x, batch in zip(expected, batches, strict=True)]
        found.append(Candidate(path, form, saved, sum(losses) / len(losses)))
        if on_matrix:
            on_matrix()
    return choose(formats, found, total - budget)


def candidates(
    config: ModelConfig, formats: Mapping[str, MatrixFormat], options: QuantizeConfig
) -> dict[str, tuple[MatrixFormat, int]]:
    """Return the 4-bit format and the saved bytes of each matrix in int8 that may get 4 bits: all but those that `bits_for` names."""
    found = {}
    for path, form in formats.items():
        each, shape = matrices(config)[path]
        pinned = any(re.search(pattern, path) for pattern, _ in options.bits_for)
        if form.kind != "int8" or axes.VOCAB in each.names or pinned:
            continue
        try:
            small = matrix_format(path, each, shape, 4, options)
        except PlamoError:
            continue  # The group size does not divide its inputs.
        found[path] = (small, _bytes((each, shape), form) - _bytes((each, shape), small))
    return found


def choose(formats: Mapping[str, MatrixFormat], found: Sequence[Candidate], excess: int) -> dict[str, MatrixFormat]:
    """Return the formats with 4 bits for the matrices with the smallest divergence per saved byte, until `excess` bytes are saved."""
    chosen = dict(formats)
    for candidate in sorted(found, key=lambda each: max(each.divergence, 0) / each.saved):
        if excess <= 0:
            break
        chosen[candidate.path] = candidate.format
        excess -= candidate.saved
    return chosen


def _bytes(matrix: tuple[axes.Declaration, tuple[int, ...]], form: MatrixFormat) -> int:
    declared, shape = matrix
    inputs = declared.contracts or (axes.EMBED,)
    return format_bytes(
        shape, form, int(np.prod([size for name, size in zip(declared.names, shape, strict=True) if name in inputs]))
    )
