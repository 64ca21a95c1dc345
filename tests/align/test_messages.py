"""One form for every spelling of a message: roles, text parts, tool calls, tools, and marks of what is trained on."""

import json
from pathlib import Path

import numpy as np
import pytest

from plamo2_jax.align.chat import encode_conversation, to_conversation
from plamo2_jax.align.examples import Examples
from plamo2_jax.align.messages import CALLERS, SPEAKERS, TRAIN_MARKS, read_messages, read_tools
from plamo2_jax.align.pairs import encode_pair, to_pair
from plamo2_jax.align.sft import COLLATOR, to_element
from plamo2_jax.data.documents import UnreadableRecord
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, one_pass
from plamo2_jax.models import openai_format
from plamo2_jax.tokenizer.chat_template import ChatTemplate

CASES = Path(__file__).parent / "cases"
ASK = {"role": "user", "content": "Tide in Kobe?"}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Kobe"}}}
RESULT = {"role": "tool", "content": "06:12"}
END = {"role": "assistant", "content": "6:12."}
TOOL = {"type": "function", "function": {"name": "tide", "description": "When?", "parameters": {"type": "object"}}}


def cases(name):
    return {line["name"]: line for line in map(json.loads, (CASES / name).read_text(encoding="utf-8").splitlines())}


def tokens(record, tokenizer, template):
    example, what = encode_conversation(to_conversation(record, "x"), template, tokenizer, 10_000, "refuse")
    assert what == "whole"
    return example.ids.tolist(), example.trained.tolist()


def test_spellings_of_tool_calls_give_the_same_tokens(tokenizer, template):
    records = cases("tool_calls.jsonl")
    found = {name: tokens(r, tokenizer, template) for name, r in records.items() if not name.startswith("wrong")}
    for name, ids in found.items():
        assert ids == found["same_1" if name.startswith("same") else "none_1"], name
    text = tokenizer.decode(found["same_1"][0])
    assert '<tool_call>{"name": "tide", "arguments": {"port": "Kobe"}}</tool_call>' in text
    assert "tools\n" in text
    assert "tool" not in tokenizer.decode(found["none_1"][0])


@pytest.mark.parametrize(
    "calls",
    [
        {"tool_calls": [CALL | {"index": 0}]},
        {"tool_calls": [{"function": {"arguments": {"port": "Kobe"}, "name": "tide"}}]},
        {"tool_calls": [{"name": "tide", "arguments": {"port": "Kobe"}}]},
        {"tool_calls": [{"name": "tide", "parameters": '{"port":"Kobe"}'}]},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": json.dumps([json.dumps(CALL)])},
        {"tool_calls": [{"type": "function", "function": json.dumps(CALL["function"])}]},
        {"tool_calls": None, "function_call": {"name": "tide", "arguments": '{"port": "Kobe"}'}},
    ],
)
def test_every_spelling_of_a_call(calls):
    (message,) = read_messages([{"role": "assistant", "content": None, **calls}])
    assert message == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert read_messages([message]) == [message]


@pytest.mark.parametrize("empty", [None, [], {}, "", " ", "[]", "null", "{}"])
def test_empty_calls_and_tools_are_none(empty):
    (message,) = read_messages([END | {"tool_calls": empty}])
    assert message == END
    assert read_tools(empty) is None


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        [{"description": "When?", "parameters": '{"type": "object"}', "name": "tide"}],
        [
            {
                "type": "function",
                "name": "tide",
                "description": "When?",
                "parameters": {"type": "object"},
                "strict": None,
            }
        ],
    ],
)
def test_every_spelling_of_a_tool(tools, tokenizer, template):
    assert json.dumps(read_tools(tools)) == json.dumps([TOOL])
    record = {"messages": [ASK, END]}
    assert tokens(record | {"tools": tools}, tokenizer, template) == tokens(
        record | {"functions": [TOOL["function"]]}, tokenizer, template
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_calls": [5]}, "tool_calls of message 1, call 1 is 5; it must be an object"),
        ({"tool_calls": {"name": "tide"}}, "must be a list"),
        ({"tool_calls": "tide(Kobe)"}, r"tool_calls of message 1 is the text 'tide\(Kobe\)'; it must be a list"),
        ({"tool_calls": "[5]"}, "call 1 is 5"),
        ({"tool_calls": 3}, "tool_calls of message 1 is 3"),
        ({"tool_calls": [{"arguments": {}}]}, "call 1: name is None"),
        ({"tool_calls": [{"name": ["a"], "arguments": {}}]}, "name is"),
        ({"tool_calls": [{"name": "a", "arguments": "Kobe"}]}, "arguments .* is the text 'Kobe'; it must be an object"),
        ({"tool_calls": [{"name": "a", "arguments": "[1]"}]}, "they must be an object"),
        ({"tool_calls": [{"name": "a", "arguments": 5}]}, "call 1: 5; they must be an object"),
        ({"tool_calls": [{"name": "a", "arguments": {"x": 1}, "parameters": {"x": 2}}]}, "are different"),
        ({"tool_calls": [{"type": "custom", "custom": {}}]}, "is of type 'custom'"),
        ({"tool_calls": [{"function": "tide", "arguments": {}}]}, "function of tool_calls"),
        ({"function_call": "tide"}, "function_call of message 1 is the text 'tide'"),
        ({"tool_calls": "[" * 5000}, "must be a list"),
        ({"role": "user", "tool_calls": [CALL]}, "message 1 of user; remove its tool_calls"),
        ({"content": 5}, "holds 5; it must be a text or a list of text parts"),
        ({"content": {"type": "text", "text": "a"}}, "holds"),
        ({"content": ["a"]}, "only text is read"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, "part 1: 'image_url'; only text is read"),
        ({"content": [{"type": "text", "text": 5}]}, "part 1 has no text"),
        ({"content": [{"type": ["text"], "text": "a"}]}, "only text is read"),
        ({"content": "a", "value": "b"}, "content and value are different"),
        ({"role": "user", "from": "gpt"}, "role and from are different"),
        ({"role": None}, "has no role"),
        ({"role": ["user"]}, "unknown role"),
        ({"role": {"name": "user"}}, "unknown role"),
        ({"role": 5}, "unknown role"),
        ({"role": None, "from": "function"}, "is from 'function'"),
    ],
)
def test_malformed_messages_are_named(fields, message):
    with pytest.raises(UnreadableRecord) as raised:
        read_messages([{"role": "assistant", "content": "a", **fields}])
    error = raised.value
    assert len(f"{error.reason} ({error.detail})") < 300
    with pytest.raises(ValueError, match=message):
        raise ValueError(f"{error.reason} ({error.detail})")


@pytest.mark.parametrize(
    "tools", [5, {"name": "tide"}, "tide", ["tide"], [5], [{}], [{"type": "retrieval"}], [{"name": 5}]]
)
def test_malformed_tools_are_refused(tools):
    with pytest.raises(UnreadableRecord):
        read_tools(tools)


def test_every_speaker_has_a_role():
    for speaker, role in SPEAKERS.items():
        text = json.dumps(CALL["function"]) if speaker in CALLERS else "a"
        for spelling in (speaker, speaker.upper(), speaker.replace("_", "-")):
            (message,) = read_messages([{"from": spelling, "value": text}])
            assert message["role"] == role
            assert message.get("tool_calls") == ([CALL] if speaker in CALLERS else None)
    assert read_messages([{"role": "function", "name": "tide", "content": "a"}])[0]["role"] == "tool"


def test_calls_in_a_row_are_one_answer():
    call = {"from": "function_call", "value": json.dumps(CALL["function"])}
    both = {"from": "function_call", "value": json.dumps([CALL["function"], CALL["function"]])}
    assert read_messages([call, call]) == read_messages([both])
    assert len(read_messages([call, {"from": "observation", "value": ""}, call])) == 3
    for value in ("tide", "", "5", "[]", '{"tool": "tide"}'):
        with pytest.raises(UnreadableRecord):
            read_messages([{"from": "function_call", "value": value}])


MARKS = [{name: value} for name in TRAIN_MARKS for value in (0, False, 0.0)] + [{"masked": 1}, {"masked": True}]
KEEPS = [{name: value} for name in TRAIN_MARKS for value in (1, True, 1.0)] + [{"masked": 0}, {"masked": False}]


@pytest.mark.parametrize(("marks", "trained"), [(MARKS, False), (KEEPS, True)])
def test_marks_of_every_tool_are_read(marks, trained):
    for mark in marks:
        (message,) = read_messages([END | mark])
        assert message == (END if trained else END | {"train": False}), mark
        assert read_messages([message]) == [message]


@pytest.mark.parametrize(
    "marks",
    [
        {"weight": 0.5},
        {"weight": 2},
        {"weight": -1},
        {"weight": "0"},
        {"weight": float("nan")},
        {"weight": [0]},
        {"train": "false"},
        {"loss": 1.7},
        {"weight": 0, "train": True},
        {"train": True, "masked": True},
        {"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]},
    ],
)
def test_other_marks_are_refused(marks):
    with pytest.raises(UnreadableRecord, match="mark"):
        read_messages([END | marks])


@pytest.mark.parametrize("weighting", ["token", "conversation"])
def test_marked_messages_have_no_weight_in_a_packed_batch(tokenizer, template, weighting):
    turns = [
        [{"role": "user", "content": f"{c}?"}, {"role": "assistant", "content": c * 3, **mark}]
        for c, mark in (("a", {"weight": 0}), ("b", {"weight": 1}), ("c", {"train": False}), ("d", {}))
    ]
    records = [{"messages": [message for turn in turns for message in turn]}, {"messages": [*turns[1], *turns[0]]}]
    examples = [encode_conversation(to_conversation(r, "x"), template, tokenizer, 200, "refuse")[0] for r in records]
    config = DataConfig((MixtureItem("x"),), 200, 1, packing_bins=1, prefetch_batches=0)
    (batch,) = one_pass(config, Examples([to_element(one, weighting) for one in examples]), COLLATOR)
    weights, targets, segments = (batch[name][0] for name in ("loss_weights", "targets", "segment_ids"))
    found = {tokenizer.decode(targets[(segments == s) & (weights > 0)]) for s in (1, 2)}
    assert found == {"bbb<|plamo:eos|>ddd<|plamo:eos|>", "bbb<|plamo:eos|>"}
    # Marked messages stay in the context.
    assert all("aaa" in tokenizer.decode(targets[segments == s]) for s in (1, 2))
    if weighting == "conversation":
        np.testing.assert_allclose([weights[segments == s].sum() for s in (1, 2)], 1, rtol=1e-6)


def test_marks_leave_the_tokens_alone(tokenizer, template):
    plain, _ = tokens({"messages": [ASK, END, ASK, END]}, tokenizer, template)
    ids, trained = tokens({"messages": [ASK | {"weight": 1}, END | {"loss": False}, ASK, END]}, tokenizer, template)
    assert ids == plain
    assert sum(trained) == len(tokenizer.encode("6:12.", eos=True))


def test_a_conversation_without_trained_messages_is_bad():
    with pytest.raises(UnreadableRecord) as raised:
        to_conversation({"messages": [ASK, END | {"weight": 0}]}, "x")
    assert "are marked as not trained" in raised.value.detail


def test_truncation_keeps_a_message_to_train_on(tokenizer, template):
    messages = [ASK, END | {"train": False}, ASK, {"role": "assistant", "content": "x" * 40}]
    conversation = to_conversation({"messages": messages}, "x")
    limit = len(encode_conversation(conversation, template, tokenizer, 10_000, "refuse")[0].ids) - 10
    # Without its last answer there is nothing to train on.
    assert encode_conversation(conversation, template, tokenizer, limit, "last") == (None, "too long")
    for truncate in ("first", "end"):
        example, what = encode_conversation(conversation, template, tokenizer, limit, truncate)
        assert what == "truncated"
        assert set(tokenizer.decode(example.ids[example.trained]).removesuffix("<|plamo:eos|>")) == {"x"}


def test_a_template_must_mark_each_message(tokenizer):
    both = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
    conversation = to_conversation({"messages": [ASK, END, END | {"weight": 0}]}, "x")
    with pytest.raises(UnreadableRecord) as raised:
        encode_conversation(conversation, ChatTemplate(both), tokenizer, 100, "refuse")
    assert "marks 1 passages for 2 messages" in raised.value.detail


def test_marks_of_an_answer_count_in_preferences(tokenizer, template):
    chosen = [{"role": "assistant", "content": "", "tool_calls": [CALL], "weight": 0}, RESULT, END]
    prompt = [ASK, END | {"train": False}, ASK]
    pair = to_pair({"prompt": prompt, "chosen": chosen, "rejected": "No."}, "x")
    element, _ = encode_pair(pair, template, tokenizer, 1000, "refuse")
    for side, text in ((0, "6:12."), (1, "No.")):
        counted = (element["role"] == side) & (element["weights"] > 0)
        assert tokenizer.decode(element["targets"][counted]) == f"{text}<|plamo:eos|>"


def test_an_endpoint_gets_arguments_as_text():
    messages = read_messages([ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT])
    sent = openai_format.messages(messages)
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == '{"port": "Kobe"}'
    assert [sent[0], sent[2]] == [ASK, RESULT]
    assert read_messages(sent) == messages
