"""Count the bytes that a Pallas TPU kernel moves between HBM and VMEM from its block specs.

The pipeline around a kernel fetches an input block if its block index differs from the index of the previous step, and writes an output
block back if the index of the next step differs. The index maps, evaluated over the whole grid, therefore give the exact traffic.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from plamo2_jax.errors import PlamoError


@dataclasses.dataclass(frozen=True)
class Block:
    """The blocks of one operand of a kernel."""

    bytes: int
    """Bytes of one block in HBM, its last two axes padded to tiles."""
    moves: int
    """Number of blocks that are fetched or written back."""


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A `pallas_call` of a traced function."""

    name: str
    grid: tuple[int, ...]
    blocks: tuple[Block, ...]
    """Blocks of the inputs, then of the outputs, in the order of the call."""


def kernel_calls(jaxpr: ClosedJaxpr) -> list[KernelCall]:
    """Return the kernels that a traced function calls, in order.

    Raises:
        PlamoError: the traffic depends on data, because a grid has dynamic bounds or index maps read prefetched scalars.
    """
    return [_kernel_call(parameters) for parameters in _pallas_parameters(jaxpr)]


def _pallas_parameters(jaxpr: ClosedJaxpr) -> Iterator[dict[str, Any]]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns"):
                    yield from _pallas_parameters(inner)


def _kernel_call(parameters: dict[str, Any]) -> KernelCall:
    mapping = parameters["grid_mapping"]
    name = parameters["name"] if "name" in parameters else parameters["name_and_src_info"].name
    if mapping.num_dynamic_grid_bounds or mapping.num_index_operands:
        raise PlamoError(f"the traffic of the kernel {name} depends on data: a dynamic grid or prefetched scalars")
    grid = tuple(map(int, mapping.grid))
    blocks = tuple(
        Block(
            _padded_bytes(getattr(block.block_aval, "inner_aval", block.block_aval)),
            count_moves(block.index_map_jaxpr, grid),
        )
        for block in mapping.block_mappings
    )
    return KernelCall(name, grid, blocks)


def count_moves(index_map: ClosedJaxpr, grid: tuple[int, ...]) -> int:
    """Return the number of changes of the block index over the grid, plus one. The last grid axis is the fastest."""
    if 0 in grid:
        return 0
    steps = [jnp.asarray(axis.ravel(), jnp.int32) for axis in np.indices(grid)]
    if not steps:
        return 1
    indices = jax.vmap(jaxpr_as_fun(index_map), axis_size=math.prod(grid))(*steps)
    table = np.stack(indices, axis=-1)
    return 1 + int(np.sum(np.any(table[1:] != table[:-1], axis=-1)))


def _padded_bytes(aval: Any) -> int:
    """Return the bytes of a block. A tile has 128 columns and 8 rows, or fewer rows if the block has fewer."""
    shape = [1, 1, *aval.shape]
    height = min(8, 1 << (shape[-2] - 1).bit_length())
    shape[-2:] = math.ceil(shape[-2] / height) * height, math.ceil(shape[-1] / 128) * 128
    return math.prod(shape) * jnp.dtype(aval.dtype).itemsize
