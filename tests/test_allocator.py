"""Freed memory is kept: allocating it again causes no page faults."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from plamo2_jax.cli.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def fill():
    np.empty(16 << 20, np.uint8).fill(1)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the setting belongs to glibc")
def test_memory_is_kept():
    def faults(mode):
        # A user's own setting would decide both.
        environment = {"PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True, env=environment
        )
        return int(done.stdout)

    kept, default = faults("keep"), faults("default")
    if default < 20:
        pytest.skip("this C library keeps freed memory by itself")
    assert kept < default / 4
