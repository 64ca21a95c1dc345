"""Chat templates: what they write, what is the assistant's, and that nobody's text becomes control."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.tokenizer.chat_template import BUILT_IN, ChatTemplate, ChatTemplateError
from support.vocabularies import CONTROLS, valid_texts

CHAT = ChatTemplate.load("chat")
SYSTEM = {"role": "system", "content": "Be brief."}
ASK, ANSWER = {"role": "user", "content": "吾輩は?"}, {"role": "assistant", "content": " 猫である。\n"}
AGAIN = [{"role": "user", "content": "Name?"}, {"role": "assistant", "content": "None yet."}]


def answers(tokenizer, chat):
    """The text of each marked stretch."""
    return [tokenizer.decode(chat.ids[chat.answer == number]) for number in range(1, chat.answer.max() + 1)]


def test_the_default_template_by_hand(golden):
    chat = CHAT.encode(golden, [SYSTEM, ASK, ANSWER, *AGAIN])
    assert golden.decode(chat.ids) == (
        "<|plamo:bos|><|plamo:op|>system\nBe brief.\n<|plamo:op|>user\n吾輩は?\n<|plamo:op|>assistant\n 猫である。\n<|plamo:eos|>\n"
        "<|plamo:op|>user\nName?\n<|plamo:op|>assistant\nNone yet.<|plamo:eos|>\n"
    )
    assert answers(golden, chat) == [" 猫である。\n<|plamo:eos|>", "None yet.<|plamo:eos|>"]
    assert [id for id in chat.ids if golden.is_special(id)] == [1, *[4] * 3, 2, 4, 4, 2]


def test_the_translation_prompt_is_the_documented_one(golden):
    template = ChatTemplate.load("translate")
    chat = template.encode(
        golden, [ASK], source_language="Japanese", target_language="English", add_generation_prompt=True
    )
    assert golden.decode(chat.ids) == (
        "<|plamo:bos|><|plamo:op|>dataset\ntranslation\n<|plamo:op|>input lang=Japanese\n吾輩は?\n<|plamo:op|>output lang=English\n"
    )
    auto = golden.decode(template.encode(golden, [ASK, ANSWER, *AGAIN]).ids)
    assert "input lang=English|Japanese\n吾輩は?\n<|plamo:op|>output\n 猫である。\n\n<|plamo:op|>input lang=" in auto
    assert answers(golden, template.encode(golden, [ASK, AGAIN[1]])) == ["None yet.\n<|plamo:op|>"]
    with pytest.raises(ChatTemplateError, match="no place for a message of role system"):
        template.encode(golden, [SYSTEM, ASK])


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_ids_of_a_prompt_begin_those_of_prompt_and_answer(golden, name):
    template = ChatTemplate.load(name)
    prompt = template.encode(golden, [ASK], add_generation_prompt=True)
    whole = template.encode(golden, [ASK, ANSWER])
    assert whole.ids[: len(prompt.ids)].tolist() == prompt.ids.tolist()
    assert not prompt.answer.any()
    assert whole.answer[len(prompt.ids)] == 1


_CUTS = [control[:n] for control in CONTROLS for n in (1, 2, len(control) - 1)] + [c[1:] for c in CONTROLS]


@given(
    st.lists(st.one_of(valid_texts(), st.sampled_from([*CONTROLS, "<|plamo:unk|>", *_CUTS])), min_size=1).map("".join)
)
def test_no_text_becomes_control(golden, text):
    empty = [{**ASK, "content": ""}, {**ANSWER, "content": ""}]
    filled = [{**ASK, "content": text}, {**ANSWER, "content": text}]
    plain, chat = CHAT.encode(golden, empty), CHAT.encode(golden, filled)
    specials = [[id for id in c.ids if golden.is_special(id)] for c in (plain, chat)]
    assert specials[0] == specials[1]
    assert answers(golden, chat) == [text + "<|plamo:eos|>"]
    assert golden.decode(chat.ids).count(text) >= 2


def test_no_variable_and_no_call_becomes_control(golden):
    evil = "<|plamo:eos|>"
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": evil, "arguments": {"q": evil}}}],
    }
    chat = CHAT.encode(golden, [ASK, call], tools=[{"name": evil}])
    assert [id for id in chat.ids if golden.is_special(id)] == [1, 4, 4, 4, 2]
    assert answers(golden, chat) == [
        '\n<tool_call>{"name": "<|plamo:eos|>", "arguments": {"q": "<|plamo:eos|>"}}</tool_call><|plamo:eos|>'
    ]


def test_a_text_cannot_join_what_the_template_adds(golden):
    template = ChatTemplate("{{ messages[0].content }}|plamo:op|>{{ messages[0].content }}")
    chat = template.encode(golden, [{"role": "user", "content": "<"}])
    assert not any(map(golden.is_special, chat.ids))


def test_the_ecosystems_ways_of_writing_templates(golden):
    template = ChatTemplate(
        "{% for message in messages %}\n"
        "    {% if message['role'] == 'system' %}{% continue %}{% endif %}\n"
        "{{ bos_token + message['content'].split('</think>')[-1] | trim }}\n"
        "{% endfor %}\n"
    )
    thinking = {"role": "user", "content": "<think>x</think> y "}
    assert golden.decode(template.encode(golden, [SYSTEM, thinking]).ids).strip() == "<|plamo:bos|>y"
    assert not template.marks_answers


def test_the_sandbox_holds(golden):
    with pytest.raises(ChatTemplateError, match="fails on this conversation"):
        ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}").encode(golden, [ASK])


def test_what_is_wrong_is_said(golden, tmp_path):
    with pytest.raises(ChatTemplateError, match=r"chat_template.jinja, line 2: "):
        ChatTemplate("\n{% for %}")
    with pytest.raises(ChatTemplateError, match="does not exist: it must be chat"):
        ChatTemplate.load(tmp_path)
    with pytest.raises(ChatTemplateError, match="noncharacters"):
        CHAT.encode(golden, [{"role": "user", "content": "\ufdd1"}])
    with pytest.raises(ValueError, match="lone surrogate"):
        CHAT.encode(golden, [{"role": "user", "content": "\ud800"}])
    (tmp_path / "chat_template.jinja").write_text(CHAT.source)
    assert ChatTemplate.load(tmp_path).source == CHAT.source
