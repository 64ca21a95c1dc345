"""Chat templates rendered by transformers: the same text, and the same stretches of the assistant. `make peers` installs it."""

import pytest

from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, Tokenizer

pytestmark = pytest.mark.peer

MESSAGES = [
    {"role": "system", "content": "短く。"},
    {"role": "user", "content": "Name?  "},
    {"role": "assistant", "content": " 吾輩は\n猫"},
    {"role": "user", "content": "<b>&amp;</b>"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"猫": "<1>"}}}]},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "42."},
]


@pytest.mark.parametrize(("name", "messages"), [("chat", MESSAGES), ("translate", MESSAGES[1:3] + MESSAGES[1:3])])
def test_transformers_renders_the_same(name, messages):
    utilities = pytest.importorskip("transformers.utils.chat_template_utils", reason="transformers is not installed")
    tokenizer = Tokenizer.from_rows(
        [
            ["<|plamo:unk|>", 0.0, "UNKNOWN"],
            *([token, 0.0, "CONTROL"] for token in (BOS, EOS, "<|plamo:pad|>", "<|plamo:op|>")),
            *([f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256)),
        ]
    )
    template = ChatTemplate.load(name)
    (text,), (spans,) = utilities.render_jinja_template(
        conversations=[messages],
        chat_template=template.source,
        return_assistant_tokens_mask=True,
        bos_token=BOS,
        eos_token=EOS,
    )
    chat = template.encode(tokenizer, messages)
    assert tokenizer.decode(chat.ids) == text
    ours = [tokenizer.decode(chat.ids[chat.answer == i]) for i in range(1, chat.answer.max() + 1)]
    assert ours == [text[start:end] for start, end in spans]
