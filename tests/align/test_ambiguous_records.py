"""Records that could be read in two ways: answers that look like conversations, prompts with further fields, and texts beside answers."""

import pytest

from plamo2_jax.align.chat import to_conversation
from plamo2_jax.align.heldout import holds_text
from plamo2_jax.align.pairs import to_pair
from plamo2_jax.align.preference_data.prompts import to_prompt


@pytest.mark.parametrize(
    "text",
    ["Assistant: Hello", "Human: a\n\nAssistant: b", "User: hello\n\nAssistant: c", '{"role": "user", "content": "x"}'],
)
def test_an_answer_that_looks_like_a_conversation_is_trained_as_it_is(text):
    """Models invent further turns. A list of messages, a text and a question in a field of its own."""
    said = {"role": "assistant", "content": text}
    for question in ({"prompt": [{"role": "user", "content": "Hi"}]}, {"prompt": "Hi"}, {"question": "Hi"}):
        for chosen in (text, [said]):
            pair = to_pair({**question, "chosen": chosen, "rejected": "no"}, "")
            assert (pair.prompt, pair.chosen) == (({"role": "user", "content": "Hi"},), (said,))
    for field in ("instruction", "question"):
        messages = to_conversation({field: text, "output": "y"}, "").messages
        assert messages == ({"role": "user", "content": text}, {"role": "assistant", "content": "y"})
    messages = to_conversation({"instruction": "Hi", "output": text}, "").messages
    assert messages == ({"role": "user", "content": "Hi"}, said)


def test_prompts_lose_all_that_is_read_otherwise():
    """What is left becomes fields of the pairs, which must not be read as a second question or answer."""
    record = {
        "messages": [{"role": "user", "content": "Hi?"}],
        **{
            "question": "other",
            "response": "old",
            "text": "t",
            "conversations": [],
            "instruction": "Hi?",
            "topic": "greetings",
        },
        "history": [["a", "b"]],
    }
    prompt = to_prompt(record, "", {})
    assert prompt.variables == {"topic": "greetings"}
    sides = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    pair = to_pair({"prompt": list(prompt.messages), **sides, **prompt.variables}, "")
    assert pair.prompt == prompt.messages


@pytest.mark.parametrize(
    ("record", "is_text"),
    [
        ({"text": "a"}, True),
        ({"text": "a", "question": "q"}, True),
        ({"text": "a", "output": "b"}, False),
        ({"text": "a", "messages": [{"role": "user", "content": "x"}]}, False),
        ({"prompt": "a", "completion": "b"}, False),
    ],
)
def test_held_out_records_are_documents_or_conversations(write_lines, record, is_text):
    """A column `text` beside an answer, as in tatsu-lab/alpaca and ichikara, makes no document."""
    assert holds_text(write_lines([record])) is is_text
