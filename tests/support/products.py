"""Compile matrix products in Pallas for a TPU slice and print what they cost, as JSON; tests/plan/test_plan_products.py runs it.

Every kernel multiplies blocks [256,1024] @ [1024,256] of bfloat16: 2·8 arrays of weights 128×128, through each of which 256 rows go.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from plamo2_jax.plan.compiler import topology_devices
from plamo2_jax.plan.schedule.kernel_plan import compiled_cost, trace_for

M, K, N = 256, 1024, 256


def product(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def plain(a, b, o):
    """Compute one product per step."""
    o[...] = product(a[...], b[...])


def looped(rounds):
    """Compute the product `rounds` times per step."""

    def kernel(a, b, o):
        def add(i, carry):
            o[...] += product(a[...], b[...])
            return carry

        o[...] = jnp.zeros_like(o)
        jax.lax.fori_loop(0, rounds, add, 0)

    return kernel


def branched(a, b, o):
    """Compute one product per step, and a second one in the first step."""
    o[...] = product(a[...], b[...])

    @pl.when(pl.program_id(0) == 0)
    def _():
        o[...] += product(a[...], b[...])


def program(kernel, steps, semantics="arbitrary"):
    """Multiply `steps` blocks of rows by the same matrix."""

    def call(a, b):
        return pl.pallas_call(
            kernel,
            grid=(steps,),
            in_specs=[pl.BlockSpec((M, K), lambda i: (i, 0)), pl.BlockSpec((K, N), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((M, N), lambda i: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((steps * M, N), jnp.float32),
            compiler_params=pltpu.CompilerParams(dimension_semantics=(semantics,)),
            name="product",
        )(a, b)

    return call, (jax.ShapeDtypeStruct((steps * M, K), jnp.bfloat16), jax.ShapeDtypeStruct((K, N), jnp.bfloat16))


# Many steps, so that XLA does not place the operands in VMEM.
PROGRAMS = {
    "plain 64": program(plain, 64),
    "plain 96": program(plain, 96),
    "parallel 64": program(plain, 64, "parallel"),
    "looped 2": program(looped(2), 64),
    "looped 6": program(looped(6), 64),
    "looped 10": program(looped(10), 64),
    "branched 64": program(branched, 64),
    "branched 96": program(branched, 96),
}


def main() -> None:
    """Print {name: kernel}."""
    dump, topology = Path(sys.argv[1]), sys.argv[2]
    device = topology_devices(topology)[0]
    costs = {}
    for name, (function, operands) in PROGRAMS.items():
        for path in dump.iterdir():
            path.unlink()
        traced = trace_for(function, operands, device)
        cost = compiled_cost(traced, traced.lower().compile(), device, dump)
        (kernel,) = cost.kernels
        costs[name] = dataclasses.asdict(kernel)
    print(json.dumps(costs))


if __name__ == "__main__":
    main()
