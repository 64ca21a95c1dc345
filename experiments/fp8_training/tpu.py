"""Compile one product and its backward pass for TPUs, in bfloat16 and in FP8, and write the compiler's cycles to tpu.json.

python experiments/fp8_training/tpu.py        # needs libtpu, the TPU compiler, but no TPU

The cycles are estimates of XLA's cost model. They were not measured on a TPU.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

from plamo2_jax.plan.compiler import ENVIRONMENT, libtpu_version, topology_devices

os.environ.update(ENVIRONMENT)

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from plamo2_jax.checkpoint import write_json
from plamo2_kernels.quant import FORWARD, GRADIENT, float8_product, float8_scale

HERE = Path(__file__).resolve().parent
# Rows, inputs and outputs of the gate projection of the 8B, for 8192 tokens.
ROWS, INPUTS, OUTPUTS = 8192, 4096, 16384
SLICES = ("tpu7x:2x2x1", "v6e:2x2", "v5p:2x2x1")
CONTRACTED = ((1,), (0,))


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiply two matrices into bfloat16."""
    return jax.lax.dot_general(x, w, (CONTRACTED, ((), ())), preferred_element_type=jnp.bfloat16)


def with_gradients(product: Callable[..., jax.Array]) -> Callable[..., tuple]:
    """Return a function that computes a product and the gradients of its operands."""

    def forward_and_backward(x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple:
        y, backward = jax.vjp(product, x, w)
        return y, *backward(dy)

    return forward_and_backward


def in_bfloat16(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiply as `linear_type: normal` does."""
    return dot(x, w.astype(x.dtype))


def in_float8(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiply as `linear_type: fp8` does."""
    return float8_product(x, w, float8_scale(w, FORWARD), CONTRACTED)


x, w, y = (ROWS, INPUTS), (INPUTS, OUTPUTS), (ROWS, OUTPUTS)
PROGRAMS = {
    "product, bfloat16": (dot, (x, jnp.bfloat16), (w, jnp.bfloat16)),
    "product, e4m3 x e4m3": (dot, (x, FORWARD), (w, FORWARD)),
    "product, e5m2 x e4m3": (dot, (x, GRADIENT), (w, FORWARD)),
    "forward and backward, bfloat16": (
        with_gradients(in_bfloat16),
        (x, jnp.bfloat16),
        (w, jnp.float32),
        (y, jnp.bfloat16),
    ),
    "forward and backward, fp8": (with_gradients(in_float8), (x, jnp.bfloat16), (w, jnp.float32), (y, jnp.bfloat16)),
}


def operand_types(text: str) -> list[list[str]]:
    """Return the dtypes of the operands of every matrix product in the compiled program."""
    found = []
    for computation in re.split(r"\n(?=%|ENTRY)", text):
        types = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", computation))
        types |= dict(re.findall(r"(%[\w.-]+|[\w.-]+): (\w+)\[", computation.split("\n", 1)[0]))
        for operands in re.findall(r" = \S+ (?:convolution|dot)\(([^)]*)\)", computation):
            found.append([types.get(name.strip().split(" ")[-1], "?") for name in operands.split(",")])
    return found


def main() -> None:
    """Compile every program for every slice."""
    results = {
        "command": "python experiments/fp8_training/tpu.py",
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "libtpu": libtpu_version()},
        "shape": {"rows": ROWS, "inputs": INPUTS, "outputs": OUTPUTS},
        "slices": {},
    }
    for name in SLICES:
        device = topology_devices(name)[0]
        sharding, found = SingleDeviceSharding(device), {}
        for title, (function, *arguments) in PROGRAMS.items():
            shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in arguments]
            text = jax.jit(function).lower(*shapes).compile().as_text()
            cycles = [int(number) for number in re.findall(r'"estimated_cycles":"(\d+)"', text)]
            found[title] = {"cycles": sum(cycles), "operands": operand_types(text)}
            print(name, title, json.dumps(found[title]), flush=True)
        results["slices"][name] = {"device": device.device_kind, "programs": found}
    write_json(HERE / "tpu.json", results)


if __name__ == "__main__":
    main()
