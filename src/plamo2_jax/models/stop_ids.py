"""Token ids that end an answer."""

from __future__ import annotations

import numpy as np

from plamo2_jax.engine.generator import default_stop_ids
from plamo2_jax.model import Plamo2
from plamo2_jax.tokenizer.chat_template import ChatTemplate, ChatTemplateError
from plamo2_jax.tokenizer.tokenizer import Tokenizer


def answer_stop_ids(model: Plamo2, template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end an answer: those that end a document, and the one that the template puts behind an answer."""
    return tuple(sorted({*default_stop_ids(model, tokenizer), *end_ids(template, tokenizer)}))


def end_ids(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the control token that ends an answer in a template, in the text it marks as the assistant's or the first behind it."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        chat = template.encode(tokenizer, messages)
    except ChatTemplateError:
        return ()  # A template that needs more than messages, such as languages. Ids that end a document still end an answer.
    positions = np.flatnonzero(chat.answer)
    behind = chat.ids[positions[0] :] if len(positions) else chat.ids[:0]
    return tuple(int(id) for id in behind if tokenizer.is_special(int(id)))[:1]
