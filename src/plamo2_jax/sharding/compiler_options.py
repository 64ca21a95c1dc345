"""Options of the TPU compiler for train steps, by generation of the chip.

`plamo2 plan` and training pass the same options to the compiler with the program, so that nothing has to be set in the environment.
docs/compiler_options.md explains each option and gives its effect.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax

# Vector memory that one operation may use, in KiB. The default of 16 MiB makes the tiles of large matrix products too small for the matrix
# units; more than this leaves too little for arrays that are transferred ahead of their use.
_VMEM = "xla_tpu_scoped_vmem_limit_kib"
# All-gathers and reduce-scatters run on the SparseCores while the TensorCore computes.
_SPARSECORE = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    "xla_tpu_enable_async_sc_call": "true",
    "xla_tpu_use_single_sparse_core_for_reduce_scatter_offload": "true",
}
# All-gathers are cut into steps that are fused into matrix products. libtpu 0.0.50 refuses this on generations other than v5e.
_FUSED = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
OPTIONS: dict[str, dict[str, str]] = {
    "TPU v5 lite": {_VMEM: "65536", **_FUSED},
    "TPU v5": {_VMEM: "49152", **_SPARSECORE},
    "TPU v6 lite": {_VMEM: "65536", **_SPARSECORE},
    "TPU7x": {_VMEM: "49152", **_SPARSECORE},
}
"""Device kind → options. A TPU v5e has no SparseCore."""


def compiler_options(device: jax.Device, changes: Mapping[str, str] = {}) -> dict[str, str]:
    """Return the options of the compiler for a device, none for devices other than TPUs.

    Args:
        changes: Options to add or replace; an empty value removes an option.
    """
    chosen = {**OPTIONS.get(device.device_kind, {}), **changes}
    return {name: value for name, value in chosen.items() if value}
