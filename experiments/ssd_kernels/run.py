"""What the selective scan costs on TPUs that are not here: XLA's program against our Pallas kernels, by the TPU compiler's figures.

Compiles the scan of the 8B model's layer (1 × 8192 tokens, several documents a row) for one device of each TPU generation, forward alone
and with its gradient, and records what `plamo2 plan kernel ssd` prints. Nothing is measured: no TPU is used. Needs the tpu extra.

    python experiments/ssd_kernels/run.py               # an hour or so on two cores; results are kept as they come, and not made again
    python experiments/ssd_kernels/run.py v5p v6e       # only these generations
    python experiments/ssd_kernels/run.py --table       # only the table and the plot of what is there
    python experiments/ssd_kernels/run.py --kernels     # not XLA's programs, which take nearly all of the time

The plot and results.json are of libtpu 0.0.42, with jax 0.10.2; results of another version have a file of their own, named after it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plamo2_jax.plan.chips import CHIPS
from plamo2_jax.plan.compiler import libtpu_version
from plamo2_jax.plan.schedule.kernel_plan import SsdRequest, compile_ssd
from plamo2_jax.plan.schedule.ssd import SsdProgram
from plamo2_jax.plan.schedule.table import to_json
from plamo2_jax.plan.worker import Worker

HERE = Path(__file__).parent
PLOT, REFERENCE = HERE / "bound.png", "0.0.42"
KERNELS = HERE.parent.parent / "kernels" / "ssd"
PRESET, TOKENS = "plamo-2-8b", 8192
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
KINDS = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}
CHUNKS = {"xla": (128, 256, 512), "pallas_tpu": (128, 256)}
DIRECTIONS = ("forward", "forward+backward")
LAYOUTS = ("auto", "default")
# Figures a token that are kept, and of a program's operations those that take most.
OPERATIONS = 10


def sources(implementation: str) -> str:
    """A digest of the files that an implementation is made of: results of other ones are made anew."""
    files = sorted({KERNELS / "api.py", *KERNELS.glob(f"{implementation}*.py")})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def programs() -> list[tuple[str, SsdProgram, str]]:
    """Everything to compile, as (generation, program, layouts); the kernels first, since they compile fast."""
    return [
        (generation, SsdProgram(PRESET, implementation, chunk, direction, TOKENS), layouts)
        for implementation in ("pallas_tpu", "xla")
        for layouts in LAYOUTS
        for generation in TOPOLOGIES
        for chunk in CHUNKS[implementation]
        for direction in DIRECTIONS
    ]


def key(generation: str, program: SsdProgram, layouts: str) -> str:
    """Name of a result."""
    return f"{generation}/{program.implementation}/{program.chunk_size}/{program.direction}/{layouts}"


def results_file(libtpu: str) -> Path:
    """Where the results of a version of libtpu are."""
    short = ".".join(libtpu.split(".")[:3])
    return HERE / ("results.json" if short == REFERENCE else f"results_libtpu_{short}.json")


def load(path: Path) -> dict[str, Any]:
    """Results so far, by name."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def store(results: dict[str, Any], path: Path) -> None:
    """Write them all; the file is whole at any time."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def compile_all(generations: list[str], implementations: tuple[str, ...], path: Path) -> None:
    """Compile what has no result yet, or one of other sources or another compiler."""
    results = load(path)
    for generation in generations:
        topology = TOPOLOGIES[generation]
        with Worker() as worker:
            stamps = {name: {"libtpu": libtpu_version(), "sources": sources(name)} for name in CHUNKS}
            todo = [
                (program, layouts)
                for where, program, layouts in programs()
                if where == generation
                and program.implementation in implementations
                and {k: results.get(key(where, program, layouts), {}).get(k) for k in ("libtpu", "sources")}
                != stamps[program.implementation]
            ]
            for program, layouts in tqdm(todo, desc=generation, unit="program"):
                result = to_json(worker.call(compile_ssd, SsdRequest(topology, program, layouts)))
                if "operations" in result:
                    result["operations"] = heaviest(result["operations"])
                results[key(generation, program, layouts)] = {
                    **stamps[program.implementation],
                    "topology": topology,
                    **result,
                }
                store(results, path)


def heaviest(operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that take most cycles, by XLA's estimate or else their bundles."""
    return sorted(operations, key=lambda o: -o["times"] * (o["estimated_cycles"] or o["bundles"] or 0))[:OPERATIONS]


def best(
    results: dict[str, Any], generation: str, implementation: str, direction: str, layouts: str
) -> dict[str, Any] | None:
    """The result at the chunk with the lowest bound."""
    found = [
        results.get(f"{generation}/{implementation}/{chunk}/{direction}/{layouts}", {})
        for chunk in CHUNKS[implementation]
    ]
    return min(
        (r for r in found if "bound_cycles_per_token" in r), key=lambda r: r["bound_cycles_per_token"], default=None
    )


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table's rows: for each generation, direction and layouts, XLA and the kernel, each at its best chunk."""
    table = []
    for layouts in LAYOUTS:
        for generation in TOPOLOGIES:
            for direction in DIRECTIONS:
                pair = {name: best(results, generation, name, direction, layouts) for name in ("xla", "pallas_tpu")}
                for name, r in pair.items():
                    if r is None:
                        continue
                    cost = r["bound_cycles_per_token"]
                    against = pair["xla"]["bound_cycles_per_token"] / cost if pair["xla"] and name != "xla" else None
                    table.append(
                        [
                            layouts,
                            generation,
                            direction,
                            name,
                            str(r["chunk_size"]),
                            f"{r['cycles_per_token']:,.0f}",
                            f"{r['bundles_per_token']:,.0f}",
                            f"{r['mxu_cycles_per_token']:,.0f}",
                            f"{r['hbm_bytes_per_token'] / 1024:,.0f}",
                            f"{r['hbm_cycles_per_token']:,.0f}",
                            f"{cost:,.0f}",
                            f"{cost / CHIPS[KINDS[generation]].clock * 1e9:,.0f}",
                            f"{r['vmem_bytes'] / 2**20:.1f}",
                            f"{r['temp_bytes'] / 2**20:,.0f}",
                            f"{against:.1f}×" if against else "",
                        ]
                    )
    return table


def markdown(results: dict[str, Any]) -> str:
    """The table."""
    head = ["layouts", "TPU", "program", "implementation", "chunk", "cycles", "bundles", "MXU", "HBM KiB", "HBM cycles"]
    head += ["bound", "bound, ns", "VMEM MiB", "temp MiB", "XLA's bound / ours"]
    rule = ["---"] * 4 + ["---:"] * (len(head) - 4)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows(results)))


def plot(results: dict[str, Any]) -> None:
    """The bound of each program, layouts chosen by the compiler, and what it consists of."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    labelled: set[str] = set()

    def once(label: str) -> str | None:
        """A label for the legend, the first time it is wanted."""
        return None if label in labelled or labelled.add(label) else label

    for axis, direction in zip(axes, DIRECTIONS, strict=True):
        for offset, (name, colour) in zip((-0.2, 0.2), (("xla", "#9aa5b1"), ("pallas_tpu", "#3b6fb6")), strict=True):
            for position, generation in enumerate(TOPOLOGIES):
                r = best(results, generation, name, direction, "auto")
                if r is None:
                    continue
                bound = r["bound_cycles_per_token"]
                axis.bar(position + offset, bound, 0.38, color=colour, label=once(name))
                above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 8}
                axis.annotate(f"{bound:,.0f}", (position + offset, bound), **above)
                for figure_name, marker in (("bundles_per_token", "_"), ("hbm_cycles_per_token", "x")):
                    label = once({"_": "bundles", "x": "HBM cycles"}[marker])
                    axis.plot(position + offset, r[figure_name], marker, color="black", ms=9, ls="", label=label)
        axis.set_xticks(range(len(TOPOLOGIES)), list(TOPOLOGIES))
        axis.set_title(direction)
        axis.set_ylabel("cycles a token, no less")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.suptitle(
        "Selective scan of PLaMo 2 8B: roofline by the TPU compiler's schedules and bytes, not measured time"
    )
    figure.savefig(PLOT, dpi=150)


def main() -> None:
    """Compile, then print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="compile nothing")
    parser.add_argument("--kernels", action="store_true", help="compile no program of XLA's")
    parser.add_argument("--libtpu", default=REFERENCE, help="with --table: whose results")
    parser.add_argument("generations", nargs="*", metavar="TPU", help="left out: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.generations) - set(TOPOLOGIES):
        parser.error(f"{', '.join(sorted(unknown))}: must be of {', '.join(TOPOLOGIES)}")
    path = results_file(arguments.libtpu if arguments.table else libtpu_version())
    if not arguments.table:
        compile_all(
            arguments.generations or list(TOPOLOGIES), ("pallas_tpu",) if arguments.kernels else tuple(CHUNKS), path
        )
    results = load(path)
    print(markdown(results))
    if path.name == "results.json":
        plot(results)


if __name__ == "__main__":
    main()
