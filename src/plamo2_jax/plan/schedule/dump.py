"""The schedules that one compilation left in the dump folder, by the name of the operation in the compiled program."""

from __future__ import annotations

import re
from pathlib import Path

from plamo2_jax.plan.schedule.bundles import parse_schedule
from plamo2_jax.plan.schedule.scalar_core import Execution, run_schedule

_NAME = re.compile(r"\d+-(.+)-\d+-(final_bundles|final_hlo-static-per-bundle-utilization|deduplication-map)\.txt")


class Schedules:
    """The texts of a dump folder."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[tuple[str, str], Path] = {}
        # Operations alike are compiled once, under the name of one of them.
        self._compiled_as: dict[str, str] = {}
        for path in sorted(folder.glob("*.txt")):
            if match := _NAME.fullmatch(path.name):
                self._files[match[1], match[2]] = path
                if match[2] == "deduplication-map":
                    self._read_map(path.read_text())

    def _read_map(self, text: str) -> None:
        key = None
        for line in text.splitlines():
            if line.startswith("key:"):
                key = line.removeprefix("key:").strip()
            elif line.startswith("  ") and key:
                self._compiled_as[line.strip()] = key

    def _file(self, name: str, kind: str) -> Path | None:
        return self._files.get((name, kind)) or self._files.get((self._compiled_as.get(name, name), kind))

    def runs(self, name: str, cores: int) -> list[Execution]:
        """The operation's schedule, run by each of the cores that share its work; nothing where it has no schedule.

        Raises:
            ValueError: how often a loop runs depends on data.
        """
        path = self._file(name, "final_bundles")
        if path is None:
            return []
        program = parse_schedule(path.read_text())
        return [run_schedule(program, core) for core in range(cores)]

    def utilization(self, name: str, run: Execution) -> dict[str, float]:
        """Share of each functional unit's slots that is in use over a run; reloads and spills of registers are in the units' own."""
        path = self._file(name, "final_hlo-static-per-bundle-utilization")
        return {} if path is None else parse_utilization(path.read_text(), run)


def parse_utilization(text: str, run: Execution) -> dict[str, float]:
    """Unit → used slots / slots, of a text that lists for every bundle how many slots of each unit it uses."""
    lines = text.splitlines()
    units = lines[1].split(", ")
    capacity = [int(n) for n in lines[2].split()]
    used = [0] * len(units)
    for count, line in zip(run.counts, lines[4:], strict=False):
        for unit, slots in enumerate(map(int, line.split())):
            used[unit] += count * slots
    return {unit: n / (run.cycles * most) for unit, n, most in zip(units, used, capacity, strict=True)}
