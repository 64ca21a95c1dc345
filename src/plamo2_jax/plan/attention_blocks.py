"""How many grid steps of splash attention compute a block of scores, which its schedule does not tell.

The kernel reads from a table whether the block of a grid step is masked. The table follows from the shapes of the kernel's arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from plamo2_jax.plan.hlo import Computation, Instruction, Module
from plamo2_kernels.attention.splash import computed_blocks

_KERNEL = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")
_SHAPE = re.compile(r"\w+\[([\d,]+)\]")


def computed_shares(module: Module) -> dict[str, float]:
    """Return the share of grid steps that compute a block, by the name of the kernel's instruction in the program."""
    found = list(_splash_kernels(module.executed()))
    # The table of the gradients of keys has other columns, so the mask is known from the other kernels of the same attention.
    columns = {sizes: table[1] for _, phase, table, sizes in found if phase != "dkv"}
    shares = {}
    for name, phase, (rows, width), (t, s) in found:
        block = s // width if phase == "dkv" else t // rows
        blocks = computed_blocks(columns.get((t, s), width), t, s, block)
        shares[name] = blocks / (rows * width)
    return shares


def _splash_kernels(executed: Iterable[tuple[Instruction, Computation, int]]):
    """Yield name, phase, the shape of the table, and the numbers of queries and keys of each kernel."""
    for instruction, computation, _ in executed:
        match = _KERNEL.match(instruction.name) if instruction.is_kernel else None
        if match:
            table, _, q, k = (_sizes(computation[name].shape) for name in instruction.operands[:4])
            yield instruction.name, match[1], tuple(table[-2:]), (q[-2], k[-2])


def _sizes(shape: str) -> list[int]:
    return [int(size) for size in _SHAPE.match(shape)[1].split(",")]
