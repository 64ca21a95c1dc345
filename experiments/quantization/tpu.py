"""Whether the TPU compiler fuses the conversion of quantized weights into their products, by its own figures; no TPU is needed.

    pip install '.[plan]'
    python experiments/quantization/tpu.py --output experiments/quantization/tpu.json

Each matrix of the 8B, as one of 8 chips holds it (tensor parallel over 8), is multiplied by 16 rows of bfloat16. Printed are the compiler's
cycles, the cycles to read the matrix from memory at the full bandwidth, and the bytes of a copy of the matrix that the program writes.
Cycles of XLA are estimates of the compiler. Cycles of the Pallas kernel are the bundles of its schedule, without memory stalls. Neither is
measured time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from importlib import metadata
from pathlib import Path

from plamo2_jax.plan.compiler import environment

os.environ.update(environment(DUMP := Path(tempfile.mkdtemp())))

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from plamo2_jax.plan.chips import chip_of
from plamo2_jax.plan.compiler import libtpu_version, topology_devices
from plamo2_jax.plan.schedule.dump import Schedules
from plamo2_kernels.quant import quantized_product

ROWS = 16
TOPOLOGIES = ("v5e:2x4", "v6e:2x4")
# Outputs and inputs of the matrices on one of 8 chips.
MATRICES = {
    "gate, up": (2048, 4096),
    "down": (4096, 2048),
    "in_proj": (4096, 4096),
    "out_proj": (4096, 1024),
    "head": (12500, 4096),
}
# dtype of the values, inputs of a group (None: all), dtype of quantized activations.
KINDS = {
    "bfloat16": (jnp.bfloat16, None, None),
    "int8": (jnp.int8, None, None),
    "int8, int8 activations": (jnp.int8, None, "int8"),
    "int4": (jnp.int4, None, None),
    "int4, groups of 64": (jnp.int4, 64, None),
    "int4, groups of 128": (jnp.int4, 128, None),
    "int4, groups of 64, Pallas": (jnp.int4, 64, None),
    "int4, groups of 128, Pallas": (jnp.int4, 128, None),
    "float8": (jnp.float8_e4m3fn, None, None),
    "float8, float8 activations": (jnp.float8_e4m3fn, None, "float8"),
}


def compiled(device, n: int, k: int, kind: str):
    """Return the compiled product."""
    dtype, group, activations = KINDS[kind]
    place = SingleDeviceSharding(device)

    def struct(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    x = struct((ROWS, k), jnp.bfloat16)
    if kind == "bfloat16":
        run = jax.jit(lambda x, w: jnp.einsum("rk,nk->rn", x, w, preferred_element_type=jnp.float32))
        return run.lower(x, struct((n, k), dtype)).compile()
    implementation = "pallas_tpu" if kind.endswith("Pallas") else "xla"
    run = jax.jit(lambda x, w, s: quantized_product(x, w, s, activations=activations, implementation=implementation))
    return run.lower(x, struct((n, k), dtype), struct((n, 1 if group is None else k // group), jnp.float32)).compile()


def cycles(program) -> int:
    """Return XLA's estimates, plus the bundles of Pallas kernels."""
    text = program.as_text()
    total = sum(int(value) for value in re.findall(r'"estimated_cycles":"(\d+)"', text))
    for name in re.findall(r"%([\w.-]+) = [^\n]* custom-call\([^\n]*tpu_custom_call", text):
        (run,) = Schedules(DUMP).runs(name, 1)
        total += run.cycles
    return total


def measure(topology: str) -> dict:
    """Compile all products for one generation and print their figures."""
    device = topology_devices(topology)[0]
    chip = chip_of(device.device_kind)
    rows = {}
    for name, (n, k) in MATRICES.items():
        rows[name] = {}
        for kind, (dtype, group, _) in KINDS.items():
            for old in DUMP.iterdir():
                old.unlink()
            program = compiled(device, n, k, kind)
            bits = jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).bits
            size = n * k * bits // 8 + (0 if kind == "bfloat16" else 4 * n * (1 if group is None else k // group))
            bound = round(size / chip.hbm_bytes_per_cycle)
            temporary = program.memory_analysis().temp_size_in_bytes
            rows[name][kind] = {"cycles": cycles(program), "bound": bound, "copied": temporary}
            print(topology, name, kind, rows[name][kind], sep=", ", flush=True)
    return rows


def main() -> None:
    """Compile, print and optionally write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the figures here")
    options = parser.parse_args()
    found = {topology: measure(topology) for topology in TOPOLOGIES}
    if options.output:
        versions = {"jax": metadata.version("jax"), "libtpu": libtpu_version()}
        options.output.write_text(json.dumps({"rows": ROWS, "products": found, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
