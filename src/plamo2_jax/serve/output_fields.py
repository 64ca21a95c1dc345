"""The fields of a chat request that set the format of the answer: `response_format`, `tools`, and vLLM's `guided_*`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from plamo2_jax.engine.grammar import Grammar, compile_grammar
from plamo2_jax.errors import PlamoError
from plamo2_jax.serve.errors import ApiError, invalid
from plamo2_jax.serve.fields import Fields
from plamo2_jax.serve.output import CallParser, OutputFormat, OutputParser, TextParser
from plamo2_jax.serve.served_model import ServedModel
from plamo2_jax.serve.tool_calls import OPENER, Tool, tool_call_grammar

GUIDED_FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
FORMAT_FIELDS = ("response_format", "tools", *GUIDED_FIELDS)
"""Fields that may compile a grammar."""
MAX_TOOLS = 128
MAX_CHOICES = 1024
TOOL_NAME = r"[a-zA-Z0-9_.-]{1,64}"
_ANY_OBJECT = {"type": "object"}


def read_output_format(fields: Fields, model: ServedModel) -> OutputFormat:
    """Return the format that a chat request asks for.

    It may compile a grammar, so it is called in a thread other than the event loop's where one of FORMAT_FIELDS is given.

    Args:
        fields: the request.
        model: the model of the request.

    Raises:
        ApiError: a field is not allowed.
    """
    schema, strict = _response_schema(fields)
    given = _given(fields, ["response_format"] if schema is not None else [])
    tools = _tools(fields)
    chosen, required = _tool_choice(fields, tools)
    parallel = fields.boolean("parallel_tool_calls", True)
    if chosen:
        if given and given[0] in GUIDED_FIELDS:
            raise invalid(given[0], f"{given[0]} is not allowed together with tools: leave one of them out")
        _require_template(model)
        make = functools.partial(
            tool_call_grammar, chosen, required=required, parallel=parallel, answer=schema, strict=strict
        )
        parser = functools.partial(CallParser, [tool.name for tool in chosen])
        return _format(fields, model, make, "tools", parser, {"tools": fields.get("tools")})
    if schema is not None:
        return _format(
            fields,
            model,
            functools.partial(Grammar.of_json_schema, schema, "response_format", strict=strict),
            "response_format",
        )
    if given:
        return _format(fields, model, functools.partial(_guided, fields, given[0]), given[0])
    return OutputFormat()


def read_guided_format(fields: Fields, model: ServedModel) -> OutputFormat:
    """Return the format that a request to continue a prompt asks for: vLLM's fields only.

    Raises:
        ApiError: a field is not allowed.
    """
    given = _given(fields, [])
    if not given:
        return OutputFormat()
    make = functools.partial(_guided, fields, given[0])
    return _format(fields, model, make, given[0], stop_ids=model.document_stop_ids)


def _given(fields: Fields, others: list[str]) -> list[str]:
    """Return the name of the field that gives a grammar, if there is one."""
    given = [*(name for name in GUIDED_FIELDS if fields.get(name) is not None), *others]
    if len(given) > 1:
        raise invalid(given[1], f"{given[0]} and {given[1]} are not allowed together: leave one of them out")
    return given


def _format(
    fields: Fields,
    model: ServedModel,
    make: Callable[[], Grammar],
    param: str,
    parser: Callable[[], OutputParser] = TextParser,
    variables: dict[str, Any] | None = None,
    stop_ids: Sequence[int] | None = None,
) -> OutputFormat:
    """Return the format of the grammar that `make` returns.

    Args:
        param: the field that the grammar comes from.
        parser: makes the parser of a sample.
        variables: variables of the chat template.
        stop_ids: ids that end the text; None: those of an answer of a chat.
    """
    for name in ("min_tokens", "ignore_eos"):
        if fields.get(name):
            raise invalid(name, f"{name} is not allowed together with {param}: the grammar decides where the text ends")
    try:
        constraint = compile_grammar(
            make(),
            model.tokenizer,
            vocab_size=model.vocab_size,
            stop_ids=model.answer_stop_ids if stop_ids is None else stop_ids,
        )
    except PlamoError as error:
        raise ApiError(400, str(error), param=param) from error
    return OutputFormat(parser, constraint, variables or {})


def _response_schema(fields: Fields) -> tuple[dict[str, Any] | bool | None, bool]:
    """Return the JSON schema of `response_format`, and whether it is strict. No schema: text."""
    form = fields.nested("response_format")
    kind = None if form is None else form.choice("type", ("text", "json_object", "json_schema"), "text")
    if kind == "json_object":
        return _ANY_OBJECT, True
    if kind != "json_schema":
        return None, True
    wanted = form.nested("json_schema")
    schema = None if wanted is None else wanted.get("schema")
    if not isinstance(schema, dict | bool):
        raise invalid(
            "response_format.json_schema.schema", "response_format.json_schema.schema must be a JSON schema (an object)"
        )
    for name in ("name", "description"):
        wanted.string(name)
    return schema, wanted.boolean("strict", False)


def _guided(fields: Fields, name: str) -> Grammar:
    """Return the grammar of one of vLLM's fields."""
    if name == "guided_choice":
        texts = fields.items(name, "an array of texts")
        if not texts or len(texts) > MAX_CHOICES or not all(isinstance(each, str) and each for each in texts):
            raise fields.refuse(name, f"an array of 1 to {MAX_CHOICES} texts, none of them empty")
        return Grammar.of_choice(texts, name)
    if name == "guided_json":
        schema = fields.get(name)
        if not isinstance(schema, dict | bool):
            raise fields.refuse(name, "a JSON schema (an object)")
        return Grammar.of_json_schema(schema, name)
    make = {"guided_regex": Grammar.of_regex, "guided_grammar": Grammar.of_lark}[name]
    return make(fields.string(name), name)


def _tools(fields: Fields) -> list[Tool]:
    values = fields.items("tools", "an array of tools") or []
    if len(values) > MAX_TOOLS:
        raise invalid("tools", f"tools has {len(values)} entries: at most {MAX_TOOLS} are allowed")
    tools: list[Tool] = []
    for i, value in enumerate(values):
        where = f"tools[{i}]"
        tool = Fields(value, f"{where}.")
        if tool.choice("type", ("function",)) is None:
            raise invalid(f"{where}.type", f"{where} has no type: it must be function")
        function = tool.nested("function")
        name = None if function is None else function.string("name")
        if name is None or not re.fullmatch(TOOL_NAME, name):
            raise invalid(
                f"{where}.function.name",
                f"{where}.function.name must be a name of 1 to 64 letters, digits, dots, dashes and underscores",
            )
        if any(name == other.name for other in tools):
            raise invalid(f"{where}.function.name", f"{where}.function.name={name} is the name of another tool")
        # Without a schema, a function has no parameters.
        parameters = {**_ANY_OBJECT, **(function.mapping("parameters") or {"additionalProperties": False})}
        if parameters["type"] != "object":
            raise invalid(
                f"{where}.function.parameters", f"{where}.function.parameters must be a JSON schema of type object"
            )
        function.string("description")
        tools.append(Tool(name, parameters, function.boolean("strict", False)))
    return tools


def _tool_choice(fields: Fields, tools: list[Tool]) -> tuple[list[Tool], bool]:
    """Return the tools that may be called, and whether one must be called."""
    value = fields.get("tool_choice")
    if isinstance(value, dict):
        chosen = fields.nested("tool_choice")
        function = chosen.nested("function") if chosen.choice("type", ("function",)) else None
        name = None if function is None else function.string("name")
        named = [tool for tool in tools if tool.name == name]
        if not named:
            raise fields.refuse("tool_choice", "none, auto, required, or a function with the name of one of tools")
        return named, True
    choice = fields.choice("tool_choice", ("none", "auto", "required"), "auto")
    if choice == "required" and not tools:
        raise invalid("tool_choice", "tool_choice=required is not allowed without tools: give tools")
    return [] if choice == "none" else tools, choice == "required"


def _require_template(model: ServedModel) -> None:
    # A model without a template cannot chat at all, which another error says.
    if model.template is not None and OPENER not in model.template.source:
        raise invalid(
            "tools",
            f"the chat template of {model.name} does not write tool calls as {OPENER}: leave tools out, or start the server with "
            "--template chat",
        )
