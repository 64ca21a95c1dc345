"""Peak host memory and exactness of checkpoint conversion at full size.

Generates a checkpoint of a published shape with random weights in the public layout, converts it to a run folder and back with the
`plamo2` command, each in a process of its own, and records every process's peak resident memory (ru_maxrss, which counts mapped file
pages too). Then compares the two public checkpoints byte for byte. Files are deleted as soon as they have served.

    python experiments/convert_memory/run.py            # both dtypes of plamo-2-1b; needs 22 GB of disk and 8 GB of memory
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from plamo2_jax.config import ModelConfig, preset
from plamo2_jax.convert.files import find_tensors
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.convert.write import header, plan_shards

HERE = Path(__file__).parent
GIB = 2**30
FACTOR, SLACK = 1.25, GIB  # the bound: 1.25 times the model's bytes in the target dtype, and 1 GiB


def generate(folder: Path, config: ModelConfig, dtype: np.dtype, max_shard_bytes: int) -> None:
    """A public checkpoint of random weights."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shards = plan_shards(public_tensors(config), dtype, max_shard_bytes)
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.write(header(shard.tensors, dtype))
            for tensor in shard.tensors:
                left = tensor.size
                while left:
                    count = min(left, 1 << 24)
                    values = rng.standard_normal(count, np.float32) * np.float32(0.02)
                    file.write(values.astype(dtype).view(np.uint8).data)
                    left -= count
    if len(shards) > 1:
        names = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "config.json").write_text(json.dumps(config.to_hf()))


def convert(*arguments: object) -> dict:
    """Run `plamo2 convert` and measure it."""
    command = [sys.executable, "-m", "plamo2_jax.cli.main", "convert", *map(str, arguments)]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return {"seconds": round(time.perf_counter() - start, 1), "peak_bytes": usage.ru_maxrss * 1024}


def differences(left: Path, right: Path) -> list[str]:
    """Names of tensors that are not the same bytes in both folders."""
    a, b = find_tensors(left), find_tensors(right)
    different = sorted(a.keys() ^ b.keys())
    for name in a.keys() & b.keys():
        if (a[name].shape, a[name].dtype) != (b[name].shape, b[name].dtype) or not np.array_equal(
            *(x[name].map(0, x[name].shape).view(np.uint8) for x in (a, b))
        ):
            different.append(name)
    return different


def measure(config: ModelConfig, source: str, target: str, scratch: Path, shard_bytes: int) -> list[dict]:
    """Rows of results: there in `target`, and back again."""
    target_option = [] if source == target else ["--dtype", target]
    generate(scratch / "public", config, _dtype(source), shard_bytes)
    rows = []
    try:
        there = convert("from-hf", scratch / "public", scratch / "run", *target_option)
        back = convert("to-hf", scratch / "run", scratch / "back", "--max-shard-size", f"{shard_bytes}")
        exact = not differences(scratch / "public", scratch / "back") if source == target else None
    finally:
        for folder in ("public", "run", "back"):
            shutil.rmtree(scratch / folder, ignore_errors=True)
    size = config.parameter_count() * _dtype(target).itemsize
    for direction, result in (("from-hf", there), ("to-hf", back)):
        row = {"direction": direction, "files": source if direction == "from-hf" else target, "target": target}
        row |= {"model_bytes": size, **result, "allowed_bytes": int(FACTOR * size + SLACK)}
        row["within"] = row["peak_bytes"] <= row["allowed_bytes"]
        row["round_trip_exact"] = exact
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def _dtype(name: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, name))


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="plamo-2-1b")
    parser.add_argument("--scratch", type=Path, help="folder for the checkpoints; default: a temporary one")
    parser.add_argument("--shard-bytes", type=int, default=2_000_000_000)
    parser.add_argument("--label", default="bounded", help="key of this run in results.json; other runs there are kept")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    config = preset(arguments.preset)
    rows = []
    for source, target in (("bfloat16", "bfloat16"), ("float32", "float32"), ("float32", "bfloat16")):
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            rows += measure(config, source, target, Path(scratch), arguments.shard_bytes)
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    results = {
        "command": "python experiments/convert_memory/run.py " + " ".join(sys.argv[1:]),
        "preset": arguments.preset,
        "parameters": config.parameter_count(),
        "machine": {"cpus": os.cpu_count(), "memory": memory.split(":")[1].strip(), "kernel": platform.release()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("jax", "orbax-checkpoint", "tensorstore", "safetensors", "numpy")},
        "rows": rows,
    }
    runs = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    arguments.output.write_text(json.dumps({**runs, arguments.label: results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
