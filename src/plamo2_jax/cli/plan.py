"""`plamo2 plan`: compile for a TPU slice without a TPU and print the compiler's figures."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Literal

from plamo2_jax.cli.arguments import call
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require_at_least

_USAGE = """usage: plamo2 plan CONFIG.py --topology SLICE [options] [--field value] ...
       plamo2 plan kernel ssd --topology SLICE --preset MODEL [options]

Compile for a TPU slice on a machine without a TPU, and print the cycles, bytes and memory that the compiler reports. These are the
compiler's estimates, not measured times. Needs the extra plan: pip install '.[plan]'

  CONFIG.py     a train step, prefill or decoding step: HBM per chip, collectives, predicted time and upper bound on MFU
                                                              (options: plamo2 plan CONFIG.py --help)
  kernel ssd    the selective scan at the shape of a preset   (options: plamo2 plan kernel ssd --help)"""


@dataclasses.dataclass(frozen=True)
class SsdOptions:
    """Compile the selective scan for one device of a TPU slice and print its cost.

    Compiles the scan with the shape of a model's layer, forward only and with the gradients of all inputs. Prints a table with a row for
    each implementation, chunk size, direction and choice of layouts, and explains the columns. Nothing is measured: the cycles come from
    the compiler's schedule and do not include memory stalls.
    """

    topology: str
    """TPU slice to compile for, such as v5e:2x2, v5p:2x2x1, v6e:2x2 or tpu7x:2x2x1, or its accelerator type, such as v5p-8."""
    preset: str = "plamo-2-8b"
    """Preset of the model whose layer is compiled."""
    implementation: tuple[Literal["xla", "pallas_tpu"], ...] = ("xla", "pallas_tpu")
    """Implementations of the scan."""
    chunk: tuple[int, ...] = ()
    """Tokens per chunk. Give several to compare them. Default: the implementation's default on TPU."""
    direction: tuple[Literal["forward", "forward+backward"], ...] = ("forward", "forward+backward")
    """Programs to compile: the forward scan only, or also its gradient."""
    layouts: tuple[Literal["default", "auto"], ...] = ("default", "auto")
    """Layouts of arguments and results. default: the default layout of arrays. auto: the compiler chooses, as inside a model."""
    tokens: int = 8192
    """Number of tokens per row."""
    batch: int = 1
    """Number of rows."""
    segments: bool = True
    """Compile for rows with several documents (segment ids)."""
    initial_state: bool = False
    """Compile a scan that starts from a given state."""
    breakdown: bool = False
    """Print the cycles of each operation."""
    output: Path | None = None
    """JSON file for all results."""


def ssd(options: SsdOptions) -> None:
    """Compile the selective scan for one device of a TPU slice and print its cost."""
    from plamo2_jax.checkpoint import write_json
    from plamo2_jax.cli.plan_slice import slice_name
    from plamo2_jax.config import PRESETS
    from plamo2_jax.plan.compiler import libtpu_version, unverified
    from plamo2_jax.plan.schedule import table
    from plamo2_jax.plan.schedule.kernel_plan import SsdRequest, compile_ssd
    from plamo2_jax.plan.schedule.ssd import SsdProgram
    from plamo2_jax.plan.worker import Worker
    from plamo2_jax.progress import tqdm

    if options.preset not in PRESETS:
        raise PlamoError(f"--preset {options.preset} is not allowed: it must be one of {', '.join(PRESETS)}")
    topology = slice_name(options.topology)
    require_at_least(1, tokens=options.tokens, batch=options.batch, chunk=min(options.chunk, default=None))
    if options.output is not None and not options.output.parent.is_dir():
        raise PlamoError(
            f"--output {options.output}: the folder {options.output.parent} does not exist. Create it, or choose "
            "another file"
        )
    shape = (options.tokens, options.batch, options.segments, options.initial_state)
    programs = [
        (SsdProgram(options.preset, name, size, direction, *shape), layout)
        for name, size, direction, layout in itertools.product(
            options.implementation, options.chunk or (None,), options.direction, options.layouts
        )
    ]
    libtpu = libtpu_version()
    if warning := unverified(libtpu):
        print(f"plamo2 plan: warning: {warning}", file=sys.stderr)
    with Worker() as worker, tqdm(programs, desc="compile", unit="program", delay=1) as bar:
        plans = [worker.call(compile_ssd, SsdRequest(topology, program, layout)) for program, layout in bar]
    print(
        f"Compiler estimates (libtpu {libtpu}, {topology}), not measured times; ssd of "
        f"{options.preset}, {options.batch}×{options.tokens} tokens."
    )
    if warning:
        print(f"Warning: {warning}.")
    if compiled := [plan for plan in plans if plan.cost]:
        print(table.describe_chip(compiled[0].cost.chip))
    print("\n" + table.table(plans) + "\n\n" + "\n".join(table.legend()))
    for plan in plans:
        program = plan.program
        lines = [*table.kernels(plan), *(table.breakdown(plan) if options.breakdown else ())]
        if lines:
            print(
                f"\n{program.implementation}, chunk {table.chunk(program)}, {program.direction}, layouts {plan.layouts}"
            )
            print("\n".join(f"  {line}" for line in lines))
    if options.output is not None:
        header = {"source": "compiler estimates, not measured times", "libtpu": libtpu, "topology": topology}
        write_json(options.output, {**header, "programs": [table.to_json(plan) for plan in plans]})
        print(f"\n{options.output}: {len(plans)} programs", file=sys.stderr)


def main(argv: list[str]) -> int | None:
    """Run `plamo2 plan CONFIG.py` or `plamo2 plan kernel ssd`."""
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
    raise PlamoError(
        f"unknown plan {' '.join(words)!r}: it must be kernel ssd, or a config file such as configs/pretrain_8b.py"
    )
