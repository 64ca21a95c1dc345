"""Tool calls: any split of the stream gives the same calls, never half a call, and text that only looks like a call stays text."""

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.engine.grammar import compile_grammar
from plamo2_jax.serve.tool_calls import Tool, ToolCall, ToolCallParser, tool_call_grammar

WEATHER = Tool(
    "weather",
    {
        "type": "object",
        "properties": {"city": {"enum": ["東京", "</tool_call>", 'a"b']}, "days": {"$ref": "#/$defs/days"}},
        "required": ["city", "days"],
        "additionalProperties": False,
        "$defs": {"days": {"type": "integer", "minimum": 0, "maximum": 9}},
    },
)
NOW = Tool("now", {"type": "object", "properties": {}, "additionalProperties": False})
TOOLS = {tool.name: tool for tool in (WEATHER, NOW)}


def parse(pieces):
    parser = ToolCallParser(TOOLS)
    parts = [part for piece in pieces for part in parser.push(piece)]
    return merged([*parts, *parser.finish()])


def merged(parts):
    result = []
    for part in parts:
        if isinstance(part, str) and result and isinstance(result[-1], str):
            result[-1] += part
        elif part != "":
            result.append(part)
    return result


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6)
    | st.sampled_from(["</tool_call>", "<tool_call>{", '\\"', "\n<tool_call>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def calls(draw):
    """A call, and a way to write it."""
    arguments = json.dumps(
        draw(st.dictionaries(st.text(max_size=4), json_values, max_size=3)),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 2])),
    )
    call = ToolCall(draw(st.sampled_from(sorted(TOOLS))), arguments)
    members = [f'"name": "{call.name}"', f'"arguments" :{arguments}']
    space = draw(st.sampled_from(["", "\n", "  "]))
    body = ", ".join(members[:: draw(st.sampled_from([1, -1]))])
    return call, f"{draw(st.sampled_from(['', chr(10)]))}<tool_call>{space}{{{body}{space}}}{space}</tool_call>"


# Texts that begin like calls, none of which is one or completes one.
LOOKALIKES = [
    "<tool_call>",
    "\n<tool_call",
    "<tool_call>{}</tool_call>",
    "</tool_call>",
    '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "now", "arguments": []}</tool_call>',
    '<tool_call>{"name": "now", "arguments": {}, "more": 1}</tool_call>',
    '<tool_call>{"name": "now", "arguments": {"a": 01}}</tool_call>',
    '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>',
    '<tool_call>{"name": "now", "arguments": {"a" 1}}</tool_call>',
    '<tool_call>{"name": "now", "arguments": {}]</tool_call>',
    '<tool_call>{"name": "now", "arguments": {"a": "\n"}}</tool_call>',
    '<tool_call>["now"]</tool_call>',
    '<tool_call>{"name": "now", "arguments": {}} extra </tool_call>',
    '<tool_call>{"name": "now", "arguments": {}}<tool_call>',
    "<tool_call>" + '{"a":' * 200,
    "the model writes <tool_call> before a call",
    "\n\n",
    "<",
]
texts = st.sampled_from(LOOKALIKES) | st.text(st.sampled_from('<>{}"\\:, \nto猫'), max_size=8)


@st.composite
def pieces_of(draw, text):
    """A way to cut a text into pieces."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(st.lists(texts, max_size=6).map("".join), st.data())
def test_text_that_is_no_call_comes_out_as_it_is(text, data):
    assert "".join(parse(data.draw(pieces_of(text)))) == text
    assert "".join(parse(text)) == text


@given(st.lists(st.tuples(st.sampled_from(["", "hello", "a < b\n.", "<tool_call> "]), calls()), max_size=3), st.data())
def test_any_split_gives_the_same_calls(segments, data):
    stream = "".join(text + written for text, (_, written) in segments)
    expected = merged([part for text, (call, _) in segments for part in (text, call)])
    assert parse([stream]) == expected
    assert parse(stream) == expected
    assert parse(data.draw(pieces_of(stream))) == expected


@given(st.lists(texts | calls().map(lambda call: call[1]), max_size=6).map("".join), st.data())
def test_any_split_of_any_text_gives_the_same(text, data):
    assert parse(data.draw(pieces_of(text))) == parse([text]) == parse(text)


def test_a_call_comes_out_at_once_when_it_is_complete():
    stream = 'It is:\n<tool_call>{"name": "weather", "arguments": {"city": "東京", "days": 3}}</tool_call>'
    parser = ToolCallParser(TOOLS)
    parts = [parser.push(character) for character in stream]
    assert "".join(part for row in parts[:-1] for part in row) == "It is:"
    assert parts[-1] == [ToolCall("weather", '{"city": "東京", "days": 3}')]
    assert parser.finish() == []


def test_half_a_call_is_text_at_the_end():
    stream = 'x\n<tool_call>{"name": "weather", "argum'
    assert parse(stream) == [stream]


def test_text_that_cannot_be_a_call_is_not_held_back():
    parser = ToolCallParser(TOOLS)
    assert parser.push("a <tool_c") == ["a "]
    assert parser.push("at>") == ["<tool_cat>"]
    assert parser.push("<tool_call>{'") == ["<tool_call>{'"]


def test_hostile_text_takes_linear_time():
    unit = '<tool_call>{"a":["<tool_call>{"'
    assert parse([unit * 20_000]) == [unit * 20_000]


def walk(make, tokenizer, seed, start=""):
    constraint, rng, text = make(), np.random.default_rng(seed), start.encode()
    for token in tokenizer.encode(start):
        constraint.push(int(token))
    for _ in range(400):
        bits = constraint.allowed().astype("<u4").view(np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        token = int(rng.choice(allowed))
        # Random text nearly never ends by itself.
        token = tokenizer.eos_id if tokenizer.eos_id in allowed and rng.random() < 0.4 else token
        if token == tokenizer.eos_id:
            return text.decode()
        constraint.push(token)
        text += tokenizer.token_bytes(token)
    raise AssertionError(text)


def grammar_maker(tokenizer, **options):
    return compile_grammar(
        tool_call_grammar(**options), tokenizer, vocab_size=288, stop_ids=(tokenizer.eos_id,)
    )  # fmt: skip


def require_calls(parts):
    assert all(isinstance(part, ToolCall) for part in parts)
    for call in parts:
        jsonschema.validate(json.loads(call.arguments), TOOLS[call.name].parameters)


@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_are_valid(tokenizer, parallel):
    make = grammar_maker(tokenizer, tools=[WEATHER, NOW], required=True, parallel=parallel)
    counts = set()
    for seed in range(20):
        parts = parse([walk(make, tokenizer, seed)])
        require_calls(parts)
        counts.add(len(parts))
    assert counts == {1} if not parallel else {1, 2} <= counts


def test_a_named_tool_is_called(tokenizer):
    make = grammar_maker(tokenizer, tools=[NOW], required=True, parallel=False)
    assert parse([walk(make, tokenizer, 0)]) == [ToolCall("now", "{}")]


def test_free_text_becomes_a_valid_call_once_a_call_begins(tokenizer):
    make = grammar_maker(tokenizer, tools=[WEATHER, NOW], required=False, parallel=True)
    for seed in range(10):
        text, *parts = parse([walk(make, tokenizer, seed, start="a <tool_cat> \n<tool_call>")])
        assert text == "a <tool_cat> "
        assert parts
        require_calls(parts)
        # Without the mark, any text is allowed, also none.
        assert isinstance(walk(make, tokenizer, seed), str)


def test_an_answer_of_a_schema_or_a_call(tokenizer):
    answer = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    make = grammar_maker(tokenizer, tools=[NOW], required=False, parallel=False, answer=answer)
    kinds = set()
    for seed in range(20):
        (part,) = parse([walk(make, tokenizer, seed)])
        kinds.add(type(part))
        if isinstance(part, str):
            jsonschema.validate(json.loads(part), answer)
    assert kinds == {str, ToolCall}
