"""`plamo2 plan`: what a program costs on a TPU that is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from plamo2_jax.cli.arguments import call

_USAGE = """usage: plamo2 plan CONFIG.py --topology SLICE [options] [--field value] ...
       plamo2 plan kernel ssd --topology SLICE --preset MODEL [options]

Compiles for a TPU slice on a machine without one, and prints what the compiler says: cycles, bytes, memory. These are the compiler's
figures, not measured time. Needs libtpu: pip install 'jax[tpu]'

  CONFIG.py     the train step of a run, a prefill, a decoding step: HBM a chip, collectives, predicted time and MFU bound
                                                              (plamo2 plan CONFIG.py --help explains it)
  kernel ssd    the selective scan at a preset's shape        (plamo2 plan kernel ssd --help explains it)"""


def ssd(
    *,
    topology: str,
    preset: str = "plamo-2-8b",
    implementation: tuple[Literal["xla", "pallas_tpu"], ...] = ("xla", "pallas_tpu"),
    chunk: tuple[int, ...] = (),
    direction: tuple[Literal["forward", "forward+backward"], ...] = ("forward", "forward+backward"),
    layouts: tuple[Literal["default", "auto"], ...] = ("default", "auto"),
    tokens: int = 8192,
    batch: int = 1,
    segments: bool = True,
    initial_state: bool = False,
    breakdown: bool = False,
    output: Path | None = None,
) -> None:
    """What the selective scan costs on one device of a TPU slice, by the compiler's figures.

    Compiles the scan and what is around the kernel, forward alone and with the gradient of every input, at the shape of a model's layer.
    Prints a table with a row for each implementation, chunk, direction and layouts. What its columns mean is printed below it. Nothing is
    measured: a schedule says how many cycles the instructions take when nothing waits for memory.

    Args:
        topology: The slice to compile for, such as v5e:2x2, v5p:2x2x1, v6e:2x2 or tpu7x:2x2x1.
        preset: The model whose layer it is.
        implementation: Ways to compute the scan.
        chunk: Tokens a chunk, several to compare; left out, what each implementation chooses on TPU.
        direction: The scan alone, or with its gradient.
        layouts: Of arguments and results: what arrays have by default, or what the compiler chooses, as it does inside a model.
        tokens: Of a row.
        batch: Rows.
        segments: Whether rows hold several documents.
        initial_state: Whether a state comes in.
        breakdown: Print where the cycles go, operation by operation.
        output: A JSON file to write everything to.
    """
    from plamo2_jax.config import PRESETS
    from plamo2_jax.plan.compiler import untested
    from plamo2_jax.plan.schedule import table
    from plamo2_jax.plan.schedule.run import Compiler
    from plamo2_jax.plan.schedule.ssd import SsdProgram
    from plamo2_jax.progress import tqdm

    if preset not in PRESETS:
        raise ValueError(f"--preset {preset} is not allowed; it must be one of {', '.join(PRESETS)}")
    for option, values in (("--tokens", (tokens,)), ("--batch", (batch,)), ("--chunk", chunk)):
        for value in values:
            if value < 1:
                raise ValueError(f"{option} {value} is not allowed; it must be at least 1")
    if output is not None and not output.parent.is_dir():
        raise ValueError(f"--output {output}: the folder {output.parent} does not exist")
    programs = [
        (SsdProgram(preset, name, size, way, tokens, batch, segments, initial_state), layout)
        for name in implementation
        for size in chunk or (None,)
        for way in direction
        for layout in layouts
    ]
    results = []
    compiler = Compiler(topology)
    if warning := untested(compiler.libtpu):
        print(f"plamo2 plan: warning: {warning}", file=sys.stderr)
    with compiler, tqdm(programs, desc="compile", unit="program", delay=1) as bar:
        for program, layout in bar:
            results.append(compiler.cost(program, layout))
        print(
            f"Compiler's figures (libtpu {compiler.libtpu}, {topology}), not measured time; ssd of {preset}, {batch}×{tokens} tokens."
        )
    compiled = [result for result in results if result.cost]
    if compiled:
        print(table.describe_chip(compiled[0].cost.chip))
    print("\n" + table.table(results) + "\n\n" + "\n".join(table.legend()))
    for result in results:
        program = result.program
        lines = [*table.kernels(result), *(table.breakdown(result) if breakdown else ())]
        if lines:
            title = (
                f"{program.implementation}, chunk {table.chunk(program)}, {program.direction}, layouts {result.layouts}"
            )
            print(f"\n{title}")
            print("\n".join(f"  {line}" for line in lines))
    if output is not None:
        _write(
            output,
            {"source": "the compiler's figures, not measured time", "libtpu": compiler.libtpu, "topology": topology},
            results,
        )


def _write(path: Path, header: dict, results: list) -> None:
    from plamo2_jax.plan.schedule.table import to_json
    from plamo2_jax.storage import write_whole

    text = json.dumps({**header, "programs": [to_json(result) for result in results]}, indent=1)
    write_whole(path, (text + "\n").encode())
    print(f"\n{path}: {len(results)} programs", file=sys.stderr)


def main(argv: list[str]) -> int | None:
    """Runs `plamo2 plan CONFIG.py` or `plamo2 plan kernel ssd`."""
    if argv and argv[0].endswith(".py"):
        from plamo2_jax.cli.plan_step import main as plan_step

        return plan_step(argv)
    words = [word for word in argv[:2] if not word.startswith("-")]
    if words == ["kernel", "ssd"]:
        call(ssd, argv[2:], "plamo2 plan kernel ssd")
        return None
    if {"-h", "--help"} & set(argv) and words in ([], ["kernel"]):
        print(_USAGE)
        return 0
    if not words:
        print(_USAGE, file=sys.stderr)
        return 2
    raise ValueError(
        f"unknown plan {' '.join(words)!r}; it must be: kernel ssd, or a config file such as configs/pretrain_8b.py"
    )
