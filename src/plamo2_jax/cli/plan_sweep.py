"""`plamo2 plan CONFIG.py --sweep`: compare meshes, micro-batches, remat policies and loss chunks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.plan.request import Request

POINTS = 16
"""Candidates that are compiled if --points is not given."""
COMPLETE = 1
"""Candidates that are compiled completely if --complete is not given."""


def sweep(
    request: Request, points: int | None, complete: int | None, minutes: float | None, journal: Path | None
) -> tuple[int, dict[str, Any]]:
    """Run a sweep and print its table.

    Returns:
        Exit code, 1 if no candidate fits, and the results for JSON.

    Raises:
        PlamoError: The run cannot be sharded over the slice, or the journal is not usable.
    """
    from plamo2_jax.plan import report
    from plamo2_jax.plan.candidates import candidates
    from plamo2_jax.plan.chips import chip_of_slice
    from plamo2_jax.plan.compiler import device_count, libtpu_version, unverified
    from plamo2_jax.plan.journal import Journal
    from plamo2_jax.plan.sweep import Sweep, table
    from plamo2_jax.progress import tqdm

    config = request.config
    devices = device_count(request.topology) * config.mesh.slices
    found, too_large = candidates(config, devices, chip_of_slice(request.topology))
    if not found:
        reason = (
            f"all {too_large} candidate shardings need more HBM than a chip has: give a larger --topology"
            if too_large
            else f"no mesh divides data.batch_size={config.data.batch_size} and the heads over {devices} devices: change --data.batch-size"
        )
        raise PlamoError(f"--sweep finds no candidate on {request.topology}: {reason}")
    if warning := unverified(libtpu_version()):
        print(f"plamo2 plan: warning: {warning}", file=sys.stderr)
    chosen = found[: points or POINTS]
    folder = journal or Path("runs") / "plans" / f"{config.name}-{request.topology.replace(':', '-')}"
    running = Sweep(request, Journal(folder, request), minutes)
    print(
        f"{len(found) + too_large} candidates; the parameters and saved activations of {too_large} do not fit; "
        f"compiling the {len(chosen)} with the shortest estimated time; journal in {folder}",
        file=sys.stderr,
    )
    with tqdm(total=len(chosen), desc="compile without machine code", unit="plan") as bar:
        running.compile_drafts(chosen, lambda: bar.update())
    with tqdm(total=None, desc="compile completely", unit="plan") as bar:
        running.complete_best(chosen, COMPLETE if complete is None else complete, lambda: bar.update())
    results = running.points()
    for options, reason in running.refused.items():
        print(f"{options}: {reason}", file=sys.stderr)
    print(f"{config.name} on {request.topology}, compiled by libtpu {libtpu_version()}, {report.NOTE}")
    print("\n".join(table(results)))
    if len(results) < len(chosen):
        left = len(chosen) - len(results) - len(running.refused)
        if left:
            print(
                f"{left} candidates are not compiled, because the time limit was reached: run the same command "
                "again to continue"
            )
    data = {
        "topology": request.topology,
        "sweep": {
            point.options: {**report.to_json(point.plan), "compiled_completely": point.complete} for point in results
        },
    }
    if not results or not results[0].plan.fits:
        print("no candidate fits")
        return 1, data
    best = results[0]
    print(f"best: {best.options}\n  {report.summary(best.plan)}\n  {report.run_time(request.config.steps, best.plan)}")
    if not best.complete:
        print(
            f"  {best.plan.scaled:.0%} of its predicted time is scaled from other candidates (--complete 1 "
            "compiles it completely)"
        )
    return 0, data | {"best": best.options}
