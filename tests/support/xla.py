"""XLA's flags in tests. Imported before jax."""

import importlib.metadata

# Tests compile far more than they compute: no LLVM optimization. The older code generator of jax 0.10 compiles a train step in 0.4 of the
# time of the one that is the default there and the only one in jax 0.12, where the flag does not exist.
_FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")


def xla_flags(devices: int = 1) -> str:
    """Return the value of XLA_FLAGS for a process with that many CPU devices."""
    return " ".join([f"--xla_force_host_platform_device_count={devices}", *_FLAGS])
