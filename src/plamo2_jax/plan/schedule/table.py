"""Costs as a table to read and as JSON to keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from plamo2_jax.plan.chips import Chip
from plamo2_jax.plan.cost import Cost
from plamo2_jax.plan.schedule.run import Result
from plamo2_jax.plan.schedule.ssd import SsdProgram

COLUMNS = {
    "implementation": "",
    "chunk": "tokens a chunk; own: what the implementation chooses on TPU",
    "program": "forward, or forward and gradient of every input",
    "layouts": "of arguments and results: default, or chosen by the compiler (auto), as inside a model",
    "cycles": "a token: XLA's estimate, which includes waiting for HBM, and of a Pallas kernel its bundles, which do not",
    "bundles": "a token: scheduled, every loop and branch counted as often as it runs; nothing waits",
    "MXU": "cycles a token: the matrix products at the matrix units' peak",
    "HBM bytes": "a token: by the kernels' block specs and the operands of XLA's operations",
    "HBM cycles": "a token: those bytes over the bandwidth",
    "bound": "cycles a token: the roofline, the largest of bundles, MXU and HBM cycles",
    "VMEM MiB": "the most that one operation takes, of one core",
    "temp MiB": "of HBM",
}
_MiB = 2**20


def describe_chip(chip: Chip) -> str:
    """One line on what cycles and bytes are held against."""
    cores = "1 core" if chip.cores == 1 else f"{chip.cores} cores that share the work"
    return (
        f"{chip.kind}: {cores}, {chip.peak_flops / 1e12:.0f} TFLOP/s bf16, {chip.clock / 1e9:.2f} GHz (derived), "
        f"HBM {chip.hbm_bytes_per_second / 1e9:.0f} GB/s = {chip.hbm_bytes_per_cycle:.0f} bytes a cycle"
    )


def chunk(program: SsdProgram) -> str:
    """Its chunk size."""
    return "own" if program.chunk_size is None else str(program.chunk_size)


def row(result: Result) -> list[str]:
    """The cells of a result that compiled, in the order of COLUMNS."""
    program, cost = result.program, result.cost
    tokens = program.batch * program.tokens
    return [
        program.implementation,
        chunk(program),
        program.direction,
        result.layouts,
        f"{cost.cycles / tokens:.1f}",
        f"{cost.bundles / tokens:.1f}",
        f"{cost.mxu_cycles / tokens:.1f}",
        f"{cost.hbm_bytes / tokens:,.0f}",
        f"{cost.hbm_cycles / tokens:.1f}",
        f"{cost.bound / tokens:.1f}",
        f"{cost.vmem_bytes / _MiB:.1f}",
        f"{cost.temp_bytes / _MiB:.0f}",
    ]


def table(results: list[Result]) -> str:
    """Markdown, aligned; a program that does not compile has the reason in its row."""
    rows = []
    for result in results:
        program = result.program
        if result.cost is None:
            rows.append([program.implementation, chunk(program), program.direction, result.layouts, result.error])
        else:
            rows.append(row(result))
    full = [list(COLUMNS), *(r for r in rows if len(r) == len(COLUMNS))]
    widths = [max(len(r[i]) for r in full) for i in range(len(COLUMNS))]

    def line(cells: list[str]) -> str:
        # Words to the left, numbers to the right.
        padded = [
            c.ljust(w) if i in (0, 2, 3) else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=False))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i in (0, 2, 3) else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [line(list(COLUMNS)), "|" + "|".join(f" {r} " for r in rule) + "|"]
    lines += [line(r) if len(r) == len(COLUMNS) else line(r[:4])[:-1] + f"| {r[4]} |" for r in rows]
    return "\n".join(lines)


def legend() -> Iterator[str]:
    """What each column means."""
    for name, text in COLUMNS.items():
        if text:
            yield f"{name}: {text}"


def kernels(result: Result) -> Iterator[str]:
    """A line for each Pallas kernel of a program and one for how busy its units are; a line for what runs on the SparseCore."""
    for kernel in result.cost.kernels if result.cost else ():
        assumed = f", {kernel.assumed_branches} branches on data counted" if kernel.assumed_branches else ""
        yield (
            f"{kernel.name}: grid {kernel.grid}, {kernel.step_bundles:,.0f} bundles a step, {kernel.bundles:,} in all{assumed}, "
            f"{kernel.mxu_cycles:,.0f} MXU cycles, {kernel.hbm_bytes / _MiB:.1f} MiB moved, {kernel.vmem_bytes / _MiB:.1f} MiB of VMEM"
        )
        if abs(kernel.transferred_bytes - kernel.hbm_bytes) > 0.02 * kernel.hbm_bytes:
            yield f"  by its schedule it moves {kernel.transferred_bytes / _MiB:.1f} MiB: not its block specs alone move data"
        yield "  slots in use: " + ", ".join(f"{unit} {share:.0%}" for unit, share in kernel.utilization.items())

    for o in result.cost.operations if result.cost else ():
        if o.kind == "sparsecore":
            yield f"{o.name}: on the SparseCore, {o.times * o.hbm_bytes / _MiB:.1f} MiB moved, cycles unknown and not counted"


def breakdown(result: Result, most: int = 12) -> Iterator[str]:
    """Where the cycles of a program go: by kind, then the operations that take most."""
    cost = result.cost
    if cost is None:
        return
    total = max(cost.cycles, 1)
    yield ", ".join(
        f"{kind} {cycles / total:.0%}" for kind, cycles in cost.by_kind().items() if cycles / total >= 0.005
    )
    for o in sorted(cost.operations, key=lambda o: -o.times * o.cycles)[:most]:
        source = "bundles" if o.estimated_cycles is None else "estimate"
        yield (
            f"{o.times * o.cycles / total:5.1%} {o.times * o.cycles:>11,} cycles ({source}) {o.times * (o.bundles or 0):>10,} bundles "
            f"{o.times * o.hbm_bytes / _MiB:>8.1f} MiB  {o.kind} {o.name}"
            + f" ×{o.times}" * (o.times > 1)
            + f"  {o.op_name}"
        )


def to_json(result: Result) -> dict[str, Any]:
    """A result with its figures a token, its kernels and its operations."""
    data: dict[str, Any] = {**dataclasses.asdict(result.program), "layouts": result.layouts}
    if result.cost is None:
        return {**data, "error": result.error}
    cost: Cost = result.cost
    tokens = result.program.batch * result.program.tokens
    return {
        **data,
        "cycles_per_token": cost.cycles / tokens,
        "bundles_per_token": cost.bundles / tokens,
        "mxu_cycles_per_token": cost.mxu_cycles / tokens,
        "hbm_bytes_per_token": cost.hbm_bytes / tokens,
        "hbm_cycles_per_token": cost.hbm_cycles / tokens,
        "bound_cycles_per_token": cost.bound / tokens,
        "vmem_bytes": cost.vmem_bytes,
        "temp_bytes": cost.temp_bytes,
        "cycles_by_kind": cost.by_kind(),
        "kernels": [dataclasses.asdict(kernel) for kernel in cost.kernels],
        "operations": [dataclasses.asdict(operation) for operation in cost.operations],
    }
