"""Prompts from text and conversations. Long texts are encoded in another thread, so that streams continue."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plamo2_jax.errors import PlamoError
from plamo2_jax.serve.errors import ApiError, invalid
from plamo2_jax.serve.served_model import ServedModel
from plamo2_jax.tokenizer.chat_template import ChatTemplateOverrun

# Characters that are encoded in the event loop: fewer than a millisecond's.
_SHORT = 4096


async def encode_text(model: ServedModel, text: str, *, bos: bool, param: str = "prompt") -> np.ndarray:
    """Return the ids [t] i32 of a text, in which control strings are text.

    Raises:
        ApiError: it holds a lone surrogate, or is too long for the model however it is cut into tokens.
    """
    _require_short(model, len(text), param)

    def encode() -> np.ndarray:
        try:
            return model.tokenizer.encode(text, bos=bos)
        except PlamoError as error:
            raise invalid(param, f"{param}: {error}") from error

    return encode() if len(text) <= _SHORT else await asyncio.to_thread(encode)


async def encode_chat(
    model: ServedModel, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> np.ndarray:
    """Return the ids [t] i32 of a conversation, up to where the answer begins.

    Raises:
        ApiError: the model has no chat template, the template refuses the conversation, or it is too long.
    """
    if model.template is None:
        raise ApiError(
            400,
            f"the model {model.name} has no chat template: use /v1/completions, or start the server with --template",
            code="no_chat_template",
        )
    template = model.template
    _require_short(model, sum(len(message["content"]) for message in messages), "messages")

    def encode() -> np.ndarray:
        try:
            return template.encode(model.tokenizer, messages, add_generation_prompt=True, **variables).ids
        except ChatTemplateOverrun as error:
            raise invalid("messages", str(error)) from error
        except PlamoError as error:
            raise invalid("messages", f"the chat template refuses the conversation: {error}") from error

    # Templates of others are rendered by another process.
    ids = await asyncio.to_thread(encode)
    if not len(ids):
        raise invalid("messages", "the chat template returns no tokens for the conversation")
    return ids


def _require_short(model: ServedModel, characters: int, param: str) -> None:
    """Refuse a text that has too many tokens whatever they are, without encoding it."""
    most = model.max_length * model.longest_token
    if characters > most:
        raise invalid(
            param,
            f"{param} has {characters} characters: the model {model.name} has a context of {model.max_length} "
            f"tokens with at most {model.longest_token} characters each",
            "context_length_exceeded",
        )
