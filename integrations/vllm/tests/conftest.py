"""The environment of vLLM on a CPU, and the folder of reference files."""

import os
import subprocess
from pathlib import Path

import pytest

# Before vLLM is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Folder of the models and references that reference.py writes."""
    if ready := os.environ.get("PLAMO2_REFERENCE"):
        return Path(ready)
    python = os.environ.get("PLAMO2_PYTHON")
    if python is None:
        pytest.skip("PLAMO2_PYTHON must name the Python that has plamo2-jax (make peers-vllm sets it)")
    out = tmp_path_factory.mktemp("reference")
    script = Path(__file__).with_name("reference.py")
    subprocess.run([python, script, out], check=True, timeout=600, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    return out
