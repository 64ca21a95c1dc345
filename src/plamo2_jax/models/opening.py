"""Open a chat model by its name."""

from __future__ import annotations

import os
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.models.attempts import AttemptGate
from plamo2_jax.models.chat_model import ChatModel
from plamo2_jax.models.config import ChatModelConfig


def open(
    name: str | os.PathLike[str] | ChatModelConfig, *, gate: AttemptGate | None = None, **fields: Any
) -> ChatModel:
    """Open a chat model. Use the result as a context manager, or call `close` at the end.

    Args:
        name: run folder, RUN@STEP, RUN@ema, folder in Hugging Face format, folder of adapters, address of an OpenAI-compatible server
            (http://HOST/v1 or https://HOST/v1), or a `ChatModelConfig`.
        gate: delays, forbids and counts the HTTP requests to a server. The local engine does not use it.
        fields: other fields of `ChatModelConfig`. With an address, `model` is the name of the model on the server.

    Raises:
        PlamoError: the folder is not a model or has no tokenizer, a field is out of range, or the API key is missing.
    """
    if isinstance(name, ChatModelConfig):
        config = name
    elif str(name).startswith(("http://", "https://")):
        if not fields.get("model"):
            raise PlamoError(f"{name} is the address of a server: give the name of the model there as `model`")
        config = ChatModelConfig(url=str(name), **fields)
    else:
        config = ChatModelConfig(os.fspath(name), **fields)
    if config.url is not None:
        from plamo2_jax.models.openai_client import OpenAIClient

        return OpenAIClient(config, gate)
    from plamo2_jax.models.local import LocalChatModel

    return LocalChatModel.open(config)
