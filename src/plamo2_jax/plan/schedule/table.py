"""Print kernel plans as a table, and turn them into JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from plamo2_jax.plan.chips import Chip
from plamo2_jax.plan.compiler import unverified
from plamo2_jax.plan.schedule.cost import Cost
from plamo2_jax.plan.schedule.kernel_plan import KernelPlan
from plamo2_jax.plan.schedule.ssd import SsdProgram

COLUMNS = {
    "implementation": "",
    "chunk": "tokens per chunk; own: the implementation's default on TPU",
    "program": "forward, or forward and the gradient of every input",
    "layouts": "layouts of arguments and results: default, or chosen by the compiler (auto), as inside a model",
    "cycles": "cycles per token: XLA's estimates, memory stalls included; for a Pallas kernel its bundles, memory stalls not included",
    "bundles": "scheduled bundles per token, each loop and branch counted as often as it runs; memory stalls are not included",
    "MXU": "cycles per token that the matrix products take at the peak rate of the matrix units",
    "HBM bytes": "bytes per token, by the block specs of kernels and the operands of XLA's operations",
    "HBM cycles": "cycles per token that these bytes take at the HBM bandwidth",
    "bound": "cycles per token of the roofline: the largest of bundles, MXU and HBM cycles",
    "VMEM MiB": "largest vector memory that one operation needs, on one core",
    "temp MiB": "HBM for temporaries",
}
_MiB = 2**20


def describe_chip(chip: Chip) -> str:
    """Return one line with the published figures of a chip."""
    cores = "1 core" if chip.cores == 1 else f"{chip.cores} cores that share the work"
    return (
        f"{chip.kind}: {cores}, {chip.peak_flops / 1e12:.0f} TFLOP/s bf16, {chip.clock / 1e9:.2f} GHz (derived), "
        f"HBM {chip.hbm_bytes_per_second / 1e9:.0f} GB/s = {chip.hbm_bytes_per_cycle:.0f} bytes a cycle"
    )


def chunk(program: SsdProgram) -> str:
    """Return the chunk size as the table shows it."""
    return "own" if program.chunk_size is None else str(program.chunk_size)


def row(plan: KernelPlan) -> list[str]:
    """Return the cells of a plan in the order of COLUMNS, the first four if it has no cost."""
    program, cost = plan.program, plan.cost
    tokens = program.batch * program.tokens
    names = [program.implementation, chunk(program), program.direction, plan.layouts]
    if cost is None:
        return names
    return [
        *names,
        f"{cost.cycles / tokens:.1f}",
        f"{cost.bundles / tokens:.1f}",
        f"{cost.mxu_cycles / tokens:.1f}",
        f"{cost.hbm_bytes / tokens:,.0f}",
        f"{cost.hbm_cycles / tokens:.1f}",
        f"{cost.bound / tokens:.1f}",
        f"{cost.vmem_bytes / _MiB:.1f}",
        f"{cost.temp_bytes / _MiB:.0f}",
    ]


def table(plans: list[KernelPlan]) -> str:
    """Return an aligned Markdown table. The row of a program without a cost has the reason."""
    rows = [row(plan) for plan in plans]
    full = [list(COLUMNS), *(r for plan, r in zip(plans, rows, strict=True) if plan.cost)]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]

    def line(cells: list[str]) -> str:
        # Text is aligned left, numbers right.
        padded = [
            c.ljust(w) if i in (0, 2, 3) else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=False))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i in (0, 2, 3) else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [line(full[0]), line(rule)]
    lines += [line(r) if plan.cost else f"{line(r)} {plan.error} |" for plan, r in zip(plans, rows, strict=True)]
    return "\n".join(lines)


def legend() -> Iterator[str]:
    """Yield a line for each column that needs an explanation."""
    for name, text in COLUMNS.items():
        if text:
            yield f"{name}: {text}"


def kernels(plan: KernelPlan) -> Iterator[str]:
    """Yield two lines for each Pallas kernel, and one for each operation that runs on the SparseCore."""
    for kernel in plan.cost.kernels if plan.cost else ():
        branches = f", {kernel.assumed_branches} branches that depend on data counted as taken"
        assumed = branches if kernel.assumed_branches else ""
        yield (
            f"{kernel.name}: grid {kernel.grid}, {kernel.step_bundles:,.0f} bundles per step, {kernel.bundles:,} in total{assumed}, "
            f"{kernel.mxu_cycles:,.0f} MXU cycles, {kernel.hbm_bytes / _MiB:.1f} MiB moved, {kernel.vmem_bytes / _MiB:.1f} MiB of VMEM"
        )
        if abs(kernel.transferred_bytes - kernel.hbm_bytes) > 0.02 * kernel.hbm_bytes:
            yield f"  its schedule transfers {kernel.transferred_bytes / _MiB:.1f} MiB: the kernel starts transfers itself"
        yield "  slots in use: " + ", ".join(f"{unit} {share:.0%}" for unit, share in kernel.utilization.items())

    for o in plan.cost.operations if plan.cost else ():
        if o.kind == "sparsecore":
            yield f"{o.name}: on the SparseCore, {o.times * o.hbm_bytes / _MiB:.1f} MiB moved, cycles unknown and not counted"


def breakdown(plan: KernelPlan, most: int = 12) -> Iterator[str]:
    """Yield where the cycles of a program go: a line by kind, then the operations that take most."""
    cost = plan.cost
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


def to_json(plan: KernelPlan) -> dict[str, Any]:
    """Return the JSON form of a plan: figures per token, kernels and operations, and the compiler's version."""
    version = {"libtpu": plan.libtpu, "libtpu_verified": unverified(plan.libtpu) is None}
    data: dict[str, Any] = {**dataclasses.asdict(plan.program), "layouts": plan.layouts, **version}
    if plan.cost is None:
        return {**data, "error": plan.error}
    cost: Cost = plan.cost
    tokens = plan.program.batch * plan.program.tokens
    figures = ("cycles", "bundles", "mxu_cycles", "hbm_bytes", "hbm_cycles")
    return {
        **data,
        **{f"{name}_per_token": getattr(cost, name) / tokens for name in figures},
        "bound_cycles_per_token": cost.bound / tokens,
        "vmem_bytes": cost.vmem_bytes,
        "temp_bytes": cost.temp_bytes,
        "cycles_by_kind": cost.by_kind(),
        "kernels": [dataclasses.asdict(kernel) for kernel in cost.kernels],
        "operations": [dataclasses.asdict(operation) for operation in cost.operations],
    }
