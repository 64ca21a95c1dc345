"""Tool calls in a model's text: their grammar, and a parser that never returns half a call.

The form is the chat template's (tokenizer/templates/chat.jinja): after the text of an answer, each call is written as a line

    <tool_call>{"name": "weather", "arguments": {"city": "Tokyo"}}</tool_call>
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from plamo2_jax.engine.grammar import Grammar, lark_json, lark_text
from plamo2_jax.errors import PlamoError

OPENER, CLOSER = "<tool_call>", "</tool_call>"
_WHITESPACE = " \t\r\n"
_MAX_DEPTH = 100
"""As `json_input.MAX_DEPTH`."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any] | bool
    """JSON schema of its arguments."""
    strict: bool = False
    """Refuse keywords of the schema that cannot be enforced; false: ignore them."""


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call that the model has written."""

    name: str
    arguments: str
    """The text of a JSON object, as the model wrote it."""


def tool_call_grammar(
    tools: Sequence[Tool],
    *,
    required: bool,
    parallel: bool,
    answer: Mapping[str, Any] | bool | None = None,
    strict: bool = True,
) -> Grammar:
    """Return the grammar of an answer that may call tools.

    Args:
        tools: the functions; a named choice has one.
        required: whether the answer is one call or more. False: it may be text, and calls may follow the text; once the model has
            written the beginning of a call, the call is complete and valid.
        parallel: whether several calls may follow each other.
        answer: JSON schema of an answer that is no call; None: any text.
        strict: as in `Grammar.of_json_schema`, for `answer`.
    """
    more = f"(NEXT call)*\nNEXT: {lark_text(chr(10) + OPENER)}" if parallel else ""
    rules = [f"calls: call {more}", f"call: body {lark_text(CLOSER)}"]
    bodies = []
    for i, tool in enumerate(tools):
        head = '{"name": ' + json.dumps(tool.name, ensure_ascii=False) + ', "arguments": '
        bodies.append(f'{lark_text(head)} arguments_{i} "}}"')
        schema = lark_json(tool.parameters, strict=tool.strict, spaced=True)
        rules.append(f"arguments_{i}: {schema}")
    rules.append("body: " + " | ".join(bodies))
    opened = f"{lark_text(chr(10) + OPENER)} calls"
    if required:
        start = opened
    elif answer is not None:
        start = f"answer | {opened}"
        rules.append(f"answer: {lark_json(answer, strict=strict)}")
    else:
        start = "TEXT | opened calls"
        rules += [f"opened[lazy]: ANY {lark_text(OPENER)}", r"ANY: /(.|\n)*/"]
        rules.append(f"TEXT: ANY & ~/(.|\\n)*{OPENER}(.|\\n)*/")
    return Grammar.of_lark("\n".join([f"start: {start}", *rules]) + "\n", "tools")


class ToolCallParser:
    """Splits text that arrives in pieces into text and calls.

    What comes out does not depend on how the text was cut into pieces. A call comes out when it is complete: an object with the name of
    a tool and an object of arguments, between the two marks. Everything else is text.

    Args:
        names: names of the tools.
    """

    def __init__(self, names: Collection[str]):
        self._names = names
        self._held = ""
        # The call that the held text begins with, perhaps.
        self._scan: _CallScan | None = None

    def push(self, piece: str) -> list[str | ToolCall]:
        """Return the text and the calls that a piece completes."""
        self._held += piece
        return _joined(self._take(final=False))

    def finish(self) -> list[str | ToolCall]:
        """Return the text that was held back, at the end of the text."""
        return _joined(self._take(final=True))

    def _take(self, *, final: bool) -> Iterator[str | ToolCall]:
        while True:
            if self._scan is None:
                place = self._held.find(OPENER)
                if place < 0:
                    yield self._cut(len(self._held) - (0 if final else _unsure(self._held)))
                    return
                # The line end before a call belongs to it.
                yield self._cut(place - self._held[:place].endswith("\n"))
                self._scan = _CallScan(self._held.index(OPENER) + len(OPENER))
            state = self._scan.advance(self._held)
            if state == "open" and not final:
                return
            call = self._scan.call(self._held, self._names) if state == "complete" else None
            # Text that is no call may still hold one after the mark.
            text = self._cut(self._scan.begin if call is None else self._scan.end)
            self._scan = None
            yield text if call is None else call

    def _cut(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text


def _unsure(text: str) -> int:
    """Return the length of the longest end of a text that a call may begin with."""
    mark = "\n" + OPENER
    for length in range(min(len(text), len(OPENER)), 0, -1):
        if mark.startswith(text[-length:]) or OPENER.startswith(text[-length:]):
            return length
    return 0


def _joined(parts: Iterator[str | ToolCall]) -> list[str | ToolCall]:
    """Join neighbouring texts, leave out empty ones."""
    result: list[str | ToolCall] = []
    for part in parts:
        if isinstance(part, str) and result and isinstance(result[-1], str):
            result[-1] += part
        elif part:
            result.append(part)
    return result


class _CallScan:
    """Reads a JSON object and the mark after it, character by character, and remembers where the members of the object are.

    It reads each character once and ends at the first one that cannot belong to a call, so text is not held back for long.

    Args:
        begin: place after the mark that opens the call.

    Attributes:
        end: place after the mark that closes the call, once it is complete.
    """

    def __init__(self, begin: int):
        self.begin = self.end = self._place = begin
        self._open: list[str] = []
        self._expects: Literal["value", "item", "key", "member", "colon", "comma", "string", "scalar", "mark"] = "value"
        self._escaped = self._in_key = False
        self._object_end = begin
        # Of the outer object: begin of the present key or value, the key, and the text of each value.
        self._start, self._key = begin, ""
        self._members: list[tuple[str, tuple[int, int]]] = []

    def advance(self, text: str) -> Literal["open", "complete", "broken"]:
        """Read on, to the end of the text at most."""
        while self._place < len(text):
            if self._expects == "mark":
                rest = text[self._place : self._place + len(CLOSER)]
                if rest[0] in _WHITESPACE:
                    self._place += 1
                    continue
                self.end = self._place + len(CLOSER)
                return "complete" if rest == CLOSER else "open" if CLOSER.startswith(rest) else "broken"
            if not self._read(text, text[self._place]):
                return "broken"
            self._place += 1
        return "open"

    def call(self, text: str, names: Collection[str]) -> ToolCall | None:
        """Return the call that the text holds; None if it is another object."""
        try:
            json.loads(text[self.begin : self._object_end], parse_constant=_refuse)
            members = [(json.loads(key), text[slice(*span)]) for key, span in self._members]
        except (ValueError, RecursionError):
            return None
        values = dict(members)
        if len(members) != 2 or set(values) != {"name", "arguments"} or not values["arguments"].startswith("{"):
            return None
        name = json.loads(values["name"])
        return ToolCall(name, values["arguments"]) if isinstance(name, str) and name in names else None

    def _read(self, text: str, character: str) -> bool:
        """Read a character; return whether it may stand here."""
        expects = self._expects
        if expects == "string":
            return self._read_string(text, character)
        if expects == "scalar":
            if character.isascii() and (character.isalnum() or character in "+-."):
                return True
            self._end_value(self._place)
            return self._read(text, character)
        if character in _WHITESPACE:
            return True
        if character == '"' and expects in ("value", "item", "key", "member"):
            self._begin(key=expects in ("key", "member"))
            self._expects = "string"
        elif character in "{[" and expects in ("value", "item"):
            return self._open_container(character)
        elif character in "}]" and (expects == "comma" or (expects, character) in (("member", "}"), ("item", "]"))):
            return self._close_container(character)
        elif expects == "colon" and character == ":":
            self._expects = "value"
        elif expects == "comma" and character == ",":
            self._expects = "key" if self._open[-1] == "{" else "value"
        elif (
            expects in ("value", "item")
            and self._open
            and ((character.isascii() and character.isalnum()) or character == "-")
        ):
            self._begin(key=False)
            self._expects = "scalar"
        else:
            return False
        return True

    def _read_string(self, text: str, character: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"' and self._in_key:
            if len(self._open) == 1:
                self._key = text[self._start : self._place + 1]
            self._expects = "colon"
        elif character == '"':
            self._end_value(self._place + 1)
        return character >= " "

    def _open_container(self, character: str) -> bool:
        if len(self._open) == _MAX_DEPTH or (not self._open and character == "["):
            return False
        self._begin(key=False)
        self._open.append(character)
        self._expects = "member" if character == "{" else "item"
        return True

    def _close_container(self, character: str) -> bool:
        if self._open.pop() + character not in ("{}", "[]"):
            return False
        self._end_value(self._place + 1)
        return True

    def _begin(self, *, key: bool) -> None:
        self._in_key = key
        if len(self._open) == 1:
            self._start = self._place

    def _end_value(self, end: int) -> None:
        """Note that a value ends before a place."""
        if not self._open:
            self._object_end, self._expects = end, "mark"
            return
        self._expects = "comma"
        if len(self._open) == 1:
            self._members.append((self._key, (self._start, end)))


def _refuse(name: str) -> None:
    raise PlamoError(f"{name} is not JSON")
