"""BenchConfig: which load is put on which server."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from plamo2_jax.bench_serve.lengths import LARGEST, Lengths
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """A load.

    Raises:
        PlamoError: a field is out of its range.
    """

    rate: float | None = None
    """Requests per second of an open loop, with Poisson arrivals; None: a closed loop."""
    concurrency: int = 1
    """Closed loop: requests in flight."""
    requests: int = 100
    """Requests at most."""
    duration: float = 600.0
    """Seconds after which no further request is sent."""
    endpoint: Literal["chat", "completions"] = "chat"
    """/v1/chat/completions or /v1/completions."""
    prompt_tokens: Lengths = dataclasses.field(default_factory=lambda: Lengths("fixed", 256))
    """Tokens of a prompt, without the shared prefix."""
    output_tokens: Lengths = dataclasses.field(default_factory=lambda: Lengths("fixed", 128))
    """`max_tokens` of a request."""
    shared_prefix: int = 0
    """Tokens with which every prompt begins."""
    language: Literal["ja", "en"] | None = None
    """Language of the prompts; None: both."""
    ignore_eos: bool = False
    """Ask for exactly `max_tokens` tokens. OpenAI's API does not have this field; vLLM, llama.cpp and `plamo2 serve` do."""
    temperature: float = 0.8
    """Temperature of the requests."""
    seed: int = 0
    """Random seed of arrivals, lengths and prompts, and the seed of the first request."""
    warmup: int = 2
    """Requests before the measurement, one after another. A prefix cache may keep a prefix only when a second request has it."""
    timeout: float = 300.0
    """Seconds for one request."""
    slo_ttft: float | None = None
    """Goodput: largest time to the first token, in milliseconds."""
    slo_itl: float | None = None
    """Goodput: largest mean time between two tokens of a request, in milliseconds."""
    max_in_flight: int = 1024
    """Open loop: requests in flight at most. Arrivals beyond it are counted as errors of the kind "not sent"."""

    def __post_init__(self) -> None:
        require(self, "rate", self.rate is None or 0 < self.rate <= 1e5, "none, or above 0 and at most 100,000")
        require(self, "concurrency", 1 <= self.concurrency <= 4096, "from 1 to 4096")
        require(self, "requests", 1 <= self.requests <= 1_000_000, "from 1 to 1,000,000")
        require(self, "shared_prefix", 0 <= self.shared_prefix <= LARGEST, f"from 0 to {LARGEST}")
        require(self, "temperature", 0 <= self.temperature < math.inf, "0 or positive")
        require(self, "seed", 0 <= self.seed < 1 << 31, "from 0 to 2147483647")
        require(self, "warmup", 0 <= self.warmup <= 1000, "from 0 to 1000")
        require(self, "max_in_flight", 1 <= self.max_in_flight <= 1 << 16, "from 1 to 65536")
        for name in ("duration", "timeout"):
            require(self, name, 0 < getattr(self, name) <= 86400, "above 0 and at most 86400")
        for name in ("slo_ttft", "slo_itl"):
            value = getattr(self, name)
            require(self, name, value is None or 0 < value < math.inf, "none or positive")
