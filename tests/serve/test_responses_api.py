"""`/v1/responses` with OpenAI's client: the same answers as a chat, as items and events."""

import contextlib
import json
import random

import jsonschema
import openai
import pytest

from support.http_server import running

TOOLS = [
    {
        "type": "function",
        "name": "weather",
        "description": "Weather.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["東京", "大阪"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(generator):
    # A token is mostly a byte, so prompts with tools are long.
    with (
        running(generator, max_length=1024) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def create(client, **more):
    seed = {"seed": more.pop("seed", 1)}
    return client.responses.create(**{"model": "tiny", "input": "hi", "max_output_tokens": 12, **more}, extra_body=seed)


def stream(client, **more):
    """The response of a stream, whose events are checked."""
    events = list(create(client, stream=True, **more))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1].response
    assert events[-1].type == f"response.{last.status}"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == last.output_text
    items = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.to_dict() for item in items] == [item.to_dict() for item in last.output]
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert added == [item.id for item in last.output]
    return last


def content(response):
    return [
        (item.name, item.arguments) if item.type == "function_call" else [part.text for part in item.content]
        for item in response.output
    ]


def test_text_equals_a_chat(client):
    response = create(client, instructions="短く")
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "短く"}, {"role": "user", "content": "hi"}],
        max_tokens=12,
        seed=1,
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == chat.usage.completion_tokens == 12
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert content(stream(client, instructions="短く")) == content(response)


def test_calls_and_their_outputs(client):
    more = {"tools": TOOLS, "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 150}
    more["parallel_tool_calls"] = False
    response = create(client, **more)
    assert response.status == "completed"
    calls = response.output
    assert calls
    for call in calls:
        assert call.type == "function_call"
        jsonschema.validate(json.loads(call.arguments), TOOLS[0]["parameters"])
    assert content(stream(client, **more)) == content(response)
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "晴れ"} for call in calls]
    items = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}, *calls, *outputs]
    follow = create(client, input=[item if isinstance(item, dict) else item.to_dict() for item in items])
    assert follow.usage.input_tokens > response.usage.output_tokens


def test_a_schema(client):
    form = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    response = create(client, text=form, max_output_tokens=100)
    assert response.status == "completed"
    jsonschema.validate(json.loads(response.output_text), SCHEMA)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
        ({"input": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "parameters": {}}]}, "tools[0].name"),
        ({"input": "ab" * 1000}, "input"),
    ],
)
def test_wrong_fields_are_refused_by_name(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **fields)
    assert caught.value.param == param


def test_messages_name_the_fields_of_the_request(client):
    with pytest.raises(openai.BadRequestError, match=r"lower max_output_tokens"):
        create(client, max_output_tokens=100_000)


CHAT = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "max_tokens": 2,
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": True,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
}
RESPONSE = {
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "晴れ"},
    ],
    "max_output_tokens": 2,
    "tools": TOOLS,
    "tool_choice": {"type": "function", "name": "weather"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
}
GUIDED = {"prompt": "hi", "max_tokens": 2, "guided_choice": ["a", "b"]}
ODD = [None, True, 0, -1, 1.5, "", "x", [], {}, [None], [[]], {"type": "x"}, {"": None}, "\x00", "猫"]


def places(value, path=()):
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize(
    ("path", "body"), [("/chat/completions", CHAT), ("/responses", RESPONSE), ("/completions", GUIDED)]
)
def test_odd_values_are_never_a_defect_of_the_server(client, path, body):
    rng = random.Random(0)
    bodies = [replaced(body, place, odd) for place in places(body) if place for odd in rng.sample(ODD, 2)]
    for each in bodies:
        with contextlib.suppress(openai.BadRequestError):
            client.post(path, body=each, cast_to=object)
