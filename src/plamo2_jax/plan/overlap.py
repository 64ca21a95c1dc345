"""Find how long the core of a chip waits for collectives, from the order in which the compiler has scheduled a program.

The instructions of a compiled program are listed in the order in which the core starts them. An asynchronous collective has a start and a
done: the links work between the two, and the core waits at the done for the rest. libtpu writes this in three ways: as a pair of
instructions (`all-gather-start`, `all-gather-done`), as a call that the SparseCore runs (`call-start`, `call-done`), and as pieces that are
fused into products (custom calls AsyncCollectiveStart and AsyncCollectiveDone, and pieces with the same channel between them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from plamo2_jax.plan.collectives import Collective, inner_instructions
from plamo2_jax.plan.hlo import Computation, Instruction, Module

_CHANNEL = re.compile(r"channel_id=(\d+)")


def waiting_seconds(module: Module, core_seconds: Mapping[str, float], moved: Sequence[Collective]) -> float:
    """Return the seconds for which the core waits for collectives in one execution of a program.

    Transfers run one after another on the links, each at its bandwidth. A transfer that is still running when a loop body or a branch ends
    is waited for there, so that each iteration of a loop counts the same.

    Args:
        module: The compiled program.
        core_seconds: Name of an instruction → seconds of one execution, without collectives. Instructions that are missing take no time.
        moved: The collectives of the program.
    """
    return _Clock(module, core_seconds, {c.name: c.seconds for c in moved}).run(module.entry).waited


class _Clock:
    """The time of the core and the time at which the links are free, in seconds since a computation began."""

    def __init__(self, module: Module, core_seconds: Mapping[str, float], link_seconds: Mapping[str, float]) -> None:
        self._module, self._core_seconds, self._link_seconds = module, core_seconds, link_seconds
        self.time = self.waited = 0.0
        self._links_free = 0.0
        self._pending: dict[str, float] = {}

    def run(self, name: str) -> _Clock:
        """Advance the clock by one execution of a computation."""
        computation = self._module.computations[name]
        for instruction in computation.values():
            self._step(instruction, computation)
        for key in list(self._pending):
            self._wait(key)
        return self

    def _step(self, instruction: Instruction, computation: Computation) -> None:
        op, module = instruction.op, self._module
        if op == "while":
            self._nested(instruction.called("body"), module.trip_count(instruction, computation))
        elif op == "conditional":
            self._nested(module.longest_branch(instruction), 1)
        elif op == "call":
            self._nested(module.callee(instruction), 1)
        elif op in ("call-start", "async-start"):
            seconds = sum(self._link_seconds.get(name, 0.0) for name in self._within(module.callee(instruction)))
            self._start(instruction.name, seconds)
        elif op.endswith(("-done", "-update")):
            # An update passes the transfer on under its own name.
            for operand in instruction.operands:
                if operand in self._pending:
                    self._wait(operand) if op.endswith("-done") else self._rename(operand, instruction.name)
        else:
            self._fused(instruction, computation)

    def _fused(self, instruction: Instruction, computation: Computation) -> None:
        """Run an instruction or a fusion: its own work, and the collectives in it."""
        done = None
        for inner, scope in inner_instructions(self._module, instruction, computation):
            seconds = self._link_seconds.get(inner.name)
            channel = _CHANNEL.search(inner.attributes)
            if channel and _ends_with(scope, "AsyncCollectiveDone"):
                done = f"channel {channel[1]}"
            elif seconds is None:
                continue
            elif _ends_with(scope, "AsyncCollectiveStart"):
                self._start(f"channel {channel[1]}", seconds)
            elif inner.op.endswith("-start"):
                self._start(inner.name, seconds)
            else:
                self._start(inner.name, seconds)
                self._wait(inner.name)
        self.time += self._core_seconds.get(instruction.name, 0.0)
        if done is not None:
            self._wait(done)

    def _within(self, name: str) -> list[str]:
        """Return the names of all instructions that a computation executes, those in fusions included."""
        scope = self._module.computations[name]
        return [inner.name for each in scope.values() for inner, _ in inner_instructions(self._module, each, scope)]

    def _nested(self, name: str, times: int) -> None:
        inner = _Clock(self._module, self._core_seconds, self._link_seconds).run(name)
        self.time += times * inner.time
        self.waited += times * inner.waited

    def _start(self, key: str, seconds: float) -> None:
        self._links_free = max(self._links_free, self.time) + seconds
        self._pending[key] = self._links_free

    def _rename(self, key: str, name: str) -> None:
        self._pending[name] = self._pending.pop(key)

    def _wait(self, key: str) -> None:
        waited = max(self._pending.pop(key, 0.0) - self.time, 0.0)
        self.time += waited
        self.waited += waited


def _ends_with(scope: Computation, target: str) -> bool:
    return any(f'custom_call_target="{target}"' in other.attributes for other in scope.values())
