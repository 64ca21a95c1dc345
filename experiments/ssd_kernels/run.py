"""Compare XLA's program for the selective scan with our Pallas kernels on TPU, by the TPU compiler's figures.

Compiles the scan of the 8B model's layer (1 × 8192 tokens, several documents per row) for one device of each TPU generation, forward alone
and with its gradient, and records what `plamo2 plan kernel ssd` prints. No TPU is used and nothing is measured. Needs the extra `plan`.

    python experiments/ssd_kernels/run.py               # about an hour on two cores; existing results are kept
    python experiments/ssd_kernels/run.py v5p v6e       # only these generations
    python experiments/ssd_kernels/run.py --table       # only the table and the plot of existing results
    python experiments/ssd_kernels/run.py --kernels     # without XLA's programs, which take nearly all of the time

The plot and results.json are from libtpu 0.0.42 with jax 0.10.2. Results of another version are written to a file named after it.
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
# Number of operations that are recorded for each program.
OPERATIONS = 10


def sources(implementation: str) -> str:
    """Return a digest of an implementation's source files. Results of other sources are computed again."""
    files = sorted({KERNELS / "api.py", *KERNELS.glob(f"{implementation}*.py")})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def programs() -> list[tuple[str, SsdProgram, str]]:
    """Return everything to compile as (generation, program, layouts), first the kernels, which compile fast."""
    return [
        (generation, SsdProgram(PRESET, implementation, chunk, direction, TOKENS), layouts)
        for implementation in ("pallas_tpu", "xla")
        for layouts in LAYOUTS
        for generation in TOPOLOGIES
        for chunk in CHUNKS[implementation]
        for direction in DIRECTIONS
    ]


def key(generation: str, program: SsdProgram, layouts: str) -> str:
    """Return the name of a result."""
    return f"{generation}/{program.implementation}/{program.chunk_size}/{program.direction}/{layouts}"


def results_file(libtpu: str) -> Path:
    """Return the results file of a libtpu version."""
    short = ".".join(libtpu.split(".")[:3])
    return HERE / ("results.json" if short == REFERENCE else f"results_libtpu_{short}.json")


def load(path: Path) -> dict[str, Any]:
    """Read the results by name."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def store(results: dict[str, Any], path: Path) -> None:
    """Write all results atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def compile_all(generations: list[str], implementations: tuple[str, ...], path: Path) -> None:
    """Compile programs without a result, or with a result of other sources or of another compiler."""
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
    """Return the operations with most cycles, by XLA's estimate or else by their bundles."""
    return sorted(operations, key=lambda o: -o["times"] * (o["estimated_cycles"] or o["bundles"] or 0))[:OPERATIONS]


def best(
    results: dict[str, Any], generation: str, implementation: str, direction: str, layouts: str
) -> dict[str, Any] | None:
    """Return the result of the chunk size with the lowest bound."""
    found = [
        results.get(f"{generation}/{implementation}/{chunk}/{direction}/{layouts}", {})
        for chunk in CHUNKS[implementation]
    ]
    return min(
        (r for r in found if "bound_cycles_per_token" in r), key=lambda r: r["bound_cycles_per_token"], default=None
    )


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table: XLA and the kernel, each at its best chunk size, for each generation, direction and layouts."""
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
    """Return the table as Markdown."""
    head = ["layouts", "TPU", "program", "implementation", "chunk", "cycles", "bundles", "MXU", "HBM KiB", "HBM cycles"]
    head += ["bound", "bound, ns", "VMEM MiB", "temp MiB", "XLA's bound / ours"]
    rule = ["---"] * 4 + ["---:"] * (len(head) - 4)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows(results)))


def plot(results: dict[str, Any]) -> None:
    """Plot the bound of each program with the layouts that the compiler chooses, and the parts of the bound."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    labelled: set[str] = set()

    def once(label: str) -> str | None:
        """Return the label the first time, then None, so that the legend shows it once."""
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
        axis.set_ylabel("lower bound, cycles per token")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    versions = ", ".join(sorted({r["libtpu"] for r in results.values()}))
    figure.suptitle(
        f"Selective scan of PLaMo 2 8B: roofline by the schedules and bytes of libtpu {versions}, not measured time"
    )
    figure.savefig(PLOT, dpi=150)


def main() -> None:
    """Compile, then print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="compile nothing")
    parser.add_argument("--kernels", action="store_true", help="do not compile XLA's programs")
    parser.add_argument("--libtpu", default=REFERENCE, help="with --table: version of the results")
    parser.add_argument("generations", nargs="*", metavar="TPU", help="default: all")
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
