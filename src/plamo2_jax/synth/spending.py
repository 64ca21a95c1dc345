"""Spending of a run: stored responses in the journals of the units, and responses that were paid for but not stored.

OUTPUT/spending/HOST-PROCESS-RANDOM.json    one file for each start of a worker: its seconds, and its wasted attempts. Only that worker
                                            writes the file, and replaces it as a whole, so no lock is needed
OUTPUT/spending.json                        the sums
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from plamo2_jax.eval import request_json
from plamo2_jax.models import ChatResponse, RequestError, Usage
from plamo2_jax.storage import write_whole
from plamo2_jax.synth.config import GeneratorConfig, SynthConfig

JOURNAL = "journal.jsonl"
Waste = Literal["unusable", "dropped", "late"]
"""unusable: the response was damaged or its text was refused, and the request was repeated or failed.
dropped: another sample of the same request failed, or the worker ended.
late: the worker had lost the lease of the unit when the response arrived."""


@dataclasses.dataclass
class Spending:
    """Tokens, money and time. Wasted tokens and their cost are part of the sums."""

    requests: int = 0
    """Number of stored results, with failures."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    """Sum of the seconds of all starts of all workers."""
    failed_attempts: int = 0
    """Number of HTTP requests without a usable response. The client repeats most of them."""
    unreported: int = 0
    """Number of attempts that a server may have charged for without a report: timeouts and cut responses."""
    wasted_prompt_tokens: int = 0
    wasted_completion_tokens: int = 0
    wasted_cost: float = 0.0
    wasted: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of wasted responses by kind."""

    def add(self, responses: Sequence[ChatResponse] | RequestError, config: GeneratorConfig) -> None:
        """Add the responses to one request."""
        self.requests += 1
        if isinstance(responses, RequestError):
            return
        for response in responses:
            # A server reports the prompt of each sample, though it reads it once.
            self.count(response.usage.prompt_tokens or 0, response.usage.completion_tokens or 0, config)

    def count(self, prompt: int, completion: int, config: GeneratorConfig) -> None:
        """Add tokens and their price."""
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.cost += price(prompt, completion, config)

    def waste(self, kind: Waste, usage: Usage, config: GeneratorConfig) -> None:
        """Add a response that was paid for and is not stored."""
        prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
        self.count(prompt, completion, config)
        self.wasted_prompt_tokens += prompt
        self.wasted_completion_tokens += completion
        self.wasted_cost += price(prompt, completion, config)
        self.wasted[kind] = self.wasted.get(kind, 0) + 1

    def include(self, other: Spending) -> None:
        """Add other sums."""
        for field in dataclasses.fields(self):
            if field.name != "wasted":
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        self.wasted = dict(collections.Counter(self.wasted) + collections.Counter(other.wasted))

    def to_json(self) -> dict[str, Any]:
        """Return the sums as JSON."""
        return {
            name: round(value, 9) if isinstance(value, float) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, content: Any) -> Spending:
        """Return the sums of a JSON object that `to_json` made. Raise ValueError or TypeError if it is another one."""
        numbers = {field.name: field.default for field in dataclasses.fields(cls) if field.name != "wasted"}
        values = {name: type(default)(content.get(name, default)) for name, default in numbers.items()}
        return cls(**values, wasted={str(kind): int(count) for kind, count in (content.get("wasted") or {}).items()})


def price(prompt: int, completion: int, config: GeneratorConfig) -> float:
    """Return the price of tokens."""
    return (prompt * config.price_prompt + completion * config.price_completion) / 1e6


class Ledger:
    """What one start of a worker has spent beside the stored responses. Threads may share it.

    Args:
        folder: OUTPUT/spending.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.json"
        self._sums, self._lock, self._start = Spending(), threading.Lock(), time.monotonic()

    def waste(self, kind: Waste, usage: Usage, config: GeneratorConfig) -> None:
        """Store a response that was paid for and is not in a journal."""
        with self._lock:
            self._sums.waste(kind, usage, config)
            self._write()

    def fail(self, *, unreported: bool) -> None:
        """Store that an attempt failed. `unreported`: a server may have charged for it."""
        with self._lock:
            self._sums.failed_attempts += 1
            self._sums.unreported += unreported
            self._write()

    def flush(self) -> None:
        """Store the seconds of this start."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        self._sums.seconds = time.monotonic() - self._start
        write_whole(self._path, (json.dumps(self._sums.to_json()) + "\n").encode())


class StoredSpending:
    """Sums over the journals and the files of all starts of all workers. Only new lines of the journals are read.

    Args:
        output: OUTPUT.
        config: the configuration, with the prices.
    """

    def __init__(self, output: Path, config: SynthConfig):
        self._units, self._ledgers = output / "units", output / "spending"
        self._prices = {False: config.generator or GeneratorConfig(), True: config.judge or GeneratorConfig()}
        self._read: dict[Path, int] = {}
        self._total = Spending()

    def __call__(self) -> Spending:
        """Return the sums."""
        for path in sorted(self._units.glob(f"*/{JOURNAL}")):
            start = self._read.get(path, 0)
            if path.stat().st_size <= start:
                continue
            with path.open("rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # A worker is writing it.
                    self._read[path] = self._read.get(path, 0) + len(line)
                    self._count(line)
        total = dataclasses.replace(self._total)
        for path in sorted(self._ledgers.glob("*.json")):
            try:
                total.include(Spending.from_json(json.loads(path.read_bytes())))
            except (OSError, ValueError, TypeError, AttributeError):
                continue  # Not a file of this class.
        return total

    def _count(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            counts = request_json.token_counts(entry)
        except (ValueError, TypeError, AttributeError, IndexError):
            return  # The journal's reader cuts such a line off.
        self._total.requests += 1
        self._total.count(counts["prompt"], counts["generated"], self._prices[bool(entry.get("judge"))])
