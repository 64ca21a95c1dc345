"""libtpu's compiler on a machine without a TPU: its version, the environment that it needs, and the devices of a slice."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import re
from pathlib import Path

from plamo2_jax.errors import PlamoError

# Without the TPU_ variables libtpu asks the cloud's metadata server where it runs, and a second process cannot load libtpu. The compilation
# cache is off because a cached program leaves no schedule to read.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
TOPOLOGIES = ("v5e:2x2", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x4", "v6e:2x2", "v6e:16x16", "tpu7x:2x2x1")
# The text that libtpu prints and dumps is not a stable interface. The readers of this package are verified with these versions
# (tests/plan/libtpu_*); the extra `plan` in setup.cfg installs one of them.
VERIFIED = ("0.0.42", "0.0.50")
# The texts that this package reads, of about 80 texts that libtpu can dump for each operation.
_DUMPED = "final_bundles|final_hlo|deduplication"


def libtpu_version() -> str:
    """Return the version of the installed libtpu.

    Raises:
        PlamoError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise PlamoError(
            "libtpu, the TPU compiler, is not installed: install this project with the extra plan, as in pip install '.[plan]' "
            "(no TPU is needed)"
        )
    return importlib.metadata.version("libtpu")


def unverified(version: str) -> str | None:
    """Return a warning if the readers are not verified with this version of libtpu, else None."""
    if ".".join(version.split(".")[:3]) in VERIFIED:
        return None
    return (
        f"libtpu {version} has not been verified with this version of plamo2-jax, so the predictions may be "
        f"wrong. Verified versions: {' and '.join(VERIFIED)}. Install one of these with the matching version "
        "of jax (constraints.txt)"
    )


def environment(dump: Path) -> dict[str, str]:
    """Return the environment of a process that compiles for TPU and writes its schedules to a folder."""
    flags = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex={_DUMPED}"
    before = os.environ.get("LIBTPU_INIT_ARGS", "")
    return {**os.environ, **ENVIRONMENT, "LIBTPU_INIT_ARGS": f"{before} {flags}".strip()}


def topology_devices(name: str, slices: int = 1) -> list:
    """Return the devices of one or more equal slices, such as "v5p:2x2x1". The process must have the variables of ENVIRONMENT.

    Raises:
        PlamoError: the compiler does not know the slice.
    """
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    try:
        several = {"num_slices": slices} if slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **several).devices
    except (JaxRuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise PlamoError(f"{name!r} is not a TPU slice: names look like {', '.join(TOPOLOGIES)} ({reason})") from error


def device_count(topology: str) -> int:
    """Return the number of devices of a slice by its name: "v5p:4x4x4" has 64; a tpu7x chip is two devices.

    Raises:
        PlamoError: the name is not a kind of TPU with the number of chips along each axis.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology)
    if not match:
        raise PlamoError(f"{topology!r} is not a TPU slice: names look like {', '.join(TOPOLOGIES)}")
    return math.prod(map(int, match[2].split("x"))) * (2 if match[1] == "tpu7x" else 1)


def first_line(error: BaseException) -> str:
    """Return the first line of an error message that is not empty, or the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
