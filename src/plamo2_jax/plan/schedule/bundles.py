"""Parse the VLIW schedule that libtpu writes, `*-final_bundles.txt`: one bundle per line, and one bundle per cycle.

The text lists each bundle once, however often it runs. The scalar instructions and branches in it decide how often. They are parsed into a
program of the scalar core, which `scalar_core.py` runs.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator

from plamo2_jax.errors import PlamoError

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
# A vector register holds 8 rows of 32 bits, or more rows of a narrower type.
_REGISTER_BITS = 8 * 32


@dataclasses.dataclass(frozen=True)
class Predicate:
    """The condition under which an instruction runs."""

    name: str
    negated: bool
    otherwise: str | None = None
    """Operand that is the result if the condition is false; None: the register keeps its value."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of the scalar core. The name of a value is unique in the program and ends with the register that holds the value."""

    op: str
    """The mnemonic up to its first dot."""
    kind: str
    """The rest of the mnemonic: types, and the relation of a comparison."""
    name: str | None
    operands: tuple[str, ...] = ()
    predicate: Predicate | None = None
    target: int | None = None
    """Region to which a branch jumps."""

    @functools.cached_property
    def register(self) -> str:
        """Register of the result. The values that a phi joins share a register."""
        return self.name.rpartition("_")[2]

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the values that it reads, and the memory slot that a load reads."""
        names = self.operands[1:] if self.op == "sst" else self.operands
        predicate = (self.predicate.name, self.predicate.otherwise or "") if self.predicate else ()
        return (*names, *predicate)


@dataclasses.dataclass(frozen=True)
class Program:
    """The parsed schedule of one operation."""

    length: int
    """Number of bundles in the text."""
    scalar: dict[int, tuple[Instruction, ...]]
    """Bundle index → its scalar instructions, phis first and definitions before uses."""
    matmul_rows: dict[int, int]
    """Bundle index → rows that it pushes through the matrix units."""
    regions: dict[int, int]
    """Region number → its first bundle. Branches name regions."""
    delay_slots: int
    """Number of bundles that still run after a branch, taken or not."""


def parse_schedule(text: str) -> Program:
    """Parse the text of a `*-final_bundles.txt` file.

    Raises:
        PlamoError: the text has no bundles.
    """
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
    scalar = _relevant(scalar)
    # The region after the last bundle with instructions is not marked.
    for _, target in branches:
        regions.setdefault(target, index)
    return Program(index + 1, scalar, rows, regions, _delay_slots([index for index, _ in branches], ends))


def _bundles(text: str) -> Iterator[str]:
    starts = [match.end() for match in _BUNDLE.finditer(text)]
    if not starts:
        raise PlamoError("not a schedule: it has no bundles")
    yield from (text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True))


def _statements(bundle: str) -> list[str]:
    # Only a comment shows that a load reads the number of the core.
    return _COMMENT.sub("", _CORE_ID.sub(" core_id", bundle)).split(";;")


def _instruction(statement: str) -> Instruction | None:
    """Parse a statement that branches, may decide a branch, or moves data between HBM and VMEM; return None for any other."""
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
        # The operands are source, size, target, ...
        return Instruction(op, kind, None, (rest.split(",")[1].strip().lstrip("%"),), predicate)
    if slot:
        # The only operand of a load is its slot. A store has the slot and the value.
        op = "core_id" if op == "sld" and "core_id" in rest else op
        return Instruction(op, kind, named, (slot[1], *re.findall(r"%(\w+)", rest)[:1]), predicate)
    operands = [part.strip().split(" ")[0].lstrip("%") for part in _HINT.sub("", rest).split(",")]
    return Instruction(op, kind, named, tuple(filter(None, operands)), predicate)


def _in_order(instructions: list[Instruction]) -> tuple[Instruction, ...]:
    """Sort the instructions of a bundle: phis first, and each pseudo-instruction after the instructions whose results it reads."""
    left = sorted(instructions, key=lambda i: i.op != "sphi")
    ordered = []
    while left:
        pending = {i.name for i in left if i.op != "sphi"}
        ready = next((i for i in left if i.op == "sphi" or not pending & set(i.operands) - {i.name}), left[0])
        left.remove(ready)
        ordered.append(ready)
    return tuple(ordered)


def _relevant(scalar: dict[int, tuple[Instruction, ...]]) -> dict[int, tuple[Instruction, ...]]:
    """Keep branches, transfers, and the instructions that decide them. Most scalar code of a kernel computes addresses."""
    writers = collections.defaultdict(list)
    for instruction in (i for instructions in scalar.values() for i in instructions):
        # A load names the slot to which a store writes.
        writers[instruction.operands[0] if instruction.op == "sst" else instruction.name].append(instruction)
    wanted: set[str] = set()
    found = writers[None]
    while found:
        reads = {name for i in found for name in i.reads} - wanted
        wanted |= reads
        found = [i for name in reads for i in writers.get(name, ())]

    def matters(instruction: Instruction) -> bool:
        written = instruction.operands[0] if instruction.op == "sst" else instruction.name
        return written is None or written in wanted

    kept = {index: tuple(filter(matters, instructions)) for index, instructions in scalar.items()}
    return {index: instructions for index, instructions in kept.items() if instructions}


def _delay_slots(branches: Iterable[int], ends: set[int]) -> int:
    """Return the most common distance from a branch to the end of a region. The region of a branch ends with its last delay slot."""
    votes = collections.Counter(d for index in branches for d in range(1, _MOST_SLOTS + 1) if index + d in ends)
    return max(votes, key=lambda d: (votes[d], d), default=0)
