"""Find the schedules of a compilation in the dump folder, by the name of the operation in the compiled program."""

from __future__ import annotations

import re
from pathlib import Path

from plamo2_jax.plan.schedule.bundles import parse_schedule
from plamo2_jax.plan.schedule.scalar_core import Execution, run_schedule

_NAME = re.compile(r"\d+-(.+)-\d+-(final_bundles|final_hlo-static-per-bundle-utilization|deduplication-map)\.txt")


class Schedules:
    """The schedules in the dump folder of a compilation."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[tuple[str, str], Path] = {}
        # Equal operations are compiled once, under the name of one of them.
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

    def runs(self, name: str, cores: int, *, skip: bool = False) -> list[Execution]:
        """Run an operation's schedule on each of the cores that share its work; return [] if it has no schedule.

        Args:
            skip: Whether branches that depend on data skip the code behind them.

        Raises:
            PlamoError: the trip count of a loop depends on data.
        """
        path = self._file(name, "final_bundles")
        if path is None:
            return []
        program = parse_schedule(path.read_text())
        return [run_schedule(program, core, skip=skip) for core in range(cores)]

    def utilization(self, name: str, run: Execution) -> dict[str, float]:
        """Return the share of each functional unit's issue slots that a run uses. Register spills and reloads are included."""
        path = self._file(name, "final_hlo-static-per-bundle-utilization")
        return {} if path is None else parse_utilization(path.read_text(), run)


def parse_utilization(text: str, run: Execution) -> dict[str, float]:
    """Return used slots / slots for each unit. The text lists the slots that each bundle uses."""
    lines = text.splitlines()
    units = lines[1].split(", ")
    capacity = [int(n) for n in lines[2].split()]
    used = [0] * len(units)
    for count, line in zip(run.counts, lines[4:], strict=False):
        for unit, slots in enumerate(map(int, line.split())):
            used[unit] += count * slots
    return {unit: n / (run.cycles * most) for unit, n, most in zip(units, used, capacity, strict=True)}
