"""Structured output and tool calls over HTTP, with OpenAI's client."""

import concurrent.futures
import json
import re

import jsonschema
import openai
import pytest

from support.http_server import running

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 3}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["東京", "大阪"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Weather.", "parameters": CITY, "strict": True},
    },
    {"type": "function", "function": {"name": "now"}},
]
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 150}


@pytest.fixture(scope="module")
def client(generator):
    # A token is mostly a byte, so prompts with tools are long.
    with (
        running(generator, max_length=1024) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client
        assert server.engine.compilations == 0


def chat(client, **more):
    return client.chat.completions.create(**{**ASK, **more})


def streamed(client, **more):
    """Content, tool calls and finish reason of a stream; no chunk holds a part of a call."""
    text, calls, reason = "", [], None
    for chunk in chat(client, stream=True, **more):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                assert call.index == len(calls)
                json.loads(call.function.arguments)
                calls.append((call.function.name, call.function.arguments))
            reason = choice.finish_reason or reason
    return text, calls, reason


def test_json_schema(client):
    for seed in range(3):
        answer = chat(client, response_format=FORMAT, seed=seed).choices[0]
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.message.content), SCHEMA)
        assert streamed(client, response_format=FORMAT, seed=seed) == (answer.message.content, [], "stop")


def test_json_object(client):
    answers = chat(client, response_format={"type": "json_object"}, n=8, seed=1).choices
    done = [json.loads(each.message.content) for each in answers if each.finish_reason == "stop"]
    assert done
    assert all(isinstance(each, dict) for each in done)


@pytest.mark.parametrize(
    ("field", "pattern"),
    [
        ({"guided_regex": "猫{2,4}[0-9]"}, "猫{2,4}[0-9]"),
        ({"guided_choice": ["はい", "いいえ"]}, "はい|いいえ"),
        ({"guided_grammar": 'start: "a" item~2\nitem: "b" | "c"\n'}, "a[bc]{2}"),
        ({"guided_json": {"enum": [1, 2]}}, "1|2"),
    ],
)
def test_guided_fields_of_vllm(client, field, pattern):
    answer = chat(client, extra_body=field).choices[0]
    assert re.fullmatch(pattern, answer.message.content)
    assert answer.finish_reason == "stop"
    text = client.completions.create(model="tiny", prompt="hi", max_tokens=40, extra_body=field).choices[0]
    assert re.fullmatch(pattern, text.text)
    assert text.finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_forced_tool_calls(client, choice):
    for parallel in (True, False):
        answer = chat(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel, seed=3).choices[0]
        calls = [(call.function.name, call.function.arguments) for call in answer.message.tool_calls]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None
        assert parallel or len(calls) == 1
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), CITY if name == "weather" else {"maxProperties": 0})
            assert choice == "required" or name == "weather"
        assert streamed(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel, seed=3) == (
            "",
            calls,
            "tool_calls",
        )


def test_auto_and_none_may_answer_with_text(client):
    for choice in ("auto", "none"):
        answer = chat(client, tools=TOOLS, tool_choice=choice, seed=5, max_tokens=12).choices[0]
        assert answer.message.content
        assert answer.message.tool_calls is None
        assert streamed(client, tools=TOOLS, tool_choice=choice, seed=5, max_tokens=12)[0] == answer.message.content


def test_a_cut_call_is_no_call(client):
    answer = chat(client, tools=TOOLS, tool_choice="required", max_tokens=15).choices[0]
    assert answer.finish_reason == "length"
    assert answer.message.tool_calls is None
    assert answer.message.content.startswith("\n<tool_call>{")


def test_the_conversation_goes_on_after_a_call(client):
    call = chat(client, tools=TOOLS, tool_choice="required", seed=3).choices[0].message
    results = [{"role": "tool", "tool_call_id": each.id, "content": "晴れ"} for each in call.tool_calls]
    messages = [*ASK["messages"], call.model_dump(exclude_none=True), *results]
    assert chat(client, tools=TOOLS, tool_choice="none", messages=messages, max_tokens=3).choices


def test_a_crowd_with_and_without_grammars(client):
    def one(seed):
        more = [{}, {"response_format": FORMAT}, {"tools": TOOLS, "tool_choice": "required"}][seed % 3]
        return chat(client, seed=seed, max_tokens=60, **more).choices[0]

    def content(choice):
        calls = choice.message.tool_calls or []
        return choice.message.content, [call.function.arguments for call in calls], choice.finish_reason

    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        together = list(pool.map(one, range(9)))
    assert [content(each) for each in together] == [content(one(seed)) for seed in range(9)]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "must be a JSON schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "what"}}}},
            "response_format",
            "Invalid type: what",
        ),
        ({"extra_body": {"guided_regex": "(a"}}, "guided_regex", "unclosed group"),
        ({"extra_body": {"guided_choice": []}}, "guided_choice", "array of 1 to"),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["a"]}}, "guided_choice", "together"),
        ({"extra_body": {"guided_regex": "a", "min_tokens": 5}}, "min_tokens", "the grammar decides"),
        ({"extra_body": {"guided_regex": "a", "ignore_eos": True}}, "ignore_eos", "the grammar decides"),
        ({"extra_body": {"guided_regex": "a"}, "tools": TOOLS}, "guided_regex", "together with tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name", "another tool"),
        ({"tools": [{"type": "web"}]}, "tools[0].type", "function"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "one of tools",
        ),
        ({"tool_choice": "required"}, "tool_choice", "without tools"),
    ],
)
def test_wrong_fields_are_refused_by_name(client, fields, param, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        chat(client, **fields)
    assert caught.value.param == param
