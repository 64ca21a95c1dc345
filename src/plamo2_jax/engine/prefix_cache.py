"""The prefix cache: snapshots of prefilled rows. The key of a snapshot is a hash of the pieces of the prompt that were read.

The hash covers all pieces, so a snapshot is the state after exactly these pieces. Prefill from a snapshot gives the same bits as prefill
from the beginning of the prompt.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plamo2_jax.engine.snapshot import Page, byte_count
from plamo2_jax.model.cache import Cache

# Number of remembered keys, which show that a second prompt has the same beginning. 100,000 keys need about 10 MB.
_MAX_SEEN = 100_000


def piece_keys(prompt: np.ndarray, ends: Sequence[int], salt: str) -> list[bytes]:
    """Return a key for each piece of a prompt: a hash of this piece and all earlier pieces.

    Args:
        prompt: token ids [t] i32.
        ends: end positions of the pieces.
        salt: prompts with different salts have different keys.
    """
    keys, start, key = [], 0, hashlib.blake2b(salt.encode(), digest_size=16).digest()
    for end in ends:
        key = hashlib.blake2b(key + prompt[start:end].astype("<i4").tobytes(), digest_size=16).digest()
        keys.append(key)
        start = end
    return keys


@dataclasses.dataclass(eq=False)
class Snapshot:
    """The state of a row after the first pieces of a prompt."""

    tokens: int
    """Number of tokens read."""
    ancestors: tuple[bytes, ...]
    """Keys of all pieces except the last one."""
    state: Cache
    pages: tuple[Page, ...]
    bytes: int
    """Size of `state` in bytes."""
    last_used: float


class PrefixCache:
    """Stores snapshots within a memory budget. The snapshot that saves the fewest tokens per second of age is evicted first.

    Args:
        max_bytes: maximum total size of the snapshots, in bytes.
        clock: returns the time in seconds; tests replace it.

    Attributes:
        bytes: total size of the snapshots, in bytes.
        evictions: number of snapshots evicted so far.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic):
        self.max_bytes, self._clock = max_bytes, clock
        self._snapshots: dict[bytes, Snapshot] = {}
        self._page_users: collections.Counter[int] = collections.Counter()
        self._seen: collections.OrderedDict[bytes, None] = collections.OrderedDict()
        self.bytes = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._snapshots)

    def longest(self, keys: Sequence[bytes]) -> tuple[int, Snapshot | None]:
        """Return the number of pieces in the longest matching snapshot, and the snapshot. Without a match, return 0 and None."""
        for count in range(len(keys), 0, -1):
            if snapshot := self._snapshots.get(keys[count - 1]):
                snapshot.last_used = self._clock()
                return count, snapshot
        return 0, None

    def is_wanted(self, key: bytes, *, boundary: bool) -> bool:
        """Return whether to keep the state after a piece: it ends at a boundary, or an earlier prompt had the same pieces."""
        seen = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _MAX_SEEN:
            self._seen.popitem(last=False)
        return key not in self._snapshots and (boundary or seen)

    def add(self, keys: Sequence[bytes], tokens: int, state: Cache, pages: Sequence[Page]) -> None:
        """Store a snapshot and evict others if needed. A snapshot larger than the whole budget is not stored.

        Args:
            keys: keys of all pieces that were read.
            tokens: number of tokens of these pieces.
            state: state of the layers without pages.
            pages: one page per piece. Snapshots of the same pieces share their pages.
        """
        size = byte_count(state)
        if keys[-1] in self._snapshots or size + sum(map(byte_count, pages)) > self.max_bytes:
            return
        self._snapshots[keys[-1]] = Snapshot(tokens, tuple(keys[:-1]), state, tuple(pages), size, self._clock())
        self.bytes += size
        for page in pages:
            self.bytes += 0 if self._page_users[id(page)] else byte_count(page)
            self._page_users[id(page)] += 1
        while self.bytes > self.max_bytes:
            self._evict(min(self._snapshots, key=self._value))

    def _value(self, key: bytes) -> float:
        """Return the number of tokens to read again without this snapshot, divided by the seconds since its last use."""
        snapshot = self._snapshots[key]
        before = (self._snapshots[k].tokens for k in reversed(snapshot.ancestors) if k in self._snapshots)
        return (snapshot.tokens - next(before, 0)) / (self._clock() - snapshot.last_used + 1e-3)

    def _evict(self, key: bytes) -> None:
        snapshot = self._snapshots.pop(key)
        self.bytes -= snapshot.bytes
        for page in snapshot.pages:
            self._page_users[id(page)] -= 1
            if not self._page_users[id(page)]:
                del self._page_users[id(page)]
                self.bytes -= byte_count(page)
        self.evictions += 1

    def statistics(self) -> dict[str, Any]:
        """Return the sizes and counts that the server reports as metrics."""
        return {"snapshots": len(self), "bytes": self.bytes, "max_bytes": self.max_bytes, "evictions": self.evictions}
