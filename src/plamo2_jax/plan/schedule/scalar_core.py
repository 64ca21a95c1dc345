"""Run the scalar core of a schedule to count how often each of its bundles runs.

Grid steps, `fori_loop`s and `pl.when`s of a Pallas kernel are branches on scalar values that follow from constants. So the count is exact.
It includes the extra work of the first and last grid steps, and the prologue and epilogue of the pipeline. If a forward branch depends on
data (a value from memory or from the vector units), the code behind it is counted, and the result reports the branch. The caller can choose
that such code is skipped.

A bundle is one cycle. Memory stalls are not included: a wait is one bundle, however long it takes.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import statistics
from collections.abc import Callable

from plamo2_jax.errors import PlamoError
from plamo2_jax.plan.schedule.bundles import Instruction, Predicate, Program

_MASK = 0xFFFFFFFF
_LIMIT = 400_000_000
# The schedule gives transfer sizes in units of this many bytes.
_GRANULE = 32


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


_ARITHMETIC: dict[str, Callable[..., int]] = {
    "smov": lambda a: a,
    "pmov": lambda a: a,
    "int_to_ptr": lambda a: a,
    "sadd": operator.add,
    "ssub": operator.sub,
    "smul": operator.mul,
    "sshll": lambda a, b: a << min(b, 32),
    "sshrl": lambda a, b: a >> min(b, 32),
    "sshra": lambda a, b: _signed(a) >> min(b, 31),
    "sand": operator.and_,
    "sor": operator.or_,
    "sxor": operator.xor,
    "scalar_select": lambda p, a, b: a if p else b,
    "por": lambda a, b: a or b,
    "pand": lambda a, b: a and b,
    "pnand": lambda a, b: not (a and b),
    "pnor": lambda a, b: not (a or b),
    "pxor": lambda a, b: bool(a) != bool(b),
    "pneg": lambda a: not a,
}
_ORDERED = {"smin": min, "smax": max}
_RELATIONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
# The result is known if one operand has the first value, even if the other operand is not known.
_SHORT_CIRCUIT = {"por": (True, True), "pand": (False, False), "pnand": (False, True), "pnor": (True, False)}


@dataclasses.dataclass(frozen=True)
class Execution:
    """The counts of one run of a schedule."""

    counts: tuple[int, ...]
    """Number of times that each bundle ran."""
    rounds: tuple[int, ...]
    """Bundles of each iteration but the first of the longest loop. In a Pallas kernel this is the loop over grid steps."""
    assumed: int
    """Number of branches that depend on data."""
    hbm_bytes: int
    """Bytes of the transfers between HBM and VMEM that it starts. Transfers whose size depends on data are not included."""
    matmul_rows: int
    """Rows pushed through the matrix units, all units together."""

    @property
    def cycles(self) -> int:
        """Number of bundles that ran."""
        return sum(self.counts)

    @property
    def step(self) -> float:
        """Bundles of a grid step in the steady state: the median iteration."""
        return statistics.median(self.rounds) if self.rounds else self.cycles


def run_schedule(program: Program, core: int = 0, *, skip: bool = False) -> Execution:
    """Run a program on one core of the chip. The cores share the work of a "parallel" grid axis.

    Args:
        skip: Whether branches that depend on data skip the code behind them.

    Raises:
        PlamoError: the trip count of a loop depends on data, or the program does not end.
    """
    return _Machine(program, core, skip).run()


class _Machine:
    def __init__(self, program: Program, core: int, skip: bool) -> None:
        self.program, self.core, self.skip = program, core, skip
        self.values: dict[str, int | None] = {}
        self.registers: dict[str, int | None] = {}
        self.memory: dict[str, int | None] = {}
        self.assumed: set[int] = set()
        self.cycles = 0
        # Number of straight runs of bundles that begin at an index, minus the number of runs that end just before it.
        self.edges = [0] * (program.length + 1)
        self.heads: dict[int, list[int]] = {}
        self.hbm_bytes = 0

    def run(self) -> Execution:
        points = sorted(self.program.scalar)
        following = dict(itertools.pairwise(points))
        # The first point at or after the start of the program and of each region.
        first = {i: next((p for p in points if p >= i), None) for i in (0, *self.program.regions.values())}
        start, point, jump = 0, first[0], None
        while True:
            # A jump takes effect after its delay slots. A second branch inside them is ignored.
            if jump is not None and (point is None or point > jump[0]):
                end, target = jump
                self._ran(start, end)
                if target <= end:
                    self.heads.setdefault(target, []).append(self.cycles)
                start, point, jump = target, first[target], None
                continue
            if point is None:
                break
            for instruction in self.program.scalar[point]:
                if instruction.op == "sbr":
                    if jump is None and self._taken(point, instruction):
                        jump = point + self.program.delay_slots, self.program.regions[instruction.target]
                else:
                    self._execute(instruction)
            point = following.get(point)
            if self.cycles > _LIMIT:
                raise PlamoError(f"a schedule was stopped after {_LIMIT:,} bundles: it probably does not end")
        self._ran(start, self.program.length - 1)
        counts = tuple(itertools.accumulate(self.edges[:-1]))
        rows = sum(counts[index] * rows for index, rows in self.program.matmul_rows.items())
        return Execution(counts, self._rounds(), len(self.assumed), self.hbm_bytes, rows)

    def _ran(self, start: int, end: int) -> None:
        self.cycles += end - start + 1
        self.edges[start] += 1
        self.edges[end + 1] -= 1

    def _rounds(self) -> tuple[int, ...]:
        """Return the bundles of each iteration of the loop that spans most of the run."""
        times = max(self.heads.values(), key=lambda times: times[-1] - times[0], default=[])
        return tuple(b - a for a, b in itertools.pairwise(times))

    def _value(self, operand: str) -> int | None:
        if operand in self.values:
            return self.values[operand]
        try:
            return int(operand, 0) & _MASK
        except ValueError:
            return None

    def _holds(self, predicate: Predicate | None) -> bool | None:
        if predicate is None:
            return True
        value = self._value(predicate.name)
        return None if value is None else bool(value) != predicate.negated

    def _taken(self, index: int, branch: Instruction) -> bool:
        holds = self._holds(branch.predicate)
        if holds is not None:
            return holds
        if self.program.regions[branch.target] <= index:
            raise PlamoError("the trip count of a loop depends on data; its cycles cannot be counted")
        self.assumed.add(index)
        return self.skip

    def _execute(self, instruction: Instruction) -> None:
        holds = self._holds(instruction.predicate)
        if instruction.op == "dma":
            if holds is not False:
                self.hbm_bytes += _GRANULE * (self._value(instruction.operands[0]) or 0)
            return
        if instruction.op == "sst":
            slot, value = instruction.operands[0], instruction.operands[-1]
            if holds is not False:
                self.memory[slot] = self._value(value) if holds else None
            return
        register = instruction.register
        if holds is False:
            otherwise = instruction.predicate.otherwise
            result = self.registers.get(register) if otherwise is None else self._value(otherwise)
        else:
            result = self._result(instruction) if holds else None
        self.values[instruction.name] = self.registers[register] = result

    def _result(self, instruction: Instruction) -> int | None:
        op = instruction.op
        if op == "sphi":
            # Its operands were written to its register; the last one written is the value.
            return self.registers.get(instruction.register)
        if op == "core_id":
            return self.core
        if op == "sld":
            return self.memory.get(instruction.operands[0])
        operands = [self._value(operand) for operand in instruction.operands]
        if op == "scmp":
            relation, type_ = instruction.kind.split(".")[:2]
            if None in operands or relation not in _RELATIONS:
                return None
            return _RELATIONS[relation](*(map(_signed, operands) if type_ == "s32" else operands))
        if op in _SHORT_CIRCUIT and _SHORT_CIRCUIT[op][0] in [bool(v) for v in operands if v is not None]:
            return _SHORT_CIRCUIT[op][1]
        if op == "scalar_select" and operands[0] is not None:
            return operands[1] if operands[0] else operands[2]
        if None in operands:
            return None
        if op in _ORDERED:
            return _ORDERED[op](operands, key=_signed if instruction.kind == "s32" else None)
        if op in _ARITHMETIC:
            result = _ARITHMETIC[op](*operands)
            return result if isinstance(result, bool) else result & _MASK
        return None
