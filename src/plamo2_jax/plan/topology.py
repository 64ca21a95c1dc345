"""Names of slices."""

from __future__ import annotations

import math
import re


def chips(topology: str) -> int:
    """Devices of a slice by its name: "v5p:4x4x4" has 64; a tpu7x chip is two devices.

    Raises:
        ValueError: the name does not look like one.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology)
    if not match:
        raise ValueError(f"no TPU slice {topology!r}; names look like v5e:4x4, v5p:4x4x4, v6e:16x16 or tpu7x:2x2x1")
    return math.prod(map(int, match[2].split("x"))) * (2 if match[1] == "tpu7x" else 1)
