"""Host memory of saving and restoring a train state (parameters and AdamW moments in float32) on 8 devices.

Plans the bytes of the state of plamo-2-31b per device and per host from its shapes and shardings; nothing is allocated. Then measures, with
8 CPU devices in one process, how far the resident memory rises during save and restore of two smaller states, for persistent (Orbax) and
local checkpoints. The devices' memory is host memory here, so the state itself counts too. Every measurement is a process of its own.
Writes results.json and README.md.

    python experiments/checkpoint_memory/run.py      # 6 GB of memory, 6 GB of disk, about 3 minutes on two idle cores
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GIB = 2**30
DEVICES = 8
LAYERS = (3, 6)
"""Layers of the two measured models."""
ACTIONS = ("persistent save", "persistent restore", "local save", "local restore")


def config_of(layers: int | None):
    """Return the run whose state is measured, with this number of layers; None: the 31B."""
    from plamo2_jax.config import preset
    from plamo2_jax.config_file import load_config
    from plamo2_jax.sharding.mesh import MeshConfig

    base = load_config(ROOT / "configs" / "pretrain_31b.py")
    base = dataclasses.replace(base, mesh=MeshConfig(), name="memory")
    if layers is None:
        return base
    model = preset("plamo-2-1b", hidden_size=1024, num_hidden_layers=layers, vocab_size=8192)
    return dataclasses.replace(base, model=model)


def plan() -> dict:
    """Return the bytes of the 31B's state on 8 devices, without allocating it."""
    import jax

    from plamo2_jax.train.build import build_train_program

    config = config_of(None)
    state = build_train_program(config, jax.devices()).state
    leaves = jax.tree.leaves(state)
    per_device = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    parameters = config.model.parameter_count()
    return {
        "parameters": parameters,
        "state_bytes": state_bytes,
        "device_bytes": per_device,
        "host_of_4_bytes": 4 * per_device,
        "largest_array_bytes": largest,
    }


def memory(name: str) -> int:
    """Return a field of /proc/self/status in bytes: VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def measure(action: str, layers: int, folder: Path) -> dict:
    """Run one action in this process and return its memory and time."""
    import grain
    import jax
    import numpy as np

    from plamo2_jax.train.build import build_train_program
    from plamo2_jax.train.checkpoints import RunCheckpoints
    from plamo2_jax.train.local_checkpoints import LocalCheckpoints
    from plamo2_jax.train.loss_guard import LossGuard, SpikeConfig

    abstract = build_train_program(config_of(layers), jax.devices()).state
    leaves = jax.tree.leaves(abstract)
    rows, guard = iter(grain.MapDataset.range(10).to_iter_dataset()), LossGuard(5, SpikeConfig())
    rng = np.random.default_rng(0)

    def values(leaf: jax.ShapeDtypeStruct):
        def part(index: tuple[slice, ...]) -> np.ndarray:
            shape = tuple(len(range(*cut.indices(size))) for cut, size in zip(index, leaf.shape, strict=True))
            is_float = np.issubdtype(leaf.dtype, np.floating)
            return rng.standard_normal(shape, np.float32) if is_float else np.ones(shape, leaf.dtype)

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    local = None
    if action.startswith("local"):
        local = LocalCheckpoints(folder / "disk", folder / "run", abstract)
        local.begin()
    state = jax.block_until_ready(jax.tree.map(values, abstract)) if action.endswith("save") else None
    with RunCheckpoints(folder / "run", 1, {}, local) as checkpoints:
        Path("/proc/self/clear_refs").write_text("5")  # The peak starts again from what is resident now.
        before, begun = memory("VmRSS"), time.perf_counter()
        if action == "persistent save":
            checkpoints.save(state, rows, guard)
        elif action == "local save":
            checkpoints.save_local(state, rows, guard)
        else:
            state = jax.block_until_ready(checkpoints.restore(abstract, rows, guard))
    # The end of the block has waited for the save.
    seconds, peak = time.perf_counter() - begun, memory("VmHWM")
    assert action.endswith("save") or checkpoints.tier == action.split()[0]
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in leaves]
    return {
        "action": action,
        "layers": layers,
        "state_bytes": sum(sizes),
        "largest_array_bytes": max(sizes),
        "rise_bytes": peak - before,
        "seconds": round(seconds, 1),
    }


def page(results: dict) -> str:
    """Return README.md."""
    planned, rows = results["plan"], []
    for row in results["rows"]:
        above = row["rise_bytes"] - (row["state_bytes"] if row["action"].endswith("restore") else 0)
        cells = [
            row["action"],
            *(f"{row[name] / GIB:.2f}" for name in ("state_bytes", "largest_array_bytes", "rise_bytes")),
        ]
        cells += [f"{row['rise_bytes'] / row['state_bytes']:.2f}", f"{above / GIB:.2f}", f"{row['seconds']}"]
        rows.append(f"| {' | '.join(cells)} |")
    gib = {name: f"{value / GIB:.1f}" for name, value in planned.items() if name.endswith("bytes")}
    notes = (HERE / "notes.md").read_text(encoding="utf-8")
    return f"""# Host memory of checkpoints

**Question.** How much host memory do saving and restoring the state of a large run need?

## Plan for the 31B on 8 devices

These sizes are computed from shapes and shardings. The state has {planned["parameters"]:,} parameters and the moments of AdamW, all in \
float32, \
and is divided over 8 devices (fsdp).

| part | GiB |
|---|---|
| state | {gib["state_bytes"]} |
| of it on each device | {gib["device_bytes"]} |
| of it on each host of 4 devices | {gib["host_of_4_bytes"]} |
| largest array, over all devices | {gib["largest_array_bytes"]} |

## Measured

One process, {DEVICES} CPU devices, layers of the 1B with half its width ({" and ".join(map(str, LAYERS))} layers, vocabulary of \
8,192). The 31B and the 1B were not measured, because their states need more memory than was free on the machine. "rise" is the peak of \
the resident \
memory during the action minus the resident memory before it. For a restore, the rise includes the state, which is in host memory here \
and in device \
memory on accelerators. "besides the state" does not include it. The times were measured while other work ran, and are not a benchmark.

| action | state, GiB | largest array, GiB | rise, GiB | rise / state | besides the state, GiB | s |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

{notes}
`{results["command"]}` repeats the experiment (jax {results["versions"]["jax"]}, Orbax {results["versions"]["orbax-checkpoint"]}; \
{results["machine"]["cpus"]} CPUs, {results["machine"]["memory"]}).
"""


def main() -> None:
    """Plan, measure, and write results.json and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="folder for the checkpoints; default: a temporary one")
    parser.add_argument("--only", nargs=3, metavar=("ACTION", "LAYERS", "FOLDER"), help="one measurement, as JSON")
    parser.add_argument("--plan", action="store_true", help="the plan only, as JSON")
    parser.add_argument("--page", action="store_true", help="write README.md again from results.json and notes.md")
    arguments = parser.parse_args()
    if arguments.only:
        action, layers, folder = arguments.only
        print(json.dumps(measure(action, int(layers), Path(folder))))
        return
    if arguments.plan:
        print(json.dumps(plan()))
        return
    if arguments.page:
        (HERE / "README.md").write_text(page(json.loads((HERE / "results.json").read_text())))
        return

    def child(*options: object) -> dict:
        flags = f"--xla_force_host_platform_device_count={DEVICES}"
        command = [sys.executable, __file__, *map(str, options)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(output, end="", flush=True)
        return json.loads(output.splitlines()[-1])

    rows = []
    for layers in LAYERS:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            for kind in ("persistent", "local"):
                folder = Path(scratch) / kind
                (folder / "run").mkdir(parents=True)
                rows += [child("--only", f"{kind} {action}", layers, folder) for action in ("save", "restore")]
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    results = {
        "command": "python experiments/checkpoint_memory/run.py",
        "machine": {"cpus": os.cpu_count(), "memory": total.split(":")[1].strip(), "kernel": platform.release()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("jax", "orbax-checkpoint", "tensorstore", "numpy")},
        "plan": child("--plan"),
        "rows": sorted(rows, key=lambda row: (ACTIONS.index(row["action"]), row["state_bytes"])),
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (HERE / "README.md").write_text(page(results))


if __name__ == "__main__":
    main()
