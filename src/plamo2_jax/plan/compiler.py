"""libtpu's compiler on a machine without a TPU: what it needs around it, and the devices of a slice that is not there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

# Without these libtpu asks the cloud where it is, and a second process that loads it is refused. A program that came out of JAX's
# compilation cache would leave no schedule to read.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
TOPOLOGIES = ("v5e:2x2", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x4", "v6e:2x2", "v6e:16x16", "tpu7x:2x2x1")
# The texts that libtpu prints and dumps are no interface: they were read and tested with these versions only.
TESTED = ("0.0.42", "0.0.50")
# Of some 80 texts an operation, the last ones: final_bundles and the units each bundle uses; and which operations share one.
_DUMPED = "final_bundles|final_hlo|deduplication"


def libtpu_version() -> str:
    """Version of the installed libtpu.

    Raises:
        ValueError: there is none.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("this needs the TPU compiler: pip install 'jax[tpu]' (no TPU is needed)")
    return importlib.metadata.version("libtpu")


def untested(version: str) -> str | None:
    """A sentence of warning where the texts of this libtpu were not tested."""
    if ".".join(version.split(".")[:3]) in TESTED:
        return None
    return (
        f"libtpu {version} was not tested, and its figures may be read wrongly: tested are {' and '.join(TESTED)}. "
        "Install one of these with the jax that it belongs to (constraints.txt)"
    )


def environment(dump: Path) -> dict[str, str]:
    """The environment of a process that compiles for TPU and writes its schedules to a folder.

    libtpu reads its flags once, when it is loaded: hence a process of its own.
    """
    flags = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex={_DUMPED}"
    before = os.environ.get("LIBTPU_INIT_ARGS", "")
    return {**os.environ, **ENVIRONMENT, "LIBTPU_INIT_ARGS": f"{before} {flags}".strip()}


def topology_devices(name: str, slices: int = 1) -> list:
    """The devices of one or more equal slices, such as "v5p:2x2x1"; for a process with `environment`.

    Raises:
        ValueError: the compiler knows no such slice.
    """
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    try:
        several = {"num_slices": slices} if slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **several).devices
    except (JaxRuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"no TPU slice {name!r}; names look like {', '.join(TOPOLOGIES)} ({reason})") from error


def first_line(error: BaseException) -> str:
    """What the compiler says, without what it says around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
