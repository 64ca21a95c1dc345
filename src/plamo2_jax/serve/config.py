"""ServeConfig: addresses, sizes and limits of the server."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from plamo2_jax.engine.prefill import SMALLEST_PIECE
from plamo2_jax.validation import is_whole, require


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Sizes and limits.

    Raises:
        ValueError: a field is out of its range; the message names the field, its value and what is allowed.
    """

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 lets other machines connect; use API keys in this case."""
    port: int = 8000
    """Port to listen on; 0: a free one."""
    slots: int = 8
    """Number of sequences that are generated at the same time; further ones wait."""
    max_length: int = 8192
    """Maximum number of tokens of a prompt and its continuation, limited by the model's max_position_embeddings."""
    prefill_size: int = 512
    """Chunked prefill: maximum number of prompt tokens in one prefill step, a power of two. Running sequences continue between two
    chunks."""
    prefix_cache: float = 1.0
    """Memory of the prefix cache, in GiB. Prompts with a cached prefix skip the prefill of this prefix. 0: no prefix cache."""
    kv_cache: Literal["int8"] | None = None
    """dtype of cached keys and values. int8 needs about a quarter of the memory of float32; the state of Mamba layers stays in float32.
    Default: the dtype of the activations."""
    drafts: int = 0
    """Speculative decoding by prompt lookup: maximum number of draft tokens per step; 0: off. With drafts, a text and its log-probabilities
    may differ when other requests run at the same time, because more rows leave fewer drafts and sums are rounded in another order."""
    max_waiting: int = 256
    """Maximum number of sequences that wait for a slot; further ones are refused with status 429."""
    max_tokens: int = 1_000_000
    """Limit on n x max_tokens, summed over the prompts of a request; larger requests are refused with status 400."""
    max_body: int = 16
    """Maximum size of a request body, in MiB; larger ones are refused with status 413."""
    request_timeout: float = 600.0
    """Maximum generation time of a request, in seconds; then it ends with the finish reason "abort"."""
    client_timeout: float = 60.0
    """Maximum time that a client may take to send its request or to read a part of a stream, in seconds."""
    shutdown_timeout: float = 30.0
    """Time that running requests have to finish after SIGTERM or Ctrl-C, in seconds; then they end with the finish reason "abort"."""
    max_connections: int = 4096
    """Maximum number of open connections; further ones are refused with status 503."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that clients may use for a server on a loopback address, in addition to localhost and IP addresses."""
    warm_up: bool = True
    """Compile all programs before the first request. Otherwise the first requests wait for compilation."""

    def __post_init__(self) -> None:
        for name in (
            "port",
            "slots",
            "max_length",
            "prefill_size",
            "drafts",
            "max_tokens",
            "max_body",
            "max_connections",
        ):
            require(self, name, is_whole(getattr(self, name)), "an integer")
        hosts = not isinstance(self.allowed_hosts, str) and all(isinstance(host, str) for host in self.allowed_hosts)
        require(self, "allowed_hosts", hosts, "a tuple of host names")
        power = self.prefill_size >= SMALLEST_PIECE and not self.prefill_size & (self.prefill_size - 1)
        require(self, "host", bool(self.host), "an address")
        require(self, "port", 0 <= self.port < 1 << 16, "from 0 to 65535")
        require(self, "prefill_size", power, f"a power of two of at least {SMALLEST_PIECE}")
        require(self, "max_length", self.max_length >= 2, "at least 2")
        require(self, "kv_cache", self.kv_cache in (None, "int8"), "int8 or None")
        require(self, "drafts", 0 <= self.drafts <= 15, "from 0 to 15")
        for name in ("slots", "max_tokens", "max_body", "max_connections"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_waiting", "prefix_cache", "shutdown_timeout"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0 and finite")
        for name in ("request_timeout", "client_timeout"):
            require(self, name, 0 < getattr(self, name) < math.inf, "positive and finite")
