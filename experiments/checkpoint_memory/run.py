"""Host memory of saving and restoring a train state on 8 devices, and of restoring it on 4.

Plans the bytes of the state of plamo-2-31b per device and per host from its shapes and shardings; nothing is allocated. Then measures, with
8 CPU devices in one process, how far the host memory rises while states are saved and restored, for persistent (Orbax) and local
checkpoints. Every measurement is a process of its own. Restored values are compared with the saved ones.

Before a save, the state lies in a mapped file (mapped_state.py), which stands for the memory of accelerators and does not count. A restored
state counts, because it lies in host memory here.

    python experiments/checkpoint_memory/run.py                              # 13 GB of memory, 11 GB of disk, about 15 minutes on two cores
    python experiments/checkpoint_memory/run.py --states small medium        # 4 GB of memory, 3 GB of disk, about 4 minutes
    python experiments/checkpoint_memory/run.py --states '1B, float32'       # 19 GB of memory, 16 GB of disk
    python experiments/checkpoint_memory/run.py --page                       # only README.md, from results.json and notes.md

Writes results.json and README.md; rows of states that are not measured again are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GIB = 2**30
DEVICES, FEWER = 8, 4


@dataclasses.dataclass(frozen=True)
class State:
    """A train state of AdamW with parameters in float32."""

    preset: str
    changes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Fields of the preset that are replaced."""
    moments: str = "float32"
    """dtype of both moments."""


_HALF = {"hidden_size": 1024, "vocab_size": 8192}
STATES = {
    "small": State("plamo-2-1b", _HALF | {"num_hidden_layers": 3}),
    "medium": State("plamo-2-1b", _HALF | {"num_hidden_layers": 6}),
    "1B, bfloat16": State("plamo-2-1b", moments="bfloat16"),
    "1B, float32": State("plamo-2-1b"),
    "31B, float32": State("plamo-2-31b"),
}
"""Small states have layers of the 1B with half its width. The state of the 31B is planned only."""
MEASURED = ("small", "medium", "1B, bfloat16")
"""States that are measured by default: the largest of them fits into 14 GiB of memory."""
ACTIONS = {
    "persistent save": DEVICES,
    "persistent restore": DEVICES,
    "persistent restore, fewer devices": FEWER,
    "local save": DEVICES,
    "local restore": DEVICES,
}
"""Actions, and the number of devices of each."""


def abstract_state(name: str) -> Any:
    """Return shapes, dtypes and shardings of a state on all devices of this process (fsdp)."""
    import jax

    from plamo2_jax.config import preset
    from plamo2_jax.config_file import load_config
    from plamo2_jax.sharding.mesh import MeshConfig
    from plamo2_jax.train.build import build_train_program

    base, state = load_config(ROOT / "configs" / "pretrain_31b.py"), STATES[name]
    config = dataclasses.replace(
        base,
        name="memory",
        model=preset(state.preset, **state.changes),
        mesh=MeshConfig(),
        optimizer=dataclasses.replace(base.optimizer, mu_dtype=state.moments, nu_dtype=state.moments),
    )
    return build_train_program(config, jax.devices()).state


def plan(name: str) -> dict:
    """Return the bytes of a state on the devices of this process, without allocating it."""
    import jax

    state = abstract_state(name)
    leaves = jax.tree.leaves(state)
    per_device = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return {
        "state": name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "device_bytes": per_device,
        "host_of_4_bytes": 4 * per_device,
        "largest_array_bytes": max(leaf.size * leaf.dtype.itemsize for leaf in leaves),
    }


class HostMemory:
    """A context manager that samples the process's own memory, without mapped files, every 5 ms."""

    before: int
    """Bytes when the block began."""
    peak: int
    """Most bytes in the block."""

    def __enter__(self) -> HostMemory:
        self.before = self.peak = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) * 1024


def measure(action: str, name: str, folder: Path) -> dict:
    """Run one action in this process and return its memory and time.

    Args:
        action: one of ACTIONS.
        name: one of STATES.
        folder: holds the run and the mapped file of the state.
    """
    import grain
    import jax
    import mapped_state

    from plamo2_jax.train.checkpoints import RunCheckpoints
    from plamo2_jax.train.local_checkpoints import LocalCheckpoints
    from plamo2_jax.train.loss_guard import LossGuard, SpikeConfig

    abstract = abstract_state(name)
    rows, guard = iter(grain.MapDataset.range(10).to_iter_dataset()), LossGuard(5, SpikeConfig())
    local = None
    if action.startswith("local"):
        local = LocalCheckpoints(folder / "disk", folder / "run", abstract)
        local.begin()
    saving = action.endswith("save")
    state = mapped_state.read(folder / "state", abstract) if saving else None
    with HostMemory() as memory:
        begun = time.perf_counter()
        with RunCheckpoints(folder / "run", abstract, 1, {}, local) as checkpoints:
            if action == "persistent save":
                checkpoints.save(state, rows, guard)
            elif action == "local save":
                checkpoints.save_local(state, rows, guard)
            else:
                state = jax.block_until_ready(checkpoints.restore(rows, guard))
        # The end of the block has waited for the save.
        seconds = time.perf_counter() - begun
    if not saving and not (checkpoints.tier == action.split()[0] and mapped_state.is_equal(folder / "state", state)):
        raise SystemExit(
            f"{action}: the {checkpoints.tier} checkpoint was restored, or other values than the saved ones"
        )
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract)]
    return {
        "action": action,
        "state": name,
        "state_bytes": sum(sizes),
        "largest_array_bytes": max(sizes),
        "rise_bytes": memory.peak - memory.before,
        "peak_bytes": memory.peak,
        "seconds": round(seconds, 1),
    }


def write_state(name: str, folder: Path) -> None:
    """Write the mapped file of a state."""
    import mapped_state

    mapped_state.write(folder / "state", abstract_state(name))


def bound(row: dict) -> float:
    """Return the rise of the host memory that an action may cause, in bytes."""
    state, largest = row["state_bytes"], row["largest_array_bytes"]
    return {
        # The limit of each item of a checkpoint: parameters and optimizer state. The largest array is divided over all devices.
        "persistent save": min(state, 2 * (1.1 * largest / DEVICES + GIB / 8)) + 0.75 * GIB,
        "persistent restore": state + 1.1 * largest + 0.75 * GIB,
        "local save": state + 0.1 * GIB,
        "local restore": state + largest + 0.1 * GIB,
    }[row["action"].partition(",")[0]]


BOUNDS = (
    "a persistent save, 2.2 × the largest shard and 1 GiB; a local save, the state and 0.1 GiB; "
    "a persistent restore, the state, 1.1 × the largest array and 0.75 GiB; a local restore, the state, the largest array and 0.1 GiB"
)


def table(rows: list[dict]) -> list[str]:
    """Return the rows of measurements in Markdown."""
    lines = []
    for row in rows:
        restored = "restore" in row["action"]
        besides = row["rise_bytes"] - (row["state_bytes"] if restored else 0)
        figures = [row[f"{name}_bytes"] for name in ("state", "largest_array", "rise")]
        figures += [bound(row), besides, row["peak_bytes"]]
        cells = [row["action"], row["state"], *(f"{value / GIB:.2f}" for value in figures)]
        lines.append(f"| {' | '.join(cells)} | {row['seconds']} |")
    return lines


def page(results: dict) -> str:
    """Return README.md."""
    plans = [
        f"| {one['state']} | {one['parameters']:,} | "
        + " | ".join(
            f"{one[name] / GIB:.1f}"
            for name in ("state_bytes", "device_bytes", "host_of_4_bytes", "largest_array_bytes")
        )
        + " |"
        for one in results["plans"]
    ]
    machine, versions = results["machine"], results["versions"]
    above = sum(row["rise_bytes"] > bound(row) for row in results["rows"])
    return f"""# Host memory of checkpoints

**Question.** How much host memory do saving and restoring the state of a large run need?

## Plan on {DEVICES} devices

These sizes are computed from shapes and shardings. A state has parameters in float32 and the moments of AdamW in the dtype of the first
column, and is divided over {DEVICES} devices (fsdp). In GiB:

| state | parameters | state | of it on each device | of it on each host of 4 devices | largest array, over all devices |
|---|---|---|---|---|---|
{chr(10).join(plans)}

## Measured

One process with {DEVICES} CPU devices ({FEWER} in the rows "fewer devices"). "rise" is the peak of the process's own memory during the
action minus the memory before it. During a save, the state lies in a mapped file, which stands for the memory of accelerators and does not
count. For a restore, the rise includes the state, which is in host memory here. "besides the state" does not include it. "peak" is the
memory of the whole process, with Python and jax. The restored values equal the saved ones. The times were measured while other work ran,
and are not a benchmark. In GiB:

| action | state | size of the state | largest array | rise | bound of the rise | besides the state | peak | s |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(table(results["rows"]))}

Bounds: {BOUNDS}. They follow from limits in the code; the margins of 0.1 to 0.75 GiB are from these rows. \
Rows above their bound: {above} of {len(results["rows"])}.

{(HERE / "notes.md").read_text(encoding="utf-8")}
`{results["command"]}` repeats the experiment (jax {versions["jax"]}, Orbax {versions["orbax-checkpoint"]}; \
{machine["cpus"]} CPUs, {machine["memory"]}).
"""


def child(devices: int, *options: object) -> str:
    """Run this file in a process with some CPU devices, and return the last line that it prints."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, __file__, *map(str, options)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(output, end="", flush=True)
    return (output.splitlines() or [""])[-1]


def measure_state(name: str, scratch: Path | None) -> list[dict]:
    """Run all actions on a state, and return their rows."""
    rows = []
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        folder = Path(temporary)
        child(DEVICES, "--only", "write", name, folder)
        for tier in ("persistent", "local"):
            (folder / "run").mkdir()
            for action, devices in ACTIONS.items():
                if action.startswith(tier):
                    rows.append(json.loads(child(devices, "--only", action, name, folder)))
            shutil.rmtree(folder / "run")
    return rows


def main() -> None:
    """Plan, measure, and write results.json and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", nargs="*", choices=list(STATES)[:-1], default=MEASURED, help="states to measure")
    parser.add_argument("--scratch", type=Path, help="folder for the checkpoints; default: a temporary one")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.json and README.md")
    parser.add_argument("--page", action="store_true", help="write README.md again from results.json and notes.md")
    parser.add_argument(
        "--only", nargs=3, metavar=("ACTION", "STATE", "FOLDER"), help="one action, as JSON; for the script itself"
    )
    arguments = parser.parse_args()
    if arguments.only:
        action, name, folder = arguments.only
        if action == "write":
            write_state(name, Path(folder))
        else:
            print(json.dumps(plan(name) if action == "plan" else measure(action, name, Path(folder))))
        return
    path = arguments.output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"rows": []}
    if not arguments.page:
        kept = [row for row in results["rows"] if row["state"] not in arguments.states]
        total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
        results = {
            "command": "python experiments/checkpoint_memory/run.py",
            "machine": {"cpus": os.cpu_count(), "memory": total.split(":")[1].strip(), "kernel": platform.release()},
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("jax", "orbax-checkpoint", "tensorstore", "numpy")},
            "plans": [json.loads(child(DEVICES, "--only", "plan", name, ".")) for name in STATES],
            "rows": kept + [row for name in arguments.states for row in measure_state(name, arguments.scratch)],
        }
        order = list(ACTIONS), list(STATES)
        results["rows"].sort(key=lambda row: (order[0].index(row["action"]), order[1].index(row["state"])))
        path.write_text(json.dumps(results, indent=2) + "\n")
    (arguments.output / "README.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
