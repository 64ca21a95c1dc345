"""Tensor and pipeline parallelism over two processes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
from conftest import os
from engines import Reference, engine, differences, greedy

if __name__ == "__main__":
    folder, name, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    reference = Reference(folder, name)
    with engine(reference.model, distributed_executor_backend="mp", **options) as llm:
        worst = max(float(error.max()) for error in differences(llm, reference))
        equal = greedy(llm, reference.prompts, 48) == [row["token_ids"] for row in reference.generated]
    print("RESULT", json.dumps([worst, equal]))
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("extended", {"tensor_parallel_size": 2}),
        # Without compilation, vLLM 0.32 on CPUs makes no buffer for the input of the second stage.
        ("base", {"pipeline_parallel_size": 2, "enforce_eager": False}),
    ],
    ids=["tensor", "pipeline"],
)
def test_equals_plamo2_jax(folder, tmp_path, name, options):
    # Workers import the script of the main process, so it must be a file with a main guard.
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    command = [sys.executable, str(script), str(folder), name, json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, done.stderr[-3000:]
    worst, equal = json.loads(results[0].removeprefix("RESULT "))
    assert worst < 1e-5
    assert equal
