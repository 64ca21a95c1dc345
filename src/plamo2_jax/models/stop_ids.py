"""Token ids that end an answer."""

from __future__ import annotations

import numpy as np

from plamo2_jax.engine.generator import default_stop_ids
from plamo2_jax.model import Plamo2
from plamo2_jax.tokenizer.chat_template import ChatTemplate, ChatTemplateError
from plamo2_jax.tokenizer.tokenizer import Tokenizer


def answer_stop_ids(model: Plamo2, template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end an answer: the ids that end a document, and the template's end-of-answer token."""
    return tuple(sorted({*default_stop_ids(model, tokenizer), *end_ids(template, tokenizer)}))


def end_ids(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the template's end-of-answer token: the first control token in or after the assistant's text. It may have none."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        chat = template.encode(tokenizer, messages)
    except ChatTemplateError:
        return ()  # The template needs other variables, such as languages. The ids that end a document still end an answer.
    positions = np.flatnonzero(chat.answer)
    rest = chat.ids[positions[0] :] if len(positions) else chat.ids[:0]
    return tuple(int(id) for id in rest if tokenizer.is_special(int(id)))[:1]
