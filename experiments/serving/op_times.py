"""Times of a compiled program's operations on CPU, grouped by the source files that they come from.

`jax.profiler` records when each operation runs on which thread. The text of the compiled program, which XLA writes into a folder, maps each
operation to its source lines.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax

# These hold other operations.
_CONTAINERS = {"while", "call", "conditional", "tuple", "get-tuple-element", "parameter", "bitcast"}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
_OPERATION = re.compile(r"^  (?:ROOT )?%(\S+) = .*? ([a-z][a-z0-9-]*)\((.*)$")
_FRAME = re.compile(r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}")
_LOCATION = re.compile(r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+)")
_NAME = re.compile(r'^(\d+) "(.*)"$')

PRODUCTS, SCAN, CONVOLUTION, ATTENTION, SAMPLING, OTHER = (
    "products with weights",
    "scan",
    "convolution",
    "attention",
    "sampling",
    "norms, gates and copies",
)
BETWEEN, HOST = "between operations", "host"
GROUPS = (PRODUCTS, SCAN, CONVOLUTION, ATTENTION, SAMPLING, OTHER, BETWEEN, HOST)


@dataclasses.dataclass
class _Operation:
    """An operation of a compiled program."""

    opcode: str
    operands: tuple[str, ...]
    calls: str | None
    """The computation of a fusion."""
    where: str
    """Source files and functions; empty if XLA has lost them."""


def group_operations(text: str) -> dict[str, str]:
    """Return the group of each operation of a compiled program that takes time.

    Args:
        text: the program after optimization.
    """
    frames = _Frames(text)
    computation, members, operations = "", collections.defaultdict(set), {}
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[1]
        elif found := _OPERATION.match(line):
            name, opcode, rest = found.groups()
            members[computation].add(opcode)
            calls = re.search(r"calls=%([^,\s]+)", rest)
            frame = re.search(r"stack_frame_id=(\d+)", rest)
            operands = tuple(re.findall(r"%([^\s,)]+)", rest.split("), ")[0]))
            where = frames.of(frame and int(frame[1]))
            operations[name] = _Operation(opcode, operands, calls and calls[1], where)
    users = collections.defaultdict(list)
    for name, operation in operations.items():
        for operand in operation.operands:
            users[operand].append(name)
    groups = {}
    for name, operation in operations.items():
        if operation.opcode in _CONTAINERS:
            continue
        opcodes = members[operation.calls] if operation.opcode == "fusion" else {operation.opcode}
        is_product = bool(opcodes & {"dot", "custom-call"})
        if operation.where:
            groups[name] = _group(is_product, operation.where)
        elif is_product:
            groups[name] = _group_of_lost(name, operations, users)
        else:
            groups[name] = next((_group(False, operations[user].where) for user in users[name]), OTHER)
    return groups


def _group(is_product: bool, where: str) -> str:
    """Return the group of an operation from its source files and functions."""
    # The C++ update of a mixer by one token is mostly the scan.
    if "/ssd/" in where or "mamba_step" in where:
        return SCAN
    if "/conv1d/" in where:
        return CONVOLUTION
    if "/attention/" in where or "AttentionCache" in where or "apply_rope" in where:
        return ATTENTION
    if "model/linear.py" in where and is_product:
        return PRODUCTS
    if "engine/sampling.py" in where or " _draw " in where:
        return SAMPLING
    return OTHER


def _group_of_lost(name: str, operations: Mapping[str, _Operation], users: Mapping[str, list[str]]) -> str:
    """Return the group of a product whose source XLA has lost when it simplified the product, from the operations around it."""

    def source(operand: str) -> _Operation | None:
        found = operations.get(operand)
        while found and found.opcode in ("bitcast", "copy", "reshape", "transpose") and found.operands:
            found = operations.get(found.operands[0])
        return found

    sources = [source(operand) for operand in operations[name].operands]
    around = [operations[user].where for user in users[name]]
    # Weights are arguments of the program, and of the loop over tokens. Caches were written to just before.
    given = any(found is None or found.opcode in ("parameter", "get-tuple-element") for found in sources)
    if given and not any("/attention/" in where for where in around):
        return PRODUCTS
    around += [found.where for found in sources if found]
    kinds = [_group(False, where) for where in around]
    return next((group for group in (ATTENTION, SCAN) if group in kinds), PRODUCTS)


class _Frames:
    """The stack frames of a program's text."""

    def __init__(self, text: str):
        tables: dict[str, list[str]] = {}
        lines = iter(text.splitlines())
        for line in lines:
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                tables[line] = rows = []
                for row in lines:
                    if not row:
                        break
                    rows.append(row)
        names = {
            table: {int(number): name for number, name in (_NAME.match(row).groups() for row in tables.get(table, ()))}
            for table in ("FileNames", "FunctionNames")
        }
        rows = [map(int, _LOCATION.match(row).groups()) for row in tables.get("FileLocations", ())]
        self._places = {
            n: f"{names['FileNames'][file]} {names['FunctionNames'][function]} " for n, file, function in rows
        }
        frames = [tuple(map(int, _FRAME.match(row).groups())) for row in tables.get("StackFrames", ())]
        # XLA writes the number of the parent plus one, so that 1 stands for no parent.
        self._frames = {number: (place, parent - 1) for number, place, parent in frames}

    def of(self, frame: int | None) -> str:
        """Return the files and functions of a frame and its callers."""
        found = []
        while frame in self._frames:
            place, frame = self._frames[frame]
            found.append(self._places[place])
        return " ".join(found)


Span = tuple[str, float, float]
"""Name, begin and end of an operation, in seconds."""


@contextlib.contextmanager
def recorded(module: str) -> Iterator[list[list[Span]]]:
    """Record the operations of each call of a compiled module, without the calls of Python functions.

    Args:
        module: its name, such as "jit_decode".
    """
    options, calls = jax.profiler.ProfileOptions(), []
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            yield calls
        (path,) = Path(folder).rglob("*.xplane.pb")
        calls += _read(path, module)


def _read(path: Path, module: str) -> list[list[Span]]:
    begins, ends = collections.defaultdict(list), collections.defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                begin, end = event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9
                if event.name.startswith("end: "):
                    ends[event.name.removeprefix("end: ")].append(begin)
                elif (found := dict(event.stats)).get("hlo_module") == module:
                    begins[event.name].append((begin, end, found["run_id"]))
    calls = collections.defaultdict(list)
    for name, spans in begins.items():
        # An operation that runs in several threads goes on until its end is reported.
        closed = sorted(ends[name]) if len(ends[name]) == len(spans) else [0.0] * len(spans)
        for (begin, end, call), last in zip(sorted(spans), closed, strict=True):
            calls[call].append((name, begin, max(end, last)))
    return list(calls.values())


def split_time(calls: Iterable[list[Span]], groups: Mapping[str, str]) -> tuple[dict[str, float], float]:
    """Divide the time of a program's calls among the groups of its operations.

    Where several operations run at the same time, each gets an equal part.

    Args:
        calls: from `recorded`.
        groups: from `group_operations`.

    Returns:
        Seconds of each group, with the time in which no operation ran, and the seconds of operations that are in no group.
    """
    seconds, missing = collections.defaultdict(float, dict.fromkeys(GROUPS, 0.0)), 0.0
    for operations in calls:
        events = []
        for name, begin, end in operations:
            if name in groups:
                events += [(begin, 1, groups[name]), (end, -1, groups[name])]
            elif name.split(".")[0] not in _CONTAINERS:
                missing += end - begin
        running, now = collections.Counter(), None
        for time, change, group in sorted(events):
            if now is not None:
                count = running.total()
                for each, number in running.items():
                    seconds[each] += (time - now) * number / count if count else 0.0
                if not count:
                    seconds[BETWEEN] += time - now
            running[group] += change
            now = time
    return dict(seconds), missing
