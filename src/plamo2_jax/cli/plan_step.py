"""`plamo2 plan CONFIG.py`: predict memory and time of a run on a TPU slice you do not have."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require_at_least

if TYPE_CHECKING:
    from plamo2_jax.plan.request import Request

_DESCRIPTION = """Compile a run's train step for a TPU slice on a machine without a TPU, and print its memory and predicted time.

usage: plamo2 plan CONFIG.py --topology SLICE [options] [--field value] [--part.field value] ...

Prints the HBM per chip by kind, collectives, the compiler's cycle counts, and the step time and the bound on MFU predicted from them.
Nothing is measured, and no data are needed. If the step does not fit into HBM, prints how many bytes are missing and the smallest change
that makes it fit. CONFIG.py is a config of plamo2 pretrain, sft or dpo, and any of its fields can be replaced on the command line. For
distillation, the shape of the teacher is read from its folder. Needs the extra plan: pip install '.[plan]'"""


@dataclasses.dataclass(frozen=True)
class Options:
    """The program to compile, and the devices."""

    topology: str | None = None
    """TPU slice, such as v5e:4x4, v5p:4x4x4, v6e:16x16 or tpu7x:4x4x4, or its accelerator type, such as v5litepod-16 or v5p-128. With
    --mesh.slices above 1, each slice has this shape."""
    gpu: str | None = None
    """Node of GPUs, such as h100x8, instead of a TPU slice. Prints only the argument bytes on each GPU, because the GPU compiler is not
    run."""
    implementation: Literal["pallas", "xla"] = "pallas"
    """Implementation of scan and attention in the train step: Pallas kernels for TPU, or XLA operations."""
    prefill: int | None = None
    """Plan a prefill with this many tokens per row instead of the train step."""
    decode: int | None = None
    """Plan a decoding step with this many tokens in the cache instead of the train step."""
    rows: int | None = None
    """Rows per replica of the model in prefill and decode. Default: 8."""
    sweep: bool = False
    """Compare meshes, micro-batches, remat policies and loss chunks, and print the options of the best candidate."""
    points: int | None = None
    """With --sweep: number of candidates to compile. Default: 16."""
    complete: int | None = None
    """With --sweep: number of best candidates to compile completely, which takes minutes each. Default: 1."""
    minutes: float | None = None
    """With --sweep: time after which no new compilation starts, in minutes."""
    journal: Path | None = None
    """With --sweep: folder for finished compilations, from which the same command resumes. Default: runs/plans/NAME-SLICE."""
    search: bool = True
    """If the train step does not fit into HBM, search for the smallest change that makes it fit."""
    longest: bool = False
    """Print the operations with the most predicted time."""
    json: Path | None = None
    """JSON file for all results."""


def main(argv: Sequence[str]) -> int:
    """Run the command; return 1 if the program does not fit or does not compile."""
    from plamo2_jax.cli.plan_slice import slice_name
    from plamo2_jax.cli.run_options import parse_config
    from plamo2_jax.config_file import load_config
    from plamo2_jax.plan.request import Request
    from plamo2_jax.train.config import RunConfig

    path, *rest = argv
    prog = f"plamo2 plan {path}"
    if {"-h", "--help"} & set(rest):
        print(_DESCRIPTION + "\n")
        tyro.cli(Options, prog=prog, args=["--help"])
    options, fields = tyro.cli(Options, prog=prog, args=rest, return_unknown_args=True)
    config = parse_config(load_config(Path(path), RunConfig), fields, prog)
    if (options.topology is None) == (options.gpu is None):
        raise PlamoError("plamo2 plan needs either --topology SLICE, such as v5p:4x4x4, or --gpu NODE, such as h100x8")
    _refuse_unused(options)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise PlamoError(
            f"--json {options.json}: the folder {options.json.parent} does not exist. Create it, or choose another file"
        )
    if options.gpu is not None:
        return _gpus(options, Request(config, "", gpus=_gpu_count(options.gpu)))
    context = options.prefill or options.decode or config.data.sequence_length
    kind = "prefill" if options.prefill else "decode" if options.decode else "train"
    request = Request(config, slice_name(options.topology), kind, options.implementation, options.rows or 8, context)
    return _sweep(options, request) if options.sweep else _one(options, request)


def _refuse_unused(options: Options) -> None:
    """Refuse values out of range, and options that the chosen plan ignores."""
    if options.prefill is not None and options.decode is not None:
        raise PlamoError("--prefill and --decode cannot be combined: give only one of them")
    require_at_least(1, prefill=options.prefill, decode=options.decode, rows=options.rows)
    serving = bool(options.prefill or options.decode)
    if options.rows is not None and not serving:
        raise PlamoError("--rows is not allowed without --prefill or --decode: a train step has data.batch_size rows")
    if options.sweep and serving:
        raise PlamoError("--sweep is not allowed with --prefill or --decode: a sweep compares train steps")
    require_at_least(1, points=options.points)
    require_at_least(0, complete=options.complete)
    if options.minutes is not None and not options.minutes > 0:
        raise PlamoError(f"--minutes {options.minutes} is not allowed: it must be positive")
    for name in ("points", "complete", "minutes", "journal"):
        if getattr(options, name) is not None and not options.sweep:
            raise PlamoError(f"--{name} is not allowed without --sweep: add --sweep")
    if options.sweep and options.longest:
        raise PlamoError("--longest is not allowed with --sweep: plan one candidate of the sweep without --sweep")
    if options.gpu is not None and (serving or options.sweep or options.longest):
        raise PlamoError(
            "--prefill, --decode, --sweep and --longest are not allowed with --gpu: the GPU compiler is not "
            "run, so only the argument bytes of the train step are known"
        )


def _warn_if_unverified() -> None:
    from plamo2_jax.plan.compiler import libtpu_version, unverified

    if warning := unverified(libtpu_version()):
        print(f"plamo2 plan: warning: {warning}", file=sys.stderr)


def _one(options: Options, request: Request) -> int:
    from plamo2_jax.plan import report
    from plamo2_jax.plan.request import not_counted
    from plamo2_jax.plan.steps import nearest_fit, plan

    _warn_if_unverified()
    step = f"{request.kind} step of {request.config.name}"
    print(f"compiling the {step} for {request.topology}, which takes minutes for a large model", file=sys.stderr)
    found = plan(request)
    print(f"{step} on {request.topology}")
    print("\n".join(report.lines(found)))
    if request.kind == "train" and found.fits:
        print(report.run_time(request.config.steps, found))
    if request.kind == "train" and (others := not_counted(request.config)):
        print(f"not included: programs for {' and '.join(others)}, which run between train steps")
    if options.longest:
        print("\n" + "\n".join(report.operations(found)))
    data = {"topology": request.topology, "kind": request.kind, "plan": report.to_json(found)}
    if not found.fits and found.error is None and request.kind == "train" and options.search:
        nearest = nearest_fit(request, found.devices)
        if nearest is None:
            print("no change of remat, micro-batches or mesh makes it fit")
        else:
            made, _, fitting = nearest
            print(f"the smallest change that fits: {' '.join(made)}\n  {report.summary(fitting)}")
            data["nearest"] = {"changes": made, "plan": report.to_json(fitting)}
    _write(options, data)
    return 0 if found.fits else 1


def _sweep(options: Options, request: Request) -> int:
    from plamo2_jax.cli.plan_sweep import sweep

    code, data = sweep(request, options.points, options.complete, options.minutes, options.journal)
    _write(options, data)
    return code


def _gpus(options: Options, request: Request) -> int:
    from plamo2_jax.plan.report import gib
    from plamo2_jax.plan.steps import gpu_argument_bytes

    found = gpu_argument_bytes(request)
    print(
        f"train step of {request.config.name} on {options.gpu}, argument bytes on each GPU, computed from the "
        "shardings:"
    )
    for kind, size in found.items():
        print(f"  {kind:<12}{gib(size):>12}")
    print("Temporaries and activations are not known, because they depend on the GPU compiler.")
    _write(options, {"gpu": options.gpu, "arguments": found})
    return 0


def _gpu_count(node: str) -> int:
    match = re.fullmatch(r"[a-z]+\d*x(\d+)", node)
    if not match or int(match[1]) < 1:
        raise PlamoError(f"--gpu {node} is not allowed: it must be a kind and a number of GPUs, such as h100x8")
    return int(match[1])


def _write(options: Options, data: dict) -> None:
    if options.json is None:
        return
    from plamo2_jax.checkpoint import write_json

    write_json(options.json, data)
    print(options.json, file=sys.stderr)
