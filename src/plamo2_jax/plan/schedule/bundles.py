"""Read the VLIW schedule that libtpu writes: `*-final_bundles.txt`, one bundle a line, one bundle a cycle.

The text lists a bundle once, however often it runs. What decides how often, the scalar instructions and the branches, is in it too, so it
is parsed into a program of the scalar core, which `scalar_core.py` then runs.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator

_BUNDLE = re.compile(r"^ *(0x[0-9a-f]+|0) +(?:[A-Z]{2})? *:", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# libtpu 0.0.42 writes /* core id */, 0.0.50 joins several notes: /* megacore core id :: core id */.
_CORE_ID = re.compile(r"/\*[^*]*\bcore id\b[^*]*\*/")
_STARTS = re.compile(r"Start(?:/End empty)? region (\d+)")
_ENDS = re.compile(r"End (?:empty )?region \d+")
_STATEMENT = re.compile(r"%(\w+) = ([\w.]+)(.*)", re.DOTALL)
_PREDICATE = re.compile(r"\((!?)%(\w+)(?:, ([^)]*))?\)")
_SLOT = re.compile(r"\[smem:\[([^\]]*)\]\]")
_HINT = re.compile(r"\[resolvable:[^\]]*\]|[{}]")
_MATMUL = re.compile(r"= vmatmul\.(?:mubr\.)?([a-z]+)(\d+)")
_MOST_SLOTS = 8
# A vector register has 8 rows of 32 bits, and as many rows of a narrower type as fit.
_REGISTER_BITS = 8 * 32


@dataclasses.dataclass(frozen=True)
class Predicate:
    """What an instruction waits for."""

    name: str
    negated: bool
    otherwise: str | None = None
    """Operand that is the result where the predicate does not hold; None: the old value stays."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of the scalar core. Values have names, unique in the program; a name ends in the register that holds it."""

    op: str
    """Mnemonic up to its first dot."""
    kind: str
    """The dotted rest: types, and the relation of a comparison."""
    name: str | None
    operands: tuple[str, ...] = ()
    predicate: Predicate | None = None
    target: int | None = None
    """Region a branch goes to."""

    @functools.cached_property
    def register(self) -> str:
        """Where the result lies; values joined by a phi share their register."""
        return self.name.rpartition("_")[2]

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of values, and the slot of a load."""
        names = self.operands[1:] if self.op == "sst" else self.operands
        predicate = (self.predicate.name, self.predicate.otherwise or "") if self.predicate else ()
        return (*names, *predicate)


@dataclasses.dataclass(frozen=True)
class Program:
    """The schedule of one operation."""

    length: int
    """Bundles in the text."""
    scalar: dict[int, tuple[Instruction, ...]]
    """Instructions of the scalar core of those bundles that have any, phis first and definitions before uses."""
    matmul_rows: dict[int, int]
    """Rows that those bundles with matrix products push through matrix units."""
    regions: dict[int, int]
    """First bundle of each region, which branches name."""
    delay_slots: int
    """Bundles that still run after a branch, taken or not."""


def parse_schedule(text: str) -> Program:
    """The program of a `*-final_bundles.txt` file."""
    scalar: dict[int, tuple[Instruction, ...]] = {}
    regions: dict[int, int] = {}
    ends: set[int] = set()
    branches: list[tuple[int, int]] = []
    rows: dict[int, int] = {}
    for index, bundle in enumerate(_bundles(text)):
        for number in _STARTS.findall(bundle):
            regions[int(number)] = index
        if _ENDS.search(bundle):
            ends.add(index)
        statements = _statements(bundle)
        instructions = _in_order([i for i in map(_instruction, statements) if i is not None])
        matmuls = [match for match in map(_MATMUL.search, statements) if match]
        if matmuls:
            rows[index] = sum(_REGISTER_BITS // int(match[2]) for match in matmuls)
        if instructions:
            scalar[index] = instructions
        branches += [(index, i.target) for i in instructions if i.target is not None]
    scalar = _that_matter(scalar)
    # The region behind the last bundle that does anything is not marked.
    for _, target in branches:
        regions.setdefault(target, index)
    return Program(index + 1, scalar, rows, regions, _delay_slots([index for index, _ in branches], ends))


def _bundles(text: str) -> Iterator[str]:
    starts = [match.end() for match in _BUNDLE.finditer(text)]
    if not starts:
        raise ValueError("not a schedule: it has no bundles")
    yield from (text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True))


def _statements(bundle: str) -> list[str]:
    # A comment may say what a load reads, the only place where it can be seen.
    return _COMMENT.sub("", _CORE_ID.sub(" core_id", bundle)).split(";;")


def _instruction(statement: str) -> Instruction | None:
    """The statement, if it branches, may matter to a branch or moves data between HBM and VMEM; else None."""
    match = _STATEMENT.search(statement)
    if not match:
        return None
    name, mnemonic, rest = match.groups()
    op, _, kind = mnemonic.partition(".")
    named = name if re.search(r"_[sp]\d+$", name) else None
    copies = op == "dma" and ("hbm" in kind or kind == "general")
    if named is None and op not in ("sbr", "sst") and not copies:
        return None
    slot = _SLOT.search(rest)
    rest = (rest.replace(slot[0], "") if slot else rest).strip().removeprefix("[thread:$0]").lstrip()
    predicate = None
    if found := _PREDICATE.match(rest):
        negated, condition, otherwise = found.groups()
        predicate = Predicate(condition, negated == "!", otherwise and otherwise.lstrip("%"))
        rest = rest[found.end() :].lstrip(" ,")
    if op == "sbr":
        target = re.search(r"target = \$region(\d+)", rest)
        return Instruction(op, kind, None, (), predicate, int(target[1]) if target else None)
    if copies:
        # Operands: source, size, target, ...
        return Instruction(op, kind, None, (rest.split(",")[1].strip().lstrip("%"),), predicate)
    if slot:
        # A load's only operand is its slot; a store has the value behind it.
        op = "core_id" if op == "sld" and "core_id" in rest else op
        return Instruction(op, kind, named, (slot[1], *re.findall(r"%(\w+)", rest)[:1]), predicate)
    operands = [part.strip().split(" ")[0].lstrip("%") for part in _HINT.sub("", rest).split(",")]
    return Instruction(op, kind, named, tuple(filter(None, operands)), predicate)


def _in_order(instructions: list[Instruction]) -> tuple[Instruction, ...]:
    """Phis first. A pseudo-instruction may read what another one of its bundle writes: it comes after that one."""
    left = sorted(instructions, key=lambda i: i.op != "sphi")
    ordered = []
    while left:
        pending = {i.name for i in left if i.op != "sphi"}
        ready = next((i for i in left if i.op == "sphi" or not pending & set(i.operands) - {i.name}), left[0])
        left.remove(ready)
        ordered.append(ready)
    return tuple(ordered)


def _that_matter(scalar: dict[int, tuple[Instruction, ...]]) -> dict[int, tuple[Instruction, ...]]:
    """Branches and transfers, and what decides whether and how they run; addresses and bounds checks are most of a kernel's scalar code."""
    writers = collections.defaultdict(list)
    for instruction in (i for instructions in scalar.values() for i in instructions):
        # A store writes to the slot that a load names.
        writers[instruction.operands[0] if instruction.op == "sst" else instruction.name].append(instruction)
    wanted: set[str] = set()
    found = writers[None]
    while found:
        reads = {name for i in found for name in i.reads} - wanted
        wanted |= reads
        found = [i for name in reads for i in writers.get(name, ())]

    def matters(instruction: Instruction) -> bool:
        return (
            instruction.name in wanted
            if instruction.name
            else instruction.op != "sst" or instruction.operands[0] in wanted
        )

    kept = {index: tuple(filter(matters, instructions)) for index, instructions in scalar.items()}
    return {index: instructions for index, instructions in kept.items() if instructions}


def _delay_slots(branches: Iterable[int], ends: set[int]) -> int:
    """The distance at which some region ends behind most branches: a branch's region ends with its last slot."""
    votes = collections.Counter(d for index in branches for d in range(1, _MOST_SLOTS + 1) if index + d in ends)
    return max(votes, key=lambda d: (votes[d], d), default=0)
