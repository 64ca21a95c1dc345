"""Print a plan as text, and turn it into JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from plamo2_jax.plan.compiler import unverified
from plamo2_jax.plan.roofline import PHASES
from plamo2_jax.plan.step import StepPlan

NOTE = "predicted from compiler estimates and published bandwidths, not measured"


def gib(size: float) -> str:
    """Return a number of bytes in GiB."""
    return f"{size / 2**30:.2f} GiB"


def run_time(steps: int, plan: StepPlan) -> str:
    """Return a line with the time of all steps of a run, as scheduled."""
    hours = steps * plan.times["scheduled"] / 3600
    time = (
        f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    )
    return f"the {steps:,} steps of the run take {time} as scheduled, without evaluation and checkpoints"


def step_time(seconds: float) -> str:
    """Return the time of a step in seconds, or in milliseconds if it is short."""
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1e3 * seconds:.3f} ms"


def summary(plan: StepPlan) -> str:
    """Return one line: whether the program fits, and the predicted time and MFU."""
    if plan.error is not None:
        return f"does not compile: {plan.error}"
    if not plan.fits:
        over = plan.hbm_needed - plan.hbm_available
        return f"does not fit: {gib(plan.hbm_needed)} needed of {gib(plan.hbm_available)} per chip, {gib(over)} over"
    return (
        f"fits: {gib(plan.hbm_needed)} of {gib(plan.hbm_available)} per chip; predicted step {step_time(plan.seconds)}, MFU at most "
        f"{plan.mfu:.1%} (limit: {plan.times['limit']}); as scheduled {step_time(plan.times['scheduled'])}, MFU {plan.scheduled_mfu:.1%}"
    )


def lines(plan: StepPlan) -> Iterator[str]:
    """Yield the lines of a plan."""
    mesh = " × ".join(f"{name} {size}" for name, size in plan.mesh.items())
    yield f"{plan.devices} × {plan.device}, mesh {mesh}, {plan.tokens:,} tokens per call, compiled by libtpu {plan.libtpu}"
    if warning := unverified(plan.libtpu):
        yield f"warning: {warning}"
    yield summary(plan)
    yield ""
    yield "HBM per chip"
    for kind, size in plan.arguments.items():
        yield f"  {kind:<24}{gib(size):>12}"
    if plan.memory is None:
        return
    m = plan.memory
    rows = (
        ("padding of arguments", m["argument_bytes"] - sum(plan.arguments.values())),
        ("saved for backward", m["kept"]),
        ("gradients", m["gradients"]),
        ("other temporaries", m["other_temporaries"]),
        ("outputs", m["output_bytes"]),
        ("program", m["code_bytes"]),
        ("total", m["used"]),
    )
    for kind, size in rows:
        yield f"  {kind:<24}{gib(size):>12}"
    if plan.rematerialised:
        yield f"  (the compiler repeats {plan.rematerialised} operations to save memory)"
    yield ""
    yield f"Predicted time of one call on one chip ({NOTE})"
    for name, text in (
        ("compute", f"compute, {plan.cycles:,} cycles"),
        ("hbm", "HBM"),
        ("ici", "links between chips"),
        ("dcn", "network between slices"),
        ("waiting", "of both, not hidden behind computation"),
        ("scheduled", "as scheduled: waiting for HBM and collectives included"),
    ):
        if plan.times[name]:
            yield f"  {plan.times[name]:9.4f} s  {text}"
    yield f"  {plan.flops / plan.devices:.3e} model FLOPs per chip; MFU at most {plan.mfu:.1%}, {plan.scheduled_mfu:.1%} as scheduled"
    if plan.unknown:
        yield f"  not included, because their loops depend on data: {', '.join(plan.unknown)}"
    if plan.sparsecore:
        yield f"  on the SparseCore, bytes counted, cycles not reported: {', '.join(plan.sparsecore)}"
    yield ""
    yield "Where the time goes (s)" + " " * 12 + "".join(f"{name:>12}" for name in PHASES) + "       share"
    total = sum(sum(row.values()) for row in plan.parts.values())
    for name, row in plan.parts.items():
        seconds = sum(row.values())
        if seconds >= 0.002 * total:
            yield f"  {name:<33}" + "".join(f"{row[p]:12.4f}" for p in PHASES) + f"{seconds / total:12.1%}"
    yield ""
    yield "Collectives per chip"
    for c in plan.collectives:
        route = f"{c['links']} links" if c["links"] else "between slices"
        route += "" if c["asynchronous"] else ", synchronous"
        yield (
            f"  {c['kind']:<20}of {c['group']:>4} over {route:<23}×{c['count']:<7,}{c['bytes'] / 1e9:10.2f} GB{c['seconds']:10.4f} s"
        )


def operations(plan: StepPlan) -> Iterator[str]:
    """Yield a line for each of the longest operations."""
    for o in plan.operations:
        yield (
            f"{max(o['seconds'], o['hbm_seconds']):9.4f} s  {o['kind']:<12} {o['phase']:<11} {o['name']} ×{o['times']}  "
            f"{o['op_name'][-90:]}"
        )


def to_json(plan: StepPlan) -> dict[str, Any]:
    """Return the JSON form of a plan, with its prediction and the compiler's version."""
    verified = unverified(plan.libtpu) is None
    data = {**dataclasses.asdict(plan), "libtpu_verified": verified, "fits": plan.fits, "note": NOTE}
    if plan.fits:
        data |= {"predicted_seconds": plan.seconds, "mfu_bound": plan.mfu, "mfu_as_scheduled": plan.scheduled_mfu}
    return data
