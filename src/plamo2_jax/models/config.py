"""The configuration of a chat model."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import urllib.parse
from typing import Literal

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class ChatModelConfig:
    """A chat model: a folder, run by the local engine, or a model behind an OpenAI-compatible server.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    model: str = ""
    """Run folder, folder of the public layout, folder of adapters, RUN@STEP or RUN@ema; with `url`, the model's name on the server."""
    url: str | None = None
    """Address of a server, such as http://localhost:8000/v1; none: the local engine."""
    api_key_env: str | None = None
    """Server: name of the environment variable that holds the API key; none: no key. The key itself is never written to a file."""
    template: str | None = None
    """Local engine: chat template (`chat`, `translate`, a Jinja file, a folder with one); none: the model's own, or else `chat`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Local engine: dtype of activations and matrices."""
    batch_size: int = 64
    """Local engine: texts generated at the same time. It changes the last bits of the logits, and with them perhaps a text."""
    max_prompt_tokens: int = 4096
    """Local engine: a longer prompt is refused."""
    concurrency: int = 8
    """Server: requests in flight at the same time."""
    timeout: float = 120.0
    """Server: seconds for one request."""
    max_retries: int = 5
    """Server: further attempts after a request has failed."""
    backoff: float = 1.0
    """Server: longest pause before the first retry, in seconds. It doubles with every further one, up to a minute."""

    def __post_init__(self) -> None:
        require(self, "url", self.url is None or _is_address(self.url), "http://HOST/... or https://HOST:PORT/...")
        variable = self.api_key_env is None or re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env)
        require(self, "api_key_env", variable, "the name of an environment variable")
        require(self, "dtype", self.dtype in ("float32", "bfloat16"), "float32 or bfloat16")
        for name in ("batch_size", "max_prompt_tokens", "concurrency"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "max_retries", self.max_retries >= 0, "at least 0")
        require(self, "timeout", 0 < self.timeout < math.inf, "positive and finite")
        require(self, "backoff", 0 <= self.backoff < math.inf, "zero or positive, and finite")


def api_key(config: ChatModelConfig) -> str | None:
    """Return the API key of a server, or None where it needs none.

    Raises:
        ValueError: the environment variable is empty, or holds what cannot be a key. The message does not show the value.
    """
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise PlamoError(
            f"the environment variable {config.api_key_env} is empty; it must hold the API key of {config.url}"
        )
    # Checked before a header is made of it: the error message of a header would show the key.
    if not re.fullmatch(r"[!-~]+", key):
        raise PlamoError(
            f"the environment variable {config.api_key_env} is not an API key: it holds characters other than ASCII letters, digits and "
            "signs, such as a space or an end of line"
        )
    return key


def _is_address(url: str) -> bool:
    """Return whether requests can be sent to an address."""
    if not re.fullmatch(r"https?://[!-~]+", url) or set(url) & set("?#@"):
        return False
    try:
        parts = urllib.parse.urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
