"""The OpenAPI document of the server (`/openapi.json`)."""

from __future__ import annotations

from typing import Any

import plamo2_jax
from plamo2_jax.engine.step import MAX_TOP_LOGPROBS
from plamo2_jax.serve.chat_requests import MAX_MESSAGES, ROLES
from plamo2_jax.serve.completion_requests import MAX_PROMPTS
from plamo2_jax.serve.generation_fields import MAX_SAMPLES, MAX_STOP_LENGTH, MAX_STOP_STRINGS, MAX_TOP_K
from plamo2_jax.serve.output_fields import MAX_CHOICES, MAX_TOOLS, TOOL_NAME

_JSON = "application/json"


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def _integer(low: int, high: int, default: int | None = None) -> dict[str, Any]:
    schema = {"type": ["integer", "null"], "minimum": low, "maximum": high}
    return schema if default is None else {**schema, "default": default}


def _number(default: float, **limits: float) -> dict[str, Any]:
    return {"type": ["number", "null"], "default": default, **limits}


def _boolean(default: bool) -> dict[str, Any]:
    return {"type": ["boolean", "null"], "default": default}


def _array(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


_TEXT = {"type": "string"}
_TOKEN = {"type": "integer", "minimum": 0}
_IDS = _array(_TOKEN, minItems=1)
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}

_SHARED: dict[str, Any] = {
    "model": {**_nullable(_TEXT), "description": "Name of a model in /v1/models. Default: the first."},
    "temperature": _number(1.0, minimum=0, maximum=100),
    "top_p": _number(1.0, exclusiveMinimum=0, maximum=1),
    "top_k": _integer(-1, MAX_TOP_K, 0),
    "min_p": _number(0.0, minimum=0, maximum=1),
    "presence_penalty": _number(0.0, minimum=-2, maximum=2),
    "frequency_penalty": _number(0.0, minimum=-2, maximum=2),
    "repetition_penalty": _number(1.0, minimum=1e-6, maximum=100),
    "n": _integer(1, MAX_SAMPLES, 1),
    "seed": _integer(-(1 << 63), (1 << 63) - 1),
    "stop": {"anyOf": [_STOP, _array(_STOP, maxItems=MAX_STOP_STRINGS), {"type": "null"}]},
    "stop_token_ids": {**_array(_TOKEN), "type": ["array", "null"]},
    "ignore_eos": _boolean(False),
    "min_tokens": _integer(0, 1 << 31, 0),
    "logit_bias": {
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
    "stream": _boolean(False),
    "stream_options": {
        "type": ["object", "null"],
        "properties": {"include_usage": _boolean(False)},
        "description": "Only if stream is true.",
    },
    "cache_salt": {"type": ["string", "null"], "maxLength": MAX_STOP_LENGTH},
    "priority": _integer(-(1 << 31), 1 << 31, 0),
}

_COMPLETION: dict[str, Any] = {
    "prompt": {
        "anyOf": [
            _TEXT,
            _IDS,
            _array({"anyOf": [_TEXT, _IDS]}, minItems=1, maxItems=MAX_PROMPTS),
            {"type": "null"},
        ]
    },
    "add_special_tokens": _boolean(True),
    "max_tokens": {**_integer(0, 1 << 31, 16), "description": "0 only with echo."},
    "echo": _boolean(False),
    "logprobs": _integer(0, MAX_TOP_LOGPROBS),
    "best_of": {**_integer(1, MAX_SAMPLES), "description": "At least n; equal to n if stream is true."},
}

_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
_OPTIONAL_OBJECT = {"type": ["object", "null"]}
_TOOL_NAME = {"type": "string", "pattern": f"^{TOOL_NAME}$"}
_FUNCTION = {
    "type": "object",
    "properties": {
        "name": _TOOL_NAME,
        "description": _nullable(_TEXT),
        "parameters": _OPTIONAL_OBJECT,
        "strict": _boolean(False),
    },
    "required": ["name"],
}
_TOOL = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": _FUNCTION},
    "required": ["type", "function"],
}
_GUIDED: dict[str, Any] = {
    "guided_json": _OPTIONAL_OBJECT,
    "guided_regex": _nullable(_TEXT),
    "guided_choice": {
        **_array({"type": "string", "minLength": 1}, minItems=1, maxItems=MAX_CHOICES),
        "type": ["array", "null"],
    },
    "guided_grammar": {**_nullable(_TEXT), "description": "Lark (llguidance's variant) or GBNF."},
}
_FORMATS: dict[str, Any] = {
    "tools": {**_array(_TOOL, maxItems=MAX_TOOLS), "type": ["array", "null"]},
    "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required", None]}, {"type": "object"}]},
    "parallel_tool_calls": _boolean(True),
    "response_format": {
        "type": ["object", "null"],
        "properties": {
            "type": {"enum": ["text", "json_object", "json_schema", None]},
            "json_schema": {
                "type": ["object", "null"],
                "properties": {"name": _nullable(_TEXT), "schema": {"type": "object"}, "strict": _boolean(False)},
                "required": ["schema"],
            },
        },
    },
    **_GUIDED,
}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {"anyOf": [_TEXT, _array(_PART, minItems=1), {"type": "null"}]},
        "name": _nullable(_TEXT),
        "tool_call_id": _nullable(_TEXT),
        "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
    },
    "required": ["role"],
}
_CHAT: dict[str, Any] = {
    "messages": _array(_MESSAGE, minItems=1, maxItems=MAX_MESSAGES),
    "max_tokens": _integer(1, 1 << 31),
    "max_completion_tokens": _integer(1, 1 << 31),
    "logprobs": _boolean(False),
    "top_logprobs": {**_integer(0, MAX_TOP_LOGPROBS, 0), "description": "Only where logprobs is true."},
    "chat_template_kwargs": {"type": ["object", "null"]},
    **_FORMATS,
}
_RESPONSE_REQUEST: dict[str, Any] = {
    **{
        name: schema
        for name, schema in {**_SHARED, **_FORMATS}.items()
        if name not in ("n", "stream_options", "response_format") and not name.startswith("guided_")
    },
    "input": {"anyOf": [_TEXT, _array({"type": "object"}, minItems=1)]},
    "instructions": _nullable(_TEXT),
    "max_output_tokens": _integer(1, 1 << 31),
    "tools": {"type": ["array", "null"], "items": {"type": "object"}, "maxItems": MAX_TOOLS},
    "text": {"type": ["object", "null"], "properties": {"format": _OPTIONAL_OBJECT}},
    "truncation": {"enum": ["disabled", None]},
}

_USAGE = {
    "type": "object",
    "properties": {
        "prompt_tokens": _TOKEN,
        "completion_tokens": _TOKEN,
        "total_tokens": _TOKEN,
        "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": _TOKEN}},
    },
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": _nullable(_TEXT),
                "code": _nullable(_TEXT),
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def _response(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": _TEXT,
            "system_fingerprint": _TEXT,
            "seed": {"type": "integer"},
            "choices": _array(
                {
                    "type": "object",
                    "properties": {"index": _TOKEN, "finish_reason": _TEXT, **choice},
                    "required": ["index", "finish_reason", *choice],
                }
            ),
            "usage": _USAGE,
        },
        "required": ["id", "object", "created", "model", "choices", "usage"],
    }


_SCHEMAS: dict[str, Any] = {
    "Error": _ERROR,
    "CompletionRequest": {"type": "object", "properties": {**_SHARED, **_COMPLETION, **_GUIDED}},
    "ChatRequest": {"type": "object", "properties": {**_SHARED, **_CHAT}, "required": ["messages"]},
    "ResponseRequest": {"type": "object", "properties": _RESPONSE_REQUEST, "required": ["input"]},
    "Response": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "object": {"const": "response"},
            "created_at": {"type": "integer"},
            "status": {"enum": ["completed", "incomplete", "failed"]},
            "model": _TEXT,
            "output": _array({"type": "object"}),
            "usage": _OPTIONAL_OBJECT,
        },
        "required": ["id", "object", "created_at", "status", "model", "output", "usage"],
    },
    "Completion": _response("text_completion", {"text": _TEXT, "logprobs": _OPTIONAL_OBJECT}),
    "Chat": _response("chat.completion", {"message": {"type": "object"}, "logprobs": _OPTIONAL_OBJECT}),
    "TokenizeRequest": {
        "type": "object",
        "properties": {"model": _SHARED["model"], "prompt": _TEXT, "add_special_tokens": _boolean(True)},
        "required": ["prompt"],
    },
    "Tokens": {
        "type": "object",
        "properties": {"count": _TOKEN, "max_model_len": _TOKEN, "tokens": _array(_TOKEN)},
        "required": ["count", "max_model_len", "tokens"],
    },
    "DetokenizeRequest": {
        "type": "object",
        "properties": {"model": _SHARED["model"], "tokens": _array(_TOKEN)},
        "required": ["tokens"],
    },
    "Text": {"type": "object", "properties": {"prompt": _TEXT}, "required": ["prompt"]},
    "Model": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": _TEXT,
            "root": _TEXT,
            "parent": _nullable(_TEXT),
            "max_model_len": {"type": "integer"},
        },
        "required": ["id", "object", "created", "owned_by", "max_model_len"],
    },
    "Models": {
        "type": "object",
        "properties": {"object": {"const": "list"}, "data": _array({"$ref": "#/components/schemas/Model"})},
        "required": ["object", "data"],
    },
    "TokenizerInfo": {
        "type": "object",
        "properties": {
            **{name: _TEXT for name in ("bos_token", "eos_token", "pad_token")},
            "chat_template": _nullable(_TEXT),
        },
        "required": ["bos_token", "eos_token", "pad_token", "chat_template"],
    },
    "Health": {"type": "object", "properties": {"status": _TEXT}, "required": ["status"]},
}


def _content(schema: str) -> dict[str, Any]:
    return {"content": {_JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _operation(summary: str, answer: str, request: str | None = None, errors: tuple[int, ...] = ()) -> dict[str, Any]:
    codes = (*errors, *((400, 404, 408, 413, 415, 429) if request else ()), 401, 403, 500, 503)
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer.", **_content(answer)},
            **{str(code): {"description": "An error.", **_content("Error")} for code in sorted(set(codes))},
        },
    }
    if request:
        operation["requestBody"] = {"required": True, **_content(request)}
    return operation


def document() -> dict[str, Any]:
    """Return the document. Fields that it does not name are ignored by the server, and named in the header X-Ignored-Fields."""
    completions = _operation("Continue prompts.", "Completion", "CompletionRequest")
    chats = _operation("Answer a conversation.", "Chat", "ChatRequest")
    responses = _operation("Answer a conversation, without storing it.", "Response", "ResponseRequest")
    for operation in (completions, chats, responses):
        stream = {"schema": {"type": "string", "description": "data: {chunk}, ends with data: [DONE]"}}
        operation["responses"]["200"]["content"]["text/event-stream"] = stream
    name = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    query = {"name": "model", "in": "query", "schema": _TEXT}
    health = _operation("Say whether requests are answered.", "Health")
    health["responses"]["503"] = {"description": "Starting, draining or failed.", **_content("Health")}
    metrics = {
        "summary": "Metrics in Prometheus's text format.",
        "responses": {
            "200": {"description": "The metrics.", "content": {"text/plain": {"schema": _TEXT}}},
            "401": {"description": "An error.", **_content("Error")},
            "403": {"description": "An error.", **_content("Error")},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "plamo2 serve", "version": plamo2_jax.__version__},
        "paths": {
            "/v1/completions": {"post": completions},
            "/v1/chat/completions": {"post": chats},
            "/v1/responses": {"post": responses},
            "/v1/models": {"get": _operation("List the models.", "Models")},
            "/v1/models/{name}": {
                "get": {**_operation("Describe a model.", "Model", errors=(404,)), "parameters": [name]}
            },
            "/tokenize": {"post": _operation("Turn text into token ids.", "Tokens", "TokenizeRequest")},
            "/detokenize": {"post": _operation("Turn token ids into text.", "Text", "DetokenizeRequest")},
            "/tokenizer_info": {
                "get": {
                    **_operation("Describe the tokenizer.", "TokenizerInfo", errors=(404,)),
                    "parameters": [query],
                }
            },
            "/health": {"get": health},
            "/metrics": {"get": metrics},
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }
