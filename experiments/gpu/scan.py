"""Time of our scan per token: XLA with several chunk sizes, and the Pallas kernels for GPUs.

    python experiments/gpu/scan.py --output scan.json

bfloat16, one row of 8,192 tokens, the shapes of a layer of the 1B and of the 8B. "both" is forward and backward: it returns y and the
gradients of x, dt, A, B, C and D. mamba_ssm_scan.py measures the Triton kernels of the package mamba_ssm on the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from part import Record, command, jax_device, parse, take_turns
from shapes import TIMED, TIMED_IN_A_DRY_RUN, Shape, scan_flops, scan_inputs

from plamo2_kernels.ssd import ssd

IN_BFLOAT16 = ("x", "B", "C", "dy")
# Implementation and tokens per chunk; None: the default of the implementation, 64 for the Pallas kernels in bfloat16.
CANDIDATES = (("xla", 128), ("pallas_gpu", None), ("xla", 64), ("xla", 256))


def compiled(implementation: str, chunk: int | None, inputs: dict, interpret: bool) -> dict[str, Callable[[], object]]:
    """Compile forward and both for these inputs."""

    def forward(x, dt, A, B, C, D):
        settings = {"chunk_size": chunk, "implementation": implementation, "interpret": interpret}
        return ssd(x, dt, A, B, C, D, **settings)[0]

    def both(*arrays):
        y, pull = jax.vjp(forward, *arrays[:-1])
        return y, pull(arrays[-1])

    arrays = tuple(inputs.values())
    forward_of, both_of = jax.jit(forward), jax.jit(both)
    return {"forward": lambda: forward_of(*arrays[:-1]), "both": lambda: both_of(*arrays)}


def measure(record: Record, name: str, shape: Shape, dry_run: bool) -> None:
    """Measure every candidate at a shape, taking turns."""
    inputs = {k: jnp.asarray(a, jnp.bfloat16 if k in IN_BFLOAT16 else None) for k, a in scan_inputs(shape).items()}
    runs, tokens = {}, shape.b * shape.t
    for implementation, chunk in CANDIDATES:
        label = {"shape": name, "implementation": implementation, "chunk": chunk}
        try:
            made = compiled(implementation, chunk, inputs, interpret=dry_run and implementation == "pallas_gpu")
            for run in made.values():
                jax.block_until_ready(run())
        except Exception as reason:  # A kernel that does not compile must not stop the others.
            record.add(**label, failed=f"{type(reason).__name__}: {str(reason)[:400]}")
            continue
        runs |= {(implementation, chunk, kind): run for kind, run in made.items()}
    seconds = take_turns(runs, jax.block_until_ready, 1 if dry_run else 9, 0.0 if dry_run else 0.05)
    for (implementation, chunk, kind), figures in seconds.items():
        passes = 1 if kind == "forward" else 3
        record.add(
            shape=name,
            sizes=shape._asdict(),
            implementation=implementation,
            chunk=chunk,
            kind=kind,
            seconds=figures,
            nanoseconds_per_token=float(f"{1e9 * figures['median'] / tokens:.4g}"),
            teraflops=float(f"{passes * scan_flops(shape, chunk or 64) / figures['median'] / 1e12:.4g}"),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    options = parse(__doc__, argv)
    device = jax_device(options.dry_run)
    record = Record(options.output, command(__file__, options), options.dry_run, device.device_kind)
    for name, shape in (TIMED_IN_A_DRY_RUN if options.dry_run else TIMED).items():
        measure(record, name, shape, options.dry_run)
    record.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
