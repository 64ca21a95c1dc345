"""Time per token of the Triton scan of the package mamba_ssm, on the inputs of scan.py.

    python experiments/gpu/mamba_ssm_scan.py --output mamba_ssm.json

Needs torch with CUDA, triton, einops and mamba_ssm. Only the Triton files of mamba_ssm are imported: the package's own `__init__` needs its
CUDA extension, which a pure wheel does not have. Each function is measured as users call it, and as a CUDA graph, which leaves out the
time that Python takes to start the kernels.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from part import Record, command, parse, take_turns
from shapes import TIMED, TIMED_IN_A_DRY_RUN, Shape, scan_flops, scan_inputs

IN_BFLOAT16 = ("x", "B", "C", "dy")
# 256 is the default of its Mamba-2 layer and of PLaMo 2.
CHUNKS = (256, 128)
CHECKED_TOKENS = 256


def load() -> Callable[..., Any]:
    """Return `mamba_chunk_scan_combined`.

    Raises:
        ImportError: torch or mamba_ssm is not installed.
    """
    for name in ("torch", "triton", "einops"):
        importlib.import_module(name)
    found = importlib.util.find_spec("mamba_ssm")
    if found is None or not found.submodule_search_locations:
        raise ImportError("No module named 'mamba_ssm'")
    package = types.ModuleType("mamba_ssm")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["mamba_ssm"] = package
    return importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined


def recurrence(inputs: dict[str, np.ndarray], tokens: int) -> np.ndarray:
    """Return y of the first tokens in float64, token by token: [b, tokens, h, p]."""
    x, dt, A, B, C, D = (inputs[name].astype(np.float64) for name in ("x", "dt", "A", "B", "C", "D"))
    state, rows = 0.0, []
    for i in range(tokens):
        decay = np.exp(dt[:, i] * A)[..., None, None]
        state = decay * state + np.einsum("bh,bhp,bn->bhpn", dt[:, i], x[:, i], B[:, i, 0])
        rows.append(np.einsum("bhpn,bn->bhp", state, C[:, i, 0]) + D[:, None] * x[:, i])
    return np.stack(rows, 1)


def as_graph(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that replays `run` as a CUDA graph. `run` must have run before."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def functions(scan: Callable[..., Any], inputs: dict[str, Any], chunk: int) -> dict[str, Callable[[], Any]]:
    """Return forward and both for tensors on the device. Both returns y and the gradients of x, dt, A, B, C and D."""
    import torch

    *arrays, dy = inputs.values()

    def forward():
        with torch.no_grad():
            x, dt, A, B, C, D = arrays
            return scan(x, dt, A, B, C, chunk, D=D)

    leaves = [each.detach().requires_grad_() for each in arrays]

    def both():
        x, dt, A, B, C, D = leaves
        y = scan(x, dt, A, B, C, chunk, D=D)
        return (y.detach(), *torch.autograd.grad(y, leaves, dy))

    return {"forward": forward, "both": both}


def measure(record: Record, scan: Callable[..., Any], name: str, shape: Shape, warm_up: bool) -> None:
    """Check and measure at a shape. `warm_up` only runs each function once, which compiles the kernels into Triton's cache."""
    import torch

    arrays = scan_inputs(shape)
    inputs = {
        k: torch.from_numpy(a).cuda().to(torch.bfloat16 if k in IN_BFLOAT16 else torch.float32)
        for k, a in arrays.items()
    }
    rounded = {k: each.float().cpu().numpy() for k, each in inputs.items()}
    expected = None if warm_up else recurrence(rounded, CHECKED_TOKENS)
    runs, errors, tokens = {}, {}, shape.b * shape.t
    for chunk in CHUNKS:
        made = functions(scan, inputs, chunk)
        y = made["both"]()[0]
        made["forward"]()
        torch.cuda.synchronize()
        if warm_up:
            continue
        y = y[:, :CHECKED_TOKENS].float().cpu().numpy()
        errors[chunk] = float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
        for kind, run in made.items():
            runs[chunk, kind, "called"] = run
            try:
                runs[chunk, kind, "graph"] = as_graph(run)
            except RuntimeError as reason:
                record.add(shape=name, chunk=chunk, kind=kind, mode="graph", failed=str(reason)[:400])
    if warm_up:
        return
    seconds = take_turns(runs, lambda _: torch.cuda.synchronize(), 9)
    for (chunk, kind, mode), figures in seconds.items():
        passes = 1 if kind == "forward" else 3
        record.add(
            shape=name,
            sizes=shape._asdict(),
            implementation="mamba_ssm",
            chunk=chunk,
            kind=kind,
            mode=mode,
            seconds=figures,
            nanoseconds_per_token=float(f"{1e9 * figures['median'] / tokens:.4g}"),
            teraflops=float(f"{passes * scan_flops(shape, chunk) / figures['median'] / 1e12:.4g}"),
            error_of_y=float(f"{errors[chunk]:.2e}"),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or say in one sentence why this is not possible."""
    warm_up = {"action": "store_true", "help": "only compile the kernels into Triton's cache"}
    options = parse(__doc__, argv, warm_up=warm_up)
    try:
        scan = load()
        import torch
    except ImportError as missing:
        Record(options.output, command(__file__, options), options.dry_run, None).skip(
            f"The scan of mamba_ssm was not measured ({missing}): it needs torch with CUDA, and the wheel of mamba_ssm in --wheels."
        )
        return 0
    if not torch.cuda.is_available():
        Record(options.output, command(__file__, options), options.dry_run, None).skip(
            "The scan of mamba_ssm was not measured: torch sees no CUDA GPU."
        )
        return 0
    device = torch.cuda.get_device_name()
    record = Record(options.output, command(__file__, options), options.dry_run, device)
    for name, shape in (TIMED_IN_A_DRY_RUN if options.dry_run else TIMED).items():
        measure(record, scan, name, shape, options.warm_up)
    record.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
