"""From cycles and bytes to a step time: a prediction by roofline, not a measurement."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from plamo2_jax.plan.chips import Chip
from plamo2_jax.plan.collectives import Collective
from plamo2_jax.plan.cost import Operation

PHASES = ("forward", "recomputed", "backward", "update")

# First match counts: where in the model an operation comes from, by the names that modules and kernels leave in the program.
_PARTS = (
    (r"splash", "attention kernels (splash)"),
    (r"\bssd_\w+", "scan kernels (ssd)"),
    (r"causal_conv1d", "convolution"),
    (r"logits|log_softmax|predict|cross_entropy", "logits and loss"),
    (r"features/(gather|scatter|take|sort)|embedding", "embedding"),
    (r"/mlp/.*dot_general", "MLP products"),
    (r"/mixer/.*(dot_general|->)", "mixer products"),
    (r"/mlp/", "MLP, element by element"),
    (r"norm\b", "norms"),
    (r"/mixer/", "mixer, element by element"),
)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step on one chip."""

    compute: float
    """The compiler's cycles over the clock: its estimates, which wait for HBM, and the schedules of Pallas kernels."""
    hbm: float
    """Bytes moved to and from HBM over its bandwidth."""
    ici: float
    """Bytes on the links between chips over their bandwidth."""
    dcn: float
    """Bytes between slices over the data centre's network."""
    waiting: float
    """Of both, in collectives that nothing is computed beside."""
    serial: float
    """Nothing overlaps: every operation waits for its bytes, and everything waits for every collective."""

    @property
    def bound(self) -> float:
        """All overlap: what is busy longest decides. The prediction."""
        return max(self.compute, self.hbm, self.ici, self.dcn)

    @property
    def limit(self) -> str:
        """What decides."""
        return max(("compute", "hbm", "ici", "dcn"), key=lambda name: getattr(self, name))


def times(operations: Iterable[Operation], moved: Sequence[Collective], chip: Chip) -> Times:
    """The times of a program.

    Args:
        operations: what the chip computes, collectives left out.
        moved: its collectives.
        chip: where.
    """
    compute = hbm = slower = 0.0
    for o in operations:
        seconds, moving = operation_seconds(o, chip)
        compute += seconds
        hbm += moving
        slower += max(seconds, moving)
    ici = sum(c.times * c.seconds for c in moved if c.links)
    dcn = sum(c.times * c.seconds for c in moved if not c.links)
    waiting = sum(c.times * c.seconds for c in moved if not c.asynchronous)
    return Times(compute, hbm, ici, dcn, waiting, slower + ici + dcn)


def operation_seconds(operation: Operation, chip: Chip) -> tuple[float, float]:
    """All executions of an operation: by its cycles, and by its bytes."""
    o = operation
    cycles = max(o.cycles, o.mxu_cycles if o.kind == "kernel" else 0.0)
    return o.times * cycles / chip.clock, o.times * o.hbm_bytes / chip.hbm_bytes_per_second


def utilization(flops: float, seconds: float, devices: int, chip: Chip) -> float:
    """Model FLOPs utilization (PaLM, arXiv:2204.02311, appendix B)."""
    return flops / (seconds * devices * chip.peak_flops)


def phase(operation: Operation) -> str:
    """Which part of a step an operation belongs to."""
    op_name = operation.op_name
    if "rematted_computation" in op_name:
        return "recomputed"
    # The compiler loses where the kernels of a gradient come from, but not their names.
    if "transpose(" in op_name or re.search(r"_(dkv|dq|backward)_?", operation.name):
        return "backward"
    if operation.kind == "kernel" and not op_name:
        return "forward"
    return "forward" if "jvp(" in op_name or "Plamo2" in op_name else "update"


def part(operation: Operation) -> str:
    """Which part of the model an operation belongs to."""
    if operation.kind == "copy":
        return "copies and changes of layout"
    for pattern, name in _PARTS:
        if re.search(pattern, f"{operation.op_name} {operation.name}"):
            return name
    if not operation.op_name or phase(operation) != "update":
        return "other"
    return "optimizer and sums of gradients"


def by_part(operations: Iterable[Operation], chip: Chip) -> dict[str, dict[str, float]]:
    """Seconds by part of the model and phase, the largest part first."""
    sums: dict[str, dict[str, float]] = {}
    for o in operations:
        row = sums.setdefault(part(o), dict.fromkeys(PHASES, 0.0))
        row[phase(o)] += max(operation_seconds(o, chip))
    return dict(sorted(sums.items(), key=lambda item: -sum(item[1].values())))
