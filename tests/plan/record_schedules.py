"""Record schedules of the installed libtpu for test_plan_schedule.py, in a folder named after its version.

    python tests/plan/record_schedules.py

The recordings of 0.0.42 are older. Their kernel has the same form, but another loop body.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from plamo2_jax.plan.compiler import environment, libtpu_version, topology_devices
from plamo2_jax.plan.schedule.kernel_plan import trace_for

HERE = Path(__file__).resolve().parent
SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "tpu7x": "tpu7x:2x2x1"}
SHAPE = (64, 128)


def kernel(x, o):
    """Run five iterations on the input block and add the result to the output block."""
    step = pl.program_id(1)

    @pl.when(step == 0)
    def clear():
        o[...] = jnp.zeros_like(o)

    o[...] += jax.lax.fori_loop(0, 5, lambda _, a: a * x[...] + 1.0, jnp.zeros(SHAPE, jnp.float32))

    @pl.when(step == 2)
    def finish():
        o[...] = jnp.exp(o[...])


def call(x):
    """Call the kernel with three steps for each of two output blocks."""
    return pl.pallas_call(
        kernel,
        grid=(2, 3),
        in_specs=[pl.BlockSpec(SHAPE, lambda i, j: (i * 3 + j, 0))],
        out_specs=pl.BlockSpec(SHAPE, lambda i, j: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((128, 128), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="tiny",
    )(x)


def main() -> None:
    """Compile each in a process of its own, since libtpu reads the dump folder only once."""
    if len(sys.argv) > 1:
        x = jax.ShapeDtypeStruct((384, 128), jnp.float32)
        trace_for(call, [x], topology_devices(sys.argv[1])[0]).lower().compile()
        return
    target = HERE / f"libtpu_{'.'.join(libtpu_version().split('.')[:3])}"
    target.mkdir(exist_ok=True)
    for chip, topology in SLICES.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, topology]
            subprocess.run(command, env=environment(Path(folder)), check=True, stderr=subprocess.DEVNULL)
            (schedule,) = Path(folder).glob("*-tiny.1-*-final_bundles.txt")
            shutil.copy(schedule, target / f"schedule_{chip}.txt")
            if chip == "v5e":
                (busy,) = Path(folder).glob("*-tiny.1-*-final_hlo-static-per-bundle-utilization.txt")
                shutil.copy(busy, target / f"utilization_{chip}.txt")


if __name__ == "__main__":
    main()
