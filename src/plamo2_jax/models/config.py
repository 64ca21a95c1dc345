"""The configuration of a chat model."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import urllib.parse
from typing import Literal

from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import is_whole, require


@dataclasses.dataclass(frozen=True)
class ChatModelConfig:
    """A chat model: a model folder for the local engine, or a model behind an OpenAI-compatible server.

    Raises:
        PlamoError: a field is out of range. The message has the field, its value and the allowed values.
    """

    model: str = ""
    """Run folder, folder in Hugging Face format, folder of adapters, RUN@STEP or RUN@ema. With `url`: the model's name on the server."""
    url: str | None = None
    """Address of a server, such as http://localhost:8000/v1; none: use the local engine."""
    api_key_env: str | None = None
    """Server: name of the environment variable with the API key; none: no key. The key is never written to a file."""
    template: str | None = None
    """Local engine: chat template (`chat`, `translate`, a Jinja file or a folder with one); none: the model's template, or else `chat`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Local engine: dtype of activations and matrices."""
    batch_size: int = 64
    """Local engine: number of texts generated together. Another number changes the rounding of the logits, which may change a text."""
    max_prompt_tokens: int = 4096
    """Local engine: maximum number of tokens of a prompt. A longer prompt is an error."""
    concurrency: int = 8
    """Server: number of concurrent requests."""
    timeout: float = 120.0
    """Server: maximum time for one request, in seconds."""
    max_retries: int = 5
    """Server: number of retries after a request has failed."""
    backoff: float = 1.0
    """Server: maximum pause before the first retry, in seconds. It doubles with every further retry, up to 60 s."""

    def __post_init__(self) -> None:
        require(self, "url", self.url is None or _is_address(self.url), "http://HOST/... or https://HOST:PORT/...")
        variable = self.api_key_env is None or re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env)
        require(self, "api_key_env", variable, "the name of an environment variable")
        require(self, "dtype", self.dtype in ("float32", "bfloat16"), "float32 or bfloat16")
        for name in ("batch_size", "max_prompt_tokens", "concurrency"):
            require(self, name, is_whole(getattr(self, name)) and getattr(self, name) >= 1, "at least 1")
        require(self, "max_retries", self.max_retries >= 0, "at least 0")
        require(self, "timeout", 0 < self.timeout < math.inf, "positive and finite")
        require(self, "backoff", 0 <= self.backoff < math.inf, "zero or positive, and finite")


def api_key(config: ChatModelConfig) -> str | None:
    """Return the API key of a server, or None if `api_key_env` is None.

    Raises:
        PlamoError: the environment variable is empty or has a character that no key has. The message does not show the value.
    """
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise PlamoError(
            f"the environment variable {config.api_key_env} is empty: it must contain the API key of {config.url}"
        )
    # This check comes first, because the error message for an invalid HTTP header would show the key.
    if not re.fullmatch(r"[!-~]+", key):
        raise PlamoError(
            f"the environment variable {config.api_key_env} is not an API key: only ASCII letters, digits and punctuation are allowed. "
            "Remove other characters, such as spaces and ends of lines"
        )
    return key


def _is_address(url: str) -> bool:
    """Return whether `url` is a valid HTTP address without query, fragment and credentials."""
    if not re.fullmatch(r"https?://[!-~]+", url) or set(url) & set("?#@"):
        return False
    try:
        parts = urllib.parse.urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
