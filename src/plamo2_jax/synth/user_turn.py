"""The prompt that lets a chat model write a message of the user (Magpie, arXiv:2406.08464).

A chat model that continues the text before the user's message writes a message that a user might send. The text before it comes from the
chat template, with control tokens. A text in a request never becomes control tokens, so a model in this process gets token ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from plamo2_jax.models import ChatModel
from plamo2_jax.models.chat_model import Prompt
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, OP

# Two messages without a common beginning or end.
_CONTENTS = ("あ", "b")


@dataclasses.dataclass(frozen=True)
class UserTurn:
    """The beginning of a user's message."""

    prompt: Prompt
    """Token ids, or the text for a server."""
    bos: bool = False
    """Whether the beginning-of-document id is put before a text."""
    stop_ids: tuple[int, ...] | None = None
    """Ids that end the message. None: the ids of the server."""


def local_user_turn(model: ChatModel) -> UserTurn | None:
    """Return the beginning of a user's message in the chat template of a model in this process, or None for a server."""
    template, tokenizer = getattr(model, "template", None), getattr(model, "tokenizer", None)
    if template is None or tokenizer is None:
        return None
    encoded = [_encode(template, tokenizer, content) for content in _CONTENTS]
    start = _shared(*encoded)
    end = _shared(*(ids[::-1] for ids in encoded))
    after = encoded[0][len(encoded[0]) - end :]
    controls = [id for id in after if tokenizer.is_special(id)]
    ends = {tokenizer.id_of(name) for name in (BOS, EOS, OP) if name in tokenizer.tokens}
    return UserTurn(encoded[0][:start], stop_ids=tuple(sorted(ends | set(controls[:1]))))


def _encode(template: Any, tokenizer: Any, content: str) -> list[int]:
    message = {"role": "user", "content": content}
    return template.encode(tokenizer, [message], add_generation_prompt=True).ids.tolist()


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
