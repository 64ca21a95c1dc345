"""Whether the TPU compiler fuses the conversion of quantized weights into their products, by its own figures; no TPU is needed.

    pip install '.[plan]'
    python experiments/quantization/tpu.py --output experiments/quantization/tpu.json

Each matrix of the 8B, as a chip of a v5e:2x4 slice holds it (tensor parallel over 8), is multiplied by 16 rows of bfloat16. Printed are the
compiler's cycles, the cycles to read the matrix from memory at the full bandwidth, and the bytes of a copy of the matrix that the program
writes. Cycles are estimates of the compiler, not measured time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from importlib import metadata
from pathlib import Path

from plamo2_jax.plan.compiler import ENVIRONMENT

os.environ.update(ENVIRONMENT)

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from plamo2_jax.plan.chips import chip_of
from plamo2_jax.plan.compiler import libtpu_version, topology_devices
from plamo2_kernels.quant import quantized_product

ROWS = 16
# Outputs and inputs of the matrices on one of 8 chips.
MATRICES = {
    "gate, up": (2048, 4096),
    "down": (4096, 2048),
    "in_proj": (4096, 4096),
    "out_proj": (4096, 1024),
    "head": (12500, 4096),
}
KINDS = {
    "bfloat16": (jnp.bfloat16, None, None),
    "int8": (jnp.int8, None, None),
    "int8, int8 activations": (jnp.int8, None, "int8"),
    "int4": (jnp.int4, None, None),
    "int4, groups of 64": (jnp.int4, 64, None),
    "int4, groups of 128": (jnp.int4, 128, None),
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
    run = jax.jit(lambda x, w, s: quantized_product(x, w, s, activations=activations, implementation="xla"))
    return run.lower(x, struct((n, k), dtype), struct((n, 1 if group is None else k // group), jnp.float32)).compile()


def main() -> None:
    """Compile, print and optionally write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the figures here")
    options = parser.parse_args()
    device = topology_devices("v5e:2x4")[0]
    chip = chip_of(device.device_kind)
    rows = {}
    for name, (n, k) in MATRICES.items():
        rows[name] = {}
        for kind, (dtype, group, _) in KINDS.items():
            program = compiled(device, n, k, kind)
            cycles = [int(value) for value in re.findall(r'"estimated_cycles":"(\d+)"', program.as_text())]
            bits = jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).bits
            size = n * k * bits // 8 + (0 if kind == "bfloat16" else 4 * n * (1 if group is None else k // group))
            bound = size / chip.hbm_bytes_per_cycle
            temporary = program.memory_analysis().temp_size_in_bytes
            rows[name][kind] = {"cycles": sum(cycles), "bound": round(bound), "copied": temporary}
            print(
                f"{name:10} {kind:27} {sum(cycles):9,} cycles, bound {bound:9,.0f}, temporary bytes {temporary:,}",
                flush=True,
            )
    if options.output:
        versions = {"jax": metadata.version("jax"), "libtpu": libtpu_version()}
        options.output.write_text(
            json.dumps({"topology": "v5e:2x4", "rows": ROWS, "products": rows, "versions": versions}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
